"""Two responses to one prompt in one row, so that the model reads the prompt once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

PROMPT, CHOSEN, REJECTED = 0, 1, 2


class PairLayout(NamedTuple):
    """Where the tokens of a row belong: the shared start, then the rest of each sequence.

    parts: which of the three a token is of; positions: its place in its own sequence; each (S,).

    Example:
        >>> PairLayout.of(start=2, chosen=3, rejected=4)
        PairLayout(parts=[0, 0, 1, 2, 2], positions=[0, 1, 2, 2, 3])
    """

    parts: list[int]
    positions: list[int]

    @classmethod
    def of(cls, start: int, chosen: int, rejected: int) -> "PairLayout":
        """Of two sequences that share their first `start` tokens; their lengths with these."""
        return cls(
            parts=[PROMPT] * start + [CHOSEN] * (chosen - start) + [REJECTED] * (rejected - start),
            positions=[*range(chosen), *range(start, rejected)],
        )

    def places(self, side: int) -> list[int]:
        """Where in the row the plain sequence of one side stands."""
        return [place for place, part in enumerate(self.parts) if part in (PROMPT, side)]


def may_look(parts: torch.Tensor) -> torch.Tensor:
    """(N, S) to (N, 1, S, S): back to the shared start and to the own side, never to the other."""
    row, column = parts[:, :, None], parts[:, None, :]
    back = torch.ones(parts.shape[1], parts.shape[1], dtype=torch.bool).tril()
    return (back & ((column == PROMPT) | (column == row)))[:, None]


def padded(rows: Sequence[Sequence], *, value) -> torch.Tensor:
    """Rows of unequal length as one tensor, padded at the end."""
    return pad_sequence([torch.as_tensor(row) for row in rows], True, value)


def plain_places(layouts: Sequence[PairLayout]) -> list[list[int]]:
    """Where the 2N plain sequences stand in their N rows: all chosen ones, then all rejected."""
    return [layout.places(side) for side in (CHOSEN, REJECTED) for layout in layouts]
