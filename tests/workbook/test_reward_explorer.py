"""The reward explorer: what it changes, what it shows, how it is used."""

import pytest

from workbook.reward_explorer import (
    RewardExplorer,
    edits,
    explain,
    explanation_html,
    parts_of,
    reward_explorer,
)
from workbook.world.preferences import gold_reward

RIGHT = " 4*6=24. So 24. </think> <answer>24</answer>"
RECORDS = [
    {"prompt": "Rules.\nUser: 4 times 6?\nAssistant:", "response_0": RIGHT,
     "response_1": " 4+6=10. </think> <answer>10</answer>", "gold_answer": "24"},
    {"prompt": "User: 1 + 1 < 3?", "response_0": "", "response_1": "yes <b>", "gold_answer": "2"},
]


def length(prompts, responses):
    assert len(prompts) == len(responses)
    return [float(len(text.split())) for text in responses]


def explorer(records=RECORDS):
    return RewardExplorer(records, score=length, gold=gold_reward)


@pytest.mark.parametrize("text", [RIGHT, "", "no end", "One. Two! Three? </think>"])
def test_the_parts_joined_are_the_response(text):
    assert "".join(parts_of(text)) == text


def test_edits_take_a_part_away_or_change_one_thing():
    found = edits(RIGHT)
    assert found["without 2: So 24."] == " 4*6=24. </think> <answer>24</answer>"
    assert found["+ courtesy"] == " 4*6=24. So 24. I hope this helps. </think> <answer>24</answer>"
    assert found["+ steps told twice"].count("4*6=24.") == 2
    assert found["another final answer"].endswith("<answer>25</answer>")


def test_a_response_without_a_number_has_no_other_answer():
    assert "another final answer" not in edits("I do not know.")


def test_the_explanation_holds_both_rewards():
    found = explain("p", RIGHT, "24", score=length, gold=gold_reward)
    assert (found["score"], found["gold"]) == (5.0, 1.0)
    assert found["changes"]["another final answer"] == (0.0, -1.0)
    assert found["changes"]["+ courtesy"] == pytest.approx((4.0, 0.05))


def test_a_response_is_picked_typed_and_scored():
    widget = explorer()
    assert "score +5.00" in widget.found.value and "4 times 6?" in widget.found.value
    widget.which.value = 1
    assert widget.response.value == RECORDS[0]["response_1"] and "score +3.00" in widget.found.value
    widget.response.value = "only three words"
    widget.button.click()
    assert "score +3.00, gold reward 0.00" in widget.found.value


def test_an_empty_response_is_answered_in_a_sentence():
    widget = explorer()
    widget.pair.value = 1
    assert widget.found.value == "There is no response to score: type one."


def test_texts_are_escaped():
    widget = explorer()
    widget.pair.value = 1
    widget.which.value = 1
    assert "yes &lt;b&gt;" in widget.found.value and "&lt; 3?" in widget.found.value
    found = explain("p", "<b>", "2", score=length, gold=gold_reward)
    assert "<b>" not in explanation_html(found, "p", "2").partition("</p>")[2]


def test_without_records_it_says_what_to_do():
    with pytest.raises(ValueError, match="load the pairs first"):
        explorer([])


def test_a_static_figure_stands_under_the_widget(monkeypatch):
    shown = []
    monkeypatch.setattr("workbook.reward_explorer.show_widget", shown.append)
    monkeypatch.setattr("workbook.reward_explorer.display", shown.append)
    reward_explorer(RECORDS, score=length, gold=gold_reward)
    assert shown[1].axes[0].patches and "Most moved by" in shown[1].get_suptitle()
