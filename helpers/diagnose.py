"""Read a run and name the failure that raised no error.

A training that goes wrong seldom stops: the loss is plotted, the model is saved, and only an
evaluation shows that nothing was learnt, or the wrong thing. Each symptom here has a cause that
the run's own records give away.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from helpers.data import leaks

STUCK = 0.97  # the last losses over the first ones; above it the loss has not moved
LEARNT = 0.05  # a loss below this needs not fall further


@dataclass(frozen=True)
class Symptom:
    """One silent failure: its name, the numbers that show it, and what to do."""

    name: str
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name}: {self.evidence} {self.advice}"


class Diagnosis(list):
    """The symptoms of a run, none for a healthy one; printed as sentences."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) or "No known silent failure: the run looks healthy."


def diagnose(run, *, data=None, held_out=None, tokenizer=None) -> Diagnosis:
    """The silent failures of a fine-tuning run.

    run: a `Run`, or the folder of one (settings.json, metrics.jsonl, summary.json).
    data: what it was trained on, rows with `prompt` and `response`; with it, and the tokenizer,
        the tokens that carried loss are counted again.
    held_out: the examples of an evaluation, to be looked for in `data`.

    Example:
        >>> diagnose(train_sft(model, data, SFTSettings(lr=1e-9), tokenizer=tokenizer))
        stuck loss: it went from 2.31 to 2.31. Raise lr (now 1e-09) ...
    """
    metrics, summary, settings = _records(run)
    found = [_stuck(metrics, settings), _truncated(summary)]
    if data is not None and tokenizer is not None:
        found.append(_wrong_tokens(metrics, summary, settings, list(data), tokenizer))
    if data is not None and held_out is not None:
        found.append(_leak(data, held_out))
    return Diagnosis(symptom for symptom in found if symptom)


def _records(run) -> tuple[list[dict], dict, dict]:
    """Metrics, summary and settings of a run in memory or in its folder."""
    if not isinstance(run, str | Path):
        return run.metrics, run.summary, vars(run.settings)
    folder = Path(run)
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        summary, written = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("summary", "settings")
        )
        return [json.loads(line) for line in lines], summary, written["settings"]
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no folder of a run: it has no {error.filename}.") from error


def _stuck(metrics: list[dict], settings: dict) -> Symptom | None:
    """The loss at the end is what it was at the start, and it was not low then."""
    losses = [record["loss"] for record in metrics if record["loss"] is not None]
    if len(losses) < 8:
        return None
    part = max(2, len(losses) // 5)
    first, last = fmean(losses[:part]), fmean(losses[-part:])
    if first < LEARNT or last < STUCK * first:
        return None
    norm = fmean(record["grad_norm"] or 0.0 for record in metrics[:part])
    cure = (
        "No gradient reaches a trained weight: is the loss detached, or its mask empty?"
        if norm < 1e-8
        else f"Raise lr (now {settings['lr']:g}; LoRA wants about ten times that of full training) "
        "and check that labels are shifted once."
    )
    return Symptom("stuck loss", f"it went from {first:.3g} to {last:.3g}.", cure)


def _truncated(summary: dict) -> Symptom | None:
    """Most examples were cut, so their ends, EOS included, were never learnt."""
    examples = summary["examples"]
    cut = sum(kind["count"] for kind in examples["cut"].values())
    if cut <= examples["used"] / 2:
        return None
    return Symptom(
        "everything truncated",
        f"{cut} of {examples['used']} examples were cut at max_length.",
        "The model never sees an end and will not learn to stop: raise max_length.",
    )


def _wrong_tokens(metrics, summary, settings, data, tokenizer) -> Symptom | None:
    """More tokens than the responses have carried loss, or each response lost its EOS."""
    ended = int(bool(settings["append_eos"]))
    lengths = [
        [len(tokenizer(row[name], add_special_tokens=False)["input_ids"])
         for name in ("prompt", "response")]
        for row in data if row["response"].strip()
    ]
    if sum(kind["count"] for kind in summary["examples"]["cut"].values()) or not lengths:
        return None  # what a cut took off is not known here
    epochs = max(record["epoch"] for record in metrics)
    counted = sum(record["tokens"] for record in metrics) / epochs / len(lengths)  # an example
    prompt, response = (fmean(column) for column in zip(*lengths, strict=True))
    if counted > response + ended + prompt / 2:
        return Symptom(
            "prompt in the loss",
            f"{counted:.1f} tokens an example carry loss; a response has {response + ended:.1f}.",
            "Mask the prompt: else the model learns to write questions.",
        )
    if ended and abs(counted - response) < 0.1:
        return Symptom(
            "EOS masked",
            f"{counted:.1f} tokens an example carry loss: the response without its EOS.",
            "Build masks from lengths, not from ids (padding may share the id of EOS).",
        )
    return None


def _leak(data: Iterable[dict], held_out: Iterable[dict]) -> Symptom | None:
    """Examples of the evaluation stand in the training data."""
    found = leaks(data, held_out)
    if not found:
        return None
    return Symptom(
        "leak between splits",
        f"{len(found)} held-out examples stand in the training data, such as {found[0]['text']!r}.",
        "Split by problem before anything is sampled; what was measured on them is no estimate.",
    )
