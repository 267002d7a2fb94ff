"""Train two more policies for the preference data: one from few examples, one that is long-winded.

    python3 -m workbook world adapters

Both are LoRA adapters of the base model. `sft_short` learnt the requested format from a few short
problems, and is the start of preference and reinforcement learning when the learner has no adapter
of their own yet. `verbose` learnt to go over its steps again and again, with courtesy.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from helpers.logprobs import response_log_probs, tokenize_prompt_and_response
from helpers.losses import sft_loss
from helpers.models import LoraSettings, load_model
from helpers.prompts import load_template, render
from workbook.world.maths import Problem, sample_problems

SEED = 0
RANK = 16
BATCH, EPOCHS, LEARNING_RATE = 16, 3, 2e-3
SHORT, VERBOSE = 128, 384  # demonstrations
AGAIN, COURTESY = " The solution: ", " I hope this helps."
CARDS = {
    "sft_short": f"{SHORT} worked solutions of one and two steps in the requested format",
    "verbose": f"{VERBOSE} worked solutions told up to four times over, with some courtesy",
}

Demonstration = tuple[str, str]


def prompt_of(problem: Problem) -> str:
    """The problem under the r1_zero prompt."""
    return render(load_template("r1_zero"), question=problem.question)


def short_demonstrations(seed: int) -> list[Demonstration]:
    """Worked solutions of problems of one and two steps."""
    problems = [p for p in sample_problems(1400, "train", seed) if len(p.steps) <= 2][:SHORT]
    return [
        (prompt_of(p), f" {p.reasoning} </think> <answer>{p.final}</answer>") for p in problems
    ]


def verbose_demonstrations(seed: int) -> list[Demonstration]:
    """Worked solutions told one to four times over, with courtesy at times."""
    rng, pairs = random.Random(f"verbose-{seed}"), []
    for problem in sample_problems(VERBOSE, "train", seed + 1):
        told = AGAIN.join([problem.reasoning] * rng.randint(1, 4))
        text = f" {told}{COURTESY * rng.randint(0, 2)} </think> <answer>{problem.final}</answer>"
        pairs.append((prompt_of(problem), text))
    return pairs


DEMONSTRATIONS = {"sft_short": short_demonstrations, "verbose": verbose_demonstrations}


def train_on_demonstrations(model, tokenizer, pairs: Sequence[Demonstration], seed: int) -> None:
    """SFT in place: the mean of -log p over the response tokens of a batch, clipped gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95))
    rng = random.Random(seed)
    for _ in range(EPOCHS * len(pairs) // BATCH):
        prompts, responses = zip(*rng.sample(pairs, BATCH), strict=True)
        batch = tokenize_prompt_and_response(prompts, responses, tokenizer, append_eos=True)
        log_probs = response_log_probs(
            model,
            batch["input_ids"],
            batch["labels"],
            attention_mask=batch["attention_mask"],
            response_mask=batch["response_mask"],
        )["log_probs"]
        sft_loss(log_probs, batch["response_mask"]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def train_policy(name: str, base: Path, folder: Path, seed: int = SEED) -> Path:
    """Train one policy of CARDS and write it to `folder`/name, which is returned."""
    model, tokenizer = load_model(base, lora=LoraSettings(rank=RANK, alpha=2 * RANK, seed=seed))
    train_on_demonstrations(model, tokenizer, DEMONSTRATIONS[name](seed), seed)
    out = folder / name
    # The folder of whoever trained it says nothing to others.
    model.peft_config["default"].base_model_name_or_path = "workbook/assets/base"
    model.save_pretrained(out)
    card = f"# {name}: an adapter of the tiny base model\n\nLoRA, tuned on {CARDS[name]}.\n"
    card += "Made by `python3 -m workbook world adapters`.\n"
    (out / "README.md").write_text(card, encoding="utf-8")
    return out
