"""Whether a fast way of reading does in a model what a plain pass does: tried once, not assumed.

A fast way, such as several sequences in one row, rests on what an architecture does with masks,
positions and caches, and one that ignores them says nothing. So before the first use a few tokens
are read both ways. The cost is that of some tiny forward passes a model and way.
"""

import warnings
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel

from helpers.modes import evaluation_mode

# How far two right ways may be apart, as a share of what one token's scores differ from another's:
# float32 rounds by some 1e-6 and half precision by some percent, and a mistake is larger than that.
TOLERANCES = {
    torch.float64: 1e-4,  # norms and softmax compute in float32 inside
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}

LONGEST_TRIAL = 64  # tokens: a sliding window up to this length is tried out beyond its end

# Words in the names of settings that say how far a layer looks back.
WINDOWS = ("window", "chunk_size", "local_attention")

_verdicts: WeakKeyDictionary = WeakKeyDictionary()


def holds(
    model, way: str, *, trial: Callable, fast: Callable, plain: Callable, otherwise: str
) -> bool:
    """Whether fast(*trial()) and plain(*trial()) are the same scores (K, V); the verdict is kept.

    model: whose parameters may change without a new trial, but not its attention. otherwise: what
    the warning says where they differ, or where the fast way raises an error.
    """
    known, key = _known(model, way)
    if key not in known:
        verdict = _tried(model, trial(), fast, plain)
        if verdict is None:
            return True
        known[key] = verdict
        if not verdict:
            _warn(model, otherwise)
    return known[key]


def rule_out(model, way: str, otherwise: str) -> None:
    """Say once that a way is not taken in this model, where no trial is needed to know it."""
    known, key = _known(model, way)
    if key not in known:
        known[key] = False
        _warn(model, otherwise)


def _known(model, way: str) -> tuple[dict, tuple]:
    """What was found of a model so far, and the key of a way in it."""
    base = _innermost(model)
    attention = getattr(getattr(base, "config", None), "_attn_implementation", None)
    return _verdicts.setdefault(base, {}), (way, attention)


def _warn(model, otherwise: str) -> None:
    warnings.warn(f"In {type(_innermost(model)).__name__} {otherwise}", stacklevel=4)


def _innermost(model):
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _tried(model, trial: tuple, fast: Callable, plain: Callable) -> bool | None:
    """None where there is nothing to compare with: the plain way fails, or its scores are NaN."""
    device = device_of(model)
    with (
        evaluation_mode(model),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            found = fast(*trial)
        except Exception:  # whatever it is, the plain way is there
            found = None
        try:
            right = plain(*trial)
        except Exception:
            return None
    if right.isnan().any():
        return None
    return found is not None and _agree(found, right, _tolerance(model, right))


def device_of(model) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _agree(found: torch.Tensor, right: torch.Tensor, tolerance: float) -> bool:
    """Compared are the scores of whole tokens, by the length of their difference."""
    if found.shape != right.shape or not torch.equal(found.isfinite(), right.isfinite()):
        return False
    kind = right.dtype
    found, right = (scores.double().nan_to_num(posinf=0.0, neginf=0.0) for scores in (found, right))
    error = (found - right).norm(dim=-1).max()
    spread = (right - right.mean(dim=0)).norm(dim=-1).mean()
    rounding = 8 * torch.finfo(kind).eps * right.norm(dim=-1).max()
    return bool(error <= tolerance * spread + rounding)


def same_scores(found: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-3) -> bool:
    """Whether two ways score tokens alike, (T, V) each, up to a share of the tokens' differences.

    Sums in another order differ by some 1e-6 of it in float32. Where the right scores are no
    numbers there is nothing to compare.
    """
    found, right = found.double(), right.double()
    if not right.isfinite().all():
        return True
    error, spread = (found - right).norm(), (right - right.mean(dim=0)).norm()
    return bool(error <= tolerance * spread + 1e-6 * right.norm())


def _tolerance(model, scores: torch.Tensor) -> float:
    is_coarse = scores.is_cuda and torch.get_float32_matmul_precision() != "highest"
    # int8 layers round what they read, too: to 1/127 of a token's largest number.
    is_coarse |= any(type(parameter).__name__ == "Int8Params" for parameter in model.parameters())
    kind = torch.bfloat16 if is_coarse and scores.dtype == torch.float32 else scores.dtype
    return TOLERANCES[kind]


def text_config(model):
    """The configuration of the language model, also where it is a part of a larger one; or None."""
    config = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def shortest_window(model, words: Sequence[str] = WINDOWS) -> int | None:
    """The fewest tokens that some layer looks back, as the configuration names it; None: all.

    Read from each field whose name holds one of the words, because every architecture has a name
    of its own (sliding_window, attention_window_size, window_size, attention_chunk_size ...).
    """
    config = text_config(model)
    fields = {} if config is None else vars(config)
    sizes = [
        value
        for name, value in fields.items()
        if any(word in name for word in words) and _is_size(value)
        and not name.endswith(("layers", "pattern"))
    ]
    return min(sizes, default=None)


def _is_size(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def trial_ids(model, *lengths: int, beyond_window: bool = False) -> list[list[int]]:
    """Token ids to try a model with, different in each row, none that has a special meaning.

    beyond_window: the first row is longer than the shortest window, where that is short.
    """
    config, window = text_config(model), shortest_window(model)
    if beyond_window and window and window <= LONGEST_TRIAL:
        lengths = (lengths[0] + window, *lengths[1:])
    size = getattr(config, "vocab_size", None) or model.get_output_embeddings().weight.shape[0]
    special = _special_ids(model)
    usable = [token for token in range(min(size, 1000)) if token not in special]
    ids = iter(range(11, 11 + 7 * sum(lengths), 7))
    return [[usable[next(ids) % len(usable)] for _ in range(length)] for length in lengths]


def _special_ids(model) -> set[int]:
    """Ids of padding, ends, images and the like, by the configuration."""
    configs = (getattr(model, "config", None), text_config(model))
    fields = [field for config in configs if config is not None for field in vars(config).items()]
    ends = ("token_id", "token_index")
    return {value for name, value in fields if name.endswith(ends) and isinstance(value, int)}
