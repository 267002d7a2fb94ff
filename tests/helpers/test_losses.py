"""helpers.losses against golden vectors, finite differences, TRL and the edge cases."""

import copy
import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import losses
from helpers.logprobs import (
    pad_prompt_and_response,
    response_log_probs,
    tokenize_prompt_and_response,
)
from helpers.losses import (
    aggregate,
    bradley_terry_loss,
    dpo_loss,
    group_advantages,
    grpo_clip_loss,
    kl_estimate,
    masked_mean,
    masked_normalize,
    policy_gradient_loss,
    sft_loss,
)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(actual, expected, atol=1e-6):
    """The golden vectors are written with six decimals."""
    torch.testing.assert_close(actual, f64(expected), atol=atol, rtol=0)


def check_gradient(function, *inputs):
    assert torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in inputs])


# log-probs of the policy and the reference for (chosen, rejected), N = 2, margins 2.5 and -2
PAIRS = f64([-10, -20]), f64([-12, -17]), f64([-11, -19.5]), f64([-10.5, -18.5])

# a batch of responses of three and two tokens; the padding holds what must not leak
NEW = f64([[-1, -0.5, -2], [-0.7, -1.5, -3]])
OLD = f64([[-1.3, -0.5, -1.7], [-0.4, -1.1, -9]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
ADVANTAGES = f64([1.5, -0.5])


def test_docstring_examples():
    assert doctest.testmod(losses, extraglobs={"torch": torch}).failed == 0
    assert doctest.testmod(losses).attempted > 10


# --- reductions -----------------------------------------------------------------------------------


def test_masked_mean_and_normalize_along_axes():
    values = f64([[1, 2, 30], [5, 70, 90]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    near(masked_mean(values, mask), 8 / 3)
    near(masked_mean(values, mask, dim=1), [1.5, 5])
    near(masked_mean(values, mask, dim=0), [3, 2, 0])
    near(masked_normalize(values, mask, 4.0), 2.0)
    near(masked_normalize(values, mask, 4.0, dim=1), [0.75, 1.25])
    check_gradient(lambda x: masked_mean(x, mask, dim=1), values)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_padding_cannot_leak(bad):
    values = torch.tensor([[1.0, 3.0, bad]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    for loss in (masked_mean(values, mask), aggregate(values, mask), sft_loss(values, mask)):
        assert loss.isfinite()
        (gradient,) = torch.autograd.grad(loss, values)
        assert gradient.isfinite().all() and gradient[0, 2] == 0


@pytest.mark.parametrize("how", ["sequence_mean", "token_mean", "constant"])
def test_empty_mask_is_zero_with_zero_gradient(how):
    values = torch.randn(3, 4, requires_grad=True)
    loss = aggregate(values, torch.zeros(3, 4, dtype=torch.bool), how, constant=7)
    loss.backward()
    assert loss == 0 and (values.grad == 0).all()


def test_aggregate_counts_an_empty_row_as_a_sequence_of_zero():
    values, mask = f64([[2, 4], [9, 9]]), torch.tensor([[1, 1], [0, 0]])
    near(aggregate(values, mask, "sequence_mean"), 1.5)
    near(aggregate(values, mask, "token_mean"), 3)
    near(aggregate(values, mask, "constant", constant=3), 1)


@pytest.mark.parametrize(
    ("how", "whole_step"),
    [("sequence_mean", 4), ("token_mean", 12), ("constant", 4 * 6)],
)
def test_micro_batches_add_up_to_the_whole_step(how, whole_step):
    values = torch.randn(4, 6, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([1, 6, 3, 2])[:, None]
    whole = aggregate(values, mask, how, constant=6)
    parts = [
        aggregate(values[i : i + 1], mask[i : i + 1], how, constant=6, normalizer=whole_step)
        for i in range(4)
    ]
    torch.testing.assert_close(sum(parts), whole)
    naive = sum(aggregate(values[i : i + 1], mask[i : i + 1], how, constant=6) for i in range(4))
    assert (abs(naive / 4 - whole) > 1e-3) == (how == "token_mean")  # the mean of means is wrong


def test_aggregate_names_what_is_wrong():
    with pytest.raises(ValueError, match="needs constant"):
        aggregate(NEW, MASK, "constant")
    with pytest.raises(ValueError, match="'mean'"):
        aggregate(NEW, MASK, "mean")


# --- supervised and reward model ------------------------------------------------------------------


def test_sft_loss_equals_the_loss_of_transformers(tiny_random_model):
    model, _ = tiny_random_model
    batch = pad_prompt_and_response([[5, 6], [7]], [[8, 9], [10, 11, 12, 0]], pad_token_id=0)
    mask = batch["response_mask"]
    scores = response_log_probs(model, **batch)["log_probs"]
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"].long()).logits
    labels = batch["labels"].masked_fill(~mask, -100)
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels)
    torch.testing.assert_close(sft_loss(scores, mask), expected)


def test_bradley_terry_golden():
    chosen, rejected = f64([1.2, 0.3]), f64([0.4, 0.9])
    near(bradley_terry_loss(chosen, rejected), [0.371101, 1.037488])
    near(bradley_terry_loss(chosen, rejected, margin=f64([0.5, 0])), [0.554355, 1.037488])
    near(bradley_terry_loss(chosen, rejected, center_coefficient=0.01).mean(), 0.724294)
    check_gradient(lambda c, r: bradley_terry_loss(c, r, 0.3, 0.01), chosen, rejected)


def test_bradley_terry_is_stable_far_out():
    losses_ = bradley_terry_loss(torch.tensor([200.0, -200.0]), torch.tensor([-200.0, 200.0]))
    assert losses_.tolist() == [0.0, 400.0]


# --- preferences ----------------------------------------------------------------------------------


def test_dpo_golden_per_example():
    values, chosen, rejected = dpo_loss(*PAIRS)
    near(values, [0.575939, 0.798139])
    near(chosen, [0.1, -0.05])
    near(rejected, [-0.15, 0.15])
    assert not chosen.requires_grad
    near(dpo_loss(*PAIRS, label_smoothing=0.1)[0], [0.600939, 0.778139])


def test_dpo_gradient_and_its_sign():
    check_gradient(lambda *logps: dpo_loss(*logps, beta=0.3, label_smoothing=0.1)[0], *PAIRS)
    inputs = [x.clone().requires_grad_() for x in PAIRS]
    dpo_loss(*inputs)[0].sum().backward()
    sigmoid = torch.sigmoid(-0.1 * f64([2.5, -2.0]))
    torch.testing.assert_close(inputs[0].grad, -0.1 * sigmoid)  # up with the chosen
    torch.testing.assert_close(inputs[1].grad, 0.1 * sigmoid)


def test_dpo_at_the_reference_is_log_two():
    values, *_ = dpo_loss(PAIRS[0], PAIRS[1], PAIRS[0], PAIRS[1])
    near(values, [math.log(2)] * 2, atol=1e-12)


# --- policy gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"eps": 1e-4}, [1.4997, -0.4999, -0.4999, -0.4999]),
        ({"eps": 0}, [1.5, -0.5, -0.5, -0.5]),  # the unbiased std, not 1.7317
        ({"scale": "none"}, [0.75, -0.25, -0.25, -0.25]),
        ({"baseline": "leave_one_out", "scale": "none"}, [1, -1 / 3, -1 / 3, -1 / 3]),
        ({"baseline": "none", "scale": "none"}, [1, 0, 0, 0]),
        ({"scale": "mean"}, [3, -1, -1, -1]),
    ],
)
def test_group_advantages_golden(options, expected):
    near(group_advantages(f64([1, 0, 0, 0]), 4, **options), expected, atol=5e-5)


def test_a_negative_reward_has_no_mean_scale():
    """Divided by a group's mean of -2, the worse of two rewards would get the advantage."""
    with pytest.raises(ValueError, match="scale=\"mean\" is for rewards of 0 or more.*-3"):
        group_advantages(torch.tensor([-1.0, -3.0]), 2, scale="mean")
    better, worse = group_advantages(torch.tensor([-1.0, -3.0]), 2, scale="std").tolist()
    assert better > 0 > worse


def test_batch_scale_is_the_std_of_the_centred_rewards():
    rewards = f64([1, 0, 5, 2])
    centred = f64([0.5, -0.5, 1.5, -1.5])
    actual = group_advantages(rewards, 2, scale="batch", eps=0)
    torch.testing.assert_close(actual, centred / centred.std())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["std", "none", "batch", "mean"])
def test_all_equal_groups_are_exactly_zero(dtype, baseline, scale):
    rewards = torch.tensor([0.7] * 8 + [0.1] * 8 + [0.0] * 8, dtype=dtype)
    for group_size in (8, 1):
        advantages = group_advantages(rewards, group_size, baseline=baseline, scale=scale)
        assert (advantages == 0).all() and advantages.dtype == dtype


def test_groups_are_consecutive_rows():
    by_prompt = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])  # constant within each prompt
    assert (group_advantages(by_prompt, 3) == 0).all()
    assert (group_advantages(by_prompt, 2)[2:4] != 0).all()
    assert group_advantages(torch.tensor([1, 0]), 2, scale="none").tolist() == [0.5, -0.5]
    with pytest.raises(ValueError, match="6 rewards .* groups of 4"):
        group_advantages(by_prompt, 4)
    with pytest.raises(ValueError, match="scale"):
        group_advantages(by_prompt, 3, scale="variance")
    with pytest.raises(ValueError, match="baseline"):
        group_advantages(by_prompt, 3, baseline="median")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(-3, 3))
def test_advantages_ignore_a_shift_and_sum_to_zero(rewards, shift):
    rewards = f64(rewards)
    advantages = group_advantages(rewards, 3, scale="none")
    torch.testing.assert_close(advantages.view(2, 3).sum(1), f64([0, 0]), atol=1e-9, rtol=0)
    shifted = group_advantages(rewards + shift, 3, scale="none")
    torch.testing.assert_close(shifted, advantages, atol=1e-9, rtol=0)


def test_policy_gradient_loss_takes_both_forms_of_advantages():
    expected = -ADVANTAGES[:, None] * NEW
    torch.testing.assert_close(policy_gradient_loss(NEW, ADVANTAGES), expected)
    per_token = ADVANTAGES[:, None].expand(2, 3)
    torch.testing.assert_close(policy_gradient_loss(NEW, per_token), expected)
    check_gradient(lambda x: policy_gradient_loss(x, ADVANTAGES), NEW)


@pytest.mark.parametrize(
    ("clip_high", "expected"),
    [(None, [-0.535205, -0.722245, -0.601871]), (0.28, [-0.555205, -0.746245, -0.621871])],
)
def test_clipped_surrogate_golden(clip_high, expected):
    token_losses, _ = grpo_clip_loss(NEW, OLD, ADVANTAGES, 0.2, clip_high)
    hows = ("sequence_mean", "token_mean", "constant")
    for how, value in zip(hows, expected, strict=True):
        near(aggregate(token_losses, MASK, how, constant=3), value)


def test_clipped_tokens_are_those_without_gradient():
    new = NEW.clone().requires_grad_()
    token_losses, info = grpo_clip_loss(new, OLD, ADVANTAGES)
    token_losses.sum().backward()
    assert torch.equal(info["clipped"], new.grad == 0)
    # ratios 1.35, 1, .74 with A > 0: only the first is clipped; .74, .67 with A < 0: both
    assert info["clipped"][MASK].tolist() == [True, False, False, True, True]
    torch.testing.assert_close(info["ratio"], (NEW - OLD).exp())
    check_gradient(lambda x: grpo_clip_loss(x, OLD, ADVANTAGES)[0], NEW)


def test_on_policy_the_clipped_loss_has_the_policy_gradient():
    first, second = NEW.clone().requires_grad_(), NEW.clone().requires_grad_()
    token_losses, info = grpo_clip_loss(first, NEW, ADVANTAGES)
    token_losses.sum().backward()
    policy_gradient_loss(second, ADVANTAGES).sum().backward()
    torch.testing.assert_close(first.grad, second.grad)
    assert not info["clipped"].any() and (info["ratio"] == 1).all()


def test_kl_estimates_over_a_categorical():
    generator = torch.manual_seed(0)
    policy, ref = torch.randn(2, 8, dtype=torch.float64, generator=generator).log_softmax(-1)
    true_kl = (policy.exp() * (policy - ref)).sum()
    kinds = ("k1", "k2", "k3")
    expectation = {k: (policy.exp() * kl_estimate(policy, ref, k)).sum() for k in kinds}
    torch.testing.assert_close(expectation["k1"], true_kl)
    torch.testing.assert_close(expectation["k3"], true_kl)
    assert abs(expectation["k2"] - true_kl) > 1e-3
    assert (kl_estimate(policy, ref, "k3") >= 0).all()
    assert (kl_estimate(policy, policy, "k3") == 0).all()
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(policy, ref, "k4")


def test_kl_estimate_gradients_in_expectation():
    """Sampling from pi, d k2 has the gradient of the KL in the mean and d k1 has none."""
    logits = torch.randn(6, dtype=torch.float64, generator=torch.manual_seed(1)).requires_grad_()
    ref = torch.randn(6, dtype=torch.float64, generator=torch.manual_seed(2)).log_softmax(-1)
    policy = logits.log_softmax(-1)
    weights = policy.exp().detach()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    true_gradient = gradient((policy.exp() * (policy - ref)).sum())
    k1, k2 = (gradient((weights * kl_estimate(policy, ref, k)).sum()) for k in ("k1", "k2"))
    torch.testing.assert_close(k2, true_gradient)
    torch.testing.assert_close(k1, torch.zeros_like(k1), atol=1e-12, rtol=0)


def test_bfloat16_and_one_token_responses():
    new = torch.tensor([[-0.5], [-1.5]], dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(2, 1, dtype=torch.bool)
    token_losses, _ = grpo_clip_loss(new, new.detach(), torch.tensor([1.0, -1.0]))
    for how in ("sequence_mean", "token_mean", "constant"):
        assert aggregate(token_losses, mask, how, constant=1) == 0
    assert sft_loss(new, mask) == 1.0
    kl_estimate(new, new.detach(), "k3").sum().backward()
    assert new.grad.isfinite().all()


# --- TRL as the oracle, on a random model and real tokens -----------------------------------------


@pytest.fixture
def perturbed(tiny_random_model):
    """(policy, reference, tokenizer): two models that differ a little."""
    model, tokenizer = tiny_random_model
    policy = copy.deepcopy(model)
    torch.manual_seed(3)
    for parameter in policy.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return policy, model, tokenizer


TRL_SETTINGS = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def test_dpo_equals_trl_from_texts_to_loss(perturbed, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, reference, tokenizer = perturbed
    # TRL tokenises prompt and response as one text; no token can cross a space here.
    texts = {
        "prompt": ["Nora has 12 apples.", "Where did Luben study?"],
        "chosen": [" She has 42 now.", " Nelgarton"],
        "rejected": [" 30", " the school of apples and more apples"],
    }
    settings_ = DPOConfig(str(tmp_path), per_device_train_batch_size=2, beta=0.3, **TRL_SETTINGS)
    trainer = DPOTrainer(
        policy,
        ref_model=reference,
        args=settings_,
        train_dataset=Dataset.from_dict(texts),
        processing_class=tokenizer,
    )
    expected = trainer.compute_loss(policy, next(iter(trainer.get_train_dataloader())))

    def sums(model, side):
        batch = tokenize_prompt_and_response(
            texts["prompt"], texts[side], tokenizer, append_eos=True
        )
        return response_log_probs(model, **batch)["log_probs"].sum(-1)

    values, *_ = dpo_loss(
        *[sums(model, side) for model in (policy, reference) for side in ("chosen", "rejected")],
        beta=0.3,
    )
    torch.testing.assert_close(values.mean(), expected, atol=1e-5, rtol=1e-5)
    assert abs(values.mean() - math.log(2)) > 0.01


@pytest.mark.parametrize(
    ("loss_type", "how"),
    [("grpo", "sequence_mean"), ("bnpo", "token_mean"), ("dr_grpo", "constant")],
)
def test_clipped_surrogate_with_kl_equals_trl(perturbed, tmp_path, loss_type, how):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    policy, reference, tokenizer = perturbed
    prompts, responses = [[5, 6, 7], [8, 9, 10]], [[11, 12, 13], [14, 0]]
    batch = pad_prompt_and_response(prompts, responses, pad_token_id=0)
    mask = batch["response_mask"]
    scores = response_log_probs(policy, **batch, temperature=0.7)["log_probs"]
    with torch.no_grad():
        ref = response_log_probs(reference, **batch, temperature=0.7)["log_probs"]
        old = scores + 0.4 * torch.randn(scores.shape, generator=torch.manual_seed(4)) * mask
    settings_ = GRPOConfig(
        str(tmp_path), num_generations=2, max_completion_length=5, per_device_train_batch_size=2,
        beta=0.1, use_bias_correction_kl=False, temperature=0.7, loss_type=loss_type,
        **TRL_SETTINGS,
    )  # fmt: skip
    reference.save_pretrained(tmp_path / "reference")
    policy.config._name_or_path = str(tmp_path / "reference")  # where TRL loads its reference from
    trainer = GRPOTrainer(
        policy,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=settings_,
        train_dataset=Dataset.from_dict({"prompt": ["Nora", "Luben"]}),
        processing_class=tokenizer,
    )
    expected = trainer._compute_loss(
        policy.eval(),
        {
            "prompt_ids": torch.tensor(prompts),
            "prompt_mask": torch.ones(2, 3, dtype=torch.long),
            "completion_ids": torch.tensor([[11, 12, 13], [14, 0, 0]]),
            "completion_mask": mask[:, 2:].long(),
            "advantages": ADVANTAGES.float(),
            "old_per_token_logps": old[:, 2:],
            "ref_per_token_logps": ref[:, 2:],
        },
    )
    token_losses, info = grpo_clip_loss(scores, old, ADVANTAGES.float())
    token_losses = token_losses + 0.1 * kl_estimate(scores, ref, "k3")
    actual = aggregate(token_losses, mask, how, constant=5)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert info["clipped"].any()
