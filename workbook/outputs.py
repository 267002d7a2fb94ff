"""Folders of results: those of one model and one data set are never mixed with those of another."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.atomic import set_aside

SETTINGS = "settings.json"
COMPARISON = "comparison_results.json"  # holds its settings itself
RESULTS = ("*results.jsonl", "summary.json", COMPARISON, SETTINGS)


def claim(folder: Path, settings: dict[str, Any], same: Iterable[str]) -> None:
    """Set aside what lies in the folder, where it is of other settings.

    same: the settings in which earlier results must agree to stay; what is written next replaces
    them file by file. Results without settings are of nobody knows whom, so they go too.

    Raises ValueError for the folder of a training, whose files have the same names.
    """
    settings = json.loads(json.dumps(settings))  # as they were read
    found = [path for pattern in RESULTS for path in sorted(folder.glob(pattern))]
    stored = _read(folder / SETTINGS)
    if "start" in stored:
        raise ValueError(f"{folder} is the folder of a training: give another one.")
    stored |= _read(folder / COMPARISON).get("settings", {})
    differ = [name for name in same if stored.get(name) != settings[name]]
    if found and differ:
        aside = set_aside(folder, found)
        warnings.warn(
            f"{folder} held other results ({', '.join(differ)} differ); they are now {aside}.",
            stacklevel=3,
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}
