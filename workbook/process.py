"""What a process of the course needs before it starts: threads, allocator, import path.

Standard library only: `__main__` uses it before any package is there.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from workbook.setup import ROOT

MEGABYTE = 2**20
# Commands beside which nobody works in a browser on the same cores.
UNATTENDED = ("run", "build", "train", "eval")


def process_settings(environ, command: str = "") -> dict[str, str]:
    """The environment variables that a process of the course lacks; {} when all are there.

    What the user has set stays. glibc returns large blocks to the system at once, and the page
    faults of taking them back cost up to half of a CPU training step: hence the two thresholds.
    """
    settings = {
        # A thread that spins while it waits for the others is up to 25 times slower on a busy core.
        "OMP_WAIT_POLICY": "passive",
        "MALLOC_MMAP_THRESHOLD_": str(256 * MEGABYTE),
        "MALLOC_TRIM_THRESHOLD_": str(1024 * MEGABYTE),
        "TOKENIZERS_PARALLELISM": "false",  # checks fork the kernel
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    settings = {name: value for name, value in settings.items() if name not in environ}
    if "OMP_NUM_THREADS" not in environ:
        threads = free_cores()
        settings["OMP_NUM_THREADS"] = str(threads)
        if threads > 1 and command in UNATTENDED and "GOMP_SPINCOUNT" not in environ:
            # On idle cores two threads need a short spin to be faster than one at all
            # (tests/benchmarks/thread_waiting.py).
            settings["GOMP_SPINCOUNT"] = "10000"
    folders = environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(ROOT) not in folders:  # notebooks run in work/ and import helpers and workbook
        settings["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, folders)])
    return settings


def free_cores(seconds: float = 0.2) -> int:
    """Cores that were idle just now, of those this process may use; at least 1, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    idle = float(usable or 1)
    if Path("/proc/stat").exists():
        before, start = idle_ticks(), time.monotonic()
        time.sleep(seconds)
        ticks = (time.monotonic() - start) * os.sysconf("SC_CLK_TCK")
        idle = min(idle, (idle_ticks() - before) / ticks)
    return max(1, min(8, round(idle)))


def idle_ticks() -> int:
    """Clock ticks that all cores together have been idle or waiting for a disk."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[4]) + int(fields[5])


def restart(python: str, arguments: list[str], environ: dict[str, str]) -> int:
    """Go on in another Python; only Windows, which has no exec, comes back from it."""
    if os.name == "nt":
        return subprocess.call([python, *arguments], env=environ)
    os.execve(python, [python, *arguments], environ)
