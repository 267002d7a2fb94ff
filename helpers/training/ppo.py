"""Proximal policy optimisation: GRPO's rollouts, with a value for each token as the baseline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import nn

from helpers.decoding import window_of
from helpers.logprobs import at_least_float32, response_log_probs
from helpers.losses import aggregate, grpo_clip_loss, kl_estimate
from helpers.policy_losses import gae, value_loss, whiten
from helpers.rewards import r1_zero_reward
from helpers.shared_rows import padded
from helpers.training.engines import Engine
from helpers.training.method import Batch, checked_functions
from helpers.training.rl_run import run_rollouts
from helpers.training.rl_settings import PPOSettings
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

FUNCTIONS = {
    "gae": gae,
    "whiten": whiten,
    "value_loss": value_loss,
    "grpo_clip_loss": grpo_clip_loss,
    "kl_estimate": kl_estimate,
    "aggregate": aggregate,
}


def train_ppo(
    model,
    data,
    settings: PPOSettings,
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
    """Train a language model by PPO (Schulman et al. 2017; for language Ouyang et al. 2022).

    A value head, linear on the policy's last hidden state and 0 at the start, says what reward is
    still to come at each token; GAE makes advantages of it. The reward comes at the last token, and
    beta times the KL estimate k1 is taken off at every token. The head is trained and kept in
    checkpoints with the rest, and taken off the model at the end.

    functions: your own in place of the reference: gae, whiten, value_loss, grpo_clip_loss,
        kl_estimate (kind "k1" for the reward, that of the settings for the log), aggregate.
    The rest is as in `train_grpo`.

    Metrics beside those of `train_grpo`: value_loss, value_mean, explained_variance (1 - var(return
    - value) / var(return), of the values before the updates).

    Example:
        >>> run = train_ppo(model, data, PPOSettings(max_steps=25), tokenizer=tokenizer)
        >>> run.metrics[-1]["explained_variance"]
        0.31
    """
    chosen = checked_functions(functions or {}, FUNCTIONS)
    kind = partial(PPO, settings=settings, functions=chosen, reward_fn=reward_fn)
    window = window_of(model)
    method, held_out = (
        None if rows is None else kind(Tasks(rows, tokenizer, settings.max_new_tokens, window))
        for rows in (data, eval_data)
    )
    with value_head(model):
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


@contextmanager
def value_head(model) -> Iterator[None]:
    """Inside, the model has a trained layer `value_head`, which its own forward does not use."""
    dtype = at_least_float32(next(model.parameters())).dtype
    # What the output layer reads: OPT-350m's is not as wide as the model.
    width = model.get_output_embeddings().in_features
    model.value_head = nn.Linear(width, 1, device=model.device, dtype=dtype)
    nn.init.zeros_(model.value_head.weight)
    nn.init.zeros_(model.value_head.bias)
    try:
        yield
    finally:
        del model.value_head


def scores_and_values(model, inputs: Batch, **options) -> tuple[Batch, torch.Tensor]:
    """What `response_log_probs` returns, and the values at the response positions; each (N, S).

    Both come of one forward pass: the value head reads what the output layer is given.
    """
    head = getattr(model, "module", model).value_head  # inside DistributedDataParallel
    scores = response_log_probs(model, **inputs, **options, value_head=head)
    values = scores.pop("values")
    return scores, values


class PPO(RolloutMethod):
    """What PPO adds to the loop: values, advantages of tokens, the value loss."""

    name, counted = "ppo", ("tokens", "rows", "clipped", "ratio", "value_loss")

    def __init__(self, tasks: Tasks, settings: PPOSettings, functions, reward_fn: Callable):
        self.tasks, self.settings, self.reward_fn = tasks, settings, reward_fn
        self.functions = functions
        self.columns: dict[str, list[torch.Tensor]] = {}

    def finish(self, loop: RolloutLoop, rollouts: Rollouts) -> dict[str, float]:
        settings, found = self.settings, {}
        if self.reference is not None:
            with self.reference as start:
                rollouts.reference = loop.log_probs(start, rollouts)
            found = loop.mean_kl(rollouts, partial(self.functions["kl_estimate"], kind=settings.kl))
        values = loop.token_values(
            loop.model, rollouts, lambda inputs: scores_and_values(loop.model, inputs)[1]
        )
        own = list(zip(self._token_rewards(rollouts), values, strict=True))
        everyone = gather_object(own) if loop.accelerator.num_processes > 1 else own
        return found | self._advantages(rollouts, everyone)

    def _token_rewards(self, rollouts: Rollouts) -> list[torch.Tensor]:
        """The reward at the last token, the KL penalty at each; (tokens,) a response."""
        rewards = []
        for number, old in enumerate(rollouts.old):
            given = torch.zeros(len(old))
            if self.settings.beta:
                penalty = self.functions["kl_estimate"](
                    old[None], rollouts.reference[number][None], kind="k1"
                )
                given -= self.settings.beta * penalty[0]
            if len(given):
                given[-1] += rollouts.rewards[rollouts.first + number]
            rewards.append(given)
        return rewards

    def _advantages(self, rollouts: Rollouts, everyone) -> dict[str, float | None]:
        """Of all processes' responses, because whitening is over the whole step: over the tokens
        that carry loss."""
        rewards, values = (
            padded(list(column), value=0.0) for column in zip(*everyone, strict=True)
        )  # (B, T)
        lengths = torch.tensor([len(one) for one, _ in everyone])
        is_trained = torch.tensor([self.is_needed(rollouts, k) for k in range(len(lengths))])
        mask = (torch.arange(rewards.shape[1]) < lengths[:, None]) & is_trained[:, None]
        advantages, returns = self.functions["gae"](
            rewards, values, mask, self.settings.gamma, self.settings.lam
        )
        advantages = self.functions["whiten"](advantages, mask)
        rollouts.advantages = advantages.sum(1) / lengths.clamp(min=1)
        rows = slice(rollouts.own.start, rollouts.own.stop)
        self.columns = {
            name: [row[:length] for row, length in zip(tensor[rows], lengths[rows], strict=True)]
            for name, tensor in (
                ("advantages", advantages),
                ("returns", returns),
                ("old_values", values),
            )
        }
        if not mask.any():
            return {"value_mean": None, "explained_variance": None}
        spread = returns[mask].var(correction=0)
        error = (returns - values)[mask].var(correction=0)
        return {
            "value_mean": float(values[mask].mean()),
            "explained_variance": float(1 - error / spread) if spread > 0 else 0.0,
        }

    def is_needed(self, rollouts: Rollouts, place: int) -> bool:
        is_cut = self.settings.mask_truncated and rollouts.truncated[place]
        return not (is_cut or rollouts.is_left_out[place])

    def normalizer(self, rollouts: Rollouts, places: Sequence[int]) -> float:
        return normalizer_of(self.settings, rollouts, places)

    def batch(self, rollouts: Rollouts, places: Sequence[int], mask: torch.Tensor) -> Batch:
        own = [place - rollouts.first for place in places]
        columns = {"old_log_probs": rollouts.old, **self.columns}
        return {
            name: padded_values([values[place] for place in own], mask)
            for name, values in columns.items()
        }

    def loss(self, model, batch: Batch, normalizer: float):
        settings, mask = self.settings, batch["mask"]
        scores, values = scores_and_values(
            model,
            inputs_of(batch),
            temperature=settings.temperature,
            return_entropy=settings.entropy_bonus > 0,
        )
        found = {
            name: split_scores(value, batch["response_mask"], mask)
            for name, value in {**scores, "values": values}.items()
        }
        losses, info = self.functions["grpo_clip_loss"](
            found["log_probs"],
            batch["old_log_probs"],
            batch["advantages"],
            settings.clip_low,
            settings.clip_high,
        )
        errors = self.functions["value_loss"](
            found["values"], batch["old_values"], batch["returns"], mask, settings.value_clip
        )
        losses = losses + settings.value_coefficient * errors
        if settings.entropy_bonus:
            losses = losses - settings.entropy_bonus * found["entropy"]
        loss = self.functions["aggregate"](
            losses, mask, settings.reduction, float(settings.max_new_tokens), normalizer
        )
        ratio, clipped = (info[name].detach()[mask] for name in ("ratio", "clipped"))
        return loss, {
            "tokens": mask.sum(),
            "rows": len(mask),
            "clipped": clipped.sum(),
            "ratio": ratio.sum(),
            "ratio_gap": (ratio - 1).abs().max(),
            "sampler_gap": largest_gap(found["log_probs"], batch["old_log_probs"], mask),
            "value_loss": errors.detach()[mask].sum(),
        }

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        tokens = max(1.0, sums["tokens"])
        return {
            "clip_fraction": sums["clipped"] / tokens,
            "ratio_mean": sums["ratio"] / tokens if sums["tokens"] else 1.0,
            "value_loss": sums["value_loss"] / tokens,
            "trained_rows": int(sums["rows"]),
        }
