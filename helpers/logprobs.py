"""Token ids with masks, and the log-probabilities of responses under a model.

Notation: B sequences, T tokens with the prompt, V vocabulary, H hidden width. Inputs are shifted
here, once: `labels[:, t]` is the token after `input_ids[:, t]`, so `logits[:, t]` scores
`labels[:, t]` and every tensor is (B, T - 1).
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from helpers.shared_rows import mask_for


def tokenize_prompt_and_response(
    prompts: Sequence[str],
    responses: Sequence[str],
    tokenizer,
    *,
    append_eos: bool = False,
    max_length: int | None = None,
) -> dict[str, torch.Tensor]:
    """Tokenise prompts and responses apart and join the ids; see `pad_prompt_and_response`.

    A tokenizer may merge the end of a prompt with the start of its response, and the number of
    prompt tokens then no longer says where the response starts. Tokenised apart, it does; and it
    is what sampling does, which continues the prompt's own tokens.

    append_eos: the response ends with the tokenizer's EOS, which is part of the response.
    max_length: longer sequences lose their end.

    Example:
        >>> batch = tokenize_prompt_and_response(["2+2="], ["4"], tokenizer, append_eos=True)
        >>> batch["response_mask"]  # "2", "+", "2" do not predict the response; "=" and "4" do
        tensor([[False, False, False,  True,  True]])
    """
    if len(prompts) != len(responses):
        raise ValueError(
            f"prompts and responses must be as many, but they are {len(prompts)} "
            f"and {len(responses)}."
        )
    prompt_ids = [_encode(text, tokenizer) for text in prompts]
    end = [tokenizer.eos_token_id] if append_eos else []
    response_ids = [_encode(text, tokenizer) + end for text in responses]
    if max_length is not None:
        prompt_ids = [ids[:max_length] for ids in prompt_ids]
        response_ids = [
            ids[: max_length - len(prompt)]
            for prompt, ids in zip(prompt_ids, response_ids, strict=True)
        ]
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pad_prompt_and_response(prompt_ids, response_ids, pad)


def _encode(text: str, tokenizer) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def pad_prompt_and_response(
    prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]], pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Join ids, pad on the right and shift: four tensors of shape (B, T - 1).

    input_ids: all tokens but the last.  labels: all tokens but the first.
    response_mask: True where `labels` holds a response token.
    attention_mask: True where `input_ids` holds a token and not padding.

    The masks come from the lengths and never from the ids, because many models pad with their
    EOS: a mask by id would hide the EOS that the model has to learn.

    Example:
        >>> batch = pad_prompt_and_response([[5, 6], [7]], [[8, 0], [9]], pad_token_id=0)
        >>> batch["labels"]
        tensor([[6, 8, 0],
                [9, 0, 0]])
        >>> batch["response_mask"]
        tensor([[False,  True,  True],
                [ True, False, False]])
    """
    rows = [[*p, *r] for p, r in zip(prompt_ids, response_ids, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows])  # (B, T)
    prompt_lengths = torch.tensor([len(ids) for ids in prompt_ids])[:, None]
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    place = torch.arange(1, longest)  # where each label stands in its row
    return {
        "input_ids": ids[:, :-1],
        "labels": ids[:, 1:],
        "response_mask": (place >= prompt_lengths) & (place < lengths),
        "attention_mask": place - 1 < lengths,
    }


def response_log_probs(
    model,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    *,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    response_mask: torch.Tensor | None = None,
    temperature: float = 1.0,
    return_entropy: bool = False,
) -> dict[str, torch.Tensor]:
    """log p(label_t | input_0 ... input_t), and the entropy of that distribution if asked for.

    input_ids, labels, attention_mask, position_ids, response_mask: (B, T). Padding may stand on
    either side: without `position_ids`, positions are counted over the attention mask.
        A mask (B, 1, T, T) says who may look at whom, for sequences that share a row; it comes with
        their `position_ids`, see `helpers.shared_rows.mask_for`.
    response_mask: where given, only these positions are projected to the vocabulary, in chunks
        that are computed again for the gradient when they are many; all others are 0.
    temperature: logits are divided by it; give the temperature that the tokens were sampled at,
        or the first importance ratio is not 1.

    Returns {"log_probs": (B, T)} and, with return_entropy, {"entropy": (B, T)} in nats; float32,
    or float64 for a model in float64. Gradients flow into the model through both.

    The scoring happens inside the forward of `model` itself, in place of its output layer, so a
    wrapper for several processes (DistributedDataParallel) still sees and reduces the gradients.

    Raises ValueError for a model that changes its logits behind that layer in a way that its
    configuration does not tell (see `_scaling`), and what `mask_for` raises.
    """
    if attention_mask is not None and attention_mask.dim() == 2:
        attention_mask = attention_mask.long()
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    selected = torch.ones_like(labels, dtype=torch.bool) if response_mask is None else response_mask
    selected = selected.bool()
    unwrapped = getattr(model, "module", model)  # the model inside DistributedDataParallel
    if attention_mask is not None and attention_mask.dim() == 4:
        attention_mask = mask_for(unwrapped, attention_mask, position_ids)
    with _scoring_head(unwrapped, labels, selected, temperature, return_entropy) as found:
        returned = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).logits
    scores = found[-1]  # (K, 1 or 2): one row a selected position
    _check_scaling(unwrapped, scores.detach(), returned.detach())
    names = ("log_probs", "entropy")[: scores.shape[-1]]
    empty = scores.new_zeros(labels.shape)
    return {
        name: empty.masked_scatter(selected, column)
        for name, column in zip(names, scores.unbind(-1), strict=True)
    }


def sequence_log_probs(log_probs: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """log p(response | prompt): the sum over the response tokens, and over no others.

        log p(y | x) = sum_t log p(y_t | x, y_before_t)

    log_probs, response_mask: (B, T), as `response_log_probs` and `tokenize_prompt_and_response`
        give them. Returns (B,); a row without response tokens gives 0.

    Example:
        >>> sequence_log_probs(torch.tensor([[-9.0, -1.0, -3.0]]), torch.tensor([[0, 1, 1]]))
        tensor([-4.])
    """
    return log_probs.masked_fill(~response_mask.bool(), 0.0).sum(dim=-1)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """H = -sum_v p_v log p_v in nats, with p the softmax of the last axis.

    (..., V) to (...), at least float32. Two equal logits give log 2 = 0.6931, also beside others of
    -inf: what cannot happen adds nothing.
    """
    log_probs = torch.log_softmax(at_least_float32(logits), dim=-1)
    possible = log_probs.masked_fill(log_probs == -torch.inf, 0.0)  # 0 * inf is nan
    return -(log_probs.exp() * possible).sum(dim=-1)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision becomes float32; float64, in which gradients are checked, stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


# Logits held at once, about 40 MB in float32: 64 tokens of a vocabulary of 150,000.
_CHUNK_ELEMENTS = 10_000_000


@contextmanager
def _scoring_head(model, labels, selected, temperature: float, with_entropy: bool):
    """Inside, the model's output layer returns scores of the selected positions, not logits.

    Yields the list to which they are appended; what the model makes of them is not used.
    """
    head = model.get_output_embeddings()
    project, scaling = head.forward, _scaling(model)
    targets = labels[selected]  # (K,)
    found: list[torch.Tensor] = []

    def score(hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        logits = scaling(at_least_float32(project(hidden)))
        if temperature != 1:  # a tenth of the time at 150,000 tokens, for nothing
            logits = logits / temperature
        columns = [-cross_entropy(logits, chosen, reduction="none")]
        if with_entropy:
            columns.append(entropy(logits))
        return torch.stack(columns, dim=-1)

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden[selected]  # (B, T, H) to (K, H)
        size = max(1, _CHUNK_ELEMENTS // head.weight.shape[0])
        if len(hidden) <= size:
            found.append(score(hidden, targets))
            return found[-1]
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        found.append(torch.cat([checkpoint(score, h, t, use_reentrant=False) for h, t in chunks]))
        return found[-1]

    head.forward = forward
    try:
        yield found
    finally:
        del head.forward  # the layer's own method shows again


def _scaling(model) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the model does to its logits behind the output layer, as its configuration says.

    cap * tanh(logits / cap) in Gemma 2 and later, logits / logits_scaling in Granite,
    logits * logit_scale in Cohere; nothing in most models.
    """
    config = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    cap = getattr(config, "final_logit_softcapping", None)
    factor = getattr(config, "logit_scale", None) or 1.0
    factor /= getattr(config, "logits_scaling", None) or 1.0

    def scaling(logits: torch.Tensor) -> torch.Tensor:
        logits = logits if factor == 1 else logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return scaling


def _check_scaling(model, scores: torch.Tensor, returned: torch.Tensor) -> None:
    """Raises ValueError where the model did to the scores what `_scaling` does not know."""
    wanted = _scaling(model)(scores)
    is_known = returned.shape == wanted.shape and torch.allclose(
        returned.to(wanted.dtype), wanted, rtol=1e-3, atol=1e-6, equal_nan=True
    )
    if not is_known:
        raise ValueError(
            f"{type(model).__name__} changes its logits behind the output layer in a way that is "
            "not known here: its log-probabilities would be wrong."
        )
