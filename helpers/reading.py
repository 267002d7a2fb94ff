"""How a model reads rows of tokens: as they come, or each sequence plainly in a row of its own.

A row may hold padding on either side, several sequences end to end, or several behind a shared
start. Where a probe shows that a model reads these otherwise than each sequence alone, they are
read one a row, without mask and positions: padding stands at the end, where no token looks.

Notation: N rows of S tokens as they come, M sequences of T tokens as they are read.
"""

from collections.abc import Sequence
from functools import partial

import torch

from helpers.probes import WINDOWS, device_of, holds, rule_out, shortest_window, trial_ids
from helpers.shared_rows import SharedLayout, mask_for, may_look, padded

_PLAINLY = "so each sequence is read in a row of its own, which takes longer."
SENTENCES = {
    "padded": f"tokens behind padding are not read as without it, {_PLAINLY}",
    "packed": f"sequences packed into one row would read each other, {_PLAINLY}",
    "shared": f"responses that share their prompt in one row are not read as each alone, "
    f"{_PLAINLY}",
}


class Reading:
    """What a model is called with, and the way between its rows and those that were given.

    arguments: of the call. `unfold` brings values (N, S) to the tokens that the model reads,
    `fold` brings what it found there back; where the rows are read as they come both do nothing.
    """

    def __init__(self, arguments: dict, source: torch.Tensor | None = None, shape=None):
        self.arguments = {name: value for name, value in arguments.items() if value is not None}
        self.source, self.shape = source, shape  # (M, T), the place in the given rows; -1: padding

    def unfold(self, values: torch.Tensor) -> torch.Tensor:
        if self.source is None:
            return values
        return _taken(values, self.source)

    def fold(self, values: torch.Tensor) -> torch.Tensor:
        if self.source is None:
            return values
        source, none = self.source.flatten(), self.source.numel()
        size = self.shape[0] * self.shape[1]
        places = source.masked_fill(source < 0, size)  # of padding: behind the last token
        target = torch.full((size + 1,), none, device=source.device)
        # A shared token is read in several sequences; the first of them counts.
        order = torch.arange(none, device=source.device)
        target = target.scatter_reduce(0, places, order, "amin")[:size]
        return _taken(values, target.masked_fill(target == none, -1).view(self.shape))


def _taken(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The values at places of the flattened tensor; 0 at the place -1."""
    found = values.flatten()[places.clamp(min=0)]
    return found.masked_fill(places < 0, 0)


def read_rows(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    needed: torch.Tensor | None = None,
) -> Reading:
    """How the model reads rows (N, S), after a probe where it is needed.

    attention_mask: (N, S) with 0 at padding, or (N, 1, S, S) of who may look at whom, with
        `position_ids`; see `helpers.shared_rows`. `position_ids` alone start again at 0 in each of
        the sequences that stand end to end. needed: (N, S), True where scores are wanted; sequences
        without any may be left out.
    """
    if attention_mask is None and position_ids is None:
        return Reading({"input_ids": input_ids, "use_cache": False})
    way = "packed"
    if attention_mask is not None:
        way = "shared" if attention_mask.dim() == 4 else "padded"
    if may_read(model, way, input_ids.shape[1]):
        return Reading(_as_given(model, input_ids, attention_mask, position_ids))
    sequences = _sequences(input_ids, attention_mask, position_ids, needed)
    source = padded(sequences, value=-1).to(input_ids.device)
    ids = input_ids.flatten()[source.clamp(min=0)]
    return Reading({"input_ids": ids, "use_cache": False}, source, input_ids.shape)


def _as_given(model, input_ids, attention_mask, position_ids) -> dict:
    if attention_mask is not None and attention_mask.dim() == 4:
        attention_mask = mask_for(model, attention_mask)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "use_cache": False,
    }


def _sequences(input_ids, attention_mask, position_ids, needed=None) -> list[list[int]]:
    """The places, in the flattened rows, of the tokens of each sequence."""
    found, size = [], input_ids.shape[1]
    for row in range(len(input_ids)):
        if attention_mask is None:
            chains = _packed_chains(position_ids[row].tolist())
        elif attention_mask.dim() == 2:
            chains = [attention_mask[row].nonzero().flatten().tolist()]
        else:
            chains = _shared_chains(attention_mask[row, 0].cpu(), position_ids[row].tolist())
        wanted = [True] * size if needed is None else needed[row].tolist()
        for chain in chains:
            if any(wanted[place] for place in chain):
                found.append([row * size + place for place in chain])
    return found or [[0]]  # a model must be called, also where no score is wanted


def _packed_chains(positions: Sequence[int]) -> list[list[int]]:
    starts = [0, *(place for place, position in enumerate(positions) if place and position == 0)]
    ends = [*starts[1:], len(positions)]
    return [list(range(start, end)) for start, end in zip(starts, ends, strict=True)]


def _shared_chains(may_look: torch.Tensor, positions: Sequence[int]) -> list[list[int]]:
    """A sequence is what its last token looks at; that is a token at which no later one looks."""
    ends = ~may_look.tril(-1).any(dim=0)
    chains = [look.nonzero().flatten().tolist() for look in may_look[ends]]
    # Padding looks at the shared start, but its positions do not go on from there.
    return [c for c in chains if [positions[place] for place in c] == list(range(len(c)))]


def may_read(model, way: str, length: int) -> bool:
    """Whether the model reads rows of so many tokens this way as it reads each sequence alone."""
    # A mask of one's own takes the place of a layer's window, and chunks are those of the row.
    words = {"shared": WINDOWS, "packed": ("attention_chunk_size",)}.get(way, ())
    window = shortest_window(model, words)
    if window and length > window:
        rule_out(model, f"{way}, long", f"with its window of {window} tokens {SENTENCES[way]}")
        return False
    return holds(
        model,
        way,
        trial=lambda: _trial(model, way),
        fast=partial(_read_together, model),
        plain=partial(_read_alone, model),
        otherwise=SENTENCES[way],
    )


def _trial(model, way: str) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """input_ids, attention_mask and position_ids of a few tokens that are read this way."""
    first, second, third = trial_ids(model, 4, 2, 3, beyond_window=way != "shared")
    tensor = partial(torch.tensor, device=device_of(model))
    joined = tensor([[*first, *second, *third]])
    if way == "packed":
        return joined, None, tensor([[*range(len(first)), *range(2), *range(3)]])
    if way == "shared":
        layout = SharedLayout.of(4, 4 + len(second), 4 + len(third))
        return joined, may_look(tensor([layout.parts])), tensor([layout.positions])
    rest, pad = len(first) - 3, first[:1]
    rows = [first, pad * (rest + 1) + second, third + pad * rest]
    mask = tensor([[1] * len(first), [0] * (rest + 1) + [1] * 2, [1] * 3 + [0] * rest])
    return tensor(rows), mask, positions_of(mask)


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """(N, S): places counted over the mask, so that padding moves no token."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def _read_together(model, *rows) -> torch.Tensor:
    scores = _scores(model, Reading(_as_given(model, *rows)).arguments).flatten(0, 1)
    return torch.cat([scores[sequence] for sequence in _sequences(*rows)])


def _read_alone(model, *rows) -> torch.Tensor:
    ids = rows[0].flatten()
    reads = [Reading({"input_ids": ids[s][None], "use_cache": False}) for s in _sequences(*rows)]
    return torch.cat([_scores(model, read.arguments)[0] for read in reads])


def _scores(model, arguments: dict) -> torch.Tensor:
    """Logits, or the last hidden states of a model without an output layer; (N, S, ...)."""
    found = model(**arguments)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def chosen_logits(model, arguments: dict, chosen: torch.Tensor) -> torch.Tensor:
    """The logits (K, V) at the K chosen positions, as the model itself makes them of its states.

    chosen: (M, T), bool. Only these are projected to the vocabulary; what the model does to its
    logits behind the output layer it does to them.
    """
    unwrapped = getattr(model, "module", model)  # the model inside DistributedDataParallel
    head = unwrapped.get_output_embeddings()
    if head is None:
        return model(**arguments).logits[chosen]
    project = head.forward
    head.forward = lambda hidden: project(hidden[chosen][None])
    try:
        return model(**arguments).logits[0]
    finally:
        del head.forward  # the layer's own method shows again
