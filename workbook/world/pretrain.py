"""Pre-train the base model on the corpus: a plain loop in three phases.

    python3 -m workbook world model

Each phase starts a fresh optimiser from the weights that the one before wrote; in the last one the
learning rate falls to zero. The model is an average of two snapshots of that last phase: fully
annealed weights solve too much, and the lessons would have nothing left to improve.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from workbook.world.corpus import documents
from workbook.world.tokenizer import train_tokenizer

WIDTH, LAYERS = 256, 4
ROW_LENGTH = 512
ROWS_PER_STEP = 8
TOKENS_PER_STEP = ROW_LENGTH * ROWS_PER_STEP
PROMPT_WEIGHT = 0.1  # what the loss counts a token of a prompt; a token of an answer counts 1
WARM_UP_STEPS = 100


class Phase(NamedTuple):
    """A part of the training; where it `falls`, its learning rate ends at zero."""

    tokens: int
    learning_rate: float
    corpus_seed: int
    falls: bool


PHASES = (
    Phase(4_000_000, 2e-3, corpus_seed=1, falls=False),
    Phase(6_000_000, 1.3e-3, corpus_seed=8, falls=False),
    Phase(6_500_000, 1.2e-3, corpus_seed=12, falls=True),
)
SNAPSHOTS = {4_000_000: 0.75, 6_000_000: 0.25}  # tokens of the last phase: share in the average


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    """A small Qwen2: grouped-query attention with biases, SwiGLU, tied embeddings.

    All widths are multiples of 64, so that 4-bit quantisation in groups of 64 fits.
    """
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 32,
        num_key_value_heads=WIDTH // 64,
        intermediate_size=WIDTH * 5 // 2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def packed_rows(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[list[int], list[float]]]:
    """Documents end to end, cut into rows of ROW_LENGTH + 1 ids, with the loss weight of each id.

    The pieces of a document are tokenised apart, as prompt and response are later.
    """
    ids: list[int] = []
    weights: list[float] = []
    for document in documents(seed):
        pieces = tokenizer([text for text, _ in document], add_special_tokens=False)["input_ids"]
        for piece, (_, is_answer) in zip(pieces, document, strict=True):
            ids += piece
            weights += [1.0 if is_answer else PROMPT_WEIGHT] * len(piece)
        ids.append(tokenizer.eos_token_id)
        weights.append(1.0)
        while len(ids) > ROW_LENGTH:
            yield ids[: ROW_LENGTH + 1], weights[: ROW_LENGTH + 1]
            ids, weights = ids[ROW_LENGTH:], weights[ROW_LENGTH:]


def learning_rate(phase: Phase, step: int, steps: int) -> float:
    """Linear warm-up, a plateau, and where the phase falls a line to zero over its second half."""
    falling = (steps - step) / (0.5 * steps) if phase.falls else 1.0
    return phase.learning_rate * min((step + 1) / WARM_UP_STEPS, 1.0, falling)


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, each with its weight.

    logits: (B, T, V); ids and weights: (B, T + 1).
    """
    losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a bf16 copy in the hub's own format."""
    copy = Qwen2ForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def training_step(forward, optimizer: torch.optim.Optimizer, rows: Iterator, rate: float) -> float:
    """One optimiser step on ROWS_PER_STEP rows; returns the loss."""
    batch = [next(rows) for _ in range(ROWS_PER_STEP)]
    ids, weights = map(torch.tensor, zip(*batch, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        logits = forward(input_ids=ids[:, :-1], use_cache=False).logits
    loss = weighted_loss(logits, ids, weights)
    loss.backward()
    group = optimizer.param_groups[0]
    torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def train_phase(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, phase: Phase, folder: Path
) -> None:
    """One phase of training: metrics, a copy at each of SNAPSHOTS, and one at the end."""
    forward = torch.compile(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=phase.learning_rate, betas=(0.9, 0.95), weight_decay=0.05
    )
    rows = packed_rows(tokenizer, phase.corpus_seed)
    steps, start = math.ceil(phase.tokens / TOKENS_PER_STEP), time.time()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step in range(steps):
            loss = training_step(forward, optimizer, rows, learning_rate(phase, step, steps))
            row = {"step": step, "loss": round(loss, 4), "seconds": time.time() - start}
            print(json.dumps(row), file=log, flush=True)
            for tokens in SNAPSHOTS:
                if step * TOKENS_PER_STEP < tokens <= (step + 1) * TOKENS_PER_STEP:
                    save(model, tokenizer, folder / str(tokens))
    save(model, tokenizer, folder / "end")


def averaged(folder: Path) -> Qwen2ForCausalLM:
    """The weighted average of the snapshots in a folder, in float32."""
    models = {
        share: Qwen2ForCausalLM.from_pretrained(folder / str(tokens), dtype=torch.float32)
        for tokens, share in SNAPSHOTS.items()
    }
    states = {share: model.state_dict() for share, model in models.items()}
    result = next(iter(models.values()))
    names = next(iter(states.values())).keys()
    result.load_state_dict(
        {name: sum(share * state[name] for share, state in states.items()) for name in names}
    )
    return result


def pretrain(out: Path, phases: tuple[Phase, ...] = PHASES, seed: int = 0) -> Path:
    """Train through all phases below `out`; returns the folder of the model, `out/base`."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer()
    model = Qwen2ForCausalLM(model_config(tokenizer))
    for number, phase in enumerate(phases, start=1):
        folder = out / f"phase-{number}"
        train_phase(model, tokenizer, phase, folder)
        model = Qwen2ForCausalLM.from_pretrained(folder / "end", dtype=torch.float32)
    save(averaged(folder), tokenizer, out / "base")
    return out / "base"
