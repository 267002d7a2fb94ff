"""Read a run and name the failure that raised no error.

A training that goes wrong seldom stops: the loss is plotted, the model is saved, and only an
evaluation shows that nothing was learnt, or the wrong thing. Each symptom here has a cause that
the run's own records give away.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

from helpers.data import leaks
from helpers.diagnose_rl import known, rollout_symptoms
from helpers.evaluation import read_jsonl
from helpers.text_files import read_json
from helpers.tokens import encode_prompt, encode_response

STUCK = 0.97  # the last losses over the first ones; above it the loss has not moved
LEARNT = 0.05  # a loss below this needs not fall further
AWAY = 0.01  # a first preference loss (relative) or reward beyond this is not that of equal models
MOVED = 0.5  # nats by which a frozen reference may seem to move: a trace of rounding, no more
LOST = 0.5  # share of steps without a loss, from which on the run is called broken
LONGER = 1.3  # responses that grew by more than this had better be better


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


def diagnose(
    run, *, data=None, held_out=None, tokenizer=None, before=None, after=None
) -> Diagnosis:
    """The silent failures of a run: SFT, preferences of every method, reinforcement learning.

    run: a `Run`, or the folder of one (settings.json, metrics.jsonl, summary.json).
    data: what it was trained on, rows with `prompt` and `response`; with it, and the tokenizer,
        the tokens that carried loss are counted again. Of preferences, rows with `chosen` and
        `rejected`, whose lengths are compared.
    held_out: the examples of an evaluation, to be looked for in `data`.
    before, after: graded responses to the same prompts of the start and of the trained policy, as
        `helpers.evaluation.grade_completions` gives them: do they grow without getting better?

    Raises ValueError for a folder of no run, and for a run without any step.

    Example:
        >>> diagnose(train_sft(model, data, SFTSettings(lr=1e-9), tokenizer=tokenizer))
        stuck loss: it went from 2.31 to 2.31. Raise lr (now 1e-09) ...
    """
    metrics, summary, settings = _records(run)
    if not metrics:
        raise ValueError("The run has logged no step: there is nothing to read in it.")
    method = summary.get("method", "sft")
    lost = _not_a_number(metrics)
    if "groups_with_signal" in metrics[0]:
        named = rollout_symptoms(metrics, {**settings, "dtype": summary.get("dtype")})
        return Diagnosis([*([lost] if lost else []), *(Symptom(*found) for found in named)])
    wrong = None if lost else _wrong_reference(metrics, settings, method)
    found = [lost or wrong or _stuck(metrics, settings, method), _truncated(summary)]
    if (before is None) != (after is None):
        raise ValueError("Give before and after, or neither: lengths are compared.")
    if before is not None:
        found.append(_length_gaming(list(before), list(after), data or []))
    if data is not None and tokenizer is not None and method == "sft":
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
        summary, written = (
            read_json(folder / f"{name}.json") for name in ("summary", "settings")
        )
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no folder of a run: {error}") from error
    if "settings" not in written:
        raise ValueError(f"{folder / 'settings.json'} is not of a training: name a run's folder.")
    return read_jsonl(folder / "metrics.jsonl"), summary, written["settings"]


def _not_a_number(metrics: list[dict]) -> Symptom | None:
    """The loss or its gradient was no number, so most steps were skipped."""
    skipped = [record for record in metrics if record.get("loss") is None or "skipped" in record]
    if len(skipped) < LOST * len(metrics):
        return None
    first, why = skipped[0], skipped[0].get("skipped", "its loss is no number")
    rows = f", among rows {', '.join(map(str, first['rows'][:5]))}" if first.get("rows") else ""
    return Symptom(
        "loss is not a number",
        f"{len(skipped)} of {len(metrics)} steps were skipped, the first at step {first['step']} "
        f"({why}{rows}).",
        "No such step trains anything: look for nan or inf in the loss function, the weights and "
        "these rows; half precision and a large lr overflow.",
    )


def _stuck(metrics: list[dict], settings: dict, method: str) -> Symptom | None:
    """The loss at the end is what it was at the start, and it was not low then."""
    losses = known(metrics, "loss")
    if len(losses) < 8:
        return None
    part = max(2, len(losses) // 5)
    first, last = fmean(losses[:part]), fmean(losses[-part:])
    if first < LEARNT or last < STUCK * first:
        return None
    norm = fmean(known(metrics, "grad_norm")[:part] or [0.0])
    also = "that labels are shifted once" if method == "sft" else "that the labels are no coin's"
    cure = (
        "No gradient reaches a trained weight: is the loss detached, or its mask empty?"
        if norm < 1e-8
        else f"Raise lr (now {settings['lr']:g}; LoRA wants about ten times that of full training) "
        f"and check {also}."
    )
    name = "stuck at ln 2" if method in ("dpo", "robust") else "stuck loss"
    return Symptom(name, f"it went from {first:.3g} to {last:.3g}.", cure)


def _wrong_reference(metrics: list[dict], settings: Mapping, method: str) -> Symptom | None:
    """At the first step the policy is the reference, and the reference stays what it was."""
    beta = settings.get("beta") or 0.1
    starts = {"dpo": math.log(2), "robust": math.log(2), "hinge": 1.0, "ipo": 1 / (2 * beta) ** 2}
    if method not in starts:
        return None
    names = ("loss", "chosen_reward", "rejected_reward", "chosen_logps", "rejected_logps")
    metrics = [record for record in metrics if all(known([record], name) for name in names)]
    if not metrics:
        return None
    first = metrics[0]
    start = None if settings["nll_coefficient"] else starts[method]
    reward = max((first["chosen_reward"], first["rejected_reward"]), key=abs)
    is_off = start is not None and abs(first["loss"] - start) > AWAY * start
    if first["step"] == 1 and (is_off or abs(reward) > AWAY):
        wanted = "" if start is None else f" (of equal models: {start:.3g})"
        return Symptom(
            "wrong reference",
            f"the first loss is {first['loss']:.3g}{wanted}, the largest mean reward {reward:.3g}.",
            "The reference must be the policy as it starts: freeze it after the adapter is loaded, "
            "run both without dropout, and use it in the loss.",
        )
    sides = {side: _reference_by_epoch(metrics, side, beta) for side in ("chosen", "rejected")}
    side, epochs = max(sides.items(), key=lambda item: abs(item[1][-1] - item[1][0]))
    if abs(epochs[-1] - epochs[0]) < MOVED:
        return None
    return Symptom(
        "wrong reference",
        f"its log-prob of a {side} response went from {epochs[0]:.3g} to {epochs[-1]:.3g}.",
        "The reference follows the policy: it must be a copy, or numbers kept from the start.",
    )


def _reference_by_epoch(metrics: list[dict], side: str, beta: float) -> list[float]:
    """The mean log-prob of one side that its rewards imply, one for each whole epoch.

    r = beta * (policy - reference), so reference = policy - r / beta; an epoch holds every pair.
    """
    epochs: dict[int, list[tuple[float, int]]] = {}
    for record in metrics:
        implied = record[f"{side}_logps"] - record[f"{side}_reward"] / beta
        place = math.ceil(round(record["epoch"], 6))
        epochs.setdefault(place, []).append((implied, record["pairs"]))
    if len(epochs) > 1 and metrics[-1]["epoch"] < len(epochs) - 1e-6:
        epochs.popitem()  # not all of its pairs were seen
    return [
        sum(value * pairs for value, pairs in steps) / sum(pairs for _, pairs in steps)
        for steps in epochs.values()
    ]


def _length_gaming(before: list[dict], after: list[dict], data) -> Symptom | None:
    """Responses grew, and did not get better: length itself was learnt."""
    sides = (before, after)
    words = [fmean(len(row["generation"].split()) for row in rows) for rows in sides]
    rewards = [known([row["metrics"] for row in rows], "reward") for rows in sides]
    if not all(rewards):
        return None
    first, last = map(fmean, rewards)
    error = math.sqrt(sum(variance(r) / len(r) if len(r) > 1 else 0.0 for r in rewards))
    if words[1] <= LONGER * words[0] or last > first + error:
        return None
    pairs = [row for row in data if "chosen" in row and "rejected" in row]
    longer = sum(len(row["chosen"].split()) > len(row["rejected"].split()) for row in pairs)
    share = f" In {longer} of {len(pairs)} pairs the chosen response is longer." if pairs else ""
    return Symptom(
        "length gaming",
        f"responses grew from {words[0]:.1f} to {words[1]:.1f} words, their reward went from "
        f"{first:.3g} to {last:.3g}.{share}",
        "Train on pairs of like length, and judge on length-matched pairs.",
    )


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
    ended = bool(settings["append_eos"])
    rows = [(row["prompt"], row["response"]) for row in data if row["response"].strip()]
    lengths = [
        (len(encode_prompt(prompt, tokenizer)),
         len(encode_response(response, tokenizer, prompt=prompt, append_end=ended)))
        for prompt, response in rows if prompt
    ]
    if sum(kind["count"] for kind in summary["examples"]["cut"].values()) or not lengths:
        return None  # what a cut took off is not known here
    epochs = max(record["epoch"] for record in metrics)
    counted = sum(record["tokens"] for record in metrics) / epochs / len(lengths)  # an example
    prompt, response = (fmean(column) for column in zip(*lengths, strict=True))
    if counted > response + prompt / 2:
        return Symptom(
            "prompt in the loss",
            f"{counted:.1f} tokens an example carry loss; a response has {response:.1f}.",
            "Mask the prompt: else the model learns to write questions.",
        )
    if ended and abs(counted + 1 - response) < 0.1:
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
