"""A number that is not a number reaches no gradient, and no loss that it has no part in."""

import math

import pytest
import torch

from helpers.logprobs import entropy
from helpers.losses import (
    aggregate,
    group_advantages,
    grpo_clip_loss,
    kl_estimate,
    masked_mean,
    policy_gradient_loss,
)
from helpers.policy_losses import gspo_loss, value_loss

MASK = torch.tensor([[1, 1, 0]])
LOSSES = {
    "clip": lambda new, old: grpo_clip_loss(new, old, torch.ones(1))[0],
    "no_clip": lambda new, old: grpo_clip_loss(new, old, -torch.ones(1), math.inf)[0],
    "gspo": lambda new, old: gspo_loss(new, old, torch.ones(1), MASK)[0],
    "k1": lambda new, old: kl_estimate(new, old, "k1"),
    "k2": lambda new, old: kl_estimate(new, old, "k2"),
    "k3": lambda new, old: kl_estimate(new, old, "k3"),
    "value": lambda new, old: value_loss(new, old, old, MASK),
    "policy gradient": lambda new, old: policy_gradient_loss(new, old),
}


def gradient(loss, old):
    new = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    return torch.autograd.grad(aggregate(loss(new, old), MASK), new)[0]


@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf, 1e30, -1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_no_gradient(name, padding):
    old = torch.tensor([[-1.1, -2.3, -3.0]])
    found = gradient(LOSSES[name], old.index_fill(1, torch.tensor([2]), padding))
    assert torch.equal(found, gradient(LOSSES[name], old)) and found[0, 2] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_nan_in_the_response_is_seen_in_the_loss(name):
    loss = LOSSES[name](torch.zeros(1, 3), torch.tensor([[0.0, math.nan, 0.0]]))
    assert aggregate(loss, MASK).isnan()


@pytest.mark.parametrize("advantage, loss", [(0.0, 0.0), (1.0, -1.2), (-1.0, math.inf)])
def test_a_ratio_that_overflows(advantage, loss):
    """e^200 is no float32: times 0 it is 0, a good token is clipped, a bad one is infinite."""
    new = torch.tensor([[200.0, 0.1]], requires_grad=True)
    losses, info = grpo_clip_loss(new, torch.zeros(1, 2), torch.tensor([advantage]))
    assert losses[0, 0].item() == pytest.approx(loss)
    losses.sum().backward()
    assert new.grad[0].tolist() == pytest.approx([0.0, -advantage * math.exp(0.1)])
    assert info["clipped"][0].tolist() == [advantage > 0, False]


def test_an_unclipped_ratio_that_overflows_is_no_small_loss():
    new = torch.tensor([[200.0]])
    assert grpo_clip_loss(new, torch.zeros(1, 1), torch.zeros(1), math.inf)[0].item() == 0
    assert grpo_clip_loss(new, torch.zeros(1, 1), torch.ones(1), math.inf)[0].item() == -math.inf


def test_what_cannot_happen_adds_no_entropy():
    logits = torch.tensor([[1.0, -math.inf, 0.0, -math.inf]], requires_grad=True)
    p = math.e / (1 + math.e)
    found = entropy(logits)
    assert found.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert grad[0].tolist() == pytest.approx([-p * (1 - p), 0.0, p * (1 - p), 0.0])
    assert entropy(torch.tensor([math.nan, 0.0])).isnan()


@pytest.mark.parametrize("scale", ["std", "batch", "none", "mean"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_has_no_advantage(scale, bad):
    with pytest.raises(ValueError, match=f"Reward 2 is {bad}, which has no advantage: leave its"):
        group_advantages(torch.tensor([1.0, 0.0, bad, 1.0]), 2, scale=scale)


def test_half_precision_does_not_move_a_mean():
    rewards = torch.tensor([100.0, 100.5, 101.0, 100.0])  # all of them numbers of bfloat16
    found = group_advantages(rewards.bfloat16(), 4, scale="none")
    assert found.tolist() == [-0.375, 0.125, 0.625, -0.375]
    # 257 is no number of bfloat16: a count in the mask's own type would be 256.
    ones, mask = torch.ones(1, 257), torch.ones(1, 257, dtype=torch.bfloat16)
    assert masked_mean(ones, mask) == 1 == aggregate(ones, mask, "token_mean")
    # exp(19) - 20 is above the largest number of float16.
    new, old = torch.tensor([[-20.0]]), torch.tensor([[-1.0]])
    kl = kl_estimate(new.half(), old.half())
    assert kl.item() == pytest.approx(math.exp(19) - 20, rel=1e-6)
