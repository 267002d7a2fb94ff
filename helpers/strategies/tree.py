"""Tree of thought: propose steps, score them, keep the best, within a budget of tokens."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Step(NamedTuple):
    """A proposed step: its text, the tokens it took, and whether the solution ends with it."""

    text: str
    tokens: int
    final: bool


Propose = Callable[[Sequence[str]], list[list[Step]]]
Score = Callable[[Sequence[str]], list[float]]


def tree_of_thought(
    propose: Propose,
    score: Score,
    *,
    width: int = 2,
    branches: int = 3,
    depth: int = 8,
    step_tokens: int = 32,
    token_budget: int = 400,
) -> dict[str, Any]:
    """The best solution that a breadth-first search finds (Yao et al. 2023, arXiv 2305.10601).

    Each level: `branches` next steps of every open solution are proposed, the longer solutions are
    scored, and the `width` best of them and of the ended ones are kept. It stops when all that is
    kept has ended, when nothing new comes, after `depth` levels, or when the budget is spent.

    propose(texts): for each text its next steps, at most `branches` of at most `step_tokens`
        tokens. score(texts): one number a text, higher is better. Each text is the whole solution
        so far; the first is "".
    token_budget: tokens of all proposals together, never exceeded: a level opens only as many
        solutions, the best first, as it can pay for at `step_tokens` a step.
    Equal solutions are kept once, as ended if one of them is; of equal scores, what was proposed
    first is kept.

    Returns {"text": the best ended solution, or the best open one, "final": whether it has ended,
    "score", "tokens": spent, "levels", "stopped": "ended", "dead_end", "depth" or "budget"}.

    Example:
        >>> steps = {"": [Step("1", 4, False), Step("2", 4, False)], "2": [Step("!", 4, True)]}
        >>> tree_of_thought(lambda texts: [steps[t] for t in texts],
        ...                 lambda texts: [float("2" in t) for t in texts], width=1)["text"]
        '2!'
    """
    kept, tokens, level, stopped = [("", False, 0.0)], 0, 0, "depth"  # (text, final, score)
    while level < depth:
        affordable = (token_budget - tokens) // (branches * step_tokens)
        opened = [text for text, final, _ in kept if not final][: max(affordable, 0)]
        if not opened:
            stopped = "ended" if all(final for _, final, _ in kept) else "budget"
            break
        proposed = propose(opened)
        tokens += sum(step.tokens for steps in proposed for step in steps)
        longer: dict[str, bool] = {}  # equal solutions are kept once; one that has ended stays so
        for text, steps in zip(opened, proposed, strict=True):
            for step in steps:
                longer[text + step.text] = longer.get(text + step.text, False) or step.final
        ended = [thought for thought in kept if thought[1]]
        if not longer and not ended:
            stopped = "dead_end"
            break
        scores = score(list(longer)) if longer else []
        if unranked := [value for value in scores if not math.isfinite(value)]:
            raise ValueError(
                f"score gave {unranked[0]} for a solution at level {level + 1}, which has no rank: "
                "it must give finite numbers."
            )
        new = [(text, final, value)
               for (text, final), value in zip(longer.items(), scores, strict=True)]
        kept = sorted(ended + new, key=lambda thought: -thought[2])[:width]  # a stable sort
        level += 1
    text, final, value = max(kept, key=lambda thought: (thought[1], thought[2]))
    if stopped == "depth" and all(final for _, final, _ in kept):
        stopped = "ended"
    return {"text": text, "final": final, "score": value, "tokens": tokens, "levels": level,
            "stopped": stopped}
