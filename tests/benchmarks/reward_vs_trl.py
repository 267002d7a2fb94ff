"""Seconds a step of `train_reward_model` and of TRL's RewardTrainer: same model, data, batches.

PYTHONPATH=. python tests/benchmarks/reward_vs_trl.py
"""

import json

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
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from helpers.models import load_reward_model
from helpers.reward_models import encode
from helpers.training import RewardSettings, train_reward_model
from helpers.training.reward import FUNCTIONS, RewardModelling

BASE, DATA = "workbook/assets/base", "workbook/assets/data/preferences_chosen.jsonl"
LR = 1e-4


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    with open(DATA, encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    count = args.steps * args.batch_size
    data = (pairs * (count // len(pairs) + 1))[:count]
    settings = RewardSettings(max_steps=args.steps, batch_size=args.batch_size, lr=LR,
                              schedule="constant", warmup_ratio=0, progress=False)
    _, tokenizer = load_reward_model(BASE, device="cpu")
    lengths = RewardModelling(data, tokenizer, settings, FUNCTIONS, 1024).lengths
    order = in_plan_order(lengths, args.batch_size, args.steps)
    rows = Dataset.from_list([
        {f"{side}_ids": encode(data[row]["prompt"], data[row][side], tokenizer)
         for side in ("chosen", "rejected")} for row in order
    ])

    def ours() -> Round:
        model, _ = load_reward_model(BASE, device="cpu")
        clock = Clock()
        run = train_reward_model(model, data, settings, tokenizer=tokenizer, callbacks=[clock])
        return [record["loss"] for record in run.metrics], clock.seconds_a_step()

    def theirs() -> Round:
        model, tokenizer = load_reward_model(BASE, device="cpu")
        # Their pooling looks for the first padding token, so padding must not be EOS.
        tokenizer.pad_token = "<|im_start|>"
        model.classifier.config.pad_token_id = tokenizer.pad_token_id
        config = RewardConfig(**their_arguments(args.steps, args.batch_size, LR))
        trainer = RewardTrainer(model.classifier, train_dataset=rows, processing_class=tokenizer,
                                args=config)
        return their_round(trainer, Clock())

    compare("reward model", ours, theirs, args.rounds)


if __name__ == "__main__":
    main()
