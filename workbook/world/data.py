"""Write the data files that ship with the course: every split, from its seed."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from workbook.world.chinese import chinese_problems
from workbook.world.maths import sample_problems
from workbook.world.qa import sample_records

SIZES = {
    "maths_train": 2000,
    "maths_dev": 300,
    "maths_test": 1000,
    "qa_train": 2000,
    "qa_test": 1000,
}
SEED = 0


def split_records(name: str) -> list[dict]:
    """The records of one split, by the name of its file.

    >>> sorted(split_records("maths_dev")[0])[:3]
    ['answer', 'distractor', 'id']
    """
    task, split = name.split("_")
    if task == "qa":
        return sample_records(SIZES[name], split, SEED)
    return [problem.record() for problem in sample_problems(SIZES[name], split, SEED)]


def write_jsonl(records: Iterable[dict], path: Path) -> None:
    """One record a line, written beside and renamed: an interrupted run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    os.replace(beside, path)


def write_data(folder: Path) -> list[Path]:
    """Write all splits and the Chinese samples to `folder`; returns the files."""
    paths = [folder / f"{name}.jsonl" for name in SIZES]
    for path in paths:
        write_jsonl(split_records(path.stem), path)
    write_jsonl(chinese_problems(), folder / "maths_chinese.jsonl")
    return [*paths, folder / "maths_chinese.jsonl"]
