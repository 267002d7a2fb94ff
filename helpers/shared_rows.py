"""Several responses to one prompt in one row, so that the model reads the prompt once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

PROMPT = 0  # the part of the shared start; the responses count from 1

# A row of several responses needs a mask of S x S, and its attention is paid for all of it: in
# longer rows that costs more than reading the prompt again.
LONGEST_SHARED = 768


class SharedLayout(NamedTuple):
    """Where the tokens of a row belong: the shared start, then the rest of each sequence.

    parts: 0 in the start, else the number of the response, from 1; positions: the place of a token
    in its own sequence; each (S,).

    Example: two sequences of 3 and 4 tokens that share their first 2:
        >>> SharedLayout.of(2, 3, 4)
        SharedLayout(parts=[0, 0, 1, 2, 2], positions=[0, 1, 2, 2, 3])
    """

    parts: list[int]
    positions: list[int]

    @classmethod
    def of(cls, start: int, *lengths: int) -> "SharedLayout":
        """Of sequences that share their first `start` tokens; their lengths with these."""
        parts, positions = [PROMPT] * start, list(range(start))
        for number, length in enumerate(lengths, start=1):
            parts += [number] * (length - start)
            positions += range(start, length)
        return cls(parts, positions)

    def places(self, number: int) -> list[int]:
        """Where in the row the plain sequence of a response stands."""
        return [place for place, part in enumerate(self.parts) if part in (PROMPT, number)]


def may_look(parts: torch.Tensor) -> torch.Tensor:
    """(N, S) to (N, 1, S, S): back to the shared start and to the own part, never to another."""
    row, column = parts[:, :, None], parts[:, None, :]
    back = torch.ones(parts.shape[1], parts.shape[1], dtype=torch.bool).tril()
    return (back & ((column == PROMPT) | (column == row)))[:, None]


def mask_for(model, mask: torch.Tensor) -> torch.Tensor:
    """`may_look` in the form that the model's attention reads; (N, 1, S, S).

    A model takes such a mask as it is, in place of its own. So "eager" attention, which adds its
    mask to the scores, gets 0 and the lowest number in place of True and False.

    Raises ValueError for an attention that does without masks.
    """
    attention = model.config.get_text_config()._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"Responses cannot share their prompt with the attention {attention}: only sdpa and "
            "eager keep them apart."
        )
    if attention == "sdpa":
        return mask
    dtype = next(model.parameters()).dtype
    lowest = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, lowest)


def padded(rows: Sequence[Sequence], *, value) -> torch.Tensor:
    """Rows of unequal length as one tensor, padded at the end."""
    return pad_sequence([torch.as_tensor(row) for row in rows], True, value)


def shared_columns(
    rows: Sequence[Sequence[int]], layouts: Sequence[SharedLayout], pad: int
) -> dict[str, torch.Tensor]:
    """What a model reads of N rows: input_ids, position_ids (N, S), may_look (N, 1, S, S)."""
    return {
        "input_ids": padded(rows, value=pad),
        "position_ids": padded([layout.positions for layout in layouts], value=0),
        "may_look": may_look(padded([layout.parts for layout in layouts], value=-1)),
    }


def plain_places(layouts: Sequence[SharedLayout]) -> list[list[int]]:
    """Where the 2N plain sequences of N pairs stand: all first responses, then all second ones."""
    return [layout.places(number) for number in (1, 2) for layout in layouts]
