"""Named mistakes of lesson 01, and correct solutions by other algorithms."""

import re
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np

from helpers.rewards import extract_answer, is_equivalent, normalize_answer
from workbook.mistakes import mistake, probe, switches, variant

# ---------------------------------------------------------------- extract_answer

NUMBER = r"-?[$]?\d+(?:,\d{3})*(?:\.\d+)?"
FORMS = (
    r"<answer>((?:(?!<answer>).)*?)</answer>",
    r"\\boxed\{([^{}]*)\}",
    r"####[ \t]*([^\n]+)",
    rf"answer is:?\s*({NUMBER})",
)


@switches(
    "extract_answer",
    first=("takes the first statement instead of the last",
           "re.search stops at the first match; re.findall(...)[-1] is the last one."),
    greedy=("reads from the first <answer> to the last </answer>",
            "`.*` takes as much as it can; `.*?` stops at the first closing tag."),
    rest=("reads from #### to the end of the text, not of the line",
          "With re.DOTALL a dot also matches a line break; `[^\\n]+` stays on its line."),
    empty=("gives '' where nothing is stated", "Return None where no form is found."),
    digits=("reads nothing but digits between the tags",
            "An answer may be '7 eggs', '3/4' or a name: take any text between the tags."),
    one_line=("misses an answer that has lines of its own",
              "Without re.DOTALL a dot matches everything but a line break."),
    guess=("takes the last number where nothing is stated",
           "An intermediate result is no answer: return None where no form is found."),
    box_first=("takes a box before a tag", "Try the tag first, then the box."),
)
def search_forms(text, *, first=False, greedy=False, rest=False, empty=False, digits=False,
                 one_line=False, guess=False, box_first=False):
    tag, box, hashes, sentence = FORMS
    tag = r"<answer>(.*)</answer>" if greedy else tag
    tag = r"<answer>\s*(-?[\d.,]+)\s*</answer>" if digits else tag
    hashes = r"####\s*(.+)" if rest else hashes
    forms = [box, tag, hashes, sentence] if box_first else [tag, box, hashes, sentence]
    for form in forms:
        found = re.findall(form, text, 0 if one_line and form is tag else re.DOTALL)
        if found:
            return found[0 if first else -1].strip()
    numbers = re.findall(NUMBER, text) if guess else []
    return numbers[-1] if numbers else ("" if empty else None)


@mistake("extract_answer", "finds answer tags only",
         hint="Without a tag, go on: a box, then a line of ####, then 'answer is'.")
def tags_only(text):
    found = re.findall(FORMS[0], text, re.DOTALL)
    return found[-1].strip() if found else None


@mistake("extract_answer", "keeps the full stop behind 'the answer is 18.'",
         hint=r"A full stop belongs to a number only before digits: (?:\.\d+)? instead of [\d.]+.")
def full_stop(text):
    for form in (*FORMS[:3], r"answer is:?\s*(-?[$]?[\d.,]+)"):
        found = re.findall(form, text, re.DOTALL)
        if found:
            return found[-1].strip()
    return None


@variant("extract_answer")
def split_at_marks(text):
    closed = [part.split("</answer>")[0] for part in text.split("<answer>")[1:]
              if "</answer>" in part]
    boxes = [part.split("}")[0] for part in text.split("\\boxed{")[1:] if "}" in part]
    lines = [line.split("####")[-1] for line in text.split("\n") if "####" in line]
    for found in (closed, boxes, lines):
        if found:
            return found[-1].strip()
    for part in reversed(text.split("answer is")[1:]):
        words = part.lstrip(": \n\t").split()
        word = words[0].rstrip(".,;!") if words else ""
        if re.fullmatch(NUMBER, word):
            return word
    return None


@variant("extract_answer")
def scan_from_the_end(text):
    end = len(text)
    while (close := text.rfind("</answer>", 0, end)) >= 0:
        start = text.rfind("<answer>", 0, close)
        if start >= 0:
            return text[start + 8 : text.index("</answer>", start)].strip()
        end = close
    found = list(re.finditer(r"\\boxed\{(?P<x>[^{}]*)\}", text))
    found = found or list(re.finditer(r"####(?P<x>.*)", text))
    found = found or list(re.finditer(rf"answer is:?\s*(?P<x>{NUMBER})", text))
    return found[-1]["x"].strip() if found else None


@probe("extract_answer")
def odd_texts(fn, rng):
    a, b, c = rng.sample(range(2, 999), 3)
    for text in (
        f"<answer>{a}</answer> {b} <answer>{c} eggs</answer>",
        f"{a} then #### {b}\nand {c}",
        f"\\boxed{{{a}}} <answer>{b}</answer>",
        f"<answer>\n{a}\n</answer> the answer is {b}.",
        f"{a} + {b} = {c}",
        f"answer is {a}.5. It costs {b}",
        "no number at all",
        f"<answer>{a} or {b}</answer>",
        f"The answer is {a}. #### {b}",
    ):
        fn(text)


# ---------------------------------------------------------------- is_equivalent

WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
SIZE = rf"({WHOLE}\s*/\s*{WHOLE}|{WHOLE}(?:\.\d*)?|\.\d+)"
NO_UNIT = set("is not no or and x k hundred thousand million billion dozen".split())


def _read(text, *, anywhere, long, any_words, unsigned, no_percent, zero):
    """(value, has a percent sign) of a text, or None."""
    if len(text) > 200 and not long:
        return None
    text = text.strip().removeprefix("\\boxed{").removesuffix("}")
    words = r".*" if any_words else r"(?:\s*[A-Za-z]+){0,3}"
    pattern = rf"([-+]?)\s*[$€£]?\s*{SIZE}\s*(%?)({words})\s*\.?"
    found = (re.search if anywhere else re.fullmatch)(pattern, text, re.DOTALL)
    if found is None or (not any_words and NO_UNIT & set(found[4].lower().split())):
        return None
    if not zero and re.search(r"/\s*0+$", found[2]):
        return None
    size = Fraction(re.sub(r"[,\s]", "", found[2]).rstrip("."))
    size = -size if found[1] == "-" and not unsigned else size
    percent = bool(found[3]) and not no_percent
    return size / (100 if percent else 1), percent


@switches(
    "is_equivalent",
    floats=("compares floats with a tolerance",
            "math.isclose takes 18.0000001 for 18; compare Fractions with ==."),
    anywhere=("takes the first number that it finds in a text",
              "re.search looks anywhere; re.fullmatch wants the whole text to be one number."),
    any_words=("takes any words behind the number for a unit",
               "'18 < x' and '18 or so' are not 18: allow at most three words of letters."),
    unsigned=("loses the sign", "-3/4 is not 3/4: keep the sign of the match."),
    long=("parses texts of any length",
          "Refuse a text of more than 200 characters before anything is parsed."),
    no_percent=("drops the percent sign", "18 % is 0.18: divide by 100 where the sign stands."),
    both_percent=("lets a bare number be per cent on either side",
                  "Only a gold answer with a percent sign allows a bare 18 for 18 %."),
    zero=("divides by zero", "A fraction with the denominator 0 is no number: answer False."),
)
def read_and_compare(prediction, truth, *, floats=False, anywhere=False, any_words=False,
                     unsigned=False, long=False, no_percent=False, both_percent=False,
                     zero=False):
    how = {"anywhere": anywhere, "long": long, "any_words": any_words, "unsigned": unsigned,
           "no_percent": no_percent, "zero": zero}
    given, wanted = _read(prediction, **how), _read(truth, **how)
    if given is None or wanted is None:
        return False
    pairs = [(given[0], wanted[0])]
    if wanted[1] and not given[1]:
        pairs.append((given[0], 100 * wanted[0]))
    if both_percent and given[1] and not wanted[1]:
        pairs.append((100 * given[0], wanted[0]))
    return any(abs(float(a) - float(b)) < 1e-6 if floats else a == b for a, b in pairs)


@mistake("is_equivalent", "compares texts, not values",
         hint="'1,000' and '1000' are one number: make a Fraction of each text first.")
def same_text(prediction, truth):
    return prediction.strip() == truth.strip()


@mistake("is_equivalent", "asks whether the gold stands somewhere in the prediction",
         hint="'180' holds '18': compare the numbers, not the characters.")
def gold_inside(prediction, truth):
    return truth.replace(",", "").strip() in prediction.replace(",", "")


@mistake("is_equivalent", "knows only what float() reads",
         hint="Take off commas, currency signs and units, and read 3/4 as a fraction.")
def float_or_nothing(prediction, truth):
    try:
        return float(prediction) == float(truth)
    except ValueError:
        return False


@variant("is_equivalent")
def tokens_and_integers(prediction, truth):
    """Reads token by token and compares by cross-multiplication, without Fraction."""

    def read(text):
        if len(text) > 200:
            return None
        if text.strip().startswith("\\boxed{"):
            text = text.strip()[7:-1]
        tokens = re.findall(r"[A-Za-z]+|[\d,]*\.?\d+|\d[\d,]*\.?|\S", text)
        tokens = tokens[:-1] if tokens and tokens[-1] == "." else tokens
        sign = -1 if tokens[:1] == ["-"] else 1
        tokens = tokens[1:] if tokens[:1] in (["-"], ["+"]) else tokens
        tokens = tokens[1:] if tokens and tokens[0] in "$€£" else tokens
        top, tokens = _integer_ratio(tokens[0] if tokens else ""), tokens[1:]
        bottom = (1, 1)
        if tokens[:1] == ["/"]:
            bottom, tokens = _integer_ratio(tokens[1] if tokens[1:] else ""), tokens[2:]
        if top is None or bottom is None or bottom[0] == 0:
            return None
        percent, tokens = tokens[:1] == ["%"], tokens[1:] if tokens[:1] == ["%"] else tokens
        words = all(token.isalpha() and token.lower() not in NO_UNIT for token in tokens)
        if len(tokens) > 3 or not words:
            return None
        return sign * top[0] * bottom[1], top[1] * bottom[0] * (100 if percent else 1), percent

    given, wanted = read(prediction), read(truth)
    if given is None or wanted is None:
        return False
    left, right = given[0] * wanted[1], wanted[0] * given[1]
    return left == right or (wanted[2] and not given[2] and left == 100 * right)


def _integer_ratio(token):
    """"1,234.50" as (123450, 100); None where the commas are misplaced."""
    whole, _, decimals = token.rstrip(".").partition(".")
    groups = whole.split(",")
    right = len(groups) == 1 or (0 < len(groups[0]) <= 3 and all(len(g) == 3 for g in groups[1:]))
    digits = "".join(groups) + decimals
    return (int(digits), 10 ** len(decimals)) if right and digits.isdigit() else None


@variant("is_equivalent")
def strip_and_count(prediction, truth):
    """Takes signs and units off from both ends, then reads Decimals."""

    def read(text):
        if len(text) > 200:
            return None
        text = text.strip().removeprefix("\\boxed{").removesuffix("}").strip().removesuffix(".")
        words = []
        while text and text[-1].isalpha():
            head = text.rstrip("".join(set(filter(str.isalpha, text))))
            words.append(text[len(head) :].lower())
            text = head.rstrip()
        if len(words) > 3 or NO_UNIT & set(words):
            return None
        percent, text = text.endswith("%"), text.removesuffix("%").rstrip()
        negative = text.startswith("-")
        text = text[text[:1] in ("-", "+") :].strip()
        text = text[text[:1] in ("$", "€", "£") :].strip()
        parts = [part.strip() for part in text.split("/")]
        grouped = [re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", part) for part in parts]
        if not 1 <= len(parts) <= 2 or not all(set(p) <= set("0123456789.") for p in grouped):
            return None
        if any(p.count(".") > 1 or not p.strip(".") for p in grouped):
            return None
        values = [Decimal(part) for part in grouped]
        if len(values) == 2 and values[1] == 0:
            return None
        value = values[0].as_integer_ratio(), (values + [Decimal(1)])[1].as_integer_ratio()
        top, bottom = value[0][0] * value[1][1], value[0][1] * value[1][0]
        return (-top if negative else top), bottom * (100 if percent else 1), percent

    given, wanted = read(prediction), read(truth)
    if given is None or wanted is None:
        return False
    if wanted[2] and not given[2] and given[0] * wanted[1] == 100 * wanted[0] * given[1]:
        return True
    return given[0] * wanted[1] == wanted[0] * given[1]


@probe("is_equivalent")
def odd_pairs(fn, rng):
    n = rng.randint(11, 99)
    for pair in (
        (f"-{n}", f"-{n}"), (f"{n} and then some", str(n)), (f"about {n}", str(n)),
        (f"{n}.0000001", str(n)), (f"{n}%", str(n)), (str(n), f"{n}%"), (f"{n}%", f"0.{n}"),
        (f"-{n}", str(n)), (f"1{n}", str(n)), (f"{n} big red eggs", str(n)),
        ("2/4", "1/2"), (f"{n}/0", str(n)), ("0" * 300 + str(n), str(n)), (f"{n}!", str(n)),
    ):
        fn(*pair)


# ---------------------------------------------------------------- r1_zero_reward


@switches(
    "r1_zero_reward",
    uncounted=("does not count the tags",
               "`.*` runs over further tags: response.count(tag) == 1 for each of the three."),
    exact=("wants exactly one blank between the tags", "`\\s*` is any white space, or none."),
    one_line=("fails where the response has several lines",
              "Without re.DOTALL a dot matches everything but a line break."),
    ungated=("pays a right answer outside the format",
             "answer_reward is 1 only where format_reward is, too."),
    tail=("lets text stand behind the answer",
          "Nothing but white space may follow </answer>: use re.fullmatch, or end with \\s*$."),
    texts=("compares the answer by its text",
           "'1,000' is '1000': let is_equivalent compare the content of the tag."),
    half=("pays half of the reward for the format alone",
          "reward is the product of the two parts, not their mean."),
)
def match_response(response, ground_truth, *, uncounted=False, exact=False, one_line=False,
                   ungated=False, tail=False, texts=False, half=False):
    gap, end = " " if exact else r"\s*", ".*" if tail else r"\s*"
    found = re.fullmatch(rf".*</think>{gap}<answer>(.*)</answer>{end}", response,
                         0 if one_line else re.DOTALL)
    tags = ("</think>", "<answer>", "</answer>")
    once = uncounted or all(response.count(tag) == 1 for tag in tags)
    kept = found is not None and once
    answer = found[1].strip() if kept else ((extract_answer(response) or "") if ungated else "")
    right = answer == ground_truth if texts else is_equivalent(answer, ground_truth)
    parts = {"format_reward": float(kept), "answer_reward": float((kept or ungated) and right)}
    product = parts["format_reward"] * parts["answer_reward"]
    mean = (parts["format_reward"] + parts["answer_reward"]) / 2
    return parts | {"reward": mean if half else product}


@mistake("r1_zero_reward", "does not ask for </think>",
         hint="The format has two parts: the reasoning ends with </think>, then comes the answer.")
def no_think(response, ground_truth):
    found = re.fullmatch(r".*<answer>(.*)</answer>\s*", response, re.DOTALL)
    kept = found is not None and response.count("<answer>") == response.count("</answer>") == 1
    right = float(kept and is_equivalent(found[1].strip(), ground_truth))
    return {"format_reward": float(kept), "answer_reward": right, "reward": right}


@variant("r1_zero_reward")
def partition_tags(response, ground_truth):
    reasoning, think, rest = response.partition("</think>")
    gap, opened, rest = rest.partition("<answer>")
    answer, closed, tail = rest.partition("</answer>")
    bare = not any(tag in part for tag in ("</think>", "<answer>", "</answer>")
                   for part in (reasoning, gap, answer, tail))
    kept = bool(think and opened and closed and bare and not gap.strip() and not tail.strip())
    right = kept and is_equivalent(answer, ground_truth)
    return {"format_reward": float(kept), "answer_reward": float(right), "reward": float(right)}


@variant("r1_zero_reward")
def split_into_pieces(response, ground_truth):
    pieces = re.split(r"(</think>|<answer>|</answer>)", response)
    kept = pieces[1::2] == ["</think>", "<answer>", "</answer>"]
    kept = kept and pieces[2].isspace() | (pieces[2] == "") and not pieces[-1].strip()
    answer = is_equivalent(pieces[4].strip(), ground_truth) if kept else False
    return dict(zip(("format_reward", "answer_reward", "reward"),
                    map(float, (kept, answer, kept and answer)), strict=True))


@probe("r1_zero_reward")
def odd_responses(fn, rng):
    n = rng.randint(2, 500)
    for text in (
        f" x </think> <answer>{n}</answer>", f" x </think>\n<answer>{n}</answer> ",
        f"a\nb </think> <answer>{n}</answer>", f" x </think> <answer>{n}</answer> done",
        f" x </think> <answer>1</answer> <answer>{n}</answer>", f"<answer>{n}</answer>",
        f" x </think> <answer>{n}.0</answer>", f" x </think> <answer>{n + 1}</answer>",
        f" the answer is {n}", f"</think> <answer>{n}</answer></think> <answer>{n}</answer>",
    ):
        fn(text, str(n))


# ---------------------------------------------------------------- qa_scores


@switches(
    "qa_scores",
    sets=("counts each shared word once, as sets do",
          "'red red' and 'red' share one word of two: Counter(a) & Counter(b)."),
    first_gold=("looks at the first gold only", "Take the best score over all golds."),
    any_order=("asks SubEM for the words of a gold in any order",
               "SubEM asks whether the gold's characters stand in the prediction in a row."),
    backwards=("asks whether the prediction stands inside a gold",
               "The other way round: gold in prediction."),
    empty=("counts empty golds", "'' stands in every text: drop golds empty after normalising."),
    raw=("does not normalise the texts", "Call normalize_answer on the prediction and each gold."),
    recall=("gives recall for F1", "F1 = 2 P R / (P + R): needless words cost precision."),
)
def count_words(prediction, golds, *, sets=False, first_gold=False, any_order=False,
                backwards=False, empty=False, raw=False, recall=False):
    normal = str.strip if raw else normalize_answer
    said, wanted = normal(prediction), [normal(gold) for gold in golds]
    wanted = [gold for gold in wanted if gold or empty][: 1 if first_gold else None]
    bag = (lambda text: Counter(set(text.split()))) if sets else (lambda t: Counter(t.split()))

    def f1(gold):
        shared, p, g = (bag(said) & bag(gold)).total(), bag(said).total(), bag(gold).total()
        return shared / max(g, 1) if recall else 2 * shared / max(p + g, 1)

    def inside(gold):
        if any_order:
            return set(gold.split()) <= set(said.split())
        return said in gold if backwards else gold in said

    return {"sub_em": float(any(map(inside, wanted))), "f1": max(map(f1, wanted), default=0.0)}


@mistake("qa_scores", "asks for equality where SubEM asks for a substring",
         hint="'Ana studied in Nelgar' holds 'Nelgar': gold in prediction, not ==.")
def exact_match(prediction, golds):
    sub_em = normalize_answer(prediction) in [g for g in map(normalize_answer, golds) if g]
    return count_words(prediction, golds) | {"sub_em": float(sub_em)}


@mistake("qa_scores", "takes the mean over the golds",
         hint="Golds are aliases of one answer: the best of them counts, not the mean.")
def mean_over_golds(prediction, golds):
    each = [count_words(prediction, [gold]) for gold in golds]
    return {key: sum(one[key] for one in each) / len(each) for key in ("sub_em", "f1")}


@variant("qa_scores")
def cross_off_words(prediction, golds):
    said = normalize_answer(prediction)
    best = {"sub_em": 0.0, "f1": 0.0}
    for gold in map(normalize_answer, golds):
        if not gold:
            continue
        left, shared = said.split(), 0
        for word in gold.split():
            if word in left:
                left.remove(word)
                shared += 1
        if shared:
            p, r = shared / len(said.split()), shared / len(gold.split())
            best["f1"] = max(best["f1"], 2 * p * r / (p + r))
        best["sub_em"] = max(best["sub_em"], 1.0 if said.count(gold) else 0.0)
    return best


@variant("qa_scores")
def merge_sorted_words(prediction, golds):
    said = normalize_answer(prediction)
    wanted = sorted(filter(None, map(normalize_answer, golds)))
    scores = [0.0]
    for gold in wanted:
        a, b = sorted(said.split()), sorted(gold.split())
        i = j = shared = 0
        while i < len(a) and j < len(b):
            shared += a[i] == b[j]
            i, j = i + (a[i] <= b[j]), j + (b[j] <= a[i])
        scores.append(shared / (0.5 * (len(a) + len(b))))
    found = re.search("|".join(map(re.escape, wanted)), said) if wanted else None
    return {"sub_em": 1.0 if found else 0.0, "f1": max(scores)}


@probe("qa_scores")
def odd_answers(fn, rng):
    a, b, c = rng.sample(["Mirow", "Halden", "Luben", "Arlo", "Nile", "Quist"], 3)
    for prediction, golds in (
        (f"{a} {b}", [f"{b} {a}"]), (f"{a} {a} {b}", [a]), (a, [b, a]), (f"The {a}.", [a]),
        (f"{a} {b} {c}", [f"{b} {c}", a]), (a, [f"{a} {b}"]), (a, ["the", a]), ("", [a]),
        (f"{a} {c}", [f"{a} {b} {c} {a}", b]), (f"{a}ton", [a]),
    ):
        fn(prediction, golds)


# ---------------------------------------------------------------- summarise_rates


@switches(
    "summarise_rates",
    ungated=("takes the accuracy from answer_reward",
             'The strict accuracy is the mean of row["metrics"]["reward"].'),
    normal=("uses the normal approximation for the interval",
            "p ± z sqrt(p (1 - p) / n) has no width at 0 hits; Wilson's interval does."),
    ninety=("uses z = 1.645, a 90 % interval", "95 % on two sides is z = 1.96."),
    formatted=("divides the accuracy by the formatted rows",
               "All three rates are shares of all rows."),
    centre=("gives Wilson's centre for the rate",
            "The rate is hits / rows; only the interval is moved towards one half."),
    per_cent=("gives percentages", "A rate is a share between 0 and 1."),
)
def wilson(rows, *, ungated=False, normal=False, ninety=False, formatted=False, centre=False,
           per_cent=False):
    z = 1.644854 if ninety else 1.959964
    parts = [row["metrics"] for row in rows]
    columns = {"format_rate": [part["format_reward"] for part in parts],
               "accuracy": [part["answer_reward" if ungated else "reward"] for part in parts],
               "lenient_accuracy": [row["lenient"] for row in rows]}
    summary = {}
    for name, column in columns.items():
        n = len(rows)
        if formatted and name == "accuracy":
            n = max(1, int(sum(columns["format_rate"])))
        p = sum(column) / n
        middle = p if normal else (p + z * z / (2 * n)) / (1 + z * z / n)
        spread = abs(p * (1 - p)) / n
        half = z * (spread if normal else spread + z * z / (4 * n * n)) ** 0.5
        half = half if normal else half / (1 + z * z / n)
        entry = (middle if centre else p, max(0.0, middle - half), min(1.0, middle + half))
        summary[name] = tuple(x * (100 if per_cent else 1) for x in entry)
    return summary


@mistake("summarise_rates", "gives the half width instead of the two bounds",
         hint="Each entry is (rate, low, high): the bounds themselves.")
def half_widths(rows):
    return {name: (rate, (high - low) / 2, (high - low) / 2)
            for name, (rate, low, high) in wilson(rows).items()}


@variant("summarise_rates")
def quadratic_roots(rows):
    """The bounds are the roots of (p - x)^2 = z^2 x (1 - x) / n."""
    table = np.array([[row["metrics"]["format_reward"], row["metrics"]["reward"], row["lenient"]]
                      for row in rows], dtype=float)
    n, z2 = len(table), 1.959964**2
    result = {}
    for name, p in zip(("format_rate", "accuracy", "lenient_accuracy"), table.mean(0), strict=True):
        low, high = sorted(np.roots([1 + z2 / n, -(2 * p + z2 / n), p * p]).real)
        result[name] = (float(p), max(0.0, float(low)), min(1.0, float(high)))
    return result


@variant("summarise_rates")
def invert_the_test(rows):
    """The bounds by bisection: the rates that a score test at 5 % does not reject."""

    def bound(p, outside):
        inside = p
        for _ in range(60):
            x = (inside + outside) / 2
            rejected = abs(p - x) > 1.959964 * (x * (1 - x) / len(rows)) ** 0.5
            inside, outside = (inside, x) if rejected else (x, outside)
        return inside

    rates = {"format_rate": sum(row["metrics"]["format_reward"] for row in rows) / len(rows),
             "accuracy": sum(row["metrics"]["reward"] for row in rows) / len(rows),
             "lenient_accuracy": sum(row["lenient"] for row in rows) / len(rows)}
    return {name: (p, bound(p, 0.0), bound(p, 1.0)) for name, p in rates.items()}


@probe("summarise_rates")
def other_rows(fn, rng):
    count = rng.randint(5, 12)
    fn([{"metrics": {"format_reward": float(k % 2 == 0), "answer_reward": float(k % 3 == 0),
                     "reward": float(k % 6 == 0)}, "lenient": k % 4 == 0} for k in range(count)])
