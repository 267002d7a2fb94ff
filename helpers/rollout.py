"""Sample completions from a causal language model.

One call, `generate`, serves evaluation and training. It keeps the token ids and their
log-probabilities, so a policy-gradient loss never has to tokenise a completion again, and its
settings are complete: nothing is taken from the checkpoint's `generation_config` but the ids that
end a text. (The defaults of `model.generate` keep `top_k = 50`, which changes the distribution
that the rollouts come from without a word.)

Notation: P prompts, n samples a prompt, B rows in a batch, T time steps, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from tqdm.auto import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FinishReason = Literal["eos", "stop_string", "length"]


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn. Rollouts for training need `top_p = 1` and `top_k = 0`.

    temperature: logits are divided by it; 0 means greedy.
    top_p: keep the smallest set of tokens that holds this probability; 1 keeps all.
    top_k: keep the k most probable tokens; 0 keeps all.
    max_new_tokens: at most so many tokens a completion, its EOS included.
    stop_strings: a completion ends when its text contains one of them; the string is kept.
    stop_token_ids: ids that end a completion as EOS does, added to those of the checkpoint
        (a base model prompted with a chat template must also stop on `<|im_end|>`).
    seed: a completion depends on the weights, its prompt, the seed, the prompt's place in the
        list and the sample's number; not on the batch size nor on the other prompts (up to
        rounding in the forward pass).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self):
        strings = (self.stop_strings,) if isinstance(self.stop_strings, str) else self.stop_strings
        object.__setattr__(self, "stop_strings", tuple(strings))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        _require(_is_number(self.temperature) and 0 <= self.temperature < math.inf,
                 "temperature", "a number, 0 (greedy) or more", self.temperature)
        _require(_is_number(self.top_p) and 0 < self.top_p <= 1,
                 "top_p", "above 0 and at most 1 (1: off)", self.top_p)
        _require(_is_integer(self.top_k) and self.top_k >= 0,
                 "top_k", "a whole number, 0 (off) or more", self.top_k)
        _require(_is_integer(self.max_new_tokens) and self.max_new_tokens >= 1,
                 "max_new_tokens", "a whole number, 1 or more", self.max_new_tokens)
        _require(all(isinstance(s, str) and s for s in self.stop_strings),
                 "stop_strings", "texts that are not empty", self.stop_strings)
        _require(all(_is_integer(i) and i >= 0 for i in self.stop_token_ids),
                 "stop_token_ids", "token ids, 0 or more", self.stop_token_ids)
        _require(_is_integer(self.seed) and self.seed >= 0,
                 "seed", "a whole number, 0 or more", self.seed)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, field_name: str, wanted: str, got) -> None:
    if not condition:
        raise ValueError(f"sampling setting {field_name} must be {wanted}, but it is {got!r}.")


@dataclass
class Completion:
    """One sampled completion.

    prompt_token_ids: the prompt, without padding.
    token_ids: what was sampled, with the EOS that ended it.
    log_probs: one a token, of the full distribution at the sampling temperature (greedy: at 1),
        before top_p and top_k cut it.
    text: the decoded tokens without the final EOS; where a stop string ended it, the text ends
        with that string, even if the last token goes on after it.
    finish_reason: "eos", "stop_string" or "length".
    """

    prompt_token_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "length"


def generate(
    model,
    tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    n: int = 1,
    sampling: SamplingSettings,
    engine: str = "auto",
    batch_size: int = 128,
    progress: bool = False,
) -> list[Completion]:
    """Sample n completions of each prompt; a flat list, prompt by prompt.

    prompts: texts (tokenised as they are, no special token added) or lists of token ids.
    batch_size: rows decoded together; the n samples of a prompt stay together and share one
        pass over the prompt.
    A completion also ends where the model's window ends (finish_reason "length").

    Raises ValueError for an unknown engine, an empty prompt, or a prompt that fills the window.

    Example:
        >>> two = generate(model, tokenizer, ["1 + 1 ="], n=2, sampling=SamplingSettings(seed=3))
        >>> [c.finish_reason for c in two]
        ['eos', 'length']
    """
    if engine not in ("auto", "transformers"):
        raise ValueError(f'engine must be "auto" or "transformers", but it is {engine!r}.')
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be 1 or more, but they are {n} and {batch_size}.")
    prompt_ids = _tokenize_prompts(tokenizer, prompts, _window(model))
    rules = _StopRules(model, tokenizer, sampling)
    # Longest first: prompts of like length share a batch (little padding), and a batch that does
    # not fit into memory fails at the start of a long job, not at its end.
    order = sorted(range(len(prompt_ids)), key=lambda i: -len(prompt_ids[i]))
    per_batch = max(1, batch_size // n)
    budgets = [min(sampling.max_new_tokens, _window(model) - len(ids)) for ids in prompt_ids]
    groups: dict[int, list[Completion]] = {}
    bar = tqdm(total=len(order) * n, disable=not progress, desc="sampling", unit="completion")
    with bar, _evaluation_mode(model), _shared_key_heads(model):
        for start in range(0, len(order), per_batch):
            chosen = order[start : start + per_batch]
            rows = [
                _Row(Completion(prompt_ids[i]), budgets[i], _uniforms(sampling, i, j))
                for i in chosen
                for j in range(n)
            ]
            _decode_batch(model, rows, n, sampling, rules, bar)
            for k, i in enumerate(chosen):
                groups[i] = [row.completion for row in rows[k * n : (k + 1) * n]]
    return [completion for i in range(len(prompt_ids)) for completion in groups[i]]


@dataclass
class _Row:
    """A completion that is being written, with the random numbers it will use."""

    completion: Completion
    budget: int  # tokens it may still hold in all: max_new_tokens, or what the window leaves
    uniforms: np.ndarray  # (T,)
    done: bool = False


def _decode_batch(model, rows: list[_Row], n: int, sampling: SamplingSettings, rules, bar) -> None:
    """Write the completions of one batch; the rows are grouped by prompt, n in a row."""
    prompt_ids = [row.completion.prompt_token_ids for row in rows[::n]]
    steps = max(row.budget for row in rows)
    cache, mask, logits = _prefill(model, prompt_ids, n, steps, rules.pad_token_id)
    uniforms = torch.from_numpy(np.stack([row.uniforms for row in rows])).to(logits.device)
    for step in range(steps):
        tokens, log_probs = _next_tokens(logits, uniforms[:, step], sampling)
        for row, token, log_prob in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
            if not row.done:
                rules.append(row, token, log_prob)
                bar.update(int(row.done))
        unfinished = [index for index, row in enumerate(rows) if not row.done]
        if not unfinished:
            return
        if len(unfinished) <= _DROP_BELOW * len(rows):
            kept = torch.tensor(unfinished, device=logits.device)
            cache.batch_select_indices(kept)
            mask, uniforms, tokens = mask[kept], uniforms[kept], tokens[kept]
            rows = [rows[index] for index in unfinished]
        seen = cache.get_seq_length() + 1
        logits = _next_logits(model, cache, tokens, mask[:, :seen])


# Dropping rows copies the cache once, so ended rows are dropped an eighth of the batch at a time.
_DROP_BELOW = 7 / 8


def _prefill(model, prompt_ids, n: int, steps: int, pad_token_id: int):
    """Read each prompt once; give every sample its copy of the cache.

    Returns the cache of B = P * n rows, the mask (B, longest prompt + steps) with zeros on the
    left padding and ones elsewhere, and the logits (B, V) of the first new token.
    """
    width = max(map(len, prompt_ids))
    padded = [[pad_token_id] * (width - len(ids)) + list(ids) for ids in prompt_ids]
    input_ids = torch.tensor(padded, device=model.device)  # (P, width)
    lengths = torch.tensor([len(ids) for ids in prompt_ids], device=model.device)
    mask = torch.arange(width + steps, device=model.device) >= (width - lengths)[:, None]
    mask = mask.long()
    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=input_ids,
        attention_mask=mask[:, :width],
        position_ids=(mask[:, :width].cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    cache.batch_repeat_interleave(n)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = _RoomyLayer(layer, steps)
    return cache, mask.repeat_interleave(n, dim=0), logits.repeat_interleave(n, dim=0)


def _next_logits(model, cache, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One step with the cache: the logits (B, V) after the given tokens (B,)."""
    return model(
        input_ids=tokens[:, None],
        attention_mask=mask,
        # Counted without the padding, so that a prompt reads the same alone and in a batch.
        position_ids=mask.sum(dim=-1, keepdim=True) - 1,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]


class _RoomyLayer(DynamicLayer):
    """A cache layer with room for every step, written in place.

    `DynamicLayer` concatenates, which copies the whole cache at each token.
    """

    def __init__(self, layer: DynamicLayer, steps: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self.length = layer.keys.shape[-2]
        self.keys = self._with_room(layer.keys, steps)
        self.values = self._with_room(layer.values, steps)

    @staticmethod
    def _with_room(states: torch.Tensor, steps: int) -> torch.Tensor:
        batch, heads, length, width = states.shape
        room = states.new_zeros(batch, heads, length + steps, width)
        room[:, :, :length] = states
        return room

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length


def _next_tokens(logits: torch.Tensor, uniforms: torch.Tensor, sampling: SamplingSettings):
    """Choose a token for each row: (B, V) logits to ids (B,) and their log-probabilities (B,)."""
    scale = sampling.temperature or 1.0
    log_probs = torch.log_softmax(logits.float() / scale, dim=-1)
    if sampling.temperature == 0:
        tokens = log_probs.argmax(dim=-1)
    else:
        tokens = _sample(_cut(log_probs.exp(), sampling), uniforms)
    return tokens, log_probs.gather(-1, tokens[:, None]).squeeze(-1)


def _sample(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw one index a row by inverting the cumulative distribution: (B, V), (B,) -> (B,).

    One random number a token is all that is needed, so each row can own its numbers.
    """
    # float64: in float32 the sum over a large vocabulary swallows the rare tokens.
    cumulative = probs.to(_widest_float(probs.device)).cumsum(dim=-1)
    target = uniforms.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return tokens.clamp(max=probs.shape[-1] - 1)


def _widest_float(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _cut(probs: torch.Tensor, sampling: SamplingSettings) -> torch.Tensor:
    """Set to 0 what top_k and then top_p leave out; (B, V) to (B, V), not renormalised."""
    if 0 < sampling.top_k < probs.shape[-1]:
        smallest_kept = probs.topk(sampling.top_k, dim=-1).values[:, -1:]
        probs = probs.masked_fill(probs < smallest_kept, 0.0)
    if sampling.top_p < 1:
        ordered, index = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # the probability of all that rank higher
        left_out = before >= sampling.top_p * ordered.sum(dim=-1, keepdim=True)
        probs = probs.masked_fill(left_out.scatter(-1, index, left_out), 0.0)
    return probs


def _uniforms(sampling: SamplingSettings, prompt_index: int, sample_index: int) -> np.ndarray:
    """The random numbers of one completion, one a token, in [0, 1)."""
    generator = np.random.default_rng((sampling.seed, prompt_index, sample_index))
    return generator.random(sampling.max_new_tokens)


class _StopRules:
    """Says when a completion has ended, and why."""

    def __init__(self, model, tokenizer, sampling: SamplingSettings):
        self.tokenizer = tokenizer
        self.stop_strings = sampling.stop_strings
        self.eos_token_ids = _eos_token_ids(model, tokenizer) | set(sampling.stop_token_ids)
        self.pad_token_id = tokenizer.pad_token_id or 0  # masked, so any id will do
        self.last_characters = {string[-1] for string in self.stop_strings}
        self.pieces: dict[int, str] = {}

    def append(self, row: _Row, token: int, log_prob: float) -> None:
        """Add a token to the row; where that ends it, write its text and its finish reason."""
        completion = row.completion
        completion.token_ids.append(token)
        completion.log_probs.append(log_prob)
        if token in self.eos_token_ids:
            self._finish(row, "eos", self._decode(completion.token_ids[:-1]))
        elif self._may_end_a_stop_string(token) and self._first_stop(completion) is not None:
            self._finish(row, "stop_string", self._first_stop(completion))
        elif len(completion.token_ids) >= row.budget:
            self._finish(row, "length", self._decode(completion.token_ids))

    def _finish(self, row: _Row, reason: FinishReason, text: str) -> None:
        row.completion.finish_reason, row.completion.text, row.done = reason, text, True

    def _may_end_a_stop_string(self, token: int) -> bool:
        """False for nearly all tokens, which spares decoding the text at each step."""
        if token not in self.pieces:
            self.pieces[token] = self._decode([token])
        piece = self.pieces[token]
        # A token may hold only some bytes of a character; alone it then decodes to U+FFFD.
        return "\ufffd" in piece or any(last in piece for last in self.last_characters)

    def _first_stop(self, completion: Completion) -> str | None:
        """The text up to the end of the stop string that comes first, or None."""
        text = self._decode(completion.token_ids)
        ends = [text.find(s) + len(s) for s in self.stop_strings if s in text]
        return text[: min(ends)] if ends else None

    def _decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(
            token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


def _eos_token_ids(model, tokenizer) -> set[int]:
    """The ids that end a text, by the checkpoint's generation_config and by the tokenizer."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    return (ids | {tokenizer.eos_token_id}) - {None}


def _window(model) -> int:
    return getattr(model.config, "max_position_embeddings", None) or 2**31


def _tokenize_prompts(tokenizer, prompts, window: int) -> list[list[int]]:
    if isinstance(prompts, str):
        raise ValueError("prompts must be a list of texts, but it is one text.")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    rows = [next(encoded) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    for index, ids in enumerate(rows):
        if not ids:
            raise ValueError(f"prompt {index} is empty: it needs one token or more.")
        if len(ids) >= window:
            raise ValueError(f"prompt {index} has {len(ids)} tokens, but the model reads {window} "
                             "at most, those of the completion included: shorten the prompt.")
    return rows


@contextmanager
def _evaluation_mode(model) -> Iterator[None]:
    """No dropout and no gradients inside; the model's own mode comes back, after an error too."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _shared_key_heads(model) -> Iterator[None]:
    """Inside, decoding on the CPU uses `_decode_attention` where the model would use "sdpa"."""
    config, name = model.config, "sdpa_decode"
    if model.device.type != "cpu" or config._attn_implementation != "sdpa":
        yield
        return
    AttentionInterface.register(name, _decode_attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _decode_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention of one new token in which query heads share key heads without copies of them.

    transformers repeats the keys and values of the whole cache for every query head as soon as
    there is a padding mask; on the CPU that copying costs more than the attention.
    """
    if query.shape[2] > 1 or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
    )
    return attended.transpose(1, 2).contiguous(), None
