"""Chinese ways to write a number, as the ASCII that the grammar of `helpers.rewards` knows.

What has one meaning is read: 十九, 百分之19, 二分之一, 3又1/2, 负5, 一共19个. All else stays as
it is, and the grammar refuses it. As in English, a scale behind digits is refused, not multiplied
(3万 may answer "how many" or "how many 万"), and so is a hedge (约19, 19左右).
"""

import functools
import re

_DIGITS = "零一二三四五六七八九"
# Behind digits these make another number: 5千 is 5000, but 5千克 and 5千米 are units.
SCALE = (
    r"(?:[十万萬亿億折]|成(?![立为员])|打(?![开印火])|百(?!分点|帕)|千(?![克米瓦卡焦帕赫伏升])"
    r"|兆(?![瓦赫字]))"
)
# Within a unit these make another number, a hedge, or a denial: 3元五角, 3个半, 10多个, 19不对.
NOT_A_UNIT = re.compile(
    rf"{SCALE}|[{_DIGITS}〇半多余几或约是非不错没无加减乘除]|左右|以[上下内外]|(?:平方|立方|次方)$"
)
_FIGURES_IN_WORDS = re.compile(r"三角形|三明治|三轮车|[四五六八]边形")

_NUMERAL = rf"[{_DIGITS}〇两十百千]+"
_PART = rf"(?:[0-9]+|{_NUMERAL})"
# A closed list, for 一 begins many words: 一样 (alike), 一些 (some), 一半 (half), 一点 (a little).
_COUNTED = (
    "个|只|支|本|元|块|页|岁|枚|颗|条|张|件|辆|箱|盒|袋|瓶|杯|排|组|棵|朵|头|次|人|名|位|天|"
    "年|小时|分钟|秒|厘米|千米|公里|米|千克|公斤|斤|克|吨|升|度|倍"
)
_TOTAL = re.compile(r"(?:一共|总共|合计|共计|共)(?:有|是|为)?\s?:?\s?(?=[0-9负]|" + _NUMERAL + ")")
_PERCENT = re.compile(rf"百分之([0-9]+(?:\.[0-9]+)?|{_NUMERAL})")
_FRACTION = re.compile(rf"(?:({_PART})又)?(?:({_PART})分之({_PART})|([0-9]+)/([0-9]+))")
# 五千克 is refused: 五 千克 and 五千 克 are both read so.
_WHOLE = re.compile(rf"((?>{_NUMERAL}))(?!(?<=千)[克米升])({_COUNTED})?")

UNIT_SIGNS = str.maketrans({sign: " units " for sign in "℃℉㎜㎝㎞㎎㎏㎡㎥㎢㎠㎤㏄"})


def in_ascii(text: str) -> str:
    """A number in Chinese with ASCII digits; any other text as it is.

    Example:
        >>> [in_ascii(text) for text in ("十九个", "百分之19", "三又二分之一", "一样")]
        ['19个', '19%', '3 1/2', '一样']
    """
    rest = _TOTAL.sub("", text, count=1) if _TOTAL.match(text) else text
    sign, rest = ("-", rest[1:]) if rest.startswith("负") else ("", rest)
    for pattern, write in ((_PERCENT, _percent), (_FRACTION, _fraction), (_WHOLE, _whole)):
        found = pattern.fullmatch(rest)
        if found:
            written = write(*found.groups())
            return text if written is None else sign + written
    return sign + rest


def is_unit(word: str) -> bool:
    """Whether nothing in the word changes the number before it; ASCII words always pass.

    Example:
        >>> is_unit("千米"), is_unit("千元"), is_unit("个三角形"), is_unit("元五角")
        (True, False, True, False)
    """
    return NOT_A_UNIT.search(_FIGURES_IN_WORDS.sub("", word)) is None


def _percent(number: str) -> str | None:
    value = number if number[0].isascii() else _digits(number)
    return value and f"{value}%"


def _fraction(whole, bottom, top, plain_top, plain_bottom) -> str | None:
    parts = [_digits(part) for part in (top or plain_top, bottom or plain_bottom)]
    before = _digits(whole) if whole else ""
    return None if None in (*parts, before) else f"{before} {'/'.join(parts)}".strip()


def _whole(number: str, counted: str | None) -> str | None:
    value = _digits(number)
    return value and value + (counted or "")


def _digits(number: str) -> str | None:
    """ASCII digits as they are, a numeral up to 9,999 in them; None for another (三四 is a hedge).

    >>> _digits("一千零五"), _digits("两百"), _digits("三四")
    ('1005', '200', None)
    """
    if number.isascii():
        return number
    value = _numerals().get(re.sub("^两$|两(?=[百千])", "二", number.replace("〇", "零")))
    return None if value is None else str(value)


@functools.cache
def _numerals() -> dict[str, int]:
    """Every whole number from 0 to 9,999 by its written form; 十九 is 一十九, too."""
    forms = {_written(value): value for value in range(10_000)}
    return forms | {_written(value)[1:]: value for value in range(10, 20)}


def _written(value: int) -> str:
    text = ""
    for unit, sign in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, value = divmod(value, unit)
        if digit:
            text += _DIGITS[digit] + sign
        elif text and value and not text.endswith("零"):
            text += "零"
    return text or "零"
