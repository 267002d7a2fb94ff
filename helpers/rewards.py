r"""Grade a response: find its answer, compare it with the gold answer, give a reward.

Three layers, each usable alone:

* finding: `extract_answer` (the answer as it was stated) and `last_number` (the lenient metric);
* comparing: `is_equivalent` for numbers, `sub_em` and `token_f1` for short texts;
* rewarding: `r1_zero_reward` and `qa_reward`, which return format_reward, answer_reward, reward.

A grader reads text that a policy has learnt to write, so it must hold against everything: the
length is limited before anything is parsed (`int("9" * 3_000_000)` takes many seconds, and no
alarm stops it), nothing is evaluated, and what the grammar does not know is refused, not guessed.
"""

import re
import string
from collections import Counter, deque
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

from helpers.chinese_numbers import SCALE, UNIT_SIGNS, in_ascii, is_unit
from helpers.reward_models import from_model as from_model
from helpers.reward_models import pool_last_token as pool_last_token
from helpers.reward_models import score as score

MAX_ANSWER_CHARS = 200
MAX_TEXT_CHARS = 20_000

# Full-width ASCII (as Chinese and Japanese texts have it), the minus signs, vulgar fractions.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_PLAIN |= {ord(sign): "-" for sign in "−–‐‑﹣"}
_PLAIN |= {ord("。"): ".", ord("、"): ",", ord("￥"): "¥", ord("⁄"): "/", ord("’"): "'"}
_PLAIN |= {ord(sign): f" {value} " for sign, value in
           {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}.items()}

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:US)?[$€£¥₹]?\s*(?P<inner_sign>[+-]?)\s*"
    rf"(?:(?:(?P<mixed>{_WHOLE})\s+)?(?P<top>{_WHOLE})\s*/\s*(?P<bottom>{_WHOLE})"
    rf"|(?P<decimal>{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+))"
)
_UP_TO_19 = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER_WORDS = {*_UP_TO_19, *_TENS, "tens", *(f"{word[:-1]}ies" for word in _TENS)}
_PARTS = "third fourth fifth sixth seventh eighth ninth tenth twelfth hundredth thousandth".split()
# Words after a number that make it another number, or no answer at all. The scale words are
# refused and not multiplied: "2 dozen" may answer "how many dozens" or "how many eggs".
# Quarters and seconds are not among the parts: mostly they are coins and a time.
_NOT_A_UNIT = _NUMBER_WORDS.union(
    _PARTS,
    (f"{part}s" for part in _PARTS),
    "and or nor not no is isnt was wasnt plus minus times by to half halves halved point squared "
    "cubed factorial doubled tripled x y z n i e k b bn mn pi π hundred hundreds thousand "
    "thousands million millions billion billions trillion trillions dozen dozens score grand "
    "wrong incorrect false maybe perhaps probably possibly about roughly approximately".split(),
)
# "one-dollar bills" are a unit, "twenty-one" and "two-thirds" are numbers.
_NAMED_BY_NUMBER = re.compile(rf"\b(?:{'|'.join(_NUMBER_WORDS)})-(?=[a-z])", re.IGNORECASE)

# Atomic groups keep the search linear, and stop "12th" from being read as a 1.
_TEXT_NUMBER = (
    r"(?:(?<![\w)\]%.])-(?=[$€£¥₹]?\.?[0-9]))?[$€£¥₹]?(?<![A-Za-z0-9_])(?<![0-9]\.)"
    r"(?>(?>[0-9]{1,3}(?:,[0-9]{3}){1,20}+(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
    r"(?>(?:\ [0-9]++)?/[0-9]++)?+(?!(?:st|nd|rd|th)\b)"
    rf"(?:{SCALE})?+"
)
_LAST_NUMBER = re.compile(_TEXT_NUMBER)
_ANSWER_IS = re.compile(
    rf"(?:\banswer(?:\s?is|\s?=|:)|答案(?:是|为|等于|\s?=|:))[\s:*$]{{0,8}}(?P<number>{_TEXT_NUMBER}\s?%?)",
    re.IGNORECASE,
)


class Number(NamedTuple):
    """A parsed answer. "18 %" is Number(Fraction(18, 100), is_percent=True)."""

    value: Fraction
    is_percent: bool


def _plain(text: str) -> str:
    """Full-width characters, Unicode minus signs and vulgar fractions as ASCII."""
    return text if text.isascii() else text.translate(_PLAIN)


# ---------------------------------------------------------------- finding the answer


def extract_answer(text: str) -> str | None:
    r"""The answer that the text states, as it is written there; None where it states none.

    The forms are tried in this order; of one form the last statement counts:

    1. ``<answer>...</answer>`` (with several tags: the last closed one; the strict reward
       refuses such a text all the same), 2. ``\boxed{...}``, 3. ``#### ...`` to the end of
    the line, 4. "answer is", "answer:", "answer =" or the Chinese forms before a number.

    Only the last 20,000 characters are read. The content is not interpreted: that is the
    work of `is_equivalent`.

    Example:
        >>> extract_answer("9 - 2 = 7 </think> <answer> 7 eggs </answer>")
        '7 eggs'
        >>> extract_answer("So the answer is not 3.") is None
        True
    """
    text = text[-MAX_TEXT_CHARS:]
    for find in (_last_answer_tag, _last_boxed, _last_hash_line, _last_answer_sentence):
        answer = find(text)
        if answer is not None:
            return answer
    return None


def _last_answer_tag(text: str) -> str | None:
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if start < 0:
        return None
    start += len("<answer>")
    return text[start : text.index("</answer>", start)].strip()


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    # The brace that closes the box is the first one that brings the depth back to 0.
    for i, char in enumerate(text[start : start + 2 * MAX_ANSWER_CHARS], start):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[start:i].strip()
    return None


def _last_hash_line(text: str) -> str | None:
    before, mark, after = text.rpartition("####")
    return after.strip().split("\n", 1)[0].strip() or None if mark else None


def _last_answer_sentence(text: str) -> str | None:
    found = _last_match(_ANSWER_IS, text)
    return found["number"].strip() if found else None


def _last_match(pattern: re.Pattern, text: str) -> re.Match | None:
    return next(iter(deque(pattern.finditer(_plain(text)), maxlen=1)), None)


def last_number(text: str) -> str | None:
    """The last number in the text: the lenient metric. None where there is no number.

    Thousands commas and the currency sign are removed; a full stop that ends a sentence does
    not belong to the number. "3/4" is one number. In a chain ("9 - 2 = 7") the last number is
    the result. A minus belongs to the number unless a value stands before it ("10-7" ends in
    7). A percent sign is dropped. Digits after a letter ("x2", "<h1>") and ordinals ("5th")
    are names, not numbers. A Chinese scale stays with its number ("3万"), which is refused then.
    Only the last 20,000 characters are read.

    Example:
        >>> last_number("She pays $1,080.")
        '1080'
    """
    found = _last_match(_LAST_NUMBER, text[-MAX_TEXT_CHARS:])
    return re.sub(r"[,$€£¥₹]", "", found[0]) if found else None


# ---------------------------------------------------------------- comparing answers


def is_equivalent(prediction: str | None, truth: str) -> bool:
    r"""Whether both texts are the same single number, whatever its form.

    Read as a number: ``1,000``, ``$18.00``, ``18.``, ``18 eggs``, ``3/4``, ``1 1/2``, ``-5``,
    ``.5``, ``18 %``, ``\boxed{18}``, ``\frac{3}{4}``, ``x = 18``, full-width digits and the
    Chinese forms of `helpers.chinese_numbers`. Units are not compared. Numbers are compared
    exactly: 0.33 is not 1/3. 18 % equals 0.18; 18 equals it only where the truth has the
    percent sign.

    Refused (False): more than one number, in digits or words, comparisons, sentences, powers,
    products, parts ("3 halves"), scale words ("2 dozen", "3万"), doubts, anything over 200
    characters, and None (nothing was extracted).
    A truth that is not a number is matched by the same text only, case and white space aside.

    Example:
        >>> is_equivalent("$1,000.00", "1000"), is_equivalent("19, 18", "18")
        (True, False)
    """
    if prediction is None:
        return False
    wanted, given = parse_number(truth), parse_number(prediction)
    if wanted is None:
        truth, prediction = truth.strip(), prediction.strip()
        if not truth or max(len(truth), len(prediction)) > MAX_ANSWER_CHARS:
            return False
        return truth.casefold().split() == prediction.casefold().split()
    if given is None:
        return False
    if wanted.is_percent and not given.is_percent and given.value == wanted.value * 100:
        return True
    return given.value == wanted.value


def parse_number(text: str) -> Number | None:
    """The one number that the whole text states, or None. See `is_equivalent` for the forms."""
    text = text.strip()
    if not text or len(text) > MAX_ANSWER_CHARS:
        return None
    # Single spaces: a long run of them could be split between the optional parts in many ways.
    text = " ".join(_strip_markup(_plain(text)).split())
    text = text if text.isascii() else in_ascii(text)
    found = _NUMBER.match(text)
    if found is None or (found["sign"] and found["inner_sign"]):
        return None
    value, is_percent = _value(found), _read_rest(text[found.end() :].strip())
    if value is None or is_percent is None:
        return None
    return Number(value / 100 if is_percent else value, is_percent)


def _strip_markup(text: str) -> str:
    r"""Take off what wraps one number: ``$..$``, ``\(..\)``, ``**..**``, ``\boxed{..}``.

    What is taken out inside leaves a space, so that no two digits grow together ("2**3").
    """
    text = text.replace("{,}", ",").replace(",\\!", ",").replace("\\,", ",")
    text = re.sub(r"\\[()\[\];]", " ", text).strip(" *").removesuffix(".").strip(" *")
    if len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    if text.startswith("\\boxed{") and text.endswith("}"):
        text = text[len("\\boxed{") : -1]
    text = re.sub(r"\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}", r" \1/\2 ", text)
    text = re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r" \1 ", text)
    text = text.replace("\\$", "$").replace("\\%", "%").replace("°", " degrees ")
    text = text.translate(UNIT_SIGNS)
    return re.sub(r"^[A-Za-z]\s*=", "", text.strip()).strip()


def _value(found: re.Match) -> Fraction | None:
    """The value of a match of `_NUMBER`; None for a zero denominator."""
    if found["decimal"]:
        value = Fraction(found["decimal"].replace(",", ""))
    else:
        mixed, top, bottom = (int((found[name] or "0").replace(",", ""))
                              for name in ("mixed", "top", "bottom"))
        if bottom == 0:
            return None
        value = mixed + Fraction(top, bottom)
    return -value if "-" in (found["sign"], found["inner_sign"]) else value


def _read_rest(rest: str) -> bool | None:
    """Whether a percent sign follows the number; None where more than a unit follows."""
    is_percent = rest.startswith("%")
    rest = rest.removeprefix("%").strip()
    if rest in ("", "."):
        return is_percent
    words = [word for word in re.split(r"[\s/-]+", _NAMED_BY_NUMBER.sub("", rest)) if word]
    if words and words[0].lower().rstrip(".") in ("percent", "percentage"):
        is_percent, words = True, words[1:] or ["percent"]
    return is_percent if 0 < len(words) <= 5 and all(map(_is_unit_word, words)) else None


def _is_unit_word(word: str) -> bool:
    letters = re.sub(r"[.']|(?:\^[23]|[²³])$", "", word)
    known = letters.isalpha() and word != "M" and letters.lower() not in _NOT_A_UNIT
    return known and is_unit(word)


# ---------------------------------------------------------------- rewards


def r1_zero_reward(
    response: str, ground_truth: str, *, spacing: Literal["any", "exact"] = "any"
) -> dict[str, float]:
    """Format and answer reward of a response to an r1_zero prompt (DeepSeek-R1, 2501.12948).

    format_reward is 1 where the whole response reads

        ...reasoning... </think> <answer> ... </answer>

    with each of these tags exactly once and nothing but white space after the last and between
    ``</think>`` and ``<answer>``. The prompt usually holds ``<think>`` already; a response may
    open it once, at its very start. ``spacing="exact"`` asks for exactly one space between the
    two tags, as the published grader does; "any" takes any white space, or none.

    answer_reward is 1 where the format is right and the answer is equivalent to ground_truth
    (an answer outside the format is not graded, as in the published grader); reward is 1
    where both are.

    Raises ValueError for another spacing. Never raises because of the response.

    Example:
        >>> r1_zero_reward("9 - 2 = 7 </think> <answer> 7 </answer>", "7")
        {'format_reward': 1.0, 'answer_reward': 1.0, 'reward': 1.0}
    """
    if spacing not in ("any", "exact"):
        raise ValueError(f'spacing must be "any" or "exact", but it is {spacing!r}.')
    answer = _strict_answer(response, spacing)
    format_reward = float(answer is not None)
    answer_reward = float(answer is not None and is_equivalent(answer, ground_truth))
    return _parts(format_reward, answer_reward, format_reward * answer_reward)


def _parts(format_reward: float, answer_reward: float, reward: float) -> dict[str, float]:
    return {"format_reward": format_reward, "answer_reward": answer_reward, "reward": reward}


def _strict_answer(response: str, spacing: str) -> str | None:
    """The content of the answer tag where the response keeps the strict format, else None."""
    response = response.strip().removeprefix("<think>")
    if "<think>" in response or not response.endswith("</answer>"):
        return None
    if any(response.count(tag) != 1 for tag in ("</think>", "<answer>", "</answer>")):
        return None
    _, _, after_think = response.partition("</think>")
    between, opened, answer = after_think.partition("<answer>")
    if not opened or between.strip() or (spacing == "exact" and between != " "):
        return None
    return answer.removesuffix("</answer>").strip()


def qa_reward(response: str, golds: Sequence[str]) -> dict[str, float]:
    """Reward of a short answer to an open question: SubEM and F1 of the graded part.

    Graded is the content of the answer tag, or the whole response where there is none.
    format_reward is 1 where that part has words at all; answer_reward is `sub_em`; reward is
    `token_f1`, which falls with every needless word.

    Example:
        >>> qa_reward("It is Nelgarton.", ["Nelgarton"])
        {'format_reward': 1.0, 'answer_reward': 1.0, 'reward': 0.5}
    """
    answer = graded_text(response)
    return _parts(float(bool(normalize_answer(answer))), sub_em(answer, golds),
                  token_f1(answer, golds))


def graded_text(response: str) -> str:
    """The content of the last answer tag, else the whole response: what `qa_reward` grades."""
    answer = _last_answer_tag(response[-MAX_TEXT_CHARS:])
    return response.strip() if answer is None else answer


# ---------------------------------------------------------------- short texts


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”«»„…—")


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, white space collapsed (as SQuAD does).

    Example:
        >>> normalize_answer(" The Nile,  in Africa. ")
        'nile in africa'
    """
    words = _plain(text[:MAX_TEXT_CHARS]).lower().translate(_NO_PUNCTUATION).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _normalized_golds(golds: Sequence[str]) -> list[str]:
    golds = [golds] if isinstance(golds, str) else golds
    return [gold for gold in map(normalize_answer, golds) if gold]


def sub_em(prediction: str, golds: Sequence[str]) -> float:
    """1.0 where any gold answer is a substring of the prediction, both normalised; else 0.0.

    Golds that are empty after normalisation are ignored: an empty text is a substring of
    everything. A long answer that recites every candidate scores 1: read it beside `token_f1`.

    Example:
        >>> sub_em("It flows through the Sudan.", ["Egypt", "Sudan"])
        1.0
    """
    prediction = normalize_answer(prediction)
    return float(any(gold in prediction for gold in _normalized_golds(golds)))


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Overlap of words between prediction and gold, as multisets; the best over the golds.

    F1 = 2 P R / (P + R), precision P = shared / words predicted, recall R = shared / words in
    the gold answer. Empty golds are ignored.

    Example:
        >>> token_f1("the river Nile", ["Nile"])
        0.6666666666666666
    """
    predicted = Counter(normalize_answer(prediction).split())
    return max((_f1(predicted, Counter(gold.split())) for gold in _normalized_golds(golds)),
               default=0.0)


def qa_scores(prediction: str, golds: Sequence[str]) -> dict[str, float]:
    """Both scores of an answer to an open question, which are read side by side.

    Example:
        >>> qa_scores("Ana studied in Nelgar", ["Nelgar"])
        {'sub_em': 1.0, 'f1': 0.4}
    """
    return {"sub_em": sub_em(prediction, golds), "f1": token_f1(prediction, golds)}


def _f1(predicted: Counter, gold: Counter) -> float:
    shared = (predicted & gold).total()
    return 2 * shared / (predicted.total() + gold.total())


# ---------------------------------------------------------------- what went wrong


FAILURE_CATEGORIES = {
    "correct": "right answer in the right format",
    "wrong_number": "right format, another number",
    "unparsable": "right format, but the answer is not one number",
    "right_number_unformatted": "wrong format, and the last number is the gold answer",
    "prompt_too_long": "the prompt does not fit into the model's window: nothing was generated",
    "truncated": "wrong format, cut at the token limit",
    "no_number": "wrong format, no number anywhere",
    "unclosed_think": "wrong format: </think> is missing",
    "no_answer_tag": "wrong format: <answer> is missing",
    "unclosed_answer": "wrong format: </answer> is missing",
    "several_answers": "wrong format: more than one answer",
    "text_after_answer": "wrong format: text after </answer>",
    "misplaced_tags": "wrong format: tags repeated, out of order, or text between them",
}


def failure_category(
    generation: str, finish_reason: str, parts: dict[str, float], lenient: bool
) -> str:
    """The one name of FAILURE_CATEGORIES that fits; the first in the order of that table.

    generation: the sampled text; finish_reason: "eos", "stop_string", "length" or
    "prompt_too_long"; parts: what the reward function returned; lenient: whether the last
    number is the gold answer.

    Example:
        >>> nothing = {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}
        >>> failure_category("That makes 7.", "eos", nothing, lenient=True)
        'right_number_unformatted'
    """
    if parts["reward"] >= 1:
        return "correct"
    if parts["format_reward"] >= 1:
        return "wrong_number" if parse_number(extract_answer(generation) or "") else "unparsable"
    if lenient:
        return "right_number_unformatted"
    if finish_reason in ("prompt_too_long", "length"):
        return "truncated" if finish_reason == "length" else finish_reason
    if last_number(generation) is None:
        return "no_number"
    return _format_defect(generation)


def _format_defect(generation: str) -> str:
    if "</think>" not in generation:
        return "unclosed_think"
    if "<answer>" not in generation:
        return "no_answer_tag"
    if "</answer>" not in generation:
        return "unclosed_answer"
    if generation.count("<answer>") > 1 or generation.count("</answer>") > 1:
        return "several_answers"
    if generation.rpartition("</answer>")[2].strip():
        return "text_after_answer"
    return "misplaced_tags"


QA_FAILURE_CATEGORIES = {
    "correct": "holds a gold answer, and F1 is 0.5 or more",
    "right_but_long": "holds a gold answer among many other words",
    "prompt_too_long": "the prompt does not fit into the model's window: nothing was generated",
    "truncated": "no gold answer, cut at the token limit",
    "empty_answer": "no words",
    "partial": "shares words with a gold answer",
    "wrong_answer": "shares no word with any gold answer",
}


def qa_failure_category(generation: str, finish_reason: str, parts: dict[str, float]) -> str:
    """The one name of QA_FAILURE_CATEGORIES that fits; parts holds sub_em and f1.

    Example:
        >>> qa_failure_category("Arlo or Luben", "eos", {"sub_em": 1.0, "f1": 0.4})
        'right_but_long'
    """
    if parts["sub_em"] == 1:
        return "correct" if parts["f1"] >= 0.5 else "right_but_long"
    if finish_reason in ("prompt_too_long", "length"):
        return "truncated" if finish_reason == "length" else finish_reason
    if not normalize_answer(graded_text(generation)):
        return "empty_answer"
    return "partial" if parts["f1"] > 0 else "wrong_answer"
