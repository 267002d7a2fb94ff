"""A run: its model, settings, metrics and summary, and the folder that holds them."""

import inspect
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers.utils import logging as transformers_logging

from helpers.evaluation import read_jsonl, write_json, write_jsonl
from helpers.training import checkpoint
from helpers.training.checkpoint import fingerprint, hash_of

METRICS, SUMMARY, SETTINGS = "metrics.jsonl", "summary.json", "settings.json"
ROLLOUTS = "rollouts.jsonl"  # what reinforcement learning sampled, one line a prompt
CHECKPOINTS, MODELS = "checkpoints", ("model", "adapter")
REFERENCE = "reference.safetensors"  # log-probabilities or weights of the reference policy
# Settings that change no weight: with others of these it is still the same run.
FREE_SETTINGS = ("progress", "save_every")


@dataclass
class Run:
    """What a training returns, and what callbacks see while it is running.

    model: the trained model.
    metrics: one dict a step: step (from 1), epoch, loss, lr, grad_norm (before clipping), tokens
        or pairs (that the loss counts), seconds, and what the method adds; `skipped` says why a
        step was not taken, and its loss is None where it is not finite.
    folder: None, or where settings.json, metrics.jsonl, summary.json and the model are.
    summary: status ("finished", "interrupted", or why it stopped), steps, seconds, skipped_steps,
        whose code each function was, what of the data was left out or cut.
    rollouts: of reinforcement learning: the groups sampled in the last step, as rollouts.jsonl
        holds those of all steps.
    """

    model: Any
    settings: Any
    folder: Path | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    rollouts: list[dict[str, Any]] = field(default_factory=list)


class RunFolder:
    """Where a run is written, and from where it goes on; without a path nothing is written.

    identity: what makes two runs the same: method, settings, data, functions.
    notes: what settings.json and summary.json hold beside, such as the reference's identity.
    tokenizer: saved beside the model.
    """

    def __init__(self, path, *, identity: dict[str, Any], tokenizer, resume: bool = True):
        self.path = None if path is None else Path(path)
        self.identity = json.loads(json.dumps(identity))  # as it will be read from settings.json
        self.notes: dict[str, Any] = {}
        self.tokenizer, self.resume = tokenizer, resume

    def open(self, loop, run: Run) -> None:
        """Go on from the newest checkpoint of the same run; set another run's files aside."""
        if self.path is None:
            return
        if loop.accelerator.is_main_process:
            self._prepare(loop)
        loop.accelerator.wait_for_everyone()
        newest = checkpoint.latest_checkpoint(self.path / CHECKPOINTS)
        if newest is not None:
            state = checkpoint.read_state(newest)
            checkpoint.load_tensors(newest, loop.parameters, loop.optimizer)
            loop.restore(state)
        run.metrics = [row for row in read_jsonl(self.path / METRICS) if row["step"] <= loop.step]
        loop.accelerator.wait_for_everyone()
        if loop.accelerator.is_main_process:
            write_jsonl(self.path / METRICS, run.metrics)

    def holds_this_run(self, parameters: dict[str, torch.nn.Parameter]) -> bool:
        """Whether `open` will go on with the run that is in the folder."""
        stored = self._stored() if self.path is not None and self.resume else None
        return stored is not None and not self._why_another(stored, fingerprint(parameters))

    def started_from(self, parameters: dict[str, torch.nn.Parameter]) -> bool:
        """Whether the run that is in the folder started from these weights."""
        return self._stored()["start"] == fingerprint(parameters)

    def log(self, run: Run, record: dict[str, Any], *, is_main: bool = True) -> None:
        """Keep one step's metrics, and append them to metrics.jsonl."""
        run.metrics.append(record)
        if self.path is not None and is_main:
            with (self.path / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def save(self, loop) -> None:
        """A checkpoint of this step."""
        if self.path is None:
            return
        state = loop.state() | {"random": gather_object([checkpoint.random_states()])}
        if loop.accelerator.is_main_process:
            optimizer = None if loop.step >= loop.total else loop.optimizer  # no step will follow
            checkpoint.save_checkpoint(
                self.path / CHECKPOINTS, loop.step, loop.parameters, optimizer, state
            )
        loop.accelerator.wait_for_everyone()

    def close(self, loop, run: Run) -> None:
        """Write the last checkpoint, the model and the summary."""
        run.summary = loop.summary() | self.identity | self.notes
        if self.path is None:
            return
        self.save(loop)
        if loop.accelerator.is_main_process:
            run.summary["model"] = self._save_model(loop.model)
            write_json(self.path / SUMMARY, run.summary)
        loop.accelerator.wait_for_everyone()

    def _prepare(self, loop) -> None:
        """Leave the folder with the files of this very run, or with none of a run."""
        start = fingerprint(loop.parameters)
        stored = self._stored()
        if stored is not None:
            why = self._why_another(stored, start)
            if self.resume and not why:
                return
            self._set_aside(why) if self.resume else self._delete()
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / SETTINGS, {**self.identity, **self.notes, "start": start})

    def _stored(self) -> dict[str, Any] | None:
        """The settings of the run that is in the folder; None where there is none."""
        try:
            stored = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except json.JSONDecodeError:
            stored = {}
        if "start" not in stored:
            raise ValueError(
                f"{self.path} holds a {SETTINGS} that is not of a training: give another folder."
            )
        return stored

    def _set_aside(self, why: str) -> None:
        """Move the files of the run that is in the folder, and no others."""
        aside = _free_name(self.path)
        aside.mkdir()
        for path in self._files():
            os.replace(path, aside / path.name)
        warnings.warn(f"{self.path} held another run ({why}); it is now {aside}.", stacklevel=7)

    def _delete(self) -> None:
        """Delete the files of the run that is in the folder, and no others."""
        for path in self._files():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _files(self) -> list[Path]:
        """The files and folders of a run; its settings, which make it one, are the last."""
        names = (CHECKPOINTS, METRICS, SUMMARY, REFERENCE, ROLLOUTS, *MODELS, SETTINGS)
        return [self.path / name for name in names if (self.path / name).exists()]

    def _why_another(self, stored: dict[str, Any], start: str) -> str:
        """What differs between the stored run and this one; empty where it is the same."""
        for name, value in self.identity.items():
            if _fixed(value) != _fixed(stored.get(name)):
                return f"its {name} differ"
        newest = checkpoint.latest_checkpoint(self.path / CHECKPOINTS)
        known = [stored["start"]]
        if newest is not None:  # a model that was trained here and is given again
            known.append(checkpoint.read_state(newest)["weights"])
        return "" if start in known else "it started from other weights"

    def _save_model(self, model) -> str:
        """The model or adapter in the hub's own format, with its tokenizer; renamed into place."""
        is_adapter = isinstance(model, PeftModel) or isinstance(
            getattr(model, "model", None), PeftModel
        )
        final = self.path / MODELS[is_adapter]
        for left in self.path.glob(f".{final.name}.*"):  # of a run that was killed while writing
            shutil.rmtree(left)
        beside = final.with_name(f".{final.name}.{os.getpid()}")
        with _no_bar():
            model.save_pretrained(beside)
        self.tokenizer.save_pretrained(beside)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(beside, final)
        return final.name


@contextmanager
def _no_bar():
    """transformers draws a bar for each file that it writes."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _fixed(value: Any) -> Any:
    """A part of the identity without the settings that change no weight."""
    if not isinstance(value, dict):
        return value
    return {name: part for name, part in value.items() if name not in FREE_SETTINGS}


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}-before-{number}")).exists():
        number += 1
    return aside


def identity_of(method: str, settings, data: str, functions: Mapping[str, Callable]) -> dict:
    """What makes two runs the same one: method, settings, data, and whose functions."""
    return {
        "method": method,
        "settings": asdict(settings),
        "data": data,
        "functions": {name: provenance(function) for name, function in functions.items()},
    }


def provenance(function: Callable) -> dict[str, str]:
    """Whose code a function is: "reference" (of this package) or "yours", its module, a hash."""
    module = getattr(function, "__module__", None) or type(function).__module__
    return {
        "whose": "reference" if module.startswith("helpers.") else "yours",
        "module": module,
        "source": hash_of(_source(function)),
    }


def _source(function: Callable) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # a built-in, a partial, or typed into a plain shell
        return repr(getattr(getattr(function, "__code__", None), "co_code", type(function)))
