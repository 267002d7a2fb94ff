"""helpers.training: a run that is killed anywhere goes on to the same weights, bit for bit."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import warnings

import numpy as np
import pytest
import torch

from helpers.models import LoraSettings, load_model, load_reward_model
from helpers.training import (
    PreferenceSettings,
    RewardSettings,
    SFTSettings,
    train_preference,
    train_reward_model,
    train_sft,
)
from helpers.training import checkpoint as checkpoints

WORDS = "Nora has 12 apples and buys 30 more .".split()
LORA = LoraSettings(rank=4, dropout=0.1)  # dropout draws from the random states


def examples(count=10):
    rng = random.Random(0)
    text = [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(3 * count)]
    names = ("prompt", "response", "rejected")
    return [dict(zip(names, text[i::count], strict=True)) for i in range(count)]


def train(method, folder, out, *, callbacks=(), lora=LORA, resume=True, **changes):
    options = {"num_epochs": 2, "batch_size": 4, "micro_batch_size": 3, "lr": 1e-2,
               "save_every": 2, "progress": False, "schedule": "cosine"} | changes
    load, run, kind = {
        "sft": (load_model, train_sft, SFTSettings),
        "reward": (load_reward_model, train_reward_model, RewardSettings),
        "dpo": (load_model, train_preference, PreferenceSettings),
    }[method]
    model, tokenizer = load(folder, lora=lora, device="cpu")
    data = [row | {"chosen": row["response"]} for row in examples()]
    return run(model, data, kind(**options), tokenizer=tokenizer, out_dir=out, callbacks=callbacks,
               resume=resume)


def weights(run):
    return {name: p.detach() for name, p in run.model.named_parameters() if p.requires_grad}


def assert_same(run, other):
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(other)[name]), name
    plain = [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics]
    assert plain == [{k: v for k, v in row.items() if k != "seconds"} for row in other.metrics]


def die_at_line(number, total):
    """Kill this process at a line of those that write and read the run's files, by its number."""

    def trace(frame, event, _):
        written = ("checkpoint.py", "run.py", "cached_reference.py")
        if not frame.f_code.co_filename.endswith(tuple(f"training/{name}" for name in written)):
            return None
        total.value += event == "line"
        if total.value == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def die_at_call(name, number):
    """Kill this process when it calls a function of checkpoint.py for the nth time."""
    real, calls = getattr(checkpoints, name), itertools.count(1)

    def call(*args):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(checkpoints, name, call)


FORK = multiprocessing.get_context("fork")


def in_child(method, folder, out, prepare):
    """A run in a forked child, where `prepare` is called before it; returns the exit code."""

    def body():
        prepare()
        train(method, folder, out)

    child = FORK.Process(target=body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads
        child.start()
    child.join(60)
    return child.exitcode


def assert_it_goes_on(method, folder, out, whole):
    """The run in `out` ends with the weights and the files of one that was never killed."""
    resumed = train(method, folder, out)
    assert_same(resumed, whole)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert logged == resumed.metrics
    assert json.loads((out / "summary.json").read_text())["status"] == "finished"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "step-00000004", "step-00000006"]
    reference = ["reference.safetensors"] if method == "dpo" else []
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter", "checkpoints", "metrics.jsonl", *reference, "settings.json", "summary.json"]


@pytest.mark.parametrize("method, kills", [("sft", 8), ("reward", 2), ("dpo", 4)])
def test_killed_anywhere_it_goes_on_to_the_same_weights(method, kills, tiny_folder, tmp_path):
    whole, total = train(method, tiny_folder, None), FORK.Value("i", 0, lock=False)
    assert in_child(method, tiny_folder, tmp_path / "whole", lambda: die_at_line(-1, total)) == 0
    lines = total.value
    assert lines > 200
    for kill_at in np.linspace(lines * 0.25, lines - 2, kills).astype(int):
        out, total.value = tmp_path / str(kill_at), 0
        code = in_child(method, tiny_folder, out, lambda at=kill_at: die_at_line(at, total))
        assert code == -signal.SIGKILL
        assert_it_goes_on(method, tiny_folder, out, whole)


@pytest.mark.parametrize("name, number, left", [
    ("save_checkpoint", 1, []),  # two steps are logged, and none is kept
    ("save_file", 2, [".step-00000002"]),  # weights without the optimiser's moments
    ("write_json", 1, [".step-00000002"]),
    ("write_json", 2, [".step-00000004", "step-00000002"]),
    ("write_json", 3, [".step-00000006", "step-00000002", "step-00000004"]),
])
def test_killed_before_and_inside_a_checkpoint_it_goes_on(
    name, number, left, tiny_folder, tmp_path
):
    out = tmp_path / "run"
    code = in_child("sft", tiny_folder, out, lambda: die_at_call(name, number))
    assert code == -signal.SIGKILL and (out / "metrics.jsonl").exists()
    found = sorted(path.name for path in out.glob("checkpoints/*"))
    assert [path.rsplit(".", 1)[0] if path.startswith(".") else path for path in found] == left
    assert_it_goes_on("sft", tiny_folder, out, train("sft", tiny_folder, None))


def test_an_interrupt_ends_after_the_step_and_the_run_goes_on_later(tiny_folder, tmp_path):
    def stop_button(run, record):
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # a job in the background comes with another one
    part = train("sft", tiny_folder, tmp_path / "a", callbacks=[stop_button], save_every=None)
    assert part.summary["status"] == "interrupted" and part.summary["steps"] == 4
    assert not part.model.training
    assert (tmp_path / "a/adapter/adapter_model.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before
    whole = train("sft", tiny_folder, None)
    assert_same(train("sft", tiny_folder, tmp_path / "a"), whole)


def test_the_callers_random_numbers_go_on_as_if_nothing_had_run(tiny_folder):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    train("sft", tiny_folder, None, max_steps=1)
    assert torch.equal(torch.rand(3), expected)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_finished_run_is_returned_at_once(tiny_folder, tmp_path):
    first = train("reward", tiny_folder, tmp_path / "a")
    seen = []
    again = train("reward", tiny_folder, tmp_path / "a", callbacks=[lambda *a: seen.append(a)])
    assert not seen
    assert_same(again, first)
    assert again.summary["steps"] == 6


@pytest.mark.parametrize("change, named", [
    ({"lr": 2e-2}, "its settings differ"),
    ({"seed": 1}, "its settings differ"),
    ({"lora": LoraSettings(rank=4, seed=9)}, "other weights"),
])
def test_the_files_of_another_run_are_set_aside(change, named, tiny_folder, tmp_path):
    first = train("sft", tiny_folder, tmp_path / "a", max_steps=2)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match=named):
        train("sft", tiny_folder, tmp_path / "a", max_steps=2, **change)
    kept = [json.loads(line) for line in (tmp_path / "a-before-1" / "metrics.jsonl").open()]
    assert kept == first.metrics
    assert (tmp_path / "a-before-1" / "adapter").is_dir()
    assert (tmp_path / "a" / "notes.txt").exists()


def test_without_resume_the_earlier_run_is_deleted_and_nothing_else(tiny_folder, tmp_path):
    first = train("sft", tiny_folder, tmp_path / "a", max_steps=3)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    log = tmp_path / "a" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 4, "note": "of the earlier run"}\n')
    again = train("sft", tiny_folder, tmp_path / "a", max_steps=3, resume=False)
    assert_same(again, first)
    assert [json.loads(line)["step"] for line in log.open()] == [1, 2, 3]
    assert (tmp_path / "a" / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_not_of_a_run_is_left_alone(tiny_folder, tmp_path):
    (tmp_path / "settings.json").write_text('{"model": "x"}')
    with pytest.raises(ValueError, match="not of a training"):
        train("sft", tiny_folder, tmp_path)
    assert (tmp_path / "settings.json").read_text() == '{"model": "x"}'


def test_a_checkpoint_holds_no_pickle(tiny_folder, tmp_path):
    train("sft", tiny_folder, tmp_path / "a", max_steps=2)
    names = {path.suffix for path in (tmp_path / "a" / "checkpoints").rglob("*.*")}
    assert names == {".json", ".safetensors"}
