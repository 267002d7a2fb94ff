"""What a training method adds to the shared loop: its examples, its loss, its metrics."""

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

Batch = dict[str, torch.Tensor]
MOST_ROWS = 10_000_000  # of data without a length, which may never end


class Method(ABC):
    """One method, such as SFT. The loop calls, for each optimiser step and in this order:

    prepare: this process's micro-batches, from the rows of its pieces.
    weight: what a micro-batch adds to the normaliser, such as its response tokens. The loop adds
        these up over the whole step and all processes.
    loss: the sum over a micro-batch divided by that normaliser, and sums for the metrics.
    metrics: what is logged, from those sums over the whole step and all processes.

    Before held-out examples are evaluated, batch by batch, it calls before_evaluation.

    name: of the method. unit: what `weight` counts, as it is logged. lengths: tokens of each
    usable example. places: the row of the data that each of them was. report: what was left out or
    cut. drops: whether dropout acts in training; not where the policy is compared with a reference.
    digest: names the data.
    """

    drops: bool = True

    name: str
    unit: str
    lengths: list[int]
    places: list[int]
    report: dict[str, Any]
    digest: str

    def prepare(self, model, pieces: Sequence[Sequence[int]]) -> list[Batch]:
        return [self.batch(piece) for piece in pieces]

    def before_evaluation(self, model) -> None:
        return None

    @abstractmethod
    def batch(self, rows: Sequence[int]) -> Batch: ...

    @abstractmethod
    def weight(self, batch: Batch) -> int: ...

    @abstractmethod
    def loss(
        self, model, batch: Batch, normalizer: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return dict(sums)


def checked_functions(
    given: Mapping[str, Callable], references: Mapping[str, Callable]
) -> dict[str, Callable]:
    """The reference functions, with those that were given in their place.

    Raises ValueError for a name that the method does not know, TypeError for what is no function.
    """
    for name, function in given.items():
        if name not in references:
            raise ValueError(
                f"functions holds {name!r}, but this method takes {', '.join(references)}."
            )
        if not callable(function):
            raise TypeError(f"functions[{name!r}] must be a function, but it is {function!r}.")
    return {**references, **given}


def rows_of(data: Any) -> Sequence[Mapping[str, Any]]:
    """The rows of the data, as often as they are wanted: a generator is read into a list once.

    Raises ValueError for what holds rows in another way: they would be read as something else.
    """
    kind = type(data).__name__
    if isinstance(data, str | Path):
        raise ValueError(f"The data are the text {str(data)[:80]!r}: give the rows of that file, "
                         "load_records(...)[0].")
    if isinstance(data, Mapping):
        names = ", ".join(map(repr, list(data)[:5]))
        raise ValueError(
            f"The data are a {kind} with {names}: give one of its parts, or a list of dicts."
        )
    if hasattr(data, "to_dict") and hasattr(data, "iloc"):
        raise ValueError(f'The data are a {kind}: give data.to_dict("records").')
    if not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        raise ValueError(f"The data are a {kind}, not a data set or a list of dicts.")
    if hasattr(data, "__len__"):
        return data
    rows = list(islice(data, MOST_ROWS + 1))
    if len(rows) > MOST_ROWS:
        raise ValueError(
            f"The data are a {kind} of more than {MOST_ROWS:,} rows: give a list of those to use."
        )
    return rows


def text_of(example: Mapping[str, Any], column: str, row: int) -> str:
    """A text column of an example.

    Raises ValueError where the column is missing or holds no text: data of another kind.
    """
    if not isinstance(example, Mapping):
        raise ValueError(
            f"Row {row} of the data is a {type(example).__name__}, not a dict with {column}."
        )
    if column not in example:
        raise ValueError(
            f"Row {row} of the data has {', '.join(map(str, example)) or 'no fields'}, "
            f"but {column} is needed."
        )
    if not isinstance(example[column], str):
        raise ValueError(
            f"Row {row} of the data: {column} holds {example[column]!r}, which is no text."
        )
    return example[column]


# No token stands before such a response, so its first token could be neither scored nor sampled.
EMPTY_PROMPT = "empty prompt"


class DataReport:
    """Counts what was left out or cut, keeps the first rows of each kind, and says so once."""

    KEPT = 10

    def __init__(self, num_rows: int):
        self.num_rows, self.left_out, self.cut = num_rows, {}, {}

    def leave_out(self, kind: str, row: int) -> None:
        self._add(self.left_out, kind, row)

    def note_cut(self, kind: str, row: int) -> None:
        self._add(self.cut, kind, row)

    def _add(self, kinds: dict, kind: str, row: int) -> None:
        entry = kinds.setdefault(kind, {"count": 0, "rows": []})
        entry["count"] += 1
        if len(entry["rows"]) < self.KEPT:
            entry["rows"].append(row)

    def finish(self, num_used: int) -> dict[str, Any]:
        """The report for summary.json; one warning for each kind.

        Raises ValueError where no example is left.
        """
        for verb, kinds in (("left out", self.left_out), ("cut", self.cut)):
            for kind, entry in kinds.items():
                shown = ", ".join(map(str, entry["rows"]))
                more = ", ..." if entry["count"] > len(entry["rows"]) else ""
                warnings.warn(
                    f"{entry['count']} of {self.num_rows} examples {verb}: {kind} (rows {shown}"
                    f"{more}, counted from 0).",
                    stacklevel=5,
                )
        if not num_used:
            raise ValueError(f"None of {self.num_rows} examples can be used to train.")
        return {"rows": self.num_rows, "used": num_used, "left_out": self.left_out, "cut": self.cut}


def data_digest(rows: Sequence[Any]) -> str:
    """A hash of the examples: a resumed run must go on with the same ones in the same order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "replace"))
    return digest.hexdigest()[:16]
