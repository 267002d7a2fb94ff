"""One step at a time through a causal language model with a key-value cache.

`helpers.rollout.generate` is built on these: read the prompts once, choose the next tokens, feed
them back. Notation: P prompts, n samples a prompt, B = P * n rows, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers import DynamicCache

from helpers.prompt_cache import SharedPromptLayer, may_share_prompts, shared_prompt_attention
from helpers.quantization import is_plain_update


@contextmanager
def evaluation_mode(model) -> Iterator[None]:
    """No dropout and no gradients inside; the model's own mode comes back, after an error too."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def window_of(model) -> int:
    """The most tokens that a model reads, prompt and completion together."""
    return getattr(model.config, "max_position_embeddings", None) or 2**31


def prefill(model, prompt_ids: Sequence[Sequence[int]], n: int, steps: int, pad_token_id: int):
    """Read each prompt once for its n samples.

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
    if may_share_prompts(model, cache):
        hidden = mask[:, :width] == 0
        cache.layers = [SharedPromptLayer(layer, hidden, n, steps) for layer in cache.layers]
    else:
        cache.batch_repeat_interleave(n)
    return cache, mask.repeat_interleave(n, dim=0), logits.repeat_interleave(n, dim=0)


def next_logits(model, cache, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One step with the cache: the logits (B, V) after the given tokens (B,)."""
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


def next_tokens(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token for each row: (B, V) logits to ids (B,) and their log-probabilities (B,).

    uniforms: (B,) random numbers in [0, 1). temperature 0 takes the most probable token.
    The log-probabilities are those of the full distribution at the temperature (greedy: at 1),
    which is what a training step computes again; top_p and top_k only limit the choice.
    """
    log_probs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = log_probs.argmax(dim=-1)
    else:
        tokens = _sample(_cut(log_probs.exp(), top_p, top_k), uniforms)
    return tokens, log_probs.gather(-1, tokens[:, None]).squeeze(-1)


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

    Two small products a layer cost more than their share when one token is decoded. The weights of
    before come back as they were: taking the sum off again would leave its rounding in them.
    """
    before = []
    for layer in model.modules():
        if _may_merge(layer):
            weight, name = layer.get_base_layer().weight, layer.active_adapters[0]
            before.append((layer, weight, weight.data))
            weight.data = weight.data + layer.get_delta_weight(name).detach()
            layer.merged_adapters.append(name)
    try:
        yield
    finally:
        for layer, weight, values in before:
            weight.data = values
            layer.merged_adapters.clear()


def _may_merge(layer: nn.Module) -> bool:
    """A plain LoRA layer on a plain one that is computed in float32 on the CPU."""
    if not isinstance(layer, LoraLinear) or layer.disable_adapters or layer.merged:
        return False
    base, adapters = layer.get_base_layer(), layer.active_adapters
    is_plain = type(base) is nn.Linear and base.weight.dtype == torch.float32
    on_cpu = base.weight.device.type == "cpu"
    is_one = len(adapters) == 1 and adapters[0] in layer.lora_A
    return is_plain and on_cpu and is_one and is_plain_update(layer, adapters[0])
