"""How two threads should wait for each other: seconds of four reward-model steps, by setting.

    PYTHONPATH=. python tests/benchmarks/thread_waiting.py
    PYTHONPATH=. python tests/benchmarks/thread_waiting.py --beside   # one core is kept busy
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SETTINGS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two that sleep": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    "two that spin for a moment": {
        "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000",
    },
}  # fmt: skip


def four_steps() -> float:
    from helpers.models import load_reward_model
    from helpers.training import RewardSettings, train_reward_model

    with open("workbook/assets/data/reward_train.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line, _ in zip(file, range(64), strict=False)]
    pairs = [{"prompt": r["prompt"], "chosen": r["response_0"], "rejected": r["response_1"]}
             for r in records]
    model, tokenizer = load_reward_model("workbook/assets/base")
    settings = RewardSettings(lr=5e-4, batch_size=16, micro_batch_size=2, progress=False)
    start = time.monotonic()
    train_reward_model(model, pairs, settings, tokenizer=tokenizer)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", action="store_true", help="keep one core busy meanwhile")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(four_steps())
        return
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"])] if args.beside else []
    found = {name: [] for name in SETTINGS}
    try:
        for _ in range(args.rounds):
            for name, environ in SETTINGS.items():
                command = [sys.executable, __file__, "--once"]
                done = subprocess.run(command, env=os.environ | environ, check=True,
                                      capture_output=True, text=True)
                found[name].append(float(done.stdout.split()[-1]))
    finally:
        for process in busy:
            process.kill()
    for name, seconds in found.items():
        ratios = [one / own for one, own in zip(found["one thread"], seconds, strict=True)]
        print(f"{name}: {statistics.median(seconds):.1f} s, "
              f"{statistics.median(ratios):.2f} times as fast as one ({min(ratios):.2f} to "
              f"{max(ratios):.2f})")


if __name__ == "__main__":
    main()
