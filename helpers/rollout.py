"""Sample completions from a causal language model.

One call, `generate`, serves evaluation and training. It keeps the token ids and their
log-probabilities, so a policy-gradient loss never has to tokenise a completion again, and its
settings are complete: nothing is taken from the checkpoint's `generation_config` but the ids that
end a text. (The defaults of `model.generate` keep `top_k = 50`, which changes the distribution
that the rollouts come from without a word.)

Notation: P prompts, n samples a prompt, B rows in a batch, T time steps, V vocabulary.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from helpers.decoding import (
    merged_adapters,
    next_logits,
    next_tokens,
    no_scores,
    prefill,
    widest_float,
    window_of,
)
from helpers.loading import embedding_rows
from helpers.modes import evaluation_mode
from helpers.rewards import token_f1
from helpers.tokens import encode_prompt, response_decoder, stop_ids, turn_ends

FinishReason = Literal["eos", "stop_string", "length"]
ENGINES = ("auto", "transformers", "vllm")


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn. Rollouts for training need `top_p = 1` and `top_k = 0`.

    temperature: logits are divided by it; 0 means greedy.
    top_p: keep the smallest set of tokens that holds this probability; 1 keeps all.
    top_k: keep the k most probable tokens; 0 keeps all.
    max_new_tokens: at most so many tokens a completion, its EOS included.
    stop_strings: a completion ends when its text contains one of them; the string is kept.
    stop_token_ids: ids that end a completion as EOS does, added to those of the checkpoint. Behind
        a prompt in the tokenizer's chat template, what the template writes behind an answer
        (`<|im_end|>`) ends a completion too, also of a base model.
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
        with that string, even if the last token goes on after it. Behind a prompt that was given
        as a text it is what follows that text, its leading space kept; behind ids it is what the
        tokenizer's own `decode` says (Llama's takes a leading space off).
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
    first: int | Sequence[int] = 0,
    progress: bool = False,
) -> list[Completion]:
    """Sample n completions of each prompt; a flat list, prompt by prompt.

    prompts: texts (tokenised by `helpers.tokens.encode_prompt`) or lists of token ids.
    engine: "auto" is "transformers", the model itself; "vllm" is a copy of the model in vLLM,
        see `helpers.vllm_engine`. The same seed gives other samples there.
    batch_size: rows decoded together; the n samples of a prompt stay together and share one
        pass over the prompt.
    first: the place of the first prompt, for a part of a list, or the places of all, for a
        selection: these then hold what the whole list would.
    A completion also ends where the model's window ends (finish_reason "length").

    Raises ValueError for an unknown engine, one that is not installed, an empty prompt, or a
    prompt that fills the window.

    Example:
        >>> two = generate(model, tokenizer, ["1 + 1 ="], n=2, sampling=SamplingSettings(seed=3))
        >>> [c.finish_reason for c in two]
        ['eos', 'length']
    """
    check_engine(engine)
    if n < 1 or batch_size < 1:
        raise ValueError(f"n and batch_size must be 1 or more, but they are {n} and {batch_size}.")
    if engine == "vllm":
        from helpers.vllm_engine import shared_engine  # loads vLLM: only when asked for

        sampler = shared_engine(model, tokenizer)
        sampler.update(model)
        return sampler.sample(prompts, n, sampling, first=first)
    prompt_ids = tokenize_prompts(tokenizer, prompts, window_of(model))
    rules, numbers = StopRules(model, tokenizer, sampling), numbers_of(first, len(prompt_ids))
    # Longest first: prompts of like length share a batch (little padding), and a batch that does
    # not fit into memory fails at the start of a long job, not at its end.
    order = sorted(range(len(prompt_ids)), key=lambda i: -len(prompt_ids[i]))
    per_batch = max(1, batch_size // n)
    budgets = [min(sampling.max_new_tokens, window_of(model) - len(ids)) for ids in prompt_ids]
    groups: dict[int, list[Completion]] = {}
    bar = tqdm(total=len(order) * n, disable=not progress, desc="sampling", unit="completion")
    with bar, evaluation_mode(model), merged_adapters(model):
        for start in range(0, len(order), per_batch):
            chosen = order[start : start + per_batch]
            rows = [
                Row(
                    Completion(prompt_ids[i]),
                    budgets[i],
                    uniforms_of(sampling, numbers[i], j),
                    follows_text=isinstance(prompts[i], str),
                )
                for i in chosen
                for j in range(n)
            ]
            _decode_batch(model, rows, n, sampling, rules, bar)
            for k, i in enumerate(chosen):
                groups[i] = [row.completion for row in rows[k * n : (k + 1) * n]]
    return [completion for i in range(len(prompt_ids)) for completion in groups[i]]


def check_engine(engine: str) -> None:
    """Raises ValueError for an engine that is not known or not installed."""
    if engine not in ENGINES:
        names = ", ".join(f'"{name}"' for name in ENGINES)
        raise ValueError(f"engine must be one of {names}, but it is {engine!r}.")
    if engine == "vllm" and not vllm_is_installed():
        raise ValueError(
            'engine="vllm" needs vLLM, which is not installed here: install the extra "gpu" (Linux '
            'on x86-64), or take engine="transformers".'
        )


def vllm_is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


@dataclass
class Row:
    """A completion that is being written, with the random numbers it will use."""

    completion: Completion
    budget: int  # tokens it may still hold in all: max_new_tokens, or what the window leaves
    uniforms: np.ndarray | None = None  # (T,)
    done: bool = False
    ends: set[int] | None = None  # the ids that end it, once they are known
    follows_text: bool = False  # whether its prompt was given as a text, which its text goes on


def _decode_batch(model, rows: list[Row], n: int, sampling: SamplingSettings, rules, bar) -> None:
    """Write the completions of one batch; the rows are grouped by prompt, n in a row."""
    prompt_ids = [row.completion.prompt_token_ids for row in rows[::n]]
    steps = max(row.budget for row in rows)
    cache, mask, logits = prefill(model, prompt_ids, n, steps, rules.pad_token_id)
    uniforms = torch.from_numpy(np.stack([row.uniforms for row in rows]))  # (B, T)
    uniforms = uniforms.to(widest_float(logits.device)).to(logits.device)
    for step in range(steps):
        tokens, log_probs = next_tokens(
            logits, uniforms[:, step], sampling.temperature, sampling.top_p, sampling.top_k,
            name=lambda place, rows=rows: rules.name(rows[place]),
        )
        for row, token, log_prob in zip(rows, tokens.tolist(), log_probs.tolist(), strict=True):
            if not row.done:
                rules.append(row, token, log_prob)
                bar.update(int(row.done))
        unfinished = [index for index, row in enumerate(rows) if not row.done]
        if not unfinished:
            return
        if len(unfinished) <= _DROP_BELOW * len(rows):
            kept = torch.tensor(unfinished, device=logits.device)
            cache.reorder_cache(kept)
            mask, uniforms, tokens = mask[kept], uniforms[kept], tokens[kept]
            rows = [rows[index] for index in unfinished]
        seen = cache.get_seq_length() + 1
        logits = next_logits(model, cache, tokens, mask[:, :seen])


# Dropping rows copies the cache once, so ended rows are dropped an eighth of the batch at a time.
_DROP_BELOW = 7 / 8


def numbers_of(first: int | Sequence[int], count: int) -> Sequence[int]:
    """The numbers of so many prompts, of which the first, or all, are given."""
    return range(first, first + count) if isinstance(first, int) else first


def uniforms_of(sampling: SamplingSettings, prompt_index: int, sample_index: int) -> np.ndarray:
    """The random numbers of one completion, one a token, in [0, 1)."""
    generator = np.random.default_rng((sampling.seed, prompt_index, sample_index))
    return generator.random(sampling.max_new_tokens)


class StopRules:
    """Says when a completion has ended, and why."""

    def __init__(self, model, tokenizer, sampling: SamplingSettings):
        self.tokenizer = tokenizer
        self.stop_strings = sampling.stop_strings
        self.eos_token_ids = stop_ids(model, tokenizer) | set(sampling.stop_token_ids)
        self.pad_token_id = tokenizer.pad_token_id or 0  # masked, so any id that is read will do
        if self.pad_token_id >= embedding_rows(model):
            self.pad_token_id = 0
        self.last_characters = {string[-1] for string in self.stop_strings}
        self.pieces: dict[int, str] = {}
        self.decode = response_decoder(tokenizer)

    def append(self, row: Row, token: int, log_prob: float) -> None:
        """Add a token to the row; where that ends it, write its text and its finish reason.

        Raises ValueError for a log-probability that is nan, whichever engine gave it.
        """
        if math.isnan(log_prob):
            raise no_scores(self.name(row))
        completion = row.completion
        completion.token_ids.append(token)
        completion.log_probs.append(log_prob)
        if token in self.ends_of(row):
            self._finish(row, "eos", self.decode(completion.token_ids[:-1]))
        elif self._may_end_a_stop_string(token) and self._first_stop(completion) is not None:
            self._finish(row, "stop_string", self._first_stop(completion))
        elif len(completion.token_ids) >= row.budget:
            self._finish(row, "length", self.decode(completion.token_ids))

    def name(self, row: Row) -> str:
        """The next token of a row and its prompt, for an error."""
        prompt = self.tokenizer.decode(row.completion.prompt_token_ids)
        shown = prompt if len(prompt) <= 60 else f"... {prompt[-60:]}"
        return f"token {len(row.completion.token_ids) + 1} of the response to {shown!r}"

    def ends_of(self, row: Row) -> set[int]:
        """The ids that end this row: behind a chat prompt its template's, too."""
        if row.ends is None:
            row.ends = self.eos_token_ids | turn_ends(
                row.completion.prompt_token_ids, self.tokenizer
            )
        return row.ends

    def _finish(self, row: Row, reason: FinishReason, text: str) -> None:
        if text.startswith(" ") and not row.follows_text:
            # Llama's and its like's own decoding takes the space off the first word.
            text = text[self.loses_space(row.completion.token_ids) :]
        row.completion.finish_reason, row.completion.text, row.done = reason, text, True

    def loses_space(self, token_ids: list[int]) -> bool:
        return not self.tokenizer.decode(token_ids, skip_special_tokens=False).startswith(" ")

    def _may_end_a_stop_string(self, token: int) -> bool:
        """False for nearly all tokens, which spares decoding the text at each step."""
        if not self.stop_strings:
            return False
        if token not in self.pieces:
            self.pieces[token] = self.decode([token])
        piece = self.pieces[token]
        # A token may hold only some bytes of a character; alone it then decodes to U+FFFD.
        return "\ufffd" in piece or any(last in piece for last in self.last_characters)

    def _first_stop(self, completion: Completion) -> str | None:
        """The text up to the end of the stop string that comes first, or None."""
        text = self.decode(completion.token_ids)
        ends = [text.find(s) + len(s) for s in self.stop_strings if s in text]
        return text[: min(ends)] if ends else None


def tokenize_prompts(tokenizer, prompts, window: int) -> list[list[int]]:
    """Token ids of each prompt; a list of ids is taken as it is.

    Raises ValueError for one prompt in place of a list, an empty one, or one that leaves no room.
    """
    if isinstance(prompts, str) or any(isinstance(prompt, int) for prompt in prompts):
        raise ValueError("prompts must be a list of prompts, but it is a single one.")
    rows = [
        encode_prompt(prompt, tokenizer) if isinstance(prompt, str) else [*map(int, prompt)]
        for prompt in prompts
    ]
    for index, ids in enumerate(rows):
        refuse_empty(ids, index)
        if len(ids) >= window:
            raise ValueError(f"prompt {index} has {len(ids)} tokens, but the model reads {window} "
                             "at most, those of the completion included: shorten the prompt.")
    return rows


def refuse_empty(prompt_ids: Sequence[int], index: int) -> None:
    """Raises ValueError for a prompt without a token: nothing would predict the first new one."""
    if not prompt_ids:
        raise ValueError(f"prompt {index} is empty: it needs one token or more.")


def rejection_sample(
    prompts: Sequence[str],
    samples: Sequence[Sequence[str]],
    golds: Sequence[Sequence[str]],
    threshold: float = 0.9,
) -> list[dict]:
    """Keep the sampled responses whose stated answer is right: training data for SFT.

    Rejection sampling fine-tuning (Yuan et al. 2023, arXiv 2308.01825; STaR: Zelikman et al.
    2022): the model's own reasoning is kept where its end can be graded.

    prompts: P texts. samples: for each prompt its sampled responses. golds: for each prompt its
        accepted answers.
    threshold: a response is kept when `token_f1` of its stated answer, the text behind its last
        "Answer:", is this or more. A response that states none is left out, and one that was
        drawn twice for the same prompt is kept once.

    Returns rows {"prompt", "response", "f1"} in the order of the prompts and their samples.

    Example:
        >>> drawn = ["He has a fox.\\nAnswer: fox", "A cat.\\nAnswer: cat", "fox"]
        >>> rejection_sample(["Which pet?"], [drawn], [["fox"]])
        [{'prompt': 'Which pet?', 'response': 'He has a fox.\\nAnswer: fox', 'f1': 1.0}]
    """
    kept = []
    for prompt, responses, accepted in zip(prompts, samples, golds, strict=True):
        for response in dict.fromkeys(responses):
            _, stated, answer = response.rpartition("Answer:")
            f1 = token_f1(answer, accepted)
            if stated and f1 >= threshold:
                kept.append({"prompt": prompt, "response": response, "f1": f1})
    return kept
