"""Which examples make an optimiser step, and how they are cut into micro-batches."""

import math
import random
from collections.abc import Sequence

# Length-grouped batches are made within blocks of so many steps: over a whole epoch the same
# examples would meet again and again, and short ones would never share a step with long ones.
STEPS_PER_BLOCK = 16


class StepPlan:
    """The examples of every optimiser step, as a function of the seed and the step alone.

    Each epoch visits all examples once, in a new order; its last step may be smaller. As the plan
    keeps no state, the position in the data is the number of the step.

    lengths: tokens of each example.

    Example:
        >>> plan = StepPlan([5, 9, 5, 9], batch_size=2, seed=0, grouped=True)
        >>> plan.steps_per_epoch, [sorted(plan.rows(step)) for step in range(2)]
        (2, [[0, 2], [1, 3]])
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int, grouped: bool):
        self.lengths, self.batch_size = lengths, batch_size
        self.seed, self.grouped = seed, grouped
        self.steps_per_epoch = math.ceil(len(lengths) / batch_size)
        self._epoch, self._batches = -1, []

    def rows(self, step: int) -> list[int]:
        """The examples of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/{epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        if not self.grouped:
            return _cut(order, self.batch_size)
        rest = len(order) % self.batch_size  # at random: else the longest always fill a small step
        batches = [order[:rest]] if rest else []
        for block in _cut(order[rest:], self.batch_size * STEPS_PER_BLOCK):
            batches += _cut(sorted(block, key=lambda row: self.lengths[row]), self.batch_size)
        rng.shuffle(batches)
        return batches


def micro_batches(
    rows: Sequence[int],
    lengths: Sequence[int],
    *,
    size: int | None,
    process: int = 0,
    num_processes: int = 1,
) -> list[list[int]]:
    """This process's share of a step, cut into pieces of at most `size` examples.

    Examples of like length share a piece (this saves padding and changes no gradient), and the
    pieces are dealt to the processes in turn. A process may get none.

    Example:
        >>> micro_batches([0, 1, 2, 3], [9, 5, 8, 4], size=1, process=1, num_processes=2)
        [[1], [0]]
    """
    largest = math.ceil(len(rows) / num_processes)
    order = sorted(rows, key=lambda row: lengths[row])
    return _cut(order, min(size or largest, largest))[process::num_processes]


def _cut(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
