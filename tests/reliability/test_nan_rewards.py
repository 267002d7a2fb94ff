"""A group with a reward that is no number is left out of the step: of all of it."""

import math

import pytest
import torch

from helpers.reward_functions import grade_all, weighted_sum
from helpers.training.rollouts import Rollouts, sample_metrics
from tests.helpers.grpo_world import gradients, make_loop, parts, train, train_by_ppo, vowels

BAD = "1"  # the gold answer of the prompt whose responses get a nan


def broken(response, gold):
    return parts(math.nan) if gold == BAD else vowels(response, gold)


def spoilt(rollouts, group):
    """The same responses, of which one of a group has the reward nan."""
    samples = [dict(sample) for sample in rollouts.samples]
    samples[4 * group + 1]["parts"] = parts(math.nan)
    return Rollouts(rollouts.completions, 0, samples, 4, rollouts.generated_tokens)


def without(rollouts, group):
    """The responses of a step that never drew the group."""
    kept = [k for k in range(len(rollouts.samples)) if k // 4 != group]
    return Rollouts([rollouts.completions[k] for k in kept], 0,
                    [rollouts.samples[k] for k in kept], 4, rollouts.generated_tokens)


@pytest.mark.parametrize("changes", [
    {"scale": "batch"}, {"beta": 0.2}, {"reduction": "token_mean", "entropy_bonus": 0.1},
    {"reduction": "constant", "importance_cap": 2.0, "beta": 0.1},
], ids=str)
def test_a_step_with_a_bad_group_is_the_step_without_it(tiny_folder, changes):
    loop = make_loop(tiny_folder, micro_batch_tokens=64, **changes)
    if changes.get("beta"):
        from helpers.reference import freeze_reference

        loop.method.reference = freeze_reference(loop.model)
    rollouts, _ = loop.collect()
    found, metrics = [], []
    for some in (spoilt(rollouts, 2), without(rollouts, 2)):
        metrics.append(loop.method.finish(loop, some) | sample_metrics(some))
        found.append(gradients(loop, rollouts=some)[0])
    assert metrics[0].pop("bad_rewards") == 1 and metrics[1].pop("bad_rewards") == 0
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-6)


def test_ppo_whitens_over_what_it_trains(tiny_folder):
    from helpers.policy_losses import whiten

    rows = []

    def spy(values, mask, eps=1e-8):
        found = whiten(values, mask, eps)
        rows.append((mask.any(1), found[mask]))
        return found

    with pytest.warns(UserWarning, match="has the reward nan: its group is left out"):
        run = train_by_ppo(tiny_folder, reward_fn=broken, functions={"whiten": spy},
                           prompts_per_step=6, max_steps=1)
    (mask, advantages), = rows
    assert mask.view(6, 4).all(1).sum() == 5 and not mask.view(6, 4).any(1).all()
    assert advantages.mean().item() == pytest.approx(0, abs=1e-5)
    assert advantages.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert run.metrics[0]["trained_rows"] == 2 * 20


@pytest.mark.parametrize("trainer", [train, train_by_ppo])
def test_a_step_of_bad_rewards_only_has_no_means(tiny_folder, trainer):
    with pytest.warns(UserWarning, match="has the reward nan"):
        run = trainer(tiny_folder, reward_fn=lambda response, gold: parts(math.nan), max_steps=1,
                      beta=0.1)
    record = run.metrics[0]
    assert record["loss"] == 0 and record["grad_norm"] == 0 and record["bad_rewards"] == 16
    names = ("reward_mean", "reward_std", "accuracy", "groups_with_signal", "entropy", "kl")
    assert [record[name] for name in names] == [None] * 6


def test_an_advantage_that_is_no_number_is_refused_by_name(tiny_folder):
    def divides_by_nothing(rewards, group_size, **options):
        return rewards / 0

    with pytest.raises(ValueError, match="group_advantages returned .* must be a finite number"):
        train(tiny_folder, functions={"group_advantages": divides_by_nothing}, max_steps=1)


def test_a_part_that_some_responses_lack_is_a_mean_over_the_others(tiny_folder):
    rollouts, _ = make_loop(tiny_folder).collect()
    for number, sample in enumerate(rollouts.samples):
        sample["parts"] = parts(0.5) | ({"length_part": 3.0} if number == 3 else {})
    assert sample_metrics(rollouts)["length_part"] == 3.0


def test_a_held_out_reward_that_is_no_number_is_left_out_of_its_means(tiny_folder):
    loop = make_loop(tiny_folder)
    loop.held_out = loop.method
    loop.held_out.reward_fn = broken
    with pytest.warns(UserWarning, match="left out of the means of the held-out prompts"):
        found = loop.evaluate()
    assert found["eval_bad_rewards"] >= 1 and math.isfinite(found["eval_reward_mean"])


class Short:
    def __call__(self, response, gold):
        return parts(1.0)

    def many(self, prompts, responses, golds):
        return [parts(1.0)]


def test_a_reward_function_that_skips_a_response_is_named():
    with pytest.raises(ValueError, match="Short returned 1 results for 2 responses"):
        grade_all(Short(), ["p", "p"], ["a", "b"], ["g", "g"])


@pytest.mark.parametrize("weight", [math.nan, math.inf, "1", None])
def test_a_weight_that_is_no_number_is_named(weight):
    with pytest.raises(ValueError, match="The weight of vowels must be a finite number"):
        weighted_sum((weight, vowels), (1.0, vowels))
