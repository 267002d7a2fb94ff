"""What a loss on pairs of responses adds to the loop: DPO and its family."""

from collections.abc import Mapping, Sequence

import torch

from helpers.logprobs import response_log_probs
from helpers.shared_rows import SharedLayout, may_look, padded, plain_places
from helpers.tokens import encode_prompt
from helpers.training.cached_reference import (
    ReferenceMethod,
    check_shape,
    response_row,
    rows_hash,
)
from helpers.training.method import (
    EMPTY_PROMPT,
    Batch,
    DataReport,
    data_digest,
    rows_of,
    text_of,
)
from helpers.training.settings import PreferenceSettings
from helpers.training.sft import Row

REFERENCE_FREE = ("simpo", "orpo")


def loss_name(method: str) -> str:
    """The name of a method's loss function in `helpers.losses`."""
    return "robust_dpo_loss" if method == "robust" else f"{method}_loss"


class Pairs(ReferenceMethod):
    """What a loss on pairs adds to the loop: both responses in one pass over one prompt."""

    unit, names = "pairs", ("chosen", "rejected")

    def __init__(
        self, data, tokenizer, settings: PreferenceSettings, functions, max_length: int, name: str
    ):
        self.name, self.settings, self.functions = name, settings, functions
        self.drops = name in REFERENCE_FREE
        self.pad = tokenizer.pad_token_id
        if self.pad is None:
            self.pad = tokenizer.eos_token_id
        self.reference, self.pairs, self.places, texts = {}, [], [], []
        data = rows_of(data)
        report = DataReport(len(data))
        for place, example in enumerate(data):
            prompt, *sides = (text_of(example, key, place) for key in ("prompt", *self.names))
            texts.append((prompt, *sides))
            if not all(side.strip() for side in sides):
                report.leave_out("empty response", place)
                continue
            if not encode_prompt(prompt, tokenizer):
                report.leave_out(EMPTY_PROMPT, place)
                continue
            rows = [response_row(functions, prompt, side, tokenizer, settings) for side in sides]
            if max(len(row.labels) for row in rows) >= max_length:
                report.leave_out(f"longer than {max_length} tokens", place)
                continue
            self.pairs.append(rows)
            self.places.append(place)
        self.report = report.finish(len(self.pairs))
        self.digest = data_digest(texts)
        self.rows_hash = rows_hash([row for pair in self.pairs for row in pair], functions)
        self.layouts = [
            SharedLayout.of(_start(rows[0]), *(len(row.labels) for row in rows))
            for rows in self.pairs
        ]
        self.lengths = [len(layout.parts) for layout in self.layouts]

    def batch(self, rows: Sequence[int]) -> Batch:
        """One row a pair, its prompt once; and where the tokens of 2N plain sequences stand.

        Returns input_ids, labels, response_mask, position_ids (N, S), attention_mask (N, 1, S, S);
        places, plain_mask (2N, T): the chosen responses in the first half of the rows, the
        rejected in the second; ref_chosen, ref_rejected (N,).
        """
        layouts, pairs = [self.layouts[row] for row in rows], [self.pairs[row] for row in rows]
        plain = [pair[side] for side in (0, 1) for pair in pairs]
        parts = padded([layout.parts for layout in layouts], value=-1)
        return {
            **{
                name: padded([_joined(pair, name) for pair in pairs], value=value)
                for name, value in (("input_ids", self.pad), ("labels", 0), ("response_mask", 0))
            },
            "position_ids": padded([layout.positions for layout in layouts], value=0),
            "attention_mask": may_look(parts),
            "places": padded(plain_places(layouts), value=0),
            "plain_mask": padded([row.response_mask for row in plain], value=False),
            **self.reference_of(rows),
        }

    def logps(self, model, batch: Batch) -> dict[str, torch.Tensor]:
        joined = response_log_probs(
            model,
            batch["input_ids"],
            batch["labels"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            response_mask=batch["response_mask"],
        )["log_probs"]  # (N, S)
        log_probs = joined.repeat(2, 1).gather(1, batch["places"])  # (2N, T)
        sums = self.functions["sequence_log_probs"](log_probs, batch["plain_mask"])
        check_shape("sequence_log_probs", sums, (len(log_probs),))
        return dict(zip(self.names, sums.chunk(2), strict=True))

    def weight(self, batch: Batch) -> int:
        return len(batch["input_ids"])

    def loss(self, model, batch: Batch, normalizer: float):
        logps = self.logps(model, batch)
        lengths = dict(zip(self.names, batch["plain_mask"].sum(-1).chunk(2), strict=True))
        losses, *rewards = self._losses(logps, lengths, batch)
        if self.settings.nll_coefficient:
            losses = losses - self.settings.nll_coefficient * logps["chosen"] / lengths["chosen"]
        if batch.keys() & {"ref_chosen"}:
            rewards = [
                self.functions["implicit_rewards"](logps[name], batch[f"ref_{name}"], self.beta)
                for name in self.names
            ]
        chosen, rejected = (reward.detach() for reward in rewards)
        return losses.sum() / normalizer, {
            "pairs": len(losses),
            "accuracy": (chosen > rejected).sum(),
            "margin": (chosen - rejected).sum(),
            "chosen_reward": chosen.sum(),
            "rejected_reward": rejected.sum(),
            **{f"{name}_logps": logps[name].detach().sum() for name in self.names},
        }

    @property
    def beta(self) -> float:
        return self.settings.beta or (2.0 if self.name == "simpo" else 0.1)

    def _losses(self, logps, lengths, batch: Batch):
        """What the method's loss function returns, checked."""
        name = loss_name(self.name)
        other = lengths if self.name in REFERENCE_FREE else {}
        inputs = [logps[side] for side in self.names]
        inputs += [other[side] if other else batch[f"ref_{side}"] for side in self.names]
        found = self.functions[name](*inputs, **self._options())
        if not isinstance(found, tuple) or len(found) != 3:
            raise ValueError(
                f"{name} must return (losses, chosen_rewards, rejected_rewards), but returned "
                f"{type(found).__name__}."
            )
        check_shape(name, found[0], inputs[0].shape)
        return found

    def _options(self) -> dict[str, float]:
        """Only what is used: a function of your own may do without label smoothing."""
        if self.name == "orpo":
            return {"lam": self.settings.lam}
        if self.name == "simpo":
            return {"beta": self.beta, "gamma": self.settings.gamma}
        is_smoothed = self.name == "robust" or self.settings.label_smoothing
        smoothing = {"label_smoothing": self.settings.label_smoothing} if is_smoothed else {}
        return {"beta": self.beta, **smoothing}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {name: value / sums["pairs"] for name, value in sums.items() if name != "pairs"}


def _start(row: Row) -> int:
    """How many tokens two responses share: the prompt without its last token, which predicts the
    first token of each and so stands in the row once for each."""
    return int(row.response_mask.long().argmax())


def _joined(pair: Sequence[Row], name: str) -> torch.Tensor:
    first, second = (getattr(row, name) for row in pair)
    return torch.cat([first, second[_start(pair[0]) :]])
