"""A key-value cache that holds a prompt once for all of its samples, and attention over it.

With n samples a prompt, the keys and values of the prompt are the same n times; read once, they
turn n small products a layer into one. The idea is Hydragen's (Juravsky et al. 2024, arXiv
2402.05099). It serves plain Qwen models in float32 on the CPU; all others decode as transformers
does.

Notation: P prompts of W tokens (padding included), n samples each, B rows that still grow (P * n
at first), T new tokens, H query heads on K key heads, G = H / K, D the width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer

NAME = "shared_prompts"
PLAIN = ("qwen2", "qwen3")  # causal attention over all tokens, and nothing added to its scores


def may_share_prompts(model, cache: DynamicCache) -> bool:
    """Whether `SharedPromptLayer` can hold what the model keeps of its prompts."""
    config = model.config
    return (
        model.device.type == "cpu"
        and config.model_type in PLAIN
        and config._attn_implementation == "sdpa"
        and all(type(layer) is DynamicLayer for layer in cache.layers)
        and all(layer.keys.dtype == torch.float32 for layer in cache.layers)
    )


class SharedPromptLayer(DynamicLayer):
    """One layer of the cache: a prompt's keys once, and of every sample its own new tokens.

    layer: the cache of the P prompts, keys and values (P, K, W, D). hidden: (P, W), True at the
    padding. steps: the most new tokens of a sample; their room is taken at once, because
    `DynamicLayer` would copy the whole cache at each token.
    """

    def __init__(self, layer: DynamicLayer, hidden: torch.Tensor, n: int, steps: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self.prompt_keys, self.prompt_values, self.n = layer.keys, layer.values, n
        self.bias = torch.zeros(hidden.shape, dtype=self.dtype).masked_fill(hidden, -torch.inf)
        prompts, heads, self.width, size = layer.keys.shape
        self.keys = layer.keys.new_zeros(prompts * n, heads, steps, size)
        self.values = torch.zeros_like(self.keys)
        self.samples = torch.arange(prompts * n)  # which sample a row is: ended rows are dropped
        self.length = 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Add a token to every row; returns the new tokens' keys and values, (B, K, T, D)."""
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.width + self.length

    def reorder_cache(self, indices: torch.Tensor) -> None:
        self.keys, self.values = self.keys[indices], self.values[indices]
        self.samples = self.samples[indices]

    def by_prompt(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, K, G, X) to (P, K, n G, X), with zeros where a sample has ended."""
        prompts, heads = self.prompt_keys.shape[:2]
        every = rows.new_zeros(prompts * self.n, *rows.shape[1:])
        every[self.samples] = rows
        grouped = every.view(prompts, self.n, *rows.shape[1:]).transpose(1, 2)
        return grouped.reshape(prompts, heads, -1, rows.shape[-1])

    def by_row(self, grouped: torch.Tensor) -> torch.Tensor:
        """(P, K, n G, X) to (B, K, G, X): the way back."""
        prompts, heads, _, size = grouped.shape
        every = grouped.view(prompts, heads, self.n, -1, size).transpose(1, 2)
        return every.reshape(prompts * self.n, heads, -1, size)[self.samples]


def attend(module, query, key, value, attention_mask, scaling: float, prompts_of, **kwargs):
    """softmax(scaling q K^T) V over the prompt and the new tokens of each row.

    query: (B, H, 1, D); key, value: the new tokens' (B, K, T, D). Returns (B, 1, H, D).
    """
    layer = prompts_of.layers[module.layer_idx]
    rows, heads, _, size = query.shape
    queries = query.reshape(rows, key.shape[1], -1, size) * scaling  # (B, K, G, D)
    on_prompt = layer.by_prompt(queries) @ layer.prompt_keys.transpose(-1, -2)  # (P, K, n G, W)
    on_prompt = layer.by_row(on_prompt + layer.bias[:, None, None])
    scores = torch.cat([on_prompt, queries @ key.transpose(-1, -2)], dim=-1)  # (B, K, G, W + T)
    shares = scores.softmax(dim=-1).split([layer.width, key.shape[2]], dim=-1)
    attended = layer.by_row(layer.by_prompt(shares[0]) @ layer.prompt_values) + shares[1] @ value
    return attended.reshape(rows, 1, heads, size), None


def _no_mask(*args, **kwargs) -> None:
    """All that a row must not see is in the layer's own bias."""


@contextmanager
def shared_prompt_attention(model) -> Iterator[None]:
    """Inside, the model decodes with `attend`; it needs `prompts_of=cache` in its call."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)
