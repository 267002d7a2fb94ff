"""helpers.training.train_grpo: killed anywhere, interrupted, resumed; two processes are one."""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.training import train_grpo
from helpers.training.rollouts import read_rollouts
from tests.helpers.grpo_world import DATA, fresh, settings, train, vowels

SCRIPT = Path(__file__).with_name("grpo_processes.py")
ROOT = SCRIPT.parents[2]
# The models are float64; what was sampled is float32 in both, but a value at the edge between two
# float32 numbers may fall to either side (6e-8 of it), and sixteen updates carry that on.
CLOSE = 1e-6
OPTIONS = {"max_steps": 5, "save_every": 2, "beta": 0.2, "minibatches": 2, "epochs_per_step": 2}


def weights(run):
    return {name: p.detach() for name, p in run.model.named_parameters() if p.requires_grad}


def untimed(rows):
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def assert_same(run, other):
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(other)[name]), name
    assert untimed(run.metrics) == untimed(other.metrics)


def die_at_line(number, total):
    """Kill this process at a line of those that write and read the run's files, by its number."""

    def trace(frame, event, _):
        written = ("checkpoint.py", "run.py", "training/grpo.py", "rollouts.py")
        if not frame.f_code.co_filename.endswith(written):
            return None
        total.value += event == "line"
        if total.value == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def in_child(folder, out, kill_at):
    """A run in a forked child that is killed at a line; returns (exit code, lines executed)."""
    context = multiprocessing.get_context("fork")
    total = context.Value("i", 0, lock=False)

    def body():
        die_at_line(kill_at, total)
        train(folder, out, **OPTIONS)

    child = context.Process(target=body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads
        child.start()
    child.join(240)
    return child.exitcode, total.value


def test_killed_anywhere_it_goes_on_to_the_same_weights(tiny_folder, tmp_path):
    whole = train(tiny_folder, tmp_path / "plain", **OPTIONS)
    code, lines = in_child(tiny_folder, tmp_path / "whole", -1)
    assert code == 0 and lines > 200
    for kill_at in np.linspace(lines * 0.3, lines - 2, 4).astype(int):
        out = tmp_path / str(kill_at)
        assert in_child(tiny_folder, out, kill_at)[0] == -signal.SIGKILL
        resumed = train(tiny_folder, out, **OPTIONS)
        assert_same(resumed, whole)
        assert read_rollouts(out) == read_rollouts(tmp_path / "plain")
        assert resumed.rollouts == whole.rollouts
        assert sorted(path.name for path in out.iterdir()) == [
            "adapter", "checkpoints", "metrics.jsonl", "reference.safetensors", "rollouts.jsonl",
            "settings.json", "summary.json"]


def test_a_run_goes_on_from_its_own_trained_model(tiny_folder, tmp_path):
    """The reference is then not the model that is given, but the one that the run started from."""

    def stop_button(run, record):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    whole = train(tiny_folder, tmp_path / "whole", **OPTIONS)
    part = train(tiny_folder, tmp_path / "a", callbacks=[stop_button], **OPTIONS)
    assert part.summary["status"] == "interrupted" and part.summary["steps"] == 3
    assert not part.model.training
    _, tokenizer = fresh(tiny_folder)
    again = train_grpo(part.model, DATA, settings(**OPTIONS), tokenizer=tokenizer,
                       reward_fn=vowels, out_dir=tmp_path / "a")
    assert_same(again, whole)
    assert again.summary["reference"] == whole.summary["reference"]


def test_another_reward_is_another_run(tiny_folder, tmp_path):
    from helpers.reward_functions import weighted_sum

    train(tiny_folder, tmp_path / "a", reward_fn=weighted_sum((1.0, vowels)), max_steps=1)
    with pytest.warns(UserWarning, match="its reward differ"):
        train(tiny_folder, tmp_path / "a", reward_fn=weighted_sum((0.5, vowels)), max_steps=1)


# --- two processes


def found_in(out, processes):
    reports = [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]
    return reports, [load_file(out / f"{rank}.safetensors") for rank in range(processes)]


def in_two_processes(folder, out, budget):
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
               "2", str(SCRIPT), str(folder), str(out), str(budget)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return found_in(out, processes=2)


def in_this_process(folder, out, budget):
    out.mkdir()
    runpy.run_path(str(SCRIPT))["main"](str(folder), str(out), str(budget))
    return found_in(out, processes=1)


def test_two_processes_are_one(tiny_folder, tmp_path):
    (single,), (expected,) = in_this_process(tiny_folder, tmp_path / "one", budget=4096)
    reports, tensors = in_two_processes(tiny_folder, tmp_path / "two", budget=40)
    assert single["processes"] == 1
    for report, found in zip(reports, tensors, strict=True):
        assert report["processes"] == 2 and report["threads"] == 1
        assert report["batches"] > single["batches"]
        for kind in ("grpo", "kl", "ppo"):
            rows, others = report[kind], single[kind]
            assert [row["step"] for row in rows] == [1, 2, 3, 4]
            for name in ("loss", "grad_norm", "reward_mean", "entropy", "length", "clip_fraction",
                         "groups_with_signal", "generated_tokens", "trained_rows"):
                assert [row[name] for row in rows] == pytest.approx(
                    [row[name] for row in others], abs=CLOSE, rel=CLOSE), name
        for kind, name in (("kl", "kl"), ("ppo", "kl"), ("ppo", "value_loss"),
                           ("ppo", "explained_variance")):
            assert [row[name] for row in report[kind]] == pytest.approx(
                [row[name] for row in single[kind]], abs=CLOSE), (kind, name)
        for name, tensor in expected.items():
            assert (found[name] - tensor).abs().max() < CLOSE, name
    one, two = (read_rollouts(tmp_path / name / "kl") for name in ("one", "two"))
    assert [group["completions"] for group in two] == [group["completions"] for group in one]


