"""Seconds a step of `train_sft` and of TRL's SFTTrainer: same model, data, batches, threads.

PYTHONPATH=. python tests/benchmarks/sft_vs_trl.py
PYTHONPATH=. python tests/benchmarks/sft_vs_trl.py --vocabulary 151936 --steps 4 --batch-size 8
"""

from trl_side_by_side import (
    Clock,
    Round,
    arguments,
    compare,
    in_plan_order,
    their_arguments,
    their_round,
)

# isort: split
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from helpers.data import load_records
from helpers.models import load_model
from helpers.prompts import load_template, render
from helpers.training import SFTSettings, train_sft
from helpers.training.sft import FUNCTIONS, SFT

BASE, DATA, LR = "workbook/assets/base", "workbook/assets/data/maths_train.jsonl", 1e-4


def examples(count: int) -> list[dict]:
    """Word problems under the long r1_zero prompt, with their worked answers."""
    data, _ = load_records(DATA, limit=count)
    template = load_template("r1_zero")
    return [
        {"prompt": render(template, question=row["question"]), "response": f" {row['answer']}"}
        for row in data
    ]


def fresh_model(vocabulary: int):
    """The shipped model; with a vocabulary, a new one of its widths with so many tokens."""
    model, tokenizer = load_model(BASE, device="cpu")
    if vocabulary:
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(BASE, vocab_size=vocabulary, dtype="float32")
        model = AutoModelForCausalLM.from_config(config)
    return model, tokenizer


def main() -> None:
    args = arguments(__doc__.splitlines()[0], vocabulary=0)
    data = examples(args.steps * args.batch_size)
    settings = SFTSettings(max_steps=args.steps, batch_size=args.batch_size, lr=LR,
                           schedule="constant", warmup_ratio=0, progress=False)
    _, tokenizer = load_model(BASE, device="cpu")
    lengths = SFT(data, tokenizer, settings, FUNCTIONS, 1024).lengths
    order = in_plan_order(lengths, args.batch_size, args.steps)
    rows = Dataset.from_list(
        [{"prompt": data[row]["prompt"], "completion": data[row]["response"]} for row in order]
    )

    def ours() -> Round:
        model, _ = fresh_model(args.vocabulary)
        clock = Clock()
        run = train_sft(model, data, settings, tokenizer=tokenizer, callbacks=[clock])
        return [record["loss"] for record in run.metrics], clock.seconds_a_step()

    def theirs() -> Round:
        model, tokenizer = fresh_model(args.vocabulary)
        config = SFTConfig(**their_arguments(args.steps, args.batch_size, LR))
        trainer = SFTTrainer(model, train_dataset=rows, processing_class=tokenizer, args=config)
        return their_round(trainer, Clock())

    name = f"SFT, vocabulary {args.vocabulary:,}" if args.vocabulary else "SFT, shipped model"
    compare(name, ours, theirs, args.rounds)


if __name__ == "__main__":
    main()
