"""Run by test_training_processes.py with torchrun: the same training in each process.

torchrun --nproc_per_node 2 training_processes.py FOLDER_OF_THE_MODEL OUT MICRO_BATCH_SIZE
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from helpers.models import LoraSettings, load_model, load_reward_model
from helpers.training import (
    PreferenceSettings,
    RewardSettings,
    SFTSettings,
    train_preference,
    train_reward_model,
    train_sft,
)
from helpers.training.loop import Loop
from helpers.training.sft import FUNCTIONS, SFT

WORDS = "Nora has 12 apples and buys 30 more . How many apples does she have now ?".split()
# 13 examples in steps of 4 leave a last step of 1: one of two processes then has none.
DATA = [
    {
        "prompt": " ".join(WORDS[: 1 + i % 5]),
        "response": " " + " ".join(WORDS[i : 2 * i + 1] or ["."]),
        "chosen": " " + " ".join(WORDS[i % 3 : i % 3 + 1 + i % 7]),
        "rejected": " " + " ".join(WORDS[5 + i % 4 :]),
    }
    for i in range(13)
]


def in_float64(load, folder: str, **options):
    """(model, tokenizer). AdamW divides each step by the gradient's own size: where a gradient is
    about 0, float32's rounding decides the sign of a whole step, another one on each processor."""
    model, tokenizer = load(folder, device="cpu", **options)
    return model.double(), tokenizer


def main(folder: str, out: str, size: str) -> None:
    model, tokenizer = in_float64(load_model, folder)
    settings = SFTSettings(batch_size=8, micro_batch_size=int(size), progress=False)
    loop = Loop(model.train(), SFT(DATA, tokenizer, settings, FUNCTIONS, 256), settings)
    loop.gradients(range(8), False)
    gradients = {name: p.grad.clone() for name, p in loop.parameters.items()}

    options = {"micro_batch_size": int(size), "num_epochs": 2, "lr": 1e-2, "progress": False}
    model, tokenizer = in_float64(load_model, folder, lora=LoraSettings(rank=4))
    sft = train_sft(model, DATA, SFTSettings(batch_size=4, save_every=3, **options),
                    tokenizer=tokenizer, eval_data=DATA[:3], out_dir=f"{out}/sft")
    model, tokenizer = in_float64(load_reward_model, folder)
    reward = train_reward_model(model, DATA, RewardSettings(batch_size=4, **options),
                                tokenizer=tokenizer, out_dir=f"{out}/reward")
    runs = [sft, reward]
    # KTO takes 26 responses; both end with a step of one example, too.
    for method, batch_size in (("dpo", 4), ("kto", 5)):
        model, tokenizer = in_float64(load_model, folder, lora=LoraSettings(rank=4))
        preferences = PreferenceSettings(batch_size=batch_size, **options | {"num_epochs": 1})
        runs.append(train_preference(model, DATA, preferences, tokenizer=tokenizer, method=method,
                                     eval_data=DATA[:3], out_dir=f"{out}/{method}"))
    # The others share these two's way through the loop: two steps, of twelve pairs and of one.
    for method in ("robust", "hinge", "ipo", "simpo", "orpo"):
        model, tokenizer = in_float64(load_model, folder, lora=LoraSettings(rank=4))
        smoothing = {"label_smoothing": 0.1} if method == "robust" else {}
        preferences = PreferenceSettings(batch_size=12, **options | {"num_epochs": 1}, **smoothing)
        runs.append(train_preference(model, DATA, preferences, tokenizer=tokenizer, method=method))
    tensors = {f"gradient/{name}": gradient for name, gradient in gradients.items()}
    for run in runs:
        kind = run.summary["method"]
        tensors |= {f"{kind}/{name}": p.detach() for name, p in run.model.named_parameters()}
    rank = PartialState().process_index
    save_file({k: t.contiguous() for k, t in tensors.items()}, f"{out}/{rank}.safetensors")
    report = {"processes": PartialState().num_processes, "threads": torch.get_num_threads(),
              **{run.summary["method"]: run.metrics for run in runs}}
    Path(f"{out}/{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
