"""A bug hunt: a training loop that runs, prints falling losses, and is wrong in several places.

Bugs of this kind hide each other, and none raises an error. The judge trains again for some
seconds with the learner's loop and with a right one, from the same weights on the same rows in
the same order, and compares the curves: where they part says what kind of bug is left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

from helpers.logprobs import response_log_probs, tokenize_prompt_and_response
from helpers.losses import sft_loss
from helpers.models import LoraSettings, load_model
from helpers.plotting import training_curves
from workbook.panel import Panel

STEPS, SIZE, MICRO, LR = 8, 16, 4, 2e-3
TOLERANCE = 0.002  # of a loss, relative; equal loops differ by rounding only


def right_loop(model, tokenizer, rows: Sequence[dict]) -> list[float]:
    """STEPS of SIZE rows in micro-batches of MICRO, the learning rate falling to 0; the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / STEPS)
        losses.append(_accumulate(model, tokenizer, rows[step * SIZE : (step + 1) * SIZE]))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def _accumulate(model, tokenizer, rows: Sequence[dict]) -> float:
    parts = [_batch(rows[start : start + MICRO], tokenizer) for start in range(0, SIZE, MICRO)]
    tokens = sum(int(part["response_mask"].sum()) for part in parts)
    total = 0.0
    for part in parts:
        loss = sft_loss(_log_probs(model, part), part["response_mask"], normalizer=tokens)
        loss.backward()
        total += loss.item()
    return total


def _batch(rows: Sequence[dict], tokenizer) -> dict[str, torch.Tensor]:
    prompts, responses = zip(*((row["prompt"], row["response"]) for row in rows), strict=True)
    return tokenize_prompt_and_response(prompts, responses, tokenizer, append_eos=True)


def _log_probs(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return response_log_probs(model, **batch)["log_probs"]


@dataclass
class Verdict:
    """What the judge saw: a panel in words, and both curves."""

    panel: Panel
    figure: Figure
    solved: bool


def judge_loop(loop: Callable, base: str, rows: Sequence[dict]) -> Verdict:
    """Train by `loop(model, tokenizer, rows) -> losses` and by a right loop; compare.

    base: the model's folder. rows: STEPS * SIZE examples with prompt and response, or more.

    Raises ValueError for too few rows.
    """
    if len(rows) < STEPS * SIZE:
        raise ValueError(f"The hunt needs {STEPS * SIZE} examples, but {len(rows)} were given.")
    curves, ends = {}, {}
    for name, train in (("right", right_loop), ("yours", loop)):
        model, tokenizer = load_model(base, lora=LoraSettings(rank=8, alpha=16))
        curves[name] = [float(loss) for loss in train(model, tokenizer, rows)]
        ends[name] = _end_loss(model, tokenizer, rows[:32])
    panel = _verdict(curves, ends)
    records = {name: [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
               for name, losses in curves.items()}
    figure = training_curves(records, ["loss"], title=panel.headline)
    return Verdict(panel, figure, panel.kind == "passed")


@torch.no_grad()
def _end_loss(model, tokenizer, rows: Sequence[dict]) -> float:
    """-log p of the EOS behind the responses: what a loop that masks it never learns."""
    batch = _batch(rows, tokenizer)
    log_probs = _log_probs(model, batch)
    places = torch.arange(log_probs.shape[1])
    last = (places * batch["response_mask"]).amax(dim=1)
    return -log_probs.gather(1, last[:, None]).mean().item()


def _verdict(curves: dict[str, list[float]], ends: dict[str, float]) -> Panel:
    right, yours = curves["right"], curves["yours"]
    rows = [("end of text", f"-log p of the EOS: {ends['yours']:.3g}, right {ends['right']:.3g}")]
    if len(yours) != len(right):
        text = f"The loop returned {len(yours)} losses, one for each of {len(right)} steps is right"
        return Panel("failed", text, rows)
    parted = next((step for step, (a, b) in enumerate(zip(yours, right, strict=True), 1)
                   if not abs(a - b) <= TOLERANCE * abs(b)), None)
    if parted is None:
        return Panel("passed", f"All {len(right)} losses are those of a right loop", rows)
    where = {1: "Before any update: what is counted, and by what is it divided?",
             2: "After the first update: which gradients reached it, with what learning rate?"}
    says = where.get(parted, "The first updates are right: what changes from step to step?")
    return Panel("failed", f"The curves part at step {parted}", [("look at", says), *rows])
