"""`workbook test`: the test suite, and with --all everything that CI checks."""

import importlib.util
import os
import subprocess
import sys

from workbook.setup import ROOT

ENGINES = ("vllm", "gptqmodel")


def run_tests(everything: bool = False) -> int:
    """Run the suite; with `everything` the style, the build and all solutions too. 0: all green.

    pytest comes last, so that its summary ends the output; what failed before it is repeated there.
    """
    steps = {}
    if everything:
        steps["style"] = ["ruff", "check", "."]
        steps["build --check"] = ["workbook", "build", "--check"]
        steps["run all"] = ["workbook", "run", "all"]
    failed = [name for name, step in steps.items() if run_module(name, step)]
    status = run_module("pytest", ["pytest", "-q", "-m", marks(everything)])
    if failed:
        print("Failed before the tests: " + ", ".join(failed), file=sys.stderr)
    return status or int(bool(failed))


def marks(everything: bool) -> str:
    """The pytest mark expression: `--all` leaves out engines only where none is installed."""
    if not everything:
        return "not browser and not engines and not interop and not solutions"
    engines = any(importlib.util.find_spec(name) for name in ENGINES)
    return "" if engines else "not engines"


def run_module(title: str, arguments: list[str]) -> int:
    """Run `python -m ...` in the course's folder and return its exit status.

    One thread: two that share busy cores make a tiny model 25 times slower.
    """
    print(f"== {title}", flush=True)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environ).returncode
