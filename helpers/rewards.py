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
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from helpers.chinese_numbers import UNIT_SIGNS, in_ascii, is_unit
from helpers.expressions import PARTS, SCALES, STATED_EXPRESSION, TENS, UP_TO_19, last_expression
from helpers.plain_text import counted_nouns, plain, sentence_ends, tex_as_text
from helpers.reward_models import from_model as from_model
from helpers.reward_models import pool_last_token as pool_last_token
from helpers.reward_models import score as score

MAX_ANSWER_CHARS = 200
MAX_TEXT_CHARS = 20_000

_CURRENCY = "[$€£¥₹]"
_SIMPLE = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")  # most answers, read without a detour
_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:US)?[$€£¥₹]?\s*(?P<inner_sign>[+-]?)\s*"
    rf"(?:(?:(?P<mixed>{_WHOLE})\s+)?(?P<top>{_WHOLE})\s*/\s*(?P<bottom>{_WHOLE})"
    rf"|(?P<decimal>{_WHOLE}(?:\.[0-9]*)?|\.[0-9]+))"
)
_NUMBER_WORDS = {*UP_TO_19, *TENS, "tens", *(f"{word[:-1]}ies" for word in TENS)}
# Words after a number that make it another number, or no answer at all. The scale words are
# refused and not multiplied: "2 dozen" may answer "how many dozens" or "how many eggs".
# Quarters and seconds are not among the parts: mostly they are coins and a time.
_NOT_A_UNIT = _NUMBER_WORDS.union(
    PARTS, (f"{part}s" for part in PARTS), SCALES, (f"{scale}s" for scale in SCALES[:-2]),
    "and or nor not no is isnt was wasnt plus minus times by to half halves halved point "
    "squared cubed factorial doubled tripled x y z n i e k b bn mn mln tn pi π "
    "wrong incorrect false maybe perhaps probably possibly about roughly approximately".split(),
)
# "one-dollar bills" are a unit, "twenty-one" and "two-thirds" are numbers.
_NAMED_BY_NUMBER = re.compile(rf"\b(?:{'|'.join(_NUMBER_WORDS)})-(?=[a-z])", re.IGNORECASE)

_ANSWER_IS = re.compile(
    r"(?:(?i:\banswer(?:\s?is|\s?=|:))|答案(?:是|为|等于|\s?=|:))[\s:*$]{0,8}"
    rf"(?P<number>{STATED_EXPRESSION}\s?%?)"
)
_PLAIN_NUMBER = re.compile(
    rf"-?{_CURRENCY}?-?(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+|(?:{_WHOLE}\s+)?{_WHOLE}\s*/\s*{_WHOLE})"
)
_DIFFERENCE = re.compile(rf"({_WHOLE}(?:\.[0-9]+)?)\s?-\s?({_WHOLE}(?:\.[0-9]+)?)")


class Number(NamedTuple):
    """A parsed answer. "18 %" is Number(Fraction(18, 100), is_percent=True)."""

    value: Fraction
    is_percent: bool


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
    text = _text_of(text, "text")[-MAX_TEXT_CHARS:]
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
    text = _prose(text)
    if "answer" not in text.lower() and "答案" not in text:
        return None
    found = deque(_ANSWER_IS.finditer(tex_as_text(text)), maxlen=1)
    return found[0]["number"].strip() if found else None


def last_number(text: str) -> str | None:
    r"""The last number in the text: the lenient metric. None where there is no number.

    Thousands commas and the currency sign are removed; a full stop that ends a sentence does
    not belong to the number. "3/4" is one number. In a chain ("9 - 2 = 7") the last number is
    the result. A minus belongs to the number unless a value stands before it ("10-7" ends in
    7). A percent sign is dropped. Digits after a letter ("x2", "<h1>") and ordinals ("5th")
    are names, not numbers.

    A number that is part of a larger expression is never cut out of it: 10-15, 5 or 6, 2^5,
    3 million, 1.5e3, 3:30 and \\sqrt{16} come back whole, and `is_equivalent` refuses them. So
    does 3万, a Chinese scale. Only the last 20,000 characters are read.

    Example:
        >>> last_number("She pays $1,080."), last_number("It takes 10-15 minutes.")
        ('1080', '10-15')
    """
    found = last_expression(_prose(_text_of(text, "text")[-MAX_TEXT_CHARS:]))
    if found is None:
        return None
    return re.sub(r"[,$€£¥₹]", "", found) if _PLAIN_NUMBER.fullmatch(found) else _end_of(found)


def _prose(text: str) -> str:
    """What the finders read of a running text; an answer by itself keeps its exclamation mark."""
    return counted_nouns(sentence_ends(plain(text)))


def _end_of(expression: str) -> str:
    """The last number of a difference that was left open ("10-7"); a range (10-15) as it is."""
    found = _DIFFERENCE.fullmatch(expression)
    first, last = map(parse_number, found.groups()) if found else (None, None)
    return found[2].replace(",", "") if first and last and first.value > last.value else expression


def _text_of(value: Any, name: str) -> str:
    """The value, which must be a text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, but it is of type {type(value).__name__}.")
    return value


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
    text = _text_of(text, "an answer").strip()
    if not text or len(text) > MAX_ANSWER_CHARS:
        return None
    if _SIMPLE.fullmatch(text):
        return Number(Fraction(text), False)
    # Single spaces: a long run of them could be split between the optional parts in many ways.
    text = " ".join(_strip_markup(tex_as_text(counted_nouns(plain(text)))).split())
    text = text if text.isascii() else in_ascii(text)
    found = _NUMBER.match(text)
    if found is None or (found["sign"] and found["inner_sign"]):
        return None
    value, is_percent = _value(found), _read_rest(text[found.end() :].strip())
    if value is None or is_percent is None:
        return None
    return Number(value / 100 if is_percent else value, is_percent)


def _strip_markup(text: str) -> str:
    """Take off what wraps one number: ``$..$``, ``**..**``, ``x =``, the full stop behind it."""
    text = text.strip(" *").removesuffix(".").strip(" *")
    if len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = text.replace("°", " degrees ").translate(UNIT_SIGNS)
    return re.sub(r"^[A-Za-z]\s*=", "", text.strip()).strip()


def _value(found: re.Match) -> Fraction | None:
    """The value of a match of `_NUMBER`; None for a zero denominator or 4 10/3."""
    if found["decimal"]:
        value = Fraction(found["decimal"].replace(",", ""))
    else:
        mixed, top, bottom = (int((found[name] or "0").replace(",", ""))
                              for name in ("mixed", "top", "bottom"))
        if bottom == 0 or (mixed and top >= bottom):
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
    letters = re.sub(r"[.']|!$|(?:\^-?[1-4]|[²³]|(?<=[mt])[23])$", "", word)
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
    response = _text_of(response, "response").strip().removeprefix("<think>")
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
    return _parts(float(has_words(answer)), sub_em(answer, golds),
                  token_f1(answer, golds))


def graded_text(response: str) -> str:
    """The content of the last answer tag, else the whole response: what `qa_reward` grades."""
    answer = _last_answer_tag(_text_of(response, "response")[-MAX_TEXT_CHARS:])
    return response.strip() if answer is None else answer


# ---------------------------------------------------------------- short texts


class _Unpunctuated(dict):
    """For str.translate: full-width as ASCII, and no punctuation of any script. Fills itself."""

    def __missing__(self, code: int) -> str:
        self[code] = "" if _is_punctuation(chr(code)) else "".join(
            char for char in plain(chr(code)) if not _is_punctuation(char))
        return self[code]


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")


_UNPUNCTUATED = _Unpunctuated()
_MOST_MARKS = 30  # on one letter: no script has more, and sorting them takes quadratic time


def _words(text: str) -> list[str]:
    """The words of a text: composed (NFC), without punctuation and signs without width."""
    text = _text_of(text, "an answer")[:MAX_TEXT_CHARS]
    if not text.isascii():
        text = unicodedata.normalize("NFC", "".join(_with_few_marks(text)))
    return text.translate(_UNPUNCTUATED).split()


def _with_few_marks(text: str) -> Iterator[str]:
    marks = 0
    for char in text:
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks <= _MOST_MARKS:
            yield char


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and articles, white space collapsed (as SQuAD does).

    Letters are composed (NFC), and the punctuation of every script and signs without width go.

    Example:
        >>> normalize_answer(" The Nile,  in Africa. ")
        'nile in africa'
    """
    words = _words(_text_of(text, "an answer").lower())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def has_words(text: str) -> bool:
    """Whether an answer says anything: "A" and "The" do, "..." does not.

    Example:
        >>> has_words("A"), has_words(" ... ")
        (True, False)
    """
    return bool(_words(text))


def _pairs(prediction: str, golds: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Words of the prediction and of each gold; golds without any word are left out.

    A gold of articles alone ("A", a blood type; "The The", a band) is compared with its articles,
    and in its own capitals, so that "a cat" does not hold it; alone in any capitals.
    """
    golds = [golds] if isinstance(golds, str) else golds
    if not isinstance(golds, Iterable):
        raise ValueError(f"golds must be texts, but it is of type {type(golds).__name__}.")
    normal = normalize_answer(prediction).split()
    for gold in golds:
        wanted = normalize_answer(gold).split()
        if wanted:
            yield normal, wanted
        elif wanted := _words(gold):
            written = _words(prediction)
            alone = " ".join(written).lower() == " ".join(wanted).lower()
            yield (wanted if alone else written), wanted


def sub_em(prediction: str, golds: Sequence[str]) -> float:
    """1.0 where any gold answer is a substring of the prediction, both normalised; else 0.0.

    Golds without any word are ignored: an empty text is a substring of everything. A gold of
    articles alone ("A") is no part of a word: it must stand as a word, in its own capitals. A
    long answer that recites every candidate scores 1: read it beside `token_f1`.

    Raises ValueError where the prediction or a gold is no text.

    Example:
        >>> sub_em("It flows through the Sudan.", ["Egypt", "Sudan"]), sub_em("Type A.", ["A"])
        (1.0, 1.0)
    """
    return float(any(_holds(words, gold) for words, gold in _pairs(prediction, golds)))


def _holds(words: list[str], gold: list[str]) -> bool:
    text, wanted = " ".join(words), " ".join(gold)
    return wanted in text if normalize_answer(wanted) else f" {wanted} " in f" {text} "


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Overlap of words between prediction and gold, as multisets; the best over the golds.

    F1 = 2 P R / (P + R), precision P = shared / words predicted, recall R = shared / words in
    the gold answer. Golds without any word are ignored.

    Raises ValueError where the prediction or a gold is no text.

    Example:
        >>> token_f1("the river Nile", ["Nile"])
        0.6666666666666666
    """
    pairs = _pairs(prediction, golds)
    return max((_f1(Counter(words), Counter(gold)) for words, gold in pairs), default=0.0)


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
    if not has_words(graded_text(generation)):
        return "empty_answer"
    return "partial" if parts["f1"] > 0 else "wrong_answer"
