"""`doctor`: every line says what was found, and what to do where something is wrong."""

import sys

import pytest

from workbook import doctor, process


@pytest.fixture
def environ(monkeypatch):
    """A process as `python3 -m workbook` starts it, without a hub."""
    for name, value in process.process_settings({"OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return monkeypatch


def test_this_machine_is_ready(environ, capsys):
    assert doctor.run_doctor() == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "ready"
    assert len(lines) == len(doctor.CHECKS) + 1
    assert all(line.startswith("ok ") for line in lines[:-1])
    said = "\n".join(lines)
    assert sys.prefix in said and doctor.QUESTION in said and "properties hold" in said


def test_what_lacks_has_its_fix_and_the_rest_is_still_checked(environ, tmp_path, capsys):
    environ.setattr(doctor, "BASE", tmp_path / "base")
    assert doctor.run_doctor() == 1
    lines = capsys.readouterr().out.splitlines()
    bad = [line.split()[1] for line in lines if line.startswith("fix ")]
    assert bad == ["load", "answer", "train"]
    assert sum("-> the clone is not complete" in line for line in lines) == 3
    assert any(line.startswith("ok  check") for line in lines)
    assert lines[-1] == "not ready: 3 of 10 lines need a fix"


def test_missing_package_is_named(environ):
    environ.setattr(doctor, "package_set", lambda: ["pytest==0.1"])
    assert "pytest==0.1 missing" in doctor.check_python().fix


def test_little_memory_has_a_fix(environ):
    environ.setattr(doctor, "MEMORY_GB", 1e6)
    assert doctor.check_memory().fix.startswith("close programs")


def test_process_without_the_allocator_settings_has_a_fix(environ):
    environ.delenv("MALLOC_TRIM_THRESHOLD_")
    assert "python3 -m workbook" in doctor.check_threads().fix


def test_engines_are_listed_present_or_not(environ):
    found = doctor.check_engines()
    assert "transformers 5." in found.text and "vllm" in found.text and not found.fix
    assert doctor.version_of("no-such-package") is None


def test_hub_offline_is_fine_and_a_dead_mirror_is_not(environ):
    assert "offline" in doctor.check_hub().text
    environ.setenv("HF_HUB_OFFLINE", "0")
    environ.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert doctor.check_hub() == (
        "http://127.0.0.1:9 does not answer",
        "correct or unset HF_ENDPOINT",
    )
    environ.delenv("HF_ENDPOINT")
    environ.setattr(doctor, "HUB", "http://127.0.0.1:9")
    assert "fine for the tiny profile" in doctor.check_hub().text
    assert not doctor.check_hub().fix
