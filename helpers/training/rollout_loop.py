"""The loop of reinforcement learning: sample, grade, update; a step is one round of it."""

import math
import random
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import fmean

import torch
from accelerate.utils import gather_object

from helpers.logprobs import at_least_float32, response_log_probs
from helpers.modes import evaluation_mode, without_dropout
from helpers.rollout import SamplingSettings
from helpers.training.batches import StepPlan
from helpers.training.engines import Engine
from helpers.training.loop import Loop
from helpers.training.method import Batch
from helpers.training.rollout_method import RolloutMethod, inputs_of
from helpers.training.rollouts import (
    Rollouts,
    grade,
    groups_of,
    has_signal,
    sample_metrics,
    sampling_of,
)
from helpers.training.shared_prompt import SharedRow, cut_rows, shared_batch

# Nats between the sampler's log-probability of a token and the trainer's. Seen: 4e-5 in float32,
# 0.27 to 1.07 in bfloat16 at 135 million parameters.
FAR_APART = 0.05


def mean_if_finite(values: Sequence[float]) -> float | None:
    """None where one is no finite number; statistics.fmean raises for inf - inf."""
    return fmean(values) if all(map(math.isfinite, values)) else None


class RolloutLoop(Loop):
    """A loop whose examples are sampled anew at each step."""

    method: RolloutMethod
    held_out: RolloutMethod | None

    def __init__(self, model, method: RolloutMethod, settings, engine: Engine, held_out=None):
        super().__init__(model, method, settings, held_out)
        self.engine, self.groups = engine, []
        self.said_gap = False

    def make_plan(self) -> tuple[StepPlan, int]:
        plan = StepPlan(
            [0] * len(self.method.tasks),
            batch_size=self.settings.prompts_per_step,
            seed=self.settings.seed,
            grouped=False,
        )
        return plan, self.settings.max_steps

    def take_step(self, *, interrupt: bool = False) -> dict:
        """Sample and grade the responses of a step, then update; returns the step's metrics."""
        start = time.monotonic()
        lr = self.set_lr()
        rollouts, seconds = self.collect()
        graded = time.monotonic()
        found = self.method.finish(self, rollouts)
        self.groups = groups_of(rollouts, self.step + 1)
        scored = time.monotonic()
        updates, problem = self._updates(rollouts)
        wants_stop = self._sum({"interrupt": float(interrupt)})["interrupt"] > 0
        self.step += 1
        end = time.monotonic()
        self.seconds += end - start
        seconds = {**seconds, "score_seconds": scored - graded, "update_seconds": end - scored}
        record = {
            "step": self.step,
            "epoch": round(self.step / self.plan.steps_per_epoch, 4),
            "lr": lr,
            **updates,
            **sample_metrics(rollouts),
            **found,
            **{name: round(value, 4) for name, value in seconds.items()},
            "seconds": round(self.seconds, 4),
        }
        if problem:
            record["skipped"] = problem
        if self.held_out and (self.step % (self.settings.eval_every or self.total) == 0):
            record |= self.evaluate()
        self._note(problem, [], wants_stop)
        return record

    # --- sampling

    def collect(self) -> tuple[Rollouts, dict[str, float]]:
        """This step's responses, and the seconds that sampling and grading took."""
        start = time.monotonic()
        accelerator, size = self.accelerator, self.settings.samples_per_prompt
        rows = self.plan.rows(self.step)
        process, several = accelerator.process_index, accelerator.num_processes
        low, high = (len(rows) * place // several for place in (process, process + 1))
        self.engine.update(self.model)
        groups, times = self._sampled_groups(rows[low:high], low)
        completions = [completion for group in groups for completion in group[0]]
        samples = [sample for group in groups for sample in group[1]]
        generated = self._sum({"tokens": float(times.pop("tokens"))})["tokens"]
        rollouts = Rollouts(
            completions=completions,
            first=low * size,
            samples=gather_object(samples) if several > 1 else samples,
            group_size=size,
            generated_tokens=int(generated),
        )
        grading = times["grading"]
        sampling = time.monotonic() - start - grading
        return rollouts, {"rollout_seconds": sampling, "reward_seconds": grading}

    def _sampled_groups(self, rows: Sequence[int], first: int):
        """(completions, samples) of each prompt; prompts without a signal are replaced."""
        times = {"tokens": 0, "grading": 0.0}
        groups = self._sample(rows, first, 0, times)
        for attempt in range(1, getattr(self.settings, "resampling", 0) + 1):
            dull = [place for place, (_, samples) in enumerate(groups) if not has_signal(samples)]
            if not dull:
                break
            rng = random.Random(f"{self.settings.seed}/{self.step}/{attempt}/{first}")
            fresh = [rng.randrange(len(self.method.tasks)) for _ in dull]
            for place, group in zip(dull, self._sample(fresh, first, attempt, times), strict=True):
                if has_signal(group[1]):
                    groups[place] = group
        return groups, times

    def _sample(self, rows: Sequence[int], first: int, attempt: int, times: dict):
        """Groups of responses to these prompts; adds tokens and seconds of grading to `times`."""
        tasks, size = self.method.tasks, self.settings.samples_per_prompt
        if not rows:
            return []
        with self.autocast():
            completions = self.engine.sample(
                [tasks.token_ids[row] for row in rows],
                size,
                sampling_of(self.settings, self.step, attempt),
                first=first,
            )
        start = time.monotonic()
        samples = grade(tasks, rows, completions, self.method.reward_fn)
        times["grading"] += time.monotonic() - start
        times["tokens"] += sum(len(completion.token_ids) for completion in completions)
        cuts = range(0, len(completions), size)
        return [
            (completions[place : place + size], samples[place : place + size]) for place in cuts
        ]

    # --- log-probabilities and gradients

    def log_probs(self, model, rollouts: Rollouts) -> list[torch.Tensor]:
        """The log-probabilities of this process's responses under a model; (tokens,) each."""
        temperature = self.settings.temperature
        return self.token_values(
            model,
            rollouts,
            lambda inputs: response_log_probs(model, **inputs, temperature=temperature)[
                "log_probs"
            ],
        )

    def token_values(self, model, rollouts: Rollouts, compute: Callable) -> list[torch.Tensor]:
        """What `compute` makes of the inputs (N, S) of micro-batches, at this process's response
        tokens, without gradient; (tokens,) each."""
        found = {}
        with evaluation_mode(model), self.autocast():
            for batch, places in self._batches(rollouts, rollouts.own):
                inputs = inputs_of(self._on_device(batch))
                values = compute(inputs)[inputs["response_mask"]]
                values = at_least_float32(values).cpu()
                lengths = [len(rollouts.old[place - rollouts.first]) for place in places]
                found |= dict(zip(places, values.split(lengths), strict=True))
        return [found.get(place, torch.zeros(0)) for place in rollouts.own]

    def mean_kl(self, rollouts: Rollouts, estimate: Callable) -> dict[str, float]:
        """KL of the sampling policy from the reference, a token and a response, over all that are
        not left out."""
        pairs = zip(rollouts.old, rollouts.reference, strict=True)
        values = [estimate(old[None], start[None])[0] for old, start in pairs]
        total, tokens = self._sum_of_tokens(rollouts, values)
        return {
            "kl": total / tokens if tokens else None,
            "kl_response": total / len(rollouts.kept) if tokens else None,
        }

    def mean_of_tokens(self, rollouts: Rollouts, values: Sequence[torch.Tensor]) -> float | None:
        """The mean over the tokens of all responses that are not left out; `values` are (tokens,)
        of this process's."""
        total, tokens = self._sum_of_tokens(rollouts, values)
        return total / tokens if tokens else None

    def _sum_of_tokens(self, rollouts: Rollouts, values: Sequence[torch.Tensor]):
        """(sum, number of tokens) over the responses of all processes that are not left out."""
        kept = [
            value
            for place, value in zip(rollouts.own, values, strict=True)
            if not rollouts.is_left_out[place]
        ]
        total = sum(float(value.sum()) for value in kept)
        sums = self._sum({"total": total, "tokens": float(sum(map(len, kept)))})
        return sums["total"], sums["tokens"]

    def _batches(self, rollouts: Rollouts, places: Sequence[int]):
        """Micro-batches (inputs, places) of this process's responses; empty ones have no token."""
        lengths = {place: len(rollouts.old[place - rollouts.first]) for place in places}
        groups: dict[int, list[int]] = {}
        for place in places:
            if lengths[place]:
                groups.setdefault(place // rollouts.group_size, []).append(place)
        prompts = [
            len(self._completion(rollouts, group[0]).prompt_token_ids) for group in groups.values()
        ]
        pieces = cut_rows(lengths, list(groups.values()), prompts, self.settings.micro_batch_tokens)
        for rows in pieces:
            completions = [[self._completion(rollouts, place) for place in row] for row in rows]
            shared = [
                SharedRow.of(row[0].prompt_token_ids, [c.token_ids for c in row])
                for row in completions
            ]
            yield shared_batch(shared, pad=0), [place for row in rows for place in row]

    def _completion(self, rollouts: Rollouts, place: int):
        return rollouts.completions[place - rollouts.first]

    def _updates(self, rollouts: Rollouts) -> tuple[dict[str, float], str]:
        """All updates of a step; returns their metrics and why the last bad one was skipped."""
        losses, norms, sums, problem, start = [], [], {}, "", None
        for places in self._minibatches(len(rollouts.samples)):
            with without_dropout(self.model):
                found, gap = self.gradients(rollouts, places)
            loss, sampler_gap = found.pop("loss"), found.pop("sampler_gap")
            if start is None:
                start = {"ratio_gap": gap, "sampler_gap": sampler_gap}
                if rollouts.weights is None:  # else the old ones are the trainer's own
                    self._say_gap(sampler_gap)
            norm, why = self._update(loss)
            problem = why or problem
            losses.append(loss)
            norms.append(math.nan if norm is None else norm)
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        return {
            "loss": mean_if_finite(losses),
            "grad_norm": mean_if_finite(norms),
            "updates": len(losses),
            **start,
            **self.method.metrics(sums),
        }, problem

    def _say_gap(self, gap: float) -> None:
        """Says once how far the sampler's log-probabilities are from the trainer's, where far."""
        if gap <= FAR_APART or self.said_gap or not self.accelerator.is_main_process:
            return
        self.said_gap = True
        warnings.warn(
            f"Before the first update of step {self.step + 1} the log-probability of a sampled "
            f"token is off the sampler's by up to {gap:.2g} nats (over {FAR_APART}): what is "
            "trained is not quite the policy that sampled. Load the model in float32 and train "
            'with precision="float32", so that both compute alike, or set importance_cap=2.0, '
            "which weighs each token by the ratio (train_grpo, with any engine); where both are "
            "float32, the sampler has other weights or another temperature.",
            stacklevel=5,
        )

    def _minibatches(self, count: int) -> list[list[int]]:
        """The responses of each update of a step."""
        updates = []
        for epoch in range(self.settings.epochs_per_step):
            order = list(range(count))
            if self.settings.minibatches > 1:
                random.Random(f"{self.settings.seed}/{self.step}/{epoch}").shuffle(order)
            parts = min(self.settings.minibatches, count)
            bounds = [count * part // parts for part in range(parts + 1)]
            updates += [
                sorted(order[low:high]) for low, high in zip(bounds, bounds[1:], strict=False)
            ]
        return updates

    def gradients(self, rollouts: Rollouts, places: Sequence[int]):
        """Add up the gradients of an update over its micro-batches and processes.

        Returns the sums of the metrics, and the largest |ratio - 1| of a token: before the first
        update of a step it says how far the sampler's log-probabilities are from the model's. Among
        the sums stands sampler_gap, the same in nats.
        """
        accelerator, method = self.accelerator, self.method
        normalizer = method.normalizer(rollouts, places)
        needed = [
            place for place in places if place in rollouts.own and method.is_needed(rollouts, place)
        ]
        own = list(self._batches(rollouts, needed))
        sums: dict[str, float] = dict.fromkeys(("loss", *method.counted), 0.0)
        gap = sampler_gap = 0.0
        if not own:
            accelerator.backward(self._zero())
        for number, (inputs, chosen) in enumerate(own):
            batch = self._on_device(self._with_targets(rollouts, inputs, chosen))
            is_last = number == len(own) - 1
            with nullcontext() if is_last else accelerator.no_sync(self.wrapped):
                with self.autocast():
                    loss, extra = method.loss(self.wrapped, batch, normalizer)
                if not loss.requires_grad:
                    raise ValueError("The loss has no gradient: it does not depend on the model.")
                # Times the processes, because the reduction takes the mean over them.
                accelerator.backward(loss * accelerator.num_processes)
            gap = max(gap, float(extra.pop("ratio_gap", 0.0)))
            sampler_gap = max(sampler_gap, float(extra.pop("sampler_gap", 0.0)))
            for name, value in {"loss": loss.detach(), **extra}.items():
                sums[name] += float(value)
        return self._sum(sums) | {"sampler_gap": self.largest(sampler_gap)}, self.largest(gap)

    def _zero(self) -> torch.Tensor:
        """A loss of 0 that depends on the model: every process must take part in the reduction of
        gradients, and an update without any is one by zeros, as it would be with all rows kept."""
        row = SharedRow.of(self.method.tasks.token_ids[0], [[0]])
        scores = response_log_probs(self.wrapped, **self._on_device(shared_batch([row], pad=0)))
        zeros = [0.0 * parameter.sum() for parameter in self.parameters.values()]
        return 0.0 * scores["log_probs"].sum() + sum(zeros)

    def _with_targets(self, rollouts: Rollouts, inputs: Batch, places: list[int]) -> Batch:
        """The inputs of a micro-batch with what the loss needs of its b responses."""
        lengths = torch.tensor([len(rollouts.old[place - rollouts.first]) for place in places])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (b, T)
        return {**inputs, "mask": mask, **self.method.batch(rollouts, places, mask)}

    def largest(self, value: float) -> float:
        """The largest of the processes' values."""
        if self.accelerator.num_processes == 1:
            return value
        own = torch.tensor([value], dtype=torch.float64, device=self.device)
        return float(self.accelerator.gather(own).max())

    # --- held-out prompts

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Rewards of greedy responses to the held-out prompts, each name with eval_ before it."""
        tasks, settings = self.held_out.tasks, self.settings
        greedy = SamplingSettings(
            temperature=0,
            max_new_tokens=settings.max_new_tokens,
            stop_strings=() if settings.stop is None else (settings.stop,),
        )
        self.engine.update(self.model)
        with evaluation_mode(self.model):
            completions = self.engine.sample(tasks.token_ids, 1, greedy)
        samples = grade(
            tasks,
            range(len(tasks)),
            completions,
            self.held_out.reward_fn,
            left_out="it is left out of the means of the held-out prompts",
        )
        found = sample_metrics(Rollouts(completions, 0, samples, 1, 0))
        names = ("reward_mean", "format_rate", "accuracy", "length", "truncated")
        names += ("bad_rewards",) if found["bad_rewards"] else ()
        return {f"eval_{name}": found[name] for name in names}
