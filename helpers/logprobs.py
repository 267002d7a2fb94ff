"""Token ids with masks, and the log-probabilities of responses under a model.

Notation: B sequences, T tokens with the prompt, V vocabulary, H hidden width. Inputs are shifted
here, once: `labels[:, t]` is the token after `input_ids[:, t]`, so `logits[:, t]` scores
`labels[:, t]` and every tensor is (B, T - 1).
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from helpers.probes import device_of, holds, text_config, trial_ids
from helpers.reading import chosen_logits, positions_of, read_rows
from helpers.tokens import encode_prompt, encode_response


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
    is what sampling does, which continues the prompt's own tokens. BOS and spaces are as
    `helpers.tokens` says.

    append_eos: the response ends with the tokenizer's EOS, which is part of the response; behind a
        prompt in the tokenizer's chat template with the token that the template writes there. One
        that ends so already stays as it is.
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
    prompt_ids = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    response_ids = [
        encode_response(response, tokenizer, prompt=prompt, append_end=append_eos)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    if max_length is not None:
        prompt_ids = [ids[:max_length] for ids in prompt_ids]
        response_ids = [
            ids[: max_length - len(prompt)]
            for prompt, ids in zip(prompt_ids, response_ids, strict=True)
        ]
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return pad_prompt_and_response(prompt_ids, response_ids, pad)


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
    value_head: nn.Module | None = None,
) -> dict[str, torch.Tensor]:
    """log p(label_t | input_0 ... input_t), and the entropy of that distribution if asked for.

    input_ids, labels, attention_mask, position_ids, response_mask: (B, T). Padding may stand on
    either side: without `position_ids`, positions are counted over the attention mask. Without a
    mask, positions that start again at 0 part sequences that stand end to end in a row.
        A mask (B, 1, T, T) says who may look at whom, for sequences that share a row; it comes with
        their `position_ids`, see `helpers.shared_rows`.
    response_mask: where given, only these positions are projected to the vocabulary, in chunks
        that are computed again for the gradient when they are many; all others are 0.
    temperature: logits are divided by it; give the temperature that the tokens were sampled at,
        or the first importance ratio is not 1.
    value_head: a layer from the hidden states that the output layer reads to one number each.

    Returns {"log_probs": (B, T)} and, with return_entropy, {"entropy": (B, T)} in nats, and with a
    value head {"values": (B, T)}; float32, or float64 for a model in float64. Gradients flow into
    the model through all of them.

    Before the first use of a mask, of positions and of scoring in place of the output layer a few
    tokens are read both ways: a model that reads them otherwise is read plainly, one sequence a
    row, and a warning says so (`helpers.reading`).

    The scoring happens inside the forward of `model` itself, in place of its output layer, so a
    wrapper for several processes (DistributedDataParallel) still sees and reduces the gradients.
    """
    unwrapped = getattr(model, "module", model)  # the model inside DistributedDataParallel
    selected = torch.ones_like(labels, dtype=torch.bool) if response_mask is None else response_mask
    selected = selected.bool()
    if attention_mask is not None and attention_mask.dim() == 2:
        attention_mask = attention_mask.long()
        if position_ids is None:
            position_ids = positions_of(attention_mask)
    reading = read_rows(unwrapped, input_ids, attention_mask, position_ids, selected)
    chosen = reading.unfold(selected)
    targets = reading.unfold(labels)[chosen]  # (K,)
    score = partial(_score, temperature=temperature, with_entropy=return_entropy)
    with _head_inputs(unwrapped, value_head) as states:
        if _may_score_in_place(unwrapped):
            with _scoring_head(unwrapped, chosen, targets, score) as found:
                model(**reading.arguments)
            scores = found[-1]  # (K, 1 or 2): one row a selected position
        else:
            logits = chosen_logits(model, reading.arguments, chosen)
            scores = score(at_least_float32(logits), targets)
    columns = dict(zip(("log_probs", "entropy"), scores.unbind(-1), strict=False))
    if value_head is not None:
        columns["values"] = _values(value_head, states[-1][chosen])
    return {
        name: reading.fold(column.new_zeros(chosen.shape).masked_scatter(chosen, column))
        for name, column in columns.items()
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


def _score(logits: torch.Tensor, targets: torch.Tensor, temperature: float, with_entropy: bool):
    """(K, V) and (K,) to (K, 1 or 2): the log-probability and the entropy of each position."""
    logits = at_temperature(logits, temperature)
    columns = [-cross_entropy(logits, targets, reduction="none")]
    if with_entropy:
        columns.append(entropy(logits))
    return torch.stack(columns, dim=-1)


@contextmanager
def _scoring_head(model, chosen, targets, score: Callable):
    """Inside, the model's output layer returns scores of the chosen positions, not logits.

    Yields the list to which they are appended; what the model makes of them is not used.
    """
    head = model.get_output_embeddings()
    project, scaling = head.forward, _scaling(model)
    found: list[torch.Tensor] = []

    def scored(hidden: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
        return score(scaling(at_least_float32(project(hidden))), some)

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden[chosen]  # (B, T, H) to (K, H)
        size = max(1, _CHUNK_ELEMENTS // head.weight.shape[0])
        if len(hidden) <= size:
            found.append(scored(hidden, targets))
            return found[-1]
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        found.append(torch.cat([checkpoint(scored, h, t, use_reentrant=False) for h, t in chunks]))
        return found[-1]

    head.forward = forward
    try:
        yield found
    finally:
        del head.forward  # the layer's own method shows again


@contextmanager
def _head_inputs(model, value_head: nn.Module | None):
    """Yields the list of the hidden states (B, T, H) that the output layer is given inside."""
    if value_head is None:
        yield []
        return
    seen: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    try:
        yield seen
    finally:
        hook.remove()


def _values(value_head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return value_head(at_least_float32(hidden)).squeeze(-1)


def _scaling(model) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the model does to its logits behind the output layer, as its configuration says.

    cap * tanh(logits / cap) in Gemma 2 and later, logits / logits_scaling in Granite,
    logits * logit_scale in Cohere; nothing in most models.
    """
    config = text_config(model)
    cap = getattr(config, "final_logit_softcapping", None)
    factor = getattr(config, "logit_scale", None) or 1.0
    factor /= getattr(config, "logits_scaling", None) or 1.0

    def scaling(logits: torch.Tensor) -> torch.Tensor:
        logits = logits if factor == 1 else logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return scaling


def _may_score_in_place(model) -> bool:
    """Whether `_scaling` is all that the model does to its logits behind the output layer."""
    return holds(
        model,
        "scaling",
        trial=lambda: (torch.tensor(trial_ids(model, 6), device=device_of(model)),),
        fast=partial(_scaled_trial, model),
        plain=lambda ids: at_least_float32(model(input_ids=ids, use_cache=False).logits[0]),
        otherwise="the logits are changed behind the output layer in a way that the configuration "
        "does not tell, so the model makes them itself, all at once, which takes more memory.",
    )


def _scaled_trial(model, ids: torch.Tensor) -> torch.Tensor:
    """What `_scaling` makes of the logits of the output layer; (T, V)."""
    seen: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda _, given, logits: seen.append(logits)
    )
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        hook.remove()
    return _scaling(model)(at_least_float32(seen[-1][0]))


def at_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """logits / temperature, of which log_softmax is a distribution however small it is."""
    if temperature == 1:  # a tenth of the time at 150,000 tokens, for nothing
        return logits
    if temperature < 1e-5:  # the quotients may be infinite, but not those of what lacks to the best
        logits = logits - logits.amax(dim=-1, keepdim=True)
        temperature = max(temperature, torch.finfo(logits.dtype).tiny)
    return logits / temperature
