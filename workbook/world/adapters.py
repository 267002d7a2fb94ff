"""Train the small adapters that ship with the course, from the shipped base model.

    python3 -m workbook world adapters

`sft` answers maths problems in the requested format. A lesson that builds on an earlier one starts
from it when the learner has no adapter of their own yet.
"""

import random
from pathlib import Path

import torch

from helpers.logprobs import response_log_probs, tokenize_prompt_and_response
from helpers.losses import sft_loss
from helpers.models import LoraSettings, load_model
from helpers.prompts import load_template, render
from workbook.world.corpus import ending
from workbook.world.maths import sample_problems

EXAMPLES = 512
EPOCHS = 2
BATCH = 16
LEARNING_RATE = 2e-3
CARD = """# A small tuned adapter of the tiny base model

LoRA on all linear layers, trained by `python3 -m workbook world adapters` on {examples} worked
solutions in the requested format ({epochs} epochs). It shows in lesson 01 what the course builds.
"""


def demonstrations(count: int, seed: int) -> list[tuple[str, str]]:
    """Prompts of training problems with their full solution in the requested format."""
    template = load_template("r1_zero")
    return [
        (
            render(template, question=problem.question),
            f" {problem.reasoning}{ending('formatted', problem.final)}",
        )
        for problem in sample_problems(count, "train", seed)
    ]


def train_sft_adapter(base: Path, out: Path, seed: int = 0) -> float:
    """Fine-tune a LoRA adapter on demonstrations, write it to `out`, and return the last loss."""
    torch.manual_seed(seed)
    model, tokenizer = load_model(base, lora=LoraSettings(rank=16, alpha=32, seed=seed))
    pairs, rng = demonstrations(EXAMPLES, seed), random.Random(seed)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE, weight_decay=0.0
    )
    steps = EPOCHS * EXAMPLES // BATCH
    for step in range(steps):
        prompts, responses = zip(*rng.sample(pairs, BATCH), strict=True)
        batch = tokenize_prompt_and_response(prompts, responses, tokenizer, append_eos=True)
        scores = response_log_probs(
            model,
            batch["input_ids"],
            batch["labels"],
            attention_mask=batch["attention_mask"],
            response_mask=batch["response_mask"],
        )
        loss = sft_loss(scores["log_probs"], batch["response_mask"])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    # The folder of whoever trained it says nothing to others.
    model.peft_config["default"].base_model_name_or_path = "workbook/assets/base"
    model.save_pretrained(out)
    (out / "README.md").write_text(CARD.format(examples=EXAMPLES, epochs=EPOCHS), encoding="utf-8")
    return loss.item()
