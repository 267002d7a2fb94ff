"""`workbook test`: the test suite, and with --all everything that CI checks."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TextIO

from workbook.setup import ROOT

ASSETS = ROOT / "workbook" / "assets"
REHEARSAL = ["workbook", "run", "all", "--rehearse", "--profile"]
# The kernels of the plainest x86-64 processor: no verdict may depend on whose machine it is.
PLAIN_KERNELS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
PLAIN_SUITE = ["pytest", "-q", "tests/helpers", "tests/reliability", "tests/lessons"]
# What CI checks one after another, on one core; the tests run beside it on the other.
STEPS = {
    "style": ["ruff", "check", "."],
    "build --check": ["workbook", "build", "--check"],
    "run all": ["workbook", "run", "all"],
    "rehearse small": [*REHEARSAL, "small"],
    "rehearse full": [*REHEARSAL, "full"],
    "engines": ["workbook", "test", "--engines"],
}


def run_tests(everything: bool = False) -> int:
    """Run the suite; with `everything` all that CI checks and the engines too. 0: all green.

    With `everything` the tests run beside the other steps and print when those have ended: so
    their summary ends the output, and below it stand the names of the steps that failed.
    """
    if not everything:
        return start("pytest", pytest_step(everything)).wait()
    shipped = shipped_files()
    print("pytest runs beside what follows, and prints at the end.", flush=True)
    with tempfile.TemporaryFile("w+", errors="replace") as output, ThreadPoolExecutor(1) as beside:
        suites = beside.submit(run_suites, output)
        failed = [name for name, step in STEPS.items() if start(name, step).wait()]
        status = suites.result()
        output.seek(0)
        print(output.read(), flush=True)
    if shipped_files() != shipped:
        failed.append("a run or a test changed what ships in workbook/assets")
    if failed:
        print("Failed beside the tests: " + ", ".join(failed), file=sys.stderr)
    return status or int(bool(failed))


def run_suites(output: TextIO) -> int:
    """The whole suite, and before it what computes most on other kernels. 0: both are green."""
    plain = start("pytest on plain kernels", PLAIN_SUITE, output, PLAIN_KERNELS).wait()
    return start("pytest", pytest_step(everything=True), output).wait() or plain


def pytest_step(everything: bool) -> list[str]:
    """The arguments of pytest."""
    return ["pytest", "-q", "-m", marks(everything)]


def marks(everything: bool) -> str:
    """The pytest mark expression; engines have an environment of their own."""
    left_out = [] if everything else ["browser", "interop", "solutions"]
    return " and ".join(f"not {mark}" for mark in ["engines", *left_out])


def shipped_files() -> dict[str, str]:
    """The hash of every shipped file: models and data that no run may touch."""
    files = sorted(path for path in ASSETS.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(
    title: str,
    arguments: list[str],
    output: TextIO | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen:
    """Start `python -m ...` in the course's folder; what it says goes to `output` or the screen.

    One thread: two that share busy cores make a tiny model 25 times slower.
    """
    print(f"== {title}", file=output, flush=True)
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output, stderr=output)
