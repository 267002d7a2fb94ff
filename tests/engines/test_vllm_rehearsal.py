"""Lessons 05, 06 and 07 on the full profile, rehearsed on miniatures with vLLM as the sampler.

Run by `python3 -m workbook test --engines`, in an environment of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engines
pytest.importorskip("vllm", reason="vLLM is not in this environment")

ROOT = Path(__file__).parents[2]


def rehearsed(lesson: str, runs: Path) -> dict:
    """The findings of a lesson on the full profile, whose engine is vLLM."""
    environ = {**os.environ, "WORKBOOK_RUNS": str(runs)}
    command = [sys.executable, "-m", "workbook", "run", lesson, "--profile", "full", "--rehearse"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True,
                          timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "vLLM is not installed" not in done.stdout
    (found,) = runs.glob(f"rehearsal/{lesson}/*/findings.json")
    return json.loads(found.read_text(encoding="utf-8"))


def importance_caps(lesson: str, runs: Path) -> list[float | None]:
    """Of every GRPO run that the lesson kept."""
    settings = [json.loads(path.read_text(encoding="utf-8"))["settings"]
                for path in runs.glob(f"rehearsal/{lesson}/**/settings.json")]
    return [s["importance_cap"] for s in settings if "importance_cap" in s]


def test_every_cell_of_lessons_05_and_06_runs_through_vllm(tmp_path):
    assert rehearsed("05", tmp_path)["profile"] == "full"
    # Only a sampler with an arithmetic of its own is corrected for.
    assert set(importance_caps("05", tmp_path)) == {2.0}
    # In the same folder of runs: the adapter that lesson 05 has just trained belongs to the maths
    # model, and lesson 06 asks the instruct model.
    found = rehearsed("06", tmp_path)
    assert found["profile"] == "full"
    assert set(found["strategies"]["tree_of_thought"]) == {"base"}


def test_every_cell_of_lesson_07_runs_with_vllm_over_the_awq_base(tmp_path):
    found = rehearsed("07", tmp_path)
    assert found["profile"] == "full" and found["methods"]["grpo"]["n"] > 0
    assert importance_caps("07", tmp_path) == [2.0]
