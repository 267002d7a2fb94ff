"""Write the data files that ship with the course: every split from its seed, and sample pairs."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from helpers.models import load_model
from helpers.prompts import load_template, render
from helpers.rollout import SamplingSettings, generate
from workbook.world.chinese import chinese_problems
from workbook.world.maths import sample_problems
from workbook.world.preferences import Annotator, Pair, label_pairs
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


def sample_pairs(base: Path, adapter: Path, count: int = 50, seed: int = SEED) -> list[Pair]:
    """`count` labelled pairs: a response of the base model and one of the tuned model, at T = 1."""
    problems = sample_problems(count + 20, "train", seed + 1)
    prompts = [render(load_template("r1_zero"), question=p.question) for p in problems]
    sampling = SamplingSettings(temperature=1.0, max_new_tokens=96, seed=seed)
    drawn = []
    for tuned in (None, adapter):
        model, tokenizer = load_model(base, adapter=tuned, trainable_adapter=False)
        drawn.append([c.text for c in generate(model, tokenizer, prompts, sampling=sampling)])
    golds = [str(problem.final) for problem in problems]
    samples = zip(prompts, golds, zip(*drawn, strict=True), strict=True)
    return label_pairs(samples, Annotator(), seed)[:count]


def write_preferences(folder: Path, base: Path, adapter: Path) -> list[Path]:
    """The sample pairs in three shapes: chosen and rejected, better_response_id, and unpaired."""
    pairs = sample_pairs(base, adapter)
    shapes = {
        "preferences_chosen": [pair.as_chosen_rejected() for pair in pairs],
        "preferences_better_id": [pair.as_better_id() for pair in pairs],
        "preferences_unpaired": [record for pair in pairs for record in pair.as_unpaired()],
    }
    paths = [folder / f"{name}.jsonl" for name in shapes]
    for path in paths:
        write_jsonl(shapes[path.stem], path)
    return paths
