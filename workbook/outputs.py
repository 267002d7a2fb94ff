"""Folders of results: those of one model and one data set are never mixed with those of another."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.atomic import set_aside
from helpers.evaluation import write_json

SETTINGS = "settings.json"
RESULTS = ("*results.jsonl", "*results.json", "summary.json", SETTINGS)


def claim(folder: Path, settings: dict[str, Any], same: Iterable[str]) -> None:
    """Write settings.json, after earlier results with other settings were set aside.

    same: the settings in which earlier results must agree to stay; what is written next replaces
    them file by file. Results without settings are of nobody knows whom, so they go too.

    Raises ValueError for the folder of a training, whose files have the same names.
    """
    settings = json.loads(json.dumps(settings))  # as they will be read
    found = [path for pattern in RESULTS for path in sorted(folder.glob(pattern))]
    if found:
        stored = _read(folder / SETTINGS)
        if "start" in stored:
            raise ValueError(f"{folder} is the folder of a training: give another one.")
        differ = [name for name in same if stored.get(name) != settings[name]]
        if differ:
            aside = set_aside(folder, found)
            warnings.warn(
                f"{folder} held other results ({', '.join(differ)} differ); they are now {aside}.",
                stacklevel=3,
            )
    write_json(folder / SETTINGS, settings)


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}
