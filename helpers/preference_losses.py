"""Losses on preferences: DPO and its family. `helpers.losses` holds the same names.

Notation: N pairs or responses. `*_logps` are sums of log p over the tokens of a response, (N,),
and `*_lengths` are the numbers of these tokens, (N,). r = beta * (log pi - log ref) is the implicit
reward. Losses are un-reduced, (N,); rewards are for reports only and detached. All is computed in
float32 at least: sums of bfloat16 log-probabilities near -300 differ by steps of 2.
"""

import math

import torch
from torch.nn.functional import logsigmoid, relu

from helpers.logprobs import at_least_float32

Losses = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # (losses, chosen and rejected rewards)


def implicit_rewards(
    policy_logps: torch.Tensor, ref_logps: torch.Tensor, beta: float = 0.1
) -> torch.Tensor:
    """The reward under which the policy would be optimal; (N,) to (N,), with gradient.

        r(x, y) = beta * (log pi(y | x) - log ref(y | x))     (Rafailov et al. 2023, Eq. 5)

    The term of the prompt alone is left out: it cancels between two responses to one prompt, and
    only there do these rewards compare. Raw log-probabilities would rank by length and fluency.

    Example:
        >>> implicit_rewards(torch.tensor([-10.0]), torch.tensor([-12.0]), beta=0.5)
        tensor([1.])
    """
    return beta * (at_least_float32(policy_logps) - at_least_float32(ref_logps))


def dpo_loss(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Losses:
    """Direct preference optimisation (Rafailov et al. 2023, Eq. 7).

        loss = -(1 - e) log sigmoid(r_chosen - r_rejected) - e log sigmoid(r_rejected - r_chosen)

    label_smoothing: e, the share of labels believed to be flipped (conservative DPO, Mitchell
        2023); 0 is the plain loss. Newer versions of TRL ignore theirs in this loss.
    Returns (losses, chosen_rewards, rejected_rewards), each (N,).

    Example: where policy and reference agree, the loss is log 2:
        >>> logps = torch.tensor([-10.0])
        >>> dpo_loss(logps, logps, logps, logps)[0]
        tensor([0.6931])
    """
    chosen_rewards = implicit_rewards(policy_chosen_logps, ref_chosen_logps, beta)
    rejected_rewards = implicit_rewards(policy_rejected_logps, ref_rejected_logps, beta)
    margin = chosen_rewards - rejected_rewards
    losses = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def robust_dpo_loss(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Losses:
    """DPO whose mean over flipped labels is the loss on the true ones (Chowdhury et al. 2024).

        loss = (-(1 - e) log sigmoid(m) + e log sigmoid(-m)) / (1 - 2 e),  m = r_chosen - r_rejected

    label_smoothing: e, the share of flipped labels, below 0.5. The sign of its term is the
        opposite of conservative DPO's, so the loss of one pair may be negative.
    Returns (losses, chosen_rewards, rejected_rewards), each (N,).

    Example: both terms are equal here, so their weights leave log 2:
        >>> logps = torch.tensor([-10.0])
        >>> robust_dpo_loss(logps, logps, logps, logps)[0]
        tensor([0.6931])
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be from 0 to below 0.5, not {label_smoothing}.")
    chosen_rewards = implicit_rewards(policy_chosen_logps, ref_chosen_logps, beta)
    rejected_rewards = implicit_rewards(policy_rejected_logps, ref_rejected_logps, beta)
    margin = chosen_rewards - rejected_rewards
    losses = -(1 - label_smoothing) * logsigmoid(margin) + label_smoothing * logsigmoid(-margin)
    losses = losses / (1 - 2 * label_smoothing)
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def hinge_loss(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float = 0.1,
) -> Losses:
    """max(0, 1 - (r_chosen - r_rejected)): a pair that is far enough apart teaches no more.

    The hinge of SLiC (Zhao et al. 2023) on the log-ratios to a reference (RSO, Liu et al. 2023,
    "hinge-norm"). SLiC's own term for the likelihood of a target is not part of it.
    Returns (losses, chosen_rewards, rejected_rewards), each (N,).

    Example:
        >>> zero = torch.zeros(2)
        >>> hinge_loss(torch.tensor([5.0, 15.0]), zero, zero, zero)[0]
        tensor([0.5000, 0.0000])
    """
    chosen_rewards = implicit_rewards(policy_chosen_logps, ref_chosen_logps, beta)
    rejected_rewards = implicit_rewards(policy_rejected_logps, ref_rejected_logps, beta)
    losses = relu(1 - (chosen_rewards - rejected_rewards))
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def ipo_loss(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float = 0.1,
    chosen_lengths: torch.Tensor | None = None,
    rejected_lengths: torch.Tensor | None = None,
) -> Losses:
    """Identity preference optimisation (Azar et al. 2023, Eq. 17; its tau is our beta).

        loss = (h - 1 / (2 beta))^2,  h = (log pi - log ref)(chosen) - (log pi - log ref)(rejected)

    The margin is drawn to a target and not to infinity, also where all labels agree.
    chosen_lengths, rejected_lengths: None takes sums over the tokens, as the paper does; given,
        each side is divided by its length, as in TRL. The same beta then asks for far more.
    Returns (losses, chosen_rewards, rejected_rewards), each (N,); rewards are of the sums.

    Example: with beta 0.1 the target is 5:
        >>> zero = torch.zeros(2)
        >>> ipo_loss(torch.tensor([0.0, 5.0]), zero, zero, zero)[0]
        tensor([25.,  0.])
    """
    chosen = implicit_rewards(policy_chosen_logps, ref_chosen_logps, 1.0)
    rejected = implicit_rewards(policy_rejected_logps, ref_rejected_logps, 1.0)
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError("Give chosen_lengths and rejected_lengths, or neither.")
    if chosen_lengths is None:
        difference = chosen - rejected
    else:
        difference = _per_token(chosen, chosen_lengths) - _per_token(rejected, rejected_lengths)
    losses = (difference - 1 / (2 * beta)) ** 2
    return losses, beta * chosen.detach(), beta * rejected.detach()


def simpo_loss(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    chosen_lengths: torch.Tensor,
    rejected_lengths: torch.Tensor,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Losses:
    """SimPO: no reference, rewards per token, a target margin (Meng et al. 2024, Eq. 6).

        loss = -log sigmoid(r_chosen - r_rejected - gamma),  r = beta * log pi(y | x) / |y|

    gamma: the margin as it stands in the loss. Some settings elsewhere are the ratio gamma / beta.
    Returns (losses, chosen_rewards, rejected_rewards), each (N,); the rewards are these r.

    Example: -1 and -2 a token are 2 apart, which is 1 more than the target:
        >>> chosen, rejected = torch.tensor([-4.0]), torch.tensor([-6.0])
        >>> simpo_loss(chosen, rejected, torch.tensor([4]), torch.tensor([3]))[0]
        tensor([0.3133])
    """
    chosen_rewards = beta * _per_token(policy_chosen_logps, chosen_lengths)
    rejected_rewards = beta * _per_token(policy_rejected_logps, rejected_lengths)
    losses = -logsigmoid(chosen_rewards - rejected_rewards - gamma)
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def orpo_loss(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    chosen_lengths: torch.Tensor,
    rejected_lengths: torch.Tensor,
    lam: float = 0.1,
) -> Losses:
    """ORPO: SFT on the chosen response plus an odds ratio (Hong et al. 2024, Eq. 6 and 7).

        loss = -l_chosen - lam * log sigmoid(log odds(chosen) - log odds(rejected))
        l = log pi(y | x) / |y|,  odds = p / (1 - p),  p = exp(l)

    p is a mean over tokens: of whole responses, 1 - p would be 1 and the odds no more than p. The
    first term is over the response only; TRL's is over the prompt's tokens, too.
    Returns (losses, chosen_rewards, rejected_rewards), each (N,); the rewards are lam * l.

    Example: with equal odds the second term is lam * log 2:
        >>> logps, lengths = torch.tensor([-4.0]), torch.tensor([4])
        >>> orpo_loss(logps, logps, lengths, lengths)[0]
        tensor([1.0693])
    """
    chosen = _per_token(policy_chosen_logps, chosen_lengths)
    rejected = _per_token(policy_rejected_logps, rejected_lengths)
    log_odds_ratio = (chosen - _log1mexp(chosen)) - (rejected - _log1mexp(rejected))
    losses = -chosen - lam * logsigmoid(log_odds_ratio)
    return losses, lam * chosen.detach(), lam * rejected.detach()


def kto_loss(
    policy_logps: torch.Tensor,
    ref_logps: torch.Tensor,
    is_desirable: torch.Tensor,
    reference_point: torch.Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """KTO: single responses that are good or bad, no pairs (Ethayarajh et al. 2024, Eq. 7).

        desirable:    weight * (1 - sigmoid(r - beta * z))
        undesirable:  weight * (1 - sigmoid(beta * z - r))

    is_desirable: (N,), bool. reference_point: z >= 0, of `kto_reference_point`; it saturates the
        sigmoid but gets no gradient. (As a KL term it would hold the policy back; it does not.)
    desirable_weight, undesirable_weight: for classes of unequal size; with counts n the paper wants
        (desirable_weight * n_desirable) / (undesirable_weight * n_undesirable) from 1 to 4/3.
    Returns (losses, rewards), each (N,).

    Example:
        >>> zero = torch.zeros(2)
        >>> kto_loss(torch.tensor([10.0, 10.0]), zero, torch.tensor([True, False]), 0.0)[0]
        tensor([0.2689, 0.7311])
    """
    rewards = implicit_rewards(policy_logps, ref_logps, beta)
    gain = torch.where(is_desirable.bool(), 1.0, -1.0) * (rewards - beta * reference_point)
    weights = torch.where(is_desirable.bool(), desirable_weight, undesirable_weight)
    # sigmoid(-x) and not 1 - sigmoid(x), which is 0 in float32 from x = 17 on.
    return weights * torch.sigmoid(-gain), rewards.detach()


def kto_reference_point(
    policy_mismatched_logps: torch.Tensor, ref_mismatched_logps: torch.Tensor
) -> torch.Tensor:
    """KTO's z: the mean log-ratio over prompts with responses to other prompts, at least 0.

        z = max(0, mean(log pi(y' | x) - log ref(y' | x)))  (Ethayarajh et al. 2024, section 4.1)

    *_mismatched_logps: (N,), of the whole optimiser step over all micro-batches and processes; y'
        is the response of another prompt, as a rotation of the responses by one place gives it.
        The matched responses have rewards of their own and would bias it.
    Returns a scalar without gradient.

    Example:
        >>> kto_reference_point(torch.tensor([-3.0, -5.0]), torch.tensor([-4.0, -5.0]))
        tensor(0.5000)
    """
    log_ratios = implicit_rewards(policy_mismatched_logps, ref_mismatched_logps, 1.0)
    return log_ratios.mean().clamp(min=0).detach()


def _per_token(logps: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return at_least_float32(logps) / lengths.clamp(min=1)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x <= 0 (Maechler 2012): each branch where the other loses its digits.

    Where a response is certain (x = 0), 1 - p is taken as the smallest step of the number format.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    is_near = x > -math.log(2)
    # torch.where also sends gradients through the branch not taken: 0 * inf is nan.
    near = torch.log(-torch.expm1(torch.where(is_near, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(is_near, -1.0, x)))
    return torch.where(is_near, near, far)
