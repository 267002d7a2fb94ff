"""Load causal language models: plain, with new LoRA layers, or with a saved adapter."""

import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

# Below this many parameters half precision saves nothing that matters, and float32 is exact.
_SMALL_MODEL = 100_000_000


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation (Hu et al. 2021, section 4.1): W + (alpha / rank) B A, W frozen.

    rank: rows of A and columns of B.
    alpha: the update is scaled by alpha / rank.
    dropout: probability that an input of A is dropped in training.
    target_modules: names of the layers that get an adapter; "all-linear" is every linear layer
        but the output layer.
    seed: of the random start of A (B starts at zero, so the model starts unchanged).
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"
    seed: int = 0

    def __post_init__(self):
        for name in ("rank", "alpha"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(
                    f"LoRA setting {name} must be a whole number, 1 or more, but it is {value!r}."
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA setting dropout must be at least 0 and below 1, but it is {self.dropout!r}."
            )
        if not self.target_modules:
            raise ValueError("LoRA setting target_modules names no layer; all-linear names all.")


def load_model(
    name_or_path: str | Path,
    *,
    adapter: str | Path | None = None,
    trainable_adapter: bool = True,
    quantization: str | None = None,
    lora: LoraSettings | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
):
    """Load a causal language model and its tokenizer, in evaluation mode.

    name_or_path: a folder, or a model's name on the hub. revision: a branch, tag or commit there.
    adapter: the folder or hub name of a saved LoRA adapter; `trainable_adapter=False` freezes it.
    lora: put new LoRA layers on the model. Without adapter and lora all parameters are trained.
    device: "auto" is CUDA, else Apple's GPU, else the CPU.
    dtype: of the frozen parameters. "auto" is float32 for models below 100 M parameters, else
        bfloat16 (float16 on a GPU that has no bfloat16).

    Every parameter that is trained is float32: a step of 1e-5 is lost on a bfloat16 weight of
    0.01. So a plain model in half precision comes frozen, for reading only; to train all of it
    give `dtype="float32"`, or train LoRA layers on it.

    Raises ValueError for settings that exclude each other, and OSError with one sentence for a
    model or adapter that cannot be found.

    Example:
        >>> model, tokenizer = load_model("workbook/assets/base", lora=LoraSettings(rank=8))
    """
    if quantization is not None:
        raise ValueError(
            f"quantization={quantization!r} is not available yet: it comes with lesson 03."
        )
    if adapter is not None and lora is not None:
        raise ValueError("Give adapter (a saved one) or lora (a new one), not both.")
    model, tokenizer = _load_plain(str(name_or_path), revision)
    model = model.to(device=_resolve_device(device), dtype=_resolve_dtype(dtype, device, model))
    _freeze_half_precision(model)
    if adapter is not None:
        with _one_sentence("adapter", str(adapter)):
            model = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable_adapter)
    elif lora is not None:
        model = _with_new_lora(model, lora)  # peft makes the layers float32 itself
    return model.eval(), tokenizer


def _load_plain(source: str, revision: str | None):
    """The model as stored and its tokenizer, with a padding token."""
    with _one_sentence("model", source):
        # The small file first: an unreachable hub is waited for once.
        config = AutoConfig.from_pretrained(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        with _no_loading_bar():
            model = AutoModelForCausalLM.from_pretrained(
                source, config=config, revision=revision, dtype="auto"
            )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


@contextmanager
def _no_loading_bar():
    """transformers draws a bar for each load, also of a model that is there at once."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def _one_sentence(kind: str, source: str):
    """Turn the libraries' paragraphs about a missing model into one sentence that helps."""
    looks_like_path = not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith(".")
    if looks_like_path and not Path(source).is_dir():
        raise FileNotFoundError(f"There is no {kind} folder {source}: check the path.")
    try:
        yield
    except (OSError, ValueError) as error:
        if Path(source).is_dir():
            first_line = str(error).splitlines()[0]
            raise OSError(f"The {kind} folder {source} cannot be read: {first_line}") from error
        raise OSError(
            f"The {kind} {source} is neither a folder here nor to be had from the model hub: check "
            "the name and the network, set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1 if it was "
            "downloaded before, or give the path of a local folder instead."
        ) from error


def _resolve_device(device: str) -> torch.device:
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _resolve_dtype(dtype: str | torch.dtype, device: str, model) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in named:
        return named[dtype]
    if dtype != "auto":
        raise ValueError(f"dtype must be auto or one of {', '.join(named)}, but it is {dtype!r}.")
    if model.num_parameters() < _SMALL_MODEL:
        return torch.float32
    on_cuda = _resolve_device(device).type == "cuda"
    if on_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def _with_new_lora(model, lora: LoraSettings) -> PeftModel:
    targets = lora.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(lora.seed)
        return get_peft_model(model, config)


def _freeze_half_precision(model) -> None:
    for parameter in model.parameters():
        if parameter.dtype != torch.float32:
            parameter.requires_grad_(False)
