"""helpers.training.train_ppo: GAE and the value loss by hand, gradients, resuming, learning."""

import os
import signal
import warnings
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.logprobs import pad_prompt_and_response, response_log_probs
from helpers.losses import grpo_clip_loss, masked_mean
from helpers.policy_losses import gae, value_loss, whiten
from helpers.training import train_ppo
from helpers.training.engines import TransformersEngine
from helpers.training.ppo import FUNCTIONS, PPO, value_head
from helpers.training.rollout_loop import RolloutLoop
from helpers.training.rollouts import Tasks
from tests.helpers.grpo_world import DATA, fresh, gradients, largest_difference, parts, vowels
from tests.helpers.grpo_world import ppo_settings as settings
from tests.helpers.grpo_world import train_by_ppo as train


def test_gae_golden():
    rewards = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.2, 0.5, 0.4]], dtype=torch.float64)
    advantages, returns = gae(rewards, values, torch.ones(1, 3))
    assert advantages[0].tolist() == pytest.approx([0.7465, 0.47, 0.6], abs=1e-12)
    assert returns[0].tolist() == pytest.approx([0.9465, 0.97, 1.0], abs=1e-12)


@given(st.integers(0, 2**31), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_gae_is_the_sum_over_the_future_and_padding_is_nothing(seed, gamma, lam):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([6, 4, 1])
    mask = torch.arange(6) < lengths[:, None]
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths.tolist()):
        ahead = [*values[row, 1:length].tolist(), 0.0]
        deltas = [float(rewards[row, t] - values[row, t]) + gamma * ahead[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length))
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-9)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()
    torch.testing.assert_close((advantages + values)[mask], returns[mask])


def test_value_loss_by_hand():
    values = torch.tensor([[1.0, 0.1, 5.0]], requires_grad=True)
    old, returns = torch.zeros(1, 3), torch.tensor([[2.0, 0.3, float("nan")]])
    mask = torch.tensor([[1, 1, 0]])
    losses = value_loss(values, old, returns, mask)
    assert losses[0].tolist() == pytest.approx([1.62, 0.02, 0.0])
    losses.sum().backward()
    assert values.grad[0, 0] == 0.0  # the clipped branch is the larger one: no gradient
    assert values.grad[0, 1] == pytest.approx(-0.2)
    assert value_loss(values, old, returns, mask, clip=None)[0, 0] == 0.5


def test_whitened_advantages():
    generator = torch.Generator().manual_seed(0)
    values, mask = torch.randn(3, 5, generator=generator) * 4 + 2, torch.ones(3, 5).tril() > 0
    white = whiten(values, mask)
    assert masked_mean(white, mask).abs() < 1e-6
    assert masked_mean(white**2, mask) == pytest.approx(1.0, abs=1e-5)
    assert (white[~mask] == 0).all() and (whiten(torch.ones(2, 2), torch.ones(2, 2)) == 0).all()


def test_gradients_are_those_of_a_plain_loop(tiny_folder):
    model, tokenizer = fresh(tiny_folder, dtype=torch.float64)
    chosen = settings(temperature=0.8, value_clip=None)
    with value_head(model):
        torch.nn.init.normal_(model.value_head.weight, std=0.2)
        method = PPO(Tasks(DATA, tokenizer, 8, 256), chosen, FUNCTIONS, vowels)
        loop = RolloutLoop(model.train(), method, chosen, TransformersEngine(model, tokenizer))
        found, rollouts, sums = gradients(loop)
        assert sums["gap"] < 1e-5
        batch = pad_prompt_and_response([c.prompt_token_ids for c in rollouts.completions],
                                        [c.token_ids for c in rollouts.completions], 0)
        mask = batch["response_mask"]
        log_probs = response_log_probs(model, **batch, temperature=0.8)["log_probs"]
        hidden = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[-1]
        values = model.value_head(hidden).squeeze(-1)
        rewards = torch.zeros(mask.shape, dtype=torch.float64)
        for row in range(len(mask)):
            rewards[row, mask[row].nonzero()[-1]] = float(rollouts.rewards[row])
        # From the end of the prompt on, as rows of response tokens only.
        width = int(mask.sum(1).max())
        order = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        own, short = mask.gather(1, order), values.gather(1, order)
        advantages, returns = gae(rewards.gather(1, order), short, own)
        surrogate, _ = grpo_clip_loss(log_probs.gather(1, order), log_probs.gather(1, order),
                                      whiten(advantages, own))
        losses = surrogate + 0.5 * (short - returns) ** 2 / 2
        (losses * own).sum().div(own.sum()).backward()
        plain = {name: p.grad for name, p in loop.parameters.items()}
    assert {"value_head.weight", "value_head.bias"} < plain.keys()
    assert largest_difference(found, plain) < 1e-6


def test_values_learn_what_the_prompt_tells(tiny_folder):
    """Half of the prompts are paid, whatever is answered; each step has all six."""
    run = train(tiny_folder, max_steps=20, lr=5e-3, prompts_per_step=6,
                reward_fn=lambda response, gold: parts(float(int(gold) % 2)))
    explained = [record["explained_variance"] for record in run.metrics]
    assert explained[0] == pytest.approx(0, abs=1e-6) and fmean(explained[-5:]) > 0.3, explained


def test_rewards_rise(tiny_folder):
    run = train(tiny_folder, max_steps=25, lr=2e-2, samples_per_prompt=8, dtype=torch.float64)
    first, last = run.metrics[0], run.metrics[-1]
    assert last["reward_mean"] > first["reward_mean"] + 0.2
    assert first["ratio_gap"] < 1e-5 and first["updates"] == 4
    assert not hasattr(run.model, "value_head")


def test_killed_and_interrupted_it_goes_on_to_the_same_weights(tiny_folder, tmp_path):
    def stop_button(run, record):
        if record["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    options = {"beta": 0.1, "max_steps": 4, "save_every": 1}
    whole = train(tiny_folder, **options)
    part = train(tiny_folder, tmp_path, callbacks=[stop_button], **options)
    assert part.summary["status"] == "interrupted" and part.summary["steps"] == 2
    again = train(tiny_folder, tmp_path, **options)
    found = dict(again.model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, found[name]), name
    assert [row["kl"] for row in again.metrics] == [row["kl"] for row in whole.metrics]


def test_the_same_model_goes_on_in_the_same_session(tiny_folder, tmp_path):
    """Its value head is gone by then, and 0 when it is made anew."""
    def stop_button(run, record):
        if record["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    model, tokenizer = fresh(tiny_folder)
    options = {"tokenizer": tokenizer, "reward_fn": vowels, "out_dir": tmp_path / "run"}
    chosen = settings(max_steps=3, beta=0.1)
    part = train_ppo(model, DATA, chosen, callbacks=[stop_button], **options)
    assert part.summary["steps"] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = train_ppo(model, DATA, chosen, **options)
    assert [row["step"] for row in whole.metrics] == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for name, parameter in train(tiny_folder, beta=0.1).model.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name


def test_the_kl_penalty_is_taken_off_each_token(tiny_folder):
    seen = []

    def spy(rewards, values, mask, *options):
        seen.append((rewards, mask))
        return gae(rewards, values, mask, *options)

    train(tiny_folder, beta=0.5, functions={"gae": spy}, max_steps=2, lr=0.05, dtype=torch.float64,
          reward_fn=lambda response, gold: parts(1.0))
    (first, mask), (second, _) = seen
    assert first.sum(1).tolist() == pytest.approx([1.0] * 16, abs=1e-5)  # still the reference
    assert (second.abs().sum(1) - 1).abs().max() > 1e-3
    assert mask.sum() > 16


def test_a_reward_that_is_no_number_leaves_its_group_out(tiny_folder):
    def broken(response, gold):
        return parts(float("inf") if gold == "1" else 1.0)

    with pytest.warns(UserWarning, match="has the reward inf"):
        run = train(tiny_folder, reward_fn=broken, prompts_per_step=6, max_steps=1)
    assert run.metrics[0]["trained_rows"] == 2 * 20 and run.metrics[0]["bad_rewards"] == 4
