"""The judges of the bug hunts: a right loop passes, each bug parts the curves where it should."""

from itertools import combinations

import pytest
import torch
from torch.nn.functional import log_softmax, softplus

from helpers.logprobs import tokenize_prompt_and_response
from workbook.bughunt import (
    BETA,
    DPO_LR,
    DPO_STEPS,
    LR,
    MICRO,
    MICRO_PAIRS,
    PAIRS,
    SIZE,
    STEPS,
    judge_dpo_loop,
    judge_loop,
)

BASE = "workbook/assets/base"
ROWS = [{"prompt": f"Ben has {n} eggs and buys {n % 7} more. A:", "response": f" {n + n % 7}"}
        for n in range(STEPS * SIZE)]


def loop_with(*, by_id=False, mean_of_means=False, zero_inside=False, rising=False):
    def loop(model, tokenizer, rows):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)
        losses = []
        for step in range(STEPS):
            part = rows[step * SIZE : (step + 1) * SIZE]
            batches = [
                tokenize_prompt_and_response([r["prompt"] for r in few],
                                             [r["response"] for r in few], tokenizer,
                                             append_eos=True)
                for few in (part[i : i + MICRO] for i in range(0, SIZE, MICRO))
            ]
            for batch in batches:
                if by_id:
                    batch["response_mask"] &= batch["labels"] != tokenizer.pad_token_id
            tokens, total = sum(b["response_mask"].sum() for b in batches), 0.0
            for group in optimizer.param_groups:
                group["lr"] = LR * ((step + 1) / STEPS if rising else 1 - step / STEPS)
            for batch in batches:
                if zero_inside:
                    optimizer.zero_grad()
                scores = log_softmax(model(batch["input_ids"]).logits, -1)
                chosen = scores.gather(-1, batch["labels"][..., None]).squeeze(-1)
                scored = chosen[batch["response_mask"]]
                share = len(batches) * len(scored) if mean_of_means else tokens
                loss = -scored.sum() / share
                loss.backward()
                total += loss.item()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
        return losses

    return loop


def test_a_right_loop_of_another_hand_passes():
    verdict = judge_loop(loop_with(), BASE, ROWS)
    assert verdict.solved and "All 8 losses" in verdict.panel.headline
    assert len(verdict.figure.axes[0].lines) == 2


PARTS_AT = {"mean_of_means": 1, "zero_inside": 2, "rising": 2}  # the three of lesson 03


@pytest.mark.parametrize("bugs", [("by_id",), *(left for count in (1, 2, 3)
                                                for left in combinations(PARTS_AT, count))])
def test_bugs_that_are_left_in_part_the_curves(bugs):
    verdict = judge_loop(loop_with(**dict.fromkeys(bugs, True)), BASE, ROWS)
    step = min(PARTS_AT.get(bug, 1) for bug in bugs)
    assert not verdict.solved and f"part at step {step}" in verdict.panel.headline


def test_too_few_rows_are_named():
    with pytest.raises(ValueError, match="needs 128 examples, but 3"):
        judge_loop(loop_with(), BASE, ROWS[:3])
    with pytest.raises(ValueError, match="needs 24 pairs, but 2"):
        judge_dpo_loop(dpo_loop_with(), TWO[:2])


# ---------------------------------------------------------------- DPO

TWO = [{"prompt": f"Ben has {n} eggs and buys {n % 7} more. A:", "chosen": f" {n + n % 7}",
        "rejected": f" {n + n % 7 + 1 + n % 3} eggs"} for n in range(DPO_STEPS * PAIRS)]


def dpo_loop_with(*, switched_off=False, interleaved=False, kept_gradients=False, followed=False,
                  averaged=False):
    """A loop of another hand: both sides in one batch, and any of five bugs."""

    def log_probs(model, pairs, tokenizer):
        texts = [(p["prompt"], p[side]) for side in ("chosen", "rejected") for p in pairs]
        batch = tokenize_prompt_and_response(*zip(*texts, strict=True), tokenizer, append_eos=True)
        scores = log_softmax(model(batch["input_ids"]).logits, -1)
        chosen = scores.gather(-1, batch["labels"][..., None]).squeeze(-1)
        kept = chosen * batch["response_mask"]
        sums = kept.sum(-1) / (batch["response_mask"].sum(-1) if averaged else 1)
        return (sums[0::2], sums[1::2]) if interleaved else sums.chunk(2)

    @torch.no_grad()
    def reference(model, pairs, tokenizer):
        if switched_off:
            with model.disable_adapter():
                return log_probs(model, pairs, tokenizer)
        return log_probs(model, pairs, tokenizer)

    def loop(model, tokenizer, pairs):
        parts = [pairs[i : i + MICRO_PAIRS] for i in range(0, DPO_STEPS * PAIRS, MICRO_PAIRS)]
        fixed = [reference(model, part, tokenizer) for part in parts]
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], DPO_LR)
        losses, micro = [], PAIRS // MICRO_PAIRS
        for step in range(DPO_STEPS):
            total = 0.0
            for place in range(step * micro, (step + 1) * micro):
                ref = reference(model, parts[place], tokenizer) if followed else fixed[place]
                policy = log_probs(model, parts[place], tokenizer)
                margin = (policy[0] - ref[0]) - (policy[1] - ref[1])
                loss = softplus(-BETA * margin).sum() / PAIRS
                loss.backward()
                total += loss.item()
            optimizer.step()
            if not kept_gradients:
                optimizer.zero_grad()
            losses.append(total)
        return losses

    return loop


def test_a_right_dpo_loop_of_another_hand_passes():
    verdict = judge_dpo_loop(dpo_loop_with(), TWO)
    assert verdict.solved and "All 6 losses" in verdict.panel.headline


@pytest.mark.parametrize(
    ("bugs", "step"),
    [
        ({"switched_off": True}, 1),
        ({"interleaved": True}, 2),
        ({"averaged": True}, 2),
        ({"followed": True}, 2),
        ({"kept_gradients": True}, 3),
        ({"switched_off": True, "interleaved": True, "kept_gradients": True}, 1),
        ({"interleaved": True, "kept_gradients": True}, 2),
    ],
)
def test_bugs_of_dpo_part_the_curves(bugs, step):
    verdict = judge_dpo_loop(dpo_loop_with(**bugs), TWO)
    assert not verdict.solved and f"part at step {step}" in verdict.panel.headline
