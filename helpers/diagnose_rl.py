"""The silent failures of reinforcement learning, read from the metrics of its steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

Record = Mapping[str, Any]  # a metric may be missing, None or nan

SIGNAL = 0.05  # share of groups with two different rewards, below which nothing is learnt
CUT = 0.5  # share of truncated responses, above which the reward is that of stumps
COLLAPSED = 0.1  # entropy at the end over that at the start
SOLVED = 0.9  # accuracy at which a policy may well be sure of itself
FAR = 1.0  # nats per token from the start
STALE = 0.02  # |ratio - 1| before any update, in float32 arithmetic of one model
APART = 0.05  # nats between the sampler's log-probability of a token and the trainer's
GAINED = 0.1  # of the reward, between start and end
WELL_FORMED = 0.9

Named = tuple[str, str, str]  # name, evidence, advice


def rollout_symptoms(metrics: Sequence[Record], settings: Mapping) -> list[Named]:
    """(name, evidence, advice) of each failure that the metrics of `train_grpo` show.

    settings: those of the run, and dtype where it is known: the least precise of the weights.

    Example:
        >>> rollout_symptoms(run.metrics, vars(run.settings))[0][0]
        'no signal in any group'
    """
    if not metrics:
        return []
    tests: tuple[Callable[..., Named | None], ...] = (
        _no_number,
        _no_signal,
        _truncated,
        _collapsed,
        _far,
        _stale,
        _two_arithmetics,
        _format_only,
    )
    return [found for test in tests if (found := test(metrics, settings))]


def known(metrics: Sequence[Record], name: str) -> list[float]:
    """The values of a metric, of the steps that have a finite one."""
    values = (record.get(name) for record in metrics)
    return [value for value in values if value is not None and math.isfinite(value)]


def _ends(metrics: Sequence[Record], name: str) -> tuple[float, float] | None:
    """Means over the first and the last fifth of the steps that have the metric, two at least."""
    values = known(metrics, name)
    part = max(2, len(values) // 5)
    return (fmean(values[:part]), fmean(values[-part:])) if values else None


def _no_number(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    """Steps whose every group had a reward that was no number: they trained nothing."""
    bad = sum(known(metrics, "bad_rewards"))
    empty = [r for r in metrics if r.get("bad_rewards") and r.get("reward_mean") is None]
    if not bad or len(empty) < len(metrics) / 2:
        return None
    return (
        "rewards are no numbers",
        f"{bad:.0f} rewards were nan or infinite; in {len(empty)} of {len(metrics)} steps no "
        "group was left to train on.",
        "A group with such a reward is left out of its step: see what the reward function returns "
        "for the responses in rollouts.jsonl whose reward is null.",
    )


def _no_signal(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    shares, rewards = known(metrics, "groups_with_signal"), known(metrics, "reward_mean")
    if not shares or not rewards or fmean(shares) >= SIGNAL:
        return None
    return (
        "no signal in any group",
        f"in {shares.count(0)} of {len(shares)} steps every group had one reward (mean "
        f"{fmean(rewards):.3g}).",
        "Equal rewards have advantage 0. Where all fail, start from SFT, take easier prompts or "
        "more samples, and grade some responses by hand; where all succeed, take harder prompts.",
    )


def _truncated(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    ends = _ends(metrics, "truncated")
    if ends is None or ends[1] <= CUT:
        return None
    first, last = ends
    return (
        "everything truncated",
        f"{first:.0%} of the responses were cut at {settings['max_new_tokens']} tokens at the "
        f"start, {last:.0%} at the end.",
        "What is graded is a stump: raise max_new_tokens, or see that responses end (EOS ids, "
        "stop, the prompt's format).",
    )


def _collapsed(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    """All samples of a prompt are the same, and they are not right."""
    ends = [_ends(metrics, name) for name in ("entropy", "accuracy", "groups_with_signal")]
    if None in ends:
        return None
    (first, last), (_, accuracy), signal = ends
    went_out = signal[0] >= SIGNAL and signal[1] < signal[0] / 2
    if last > COLLAPSED * first or accuracy >= SOLVED or not went_out:
        return None
    return (
        "entropy collapse",
        f"entropy went from {first:.3g} to {last:.3g} nats per token, groups with a signal from "
        f"{signal[0]:.0%} to {signal[1]:.0%}, at an accuracy of {accuracy:.2g}.",
        "Equal samples teach nothing: lower lr, raise clip_high or temperature, or add beta or an "
        "entropy_bonus.",
    )


def _far(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    if len(known(metrics, "kl")) < 2 or _ends(metrics, "kl")[1] <= FAR:
        return None
    first, last = _ends(metrics, "kl")
    return (
        "KL blow-up",
        f"it went from {first:.3g} to {last:.3g} nats per token.",
        "The policy has left the texts that it started from, and a learned reward knows only "
        f"those: raise beta (now {settings['beta']:g}) or lower lr (now {settings['lr']:g}).",
    )


def _stale(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    """Before the first update of a step the policy is the one that sampled."""
    gaps = known(metrics, "ratio_gap")
    limit = 1.0 if _is_half(settings) else STALE
    if not gaps or median(gaps) <= limit or _two_arithmetics(metrics, settings):
        return None
    return (
        "stale old log-probs",
        f"before any update a token's ratio is off 1 by up to {median(gaps):.2g}.",
        "Old log-probabilities must be of the weights and the temperature that sampled: give the "
        "engine the new weights before each step, score at the sampling temperature, without "
        "dropout.",
    )


def _two_arithmetics(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    """In half precision the sampler and the trainer differ from the first step on."""
    gaps = known(metrics, "sampler_gap")
    if not gaps or settings.get("importance_cap") is not None or not _is_half(settings):
        return None
    if gaps[0] <= APART or median(gaps) <= APART:
        return None
    return (
        "sampler and trainer disagree",
        f"from the first step on, before any update, a token's log-probability is off the "
        f"sampler's by up to {median(gaps):.2g} nats.",
        "The samples are off-policy: load the model in float32 and train with precision=float32, "
        "or set importance_cap=2.0, which weighs each token by the ratio.",
    )


def _is_half(settings: Mapping) -> bool:
    """Whether the weights or the arithmetic are of less than float32."""
    return settings["precision"] != "float32" or settings.get("dtype") in ("bfloat16", "float16")


def _format_only(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    """The reward rose, and it was the form that it paid for."""
    ends = [_ends(metrics, name) for name in ("reward_mean", "format_rate", "accuracy")]
    if None in ends:
        return None
    reward, form, right = ends
    gained = reward[1] - reward[0] > GAINED and form[1] > form[0]
    if not gained or form[1] < WELL_FORMED or right[1] > min(0.5, right[0] + GAINED / 2):
        return None
    return (
        "format-only reward",
        f"the reward went from {reward[0]:.2g} to {reward[1]:.2g} and the format rate to "
        f"{form[1]:.0%}, the accuracy from {right[0]:.2g} to {right[1]:.2g}.",
        "The form is paid for, so the form is learnt: let only a right answer count, or weigh the "
        "format far below it.",
    )
