"""The silent failures of reinforcement learning, read from the metrics of its steps."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median

Record = Mapping[str, float]

SIGNAL = 0.05  # share of groups with two different rewards, below which nothing is learnt
CUT = 0.5  # share of truncated responses, above which the reward is that of stumps
COLLAPSED = 0.1  # entropy at the end over that at the start
SOLVED = 0.9  # accuracy at which a policy may well be sure of itself
FAR = 1.0  # nats per token from the start
STALE = 0.02  # |ratio - 1| before any update, in float32 arithmetic of one model
GAINED = 0.1  # of the reward, between start and end
WELL_FORMED = 0.9

Named = tuple[str, str, str]  # name, evidence, advice


def rollout_symptoms(metrics: Sequence[Record], settings: Mapping) -> list[Named]:
    """(name, evidence, advice) of each failure that the metrics of `train_grpo` show.

    Example:
        >>> rollout_symptoms(run.metrics, vars(run.settings))[0][0]
        'no signal in any group'
    """
    if not metrics:
        return []
    tests: tuple[Callable[..., Named | None], ...] = (
        _no_signal,
        _truncated,
        _collapsed,
        _far,
        _stale,
        _format_only,
    )
    return [found for test in tests if (found := test(metrics, settings))]


def _ends(metrics: Sequence[Record], name: str) -> tuple[float, float]:
    """Means over the first and the last fifth of the steps, two at least."""
    part = max(2, len(metrics) // 5)
    first, last = metrics[:part], metrics[-part:]
    return fmean(row[name] for row in first), fmean(row[name] for row in last)


def _no_signal(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    share = fmean(record["groups_with_signal"] for record in metrics)
    if share >= SIGNAL:
        return None
    silent = sum(record["groups_with_signal"] == 0 for record in metrics)
    mean = fmean(record["reward_mean"] for record in metrics)
    return (
        "no signal in any group",
        f"in {silent} of {len(metrics)} steps every group had one reward (mean {mean:.3g}).",
        "Equal rewards have advantage 0. Where all fail, start from SFT, take easier prompts or "
        "more samples, and grade some responses by hand; where all succeed, take harder prompts.",
    )


def _truncated(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    first, last = _ends(metrics, "truncated")
    if last <= CUT:
        return None
    return (
        "everything truncated",
        f"{first:.0%} of the responses were cut at {settings['max_new_tokens']} tokens at the "
        f"start, {last:.0%} at the end.",
        "What is graded is a stump: raise max_new_tokens, or see that responses end (EOS ids, "
        "stop, the prompt's format).",
    )


def _collapsed(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    """All samples of a prompt are the same, and they are not right."""
    first, last = _ends(metrics, "entropy")
    accuracy = _ends(metrics, "accuracy")[1]
    signal = _ends(metrics, "groups_with_signal")
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
    rows = [record for record in metrics if record.get("kl") is not None]
    if len(rows) < 2 or _ends(rows, "kl")[1] <= FAR:
        return None
    first, last = _ends(rows, "kl")
    return (
        "KL blow-up",
        f"it went from {first:.3g} to {last:.3g} nats per token.",
        "The policy has left the texts that it started from, and a learned reward knows only "
        f"those: raise beta (now {settings['beta']:g}) or lower lr (now {settings['lr']:g}).",
    )


def _stale(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    """Before the first update of a step the policy is the one that sampled."""
    gaps = [record["ratio_gap"] for record in metrics if record.get("ratio_gap") is not None]
    limit = STALE if settings["precision"] == "float32" else 1.0
    if not gaps or median(gaps) <= limit:
        return None
    return (
        "stale old log-probs",
        f"before any update a token's ratio is off 1 by up to {median(gaps):.2g}.",
        "Old log-probabilities must be of the weights and the temperature that sampled: give the "
        "engine the new weights before each step, score at the sampling temperature, without "
        "dropout.",
    )


def _format_only(metrics: Sequence[Record], settings: Mapping) -> Named | None:
    """The reward rose, and it was the form that it paid for."""
    reward, form, right = (
        _ends(metrics, name) for name in ("reward_mean", "format_rate", "accuracy")
    )
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
