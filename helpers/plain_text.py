r"""A text as a plain one: what can be typeset or encoded in several ways is written in one.

`plain` takes full-width characters, minus signs, spaces and signs without width; `tex_as_text`
the ways in which TeX writes a number and its unit. Neither evaluates anything, and both take time
linear in the length of the text.
"""

import re

# Signs that nobody sees: they part no digits and no letters.
INVISIBLE = (
    "\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff"
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
_SPACES = "\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"

# Full-width ASCII (as Chinese and Japanese texts have it), the minus signs, vulgar fractions.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_PLAIN |= {ord(sign): "-" for sign in "−–‐‑﹣"}
# A Chinese full stop ends a sentence and is no decimal point: 共18。3天后.
_PLAIN |= {ord("。"): ". ", ord("、"): ",", ord("￥"): "¥", ord("⁄"): "/"}
_PLAIN |= {ord(sign): "'" for sign in "’′"}
_PLAIN |= {ord(sign): f" {value} " for sign, value in
           {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅖": "2/5",
            "⅗": "3/5", "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅐": "1/7", "⅛": "1/8", "⅜": "3/8",
            "⅝": "5/8", "⅞": "7/8", "⅑": "1/9", "⅒": "1/10"}.items()}
_PLAIN |= dict.fromkeys(map(ord, _SPACES), " ") | dict.fromkeys(map(ord, INVISIBLE))

_TEX = re.compile(r"[\\{~]")
_GROUP = re.compile(r"(?<=[0-9])\\[,;: ](?=[0-9]{3}(?![0-9]))")
_DEGREES = re.compile(r"\^\{?\\circ(?![A-Za-z])\}?|\^\{?°\}?|\\(?:text)?degree(?![A-Za-z])")
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:bf|it|rm|sf|tt|normal)|boldsymbol|bm|mbox|hbox"
    r"|emph|underline|operatorname|fbox|boxed|num)\s?\{([^{}]{0,400})\}"
    r"|\{\\(?:bf|rm|it|sf|tt|bfseries)\s([^{}]{0,400})\}"
)
_ARGUMENT = r"(?:\{\s?([+-]?)\s?([0-9,]{1,60})\s?\}|\s?([0-9]))"
_FRACTION = re.compile(rf"\\(?:[dtcs]|nice)?frac{_ARGUMENT}{_ARGUMENT}")
_SIGNS = {
    "times": "×", "cdot": "·", "div": "÷", "pm": "±", "mp": "±", "approx": "≈", "le": "≤",
    "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "pi": "π", "to": "→",
    "rightarrow": "→", "Rightarrow": "→", "implies": "→", "sim": "~", "ldots": "…", "dots": "…",
    "cdots": "…", "colon": ":", "pounds": "£", "left": "", "right": "", "displaystyle": "",
    "textstyle": "",
    "quad": " ", "qquad": " ", "enspace": " ", "thinspace": " ", "space": " ",
}
_COMMAND = re.compile(rf"\\(?:({'|'.join(_SIGNS)})(?![A-Za-z])|([^A-Za-z]))")
_EXPONENT = re.compile(r"([\^_])\{\s?([+-]?[0-9A-Za-z]{1,20})\s?\}")
# 18! before the end of a line, a capital or another script; 5! = 120 and 5!/3! are factorials.
_LAST_SIGN = re.compile(
    r"(?<=[0-9])!{1,3}(?=[*_\"']{0,3}[ \t]{0,3}(?:$|[A-Z]|[^\x00-\x7f×÷·≈≠≤≥−√∙⋅±]))", re.MULTILINE
)
_FACTORIAL = re.compile(
    r"[0-9)}]!{1,2}(?:[ \t]?[=/×÷·+^)}$\\-]|[ \t]?\*[ ]?[0-9(])|(?<![A-Za-z])[nkrm]!|factorial"
    r"|permut|阶乘|排列",
    re.IGNORECASE,
)
# 76 sixth graders, 5 half-gallons: the word belongs to the noun. 2 third is left: it may be 2/3.
_ORDINAL_NOUN = re.compile(
    r"(?<=[0-9][0-9])[ ](?:third|fourth|fifth|sixth|seventh|eighth|ninth)"
    r"(?=[ -](?!(?:of|and|or|is|in|to|plus|minus|times|the)\b)[a-z])|(?<=[0-9])[ ]half(?=-[a-z])",
    re.IGNORECASE,
)
_TIE = re.compile(r"(?<=[0-9A-Za-z}%:])~(?! ?[0-9])|(?<=[A-Za-z:])~")


def plain(text: str) -> str:
    """Full-width characters, Unicode minus signs, spaces and vulgar fractions as ASCII.

    Signs without width (U+200B, U+FEFF and their kin) are taken out.
    """
    return text if text.isascii() else text.translate(_PLAIN)


def sentence_ends(text: str) -> str:
    """The text without the exclamation marks that end a sentence behind a number.

    Where the text writes of factorials, all of them stay.

    >>> sentence_ends("She has 18! Great."), sentence_ends("5! = 120, so 5!")
    ('She has 18. Great.', '5! = 120, so 5!')
    """
    if "!" not in text or _FACTORIAL.search(text):
        return text
    return _LAST_SIGN.sub(".", text)


def counted_nouns(text: str) -> str:
    """The text without ordinals and halves that belong to a counted noun, and make no fraction.

    >>> counted_nouns("76 sixth graders, 5 half-gallons, 2 thirds")
    '76 graders, 5-gallons, 2 thirds'
    """
    return _ORDINAL_NOUN.sub("", text)


def tex_as_text(text: str) -> str:
    r"""The text with TeX's numbers, spaces, fonts, units and signs as plain text has them.

    Any other command stays as it is, and so no part of it is taken for a number by itself.

    Example:
        >>> tex_as_text(r"\mathbf{9{,}500}~\text{cm}, \frac12, -\frac{3}{4}, 18^\circ F")
        '9,500 cm, 1/2, -3/4, 18 degrees  F'
    """
    if _TEX.search(text) is None:
        return text
    text = text.replace("{,}", ",").replace("{.}", ".").replace("{:}", ":")
    text = re.sub(r"\\!\s{0,3}", "", _GROUP.sub(",", text))
    text = _DEGREES.sub(" degrees ", text).replace("\\ ", " ")
    for _ in range(3):  # a box around bold around a fraction
        text = _WRAPPED.sub(_spaced_content, _FRACTION.sub(_slash, text))
    text = _EXPONENT.sub(r"\1\2", _TIE.sub(" ", _COMMAND.sub(_sign, text)))
    return re.sub(r"(?<=[A-Za-z]) {1,3}(?=\^)", "", text)


def _spaced(match: re.Match, content: str) -> str:
    """Content that took a command's place: no digit and no letter beside it grows onto it."""
    text, start, end = match.string, match.start(), match.end()
    before, after = text[max(start - 1, 0) : start], text[end : end + 1]
    lead = " " if before.isalnum() or before == "}" else ""
    return f"{lead}{content}{' ' if after.isalnum() or after == chr(92) else ''}"


def _spaced_content(match: re.Match) -> str:
    return _spaced(match, match[1] if match[1] is not None else match[2])


def _slash(match: re.Match) -> str:
    top_sign, top, top_digit, bottom_sign, bottom, bottom_digit = match.groups()
    sign = "-" if (top_sign == "-") != (bottom_sign == "-") else ""
    return _spaced(match, f"{sign}{top or top_digit}/{bottom or bottom_digit}")


def _sign(match: re.Match) -> str:
    if match[1] is not None:
        return _SIGNS[match[1]]
    return match[2] if match[2] in "$%#&_{}" else " "
