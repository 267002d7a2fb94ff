"""Group relative policy optimisation: learn from the rewards of several answers to one prompt."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from helpers.decoding import window_of
from helpers.logprobs import response_log_probs
from helpers.losses import policy_gradient_loss
from helpers.policy_losses import gspo_loss, importance_weights
from helpers.reference import Reference
from helpers.rewards import r1_zero_reward
from helpers.training.engines import Engine
from helpers.training.grpo_step import PARTS, grpo_step
from helpers.training.method import Batch, checked_functions
from helpers.training.rl_run import run_rollouts
from helpers.training.rl_settings import GRPOSettings
from helpers.training.rollout_loop import RolloutLoop
from helpers.training.rollout_method import (
    RolloutMethod,
    inputs_of,
    largest_gap,
    normalizer_of,
    padded_values,
)
from helpers.training.rollouts import Rollouts, Tasks
from helpers.training.run import Run
from helpers.training.shared_prompt import split_scores

FUNCTIONS = {**PARTS, "grpo_step": grpo_step, "policy_gradient_loss": policy_gradient_loss}


def train_grpo(
    model,
    data,
    settings: GRPOSettings,
    *,
    tokenizer,
    reward_fn: Callable = r1_zero_reward,
    eval_data=None,
    functions: Mapping[str, Callable] | None = None,
    callbacks: Sequence[Callable] = (),
    out_dir: str | Path | None = None,
    resume: bool = True,
    engine: str | Engine = "auto",
) -> Run:
    """Train a language model on the rewards of what it samples itself (Shao et al. 2024).

    Each step samples G responses to each of its prompts, grades them, and raises the probability
    of those that are better than the others of their group. The token ids and log-probabilities
    are the sampler's own; nothing is tokenised again.

    model, tokenizer: from `helpers.models.load_model`. The model as it is now is the reference of
        the KL divergence, also where a trained adapter goes on.
    data, eval_data: rows with the text `prompt`, and `answers` or `gold_answer`, which the reward
        function is given. Held-out prompts are answered greedily.
    reward_fn: (response, gold) -> {"format_reward", "answer_reward", "reward"}: a grader of
        `helpers.rewards`, `helpers.reward_models.from_model(...)`, a
        `helpers.reward_functions.weighted_sum`, or your own. It is given prompt=... if it takes it;
        further numbers that it returns are logged by their names.
    functions: your own in place of the reference: group_advantages, grpo_clip_loss, aggregate,
        kl_estimate, policy_gradient_loss (for loss="policy_gradient"), and grpo_step, which then
        calls its four parts itself.
    engine: who samples; "transformers" is the model itself, "vllm" a copy in vLLM, brought up to
        date before each step; see `helpers.training.engines`.
    callbacks, out_dir, resume, interrupts: as in `train_sft`. Callbacks find the groups of the step
        in `run.rollouts`; the folder keeps those of all steps in rollouts.jsonl.

    Metrics of a step:
        reward_mean, reward_std, format_rate, accuracy (mean answer_reward) of the sampled
        responses; length (tokens); truncated (share cut at max_new_tokens); entropy (its estimate:
        minus the mean log-probability of a sampled token); groups_with_signal (share of groups
        whose rewards differ); bad_rewards (that are no finite numbers: their groups are left out
        of the step, and of all means here); generated_tokens;
        loss, grad_norm, clip_fraction, ratio_mean (means over the updates); ratio_gap (the largest
        |ratio - 1| before the first update); sampler_gap (the largest difference between the
        sampler's log-probability of a token and the model's own then, in nats; over 0.05 it is said
        once); trained_rows (responses that were computed);
        importance_weight (mean over the tokens, with importance_cap);
        kl, kl_response (to the start, a token and a response) with beta > 0 or measure_kl;
        rollout_seconds, reward_seconds, score_seconds, update_seconds, and seconds in all.
        With eval_data eval_reward_mean, eval_format_rate, eval_accuracy, eval_length.

    Raises ValueError for data, settings or rewards that cannot be used.

    Example:
        >>> model, tokenizer = load_model("workbook/assets/base", lora=LoraSettings())
        >>> run = train_grpo(model, [{"prompt": "2 + 2 =", "gold_answer": "4"}] * 16,
        ...                  GRPOSettings(max_steps=2, max_new_tokens=48), tokenizer=tokenizer)
        >>> [record["reward_mean"] for record in run.metrics]
        [0.05, 0.06]
    """
    chosen = checked_functions(functions or {}, FUNCTIONS)
    check_own_step(chosen, settings)
    kind = partial(GRPO, settings=settings, functions=chosen, reward_fn=reward_fn)
    window = window_of(model)
    method, held_out = (
        None if rows is None else kind(Tasks(rows, tokenizer, settings.max_new_tokens, window))
        for rows in (data, eval_data)
    )
    return run_rollouts(
        model,
        method,
        settings,
        held_out=held_out,
        tokenizer=tokenizer,
        callbacks=callbacks,
        out_dir=out_dir,
        resume=resume,
        engine=engine,
    )


def check_own_step(functions: Mapping[str, Callable], settings: GRPOSettings) -> None:
    """Raises ValueError for settings that a grpo_step of one's own cannot carry out."""
    if functions["grpo_step"] is grpo_step:
        return
    for name, value in (("loss", settings.loss), ("importance_cap", settings.importance_cap)):
        if value not in ("clip", "no_clip", None):
            raise ValueError(
                f"Setting {name}={value} needs the reference grpo_step: leave yours out of "
                "functions, or leave the setting."
            )


class GRPO(RolloutMethod):
    """What GRPO adds to the loop: advantages of groups, the clipped surrogate, a KL term."""

    name, counted = "grpo", ("tokens", "rows", "clipped", "ratio")

    def __init__(self, tasks: Tasks, settings: GRPOSettings, functions, reward_fn: Callable):
        self.tasks, self.settings, self.reward_fn = tasks, settings, reward_fn
        self.functions = functions
        self.reference: Reference | None = None
        # Without a pull of its own a response of advantage 0 has no gradient.
        self.may_skip = not settings.beta and not settings.entropy_bonus

    def finish(self, loop: RolloutLoop, rollouts: Rollouts) -> dict[str, float]:
        settings, found = self.settings, {}
        rollouts.advantages = self._advantages(rollouts)
        if self.reference is not None:
            with self.reference as start:
                rollouts.reference = loop.log_probs(start, rollouts)
            found = loop.mean_kl(rollouts, partial(self.functions["kl_estimate"], kind=settings.kl))
        if settings.importance_cap is not None:
            found |= self._weigh(loop, rollouts)
        return found

    def _advantages(self, rollouts: Rollouts) -> torch.Tensor:
        """(B,); 0 for groups that are left out, which the others' statistics do not see."""
        advantages, kept = torch.zeros_like(rollouts.rewards), rollouts.kept
        if kept:
            rewards = rollouts.rewards[kept]
            found = self.functions["group_advantages"](
                rewards,
                rollouts.group_size,
                baseline=self.settings.baseline,
                scale=self.settings.scale,
            )
            check_advantages(found, rewards)
            advantages[kept] = found.to(advantages.dtype)
        return advantages

    def _weigh(self, loop: RolloutLoop, rollouts: Rollouts) -> dict[str, float]:
        """The old log-probabilities become the model's own; the weights make up for the sampler."""
        sampled, rollouts.old = rollouts.old, loop.log_probs(loop.model, rollouts)
        rollouts.weights = [
            importance_weights(new, old, self.settings.importance_cap)
            for new, old in zip(rollouts.old, sampled, strict=True)
        ]
        gaps = [
            float((new - old).abs().max())
            for place, new, old in zip(rollouts.own, rollouts.old, sampled, strict=True)
            if len(new) and not rollouts.is_left_out[place]
        ]
        return {
            "importance_weight": loop.mean_of_tokens(rollouts, rollouts.weights),
            "sampler_gap": loop.largest(max(gaps, default=0.0)),
        }

    def is_needed(self, rollouts: Rollouts, place: int) -> bool:
        is_cut = self.settings.mask_truncated and rollouts.truncated[place]
        if is_cut or rollouts.is_left_out[place]:
            return False
        return not self.may_skip or float(rollouts.advantages[place]) != 0.0

    def normalizer(self, rollouts: Rollouts, places: Sequence[int]) -> float:
        return normalizer_of(self.settings, rollouts, places)

    def batch(self, rollouts: Rollouts, places: Sequence[int], mask: torch.Tensor) -> Batch:
        own = [place - rollouts.first for place in places]
        rank = {place: number for number, place in enumerate(rollouts.kept)}
        columns = {
            "old_log_probs": rollouts.old,
            "ref_log_probs": rollouts.reference,
            "weights": rollouts.weights,
        }
        return {
            "rows": torch.tensor([rank[place] for place in places]),
            "rewards": rollouts.rewards[rollouts.kept],
            **{
                name: padded_values([values[place] for place in own], mask)
                for name, values in columns.items()
                if values is not None
            },
        }

    def loss(self, model, batch: Batch, normalizer: float):
        settings = self.settings
        scores = response_log_probs(
            model,
            **inputs_of(batch),
            temperature=settings.temperature,
            return_entropy=settings.entropy_bonus > 0,
        )
        mask = batch["mask"]
        found = {
            name: split_scores(value, batch["response_mask"], mask)
            for name, value in scores.items()
        }
        loss, info = self._step(found["log_probs"], batch, normalizer)
        if settings.entropy_bonus:
            entropy = self._aggregate(found["entropy"], mask, normalizer)
            loss = loss - settings.entropy_bonus * entropy
        ratio, clipped = (info[name].detach()[mask] for name in ("ratio", "clipped"))
        return loss, {
            "tokens": mask.sum(),
            "rows": len(mask),
            "clipped": clipped.sum(),
            "ratio": ratio.sum(),
            "ratio_gap": (ratio - 1).abs().max(),
            "sampler_gap": largest_gap(found["log_probs"], batch["old_log_probs"], mask),
        }

    def _step(self, log_probs: torch.Tensor, batch: Batch, normalizer: float):
        """What grpo_step returns for a micro-batch, checked."""
        settings = self.settings
        low, high = settings.clip_low, settings.clip_high
        if settings.loss == "no_clip":
            low = high = math.inf
        options = {}
        if self.functions["grpo_step"] is grpo_step:
            options["functions"] = {**self._parts(batch)}
        if settings.beta:
            options |= {"ref_log_probs": batch["ref_log_probs"], "beta": settings.beta}
            options["kl"] = settings.kl
        found = self.functions["grpo_step"](
            log_probs,
            batch["old_log_probs"],
            batch["mask"],
            batch["rewards"],
            settings.samples_per_prompt,
            rows=batch["rows"],
            clip_low=low,
            clip_high=high,
            baseline=settings.baseline,
            scale=settings.scale,
            reduction=settings.reduction,
            constant=float(settings.max_new_tokens),
            normalizer=normalizer,
            **options,
        )
        return check_step(found)

    def _parts(self, batch: Batch) -> dict[str, Callable]:
        """The four parts of the reference step, with the surrogate that the settings ask for."""
        parts = {name: self.functions[name] for name in PARTS}
        surrogate = parts["grpo_clip_loss"]
        if self.settings.loss == "gspo":
            surrogate = partial(_gspo, batch["mask"])
        elif self.settings.loss == "policy_gradient":
            surrogate = partial(_policy_gradient, self.functions["policy_gradient_loss"])
        if "weights" in batch:
            surrogate = partial(_weighted, surrogate, batch["weights"])
        return {**parts, "grpo_clip_loss": surrogate}

    def _aggregate(self, values: torch.Tensor, mask: torch.Tensor, normalizer: float):
        settings = self.settings
        return self.functions["aggregate"](
            values, mask, settings.reduction, float(settings.max_new_tokens), normalizer
        )

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        tokens = max(1.0, sums["tokens"])
        return {
            "clip_fraction": sums["clipped"] / tokens,
            "ratio_mean": sums["ratio"] / tokens if sums["tokens"] else 1.0,
            "trained_rows": int(sums["rows"]),
        }


def _gspo(mask, log_probs, old_log_probs, advantages, clip_low, clip_high):
    return gspo_loss(log_probs, old_log_probs, advantages, mask, clip_low, clip_high)


def _policy_gradient(function, log_probs, old_log_probs, advantages, clip_low, clip_high):
    ratio = (log_probs - old_log_probs).detach().exp()
    info = {"ratio": ratio, "clipped": torch.zeros_like(ratio, dtype=torch.bool)}
    return function(log_probs, advantages), info


def _weighted(surrogate, weights, *inputs):
    losses, info = surrogate(*inputs)
    return losses * weights, info


def check_advantages(advantages, rewards: torch.Tensor) -> None:
    if not torch.is_tensor(advantages) or advantages.shape != rewards.shape:
        shape = tuple(advantages.shape) if torch.is_tensor(advantages) else advantages
        raise ValueError(
            f"group_advantages must return one advantage a reward, {tuple(rewards.shape)}, but "
            f"returned {shape}."
        )
    if not advantages.isfinite().all():
        place = int((~advantages.isfinite()).nonzero()[0])
        raise ValueError(
            f"group_advantages returned {advantages[place].item()} for the reward "
            f"{rewards[place].item():g}: an advantage must be a finite number."
        )


def check_step(found):
    if (
        not isinstance(found, tuple)
        or len(found) != 2
        or not torch.is_tensor(found[0])
        or found[0].dim()
    ):
        shown = type(found).__name__
        raise ValueError(f"grpo_step must return (loss as one number, info), but returned {shown}.")
    missing = [name for name in ("ratio", "clipped") if name not in found[1]]
    if missing:
        raise ValueError(f"The info of grpo_step must hold {missing[0]}.")
    return found
