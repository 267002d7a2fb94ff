"""Training data from a model's own graded responses: on-policy pairs, and labelled responses.

Both take the rows of `helpers.evaluation.grade_completions` (the lines of results.jsonl) with
several samples a prompt, in any order, and say how many responses and prompts were dropped, and
why.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from helpers.data.fields import has_rank

Row = Mapping[str, Any]
GOOD, BAD = 0.9, 0.0  # rewards from and up to which a response is labelled


def on_policy_pairs(rows: Iterable[Row], *, most: int = 1) -> tuple[list[dict], Counter]:
    """Pairs of better and worse responses of one policy, as iterative DPO takes them.

    The best response of a prompt meets its worst, the second best the second worst, up to `most`
    pairs, each response once. (Pang et al. 2024, section 2.) Where a prompt's responses are all as
    good as one another they teach nothing.

    Returns ({"prompt", "chosen", "rejected", "chosen_reward", "rejected_reward"} ..., dropped).

    Example:
        >>> row = {"id": 0, "prompt": "2+2=", "finish_reason": "eos"}
        >>> rows = [row | {"generation": text, "metrics": {"reward": reward}}
        ...         for text, reward in ((" 4", 1.0), (" 5", 0.0), (" 5", 0.0))]
        >>> pairs, dropped = on_policy_pairs(rows)
        >>> pairs[0]["chosen"], pairs[0]["rejected"], dropped
        (' 4', ' 5', Counter({'repeated': 1}))
    """
    pairs, dropped = [], Counter()
    for group in _cleaned(rows, dropped):
        ranked = sorted(group, key=_reward, reverse=True)
        count = 0
        for better, worse in zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False):
            if count == most or _reward(better) <= _reward(worse):
                break
            pairs.append(_pair(better, worse))
            count += 1
        dropped["not needed"] += len(group) - 2 * count if count else 0
        dropped["all alike"] += len(group) if group and not count else 0
    return pairs, +dropped


def labelled_responses(rows: Iterable[Row], *, most: int = 1) -> tuple[list[dict], Counter]:
    """Good and bad responses of one policy, as KTO takes them.

    Good is a reward of 0.9 or more, bad is 0; what lies between is dropped. Of each prompt at most
    `most` good and `most` bad ones are kept.

    Returns ({"prompt", "completion", "label", "reward"} ..., dropped).
    """
    records, dropped = [], Counter()
    for group in _cleaned(rows, dropped):
        for label, chosen in (
            (True, [row for row in group if _reward(row) >= GOOD]),
            (False, [row for row in group if _reward(row) <= BAD]),
        ):
            records += [_labelled(row, label) for row in chosen[:most]]
            dropped["not needed"] += max(0, len(chosen) - most)
        dropped["partly right"] += sum(BAD < _reward(row) < GOOD for row in group)
    return records, +dropped


def _cleaned(rows: Iterable[Row], dropped: Counter) -> Iterable[list[Row]]:
    """The responses of each prompt that can be learnt from; the others are counted.

    The rows of a prompt need not stand together: files of results may be joined end to end.
    """
    groups: dict[Any, dict[str, Row]] = {}
    for row in rows:
        kept, text = groups.setdefault(row["id"], {}), row["generation"]
        if row["finish_reason"] not in ("eos", "stop_string"):
            dropped["cut off"] += 1  # its end was never chosen by the policy
        elif not text.strip():
            dropped["empty"] += 1
        elif not has_rank(_reward(row)):
            dropped["no reward"] += 1  # NaN has no rank: sorted() would leave it anywhere
        elif text in kept:
            dropped["repeated"] += 1
        else:
            kept[text] = row
    return [list(kept.values()) for kept in groups.values()]


def _reward(row: Row) -> float:
    return row["metrics"]["reward"]


def _pair(better: Row, worse: Row) -> dict[str, Any]:
    return {
        "prompt": better["prompt"],
        "chosen": better["generation"],
        "rejected": worse["generation"],
        "chosen_reward": _reward(better),
        "rejected_reward": _reward(worse),
    }


def _labelled(row: Row, label: bool) -> dict[str, Any]:
    return {
        "prompt": row["prompt"],
        "completion": row["generation"],
        "label": label,
        "reward": _reward(row),
    }
