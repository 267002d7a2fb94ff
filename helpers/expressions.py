r"""Where a text writes a number, with all that belongs to it: 9,500 and 10-15 and 3 million whole.

A finder that looks for digits cuts: it takes 15 out of "10-15", 3 out of "3 million" and 4 out of
\frac{3}{4}. Here the whole expression is found, and the grammar of `helpers.rewards.parse_number`
says whether it is one number.

An expression is operands with joints between them. Everything is atomic and of bounded length, so
that the time is linear in the length of the text. No joint crosses a line, and "=" is none: the
result stands behind it.
"""

import re
from collections import deque
from collections.abc import Iterator

from helpers.chinese_numbers import SCALE
from helpers.plain_text import tex_as_text

UP_TO_19 = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
PARTS = "third fourth fifth sixth seventh eighth ninth tenth twelfth hundredth thousandth".split()
SCALES = (  # the last two have no plural that is a scale
    "hundred thousand million billion trillion quadrillion dozen lakh crore myriad score grand"
).split()


def _any(words: str | list[str]) -> str:
    """Words as alternatives of a pattern."""
    return "|".join(words.split() if isinstance(words, str) else words)


_GAP = r"[ \t]{0,3}"
_SPACE = r"[ \t]{1,3}"

# ---------------------------------------------------------------- one operand

_MONTH = (r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
          r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\b\.?")
_DAY = r"[0-9]{1,2}(?:st|nd|rd|th)?(?![0-9])"
_YEAR = rf"(?:,?{_SPACE}[0-9]{{4}}(?![0-9]))?"
_DATE = rf"{_MONTH}{_SPACE}{_DAY}{_YEAR}|{_DAY}{_SPACE}{_MONTH}{_YEAR}"

# All that digits are written with: whether 12,34,567 or 1.234,5 or 1.5.2 is a number, the grammar
# says. A space parts groups of three (1 000 000) or a whole number and its fraction (1 1/2).
_DIGITS = (r"(?>[0-9]++\.[0-9]++(?:\.{3}|…)(?![0-9.])"
           r"|[0-9]{1,3}(?:[ ][0-9]{3}){1,20}+(?![0-9])(?:[.,][0-9]++)?"
           r"|[0-9]++(?:[.,'][0-9]++)*+|\.[0-9]++(?:[.,'][0-9]++)*+)"
           rf"(?:{_SPACE}[0-9]{{1,20}}+{_GAP}/{_GAP}[0-9]++)?")
_CURRENCY = r"[$€£¥₹]"
_SIGN = (rf"(?:(?<![\w)\]%.])-(?={_CURRENCY}?\.?[0-9])"
         rf"|(?:(?<==)|(?<==[ ])|(?<=is[ ])|(?<=[\s(]\$[ ]))-[ ]?(?={_CURRENCY}?\.?[0-9])"
         r"|负|零下)?")
_ORDINAL = r"(?:st|nd|rd|th)\b"
_BRACES = r"(?:[ ]?\{[^{}]{0,80}(?:\{[^{}]{0,80}\}[^{}]{0,80}){0,3}\}?)"
# A command that computes, with its arguments; `tex_as_text` left it because it is no plain number.
_TEX = (rf"\\(?:sqrt|root|[dtc]?frac|[dt]?binom|log|ln|lg|exp|sin|cos|tan|overline|bar|dot|vec"
        rf"|max|min|gcd|lcm)(?![a-z])(?:[_^][0-9A-Za-z])?(?:\[[^\[\]]{{0,20}}\])?{_BRACES}{{0,2}}"
        rf"(?:[ ]?\(?[0-9][0-9.,]{{0,60}})?")

_TAIL_WORDS = _any(
    [f"{word}s?" for word in SCALES + PARTS]
    + [f"{word[:-1]}ies" for word in TENS]
    + "half halves halved tens squared cubed factorial doubled tripled".split()
)
_NUMBER_WORDS = _any(UP_TO_19 + TENS)
_TAIL = (
    r"(?:\.?[eE][+-]?[0-9]{1,20}|(?<=0)x[0-9A-Fa-f]{1,20}|(?!(?:[cdkm]?m|ft|in)[23]\b)[A-Za-z]{1,20}[0-9][0-9A-Za-z.]{0,60}"
    r"|(?:[kKMBbxyzniIeπ]|[ ]M|[ ]?(?:bn|mn|mln|tn)|pi)(?![A-Za-z])"
    rf"|[ \t-]{{0,2}}(?i:{_TAIL_WORDS})(?![A-Za-z])"
    r"|[ ]?‰|[!⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻₀₁₂₃₄₅₆₇₈₉]{1,20}"
    rf"|(?:{SCALE})(?:{SCALE})?|[多余几]|[个元块小时天年倍斤米]{{1,2}}半"
    rf"|{_SPACE}(?i:and{_SPACE}(?:an?|one|two|three|four|five)[ \t-]{{1,3}}"
    rf"(?:half|halves|quarters?|(?:{_any(PARTS)})s?))(?![A-Za-z])"
    rf"|,?{_SPACE}(?i:or{_SPACE}(?:so|more|less|fewer|higher|lower|{_NUMBER_WORDS}))(?![A-Za-z])"
    rf"|{_SPACE}(?i:(?:to|times|plus|minus|point){_SPACE}(?:{_NUMBER_WORDS}))(?![A-Za-z])"
    rf"|{_SPACE}(?i:(?:raised{_SPACE})?to{_SPACE}the{_SPACE}(?:[a-z0-9]{{1,12}}{_SPACE})?power)\b"
    rf"|[-/][0-9]{{1,20}}{_ORDINAL}"  # 1/3rd
    r"|\+(?![\w+]))"
)
# A number that begins here is no part of a name (x2, v1.5) and no exponent (cm^2).
_START = r"(?<![A-Za-z0-9_^])(?<![0-9][.,:/])(?<![_^]\{)(?<![_^][+-])"


# (5, 6) is a point and [5, 6] an interval; (1,080) is a number.
_TUPLE = rf"[(\[]{_GAP}-?{_DIGITS}(?:{_GAP}[,;]{_SPACE}-?{_DIGITS}){{1,8}}+{_GAP}[)\]]"


def _operand(start: str) -> str:
    number = rf"{_SIGN}(?:{_CURRENCY}(?:-(?=\.?[0-9]))?)?{start}{_DIGITS}(?!{_ORDINAL})"
    return rf"(?:{_TEX}|{start}(?:{_DATE})|{_TUPLE}|{number})(?:{_TAIL}){{0,3}}+"


# ---------------------------------------------------------------- what joins two operands

_SMALLER_UNITS = {  # 2 hours 30 minutes is one quantity, 2 hours 3 dogs are two
    "hours? hrs? h": "minutes? mins? m seconds? secs?", "minutes? mins? m": "seconds? secs? s",
    "days?": "hours? hrs? minutes?", "weeks?": "days?", "months?": "weeks? days?",
    "years?": "months? weeks? days?", "feet foot ft": "inch(?:es)? in",
    "yards? yds?": "feet foot ft inch(?:es)?", "miles?": "yards? feet",
    "dollars?": "cents?", "gallons?": "quarts? pints? cups?", "quarts?": "pints? cups?",
    "km kilomet(?:er|re)s?": "m met(?:er|re)s?", "met(?:er|re)s? m": "cm centimet(?:er|re)s?",
    "kg kilograms?": "g grams?", "pounds? lbs?": "ounces? oz",
}
_AND_SMALLER = _any([
    rf"(?:{_any(unit)})\.?,?{_SPACE}(?:and{_SPACE})?"
    rf"(?=[0-9.]{{1,20}}[ \t-]?(?:{_any(smaller)})(?![A-Za-z]))"
    for unit, smaller in _SMALLER_UNITS.items()
])
_WORDS = (r"to|up to|mod|and|by|times|plus|minus|over|x|through|thru|till|until|versus|vs\.?|point|"
          r"choose|divided by|multiplied by|to the power(?: of)?")
_JOINT = (
    # 10 to 15, 5, or 6, 20% of 50, 5 cm x 10 cm, 10-to-15
    rf"(?:{_GAP}(?:%|°|{_CURRENCY}|(?i:per ?cent)))?[)\]}}*]{{0,3}}(?:"
    rf"{_GAP}(?:[+×·⋅∙÷/±∓~^…_≤≥≠]|\.{{2,3}}|—|(?<![<>])[<>](?![<>=/])){_GAP}[{{(\[]{{0,2}}"
    rf"|(?:\*\*?|-{{1,3}}|:)(?! )[{{(\[]{{0,2}}|{_SPACE}(?:\*\*?|-{{1,3}}|:){_SPACE}[{{(\[]{{0,2}}"
    rf"|-[ ]|\((?=[0-9])|\\(?:over|choose|bmod|pmod|atop){_GAP}|[.]?(?=\\[a-z])"
    rf"|(?:{_SPACE}(?i:{_WORDS})|,?{_SPACE}(?i:or)|(?<=[^0-9.,]1)[ ]in){_SPACE}"
    r"|-(?i:to|by|and|or|out-of)-"
    rf"|{_SPACE}(?i:(?:out{_SPACE})?of){_SPACE}(?i:(?:the|all|those){_SPACE})?"
    rf"|{_GAP}(?://|\+/-){_GAP}|%(?=[0-9])|[ ]%[ ](?=[0-9])|{_SPACE}[CP]{_SPACE}(?=[0-9])"
    rf"|{_GAP}\((?i:or){_SPACE}"
    rf"|[ ]?[A-Za-z]{{1,15}}\.?(?:{_SPACE}(?:x|by|or)|{_GAP}×){_SPACE}"
    rf"|[ ]?(?i:{_AND_SMALLER})"
    r"|[ ]?[\u4e00-\u9fff]{0,2}(?:到|至|或者?)[ ]?"
    r"|[ ]?(?:和|与|比|乘以?|除以|加上?|减去?|又|分之|点)[ ]?"
    r"|(?:年|月|日|点|时|个?小时|分钟?|元|块|角|米|千米|公里|斤|千克|公斤|吨|天|周|个?星期|尺)[零又]?"
    r"(?=[0-9]{1,20}(?:年|月|日|号|点|时|分|秒|角|毛|厘米|毫米|米|克|两|千克|公斤|天|小时|个月|寸)))"
)
# In a statement a list is no single answer, either: "the answer is 5, 6" and "5 hens and 6 ducks".
_LIST_JOINT = (rf"(?:{_JOINT}|{_GAP}%?,{_SPACE}(?:(?:and|or){_SPACE})?"
               rf"|(?:{_SPACE}[A-Za-z]{{1,15}}){{1,2}},?{_SPACE}(?:and|or|&){_SPACE})")
_OPERATOR = rf"(?:{_GAP}(?:[+×÷/^]|\*\*?){_GAP}|-|{_SPACE}-{_SPACE})"
# sqrt 16, half of 36, minus 5, x - 5, (a + b) * 2
_PREFIX = (
    r"(?:[√∛∜±][ ]?|\+/-[ ]?|\|(?=-)|[⌊⌈]|\\(?:l?vert|lfloor|lceil)[ ]?|[千万]分之|(?<![A-Za-z])(?:"
    rf"(?i:minus|negative|twice|thrice|double|triple){_SPACE}"
    rf"|(?i:half|halves|quarters?|(?:{_any(PARTS)})s?|roots?|squares?|cubes?|factorial|logs?)"
    rf"{_SPACE}of{_SPACE}(?:the{_SPACE})?"
    r"|(?i:sqrt|cbrt|log|ln|exp|sin|cos|tan|abs)[ ]?\(|(?:sqrt|cbrt|ln|sin|cos)[ ]"  # logs are wood
    rf"|[xyznk]{_OPERATOR})|\){_OPERATOR})"
)


# What most places of a text fail at once: inside a word, and at a space, no expression begins.
_MAY_START = r"(?=[^\sA-Za-z<>,;:/]|(?<![A-Za-z])[JFMASONDmnthdqrsclfxyzkeaMNTHDQRSCLFEA])"


def _expression(joint: str) -> str:
    first = rf"(?:{_PREFIX}{_operand('')}|{_operand(_START)})"
    return rf"{_MAY_START}(?>{first}(?:{joint}{_operand('')})*+(?:{_GAP}\^\S{{0,20}})?)"


STATED_EXPRESSION = _expression(_LIST_JOINT)
_EXPRESSION = re.compile(_expression(_JOINT))
_DIGIT = re.compile("[0-9]")
_NEAR = 1_000  # characters, five times the longest answer that the grammar reads


def last_expression(text: str) -> str | None:
    """The last expression of a plain text that holds a digit; None where there is none.

    Example:
        >>> [last_expression(text) for text in ("9 - 2 = 7 eggs", "10-15 eggs", "3 million", "x2")]
        ['7', '10-15', '3 million', None]
    """
    for line in reversed(text.splitlines()):
        end = max(map(line.rfind, "0123456789")) + 1
        # What is longer than the near end is no single number: the rest is read only for names.
        for part in (line[max(end - _NEAR, 0) : end + _NEAR], line[:-_NEAR]):
            found = deque(_expressions(tex_as_text(part)), maxlen=1) if end else None
            if found:
                return found[0]
    return None


def _expressions(line: str) -> Iterator[str]:
    return (found[0] for found in _EXPRESSION.finditer(line) if _DIGIT.search(found[0]))
