"""One step at a time through a causal language model with a key-value cache.

`helpers.rollout.generate` is built on these: read the prompts once, choose the next tokens, feed
them back. Notation: P prompts, n samples a prompt, B = P * n rows, V vocabulary.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import DynamicCache

from helpers.logprobs import at_temperature
from helpers.modes import evaluation_mode
from helpers.probes import holds, same_scores, text_config, trial_ids
from helpers.prompt_cache import SharedPromptLayer, may_share_prompts, shared_prompt_attention
from helpers.quantization import is_plain_update
from helpers.reading import chosen_logits, positions_of
from helpers.shared_rows import padded


def window_of(model) -> int:
    """The most tokens that a model reads, prompt and completion together."""
    names = ("max_position_embeddings", "max_seq_len")
    sizes = [getattr(text_config(model), name, None) for name in names]
    return next((size for size in sizes if size and size > 0), 2**31)


def prefill(model, prompt_ids: Sequence[Sequence[int]], n: int, steps: int, pad_token_id: int):
    """Read each prompt once for its n samples.

    Returns the cache of B = P * n rows, the mask (B, longest prompt + steps) with zeros on the
    left padding and ones elsewhere, and the logits (B, V) of the first new token. For a model that
    a probe shows to decode with a cache otherwise than it reads, the cache is `WholeRows`.
    """
    width = max(map(len, prompt_ids))
    lengths = torch.tensor([len(ids) for ids in prompt_ids], device=model.device)
    mask = torch.arange(width + steps, device=model.device) >= (width - lengths)[:, None]
    mask = mask.long()
    if may_cache(model):
        cache, logits = _read_prompts(model, prompt_ids, n, steps, pad_token_id, mask[:, :width])
    else:
        logits = _last_logits(model, prompt_ids)
        cache = WholeRows([list(ids) for ids in prompt_ids for _ in range(n)], width)
    return cache, mask.repeat_interleave(n, dim=0), logits.repeat_interleave(n, dim=0)


def _read_prompts(model, prompt_ids, n: int, steps: int, pad_token_id: int, mask: torch.Tensor):
    """A key-value cache of B rows, and the logits (P, V) behind the prompts; mask: (P, width)."""
    width = mask.shape[1]
    ids = [[pad_token_id] * (width - len(row)) + list(row) for row in prompt_ids]
    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=torch.tensor(ids, device=model.device),  # (P, width)
        attention_mask=mask,
        position_ids=positions_of(mask),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    if may_share_prompts(model, cache):
        cache.layers = [SharedPromptLayer(layer, mask == 0, n, steps) for layer in cache.layers]
    else:
        # As a beam search does it: recurrent layers can do so, and cannot repeat.
        cache.reorder_cache(torch.arange(len(ids), device=model.device).repeat_interleave(n))
    return cache, logits


def next_logits(model, cache, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One step with the cache: the logits (B, V) after the given tokens (B,)."""
    if isinstance(cache, WholeRows):
        cache.append(tokens)
        return _last_logits(model, cache.rows)
    inputs = {
        "input_ids": tokens[:, None],
        "attention_mask": mask,
        # Counted without the padding, so that a prompt reads the same alone and in a batch.
        "position_ids": mask.sum(dim=-1, keepdim=True) - 1,
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }
    if isinstance(cache.layers[0], SharedPromptLayer):
        with shared_prompt_attention(model):
            return model(**inputs, prompts_of=cache).logits[:, -1]
    return model(**inputs).logits[:, -1]


class WholeRows:
    """In place of a cache the tokens of B rows, which are read anew at each step.

    For models whose state cannot be kept, padded, repeated or chosen from as keys and values can.
    length: of the longest prompt with the new tokens, as the mask of a step counts.
    """

    def __init__(self, rows: list[list[int]], length: int):
        self.rows, self.length = rows, length

    def append(self, tokens: torch.Tensor) -> None:
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            row.append(token)
        self.length += 1

    def reorder_cache(self, indices: torch.Tensor) -> None:
        self.rows = [self.rows[index] for index in indices.tolist()]

    def get_seq_length(self) -> int:
        return self.length


def _last_logits(model, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """The logits (B, V) behind each row of tokens, by a plain pass; padding stands at the end."""
    ids = padded(rows, value=rows[0][0]).to(model.device)
    ends = torch.tensor([len(row) - 1 for row in rows], device=model.device)
    last = torch.arange(ids.shape[1], device=model.device) == ends[:, None]
    return chosen_logits(model, {"input_ids": ids, "use_cache": False}, last)


def may_cache(model) -> bool:
    """Whether the model decodes with a cache, in a batch, what it reads in one plain pass."""
    return holds(
        model,
        "cached",
        trial=lambda: trial_ids(model, 5, 2, 7, beyond_window=True),
        fast=partial(_decode_trial, model),
        plain=partial(_read_trial, model),
        otherwise="decoding with a cache gives other scores than reading the whole text, so the "
        "text is read anew at each token, which takes longer.",
    )


def _decode_trial(model, *rows: list[int]) -> torch.Tensor:
    """Two prompts, two samples each, two steps, one row less in the second; its logits (3, V)."""
    *prompts, new = rows
    new, width = torch.tensor(new, device=model.device), len(prompts[0])
    mask = torch.ones(2, width + 2, dtype=torch.long, device=model.device)
    mask[1, : width - len(prompts[1])] = 0
    cache, _ = _read_prompts(model, prompts, 2, 2, prompts[0][0], mask[:, :width])
    mask = mask.repeat_interleave(2, dim=0)
    next_logits(model, cache, new[:4], mask[:, : width + 1])
    kept = torch.tensor([0, 1, 3], device=model.device)
    cache.reorder_cache(kept)
    return next_logits(model, cache, new[4:], mask[kept])


def _read_trial(model, first: list[int], second: list[int], new: list[int]) -> torch.Tensor:
    """The same logits by one plain pass over each text."""
    ends = [[new[0], new[4]], [new[1], new[5]], [new[3], new[6]]]
    texts = [prompt + end for prompt, end in zip((first, first, second), ends, strict=True)]
    ids = [torch.tensor([text], device=model.device) for text in texts]
    return torch.cat([model(input_ids=row, use_cache=False).logits[:, -1] for row in ids])


def next_tokens(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    *,
    name: Callable[[int], str] = "row {}".format,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token for each row: (B, V) logits to ids (B,) and their log-probabilities (B,).

    uniforms: (B,) random numbers in [0, 1). temperature 0 takes the most probable token.
    The log-probabilities are those of the full distribution at the temperature (greedy: at 1),
    which is what a training step computes again; top_p and top_k only limit the choice.
    name: how a row is called in the error.

    Raises ValueError for logits that hold nan or inf, or nothing but -inf: their softmax is nan,
    and whatever were taken of it would look like a sample.
    """
    log_probs = torch.log_softmax(at_temperature(logits.float(), temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = log_probs.argmax(dim=-1)
    else:
        tokens = _sample(_cut(log_probs.exp(), top_p, top_k), uniforms)
    chosen = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
    if chosen.isnan().any():
        raise no_scores(name(int(chosen.isnan().nonzero()[0])))
    return tokens, chosen


def no_scores(where: str) -> ValueError:
    """The error for scores that are nan; where: the row, or the token and its prompt."""
    return ValueError(
        f"The model's scores are no numbers (nan or inf) at {where}, so no token can be sampled: "
        'look for nan in its weights, or load it with dtype="float32" where half precision '
        "overflows."
    )


def _sample(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw one index a row by inverting the cumulative distribution: (B, V), (B,) -> (B,).

    One random number a token is all that is needed, so each row can own its numbers.
    """
    # float64: in float32 the sum over a large vocabulary swallows the rare tokens.
    cumulative = probs.to(widest_float(probs.device)).cumsum(dim=-1)
    target = uniforms.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return tokens.clamp(max=probs.shape[-1] - 1)


def widest_float(device: torch.device) -> torch.dtype:
    """float64, but for Apple's GPUs, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def _cut(probs: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """Set to 0 what top_k and then top_p leave out; (B, V) to (B, V), not renormalised."""
    if 0 < top_k < probs.shape[-1]:
        smallest_kept = probs.topk(top_k, dim=-1).values[:, -1:]
        probs = probs.masked_fill(probs < smallest_kept, 0.0)
    if top_p < 1:
        ordered, index = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # the probability of all that rank higher
        left_out = before >= top_p * ordered.sum(dim=-1, keepdim=True)
        probs = probs.masked_fill(left_out.scatter(-1, index, left_out), 0.0)
    return probs


@contextmanager
def merged_adapters(model) -> Iterator[None]:
    """Inside, a float32 model on the CPU has its LoRA layers added to its weights: W + s B A.

    Two small products a layer cost more than their share when one token is decoded. A few tokens
    are read both ways first: where merging changes the scores, the layers stay as they are.

    Each merged layer gets a weight of its own, so that an embedding which shares the old one stays
    as it is. The old ones come back: taking the sum off again would leave its rounding in them.
    """
    layers = [layer for layer in model.modules() if _may_merge(layer)]
    right = _trial_scores(model) if layers else None
    with ExitStack() as undo:
        for layer in layers:
            undo.callback(_merge(layer))
        if layers and not same_scores(_trial_scores(model), right):
            undo.close()
            warnings.warn(
                f"In {type(model).__name__} merged LoRA layers do not do as they do alone, so "
                "sampling leaves them apart, which is slower.",
                stacklevel=3,
            )
        yield


def _merge(layer: LoraLinear) -> Callable[[], None]:
    """Add the active adapter to the weight of a layer; returns what puts the old one back."""
    base, name = layer.get_base_layer(), layer.active_adapters[0]
    before = base.weight
    merged = before.data + layer.get_delta_weight(name).detach()
    base.weight = nn.Parameter(merged, requires_grad=False)
    layer.merged_adapters.append(name)

    def put_back() -> None:
        base.weight = before
        layer.merged_adapters.clear()

    return put_back


def _trial_scores(model) -> torch.Tensor:
    """Logits (T, V) of a few tokens, in the precision of the weights."""
    ids = torch.tensor(trial_ids(model, 8), device=model.device)
    with evaluation_mode(model), torch.autocast(model.device.type, enabled=False):
        return model(input_ids=ids, use_cache=False).logits[0]


def _may_merge(layer: nn.Module) -> bool:
    """A plain LoRA layer on a plain one that is computed in float32 on the CPU."""
    if not isinstance(layer, LoraLinear) or layer.disable_adapters or layer.merged:
        return False
    base, adapters = layer.get_base_layer(), layer.active_adapters
    is_plain = type(base) is nn.Linear and base.weight.dtype == torch.float32
    on_cpu = base.weight.device.type == "cpu"
    is_one = len(adapters) == 1 and adapters[0] in layer.lora_A
    return is_plain and on_cpu and is_one and is_plain_update(layer, adapters[0])
