"""Reward functions: called on many responses, checked, and summed with weights.

A reward function takes (response, gold), and also prompt=... where it has a parameter of that name,
and returns a dict with the numbers format_reward, answer_reward and reward; what else it returns
is carried along. One with a method `many(prompts, responses, golds)` is asked once for all.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, NoReturn

from helpers.identity import value_identity

REWARD_PARTS = ("format_reward", "answer_reward", "reward")


def grade_all(
    reward_fn: Callable[..., Mapping[str, float]],
    prompts: Sequence[str],
    responses: Sequence[str],
    golds: Sequence[Any],
) -> list[dict[str, float]]:
    """The parts of every response's reward.

    Raises ValueError where a reward function returns something else than its three numbers.

    Example:
        >>> grade_all(r1_zero_reward, ["1 + 1?"], ["2 </think> <answer>2</answer>"], ["2"])
        [{'format_reward': 1.0, 'answer_reward': 1.0, 'reward': 1.0}]
    """
    if hasattr(reward_fn, "many"):
        found = list(reward_fn.many(prompts, responses, golds))
    elif _wants_prompt(reward_fn):
        rows = zip(prompts, responses, golds, strict=True)
        found = [reward_fn(response, gold, prompt=prompt) for prompt, response, gold in rows]
    else:
        found = [reward_fn(text, gold) for text, gold in zip(responses, golds, strict=True)]
    if len(found) != len(responses):
        raise ValueError(
            f"The reward function {_name_of(reward_fn)} returned {len(found)} results for "
            f"{len(responses)} responses: its method many must return one dict a response."
        )
    return [_checked(parts, reward_fn) for parts in found]


def weighted_sum(*terms: tuple[float, Callable]) -> Callable[..., dict[str, float]]:
    """One reward function made of several: reward = sum of weight * reward.

    terms: (weight, reward function) each. The format and answer parts are those of the first term;
    the reward of term k, without its weight, is carried along as reward_k, counted from 1.

    Example:
        >>> both = weighted_sum((1.0, r1_zero_reward), (0.1, from_model(model, tokenizer)))
        >>> both("2 </think> <answer>2</answer>", "2", prompt="1 + 1?")["reward"]
        1.06
    """
    if not terms or not all(callable(function) for _, function in terms):
        raise ValueError("weighted_sum takes pairs (weight, reward function), at least one.")
    for weight, function in terms:
        if not isinstance(weight, Real) or not math.isfinite(weight):
            raise ValueError(
                f"The weight of {_name_of(function)} must be a finite number, but it is {weight!r}."
            )
    return _WeightedSum(terms)


class _WeightedSum:
    def __init__(self, terms: Sequence[tuple[float, Callable]]):
        self.terms = terms

    @property
    def identity(self) -> str:
        """What tells a run with these weights from one with others."""
        parts = [f"{_shown(weight)} {reward_identity(term)}" for weight, term in self.terms]
        return " + ".join(parts)

    def __call__(self, response: str, gold=None, *, prompt: str) -> dict[str, float]:
        return self.many([prompt], [response], [gold])[0]

    def many(self, prompts, responses, golds) -> list[dict[str, float]]:
        columns = [grade_all(term, prompts, responses, golds) for _, term in self.terms]
        return [self._joined(parts) for parts in zip(*columns, strict=True)]

    def _joined(self, parts: Sequence[dict[str, float]]) -> dict[str, float]:
        rewards = [part["reward"] for part in parts]
        pairs = zip(self.terms, rewards, strict=True)
        return {
            **parts[0],
            "reward": sum(weight * reward for (weight, _), reward in pairs),
            **{f"reward_{place}": reward for place, reward in enumerate(rewards, start=1)},
        }


def graders_of(reward_fn: Callable) -> list[Callable]:
    """The functions that a reward function is made of: the terms of a sum, what a partial calls."""
    if isinstance(reward_fn, _WeightedSum):
        return [grader for _, term in reward_fn.terms for grader in graders_of(term)]
    return graders_of(reward_fn.func) if isinstance(reward_fn, partial) else [reward_fn]


def reward_identity(reward_fn: Callable) -> str:
    """Names a reward function with all that it hangs on.

    Those of this package have an `identity` of their own, such as a model's weights, or are plain
    functions. Another one has its name and a hash, see `helpers.identity.value_identity`.
    """
    if type(reward_fn).__module__.startswith("helpers."):
        return str(getattr(reward_fn, "identity", None) or value_identity(reward_fn))
    of_course = str(getattr(reward_fn, "__module__", None)).startswith("helpers.")
    if of_course and not getattr(reward_fn, "__closure__", None):
        return reward_fn.__qualname__
    return f"{_name_of(reward_fn)} {value_identity(reward_fn)}"


def _name_of(reward_fn: Callable) -> str:
    """The name that messages show."""
    (first, *_) = graders_of(reward_fn)
    name = getattr(first, "__qualname__", type(first).__qualname__)
    return str(getattr(first, "identity", name))


def _shown(weight: float) -> str:
    short = f"{weight:g}"
    return short if float(short) == weight else repr(weight)


def _wants_prompt(reward_fn: Callable) -> bool:
    try:
        return "prompt" in inspect.signature(reward_fn).parameters
    except (TypeError, ValueError):  # a built-in
        return False


def _checked(parts: Any, reward_fn: Callable) -> dict[str, float]:
    try:
        values = {name: float(value) for name, value in parts.items()}
    except (AttributeError, TypeError, ValueError):
        values = {}
    if not set(REWARD_PARTS) <= values.keys():
        refuse(parts, reward_fn)
    return values


def refuse(parts: Any, reward_fn: Callable) -> NoReturn:
    """Raise the ValueError that says what a reward function must return."""
    raise ValueError(
        f"The reward function {_name_of(reward_fn)} must return a dict with the numbers "
        f"{', '.join(REWARD_PARTS)}, but it returned {str(parts)[:200]}."
    )
