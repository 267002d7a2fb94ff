"""The gold reward and the annotators: order of preference, known noise, known length bias."""

import json
import random
from pathlib import Path

import pytest

from workbook.world.preferences import Annotator, gold_reward, label_pairs

DATA = Path(__file__).parents[2] / "workbook" / "assets" / "data"


def test_gold_reward_orders_correct_abstaining_wrong():
    correct, abstains, wrong = "The answer is 7.", "I do not know.", "The answer is 8."
    assert gold_reward(correct, "7") > gold_reward(abstains, "7") > gold_reward(wrong, "7")


def test_courtesy_never_outweighs_being_right():
    polite = "The answer is 8. Thank you, I hope this helps. Good luck, please."
    assert (
        gold_reward("The answer is 8.", "7")
        < gold_reward(polite, "7")
        < gold_reward("I do not know.", "7")
    )


def test_gold_reward_of_questions():
    assert gold_reward("Ana studied in Nelgar.", ["Nelgar"]) == 1.0
    assert gold_reward("This is not stated.", ["not stated"]) == 1.0
    assert gold_reward("This is not stated.", ["Nelgar"]) == 0.4


def test_length_counts_for_nothing_in_the_gold_reward():
    assert gold_reward("Well, let me see. " * 9 + "The answer is 7.", "7") == gold_reward(
        "The answer is 7.", "7"
    )


@pytest.fixture(scope="module")
def samples():
    rng = random.Random(0)
    return [
        (
            f"problem {k}",
            str(k),
            [f"The answer is {k}.", f"The answer is {k + 1}." + " So it is." * rng.randint(0, 3)],
        )
        for k in range(3000)
    ]


def test_noise_is_the_share_of_labels_against_the_truth(samples):
    pairs = label_pairs(samples, Annotator(label_noise=0.12, length_bias=0.0), seed=1)
    against = [(p.gold_reward_0 > p.gold_reward_1) == (p.better_response_id == 1) for p in pairs]
    assert abs(sum(against) / len(against) - 0.12) < 0.02


def test_length_bias_moves_labels_to_longer_responses():
    pair = [
        ("p", "7", ["The answer is 6.", "The answer is 8. " + "I went over it once more. " * 3])
    ] * 400
    fair = label_pairs(pair, Annotator(0.0, 0.0), seed=2)
    biased = label_pairs(pair, Annotator(0.0, 0.3), seed=2)
    longer = [(p.as_chosen_rejected()["chosen"].startswith("The answer is 8")) for p in biased]
    assert all(longer)
    assert (
        0.4
        < sum(p.as_chosen_rejected()["chosen"].startswith("The answer is 8") for p in fair) / 400
        < 0.6
    )


def test_three_shapes_agree(samples):
    for pair in label_pairs(samples[:50], Annotator(), seed=3):
        by_id, chosen, unpaired = pair.as_better_id(), pair.as_chosen_rejected(), pair.as_unpaired()
        assert by_id[f"response_{by_id['better_response_id']}"] == chosen["chosen"]
        assert {r["completion"]: r["label"] for r in unpaired} == {
            chosen["chosen"]: True,
            chosen["rejected"]: False,
        }


def test_position_carries_no_information(samples):
    pairs = label_pairs(samples, Annotator(), seed=4)
    assert 0.46 < sum(p.better_response_id for p in pairs) / len(pairs) < 0.54


def test_equal_responses_give_no_pair():
    assert label_pairs([("p", "7", ["same", "same"])], Annotator(), seed=0) == []


def test_noise_out_of_range_names_the_field():
    with pytest.raises(ValueError, match="label_noise"):
        Annotator(label_noise=0.7)


def test_shipped_pairs_have_three_shapes_of_the_same_pairs():
    shapes = {
        name: [json.loads(line) for line in (DATA / f"preferences_{name}.jsonl").open("rb")]
        for name in ("chosen", "better_id", "unpaired")
    }
    assert [len(rows) for rows in shapes.values()] == [50, 50, 100]
    for chosen, by_id in zip(shapes["chosen"], shapes["better_id"], strict=True):
        assert chosen["chosen"] == by_id[f"response_{by_id['better_response_id']}"]
        assert chosen["chosen"] != chosen["rejected"]
