"""Pre-train the base model on the corpus: a plain loop, resumable in no way but fast.

    python -m workbook.world.pretrain --out runs/pretrain --tokens 24000000
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from workbook.world.corpus import documents
from workbook.world.tokenizer import train_tokenizer

ROW_LENGTH = 512
ROWS_PER_STEP = 8
PROMPT_WEIGHT = 0.1  # what the loss counts a token of a prompt; an answer token counts 1
WARM_UP_STEPS = 100


def model_config(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> Qwen2Config:
    """A small Qwen2: grouped-query attention with biases, SwiGLU, tied embeddings; widths are multiples of 64."""
    return Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 32,
        num_key_value_heads=width // 64, intermediate_size=width * 5 // 2, max_position_embeddings=1024,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


def packed_rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[list[int], list[float]]]:
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


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, a plateau, and a linear fall to zero over the last 40 %."""
    return min((step + 1) / WARM_UP_STEPS, 1.0, max(0.0, (steps - step) / (0.4 * steps)))


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, each token with its weight: logits (B, T, V), ids and weights (B, T+1)."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a bf16 copy in the hub's own format."""
    copy = Qwen2ForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pretrain(out: Path, tokens: int, *, width: int = 256, layers: int = 4, lr: float = 2e-3, seed: int = 0,
             save_every: int = 2_000_000, compiled: bool = True) -> None:
    """Train for `tokens` tokens; a copy of the model is written every `save_every` and at the end."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer()
    model = Qwen2ForCausalLM(model_config(tokenizer, width, layers))
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05)
    rows = packed_rows(tokenizer, seed + 1)
    per_step = ROW_LENGTH * ROWS_PER_STEP
    steps, start = math.ceil(tokens / per_step), time.time()
    out.mkdir(parents=True, exist_ok=True)
    with (out / "metrics.jsonl").open("w", encoding="utf-8") as metrics:
        for step in range(steps):
            ids, weights = map(torch.tensor, zip(*(next(rows) for _ in range(ROWS_PER_STEP)), strict=True))
            with torch.autocast("cpu", torch.bfloat16):
                logits = forward(input_ids=ids[:, :-1], use_cache=False).logits
            loss = weighted_loss(logits, ids, weights)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = lr * learning_rate_factor(step, steps)
            optimizer.step()
            optimizer.zero_grad()
            row = {"step": step, "tokens": (step + 1) * per_step, "loss": round(loss.item(), 4),
                   "grad_norm": round(norm.item(), 3), "seconds": round(time.time() - start, 1)}
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
            if (step + 1) * per_step // save_every > step * per_step // save_every:
                save(model, tokenizer, out / f"tokens-{(step + 1) * per_step // 1_000_000}M")
    save(model, tokenizer, out / "final")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=24_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    pretrain(args.out, args.tokens, width=args.width, layers=args.layers, lr=args.lr, seed=args.seed,
             compiled=not args.no_compile)


if __name__ == "__main__":
    main()
