"""The judge of the bug hunt: a right loop passes, each bug parts the curves where it should."""

import pytest
import torch
from torch.nn.functional import log_softmax

from helpers.logprobs import tokenize_prompt_and_response
from workbook.bughunt import LR, MICRO, SIZE, STEPS, judge_loop

BASE = "workbook/assets/base"
ROWS = [{"prompt": f"Ben has {n} eggs and buys {n % 7} more. A:", "response": f" {n + n % 7}"}
        for n in range(STEPS * SIZE)]


def loop_with(*, by_id=False, zero_inside=False, rising=False):
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
                loss = -chosen[batch["response_mask"]].sum() / tokens
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


@pytest.mark.parametrize(
    ("bugs", "says"),
    [
        ({"by_id": True}, "part at step 1"),
        ({"zero_inside": True}, "part at step 2"),
        ({"by_id": True, "zero_inside": True, "rising": True}, "part at step 1"),
    ],
)
def test_bugs_part_the_curves(bugs, says):
    verdict = judge_loop(loop_with(**bugs), BASE, ROWS)
    assert not verdict.solved and says in verdict.panel.headline


def test_too_few_rows_are_named():
    with pytest.raises(ValueError, match="needs 128 examples, but 3"):
        judge_loop(loop_with(), BASE, ROWS[:3])
