"""A run: its model, settings, metrics and summary, and the folder that holds them."""

import json
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

from helpers.atomic import flush, naming, remove, set_aside, written_aside
from helpers.evaluation import read_jsonl, write_json, write_jsonl
from helpers.identity import model_identity, tokenizer_identity, value_identity
from helpers.lock import FolderLock
from helpers.training import checkpoint
from helpers.training.checkpoint import fingerprint

METRICS, SUMMARY, SETTINGS = "metrics.jsonl", "summary.json", "settings.json"
ROLLOUTS = "rollouts.jsonl"  # what reinforcement learning sampled, one line a prompt
CHECKPOINTS, MODELS = "checkpoints", ("model", "adapter")
REFERENCE = "reference.safetensors"  # log-probabilities or weights of the reference policy
OTHER_BASE = "it has other weights, another configuration or other LoRA settings beneath it"
# Settings that change no gradient: with others of these it is still the same run.
FREE_SETTINGS = (
    "progress",
    "save_every",
    "eval_every",
    "micro_batch_size",
    "micro_batch_tokens",
    "sampling_batch_size",
    "gradient_checkpointing",
)


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

    @property
    def is_evaluated(self) -> bool:
        """Whether a step has numbers of held-out examples; without a step nothing is due."""
        names = [name for row in self.metrics for name in row]
        return not names or any(name.startswith("eval_") for name in names)


class RunFolder:
    """Where a run is written, and from where it goes on; without a path nothing is written.

    identity: what makes two runs the same, see `identity_of`.
    notes: what settings.json and summary.json hold beside, such as the reference's identity.
    tokenizer: saved beside the model.
    """

    def __init__(self, path, *, identity: dict[str, Any], tokenizer, resume: bool = True):
        self.path = None if path is None else Path(path)
        self.identity = json.loads(json.dumps(identity))  # as it will be read from settings.json
        self.notes: dict[str, Any] = {}
        self.tokenizer, self.resume = tokenizer, resume
        self.lock: FolderLock | None = None
        self.name = ""  # digits for the run that settings.json is of

    def open(self, loop, run: Run) -> None:
        """Go on from the newest checkpoint of the same run; set another run's files aside.

        Raises OSError where another process is at work in the folder, ValueError for a checkpoint
        that is damaged.
        """
        if self.path is None:
            return
        if loop.accelerator.is_main_process:
            self.lock = FolderLock(self.path)
            self.lock.take()
            self._prepare(loop)
        loop.accelerator.wait_for_everyone()
        newest, stored = checkpoint.latest_checkpoint(self.path / CHECKPOINTS), self._stored()
        fixed = {name: _fixed(stored[name]) for name in (*self.identity, "start")}
        self.name = checkpoint.hash_of(fixed)
        if newest is not None:
            state = checkpoint.read_state(newest)
            self._check_own(newest, state)
            checkpoint.check_files(newest, state)
            checkpoint.load_tensors(newest, loop.parameters, loop.optimizer)
            loop.restore(state)
        run.metrics = self._metrics_until(loop.step)
        given = self.notes.get("eval_data")
        loop.accelerator.wait_for_everyone()
        if given and stored.get("eval_data") != given:  # the old numbers are of other examples
            run.metrics = [_without_evaluation(row) for row in run.metrics]
            if loop.accelerator.is_main_process:
                write_json(self.path / SETTINGS, stored | {"eval_data": given})
        self.write_metrics(loop, run)

    def write_metrics(self, loop, run: Run) -> None:
        """All of metrics.jsonl anew."""
        if self.path is not None and loop.accelerator.is_main_process:
            write_jsonl(self.path / METRICS, run.metrics)

    def leave(self) -> None:
        """Let another process into the folder."""
        if self.lock is not None:
            self.lock.release()

    def _check_own(self, newest: Path, state: dict[str, Any]) -> None:
        """Raises ValueError for a checkpoint that was copied here from another run's folder."""
        if state.get("run", self.name) != self.name:
            raise ValueError(
                f"The checkpoint {newest} is of another run than {self.path / SETTINGS}: move the "
                f"folder {newest.parent} away, and the run begins anew."
            )

    def _metrics_until(self, step: int) -> list[dict[str, Any]]:
        rows = read_jsonl(self.path / METRICS)
        for row in rows:
            if not isinstance(row.get("step"), int):
                raise ValueError(f"{self.path / METRICS} is damaged: {str(row)[:80]} has no step.")
        found = [row for row in rows if row["step"] <= step]
        if [row["step"] for row in found] != list(range(1, step + 1)):
            warnings.warn(
                f"{self.path / METRICS} holds {len(found)} of the {step} steps that the checkpoint "
                "has; the run goes on without the others.",
                stacklevel=5,
            )
        return found

    def holds_this_run(self, parameters: dict[str, torch.nn.Parameter]) -> bool:
        """Whether `open` will go on with the run that is in the folder."""
        stored = self._stored() if self.path is not None and self.resume else None
        return stored is not None and not self._why_another(stored, fingerprint(parameters))

    def started_from(self, parameters: dict[str, torch.nn.Parameter]) -> bool:
        """Whether the run that is in the folder started from these weights."""
        return self._stored()["start"] == fingerprint(parameters)

    def reference_of_start(self) -> str | None:
        """The name of the reference policy that the run in the folder started with."""
        return self._stored().get("reference")

    def log(self, run: Run, record: dict[str, Any], *, is_main: bool = True) -> None:
        """Keep one step's metrics, and append them to metrics.jsonl."""
        run.metrics.append(record)
        if self.path is not None and is_main:
            append_lines(self.path / METRICS, [record])

    def save(self, loop) -> None:
        """A checkpoint of this step."""
        if self.path is None:
            return
        state = loop.state() | {"random": gather_object([checkpoint.random_states()])}
        state["run"] = self.name
        if loop.accelerator.is_main_process:
            for name in (METRICS, ROLLOUTS):  # on the disk before the checkpoint is
                if (self.path / name).exists():
                    flush(self.path / name)
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
        for name in (METRICS, SUMMARY, REFERENCE, ROLLOUTS, *MODELS, SETTINGS):
            for left in self.path.glob(f".{name}.*"):  # of a run that was killed while writing
                remove(left)
        if stored is None:
            self._check_free()
        else:
            why = self._why_another(stored, start)
            if self.resume and not why:
                return
            self._set_aside(why) if self.resume else self._delete()
        write_json(self.path / SETTINGS, {**self.identity, **self.notes, "start": start})

    def _stored(self) -> dict[str, Any] | None:
        """The settings of the run that is in the folder; None where there is none."""
        try:
            stored = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:  # no JSON, or no UTF-8
            stored = {}
        if not isinstance(stored, dict) or "start" not in stored:
            raise ValueError(
                f"{self.path} holds a {SETTINGS} that is not of a training: give another folder."
            )
        return stored

    def _check_free(self) -> None:
        """Raises ValueError where files would be taken for this run's, or written over."""
        found = [path.name for path in self._files()]
        if found:
            raise ValueError(
                f"{self.path} holds {', '.join(found)} but no {SETTINGS}, so nobody knows of which "
                "run they are: give another folder, or move them away."
            )

    def _set_aside(self, why: str) -> None:
        """Move the files of the run that is in the folder, and no others."""
        aside = set_aside(self.path, self._files())
        warnings.warn(f"{self.path} held another run ({why}); it is now {aside}.", stacklevel=7)

    def _delete(self) -> None:
        """Delete the files of the run that is in the folder, and no others."""
        for path in self._files():
            remove(path)

    def _files(self) -> list[Path]:
        """The files and folders of a run; its settings, which make it one, are the last."""
        names = (CHECKPOINTS, METRICS, SUMMARY, REFERENCE, ROLLOUTS, *MODELS, SETTINGS)
        return [self.path / name for name in names if (self.path / name).exists()]

    def _why_another(self, stored: dict[str, Any], start: str) -> str:
        """What differs between the stored run and this one; empty where it is the same."""
        for name, value in self.identity.items():
            if name not in stored:
                return f"an earlier version wrote it, without its {name}"
            if _fixed(value) != _fixed(stored[name]):
                where = _where(value, stored[name])
                return OTHER_BASE if name == "base" else f"its {name} differ{where}"
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
        with written_aside(final) as beside, _no_bar():
            model.save_pretrained(beside)
            self.tokenizer.save_pretrained(beside)
        return final.name


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append one JSON object a line. Raises OSError that names the path where the disk is full."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


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


def _without_evaluation(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("eval_")}


def _fixed(value: Any) -> Any:
    """A part of the identity without the settings that change no gradient."""
    if not isinstance(value, dict):
        return value
    return {name: part for name, part in value.items() if name not in FREE_SETTINGS}


def _where(value: Any, stored: Any) -> str:
    """Which settings or functions differ."""
    if not isinstance(value, dict) or not isinstance(stored, dict):
        return ""
    value, stored = _fixed(value), _fixed(stored)
    names = [name for name in {**value, **stored} if value.get(name) != stored.get(name)]
    return f": {', '.join(names)}"


def identity_of(
    method: str,
    settings,
    data: str,
    functions: Mapping[str, Callable],
    *,
    model,
    tokenizer,
) -> dict[str, Any]:
    """What makes two runs the same one: all that decides their numbers, but the trained weights.

    base: the weights that are not trained, the configuration, LoRA's scaling and dropout. The
    trained weights at the start are beside it, as `start` in settings.json.
    """
    return {
        "method": method,
        "settings": asdict(settings),
        "data": data,
        "base": model_identity(model, trained=False),
        "tokenizer": tokenizer_identity(tokenizer),
        "functions": {name: provenance(function) for name, function in functions.items()},
    }


def provenance(function: Callable) -> dict[str, str]:
    """Whose code a function is: "reference" (of this package) or "yours", its module, and a hash
    of it with all that it hangs on (`helpers.identity.value_identity`)."""
    module = getattr(function, "__module__", None) or type(function).__module__
    return {
        "whose": "reference" if module.startswith("helpers.") else "yours",
        "module": module,
        "source": value_identity(function),
    }
