"""Several sampled responses behind one prompt in one row, so that the model reads it once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from helpers.shared_rows import LONGEST_SHARED, PROMPT, may_look, padded
from helpers.training.method import Batch


class SharedRow(NamedTuple):
    """Token ids of one row; each list (S,).

    The prompt without its last token, then each response behind a copy of that token, which
    predicts its first one. labels: the token after; mask: where it belongs to a response; parts: 0
    in the prompt, else the response's number from 1; positions: the place in the own sequence.

    Example:
        >>> SharedRow.of([5, 6], [[7, 0], [8]])
        SharedRow(input_ids=[5, 6, 7, 6], labels=[0, 7, 0, 8], mask=[False, True, True, True],
                  parts=[0, 1, 1, 2], positions=[0, 1, 2, 1])
    """

    input_ids: list[int]
    labels: list[int]
    mask: list[bool]
    parts: list[int]
    positions: list[int]

    @classmethod
    def of(cls, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> "SharedRow":
        start, last = list(prompt[:-1]), prompt[-1]
        row = cls(
            start[:],
            [0] * len(start),
            [False] * len(start),
            [PROMPT] * len(start),
            list(range(len(start))),
        )
        for number, response in enumerate(responses, start=1):
            row.input_ids.extend([last, *response[:-1]])
            row.labels.extend(response)
            row.mask.extend([True] * len(response))
            row.parts.extend([number] * len(response))
            row.positions.extend(range(len(start), len(start) + len(response)))
        return row


def shared_batch(rows: Sequence[SharedRow], pad: int) -> Batch:
    """The inputs of `helpers.logprobs.response_log_probs` for N rows, padded to (N, S).

    Their scores, read row by row where `response_mask` is True, are those of the responses in
    order.
    """
    names = {"input_ids": pad, "labels": 0, "position_ids": 0, "response_mask": False}
    columns = {
        "input_ids": [row.input_ids for row in rows],
        "labels": [row.labels for row in rows],
        "position_ids": [row.positions for row in rows],
        "response_mask": [row.mask for row in rows],
    }
    batch = {name: padded(columns[name], value=value) for name, value in names.items()}
    if any(row.parts[-1] > 1 for row in rows):  # else causal attention is all that is needed
        batch["attention_mask"] = may_look(padded([row.parts for row in rows], value=-1))
    return batch


def cut_rows(
    lengths: Sequence[int], groups: Sequence[Sequence[int]], prompts: Sequence[int], budget: int
) -> list[list[list[int]]]:
    """Micro-batches of rows of responses: at most `budget` tokens each, padding included.

    lengths: tokens of each response. groups: the responses that share a prompt, of `prompts`
    tokens. A row that is longer than the budget alone stands alone.

    Example: two prompts of 4 tokens, the first with three responses:
        >>> cut_rows([2, 3, 2, 5], [[0, 1, 2], [3]], [4, 4], budget=24)
        [[[3], [0, 1, 2]]]
    """
    limit = min(budget, LONGEST_SHARED)
    rows = [
        row
        for group, prompt in zip(groups, prompts, strict=True)
        for row in _cut_group(group, prompt, lengths, limit)
    ]
    pieces: list[list[list[int]]] = []
    for size, row in sorted(rows):  # rows of like length share a piece: little padding
        if not pieces or size * (len(pieces[-1]) + 1) > budget:
            pieces.append([])
        pieces[-1].append(row)
    return pieces


def _cut_group(group, prompt: int, lengths, limit: int) -> list[tuple[int, list[int]]]:
    """(tokens, responses) of the rows of one prompt."""
    rows: list[tuple[int, list[int]]] = []
    for response in group:
        if rows and rows[-1][0] + lengths[response] <= limit:
            size, row = rows.pop()
            rows.append((size + lengths[response], [*row, response]))
        else:
            rows.append((prompt - 1 + lengths[response], [response]))
    return rows


def split_scores(scores: torch.Tensor, response_mask: torch.Tensor, mask: torch.Tensor):
    """Scores of shared rows (N, S) as one row a response, (b, T); padding is 0.

    response_mask: (N, S) of `shared_batch`; mask: (b, T), True where response k has a token t.
    """
    return scores.new_zeros(mask.shape).masked_scatter(mask, scores[response_mask])
