"""helpers.training.train_grpo: gradients by hand, rules of the sampler's tokens, bad input."""

import json
import math
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from helpers.logprobs import pad_prompt_and_response, response_log_probs
from helpers.losses import group_advantages, grpo_clip_loss
from helpers.models import LoraSettings
from helpers.reference import freeze_reference
from helpers.reward_functions import weighted_sum
from helpers.rewards import qa_reward, r1_zero_reward
from helpers.training import GRPOSettings, train_grpo
from helpers.training.grpo import FUNCTIONS, GRPO
from helpers.training.grpo_step import grpo_step
from helpers.training.rl_run import check_golds
from helpers.training.rollouts import read_rollouts
from tests.helpers.grpo_world import (
    DATA,
    gradients,
    largest_difference,
    make_loop,
    parts,
    settings,
    train,
    vowels,
)


def plain_loss(loop, rollouts, **options):
    """The loss of all responses at once, each with its own copy of the prompt."""
    chosen = loop.settings
    batch = pad_prompt_and_response([c.prompt_token_ids for c in rollouts.completions],
                                    [c.token_ids for c in rollouts.completions], 0)
    scores = response_log_probs(loop.model, **batch, temperature=chosen.temperature,
                                return_entropy=True)
    mask = batch["response_mask"]
    sampled = [value for c in rollouts.completions for value in c.log_probs]
    old = scores["log_probs"].detach().new_zeros(mask.shape).masked_scatter(
        mask, scores["log_probs"].new_tensor(sampled))
    loss, _ = grpo_step(scores["log_probs"], old, mask, rollouts.rewards,
                        chosen.samples_per_prompt, baseline=chosen.baseline, scale=chosen.scale,
                        reduction=chosen.reduction, constant=chosen.max_new_tokens, **options)
    return loss, scores, mask


@pytest.mark.parametrize("changes", [
    {}, {"reduction": "token_mean", "temperature": 0.7}, {"reduction": "constant"},
    {"baseline": "none", "scale": "none"}, {"baseline": "leave_one_out", "scale": "batch"},
])
def test_gradients_are_those_of_a_plain_loop(tiny_folder, changes):
    loop = make_loop(tiny_folder, **changes)
    found, rollouts, sums = gradients(loop)
    loss, *_ = plain_loss(loop, rollouts)
    loss.backward()
    plain = {name: p.grad for name, p in loop.parameters.items()}
    assert max(float(gradient.abs().max()) for gradient in found.values()) > 1e-3
    assert largest_difference(found, plain) < 1e-6
    assert sums["loss"] == pytest.approx(loss.item(), abs=1e-6)


def test_kl_and_entropy_terms_by_hand(tiny_folder):
    loop = make_loop(tiny_folder, beta=0.3, entropy_bonus=0.05)
    loop.method.reference = freeze_reference(loop.model)
    with torch.no_grad():
        for parameter in loop.parameters.values():
            parameter += 0.02
    found, rollouts, _ = gradients(loop)
    with loop.method.reference:
        _, scores, mask = plain_loss(loop, rollouts)
        reference = scores["log_probs"]
    assert loop.mean_kl(rollouts, loop.method.functions["kl_estimate"])["kl"] > 0
    loss, scores, mask = plain_loss(loop, rollouts, beta=0.3, ref_log_probs=reference)
    entropy = (scores["entropy"] * mask).sum(-1) / mask.sum(-1)
    (loss - 0.05 * entropy.mean()).backward()
    plain = {name: p.grad for name, p in loop.parameters.items()}
    assert largest_difference(found, plain) < 1e-6


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_first_ratio_is_one(tiny_folder, temperature):
    run = train(tiny_folder, temperature=temperature, lora=None, lr=1e-3, dtype=torch.float64)
    assert max(record["ratio_gap"] for record in run.metrics) < 1e-5
    assert all(record["clip_fraction"] == 0 for record in run.metrics)


def test_dropout_is_off_where_the_policy_is_scored(tiny_folder):
    run = train(tiny_folder, lora=LoraSettings(rank=4, dropout=0.5), dtype=torch.float64)
    assert max(record["ratio_gap"] for record in run.metrics) < 1e-5


def test_no_token_is_encoded_again_and_eos_carries_loss(tiny_folder, monkeypatch):
    loop = make_loop(tiny_folder, max_new_tokens=40)
    rollouts, _ = loop.collect()
    monkeypatch.setattr(type(loop.engine.tokenizer), "__call__", None)
    loop.method.finish(loop, rollouts)
    seen = {}
    for inputs, places in loop._batches(rollouts, rollouts.own):
        labels = inputs["labels"][inputs["response_mask"]].tolist()
        for place in places:
            ids = rollouts.completions[place].token_ids
            seen[place], labels = labels[: len(ids)], labels[len(ids):]
    assert seen == {place: c.token_ids for place, c in enumerate(rollouts.completions)}
    ended = [c for c in rollouts.completions if c.finish_reason == "eos"]
    assert ended and all(c.token_ids[-1] == 0 for c in ended)
    assert rollouts.truncated == [c.finish_reason == "length" for c in rollouts.completions]


# --- micro-batches and skipped rows


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "constant"])
def test_micro_batches_change_no_gradient(tiny_folder, reduction):
    loop = make_loop(tiny_folder, reduction=reduction)
    whole, rollouts, sums = gradients(loop)
    for budget in (1, 40, 100):
        small = make_loop(tiny_folder, reduction=reduction, micro_batch_tokens=budget)
        assert len(list(small._batches(rollouts, rollouts.own))) > 1
        found, _, same = gradients(small, rollouts=rollouts)
        assert largest_difference(whole, found) < 1e-6
        assert same["loss"] == pytest.approx(sums["loss"], abs=1e-6)


def halves(response, gold):
    """Whole groups without a signal, and single zeros among the others."""
    return parts(float(len(response) % 2) if gold in "13" else 1.0)


@pytest.mark.parametrize("changes", [
    {}, {"reduction": "token_mean"}, {"reduction": "constant", "scale": "none"},
    {"baseline": "none", "scale": "none"},
])
def test_skipped_rows_change_no_gradient(tiny_folder, changes):
    loop = make_loop(tiny_folder, halves, **changes)
    skipped, rollouts, sums = gradients(loop)
    loop.method.may_skip = False
    kept, _, all_sums = gradients(loop, rollouts=rollouts)
    assert 0 < sums["rows"] < all_sums["rows"] == len(rollouts.samples)
    assert largest_difference(skipped, kept) < 1e-6


def test_rows_are_kept_where_another_term_pulls():
    for changes, may_skip in (({}, True), ({"beta": 0.1}, False), ({"entropy_bonus": 0.1}, False)):
        assert GRPO(None, settings(**changes), FUNCTIONS, vowels).may_skip is may_skip


def test_a_step_without_any_signal_is_one_of_zero_gradient(tiny_folder):
    run = train(tiny_folder, reward_fn=lambda response, gold: parts(0.7))
    for record in run.metrics:
        assert (record["grad_norm"], record["groups_with_signal"]) == (0.0, 0.0)
        assert record["trained_rows"] == 0 and record["loss"] == 0.0


# --- settings


def test_off_policy_updates_clip_and_move_the_ratio(tiny_folder):
    run = train(tiny_folder, epochs_per_step=2, minibatches=2, lr=0.1, max_grad_norm=None,
                dtype=torch.float64)
    assert [record["updates"] for record in run.metrics] == [4, 4, 4]
    assert run.metrics[0]["ratio_gap"] < 1e-5
    assert run.metrics[0]["clip_fraction"] > 0 and run.metrics[0]["ratio_mean"] != 1.0
    free = train(tiny_folder, epochs_per_step=2, minibatches=2, lr=0.1, max_grad_norm=None,
                 loss="no_clip", dtype=torch.float64)
    assert free.metrics[0]["clip_fraction"] == 0
    assert free.metrics[0]["reward_mean"] == run.metrics[0]["reward_mean"]
    assert free.metrics[0]["ratio_mean"] != run.metrics[0]["ratio_mean"]


def test_on_policy_losses_have_one_gradient(tiny_folder):
    loop = make_loop(tiny_folder)
    expected, rollouts, _ = gradients(loop)
    for loss in ("no_clip", "policy_gradient", "gspo"):
        other = make_loop(tiny_folder, loss=loss)
        found, *_ = gradients(other, rollouts=rollouts)
        # At equal policies all are the policy gradient: gspo of a mean over each response.
        assert largest_difference(expected, found) < 1e-6, loss


def test_a_masked_truncated_response_has_no_gradient(tiny_folder):
    loop = make_loop(tiny_folder, max_new_tokens=20, mask_truncated=True, reduction="token_mean")
    rollouts, _ = loop.collect()
    loop.method.finish(loop, rollouts)
    kept = [c for c in rollouts.completions if c.finish_reason != "length"]
    assert 0 < len(kept) < len(rollouts.completions)
    found, _, sums = gradients(loop, rollouts=rollouts)
    assert loop.method.normalizer(rollouts, range(16)) == sum(len(c.token_ids) for c in kept)
    assert sums["rows"] <= len(kept)


def test_prompts_without_a_signal_are_replaced(tiny_folder):
    plain = train(tiny_folder, reward_fn=halves, max_steps=2)
    fuller = train(tiny_folder, reward_fn=halves, max_steps=2, resampling=4)
    assert fuller.metrics[0]["groups_with_signal"] > plain.metrics[0]["groups_with_signal"]
    assert fuller.metrics[0]["generated_tokens"] > plain.metrics[0]["generated_tokens"]
    assert {group["gold"] for group in fuller.rollouts} <= {"1", "3", "0", "2", "4", "5"}


def test_importance_weights_are_one_for_the_model_itself(tiny_folder):
    loop = make_loop(tiny_folder, importance_cap=2.0)
    found, rollouts, _ = gradients(loop)
    weights = torch.cat(rollouts.weights)
    assert (weights - 1).abs().max() < 1e-5
    expected, *_ = gradients(make_loop(tiny_folder))
    assert largest_difference(found, expected) < 1e-6
    for completion in rollouts.completions:  # an engine that thinks its tokens half as likely
        completion.log_probs = [value - math.log(2) for value in completion.log_probs]
    rollouts.__post_init__()
    loop.method.finish(loop, rollouts)
    assert torch.cat(rollouts.weights).max() == pytest.approx(2.0, abs=1e-4)
    doubled, *_ = gradients(loop, rollouts=rollouts)
    assert largest_difference({k: 2 * g for k, g in expected.items()}, doubled) < 1e-6


# --- your own functions and rewards


def test_own_functions_are_used(tiny_folder):
    calls = []

    def mine(rewards, group_size, **options):
        calls.append("advantages")
        return group_advantages(rewards, group_size, **options)

    def clip(*inputs):
        calls.append("clip")
        return grpo_clip_loss(*inputs)

    def step(*inputs, **options):
        calls.append("step")
        assert "functions" not in options
        return grpo_step(*inputs, **options)

    train(tiny_folder, functions={"group_advantages": mine, "grpo_clip_loss": clip}, max_steps=1)
    assert {"advantages", "clip"} == set(calls)
    train(tiny_folder, functions={"grpo_step": step}, max_steps=1)
    assert calls[-1] == "step"
    with pytest.raises(ValueError, match="loss=gspo needs the reference grpo_step"):
        train(tiny_folder, functions={"grpo_step": step}, loss="gspo")
    with pytest.raises(ValueError, match=r"one advantage a reward, \(16,\), but returned \(4,\)"):
        train(tiny_folder, functions={"group_advantages": lambda rewards, size, **_: rewards[:4]})
    with pytest.raises(ValueError, match="grpo_step must return"):
        train(tiny_folder, functions={"grpo_step": lambda *inputs, **options: 1.0})


@pytest.mark.parametrize("reward_fn", [
    r1_zero_reward, partial(r1_zero_reward, spacing="exact"),
    weighted_sum((1.0, vowels), (1.0, r1_zero_reward))])
@pytest.mark.parametrize("gold, shown", [({}, "none"), ({"gold_answer": 4}, "4"),
                                         ({"answers": ["4"]}, r"\['4'\]")])
@pytest.mark.filterwarnings("ignore:1 of 3 examples left out")
def test_a_gold_that_the_grader_cannot_read_is_named_at_the_start(
    tiny_random_model, reward_fn, gold, shown
):
    model, tokenizer = tiny_random_model
    rows = [{"prompt": "", "gold_answer": "1"}, DATA[0], {"prompt": "2 + 2 =", **gold}]
    sentence = f"Row 2 of the data: r1_zero_reward needs a text as gold.*but there is {shown}"
    with pytest.raises(ValueError, match=sentence):
        train_grpo(model, rows, settings(), tokenizer=tokenizer, reward_fn=reward_fn)
    with pytest.raises(ValueError, match=sentence):
        train_grpo(model, DATA, settings(), tokenizer=tokenizer, reward_fn=reward_fn,
                   eval_data=rows)


def test_qa_takes_a_text_or_texts_and_a_reward_of_your_own_anything():
    def tasks(*golds):
        return SimpleNamespace(places=range(len(golds)), golds=golds)

    check_golds(tasks("Ana", ["Ana", "Ben"]), qa_reward)
    check_golds(tasks(None, 3, {}), vowels)
    with pytest.raises(ValueError, match="Row 1 of the data: qa_reward needs a text or a list"):
        check_golds(tasks("Ana", [3]), qa_reward)


def test_rows_are_those_of_the_data_also_where_a_prompt_was_left_out(tiny_folder, tmp_path):
    data = [{"prompt": "", "gold_answer": "0"}, *DATA]

    def broken(response, gold):
        return parts(math.nan if gold == "0" else vowels(response, gold)["reward"])

    with pytest.warns(UserWarning) as caught:
        train(tiny_folder, tmp_path, data=data, reward_fn=broken, prompts_per_step=6, max_steps=1)
    for group in read_rollouts(tmp_path):
        assert data[group["row"]]["prompt"] == group["prompt"]
    said = [str(warning.message) for warning in caught]
    assert any("A response to row 1 of the data has the reward nan" in text for text in said)


def test_a_reward_that_is_no_number_leaves_its_group_out(tiny_folder, tmp_path):
    def broken(response, gold):
        return parts(math.nan if gold == "1" else vowels(response, gold)["reward"])

    with pytest.warns(UserWarning, match="has the reward nan: its group is left out"):
        run = train(tiny_folder, tmp_path, reward_fn=broken, prompts_per_step=6, max_steps=2)
    for record in run.metrics:
        assert record["bad_rewards"] == 4 and math.isfinite(record["reward_mean"])
        assert record["trained_rows"] <= 20 and record["grad_norm"] > 0
    text = (tmp_path / "rollouts.jsonl").read_text()
    assert "NaN" not in text and not re.search(r"Infinity", text)


@pytest.mark.parametrize(("answer", "message"), [
    (1.0, "must return a dict with the numbers"),
    ({"reward": 1.0}, "must return a dict with the numbers"),
])
def test_a_reward_function_of_another_kind(tiny_folder, answer, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_folder, reward_fn=lambda response, gold: answer)


def test_an_empty_completion_is_only_its_eos(tiny_folder):
    """An engine may return EOS alone, or no token at all."""
    loop = make_loop(tiny_folder)
    rollouts, _ = loop.collect()
    first, second = rollouts.completions[0], rollouts.completions[1]
    first.token_ids, first.log_probs, first.text = [0], first.log_probs[:1], ""
    second.token_ids, second.log_probs, second.text = [], [], ""
    rollouts.__post_init__()
    loop.method.finish(loop, rollouts)
    found, *_ = gradients(loop, rollouts=rollouts)
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_bad_input_is_answered_in_a_sentence(tiny_folder):
    with pytest.raises(ValueError, match="prompt is needed"):
        train(tiny_folder, data=[{"question": "2 + 2?"}])
    with pytest.raises(ValueError, match="None of 1 examples can be used"), pytest.warns():
        train(tiny_folder, data=[{"prompt": ""}])
    with pytest.warns(UserWarning, match="1 of 7 examples left out: prompt and 8 new tokens"):
        run = train(tiny_folder, data=[*DATA, {"prompt": "apples " * 300}], max_steps=1)
    assert run.summary["examples"]["used"] == 6
    with pytest.raises(ValueError, match="engine must be"):
        train(tiny_folder, engine="nonsense")
    with pytest.raises(ValueError, match="temperature must be above 0"):
        GRPOSettings(temperature=0)
    with pytest.raises(ValueError, match="functions holds 'dpo_loss'"):
        train(tiny_folder, functions={"dpo_loss": max})


# --- what a run leaves behind


def test_metrics_and_rollouts(tiny_folder, tmp_path):
    seen = []
    run = train(tiny_folder, tmp_path, measure_kl=True, eval_data=DATA[:2], eval_every=2,
                callbacks=[lambda run, record: seen.append(run.rollouts)])
    groups = read_rollouts(tmp_path)
    assert groups == [group for step in seen for group in step]
    assert [group["step"] for group in groups] == [1] * 4 + [2] * 2 + [3] * 4
    for group in groups:
        assert len(group["completions"]) == len(group["rewards"]) == 4
        expected = group_advantages(torch.tensor(group["rewards"]), 4)
        assert group["advantages"] == pytest.approx(expected.tolist(), abs=1e-6)
    for record in run.metrics:
        own = [group for group in groups if group["step"] == record["step"]]
        rewards = [reward for group in own for reward in group["rewards"]]
        tokens = sum(sum(group["tokens"]) for group in own)
        assert record["reward_mean"] == pytest.approx(sum(rewards) / len(rewards))
        assert record["generated_tokens"] == tokens
        assert record["length"] == pytest.approx(tokens / len(rewards))
        assert {"entropy", "kl", "kl_response", "truncated", "format_rate"} <= record.keys()
    assert run.metrics[0]["kl"] == pytest.approx(0, abs=1e-6) and run.metrics[2]["kl"] > 0
    assert "eval_accuracy" in run.metrics[1] and "eval_accuracy" not in run.metrics[0]
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved["method"] == "grpo" and saved["reference"]


def test_further_numbers_of_a_reward_are_logged(tiny_folder):
    run = train(tiny_folder, max_steps=1,
                reward_fn=lambda response, gold: vowels(response, gold) | {"true_reward": 0.25})
    assert run.metrics[0]["true_reward"] == 0.25
