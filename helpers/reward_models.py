"""Score responses with a reward model: pooling, batches, and a reward function made of one."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from helpers.identity import tokenizer_identity
from helpers.reference import weights_identity
from helpers.shared_rows import LONGEST_SHARED, SharedLayout, padded, shared_columns
from helpers.tokens import encode_prompt, encode_response


def pool_last_token(token_rewards: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The reward of each sequence: that of its last token which is not padding.

    token_rewards, attention_mask: (B, T), padded on either side. Returns (B,).

    Raises ValueError for a row without any token.

    Example:
        >>> rewards = torch.tensor([[1.0, 2.0, 9.0], [9.0, 3.0, 4.0]])
        >>> pool_last_token(rewards, torch.tensor([[1, 1, 0], [0, 1, 1]]))
        tensor([2., 4.])
    """
    places = torch.arange(token_rewards.shape[1], device=token_rewards.device)
    last = places.expand_as(token_rewards).masked_fill(~attention_mask.bool(), -1).amax(dim=1)
    if (last < 0).any():
        row = int((last < 0).nonzero()[0])
        raise ValueError(f"Row {row} of the attention mask holds no token, so it has no reward.")
    return token_rewards.gather(1, last[:, None]).squeeze(1)


def encode(prompt: str, response: str, tokenizer) -> list[int]:
    """The tokens that a reward model reads: prompt, response, and the end that a language model
    is trained to write there.

    The reward is read at the last token, so all responses to a prompt end with the same one.
    """
    ids = encode_response(response, tokenizer, prompt=prompt, append_end=True)
    return [*encode_prompt(prompt, tokenizer), *ids]


def score(
    model,
    tokenizer,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    pool: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = pool_last_token,
    batch_size: int = 32,
) -> list[float]:
    """The reward of each response to its prompt, with dropout off.

    Responses to one prompt share a row, so that the model reads the prompt once.

    model, tokenizer: from `helpers.models.load_reward_model`. pool: token rewards (B, T) and
    attention mask (B, T) to rewards (B,).

    Raises ValueError where there are not as many prompts as responses, a prompt is empty, or a text
    is longer than the model's window.

    Example:
        >>> score(model, tokenizer, ["Say hi."] * 2, ["Hi!", "No."])
        [0.71, -1.32]
    """
    from helpers.decoding import window_of  # loads transformers: only when needed
    from helpers.modes import evaluation_mode

    if len(prompts) != len(responses):
        raise ValueError(
            f"prompts and responses must be as many, but they are {len(prompts)} and "
            f"{len(responses)}."
        )
    starts = {prompt: len(encode_prompt(prompt, tokenizer)) for prompt in dict.fromkeys(prompts)}
    for place, prompt in enumerate(prompts):
        if not starts[prompt]:
            raise ValueError(f"prompt {place} is empty: it needs one token or more.")
    rows = [encode(p, r, tokenizer) for p, r in zip(prompts, responses, strict=True)]
    _check_window(rows, window_of(model))
    shared = _share_prompts(rows, [starts[prompt] for prompt in prompts], prompts)
    rewards = [0.0] * len(rows)
    with evaluation_mode(model):
        for some in _batches(shared, batch_size):
            found = iter(_pooled(model, some, pool, tokenizer.pad_token_id))
            for place in (place for row in some for place in row.responses):
                rewards[place] = next(found)
    return rewards


def _check_window(rows: Sequence[Sequence[int]], window: int) -> None:
    for place, ids in enumerate(rows):
        if len(ids) > window:
            raise ValueError(
                f"Prompt and response {place} have {len(ids)} tokens, but the model reads at most "
                f"{window}."
            )


class _SharedRow(NamedTuple):
    """Token ids (S,) of a prompt and some responses, and which responses these are."""

    input_ids: list[int]
    layout: SharedLayout
    responses: list[int]


def _share_prompts(rows, starts: Sequence[int], prompts: Sequence[str]) -> list[_SharedRow]:
    """The responses to one prompt behind each other, in rows of at most LONGEST_SHARED tokens."""
    groups: list[list[int]] = []
    latest: dict[str, tuple[list[int], int]] = {}  # the last row of a prompt and its tokens
    for place, prompt in enumerate(prompts):
        own = len(rows[place]) - starts[place]
        group, size = latest.get(prompt, ([], LONGEST_SHARED))
        if size + own > LONGEST_SHARED:
            group, size = [], starts[place]
            groups.append(group)
        group.append(place)
        latest[prompt] = group, size + own
    return [_joined([rows[place] for place in group], starts[group[0]], group) for group in groups]


def _joined(rows: Sequence[Sequence[int]], start: int, responses: list[int]) -> _SharedRow:
    rest = [token for row in rows for token in row[start:]]
    layout = SharedLayout.of(start, *(len(row) for row in rows))
    return _SharedRow([*rows[0][:start], *rest], layout, responses)


def _batches(rows: Sequence[_SharedRow], responses: int) -> Iterator[list[_SharedRow]]:
    """Rows of like length together, which need little padding; at most so many responses."""
    batch: list[_SharedRow] = []
    for row in sorted(rows, key=lambda row: len(row.input_ids)):
        if batch and sum(len(r.responses) for r in (*batch, row)) > responses:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _pooled(model, rows: Sequence[_SharedRow], pool: Callable, pad: int) -> list[float]:
    """The rewards of all responses of N rows, as pooled from plain sequences (B, T)."""
    columns = shared_columns([row.input_ids for row in rows], [row.layout for row in rows], pad)
    columns = {name: column.to(model.device) for name, column in columns.items()}
    joined = model(columns["input_ids"], columns["may_look"], columns["position_ids"])  # (N, S)
    plain = [row.layout.places(k + 1) for row in rows for k in range(len(row.responses))]
    of_row = torch.tensor([n for n, row in enumerate(rows) for _ in row.responses])
    places = padded(plain, value=0).to(model.device)
    mask = padded([[True] * len(places) for places in plain], value=False).to(model.device)
    return pool(joined[of_row.to(model.device)].gather(1, places), mask).tolist()


def from_model(model, tokenizer, *, batch_size: int = 32) -> "ModelReward":
    """A reward function made of a reward model, with the three parts that all of them return.

    It is called as reward(response, gold, prompt=prompt): the gold answer is not looked at, but a
    reward model needs to read the prompt. There is no format part, so it is 0.

    Example:
        >>> reward = from_model(model, tokenizer)
        >>> reward("Hi!", None, prompt="Say hi.")
        {'format_reward': 0.0, 'answer_reward': 0.71, 'reward': 0.71}
    """
    return ModelReward(model, tokenizer, batch_size)


class ModelReward:
    """See `from_model`; `many` scores a list of responses in batches, which is much faster."""

    def __init__(self, model, tokenizer, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    @property
    def identity(self) -> str:
        """Names weights and tokenizer: a run with another reward model is another run."""
        return f"reward model {weights_identity(self.model)} {tokenizer_identity(self.tokenizer)}"

    def __call__(self, response: str, gold=None, *, prompt: str) -> dict[str, float]:
        return self.many([prompt], [response])[0]

    def many(
        self, prompts: Sequence[str], responses: Sequence[str], golds: Sequence | None = None
    ) -> list[dict[str, float]]:
        values = score(self.model, self.tokenizer, prompts, responses, batch_size=self.batch_size)
        return [{"format_reward": 0.0, "answer_reward": v, "reward": v} for v in values]
