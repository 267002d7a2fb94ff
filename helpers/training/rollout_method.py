"""What a method of reinforcement learning adds to the loop, and what such methods share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from helpers.reference import Reference
from helpers.training.method import Batch
from helpers.training.rl_settings import RolloutSettings
from helpers.training.rollouts import Rollouts, Tasks

if TYPE_CHECKING:
    from helpers.training.rollout_loop import RolloutLoop


class RolloutMethod(ABC):
    """What a method, such as GRPO, adds to the loop.

    name: of the method. counted: the sums that its loss returns beside the largest ratio_gap.
    tasks: prompts and gold answers. reward_fn: how responses are graded. functions: by name, for
    the run's record. reference: the policy at the start, where a KL divergence is wanted.
    drops: False, because the policy that is trained is the one that sampled: with dropout no ratio
    would be 1.
    """

    drops = False

    name: str
    counted: tuple[str, ...]
    tasks: Tasks
    reward_fn: Callable
    functions: Mapping[str, Callable]
    reference: Reference | None = None

    @property
    def report(self) -> dict[str, Any]:
        return self.tasks.report

    @property
    def digest(self) -> str:
        return self.tasks.digest

    @abstractmethod
    def finish(self, loop: "RolloutLoop", rollouts: Rollouts) -> dict[str, float]:
        """Give the rollouts their advantages and what else the loss needs; returns metrics."""

    @abstractmethod
    def is_needed(self, rollouts: Rollouts, place: int) -> bool:
        """Whether a response can have a gradient; one that has none is not computed."""

    @abstractmethod
    def normalizer(self, rollouts: Rollouts, places: Sequence[int]) -> float:
        """What the loss of an update is divided by; it counts every response, needed or not."""

    @abstractmethod
    def batch(self, rollouts: Rollouts, places: Sequence[int], mask: torch.Tensor) -> Batch:
        """Tensors (b, ...) of the responses at `places` that the loss needs; mask: (b, T)."""

    @abstractmethod
    def loss(
        self, model, batch: Batch, normalizer: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum over a micro-batch divided by the normaliser, and sums for the metrics."""

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return dict(sums)


def inputs_of(batch: Batch) -> Batch:
    """What `response_log_probs` takes of a micro-batch."""
    names = ("input_ids", "labels", "position_ids", "response_mask", "attention_mask")
    return {name: batch[name] for name in names if name in batch}


def padded_values(values: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """One value a token, (tokens,) a response, as rows of the mask's shape (b, T)."""
    flat = torch.cat(list(values))
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def largest_gap(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The largest difference of two log-probabilities (b, T) of a token, in nats."""
    return (first.detach() - second)[mask].abs().max()


def normalizer_of(settings: RolloutSettings, rollouts: Rollouts, places: Sequence[int]) -> float:
    """What the losses of an update are divided by, over all processes: as `aggregate` says.

    It counts every response of the update, computed or not, but none of a group that is left out
    and no token of one that carries no loss.
    """
    places = [place for place in places if not rollouts.is_left_out[place]]
    if settings.reduction == "sequence_mean":
        return float(max(1, len(places)))
    if settings.reduction == "constant":
        return float(max(1, len(places)) * settings.max_new_tokens)
    counted = [
        place for place in places if not (settings.mask_truncated and rollouts.truncated[place])
    ]
    return float(max(1, sum(rollouts.samples[place]["tokens"] for place in counted)))
