"""Losses and advantages beside TRL's in float64: values and gradients of every parameter."""

import copy

import pytest
import torch

from helpers.logprobs import pad_prompt_and_response, response_log_probs
from helpers.losses import aggregate, group_advantages, grpo_clip_loss, kl_estimate
from helpers.policy_losses import gspo_loss
from helpers.training.grpo_step import grpo_step

PROMPTS, RESPONSES = [[5, 6, 7], [8, 9, 10]] * 2, [[11, 12, 13], [14, 0], [15], [16, 17, 18, 0]]
ADVANTAGES = torch.tensor([1.5, -0.5, 0.7, -1.1], dtype=torch.float64)
QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
         "disable_tqdm": True}


def trainer_of(model, tokenizer, folder, rewards=None, *, method="GRPO", **options):
    import trl
    from datasets import Dataset

    options = {"num_generations": 2, "per_device_train_batch_size": 4} | options
    if method == "GRPO":
        options["use_bias_correction_kl"] = False
    config = getattr(trl, f"{method}Config")(
        str(folder), max_completion_length=5, temperature=0.7, **options, **QUIET)
    return getattr(trl, f"{method}Trainer")(
        model, args=config, processing_class=tokenizer,
        reward_funcs=lambda completions, **_: rewards or [0.0] * len(completions),
        train_dataset=Dataset.from_dict({"prompt": ["Nora", "Luben"]}))


@pytest.fixture
def policies(tiny_random_model, tmp_path):
    """(policy, reference, tokenizer) in float64; the reference is where TRL loads its own from."""
    model, tokenizer = tiny_random_model
    model.save_pretrained(tmp_path / "reference")
    policy = copy.deepcopy(model).double()
    torch.manual_seed(3)
    for parameter in policy.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    policy.config._name_or_path = str(tmp_path / "reference")
    return policy, model.double(), tokenizer


@pytest.mark.parametrize(("loss_type", "how"), [
    ("grpo", "sequence_mean"), ("bnpo", "token_mean"), ("dr_grpo", "constant"),
    ("gspo", "sequence_mean"), ("dapo", "token_mean"),
])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_loss_and_gradients_equal_trl(policies, tmp_path, loss_type, how, beta):
    policy, reference, tokenizer = policies
    batch = pad_prompt_and_response(PROMPTS, RESPONSES, pad_token_id=0)
    mask = batch["response_mask"]
    scores = response_log_probs(policy, **batch, temperature=0.7)["log_probs"]
    with torch.no_grad():
        ref = response_log_probs(reference, **batch, temperature=0.7)["log_probs"]
        noise = torch.randn(scores.shape, generator=torch.manual_seed(4), dtype=torch.float64)
        old = scores + 0.4 * noise * mask
    is_gspo, tokens = loss_type == "gspo", 37.0  # of the whole step, of which DAPO takes the mean
    low, high = (0.03, 0.04) if is_gspo else (0.2, 0.28)

    def surrogate(*inputs):
        if not is_gspo:
            return grpo_clip_loss(*inputs)
        return gspo_loss(*inputs[:3], mask, *inputs[3:])

    loss, info = grpo_step(
        scores, old, mask, torch.zeros(4, dtype=torch.float64), 2, ref_log_probs=ref, beta=beta,
        clip_low=low, clip_high=high, reduction=how, constant=5,
        normalizer=tokens if loss_type == "dapo" else None,
        functions={"grpo_clip_loss": surrogate, "aggregate": aggregate, "kl_estimate": kl_estimate,
                   "group_advantages": lambda *_, **__: ADVANTAGES})
    ours = torch.autograd.grad(loss, list(policy.parameters()))
    assert info["clipped"].any() and not info["clipped"].all()

    trainer = trainer_of(policy, tokenizer, tmp_path, beta=beta, epsilon=low, epsilon_high=high,
                         loss_type="grpo" if is_gspo else loss_type,
                         importance_sampling_level="sequence" if is_gspo else "token")
    length = max(map(len, RESPONSES))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in RESPONSES])
    expected = trainer._compute_loss(policy.eval(), {
        "prompt_ids": torch.tensor(PROMPTS), "prompt_mask": torch.ones(4, 3, dtype=torch.long),
        "completion_ids": ids, "completion_mask": mask[:, 2:].long(), "advantages": ADVANTAGES,
        "old_per_token_logps": old[:, 2:], "ref_per_token_logps": ref[:, 2:],
        "num_items_in_batch": torch.tensor(tokens),
    })
    theirs = torch.autograd.grad(expected, list(policy.parameters()))
    assert loss.dtype == torch.float64
    assert abs(loss.item() - expected.item()) < 1e-5 and abs(expected.item()) > 1e-3
    for mine, other in zip(ours, theirs, strict=True):
        # TRL's log-probabilities are float32: 1e-7 of each of some fifty terms.
        torch.testing.assert_close(mine, other.double(), atol=1e-5, rtol=1e-5)


REWARDS = torch.tensor([1.0, 0.25, 0.0, 0.5, 0.0, 0.0, 0.125, 1.0], dtype=torch.float64)


def trl_advantages(model, tokenizer, folder, group_size, **options):
    """TRL's advantages of REWARDS, in groups of one prompt."""
    trainer = trainer_of(model, tokenizer, folder, REWARDS.tolist(), num_generations=group_size,
                         per_device_train_batch_size=len(REWARDS), **options)
    rows = [{"prompt": f"Nora {i // group_size}"} for i in range(len(REWARDS))]
    return trainer._generate_and_score_completions(rows)["advantages"].double()


@pytest.mark.parametrize("group_size", [2, 4])
@pytest.mark.parametrize(("theirs", "ours"), [
    ({"scale_rewards": "group"}, {"scale": "std"}),
    ({"scale_rewards": "none"}, {"scale": "none"}),
    ({"method": "RLOO", "beta": 0.0}, {"baseline": "leave_one_out", "scale": "none"}),
])
def test_advantages_equal_trl(tiny_random_model, tmp_path, theirs, ours, group_size):
    found = trl_advantages(*tiny_random_model, tmp_path, group_size, **theirs)
    advantages = group_advantages(REWARDS, group_size, eps=1e-4, **ours)
    torch.testing.assert_close(found, advantages, atol=1e-6, rtol=0)


def test_scaled_by_the_batch_trl_divides_by_the_raw_rewards_std_and_we_by_the_centred_ones(
    tiny_random_model, tmp_path
):
    """Theirs shrinks with the spread of the prompts' difficulty; ours always has a std of 1."""
    centred = group_advantages(REWARDS, 4, scale="none")
    theirs = trl_advantages(*tiny_random_model, tmp_path, 4, scale_rewards="batch")
    torch.testing.assert_close(theirs, centred / (REWARDS.std() + 1e-4), atol=1e-6, rtol=0)
    ours = group_advantages(REWARDS, 4, scale="batch", eps=1e-4)
    torch.testing.assert_close(ours, centred / (centred.std() + 1e-4), atol=1e-6, rtol=0)
    assert (ours - theirs).abs().max() > 1e-2
