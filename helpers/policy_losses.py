"""Losses of reinforcement learning beside GRPO's own: see `helpers.losses` for the notation."""

import torch

from helpers.losses import clipped_surrogate, masked_mean


def gspo_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    clip_low: float = 3e-4,
    clip_high: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped surrogate with one ratio a response (GSPO, Zheng et al. 2025, Eq. 5 and 7).

        s = (pi(y) / pi_old(y)) ^ (1 / |y|),  loss = -min(s A, clip(s, 1 - low, 1 + high) A)

    log_probs, old_log_probs, response_mask: (B, T); advantages: (B,).
    Returns the losses and {"ratio", "clipped"} as `grpo_clip_loss` does, (B, T): every token of a
    response has the value of its response.

    Example: two tokens that are 1.2 and 1 / 1.2 times as likely are a ratio of 1:
        >>> new, old = torch.tensor([[1.2, 1 / 1.2]]).log(), torch.zeros(1, 2)
        >>> gspo_loss(new, old, torch.ones(1), torch.ones(1, 2))[1]["ratio"]
        tensor([[1., 1.]])
    """
    differences = masked_mean(log_probs - old_log_probs.detach(), response_mask, dim=-1)
    log_ratio = differences[:, None].expand_as(log_probs)  # (B,) to (B, T)
    return clipped_surrogate(log_ratio, advantages[:, None], clip_low, clip_high)


def importance_weights(
    log_probs: torch.Tensor, sampler_log_probs: torch.Tensor, cap: float = 2.0
) -> torch.Tensor:
    """How much each token counts when another program sampled it than the one that trains.

        w_t = min(pi_trainer(y_t) / pi_sampler(y_t), cap)

    Truncated importance sampling (Ionides 2008, section 2; for rollout engines Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training"): two programs with the
    same weights give a token log-probabilities that differ a little, so that the samples are
    off-policy. The token losses are multiplied by w; the cap bounds the variance and leaves a
    small bias.

    log_probs: of the trainer, with the weights that sampled. sampler_log_probs: of the sampler,
        at the same temperature. Any one shape, which the result has; no gradient goes through it.

    Example: a token that the trainer thinks half as likely counts half; three times counts twice:
        >>> importance_weights(torch.tensor([0.5, 3.0]).log(), torch.zeros(2))
        tensor([0.5000, 2.0000])
    """
    return (log_probs - sampler_log_probs).detach().exp().clamp(max=cap)


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2015, Eq. 16): two tensors (B, T).

        delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lam A_{t+1},  return = A_t + V_t

    rewards, values, mask: (B, T), response tokens first, then padding, which counts as nothing:
    the value behind the last token is 0. lam=1 is the whole return minus the value, lam=0 one step.

    Returns the advantages and the returns, 0 at padding. Advantages are whitened afterwards, never
    before the returns are made of them.

    Example:
        >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.5, 0.4]])
        >>> gae(rewards, values, torch.ones(1, 3))
        (tensor([[0.7465, 0.4700, 0.6000]]), tensor([[0.9465, 0.9700, 1.0000]]))
    """
    mask = mask.bool()
    rewards, values = (x.masked_fill(~mask, 0.0).detach() for x in (rewards, values))
    advantages = torch.zeros_like(values)
    ahead, value_ahead = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for step in reversed(range(values.shape[1])):
        delta = rewards[:, step] + gamma * value_ahead - values[:, step]
        ahead = (delta + gamma * lam * ahead) * mask[:, step]
        advantages[:, step], value_ahead = ahead, values[:, step]
    return advantages, advantages + values


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    clip: float | None = 0.2,
) -> torch.Tensor:
    """Half the squared error of the values, clipped around the old ones; (B, T) to (B, T).

        loss = max((V - R)^2, (V_old + clamp(V - V_old, -clip, clip) - R)^2) / 2

    As in the published implementations of PPO; clip=None is the plain squared error. 0 at padding.

    Example:
        >>> value_loss(torch.ones(1, 1), torch.zeros(1, 1), 2 * torch.ones(1, 1), torch.ones(1, 1))
        tensor([[1.6200]])
    """
    old_values, returns, values = (
        x.masked_fill(~mask.bool(), 0.0) for x in (old_values.detach(), returns.detach(), values)
    )
    losses = (values - returns) ** 2
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        losses = torch.maximum(losses, (near - returns) ** 2)
    return losses / 2


def whiten(values: torch.Tensor, mask: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Mean 0 and standard deviation 1 over the elements where the mask is True; others are 0.

    Example:
        >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]]))
        tensor([[-1.,  1.,  0.]])
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return ((values - mean) / (variance + eps).sqrt()).masked_fill(~mask.bool(), 0.0)
