"""Reward models: a scalar head trained on pairs of responses."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from helpers.decoding import window_of
from helpers.losses import bradley_terry_loss
from helpers.reward_models import encode, pool_last_token
from helpers.shared_rows import SharedLayout, padded, plain_places, shared_columns
from helpers.tokens import encode_prompt
from helpers.training.loop import run_training
from helpers.training.method import (
    EMPTY_PROMPT,
    Batch,
    DataReport,
    Method,
    checked_functions,
    data_digest,
    rows_of,
    text_of,
)
from helpers.training.run import Run, RunFolder, identity_of
from helpers.training.settings import RewardSettings

FUNCTIONS = {"bradley_terry_loss": bradley_terry_loss, "pool_last_token": pool_last_token}


def train_reward_model(
    model,
    data,
    settings: RewardSettings,
    *,
    tokenizer,
    eval_data=None,
    functions: Mapping[str, Callable] | None = None,
    callbacks: Sequence[Callable] = (),
    out_dir: str | Path | None = None,
    resume: bool = True,
) -> Run:
    """Train a reward model so that chosen responses score higher than rejected ones.

        loss = -log sigmoid(r(prompt, chosen) - r(prompt, rejected) - margin), mean over the step

    model, tokenizer: from `helpers.models.load_reward_model`.
    data, eval_data: a data set or a list of dicts with the texts `prompt`, `chosen`, `rejected`,
        and perhaps a number `margin`. Pairs with an empty prompt or response, or too long for the
        window, are left out, counted in the summary and named in a warning.
    functions: your own in place of the reference: bradley_terry_loss, pool_last_token.
    callbacks, out_dir, resume, interrupts: as in `train_sft`.

    Metrics of a step beside the loss: accuracy (share of pairs with chosen above rejected; a tie
    counts as wrong), margin (mean difference), reward_mean and reward_std over all responses;
    with eval_data the same with eval_ before the name.

    Example:
        >>> model, tokenizer = load_reward_model("workbook/assets/base", lora=LoraSettings())
        >>> run = train_reward_model(model, pairs, RewardSettings(lr=1e-3), tokenizer=tokenizer)
        >>> run.metrics[-1]["accuracy"]
        0.91
    """
    chosen = checked_functions(functions or {}, FUNCTIONS)
    max_length = settings.max_length or window_of(model)
    method = RewardModelling(data, tokenizer, settings, chosen, max_length)
    held_out = None
    if eval_data is not None:
        held_out = RewardModelling(eval_data, tokenizer, settings, chosen, max_length)
    identity = identity_of(
        "reward", settings, method.digest, chosen, model=model, tokenizer=tokenizer
    )
    folder = RunFolder(out_dir, identity=identity, tokenizer=tokenizer, resume=resume)
    return run_training(
        model, method, settings, held_out=held_out, folder=folder, callbacks=callbacks
    )


class _Pair(NamedTuple):
    """Prompt, chosen and rejected response in one row of token ids, (S,)."""

    input_ids: list[int]
    layout: SharedLayout

    @classmethod
    def of(cls, prompt: str, chosen: str, rejected: str, tokenizer) -> "_Pair":
        start = len(encode_prompt(prompt, tokenizer))
        first, second = (encode(prompt, text, tokenizer) for text in (chosen, rejected))
        layout = SharedLayout.of(start, len(first), len(second))
        return cls([*first, *second[start:]], layout)

    @property
    def longest(self) -> int:
        return max(self.layout.positions) + 1


def _margin(value, row: int) -> float:
    """Raises ValueError for a margin that is no finite number."""
    try:
        margin = 0.0 if value is None else float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise ValueError(
            f"Row {row} of the data: margin must be a finite number, but it is {value!r}."
        )
    return margin


class RewardModelling(Method):
    """What a reward model adds to the loop: both responses of a pair in one pass."""

    name, unit = "reward", "pairs"

    def __init__(self, data, tokenizer, settings: RewardSettings, functions, max_length: int):
        self.pad = tokenizer.pad_token_id
        self.loss_function = functions["bradley_terry_loss"]
        self.pool = functions["pool_last_token"]
        self.center_coefficient = settings.center_coefficient
        data = rows_of(data)
        report, self.pairs, self.margins, read = DataReport(len(data)), [], [], []
        self.places = []
        for place, example in enumerate(data):
            texts = [text_of(example, name, place) for name in ("prompt", "chosen", "rejected")]
            margin = example.get("margin")
            read.append((*texts, margin))
            pair = _Pair.of(*texts, tokenizer)
            if not (texts[1].strip() and texts[2].strip()):
                report.leave_out("empty response", place)
            elif not encode_prompt(texts[0], tokenizer):
                report.leave_out(EMPTY_PROMPT, place)
            elif pair.longest > max_length:
                report.leave_out(f"longer than {max_length} tokens", place)
            else:
                self.pairs.append(pair)
                self.places.append(place)
                self.margins.append(_margin(margin, place))
        self.report = report.finish(len(self.pairs))
        self.digest = data_digest(read)
        self.lengths = [len(pair.input_ids) for pair in self.pairs]

    def batch(self, rows: Sequence[int]) -> Batch:
        """One row a pair, its prompt once; and where the tokens of 2N plain sequences stand.

        Returns input_ids, position_ids (N, S), may_look (N, 1, S, S); places, attention_mask
        (2N, T): the chosen responses in the first half of the rows, the rejected in the second.
        """
        pairs = [self.pairs[row] for row in rows]
        layouts = [pair.layout for pair in pairs]
        places = plain_places(layouts)
        return {
            **shared_columns([pair.input_ids for pair in pairs], layouts, self.pad),
            "places": padded(places, value=0),
            "attention_mask": padded([[True] * len(row) for row in places], value=False),
            "margin": torch.tensor([self.margins[row] for row in rows]),
        }

    def weight(self, batch: Batch) -> int:
        return len(batch["margin"])

    def loss(self, model, batch: Batch, normalizer: float):
        joined = model(batch["input_ids"], batch["may_look"], batch["position_ids"])  # (N, S)
        token_rewards = joined.repeat(2, 1).gather(1, batch["places"])  # (2N, T)
        rewards = self.pool(token_rewards, batch["attention_mask"])
        chosen, rejected = rewards.chunk(2)
        losses = self.loss_function(chosen, rejected, **self._options(batch))
        if losses.shape != chosen.shape:
            raise ValueError(
                f"bradley_terry_loss must return one loss a pair, {tuple(chosen.shape)}, but "
                f"returned {tuple(losses.shape)}."
            )
        difference, rewards = (chosen - rejected).detach(), rewards.detach().cpu().double()
        return losses.sum() / normalizer, {
            "pairs": len(chosen),
            "correct": (difference > 0).sum(),
            "margin": difference.sum(),
            "reward": rewards.sum(),
            "squared": rewards.square().sum(),
        }

    def _options(self, batch: Batch) -> dict:
        """Only what is used: a function of your own may do without margin and centring."""
        options = {"margin": batch["margin"]} if any(self.margins) else {}
        if self.center_coefficient:
            options["center_coefficient"] = self.center_coefficient
        return options

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        pairs = sums["pairs"]
        mean = sums["reward"] / (2 * pairs)
        variance = sums["squared"] / (2 * pairs) - mean**2
        return {
            "accuracy": sums["correct"] / pairs,
            "margin": sums["margin"] / pairs,
            "reward_mean": mean,
            "reward_std": max(0.0, variance) ** 0.5,
        }
