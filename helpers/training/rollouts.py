"""The responses of one step: sampled, graded, and known to every process."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch

from helpers.evaluation import read_jsonl
from helpers.reward_functions import REWARD_PARTS, grade_all
from helpers.rollout import Completion, SamplingSettings
from helpers.tokens import encode_prompt, response_decoder
from helpers.training.method import EMPTY_PROMPT, DataReport, data_digest, rows_of, text_of
from helpers.training.run import ROLLOUTS

Sample = dict[str, Any]


class Tasks:
    """The prompts, tokenised once, with the gold answers that the reward function is given.

    data: rows with the text `prompt`, and with `answers` or `gold_answer` where there is a gold.
    A prompt that leaves no room for max_new_tokens in the window is left out, counted and named;
    places: the rows of the data that the others were.
    """

    def __init__(self, data, tokenizer, max_new_tokens: int, window: int):
        data = rows_of(data)
        report, self.decode = DataReport(len(data)), response_decoder(tokenizer)
        self.places, self.prompts, self.token_ids, self.golds, read = [], [], [], [], []
        for place, example in enumerate(data):
            prompt, gold = text_of(example, "prompt", place), gold_of(example)
            read.append((prompt, gold))
            ids = encode_prompt(prompt, tokenizer)
            if not ids:
                report.leave_out(EMPTY_PROMPT, place)
            elif len(ids) + max_new_tokens > window:
                report.leave_out(
                    f"prompt and {max_new_tokens} new tokens are over {window} tokens", place
                )
            else:
                self.places.append(place)
                self.prompts.append(prompt)
                self.token_ids.append(ids)
                self.golds.append(gold)
        self.report = report.finish(len(self.prompts))
        self.digest = data_digest(read)

    def __len__(self) -> int:
        return len(self.prompts)

    def text_of(self, completion: Completion) -> str:
        """What the completion adds to its prompt's text. It was sampled behind ids, so where the
        tokenizer takes a leading space off (Llama's), the space is put back."""
        text = completion.text
        is_lost = text[:1] not in ("", " ") and self.decode(completion.token_ids).startswith(" ")
        return f" {text}" if is_lost else text


def gold_of(example) -> Any:
    """The gold answer of a row, or None: a reward model needs none."""
    return next((example[name] for name in ("answers", "gold_answer") if name in example), None)


@dataclass
class Rollouts:
    """One step's responses, B = P * G of them, prompt by prompt.

    completions: those of this process; first: the place of its first one among all.
    samples: one dict a response, of all processes: row (of the data), prompt, gold, text, parts
        (of the reward), tokens, finish_reason, log_prob (mean of its tokens).
    rewards, advantages: (B,). A group with a reward that is no finite number is left out of the
        step, of its loss and of its statistics: is_left_out (B,) is True, rewards are 0 here.
    old, reference, weights: of this process's completions, a tensor (tokens,) each:
        log-probabilities of the policy that sampled, those of the reference, importance weights.
    """

    completions: list[Completion]
    first: int
    samples: list[Sample]
    group_size: int
    generated_tokens: int
    rewards: torch.Tensor = field(init=False)
    advantages: torch.Tensor = field(init=False)
    bad_rewards: int = field(init=False)
    is_left_out: torch.Tensor = field(init=False)
    old: list[torch.Tensor] = field(init=False)
    reference: list[torch.Tensor] | None = None
    weights: list[torch.Tensor] | None = None

    def __post_init__(self):
        raw = torch.tensor([sample["parts"]["reward"] for sample in self.samples])
        groups = raw.view(-1, self.group_size)
        is_bad = ~groups.isfinite().all(dim=1, keepdim=True)
        self.bad_rewards = int((~raw.isfinite()).sum())
        self.is_left_out = is_bad.expand_as(groups).flatten()
        self.rewards = groups.masked_fill(is_bad, 0.0).flatten()
        self.old = [torch.tensor(completion.log_probs) for completion in self.completions]

    @property
    def own(self) -> range:
        """The places of this process's responses."""
        return range(self.first, self.first + len(self.completions))

    @property
    def kept(self) -> list[int]:
        """The places of the responses, of all processes, whose group is not left out."""
        return (~self.is_left_out).nonzero().flatten().tolist()

    @property
    def truncated(self) -> list[bool]:
        return [sample["finish_reason"] == "length" for sample in self.samples]


def sampling_of(settings, step: int, attempt: int = 0) -> SamplingSettings:
    """How a step samples: all of it follows from the settings and the step, so no random state has
    to be kept for a run that goes on."""
    digest = blake2b(f"{settings.seed}/{step}/{attempt}".encode(), digest_size=4).digest()
    return SamplingSettings(
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        stop_strings=() if settings.stop is None else (settings.stop,),
        seed=int.from_bytes(digest, "big"),
    )


def grade(
    tasks: Tasks,
    rows: Sequence[int],
    completions: Sequence[Completion],
    reward_fn: Callable,
    *,
    left_out: str = "its group is left out of the step",
) -> list[Sample]:
    """One dict a response; `rows` are the tasks, with len(completions) / len(rows) responses each.

    Warns of rewards that are no finite numbers; left_out: what becomes of them.
    """
    size = len(completions) // len(rows) if rows else 0
    each = [row for row in rows for _ in range(size)]
    prompts, golds = ([column[row] for row in each] for column in (tasks.prompts, tasks.golds))
    texts = [tasks.text_of(completion) for completion in completions]
    graded = grade_all(reward_fn, prompts, texts, golds)
    for row, parts in zip(each, graded, strict=True):
        if not math.isfinite(parts["reward"]):
            warnings.warn(
                f"A response to row {tasks.places[row]} of the data has the reward "
                f"{parts['reward']}: {left_out}.",
                stacklevel=5,
            )
            break
    return [
        {
            "row": tasks.places[row],
            "prompt": tasks.prompts[row],
            "gold": tasks.golds[row],
            "text": text,
            "parts": parts,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "log_prob": fmean(completion.log_probs) if completion.log_probs else 0.0,
        }
        for row, completion, text, parts in zip(each, completions, texts, graded, strict=True)
    ]


def has_signal(samples: Sequence[Sample]) -> bool:
    """Whether a group has two different rewards, all of them finite numbers."""
    rewards = [sample["parts"]["reward"] for sample in samples]
    return all(map(math.isfinite, rewards)) and len(set(rewards)) > 1


def sample_metrics(rollouts: Rollouts) -> dict[str, float | None]:
    """What is logged of a step's responses, but for those of groups that are left out.

    A mean over nothing is None: it is no number, and 0 would be a wrong one.
    """
    size = rollouts.group_size
    samples = [rollouts.samples[place] for place in rollouts.kept]
    groups = [samples[place : place + size] for place in range(0, len(samples), size)]
    parts = [sample["parts"] for sample in samples]
    rewards = [part["reward"] for part in parts]
    more = dict.fromkeys(name for s in rollouts.samples for name in s["parts"])
    tokens = sum(sample["tokens"] for sample in samples)
    surprise = -sum(s["log_prob"] * s["tokens"] for s in samples)
    return {
        "reward_mean": _mean(rewards),
        "reward_std": pstdev(rewards) if rewards else None,
        "format_rate": _mean_part(parts, "format_reward"),
        "accuracy": _mean_part(parts, "answer_reward"),
        **{name: _mean_part(parts, name) for name in more if name not in REWARD_PARTS},
        "length": tokens / len(samples) if samples else None,
        "truncated": _mean([sample["finish_reason"] == "length" for sample in samples]),
        "entropy": surprise / max(1, tokens) if samples else None,
        "groups_with_signal": _mean([has_signal(group) for group in groups]),
        "bad_rewards": rollouts.bad_rewards,
        "generated_tokens": rollouts.generated_tokens,
    }


def _mean_part(parts: Sequence[dict[str, float]], name: str) -> float | None:
    """Over the responses that have this part, as a finite number."""
    return _mean([part[name] for part in parts if math.isfinite(part.get(name, math.nan))])


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def groups_of(rollouts: Rollouts, step: int) -> list[dict[str, Any]]:
    """The lines of rollouts.jsonl: one dict a prompt, with lists of its G responses."""
    size, lines = rollouts.group_size, []
    advantages = rollouts.advantages.tolist()
    for start in range(0, len(rollouts.samples), size):
        group = rollouts.samples[start : start + size]
        lines.append(
            {
                "step": step,
                **{name: group[0][name] for name in ("row", "prompt", "gold")},
                "completions": [sample["text"] for sample in group],
                "rewards": [_finite(sample["parts"]["reward"]) for sample in group],
                "parts": [{k: _finite(v) for k, v in s["parts"].items()} for s in group],
                "advantages": [_finite(value) for value in advantages[start : start + size]],
                "finish_reasons": [sample["finish_reason"] for sample in group],
                "tokens": [sample["tokens"] for sample in group],
            }
        )
    return lines


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_rollouts(folder: str | Path) -> list[dict[str, Any]]:
    """The groups of all steps of a run, from its folder; none where it has written none yet.

    A last line that a kill left half written is left out.
    """
    return read_jsonl(Path(folder) / ROLLOUTS)
