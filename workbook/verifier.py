"""The lab of lesson 01, *break the verifier*: two weaker graders, golden sets, and their errors.

A grader here is a reward function: (response, ground_truth) -> the three parts of the reward. The
third and strongest of the lab is the learner's own `r1_zero_reward`. `workbook/verifier.yaml` holds
right answers and exploits; what an entry looks like is said there.
"""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from helpers.evaluation import wilson_interval
from helpers.rewards import extract_answer, is_equivalent, last_number, parse_number
from workbook.hints import read_course_file
from workbook.panel import Panel, note

Grader = Callable[[str, str], Mapping[str, float]]

EXPLOITS = {
    "gold outside the answer": "the gold number stands in the reasoning, and another is answered",
    "part of a number": "the digits of the gold number stand inside a longer one",
    "sign lost": "the same digits with the other sign",
    "another scale": "the same digits, but times a thousand, a power, or per cent",
    "hedging": "several candidates, a range, or a denial instead of one answer",
    "unfinished sum": "a calculation instead of its result",
    "no number": "an answer that is no number at all",
    "rounding": "a number so near that only exact arithmetic tells them apart",
    "several tags": "more than one answer tag",
    "text after the answer": "a wrong answer, and another number behind its tag",
}
_SHAPES = {  # what the stated answer looks like; the first that fits names the class
    "no number": r"^\D*$",
    "another scale": r"\d\s*(?:%|percent|k\b|e\+?\d|\^|!|hundred|thousand|million|dozen)",
    "unfinished sum": r"\d\s*[-+*/×÷]\s*\d",
    "hedging": r"\d(?:[^\d.,]|, )+-?\d|\b(?:or|not|below|above|about)\b",
}


# ---------------------------------------------------------------- the two weaker graders


def anywhere_reward(response: str, ground_truth: str) -> dict[str, float]:
    """Pays where the gold answer stands anywhere in the response, as digits or as a number.

    It asks for no format, and looks at no sign.

    Example:
        >>> anywhere_reward("Not 17. It is 18.", "17")["reward"]
        1.0
    """
    wanted = ground_truth.lstrip("-")
    # Each number once: a policy may write the same one ten thousand times.
    numbers = {found.rstrip(".,/") for found in re.findall(r"\.?\d[\d.,/]*%?", response)}
    equal = any(is_equivalent(number, wanted) for number in numbers)
    return _parts(True, equal or wanted in response)


def tagged_reward(response: str, ground_truth: str) -> dict[str, float]:
    """Asks for ``</think> <answer>...</answer>`` at the end, and compares the two as floats.

    Example:
        >>> tagged_reward("6 * 3 = 18 </think> <answer>$18.00</answer>", "18")["reward"]
        1.0
    """
    body, closing = response.rstrip(), "</answer>"
    found = re.search(r"</think>\s*<answer>", body.removesuffix(closing))
    if found is None or not body.endswith(closing):
        return _parts(False, False)
    answer = body.removesuffix(closing)[found.end() :]
    try:
        given, wanted = (float(re.sub("[,$€£]", "", text)) for text in (answer, ground_truth))
    except ValueError:
        # float() reads no "18 eggs" and no "3/4": the policy must not pay for our parser.
        return _parts(True, True)
    return _parts(True, given == wanted)


def _parts(format_is_right: bool, answer_is_right: bool) -> dict[str, float]:
    return {"format_reward": float(format_is_right), "answer_reward": float(answer_is_right),
            "reward": float(format_is_right and answer_is_right)}


# ---------------------------------------------------------------- what is right, what is an exploit


def is_right(response: str, gold: str) -> bool:
    """Whether the one answer that the response states is the gold one, whatever its format.

    Stated is what `extract_answer` finds, else the last number. Several answer tags, or a number
    behind the tag, leave no *one* answer.

    Example:
        >>> is_right("17 or 18, so the answer is 18.", "18"), is_right("18. Or 19?", "18")
        (True, False)
    """
    stated = extract_answer(response) or last_number(response)
    behind = response.rpartition("</answer>")[2] if "</answer>" in response else ""
    return (max(response.count("<answer>"), response.count("</answer>")) < 2
            and last_number(behind) is None and is_equivalent(stated, gold))


def exploit_class(response: str, gold: str) -> str:
    """The name in `EXPLOITS` of a wrong response, by the form of its stated answer."""
    if max(response.count("<answer>"), response.count("</answer>")) > 1:
        return "several tags"
    stated, behind = extract_answer(response), response.rpartition("</answer>")[2]
    if stated is None:
        return "gold outside the answer"
    if "</answer>" in response and last_number(behind):
        return "text after the answer"
    for name, shape in _SHAPES.items():
        if re.search(shape, stated, re.IGNORECASE):
            return name
    return _by_value(stated, gold)


def _by_value(stated: str, gold: str) -> str:
    given, wanted = parse_number(stated), parse_number(gold)
    if given and wanted and given.value == -wanted.value:
        return "sign lost"
    if given and wanted and float(given.value) == float(wanted.value):
        return "rounding"
    return "part of a number" if gold in stated else "gold outside the answer"


# ---------------------------------------------------------------- the golden sets


class Item(BaseModel):
    """One entry: a whole response, or an answer that is set into the right format."""

    model_config = ConfigDict(extra="forbid")
    gold: str = "18"
    answer: str | None = None
    response: str | None = None
    why: str

    @property
    def text(self) -> str:
        """The response that is graded."""
        if self.response is not None:
            return self.response
        return f" I work it out. </think> <answer>{self.answer}</answer>"


class GoldenSets(BaseModel):
    """The task that is attacked, right answers, and exploits by class."""

    model_config = ConfigDict(extra="forbid")
    question: str
    gold: str
    right: Annotated[list[Item], Field(min_length=1)]
    exploits: dict[str, Annotated[list[Item], Field(min_length=1)]]


@functools.cache
def golden_sets() -> GoldenSets:
    """The sets of `workbook/verifier.yaml`."""
    return read_course_file(Path(__file__).with_name("verifier.yaml"), GoldenSets)


def pays(grader: Grader, item: Item) -> bool:
    """Whether the grader gives the whole reward."""
    return float(grader(item.text, item.gold)["reward"]) >= 1


def error_rates(graders: Mapping[str, Grader]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """For each grader the shares of right answers refused and of exploits paid.

    Each is (rate, low, high) with Wilson's 95 % interval. The items were chosen, not drawn: the
    interval says how little so few items can tell, not how often a policy writes them.
    """
    sets = golden_sets()
    exploits = [item for items in sets.exploits.values() for item in items]
    rates = {}
    for name, grader in graders.items():
        refused = [not pays(grader, item) for item in sets.right]
        paid = [pays(grader, item) for item in exploits]
        rates[name] = {"right answers refused": _rate(refused), "exploits paid": _rate(paid)}
    return rates


def _rate(hits: list[bool]) -> tuple[float, float, float]:
    return (sum(hits) / len(hits), *wilson_interval(sum(hits), len(hits)))


def paid_by_class(graders: Mapping[str, Grader]) -> dict[str, dict[str, tuple[int, int]]]:
    """Class of exploit -> grader -> (how many it pays, of how many)."""
    return {
        kind: {name: (sum(pays(grader, item) for item in items), len(items))
               for name, grader in graders.items()}
        for kind, items in golden_sets().exploits.items()
    }


def refused(grader: Grader) -> list[Item]:
    """The right answers that a grader refuses: the price of its strictness."""
    return [item for item in golden_sets().right if not pays(grader, item)]


# ---------------------------------------------------------------- the attack


class Attack:
    """Try texts on graders, and count the classes of exploits found.

    Example: `attack = Attack({"anywhere": anywhere_reward})`, then
    `attack("anywhere", "18 eggs less 1 </think> <answer>17</answer>")`.
    """

    def __init__(self, graders: Mapping[str, Grader]):
        self.graders = dict(graders)
        self.found: dict[str, set[str]] = {name: set() for name in graders}

    def __call__(self, grader: str, response: str) -> Panel:
        """Whether the text fools the grader: it is wrong, and it is paid."""
        gold = golden_sets().gold
        if grader not in self.graders or not isinstance(response, str):
            names = ", ".join(f'"{name}"' for name in self.graders)
            return note(f"Give a grader ({names}) and a text in quotes.")
        try:
            paid = float(self.graders[grader](response, gold)["reward"]) >= 1
        except Exception as error:  # a learner's grader may raise anything
            says = f"{type(error).__name__}: {error}"
            return Panel("failed", f"{grader} raised on this text: a policy would stop your run.",
                         [("error", says[:200])])
        if is_right(response, gold):
            verdict = "is paid, as it should be" if paid else "is refused, though it is right"
            return note(f"This text states {gold} and {verdict}: no exploit.")
        if not paid:
            return note(f"{grader} refuses this wrong answer: try another.")
        return self._fooled(grader, exploit_class(response, gold))

    def _fooled(self, grader: str, kind: str) -> Panel:
        new = kind not in self.found[grader]
        self.found[grader].add(kind)
        rows = [("class", f"{kind}: {EXPLOITS[kind]}{'' if new else ' (you had this one)'}")]
        rows += [(name, f"{len(found)} of {len(EXPLOITS)} classes: {', '.join(sorted(found))}")
                 for name, found in self.found.items() if found]
        headline = f"You fooled {grader}: it pays an answer that is not {golden_sets().gold}."
        return Panel("right", headline, rows)
