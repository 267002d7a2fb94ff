"""Graders against what real outputs hold, against properties, and against hostile text."""

import re
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.chinese_numbers import _written
from helpers.rewards import (
    FAILURE_CATEGORIES,
    extract_answer,
    failure_category,
    is_equivalent,
    last_number,
    parse_number,
    qa_failure_category,
    qa_reward,
    r1_zero_reward,
    sub_em,
    token_f1,
)

RIGHT = {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}
WRONG = {"format_reward": 1.0, "answer_reward": 0.0, "reward": 0.0}
UNFORMATTED = {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}


@pytest.mark.parametrize("prediction, truth", [
    ("1,000", "1000"), ("1000", "1,000"), ("1,234,567.50", "1234567.5"),
    ("$18.00", "18"), ("-$18", "-18"), ("$-18", "-18"), ("\\$18", "18"), ("US$18", "18"),
    ("18.", "18"), ("18.0", "18"), ("018", "18"), (".5", "0.5"), ("0.5", "1/2"),
    ("18 eggs", "18"), ("18 eggs per day.", "18"), ("18kg", "18"), ("18 km/h", "18"),
    ("18 m^2", "18"), ("18 °C", "18"), ("9 a.m.", "9"), ("18 one-dollar bills", "18"),
    ("3/4", "0.75"), ("6/8", "3/4"), ("1 1/2", "1.5"), ("1½", "1.5"), ("3/4 cup", "3/4"),
    ("-3/4", "-0.75"), ("\\frac{3}{4}", "3/4"), ("-\\dfrac{3}{4}", "-3/4"),
    ("18%", "0.18"), ("18 %", "0.18"), ("18 percent", "0.18"), ("0.18", "18%"),
    ("18", "18%"), ("18%", "18 %"), ("18\\%", "0.18"),
    ("-5", "−5"), ("\uff0d5", "-5"), ("+5", "5"), ("- 5", "-5"), ("-0", "0"),
    ("\\boxed{18}", "18"), ("$18$", "18"), ("$\\boxed{18}$", "18"), ("\\(18\\)", "18"),
    ("**18**", "18"), ("**18**.", "18"), ("\\boxed{18}.", "18"),
    ("1{,}000", "1000"), ("1\\,000", "1000"), ("1,\\!000", "1000"),
     ("18\\text{ dollars}", "18"), ("x = 18", "18"),
    ("\uff11\uff18", "18"), ("\uff11\uff0c\uff10\uff10\uff10\u3002", "1000"),
    ("18\u4e2a\u9e21\u86cb", "18"), ("  18\n", "18"), ("\u3000 18", "18"),
    ("19℃", "19"), ("19㎡", "19"), ("19千克", "19"), ("19百分点", "19"), ("8个三角形", "8"),
    ("一共19个", "19"), ("总共有１９个。", "19"), ("百分之19", "0.19"), ("百分之十九", "19%"),
    ("百分之12.5", "1/8"), ("二分之一", "1/2"), ("3分之1", "1/3"), ("3又1/2", "3.5"),
    ("三又二分之一", "3.5"), ("负5", "-5"), ("十九", "19"), ("一十九个", "19"), ("两个", "2"),
    ("两百", "200"), ("五千克重", "五千克重"), ("五千五百克", "5500"), ("五千个", "5000"),
    ("5千克", "5"), ("18 five-dollar bills", "18"), ("8 quarters", "8"),
    ("一千零五", "1005"), ("一百一十元", "110"), ("5两", "5"), ("3平方米", "3"),
    ("yes", "Yes"), ("x  +  1", "x + 1"),
])
def test_equivalent_forms(prediction, truth):
    assert is_equivalent(prediction, truth)


@pytest.mark.parametrize("prediction, truth", [
    ("19, 18", "18"), ("19, 18", "19"), ("17 < 18", "18"), ("17 < 18", "17"),
    ("The answer is not 3", "3"), ("not 3", "3"), ("3 is wrong", "3"), ("18 or 19", "18"),
    ("18 or nineteen", "18"), ("18 and a half", "18"), ("18 19", "18"), ("18-19", "18"),
    ("9*2", "18"), ("9 + 9", "18"), ("36/2/1", "18"), ("3^2", "9"),
    ("2**3", "23"), ("2**3", "8"), ("1\\;8", "18"), ("1\u00bd9", "29"), ("\\frac{1}{2}9", "1/29"),
    ("19\\,18", "1918"),
    ("3\u00b2", "3"), ("3!", "3"),
    ("18x", "18"), ("18 million", "18"), ("2 dozen", "2"), ("2 dozen", "24"), ("5k", "5"),
    ("1e1", "1"), ("1e1", "10"), ("9:30", "9"), ("1,00", "100"), ("1,0000", "1"),
    ("18%", "18"), ("0.18%", "18%"), ("1800%", "18%"), ("-18", "18"), ("$-$18", "18"),
    ("--18", "18"), ("3/0", "0"), ("3/0", "3"), ("0.33", "1/3"), ("18.5.2", "18.5"),
    ("3 halves", "3"), ("5 thirds", "5"), ("1 third", "1"), ("6 tens", "6"), ("6 twenties", "6"),
    ("9 factorial", "9"), ("12 twelve", "12"), ("18 wrong", "18"), ("18 twenty-one", "18"),
    ("18 two-thirds", "18"), ("18-one", "18"), ("18 maybe", "18"), ("18 grand", "18"),
    ("五千克", "5"), ("五千克", "5000"), ("两千米", "2000"), ("一千升", "1000"),
    ("", "18"), ("", ""), (" ", " "), ("eighteen", "18"), ("18", "eighteen"), (".", "0"),
    ("\\boxed{17}\\boxed{18}", "18"), ("\u0663", "3"), ("1" * 201, "1" * 201), ("nan", "0"),
    ("18" + " " * 10 + "a" * 200, "18"), ("inf", "18"), ("True", "1"), ("0x12", "18"),
    ("1万", "1"), ("1万", "10000"), ("1亿", "1"), ("5千", "5"), ("5千元", "5"), ("3百", "3"),
    ("2打", "2"), ("3成", "3"), ("8折", "8"), ("1兆", "1"), ("3个十", "3"), ("一共1万", "1"),
    ("约19", "19"), ("19左右", "19"), ("19多个", "19"), ("3个半", "3"), ("3元五角", "3"),
    ("19不对", "19"), ("19是错的", "19"), ("三四个", "3"), ("三四个", "34"), ("一样", "1"),
    ("三千五", "3005"), ("十几", "10"), ("二〇二四", "2024"), ("3平方", "3"), ("3的平方", "9"),
    ("一万", "10000"), ("零分之一", "0"), ("1又1/0", "1"), ("十两", "12"), ("不是19", "19"),
    ("一半", "1"), ("-三", "-3"),
])
def test_different_or_refused_forms(prediction, truth):
    assert not is_equivalent(prediction, truth)


def test_nothing_extracted_equals_nothing():
    assert not is_equivalent(extract_answer("no idea"), "18")
    assert not is_equivalent(None, "None")


@pytest.mark.parametrize("value", [0, 7, 10, 11, 20, 99, 100, 101, 119, 1000, 1001, 1010, 9999])
def test_a_number_in_chinese_characters_is_read_back(value):
    assert parse_number(_written(value)).value == value


numbers = st.fractions(max_denominator=999).map(lambda f: f.limit_denominator(999)).filter(
    lambda f: abs(f) < 10**12)


@given(numbers)
def test_a_number_equals_its_own_written_forms(value):
    text = str(value)
    assert parse_number(text).value == value
    assert is_equivalent(text, text)
    assert is_equivalent(f"  ${text} dollars.", text)
    assert not is_equivalent(str(value + Fraction(1, 1000)), text)


@given(st.integers(-10**15, 10**15))
def test_thousands_commas_change_nothing(value):
    assert is_equivalent(f"{value:,}", str(value)) and is_equivalent(str(value), f"{value:,}.00")


answers = st.one_of(numbers.map(str), st.text(alphabet="0123456789 ,./-+$%eggs", max_size=12))


@given(answers, answers)
@settings(max_examples=300)
def test_symmetric_but_for_percent(first, second):
    if "%" not in first + second:
        assert is_equivalent(first, second) == is_equivalent(second, first)


@given(answers, answers, st.sampled_from([" ", "\n", "\t ", "\u3000"]))
def test_outer_white_space_changes_nothing(first, second, space):
    assert is_equivalent(space + first + space, second) == is_equivalent(first, second)


pieces = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "####",
                          "answer is ", "18", "1,000", "/", ".", "-", "$", "%", " ", "\n", "\uff11",
                          "\u00bd", "\\frac{", "th", "\u7b54\u6848\u662f"])
texts = st.one_of(st.text(max_size=80), st.lists(pieces, max_size=25).map("".join))


@given(texts, texts)
@settings(max_examples=400)
def test_no_text_raises_and_results_are_of_their_kind(response, gold):
    number, answer = last_number(response), extract_answer(response)
    # A number alone is read; an expression around it comes whole, for the grammar to refuse.
    alone = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", number or "") and len(number) <= 200
    assert number is None or not alone or parse_number(number) is not None
    assert number is None or re.search("[0-9]", number)
    assert answer is None or answer in response.strip() or not response.isascii()
    assert isinstance(is_equivalent(response, gold), bool)
    for spacing in ("any", "exact"):
        parts = r1_zero_reward(response, gold, spacing=spacing)
        assert set(parts.values()) <= {0.0, 1.0}
        assert parts["reward"] == parts["format_reward"] * parts["answer_reward"]
    assert failure_category(response, "eos", parts, False) in FAILURE_CATEGORIES
    assert 0 <= token_f1(response, [gold]) <= 1 and sub_em(response, [gold]) in (0, 1)
    assert token_f1(response, [gold]) == pytest.approx(token_f1(gold, [response]))
    assert set(qa_reward(response, [gold])) == set(parts)


# ---------------------------------------------------------------- finding


@pytest.mark.parametrize("text, answer", [
    ("so </think> <answer> 18 eggs </answer>", "18 eggs"),
    ("<answer>17</answer> no: <answer>18</answer>", "18"),
    ("<answer><answer>18</answer></answer>", "18"),
    ("<answer>17</answer> <answer>18", "17"),
    ("<answer>18", None),
    ("</answer>18<answer>", None),
    ("\\boxed{17} then \\boxed{\\frac{3}{4}}.", "\\frac{3}{4}"),
    ("\\boxed{17} and <answer>18</answer>", "18"),
    ("\\boxed{17", None),
    ("9 - 2 = <<9-2=7>>7\n#### 7\n\nQuestion: more", "7"),
    ("####", None),
    ("The answer is 4. Thus the answer is $1,080.", "1,080"),
    ("Final answer: **-5**.", "-5"),
    ("The answer is not 3.", None),
    ("\u7b54\u6848\u662f\uff1a\uff11\uff18\u3002", "18"),
    ("答案等于19", "19"), ("答案 = 19。", "19"), ("答案是1万", "1万"), ("答案：5千米", "5"),
    ("That makes 18.", None),
    ("", None),
])
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text, number", [
    ("She pays $1,080.", "1080"), ("It costs 18.", "18"), ("It costs 18.50.", "18.50"),
    ("9 - 2 = 7", "7"), ("<<48/2=24>>24 clips", "24"), ("10-7", "7"), ("it is -7", "-7"),
    ("it is \u22127 degrees", "-7"), ("-$5", "-5"), ("3/4 of it", "3/4"), ("1 1/2 cups", "1 1/2"),
    ("a rise of 50%", "50"), ("4, then 5, then 6 eggs", "6"), ("7 eggs, on the 12th", "7"),
    ("7 for x2 and <h1>", "7"), ("7 in v1.5", "7"), ("\u5171\uff11\uff18\u4e2a", "18"),
    ("一共1万元", "1万"), ("共5千克", "5"), ("所以11+8=19成立", "19"),
    ("none", None), ("", None), ("the 1st", None),
])
def test_last_number(text, number):
    assert last_number(text) == number


def test_only_the_end_of_a_long_text_is_read():
    assert last_number("18 " + "word " * 10_000) is None
    assert last_number("word " * 10_000 + "18") == "18"


# ---------------------------------------------------------------- the strict reward


@pytest.mark.parametrize("response, any_spacing, exact_spacing", [
    ("9 + 9 </think> <answer> 18 </answer>", RIGHT, RIGHT),
    ("<think> 9 + 9 </think> <answer>$18.00</answer>\n", RIGHT, RIGHT),
    ("9 + 9\n</think>\n\n<answer>18</answer>", RIGHT, UNFORMATTED),
    ("9 + 9 </think><answer>18</answer>", RIGHT, UNFORMATTED),
    ("9 + 9 </think>  <answer>18</answer>", RIGHT, UNFORMATTED),
    ("9 + 8 </think> <answer>17</answer>", WRONG, WRONG),
    ("9 + 8 </think> <answer></answer>", WRONG, WRONG),
    ("</think> <answer>19, 18</answer>", WRONG, WRONG),
    ("9 </think> <answer>17</answer> <answer>18</answer>", UNFORMATTED, UNFORMATTED),
    ("9 </think> <answer><answer>18</answer></answer>", UNFORMATTED, UNFORMATTED),
    ("9 </think> <answer>18</answer> Done.", UNFORMATTED, UNFORMATTED),
    ("9 </think> so <answer>18</answer>", UNFORMATTED, UNFORMATTED),
    ("9 </think> </think> <answer>18</answer>", UNFORMATTED, UNFORMATTED),
    ("a <think> 9 </think> <answer>18</answer>", UNFORMATTED, UNFORMATTED),
    ("<think><think> 9 </think> <answer>18</answer>", UNFORMATTED, UNFORMATTED),
    ("<answer>18</answer> </think>", UNFORMATTED, UNFORMATTED),
    ("</answer> </think> <answer>18", UNFORMATTED, UNFORMATTED),
    ("9 + 9 <answer>18</answer>", UNFORMATTED, UNFORMATTED),
    ("9 </think> <answer>18", UNFORMATTED, UNFORMATTED),
    ("9 </think> <ANSWER>18</ANSWER>", UNFORMATTED, UNFORMATTED),
    ("18", UNFORMATTED, UNFORMATTED),
    ("", UNFORMATTED, UNFORMATTED),
])
def test_r1_zero_reward(response, any_spacing, exact_spacing):
    assert r1_zero_reward(response, "18") == any_spacing
    assert r1_zero_reward(response, "18", spacing="exact") == exact_spacing


def test_an_unknown_spacing_is_named():
    with pytest.raises(ValueError, match="spacing.*'none'"):
        r1_zero_reward("", "18", spacing="none")


# ---------------------------------------------------------------- short texts


@pytest.mark.parametrize("prediction, golds, em, f1", [
    ("the Nile", ["Nile"], 1, 1),
    ("It is Nile, in Egypt.", ["Egypt"], 1, 2 / 5 * 1 / (1 / 5 + 1)),
    ("Sudan", ["the river Nile", "Sudan!"], 1, 1),
    ("nile nile", ["nile"], 1, 2 / 3),
    ("nile", ["nile nile"], 0, 2 / 3),
    ("x y", ["y  x"], 0, 1),
    ("anything", ["", "the", "..."], 0, 0),
    ("", ["nile"], 0, 0),
    ("", [""], 0, 0),
    ("nile", [], 0, 0),
    ("\uff2e\uff49\uff4c\uff45\u3002", ["nile"], 1, 1),
    ("no answer", "No answer.", 1, 1),
])
def test_sub_em_and_f1(prediction, golds, em, f1):
    assert sub_em(prediction, golds) == em
    assert token_f1(prediction, golds) == pytest.approx(f1)


def test_qa_reward_grades_the_answer_tag_alone():
    response = "Sudan or Egypt? </think> <answer>Egypt</answer>"
    assert qa_reward(response, ["Egypt"]) == RIGHT
    assert qa_reward(response, ["Sudan"]) == WRONG
    assert qa_reward("...", ["Sudan"]) == UNFORMATTED


# ---------------------------------------------------------------- failure categories


@pytest.mark.parametrize("generation, finish_reason, category", [
    ("9 </think> <answer>18</answer>", "eos", "correct"),
    ("9 </think> <answer>17</answer>", "eos", "wrong_number"),
    ("9 </think> <answer>17, 18</answer>", "eos", "unparsable"),
    ("9 </think> <answer></answer>", "eos", "unparsable"),
    ("9 + 9 = 18", "length", "right_number_unformatted"),
    ("9 </think> <answer>18</answer> Done.", "eos", "right_number_unformatted"),
    ("", "prompt_too_long", "prompt_too_long"),
    ("9 + 9 = 17", "length", "truncated"),
    ("nothing", "eos", "no_number"),
    ("9 + 9 = 17", "eos", "unclosed_think"),
    ("9 + 9 = 17 </think>", "eos", "no_answer_tag"),
    ("9 </think> <answer>17", "eos", "unclosed_answer"),
    ("9 </think> <answer>18</answer> <answer>17</answer>", "eos", "several_answers"),
    ("9 </think> <answer>18</answer> or 17", "eos", "text_after_answer"),
    ("9 </think> so <answer>17</answer>", "eos", "misplaced_tags"),
])
def test_each_failure_has_one_name(generation, finish_reason, category):
    lenient = is_equivalent(last_number(generation), "18")
    parts = r1_zero_reward(generation, "18")
    assert failure_category(generation, finish_reason, parts, lenient) == category


def test_every_category_is_reached_by_the_table_above():
    table = test_each_failure_has_one_name.pytestmark[0].args[1]
    assert {category for _, _, category in table} == set(FAILURE_CATEGORIES)


@pytest.mark.parametrize("generation, finish_reason, category", [
    ("Nelgarton", "eos", "correct"),
    ("Arlo or Luben or maybe Nelgarton", "length", "right_but_long"),
    ("", "prompt_too_long", "prompt_too_long"),
    ("She studied at", "length", "truncated"),
    (" ...", "eos", "empty_answer"),
    ("the school of Arlo", "eos", "partial"),
    ("Arlo", "eos", "wrong_answer"),
])
def test_each_qa_failure_has_one_name(generation, finish_reason, category):
    golds = ["Nelgarton", "school of Nelgarton"]
    parts = {"sub_em": sub_em(generation, golds), "f1": token_f1(generation, golds)}
    assert qa_failure_category(generation, finish_reason, parts) == category


# ---------------------------------------------------------------- hostile text


def hostile_texts(count: int = 2_000) -> list[str]:
    big = 100_000
    seeds = [
        "9^9^9^9", "(99999!)!", "9**9**9**9", "__import__('os')._exit(1)", "1e999999999",
        "9" * big, "0." + "9" * big, "-" * big, "$" * big, "1" + ",000" * (big // 4) + "0",
        "9" * big + "th", "1 1/" * (big // 4), "(" * 3_000 + "18" + ")" * 3_000,
        "<answer>" * 10_000 + "</answer>" * 10_000, "<think>" * 10_000, "\\boxed{" * 10_000,
        "\\boxed{" + "{" * big, "answer is " * 10_000, "a " * (big // 2), " " * big,
        "</think> <answer>" + "9" * big + "</answer>", "\uff11" * big, "\ud800" * 1000,
        "\x00" * 1000, "1" * 199 + "!", "1,111" * 40, "a-" * 100, "18" + " " * 198,
        "-" + " " * 198 + "x", "-$" + " " * 197 + "1x", "x" + " " * 198 + "=", " 1" * 99 + "/",
        "1 " + "a." * 99, "\\frac{1}{" * 20, "answer is" + " " * big, "-$" * (big // 2),
        "一千" * 99, "一共" * 99 + "1", "百分之" * 66, "三又" * 66 + "1/2", "二分之" * 66,
        "1又1/" * 50,
        "1" + "千" * 199, "答案是1" + "十" * big, "负" * 199, "1三角形" * 50, "一" * 199 + "个",
    ]
    return [seeds[i % len(seeds)] + "x" * (i // len(seeds) % 7) for i in range(count)]


def grade_everything(texts: list[str]) -> list[dict]:
    graded = []
    for text in texts:
        extract_answer(text), last_number(text)
        assert not is_equivalent(text, "387420489")
        for response in (text, f"</think> <answer>{text}</answer>"):
            graded.append(r1_zero_reward(response, "387420489"))
    return graded


@pytest.mark.parametrize("in_thread", [False, True])
def test_two_thousand_hostile_texts_are_graded_in_ten_seconds_of_a_core(in_thread):
    texts, graded = hostile_texts(), []
    start = time.process_time()
    if in_thread:
        worker = threading.Thread(target=lambda: graded.extend(grade_everything(texts)),
                                  daemon=True)
        worker.start()
        worker.join(timeout=100)
    else:
        graded = grade_everything(texts)
    assert time.process_time() - start < 10
    assert len(graded) == 4_000 and not any(parts["reward"] for parts in graded)


def test_three_million_digits_are_refused_at_once():
    start = time.process_time()
    assert parse_number("9" * 3_000_000) is None
    assert last_number("9" * 3_000_000) is not None
    assert time.process_time() - start < 1
