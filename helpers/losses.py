"""Losses, advantages, KL estimators and reductions: pure functions of tensors.

Notation: B sequences, T time steps, N pairs, G samples of one prompt. `log_probs` are (B, T) as
`helpers.logprobs.response_log_probs` gives them; `*_logps` are their sums over the response, (N,).
Functions return one value an element wherever possible; `aggregate` reduces them. The losses on
preferences stand in `helpers.preference_losses` and are names of this module, too.
"""

from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from helpers.logprobs import at_least_float32
from helpers.preference_losses import (
    dpo_loss,
    hinge_loss,
    implicit_rewards,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)

__all__ = [
    "aggregate",
    "bradley_terry_loss",
    "clipped_surrogate",
    "dpo_loss",
    "group_advantages",
    "grpo_clip_loss",
    "hinge_loss",
    "implicit_rewards",
    "ipo_loss",
    "kl_estimate",
    "kto_loss",
    "kto_reference_point",
    "masked_mean",
    "masked_normalize",
    "orpo_loss",
    "policy_gradient_loss",
    "robust_dpo_loss",
    "sft_loss",
    "simpo_loss",
    "with_gradient_where",
]

# --- reductions -----------------------------------------------------------------------------------


def masked_mean(tensor: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Mean over the elements where the mask is True, over all axes or along `dim`.

    An empty selection gives 0, with zero gradient.

    Example:
        >>> masked_mean(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]]))
        tensor(2.)
    """
    mask = mask.bool()  # a mask in bfloat16 counts 1001 as 1000
    count = mask.sum() if dim is None else mask.sum(dim)
    return _masked_sum(tensor, mask, dim) / count.clamp(min=1)


def masked_normalize(
    tensor: torch.Tensor,
    mask: torch.Tensor,
    normalize_constant: float,
    dim: int | None = None,
) -> torch.Tensor:
    """Sum over the elements where the mask is True, divided by a constant.

    Unlike a mean it weighs every token the same, however long its response is (Liu et al. 2025,
    "Understanding R1-Zero-Like Training", section 3.1). An empty selection gives 0.

    Example:
        >>> masked_normalize(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]]), 8)
        tensor(0.5000)
    """
    return _masked_sum(tensor, mask, dim) / normalize_constant


def _masked_sum(tensor: torch.Tensor, mask: torch.Tensor, dim: int | None) -> torch.Tensor:
    # masked_fill and not a product: 0 * inf and 0 * nan are nan, and padding may hold both.
    kept = tensor.masked_fill(~mask.bool(), 0.0)
    return kept.sum() if dim is None else kept.sum(dim)


def aggregate(
    token_losses: torch.Tensor,
    mask: torch.Tensor,
    how: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean",
    constant: float | None = None,
    normalizer: float | None = None,
) -> torch.Tensor:
    """Reduce token losses (B, T) to a scalar.

    sequence_mean: mean over each response, then over the sequences (GRPO, Shao et al. 2024, Eq. 3).
    token_mean: over all response tokens alike (DAPO, Yu et al. 2025, Eq. 12).
    constant: sum over each response / `constant`, then mean over the sequences (Dr. GRPO, Liu et
        al. 2025); the constant is a setting, such as max_new_tokens, and not the batch's width.

    normalizer: what the sum is divided by: the number of sequences, of response tokens, or of
        sequences * constant OF THE WHOLE OPTIMISER STEP, over all its micro-batches and processes.
        None takes those of this batch. (The mean of micro-batch means weighs a token by the
        micro-batch it happens to be in.) An empty row counts as a sequence of value 0.

    Example: rows of 3 and 1 tokens, all losses 1 but the last row's 5:
        >>> losses = torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
        >>> mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
        >>> [aggregate(losses, mask, how).item() for how in ("sequence_mean", "token_mean")]
        [3.0, 2.0]
    """
    if how == "sequence_mean":
        total, count = masked_mean(token_losses, mask, dim=-1).sum(), len(token_losses)
    elif how == "token_mean":
        total, count = masked_normalize(token_losses, mask, 1.0), mask.bool().sum().clamp(min=1)
    elif how == "constant":
        if constant is None:
            raise ValueError('aggregate(how="constant") needs constant, such as max_new_tokens.')
        total, count = masked_normalize(token_losses, mask, 1.0), len(token_losses) * constant
    else:
        raise ValueError(
            f'how must be "sequence_mean", "token_mean" or "constant", but it is {how!r}.'
        )
    return total / (count if normalizer is None else normalizer)


# --- supervised and reward model ------------------------------------------------------------------


def sft_loss(
    log_probs: torch.Tensor, response_mask: torch.Tensor, *, normalizer: float | None = None
) -> torch.Tensor:
    """Supervised fine-tuning: the mean of -log p over all response tokens; (B, T) to a scalar.

    normalizer: response tokens of the whole optimiser step; None takes those of this batch.

    Example:
        >>> sft_loss(torch.tensor([[-9.0, -1.0, -3.0]]), torch.tensor([[0, 1, 1]]))
        tensor(2.)
    """
    return aggregate(-log_probs, response_mask, "token_mean", normalizer=normalizer)


def bradley_terry_loss(
    chosen_rewards: torch.Tensor,
    rejected_rewards: torch.Tensor,
    margin: torch.Tensor | None = None,
    center_coefficient: float = 0.0,
) -> torch.Tensor:
    """-log sigmoid(r_chosen - r_rejected - margin), the loss of a reward model; (N,) to (N,).

    Bradley and Terry 1952; Ouyang et al. 2022, Eq. 1; the margin is Touvron et al. 2023, Eq. 2.
    center_coefficient: adds coefficient * (r_chosen + r_rejected)^2, which keeps rewards near 0
        (Eisenstein et al. 2023): the first term sees only their difference.

    Example:
        >>> bradley_terry_loss(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0]))
        tensor([0.6931, 2.1269])
    """
    difference = chosen_rewards - rejected_rewards
    losses = -logsigmoid(difference if margin is None else difference - margin)
    return losses + center_coefficient * (chosen_rewards + rejected_rewards) ** 2


# --- policy gradients -----------------------------------------------------------------------------


def group_advantages(
    rewards: torch.Tensor,
    group_size: int,
    *,
    baseline: Literal["mean", "leave_one_out", "none"] = "mean",
    scale: Literal["std", "none", "batch", "mean"] = "std",
    eps: float = 1e-6,
) -> torch.Tensor:
    """How much better a sample is than the other samples of its prompt; (B,) to (B,).

        A = (r - baseline of its group) / (scale + eps)

    baseline: "mean" of the group (GRPO, Shao et al. 2024, section 4.1.2), "leave_one_out": mean
        of the other samples (RLOO, Ahmadian et al. 2024), or "none".
    scale: "std" of the group, with G - 1 in the denominator; "none" (Dr. GRPO, Liu et al. 2025);
        "batch": the std of the centred rewards of all groups (REINFORCE++ with a baseline, Hu et
        al. 2025, arXiv 2501.03262); "mean" of the group (MaxRL, Tajwar et al. 2026, arXiv
        2602.02710), for rewards of 0 or more: dividing by a negative mean turns every sign.
    Groups are consecutive rows. With a baseline an all-equal group gives exactly 0, also where
    its mean is rounded, and so does a group of one.

    Raises ValueError if B is no multiple of G, for a reward that is nan or infinite (one would
    spread over its group, and with scale="batch" over all), or for a negative one with
    scale="mean".

    Example:
        >>> group_advantages(torch.tensor([1.0, 0, 0, 0]), group_size=4, scale="none")
        tensor([ 0.7500, -0.2500, -0.2500, -0.2500])
    """
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards are not made of groups of {group_size}.")
    kind = rewards.dtype if rewards.is_floating_point() else torch.float32
    rewards = at_least_float32(rewards)  # in bfloat16 the mean of 100, 100.5, 101, 100 is 100.5
    if not rewards.isfinite().all():
        place = int((~rewards.isfinite()).nonzero()[0])
        raise ValueError(
            f"Reward {place} is {rewards[place].item()}, which has no advantage: leave its group "
            "out of the step."
        )
    groups = rewards.view(-1, group_size)  # (B / G, G)
    centred = _subtract_baseline(groups, baseline)
    advantages = centred / (_scale(groups, centred, scale) + eps) if scale != "none" else centred
    return advantages.flatten().to(kind)


def _subtract_baseline(groups: torch.Tensor, baseline: str) -> torch.Tensor:
    size = groups.shape[1]
    if baseline == "none":
        return groups
    if baseline not in ("mean", "leave_one_out"):
        raise ValueError(
            f'baseline must be "mean", "leave_one_out" or "none", but it is {baseline!r}.'
        )
    centred = groups - groups.mean(dim=1, keepdim=True)
    if baseline == "leave_one_out":
        centred = centred * (size / max(1, size - 1))
    # Eight rewards of 0.7 have a float32 mean that is not 0.7: the rest, 6e-8, divided by a
    # standard deviation of the same size, would become an advantage of 0.06.
    all_equal = (groups == groups[:, :1]).all(dim=1, keepdim=True)
    return centred.masked_fill(all_equal, 0.0)


def _scale(groups: torch.Tensor, centred: torch.Tensor, scale: str) -> torch.Tensor:
    if scale == "mean":
        if (groups < 0).any():
            raise ValueError(
                f'scale="mean" is for rewards of 0 or more, but there is {groups.min().item():g}: '
                'a negative mean would turn every sign; take scale="std".'
            )
        return groups.mean(dim=1, keepdim=True)
    if scale == "std":
        return groups.std(dim=1, keepdim=True) if groups.shape[1] > 1 else groups.new_ones(1)
    if scale == "batch":
        return centred.std() if centred.numel() > 1 else groups.new_ones(1)
    raise ValueError(f'scale must be "std", "none", "batch" or "mean", but it is {scale!r}.')


def policy_gradient_loss(log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """-A log pi, whose gradient is the policy gradient (Williams 1992); (B, T) to (B, T).

    advantages: (B,), one a sequence, or (B, T).

    Example:
        >>> policy_gradient_loss(torch.tensor([[-1.0, -2.0]]), torch.tensor([0.5]))
        tensor([[0.5000, 1.0000]])
    """
    advantages = _per_token(advantages)
    losses = -advantages * with_gradient_where(advantages.isfinite(), log_probs)
    return losses.masked_fill(log_probs.isinf() & (advantages == 0), 0.0)


def grpo_clip_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped surrogate (PPO, Schulman et al. 2017, Eq. 7; GRPO, Shao et al. 2024, Eq. 3).

        loss = -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A),  w = pi / pi_old

    advantages: (B,) or (B, T). clip_high: None takes clip_low; larger is DAPO's clip-higher.
    Returns the losses (B, T) and {"ratio": w, "clipped": True where the clipped branch is the
    active one, so that the token has no gradient}, both (B, T), for means over the response mask.
    A ratio that overflows has a loss of 0 where the advantage is 0. What is no finite number in the
    inputs, such as a nan at padding, shows in the loss and has no gradient.

    Example: a good token that is already 1.5 times as likely is not pushed on:
        >>> new, old = torch.tensor([[1.5]]).log(), torch.zeros(1, 1)
        >>> loss, info = grpo_clip_loss(new, old, advantages=torch.ones(1))
        >>> loss, info["clipped"]
        (tensor([[-1.2000]]), tensor([[True]]))
    """
    differences = log_probs - old_log_probs.detach()
    return clipped_surrogate(differences, _per_token(advantages), clip_low, clip_high)


def clipped_surrogate(
    log_ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What `grpo_clip_loss` returns, of log w and advantages of shapes that fit each other."""
    advantages = advantages.detach()
    is_sound = log_ratio.detach().exp().isfinite() & advantages.isfinite()
    ratio = with_gradient_where(is_sound, log_ratio).exp()
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + (clip_low if clip_high is None else clip_high))
    plain, clipped = ratio * advantages, clipped_ratio * advantages
    plain = plain.masked_fill(ratio.isinf() & (advantages == 0), 0.0)  # inf * 0 is nan
    clipped = clipped.masked_fill(clipped_ratio.isinf() & (advantages == 0), 0.0)
    info = {"ratio": ratio.detach(), "clipped": (clipped < plain).detach()}
    return -torch.minimum(plain, clipped), info


def with_gradient_where(mask: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The same values; a gradient flows back only where the mask is True.

    Backward multiplies a gradient of 0, as at padding, by a derivative; where that is inf or nan
    the product is nan and spreads to every weight.
    """
    return torch.where(mask, tensor, tensor.detach())


def _per_token(advantages: torch.Tensor) -> torch.Tensor:
    """(B,) to (B, 1), which spreads over the tokens; (B, T) stays. No gradient flows into them."""
    return (advantages[:, None] if advantages.dim() == 1 else advantages).detach()


def kl_estimate(
    log_probs: torch.Tensor, ref_log_probs: torch.Tensor, kind: Literal["k1", "k2", "k3"] = "k3"
) -> torch.Tensor:
    """KL(pi || ref) at tokens that were sampled from pi; (B, T) to (B, T).

    With d = log ref - log pi (Schulman 2020, "Approximating KL divergence"):
        k1 = -d: unbiased, but half of its values are negative, and as a loss its gradient is 0 in
            the mean, so it controls nothing.
        k2 = d^2 / 2: biased, with the gradient of the KL in the mean.
        k3 = exp(d) - 1 - d: unbiased and never negative.
    What is no finite number has no gradient, so a nan at padding harms nothing.

    Example:
        >>> kl_estimate(torch.tensor([[-1.0]]), torch.tensor([[-2.0]]), "k3")
        tensor([[0.3679]])
    """
    difference = at_least_float32(ref_log_probs) - at_least_float32(log_probs)
    is_sound = torch.expm1(difference).isfinite() if kind == "k3" else difference.isfinite()
    difference = with_gradient_where(is_sound.detach(), difference)
    if kind == "k1":
        return -difference
    if kind == "k2":
        return difference**2 / 2
    if kind == "k3":
        return torch.expm1(difference) - difference
    raise ValueError(f'kind must be "k1", "k2" or "k3", but it is {kind!r}.')
