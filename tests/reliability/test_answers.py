"""An answer is found whole, or not at all: numbers in texts, short texts, and hostile ones."""

import subprocess
import sys
import unicodedata
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from helpers.data import load_records
from helpers.expressions import last_expression
from helpers.plain_text import tex_as_text
from helpers.rewards import (
    extract_answer,
    has_words,
    is_equivalent,
    last_number,
    parse_number,
    qa_failure_category,
    qa_reward,
    qa_scores,
    r1_zero_reward,
    sub_em,
    token_f1,
)
from helpers.strategies.answers import final_answer, self_consistency_vote
from workbook.verifier import anywhere_reward, is_right, tagged_reward
from workbook.world.preferences import gold_reward

CORPUS = yaml.safe_load(Path(__file__).with_name("answers.yaml").read_text(encoding="utf-8"))


def value(text: str | None) -> Fraction | None:
    number = parse_number(text) if text is not None else None
    return None if number is None else number.value


def wanted(written: str | None) -> Fraction | None:
    return None if written is None else Fraction(written)


@pytest.mark.parametrize("text, reading", CORPUS["last"])
def test_the_last_number_is_whole_or_refused(text, reading):
    assert value(last_number(text)) == wanted(reading)


@pytest.mark.parametrize("text, reading", CORPUS["stated"])
def test_a_stated_number_is_whole_or_refused(text, reading):
    assert value(extract_answer(text)) == wanted(reading)


@pytest.mark.parametrize("text, reading", CORPUS["whole"])
def test_an_answer_is_read_as_it_is_typeset(text, reading):
    assert value(text) == wanted(reading)


def test_a_whole_expression_comes_back_as_it_is_written():
    assert last_number("It takes 10-15 minutes.") == "10-15"
    assert last_expression("5 or 6 eggs") == "5 or 6"
    assert is_equivalent(last_number("It costs 3 million."), "3 million")


def test_tex_is_written_as_plain_text():
    assert tex_as_text(r"\text{cm}\,\unknown{3}") == r"cm  \unknown{3}"
    assert tex_as_text(r"-\mathbf{3}\times 2") == "-3 × 2"


def test_two_languages_and_two_encodings_of_one_answer_are_equal():
    for written in (r"\frac{-3}{4}", r"-\frac34", "-3/4", "−3/4", "－３／４", "-0.75", "负3/4"):
        assert is_equivalent(written, "-0.75"), written


def test_votes_and_final_answers_never_take_a_part():
    for text in ("It takes 10-15 minutes.", "The answer is 10-15.", "It is 10 or 15."):
        assert value(final_answer(text)) is None
        assert self_consistency_vote([final_answer(text)])["unparsable"] == 1


def test_the_graders_of_the_course_pay_no_part():
    for gold in ("10", "15"):
        assert not is_right("It takes 10-15 minutes.", gold)
        assert gold_reward("It takes 10-15 minutes.", gold) == 0
    assert not is_right("</think> <answer>18</answer> or 18-20", "18")
    assert is_right(r"It is $\frac{3}{4}$.", "3/4") and gold_reward("So 9{,}500.", "9500") == 1


# ---------------------------------------------------------------- short texts


def test_a_gold_of_articles_alone():
    assert qa_scores("A", ["A"]) == qa_scores("a.", ["A"]) == {"sub_em": 1.0, "f1": 1.0}
    assert qa_scores("the the", ["The The"]) == {"sub_em": 1.0, "f1": 1.0}
    assert qa_scores("B", ["A"]) == qa_scores("banana", ["A"]) == {"sub_em": 0.0, "f1": 0.0}
    assert qa_scores("a cat", ["A"]) == qa_scores("the", ["A"]) == {"sub_em": 0.0, "f1": 0.0}
    # Two words, one of them the gold: P = 1/2, R = 1.
    assert qa_scores("Vitamin A", ["A"]) == {"sub_em": 1.0, "f1": pytest.approx(2 / 3)}
    assert qa_scores("Vitamin A", ["A", "Vitamin A"]) == {"sub_em": 1.0, "f1": 1.0}
    assert qa_reward("A", ["A"]) == {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}
    assert qa_failure_category("A", "eos", {"sub_em": 0.0, "f1": 0.0}) == "wrong_answer"


def test_a_gold_without_any_word_pays_nothing():
    for gold in ("", "...", " ", "\u200b", "《》"):
        assert not has_words(gold)
        assert qa_scores("...", [gold]) == {"sub_em": 0.0, "f1": 0.0}


def test_a_record_whose_gold_is_an_article_is_kept(tmp_path):
    path = tmp_path / "golds.jsonl"
    path.write_text('{"question": "which type", "answer": ["A"]}\n'
                    '{"question": "which band", "answer": ["The The"]}\n'
                    '{"question": "who", "answer": ["..."]}\n', encoding="utf-8")
    data, report = load_records(path)
    assert data["answers"][:] == [["A"], ["The The"]]
    assert len(report.problems) == 1 and ":3:" in report.problems[0]


@pytest.mark.parametrize("prediction, gold", [
    ("《西山记》", "西山记"), ("西山记", "「西山记」"), ("『西山记』。", "西山记"),
    ("【西山记】", "西山记"),
    ("约翰·史密斯", "约翰史密斯"), ("ジョン・スミス", "ジョンスミス"), ("西山，记", "西山记"),
    ("¿Oslo?", "Oslo"), ("‹Oslo›", "Oslo"), ("Os\u200blo", "Oslo"), ("\ufeffOslo", "Oslo"),
    ("Os\u00adlo", "Oslo"), ("O\u2060slo\u200d", "Oslo"), ("Port\u00a0Oslo", "Port Oslo"),
    ("Ｏｓｌｏ", "oslo"), ("Rene\u0301e", "Renée"), ("RENÉE", "rene\u0301e"),
    ("A\u030angstro\u0308m", "Ångström"), ("\u1112\u1161\u11ab", "한"),
])
def test_two_spellings_of_one_answer_are_one(prediction, gold):
    assert qa_scores(prediction, [gold]) == {"sub_em": 1.0, "f1": 1.0}
    assert qa_scores(gold, [prediction]) == {"sub_em": 1.0, "f1": 1.0}


@pytest.mark.parametrize("prediction, gold", [("Rene", "René"), ("resume", "résumé"), ("か", "が")])
def test_letters_with_marks_are_other_letters(prediction, gold):
    for form in ("NFC", "NFD"):
        assert token_f1(prediction, [unicodedata.normalize(form, gold)]) == 0


@pytest.mark.parametrize("call, word", [
    (lambda: token_f1(None, ["a"]), "NoneType"), (lambda: token_f1("a", [3]), "int"),
    (lambda: token_f1("a", None), "golds"), (lambda: sub_em(3.0, ["a"]), "float"),
    (lambda: qa_scores(["a"], ["a"]), "list"), (lambda: qa_reward(None, ["a"]), "response"),
    (lambda: last_number(None), "NoneType"), (lambda: extract_answer(b"18"), "bytes"),
    (lambda: is_equivalent("18", 18), "int"), (lambda: r1_zero_reward(None, "18"), "response"),
])
def test_what_is_no_text_is_named_in_a_sentence(call, word):
    with pytest.raises(ValueError, match=word) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- hostile texts


def bombs() -> list[str]:
    """Texts at the edges of the patterns: every repeated part can be matched in several ways."""
    parts = ["1 or ", "1-", "1 000 ", "1,", "1 ", "1^", "half of ", "1 and a ", "x*", "1 eggs or ",
             "answer is 1, ", "1 hours ", "</think> <answer>", "1.", "~", "1 million ", "x2\n",
             "\\", "1/", "\\text{", "\\text{a}", "\\frac{1}{", "\\sqrt{", "1个或", "January 1 ",
             "1!", "1 to the ", "（１）", "\u0301\u0316", "\u05b0\u05b1", "\u200b", "《", "A "]
    whole = ["1" + " " * 20_000, "</think> <answer>" * 5_000 + "</answer>" * 5_000 + "x",
             " ".join(map(str, range(4_000))) + " 1x", "9" * 100_000, "<answer>" + "9" * 100_000]
    return whole + [(part * 9_000)[:9_000] + end for part in parts for end in ("", "1x")]


def grade_with_everything(text: str) -> None:
    last_number(text), extract_answer(text), final_answer(text), is_right(text, "18")
    for response in (text, f"</think> <answer>{text}</answer>"):
        for grader in (r1_zero_reward, anywhere_reward, tagged_reward, gold_reward):
            grader(response, "18")
        qa_reward(response, ["A", "the Nile"]), gold_reward(response, ["A"])


def test_no_text_takes_more_than_its_length():
    """In a process of its own: no alarm stops a regular expression. Idle cores take 8 s."""
    code = ("from tests.reliability.test_answers import bombs, grade_with_everything\n"
            "for text in bombs(): grade_with_everything(text)")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=240, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-500:]
