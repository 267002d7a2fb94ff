"""KTO: single responses that are good or bad, and a reference point from mismatched ones."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from accelerate.utils import gather_object

from helpers.logprobs import response_log_probs
from helpers.tokens import encode_prompt
from helpers.training.batches import micro_batches
from helpers.training.cached_reference import (
    ReferenceMethod,
    check_shape,
    half_precision,
    response_row,
    rows_hash,
)
from helpers.training.loop import EVALUATION_ROWS
from helpers.training.method import (
    EMPTY_PROMPT,
    Batch,
    DataReport,
    data_digest,
    rows_of,
    text_of,
)
from helpers.training.settings import PreferenceSettings
from helpers.training.sft import padded_rows

MOST_SHIFTS = 100  # rotations that are tried; data with fewer neighbours of one prompt needs few


class KTO(ReferenceMethod):
    """What KTO adds to the loop: labelled responses, and a reference point of the whole step.

    Each prompt also stands beside the response of another one, by one rotation of the whole data;
    the policy reads these pairs before each step, without gradient.
    """

    name, unit, names = "kto", "examples", ("matched", "mismatched")

    def __init__(
        self, data, tokenizer, settings: PreferenceSettings, functions, max_length: int, _: str
    ):
        self.settings, self.functions = settings, functions
        self.pad = tokenizer.pad_token_id
        if self.pad is None:
            self.pad = tokenizer.eos_token_id
        self.reference, self.rows, self.places, labels, texts, used = {}, [], [], [], [], []
        examples = list(labelled(rows_of(data)))
        report = DataReport(len(examples))
        for place, prompt, completion, label in examples:
            texts.append((prompt, completion, label))
            if not completion.strip():
                report.leave_out("empty response", place)
                continue
            if not encode_prompt(prompt, tokenizer):
                report.leave_out(EMPTY_PROMPT, place)
                continue
            row = response_row(functions, prompt, completion, tokenizer, settings)
            if len(row.labels) >= max_length:
                report.leave_out(f"longer than {max_length} tokens", place)
                continue
            self.rows.append(row)
            self.places.append(place)
            labels.append(label)
            used.append((prompt, completion))
        self.report = report.finish(len(self.rows))
        self.digest = data_digest(texts)
        self.labels = torch.tensor(labels)
        self.mismatched = [
            response_row(functions, prompt, other, tokenizer, settings, max_length)
            for (prompt, _), (_, other) in zip(used, rotated(used), strict=True)
        ]
        self.rows_hash = rows_hash([*self.rows, *self.mismatched], functions)
        self.lengths = [len(row.labels) for row in self.rows]

    def batch(self, rows: Sequence[int]) -> Batch:
        """<name>_input_ids, <name>_labels, <name>_response_mask (N, T) of both names; row,
        is_desirable, ref_matched, ref_mismatched (N,)."""
        sides = {"matched": self.rows, "mismatched": self.mismatched}
        tensors = {
            f"{name}_{column}": tensor
            for name, side in sides.items()
            for column, tensor in padded_rows([side[row] for row in rows], self.pad).items()
        }
        here = {"row": torch.tensor(list(rows)), "is_desirable": self.labels[list(rows)]}
        return {**tensors, **here, **self.reference_of(rows)}

    def logps(self, model, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: self._sums(model, batch, name) for name in self.names}

    def prepare(self, model, pieces: Sequence[Sequence[int]]) -> list[Batch]:
        """The micro-batches, each with the reference point of the step over all processes."""
        batches = [self.batch(piece) for piece in pieces]
        point = self._reference_point(model, batches)
        return [{**batch, "reference_point": point} for batch in batches]

    def before_evaluation(self, model) -> None:
        """The reference point of all held-out examples."""
        pieces = micro_batches(range(len(self.rows)), self.lengths, size=EVALUATION_ROWS)
        self.held_out_point = self._reference_point(model, map(self.batch, pieces))

    @torch.no_grad()
    def _reference_point(self, model, batches: Iterable[Batch]) -> torch.Tensor:
        plain = getattr(model, "module", model)  # no gradient, so no need of the other processes
        device, found = next(plain.parameters()).device, []
        for batch in batches:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with half_precision(self.settings, device):
                policy = self._sums(plain, batch, "mismatched")
            columns = (batch["row"], policy, batch["ref_mismatched"])
            found += zip(*(column.tolist() for column in columns), strict=True)
        # By row: a process without examples of its own repeats one of another's.
        by_row = {row: values for row, *values in gather_object(found)}
        policy, ref = torch.tensor([by_row[row] for row in sorted(by_row)]).unbind(1)
        return self.functions["kto_reference_point"](policy, ref)

    def weight(self, batch: Batch) -> int:
        return len(batch["row"])

    def loss(self, model, batch: Batch, normalizer: float):
        point = batch["reference_point"] if "reference_point" in batch else self.held_out_point
        policy, ref = self._sums(model, batch, "matched"), batch["ref_matched"]
        good = batch["is_desirable"]
        losses, _ = self.functions["kto_loss"](policy, ref, good, point, **self._options())
        check_shape("kto_loss", losses, policy.shape)
        rewards = self.functions["implicit_rewards"](policy, ref, self.beta).detach()
        return losses.sum() / normalizer, {
            "examples": len(losses),
            "chosen": good.sum(),
            "reference_point": point * len(losses),
            "chosen_reward": rewards[good].sum(),
            "rejected_reward": rewards[~good].sum(),
            "chosen_logps": policy.detach()[good].sum(),
            "rejected_logps": policy.detach()[~good].sum(),
        }

    @property
    def beta(self) -> float:
        return self.settings.beta or 0.1

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float | None]:
        """Means over the good (chosen) and the bad responses; None where a step has none."""
        counts = {"chosen": sums["chosen"], "rejected": sums["examples"] - sums["chosen"]}
        means = {
            f"{side}_{name}": sums[f"{side}_{name}"] / count if count else None
            for name in ("reward", "logps")
            for side, count in counts.items()
        }
        margin = None
        if all(counts.values()):
            margin = means["chosen_reward"] - means["rejected_reward"]
        point = sums["reference_point"] / sums["examples"]
        return {"margin": margin, **means, "reference_point": point}

    def _sums(self, model, batch: Batch, name: str) -> torch.Tensor:
        columns = ("input_ids", "labels", "response_mask")
        tensors = {column: batch[f"{name}_{column}"] for column in columns}
        log_probs = response_log_probs(model, **tensors)["log_probs"]
        sums = self.functions["sequence_log_probs"](log_probs, tensors["response_mask"])
        check_shape("sequence_log_probs", sums, (len(log_probs),))
        return sums

    def _options(self) -> dict[str, float]:
        """Only what is used: a function of your own may do without weights."""
        weights = {name: getattr(self.settings, name) for name in WEIGHTS}
        return {"beta": self.beta, **{name: w for name, w in weights.items() if w != 1}}


WEIGHTS = ("desirable_weight", "undesirable_weight")


def labelled(data) -> Iterator[tuple[int, str, str, bool]]:
    """(row of the data, prompt, completion, label); a pair gives a good and a bad one."""
    for place, example in enumerate(data):
        prompt = text_of(example, "prompt", place)
        if "chosen" in example or "rejected" in example:
            yield place, prompt, text_of(example, "chosen", place), True
            yield place, prompt, text_of(example, "rejected", place), False
            continue
        completion = text_of(example, "completion", place)
        label = example.get("label")
        if not isinstance(label, bool):
            raise ValueError(
                f"Row {place} of the data: label must be true or false, but it is {label!r}."
            )
        yield place, prompt, completion, label


def rotated(examples: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The examples moved on by so many places that hardly a prompt meets itself.

    Raises ValueError where there is one prompt only.
    """
    prompts = [prompt for prompt, _ in examples]
    if len(set(prompts)) == 1:
        raise ValueError("KTO's reference point needs at least two prompts, but the data has one.")
    equal = {}
    for shift in range(1, min(len(prompts), MOST_SHIFTS + 1)):
        moved = prompts[shift:] + prompts[:shift]
        equal[shift] = sum(map(str.__eq__, prompts, moved))
        if not equal[shift]:
            break
    best = min(equal, key=equal.get)
    if equal[best]:
        warnings.warn(
            f"KTO's reference point takes {equal[best]} of {len(prompts)} responses beside their "
            "own prompt: too many examples share one. Shuffled data does better.",
            stacklevel=4,
        )
    return [*examples[best:], *examples[:best]]
