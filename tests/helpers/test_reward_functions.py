"""helpers.reward_functions: what is called how, what is refused, sums of rewards."""

import pytest

from helpers.models import load_reward_model
from helpers.reward_functions import grade_all, reward_identity, weighted_sum
from helpers.reward_models import from_model, score
from helpers.rewards import r1_zero_reward

RIGHT = "so 2 </think> <answer>2</answer>"


def parts(reward):
    return {"format_reward": 0.0, "answer_reward": reward, "reward": reward}


def test_a_grader_gets_response_and_gold_and_the_prompt_where_it_asks_for_it():
    assert grade_all(r1_zero_reward, ["1 + 1?"] * 2, [RIGHT, "2"], ["2", "2"]) == [
        {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0},
        {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}]

    def by_prompt(response, gold, *, prompt):
        return parts(len(prompt))

    assert [row["reward"] for row in grade_all(by_prompt, ["a", "abc"], ["", ""], [0, 0])] == [1, 3]


def test_a_sum_keeps_the_first_terms_parts_and_each_reward():
    both = weighted_sum((1.0, r1_zero_reward), (0.5, lambda response, gold: parts(3.0)))
    found = both(RIGHT, "2", prompt="1 + 1?")
    assert found == {"format_reward": 1.0, "answer_reward": 1.0, "reward": 2.5, "reward_1": 1.0,
                     "reward_2": 3.0}
    with pytest.raises(TypeError, match="prompt"):
        both(RIGHT, "2")
    assert both.identity.startswith("1 r1_zero_reward + 0.5 ")
    with pytest.raises(ValueError, match="takes pairs"):
        weighted_sum()


def test_a_reward_model_scores_many_at_once_as_one_by_one(tiny_folder):
    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    reward = from_model(model, tokenizer, batch_size=2)
    prompts, responses = ["Nora has", "Where?", "x"], [" 12 apples", " Nelgarton", " 42"]
    single = [reward(text, None, prompt=prompt)
              for prompt, text in zip(prompts, responses, strict=True)]
    for many, one in zip(grade_all(reward, prompts, responses, [None] * 3), single, strict=True):
        assert many == pytest.approx(one, abs=1e-5)
    assert reward_identity(reward) == reward.identity
    other, _ = load_reward_model(tiny_folder, device="cpu", seed=1)
    assert from_model(other, tokenizer).identity != reward.identity


@pytest.mark.parametrize("answer", [1.0, None, {"reward": 1.0}, {"reward": "much"}])
def test_another_answer_is_refused_in_a_sentence(answer):
    with pytest.raises(ValueError, match="must return a dict with the numbers format_reward, "):
        grade_all(lambda response, gold: answer, ["p"], ["r"], ["g"])


@pytest.mark.parametrize("is_training", [True, False])
def test_a_pool_that_fails_leaves_the_model_in_its_mode(tiny_folder, is_training):
    def broken(token_rewards, attention_mask):
        raise RuntimeError("my pool")

    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    model.train(is_training)
    with pytest.raises(RuntimeError, match="my pool"):
        score(model, tokenizer, ["Nora has"], [" 12"], pool=broken)
    assert model.training == is_training
