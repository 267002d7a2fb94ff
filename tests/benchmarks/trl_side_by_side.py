"""What the benchmarks against TRL share: rounds in turn, steps timed alike, losses compared."""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

from helpers.training.batches import StepPlan

Round = tuple[list[float], float]  # losses, seconds a step


class Clock(TrainerCallback):
    """CPU seconds at the end of each optimiser step; the first, which warms up, is not counted.

    With one thread these are the seconds of an idle core, and a busy machine changes them little.
    It is a callback of both sides.
    """

    def __init__(self):
        self.ends: list[float] = []

    def __call__(self, run, record) -> None:
        self.ends.append(time.process_time())

    def on_step_end(self, *args, **kwargs) -> None:
        self.ends.append(time.process_time())

    def seconds_a_step(self) -> float:
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def in_plan_order(lengths: list[int], batch_size: int, steps: int) -> list[int]:
    """The examples in the order in which our loop takes them, for theirs to take the same."""
    plan = StepPlan(lengths, batch_size=batch_size, seed=0, grouped=True)
    return [row for step in range(steps) for row in plan.rows(step)]


def their_arguments(steps: int, batch_size: int, lr: float) -> dict:
    return {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": batch_size,
        "max_steps": steps, "learning_rate": lr, "lr_scheduler_type": "constant",
        "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "bf16": False, "gradient_checkpointing": False, "max_length": 1024,
    }


def their_round(trainer, clock: Clock) -> Round:
    """Run a TRL trainer on its rows as they stand."""
    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
    trainer.add_callback(clock)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, clock.seconds_a_step()


def compare(name: str, ours: Callable[[], Round], theirs: Callable[[], Round], rounds: int) -> None:
    """Take turns; print the median seconds a step, their ratio, and the largest loss difference."""
    seconds, ratios, difference = {"ours": [], "TRL": []}, [], 0.0
    for _ in range(rounds):
        (our_losses, our_seconds), (their_losses, their_seconds) = ours(), theirs()
        seconds["ours"].append(our_seconds)
        seconds["TRL"].append(their_seconds)
        ratios.append(their_seconds / our_seconds)
        gaps = [abs(a - b) for a, b in zip(our_losses, their_losses, strict=True)]
        difference = max(difference, *gaps)
    shown = ", ".join(f"{side} {statistics.median(times):.3f}" for side, times in seconds.items())
    print(f"{name}: CPU seconds a step {shown}; {statistics.median(ratios):.2f} times as fast "
          f"({min(ratios):.2f} to {max(ratios):.2f} in {rounds} rounds); "
          f"largest difference of losses {difference:.1e}")


def arguments(description: str, **options):
    """Parsed options; `options` are further whole numbers with their defaults."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in {"steps": 8, "rounds": 3, "batch-size": 16, **options}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    return parser.parse_args()
