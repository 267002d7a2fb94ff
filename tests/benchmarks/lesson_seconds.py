"""How long a lesson takes at depth short: whole processes, after one warm-up.

python tests/benchmarks/lesson_seconds.py 01 --runs 3
"""

import argparse
import statistics
import subprocess
import sys
import time


def seconds_of(lesson: str) -> float:
    """Wall seconds of `workbook run`, in a process of its own."""
    start = time.monotonic()
    command = [sys.executable, "-m", "workbook", "run", lesson]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lesson")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    seconds_of(args.lesson)
    found = sorted(seconds_of(args.lesson) for _ in range(args.runs))
    middle = statistics.median(found)
    print(f"lesson {args.lesson}: median {middle:.0f} s ({found[0]:.0f} to {found[-1]:.0f})")


if __name__ == "__main__":
    main()
