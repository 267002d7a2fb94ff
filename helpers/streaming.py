"""One completion, token by token: what a demo shows while it is being written."""

from collections.abc import Iterator

import torch

from helpers.decoding import next_logits, next_tokens, prefill, widest_float
from helpers.modes import evaluation_mode
from helpers.rollout import (
    Completion,
    Row,
    SamplingSettings,
    StopRules,
    tokenize_prompts,
    uniforms_of,
    window_of,
)


def stream(
    model, tokenizer, prompt: str, *, sampling: SamplingSettings
) -> Iterator[tuple[str, Completion]]:
    """(text so far, completion) after each token; the last one is `generate`'s for this prompt.

    Dropout and gradients are off while a token is computed, and as they were in between: several
    streams may be read in turn. A character of which some bytes are still missing is not shown.

    Raises ValueError for an empty prompt, or one that fills the window.

    Example:
        >>> for text, completion in stream(model, tokenizer, "2 + 2 =", sampling=greedy):
        ...     print(repr(text), completion.finish_reason)
    """
    (ids,) = tokenize_prompts(tokenizer, [prompt], window_of(model))
    rules = StopRules(model, tokenizer, sampling)
    budget = min(sampling.max_new_tokens, window_of(model) - len(ids))
    row = Row(Completion(ids), budget, uniforms_of(sampling, 0, 0), follows_text=True)
    with evaluation_mode(model):
        cache, mask, logits = prefill(model, [ids], 1, budget, rules.pad_token_id)
    kind = widest_float(logits.device)
    for uniform in row.uniforms[:budget]:
        draw = torch.tensor([uniform]).to(kind).to(logits.device)
        token, log_prob = next_tokens(
            logits, draw, sampling.temperature, sampling.top_p, sampling.top_k,
            name=lambda _: rules.name(row),
        )
        rules.append(row, token.item(), log_prob.item())
        text = row.completion.text if row.done else rules.decode(row.completion.token_ids)
        yield text.rstrip("\ufffd"), row.completion
        if row.done:
            return
        with evaluation_mode(model):
            logits = next_logits(model, cache, token, mask[:, : cache.get_seq_length() + 1])
