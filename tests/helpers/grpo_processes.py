"""Run by test_grpo_resume.py with torchrun: the same training in each process.

torchrun --nproc_per_node 2 grpo_processes.py FOLDER_OF_THE_MODEL OUT TOKENS_OF_A_MICRO_BATCH
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from tests.helpers.grpo_world import gradients, make_loop, train, train_by_ppo


def main(folder: str, out: str, budget: str) -> None:
    # Five prompts do not divide by two, and the last step of an epoch has one prompt: one process
    # then has none. float64: see in_float64 of training_processes.py.
    common = {"micro_batch_tokens": int(budget), "prompts_per_step": 5, "dtype": torch.float64}
    loop = make_loop(folder, micro_batch_tokens=int(budget), prompts_per_step=5)
    found, rollouts, _ = gradients(loop)
    batches = len(list(loop._batches(rollouts, rollouts.own)))
    runs = {
        "grpo": train(folder, f"{out}/grpo", max_steps=4, **common),
        "kl": train(folder, f"{out}/kl", max_steps=4, beta=0.2, scale="batch", minibatches=2,
                    epochs_per_step=2, **common),
        "ppo": train_by_ppo(folder, f"{out}/ppo", max_steps=4, beta=0.1, lr=1e-3, **common),
    }
    tensors = {f"gradient/{name}": gradient for name, gradient in found.items()}
    for kind, run in runs.items():
        tensors |= {f"{kind}/{name}": p.detach() for name, p in run.model.named_parameters()}
    rank = PartialState().process_index
    save_file({k: t.contiguous() for k, t in tensors.items()}, f"{out}/{rank}.safetensors")
    report = {"processes": PartialState().num_processes, "threads": torch.get_num_threads(),
              "batches": batches, **{kind: run.metrics for kind, run in runs.items()}}
    Path(f"{out}/{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
