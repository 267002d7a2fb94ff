"""Resolve the pinned package set for every Python and system that the README names.

    python tests/benchmarks/platforms.py [--uv PATH]

Nothing is installed but uv, into a temporary folder; wheels alone count, as for a learner without
a compiler. pip cannot do this: it reads markers such as sys_platform for the machine it runs on.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = {  # the oldest of each that PyTorch's wheels are built for
    "Linux, x86-64 (glibc 2.28)": "x86_64-manylinux_2_28",
    "Linux, arm64 (glibc 2.28)": "aarch64-manylinux_2_28",
    "macOS 14, arm64": "aarch64-apple-darwin",
    "Windows, x86-64": "x86_64-pc-windows-msvc",
}
EXTRAS = {"core": (), "with test and demo": ("test", "demo")}


def resolve(uv: str, python: str, system: str, extras: tuple[str, ...]) -> str:
    """How many packages it takes, or why there is no solution."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "pins.txt")
        done = subprocess.run(
            [uv, "pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--output-file",
             str(out), "--python-version", python, "--python-platform", system,
             "--only-binary", ":all:", *(f"--extra={extra}" for extra in extras)],
            cwd=ROOT, capture_output=True, text=True, timeout=600,
            env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"})
        if done.returncode:
            return "no solution: " + " ".join(done.stderr.split())
        pins = [line for line in out.read_text().splitlines() if "==" in line and line[0] != " "]
        return f"{len(pins)} packages"


def find_uv(folder: str) -> str:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "uv"],
                   check=True)
    return str(next(Path(folder).glob("bin/uv*")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uv", help="uv's path; without it uv is installed into a temporary place")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uv = chosen.uv or find_uv(folder)
        for name, system in SYSTEMS.items():
            for python in PYTHONS:
                for what, extras in EXTRAS.items():
                    found = resolve(uv, python, system, extras)
                    print(f"{name}, Python {python}, {what}: {found}", flush=True)


if __name__ == "__main__":
    main()
