"""S3's reading list of alignment methods, with where each loss stands in the course."""

import functools
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from workbook.hints import read_course_file


class Entry(BaseModel):
    """One method: when and where it appeared, its code, and our functions for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    release: Annotated[str, Field(pattern=r"^\d{4}/\d\d$")]
    method: str
    paper: Annotated[str, Field(pattern=r"^\d{4}\.\d{5}$")]  # of arXiv
    venue: str = ""
    code: str
    functions: list[str] = []  # in helpers: "losses.dpo_loss"
    lesson: Annotated[str, Field(pattern=r"^\d\d$")]


class _ReadingList(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: str
    methods: Annotated[list[Entry], Field(min_length=1)]


@functools.cache
def reading_list() -> tuple[Entry, ...]:
    """The entries of workbook/reading_list.yaml, in its order."""
    path = Path(__file__).with_name("reading_list.yaml")
    return tuple(read_course_file(path, _ReadingList).methods)


def reading_table() -> pd.DataFrame:
    """The list as a table: release, paper, venue, code, where our loss stands, lesson.

    Example:
        >>> reading_table().loc["DPO", "our loss"]
        'helpers.losses.dpo_loss, robust_dpo_loss, hinge_loss'
    """
    rows = {
        entry.method: {
            "release": entry.release,
            "paper": f"arXiv {entry.paper}",
            "venue": entry.venue or "–",
            "code": entry.code,
            "our loss": _places(entry.functions) or f"lesson {entry.lesson}",
            "lesson": entry.lesson,
        }
        for entry in reading_list()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "method"
    return table


def _places(functions: list[str]) -> str:
    """The functions by name, the first of each module with it."""
    places, last = [], ""
    for module, name in (function.split(".") for function in functions):
        places.append(name if module == last else f"helpers.{module}.{name}")
        last = module
    return ", ".join(places)
