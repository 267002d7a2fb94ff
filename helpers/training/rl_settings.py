"""Settings of reinforcement learning: sampling, rewards to advantages, the loss."""

from dataclasses import dataclass

from helpers.training.settings import LoopSettings, setting


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(LoopSettings):
    """What the loops that sample their own responses share; a step is one round of sampling."""

    max_steps: int = setting(100, "rounds of sampling, each followed by its updates", low=1)
    prompts_per_step: int = setting(16, "prompts of one step, over all processes", low=1)
    samples_per_prompt: int = setting(8, "responses sampled for each prompt: a group", low=1)
    max_new_tokens: int = setting(
        256, "tokens of a response, its EOS included; a longer one is cut and counted", low=1
    )
    temperature: float = setting(1.0, "of sampling, and of every log-probability", above=0)
    stop: str | None = setting(None, "a text that ends a response as EOS does")
    lr: float = setting(
        1e-4, "learning rate at its peak; LoRA wants about ten times that of full training", above=0
    )
    schedule: str = setting(
        "constant",
        "how lr falls after the warm-up: linear or cosine to zero, or constant",
        choices=("linear", "cosine", "constant"),
    )
    warmup_ratio: float = setting(
        0.0, "share of the steps in which lr rises from zero", low=0, high=1
    )
    epochs_per_step: int = setting(
        1, "passes over the responses of a step; more than one is off-policy", low=1
    )
    minibatches: int = setting(
        1, "parts of a step's responses, with an update each; more than one is off-policy", low=1
    )
    clip_low: float = setting(0.2, "the probability ratio counts down to 1 - clip_low", above=0)
    clip_high: float | None = setting(
        None, "and up to 1 + clip_high (none: as clip_low; DAPO: 0.28)", above=0
    )
    beta: float = setting(0.0, "weight of the KL divergence from the model at the start", low=0)
    kl: str = setting("k3", "estimator of that divergence", choices=("k1", "k2", "k3"))
    measure_kl: bool = setting(
        False, "log that divergence also where beta is 0; one more forward pass a step"
    )
    entropy_bonus: float = setting(0.0, "weight of the entropy, which is then rewarded", low=0)
    reduction: str = setting(
        "sequence_mean",
        "of token losses: mean over each response and then over responses, token_mean over all "
        "tokens alike, or their sum divided by responses and the constant max_new_tokens",
        choices=("sequence_mean", "token_mean", "constant"),
    )
    mask_truncated: bool = setting(
        False, "a response that was cut at max_new_tokens carries no loss (DAPO)"
    )
    micro_batch_tokens: int = setting(
        4096,
        "tokens that go through the model at once, padding included; changes no gradient",
        low=1,
    )
    sampling_batch_size: int = setting(128, "responses that are sampled at once", low=1)


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(RolloutSettings):
    """Settings of `train_grpo`.

    Relatives of GRPO: Dr. GRPO is scale="none" with reduction="constant"; RLOO is
    baseline="leave_one_out", scale="none"; DAPO is clip_high=0.28, reduction="token_mean",
    resampling=..., mask_truncated=True; GSPO is loss="gspo" with clip_low=3e-4, clip_high=4e-4;
    REINFORCE++ with its group baseline (Hu et al. 2025, arXiv 2501.03262) is scale="batch"; MaxRL
    (Tajwar et al. 2026, arXiv 2602.02710) is scale="mean", for rewards of 0 or more.
    """

    loss: str = setting(
        "clip",
        "clip: the clipped surrogate; no_clip: the same without clipping; gspo: one ratio a "
        "response; policy_gradient: -A log pi, which knows no ratio",
        choices=("clip", "no_clip", "gspo", "policy_gradient"),
    )
    baseline: str = setting(
        "mean",
        "what is subtracted from a reward: mean of its group, leave_one_out, or none",
        choices=("mean", "leave_one_out", "none"),
    )
    scale: str = setting(
        "std",
        "what advantages are divided by: std of their group, none, batch (std of all), or mean "
        "(rewards of 0 or more)",
        choices=("std", "none", "batch", "mean"),
    )
    resampling: int = setting(
        0, "rounds in which prompts without a signal are replaced by others (DAPO)", low=0
    )
    importance_cap: float | None = setting(
        None,
        "a sampler with its own arithmetic (vLLM, or the model itself in half precision): "
        "log-probabilities are computed again, and a token counts by their ratio to the sampler's, "
        "up to this cap (none: the sampler's are taken)",
        above=0,
    )


@dataclass(frozen=True, kw_only=True)
class PPOSettings(RolloutSettings):
    """Settings of `train_ppo`. beta times the KL estimate k1 is taken off each token's reward."""

    epochs_per_step: int = setting(
        2, "passes over the responses of a step; more than one is off-policy", low=1
    )
    minibatches: int = setting(
        2, "parts of a step's responses, with an update each; more than one is off-policy", low=1
    )
    reduction: str = setting(
        "token_mean",
        "of token losses: token_mean over all tokens alike, mean over each response and then over "
        "responses, or their sum divided by responses and the constant max_new_tokens",
        choices=("token_mean", "sequence_mean", "constant"),
    )
    gamma: float = setting(1.0, "what a reward one token later counts", above=0, high=1)
    lam: float = setting(0.95, "of GAE: 1 trusts rewards, 0 trusts values", low=0, high=1)
    value_coefficient: float = setting(0.5, "weight of the value loss", low=0)
    value_clip: float | None = setting(
        0.2, "values count at most so far from the old ones (none: without limit)", above=0
    )
