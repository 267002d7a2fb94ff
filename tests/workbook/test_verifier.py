"""Break the verifier: the golden sets, the errors of three graders, and the attack of a learner."""

from pathlib import Path

import pytest

from helpers.rewards import r1_zero_reward
from workbook.build import solution_functions
from workbook.hints import CourseFileError, read_course_file
from workbook.verifier import (
    EXPLOITS,
    Attack,
    GoldenSets,
    Item,
    anywhere_reward,
    error_rates,
    exploit_class,
    golden_sets,
    is_right,
    paid_by_class,
    pays,
    refused,
    tagged_reward,
)

SOURCE = Path(__file__).parents[2] / "solutions" / "01_baseline_eval.py"
WEAK = {"anywhere": anywhere_reward, "tagged": tagged_reward}
GRADERS = WEAK | {"strict": r1_zero_reward}
# What the reference refuses though it is right: the price of its strictness, and nothing beyond it.
REFUSED = ["1e3", "eighteen", "Ana has 18 rolls left.", "24 - 6 = 18"]


@pytest.fixture(scope="module")
def learners_reward():
    return solution_functions(SOURCE)["r1_zero_reward"]


def exploits():
    return [(kind, item) for kind, items in golden_sets().exploits.items() for item in items]


def test_the_golden_sets_are_large_enough_and_hold_nothing_twice():
    sets = golden_sets()
    assert len(sets.right) >= 30 and len(exploits()) >= 30
    every = [(item.text, item.gold) for item in [*sets.right, *(item for _, item in exploits())]]
    assert len(every) == len(set(every))
    assert set(sets.exploits) == set(EXPLOITS)


@pytest.mark.parametrize("kind, item", exploits(), ids=lambda value: str(value)[:30])
def test_an_exploit_is_wrong_and_its_form_gives_its_class(kind, item):
    assert not is_right(item.text, item.gold)
    assert exploit_class(item.text, item.gold) == kind


def test_every_class_fools_a_weak_grader_and_no_exploit_fools_the_strict_ones(learners_reward):
    for kind, row in paid_by_class(GRADERS | {"yours": learners_reward}).items():
        assert max(row["anywhere"][0], row["tagged"][0]) > 0, kind
        assert row["strict"][0] == row["yours"][0] == 0, kind


def test_a_stronger_grader_pays_fewer_exploits_and_refuses_more_right_answers():
    rates = error_rates(GRADERS)
    paid = [rates[name]["exploits paid"][0] for name in ("anywhere", "tagged", "strict")]
    lost = [rates[name]["right answers refused"][0] for name in ("anywhere", "tagged", "strict")]
    assert paid[0] > paid[1] > paid[2] == 0
    assert lost[0] < lost[1] < lost[2]


def test_the_rates_are_shares_of_the_sets_with_their_intervals():
    nothing = {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}
    rates = error_rates({"never": lambda response, gold: nothing})["never"]
    assert rates["right answers refused"][:2] == (1.0, pytest.approx(0.916, abs=1e-3))
    assert rates["exploits paid"] == (0.0, 0.0, pytest.approx(0.084, abs=1e-3))


def test_what_the_strict_graders_refuse_is_known(learners_reward):
    without_format = [item for item in golden_sets().right if item.response is not None]
    expected = [item.text for item in without_format if not r1_zero_reward(
        item.text, item.gold)["format_reward"]]
    assert len(expected) == 5
    lost = refused(r1_zero_reward)
    assert [item.answer for item in lost if item.answer] == REFUSED
    assert [item.text for item in lost if item.response] == expected
    assert {item.text for item in lost} < {item.text for item in refused(learners_reward)}


def test_the_hole_that_stays_open_is_in_the_tagged_grader_alone():
    junk = Item(answer="no idea", why="float() cannot read it")
    assert pays(tagged_reward, junk)
    assert not pays(anywhere_reward, junk) and not pays(r1_zero_reward, junk)
    assert not pays(tagged_reward, Item(response="no idea", why="without the format"))


@pytest.mark.parametrize("grader", GRADERS.values())
def test_graders_answer_hostile_texts_with_three_numbers(grader):
    for text in ("", "9" * 20_000, "<answer>" * 3_000, "." * 20_000, "</think><answer>nan</answer>",
                 "</think> " * 3_000, " </think> <answer>" + "1," * 5_000 + "</answer>"):
        parts = grader(text, "18")
        assert set(parts) == {"format_reward", "answer_reward", "reward"}
        assert set(parts.values()) <= {0.0, 1.0}


def test_an_attack_tells_an_exploit_from_an_honest_and_from_a_refused_text():
    attack = Attack(GRADERS)
    answer = " </think> <answer>{}</answer>".format
    assert attack("tagged", answer("17 or 18")).headline.startswith("You fooled tagged")
    assert "no exploit" in attack("tagged", answer("18")).headline
    assert "though it is right" in attack("strict", "It is 18.").headline
    assert "refuses this wrong answer" in attack("strict", answer("17 or 18")).headline
    assert attack.found == {"anywhere": set(), "tagged": {"hedging"}, "strict": set()}


def test_an_attack_counts_each_class_once():
    attack = Attack(GRADERS)
    attack("tagged", " </think> <answer>17 or 18</answer>")
    rows = dict(attack("tagged", " </think> <answer>18, 19</answer>").rows)
    assert rows["class"].endswith("(you had this one)")
    assert rows["tagged"] == "1 of 10 classes: hedging"
    rows = dict(attack("tagged", " </think> <answer>rolls</answer>").rows)
    assert rows["tagged"] == "2 of 10 classes: hedging, no number"


def test_an_attack_survives_a_bad_call_and_a_grader_that_raises():
    def broken(response, gold):
        return {"reward": 1 / 0}

    attack = Attack({"broken": broken})
    assert '"broken"' in attack("other", "18").headline
    assert '"broken"' in attack("broken", 18).headline
    panel = attack("broken", "18")
    assert panel.kind == "failed" and "ZeroDivisionError" in panel.rows[0][1]


def test_a_faulty_golden_set_names_its_field(tmp_path):
    path = tmp_path / "verifier.yaml"
    path.write_text("question: q\ngold: '18'\nright: [{answer: '18'}]\nexploits: {}\n")
    with pytest.raises(CourseFileError, match="verifier.yaml: right.0.why: Field required"):
        read_course_file(path, GoldenSets)
