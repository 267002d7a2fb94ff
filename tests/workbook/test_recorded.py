"""Recorded parts: drawn at short, run at full and kept, written only from a full run."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from workbook.profiles import use_profile
from workbook.progress import set_lesson
from workbook.recorded import read_recorded, record, recorded_or_live

HINTS = Path(__file__).parents[2] / "workbook" / "hints" / "03.yaml"
calls = []


def part():
    calls.append(1)
    return {32: 0.5}


@pytest.fixture(autouse=True)
def course(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_ROOT", str(tmp_path))
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / "runs"))
    set_lesson("03")
    calls.clear()
    return tmp_path


def at(depth, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DEPTH", depth)
    return use_profile("tiny")


def test_a_full_run_is_kept_and_then_drawn_at_short(course, monkeypatch, capsys):
    at("full", monkeypatch)
    assert recorded_or_live("sweep", part) == {"32": 0.5}  # as JSON gives it back
    assert recorded_or_live("sweep", part) == {"32": 0.5} and len(calls) == 1  # resumed
    record("03", {"profile": "tiny", "depth": "full", "accuracy": 0.5})
    assert read_recorded("03")["accuracy"] == 0.5
    at("short", monkeypatch)
    capsys.readouterr()
    assert recorded_or_live("sweep", part) == {"32": 0.5} and len(calls) == 1
    assert "workbook run 03 --depth full" in capsys.readouterr().out


def test_what_is_not_recorded_runs_and_smoke_always_runs(course, monkeypatch, capsys):
    at("short", monkeypatch)
    assert recorded_or_live("sweep", part) == {"32": 0.5}
    assert "Recorded" not in capsys.readouterr().out
    stored = {"profile": "tiny", "depth": "full", "parts": {"sweep": 1}}
    path = course / "solutions" / "recorded" / "03.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(stored), encoding="utf-8")
    at("smoke", monkeypatch)
    recorded_or_live("sweep", part)
    recorded_or_live("sweep", part)
    assert len(calls) == 3


def test_a_part_of_another_profile_is_not_drawn(course, monkeypatch):
    path = course / "solutions" / "recorded" / "03.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"profile": "full", "parts": {"sweep": 1}}', encoding="utf-8")
    at("short", monkeypatch)
    assert recorded_or_live("sweep", part) == {"32": 0.5}


def test_a_kept_part_runs_anew_with_other_settings_or_another_function(course, monkeypatch):
    monkeypatch.setenv("WORKBOOK_DEPTH", "full")
    (course / "workbook" / "hints").mkdir(parents=True)
    shutil.copy(HINTS, course / "workbook" / "hints")
    notebook, slower = vars(sys.modules["__main__"]), ("sft.lr=1.0e-3",)
    for overrides, function in (((), part), (slower, part), (slower, at)):
        use_profile("tiny", *overrides)
        monkeypatch.setitem(notebook, "sft_loss", function)
        recorded_or_live("sweep", part)
        recorded_or_live("sweep", part)
    assert len(calls) == 3


def test_only_a_full_run_is_recorded():
    with pytest.raises(ValueError, match="only a run at depth full is recorded"):
        record("03", {"profile": "tiny", "depth": "short"})
