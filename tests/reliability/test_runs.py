"""A run is the one that its folder says: what begins it anew, checkpoints, one process a folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.lock import FolderLock
from helpers.models import LoraSettings, load_model
from helpers.training import (
    GRPOSettings,
    PreferenceSettings,
    SFTSettings,
    train_grpo,
    train_preference,
    train_sft,
)

ROOT = Path(__file__).parents[2]
ROWS = [{"prompt": f"{n} apples and", "response": f" {n + 1} more", "chosen": f" {n + 1} more",
         "rejected": " x", "gold_answer": str(n)} for n in range(6)]
OTHERS = [row | {"response": " Where did Luben study?"} for row in ROWS[:3]]


def fresh(folder, **lora):
    return load_model(folder, lora=LoraSettings(**{"rank": 2} | lora), device="cpu")


def sft(folder, out, *, stop=None, resume=True, eval_data=None, model=None, **changes):
    """A run of 4 steps; `stop` ends it by an error after that step and its checkpoint."""
    made, tokenizer = model or fresh(folder)
    options = {"max_steps": 4, "batch_size": 2, "lr": 1e-2, "save_every": 1, "progress": False}

    def end(run, record):
        if record["step"] == stop:
            raise KeyError("killed")

    return train_sft(made, ROWS, SFTSettings(**options | changes), tokenizer=tokenizer, out_dir=out,
                     resume=resume, eval_data=eval_data, callbacks=[end])


def stopped(folder, out, stop=4, **options):
    with pytest.raises(KeyError):
        sft(folder, out, stop=stop, **options)
    return sorted((out / "checkpoints").iterdir())


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters() if p.requires_grad])


# ---------------------------------------------------------------- the same run, and another


def length_reward(response, gold, weight=1.0):
    value = weight * (1 + len(response) % 3)
    return {"format_reward": 0.0, "answer_reward": value, "reward": value}


def grpo(folder, out, reward_fn=length_reward, **changes):
    model, tokenizer = fresh(folder)
    options = {"max_steps": 2, "prompts_per_step": 2, "samples_per_prompt": 4, "max_new_tokens": 4,
               "lr": 1e-2, "progress": False}
    return train_grpo(model, ROWS, GRPOSettings(**options | changes), tokenizer=tokenizer,
                      reward_fn=reward_fn, out_dir=out)


FREE = {"micro_batch_tokens": 64, "sampling_batch_size": 3, "eval_every": 1, "save_every": 2,
        "gradient_checkpointing": True}


def test_what_changes_no_gradient_goes_on(tiny_folder, tmp_path):
    first = grpo(tiny_folder, tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = grpo(tiny_folder, tmp_path / "a", **FREE)
    assert again.metrics == first.metrics
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def negative(response, gold):
    return length_reward(response, gold, -1.0)


@pytest.mark.parametrize("other", [partial(length_reward, weight=-1.0), negative])
def test_another_reward_is_named_and_graded_anew(other, tiny_folder, tmp_path):
    grpo(tiny_folder, tmp_path / "a", max_steps=1)
    with pytest.warns(UserWarning, match="its reward differ"):
        run = grpo(tiny_folder, tmp_path / "a", other, max_steps=1)
    assert run.metrics[0]["reward_mean"] < 0


def test_another_tokenizer_and_a_run_of_an_earlier_version_are_set_aside(tiny_folder, tmp_path):
    sft(tiny_folder, tmp_path / "a", max_steps=1)
    model, tokenizer = fresh(tiny_folder)
    tokenizer.add_tokens(["qqq"])  # no token of the data changes, but perhaps the next model's
    with pytest.warns(UserWarning, match="its tokenizer differ"):
        sft(tiny_folder, tmp_path / "a", max_steps=1, model=(model, tokenizer))
    path = tmp_path / "a" / "settings.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items()
                                if k not in ("base", "tokenizer")}))
    with pytest.warns(UserWarning, match="an earlier version wrote it, without its base"):
        sft(tiny_folder, tmp_path / "a", max_steps=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a-before-1", "a-before-2"]


def test_checkpoints_of_nobody_are_no_run_and_a_model_is_not_written_over(tiny_folder, tmp_path):
    sft(tiny_folder, tmp_path / "a", max_steps=1)
    (tmp_path / "a" / "settings.json").unlink()
    with pytest.raises(ValueError, match="checkpoints, metrics.jsonl, .* but no settings.json"):
        sft(tiny_folder, tmp_path / "a", max_steps=1)
    model, tokenizer = load_model(tiny_folder)
    model.save_pretrained(tmp_path / "mine" / "model")
    before = (tmp_path / "mine/model/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds model but no settings.json"):
        sft(tiny_folder, tmp_path / "mine", max_steps=1, model=(model, tokenizer))
    assert (tmp_path / "mine/model/model.safetensors").read_bytes() == before


def test_a_finished_run_shows_the_numbers_of_the_held_out_examples_that_are_given(
    tiny_folder, tmp_path
):
    first = sft(tiny_folder, tmp_path / "a", eval_data=ROWS[:3])
    again = sft(tiny_folder, tmp_path / "a", eval_data=OTHERS)
    alone = sft(tiny_folder, None, eval_data=OTHERS)
    found, right = (run.metrics[-1]["eval_loss"] for run in (again, alone))
    assert found == pytest.approx(right, rel=1e-5)
    assert abs(found - first.metrics[-1]["eval_loss"]) > 0.01
    assert not again.model.training and torch.equal(weights(again), weights(first))
    logged = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").open()]
    assert logged == again.metrics
    assert not list(tmp_path.glob("a-before-*"))


def test_reference_log_probs_of_another_precision_are_not_taken(tiny_folder, tmp_path):
    losses = []
    for precision in ("float32", "bfloat16"):
        model, tokenizer = fresh(tiny_folder)
        settings = PreferenceSettings(max_steps=1, precision=precision, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first run is set aside
            run = train_preference(model, ROWS, settings, tokenizer=tokenizer,
                                   out_dir=tmp_path / "a")
        losses.append(run.metrics[0]["loss"])
    log_2 = torch.tensor(2.0).log().item()
    assert losses == pytest.approx([log_2, log_2], abs=1e-6)  # policy and reference are equal


def test_a_damaged_reference_is_never_used(tiny_folder, tmp_path):
    """It is measured anew from the model of the start; without that model the run is refused."""
    settings = PreferenceSettings(max_steps=3, batch_size=4, save_every=1, progress=False, lr=1e-2)

    def train(out, model, stop=None):
        def end(run, record):
            if record["step"] == stop:
                raise KeyError("killed")

        return train_preference(model, ROWS, settings, tokenizer=tokenizer, out_dir=out,
                                callbacks=[end])

    model, tokenizer = fresh(tiny_folder)
    whole = train(None, fresh(tiny_folder)[0])
    with pytest.raises(KeyError):
        train(tmp_path / "a", model, stop=3)
    flip(tmp_path / "a" / "reference.safetensors", -3)
    trained, _ = fresh(tiny_folder)
    load_weights(trained, tmp_path / "a" / "checkpoints" / "step-00000002")
    with pytest.raises(ValueError, match="reference.safetensors is missing, damaged or of other"):
        train(tmp_path / "a", trained)
    assert torch.equal(weights(train(tmp_path / "a", fresh(tiny_folder)[0])), weights(whole))


def load_weights(model, checkpoint):
    stored = load_file(checkpoint / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in stored:
                parameter.copy_(stored[name])


# ---------------------------------------------------------------- checkpoints


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name, place", [
    ("weights.safetensors", -1), ("weights.safetensors", 3), ("optimizer.safetensors", -100),
    ("state.json", 20)])
def test_one_flipped_byte_is_named_and_the_checkpoint_before_goes_on(
    name, place, tiny_folder, tmp_path
):
    whole = sft(tiny_folder, None)
    before, newest = stopped(tiny_folder, tmp_path / "a")
    assert (before.name, newest.name) == ("step-00000002", "step-00000003")
    flip(newest / name, place)
    with pytest.raises(ValueError) as caught:
        sft(tiny_folder, tmp_path / "a")
    said = str(caught.value)
    assert str(newest / name) in said and f"delete the folder {newest}" in said
    assert "step-00000002, is used" in said and "\n" not in said
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert torch.equal(weights(sft(tiny_folder, tmp_path / "a")), weights(whole))


def test_a_missing_file_of_the_only_checkpoint_is_named(tiny_folder, tmp_path):
    (only,) = stopped(tiny_folder, tmp_path / "a", stop=2)
    (only / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="weights.safetensors is damaged or missing.*its start"):
        sft(tiny_folder, tmp_path / "a")


def test_a_step_is_written_once_and_two_are_kept(tiny_folder, tmp_path):
    run = sft(tiny_folder, tmp_path / "a")
    kept = sorted((tmp_path / "a" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-00000003", "step-00000004"]
    before = [path.stat().st_ino for path in kept[1].iterdir()]
    again = sft(tiny_folder, tmp_path / "a", save_every=3)
    assert [path.stat().st_ino for path in kept[1].iterdir()] == before
    assert torch.equal(weights(again), weights(run))


def test_a_checkpoint_of_another_run_in_this_folder_is_not_gone_on_from(tiny_folder, tmp_path):
    """Somebody copied folders over each other: of one shape, and each is whole."""
    stopped(tiny_folder, tmp_path / "a")
    (*_, newest) = stopped(tiny_folder, tmp_path / "b", lr=1e-3)
    shutil.rmtree(tmp_path / "a" / "checkpoints" / newest.name)
    shutil.copytree(newest, tmp_path / "a" / "checkpoints" / newest.name)
    with pytest.raises(ValueError, match="is of another run than .*settings.json: move") as caught:
        sft(tiny_folder, tmp_path / "a")
    assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    begun = sft(tiny_folder, tmp_path / "a")
    assert torch.equal(weights(begun), weights(sft(tiny_folder, None)))


def test_what_has_another_name_is_no_checkpoint_and_stays(tiny_folder, tmp_path):
    (*_, newest) = stopped(tiny_folder, tmp_path / "a")
    mine = newest.with_name(f"{newest.name}-good")
    shutil.copytree(newest, mine)
    (newest.parent / "step-notes.txt").write_text("mine")
    (newest.parent / ".step-00000009.1").mkdir()  # of a run that was killed
    run = sft(tiny_folder, tmp_path / "a")
    left = {path.name for path in newest.parent.iterdir()}
    assert left == {"step-00000003", "step-00000004", mine.name, "step-notes.txt"}
    assert torch.equal(weights(run), weights(sft(tiny_folder, None)))


def test_a_row_of_metrics_without_a_step_and_a_file_as_folder_are_named(tiny_folder, tmp_path):
    stopped(tiny_folder, tmp_path / "a")
    path = tmp_path / "a" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"loss": 1.5}\n')
    with pytest.raises(ValueError, match="metrics.jsonl is damaged: .*1.5.* has no step"):
        sft(tiny_folder, tmp_path / "a")
    for place in (path, path / "deeper"):
        with pytest.raises(OSError, match=f"{place} cannot be made a folder .*give another"):
            sft(tiny_folder, place)


def test_lost_metrics_are_said(tiny_folder, tmp_path):
    stopped(tiny_folder, tmp_path / "a")
    path = tmp_path / "a" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    with pytest.warns(UserWarning, match="metrics.jsonl holds 2 of the 3 steps"):
        sft(tiny_folder, tmp_path / "a")
    path.write_text("".join([lines[0], "{" + lines[1], lines[2]]))
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: .*the file is damaged"):
        sft(tiny_folder, tmp_path / "a")


def test_a_full_disk_names_the_path(tiny_folder, tmp_path):
    """A limit on the size of files is answered by the system as a full disk is."""
    resource = pytest.importorskip("resource")
    first = sft(tiny_folder, tmp_path / "a", max_steps=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            sft(tiny_folder, tmp_path / "b", max_steps=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = str(caught.value)
    assert str(tmp_path / "b" / "checkpoints" / "step-0000000") in said and "disk is full" in said
    assert "\n" not in said
    assert list((tmp_path / "b" / "checkpoints").iterdir()) == []
    run = sft(tiny_folder, tmp_path / "b", max_steps=1, resume=False)
    assert torch.equal(weights(run), weights(first))


# ---------------------------------------------------------------- one process a folder

HOLD = """
import sys, time
from pathlib import Path
from helpers.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
time.sleep(60)
"""


def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_kept_out_and_a_killed_one_keeps_nobody_out(tiny_folder, tmp_path):
    run = sft(tiny_folder, tmp_path / "a")
    files = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    process = holder(tmp_path / "a")
    try:
        with pytest.raises(OSError, match=f"a is in use by process {process.pid} on .*: wait"):
            sft(tiny_folder, tmp_path / "a", resume=False)
        assert all(path.read_bytes() == raw for path, raw in files.items())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert torch.equal(weights(sft(tiny_folder, tmp_path / "a")), weights(run))
    assert not (tmp_path / "a" / ".lock").exists()


def test_the_lock_is_given_back_by_an_error_and_held_against_this_process_too(
    tiny_folder, tmp_path
):
    stopped(tiny_folder, tmp_path / "a")  # an error ended it
    lock = FolderLock(tmp_path / "a")
    lock.take()
    with pytest.raises(OSError, match="in use by process"):
        sft(tiny_folder, tmp_path / "a")
    lock.release()
    assert len(sft(tiny_folder, tmp_path / "a").metrics) == 4


def test_of_many_that_try_at_once_one_is_in_the_folder(tmp_path):
    inside, counts, refused = [], [], []

    def enter(number):
        for _ in range(30):
            lock = FolderLock(tmp_path)
            try:
                lock.take()
            except OSError:
                refused.append(number)
                continue
            inside.append(number)
            counts.append(len(inside))
            inside.remove(number)
            lock.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert set(counts) == {1} and len(counts) + len(refused) == 120
    assert list(tmp_path.iterdir()) == []
