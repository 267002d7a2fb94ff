"""Load language models and reward models: plain or quantised, with or without LoRA layers."""

import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from helpers import loading
from helpers import quantization as quantize
from helpers.logprobs import at_least_float32
from helpers.modes import evaluation_mode
from helpers.probes import same_scores, trial_ids
from helpers.quantization import footprint as footprint
from helpers.reading import positions_of, read_rows
from helpers.reference import Reference as Reference
from helpers.reference import freeze_reference as freeze_reference

# Below this many parameters half precision saves nothing that matters, and float32 is exact.
_SMALL_MODEL = 100_000_000


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation (Hu et al. 2021, section 4.1): W + (alpha / rank) B A, W frozen.

    rank: rows of A and columns of B.
    alpha: the update is scaled by alpha / rank.
    dropout: probability that an input of A is dropped in the training of `train_sft`,
        `train_reward_model`, simpo and orpo. All others compare the policy with another one, the
        reference or the sampler, and drop nothing; a warning says so.
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
    quantization: "nf4" or "int8" round the weights of a plain checkpoint at load; "awq" is for a
        checkpoint stored so. None takes the checkpoint as it is stored.
    device: "auto" is CUDA, else Apple's GPU, else the CPU.
    dtype: of the frozen parameters. "auto" is float32 for models below 100 M parameters, else
        bfloat16 (float16 on a GPU that has no bfloat16). Quantised layers compute in it.

    Every parameter that is trained is float32: a step of 1e-5 is lost on a bfloat16 weight of
    0.01. So a plain model in half precision and a quantised one come frozen, for reading only; to
    train all of a plain one give `dtype="float32"`, or train LoRA layers on either.

    Raises ValueError for settings that exclude each other or that contradict the checkpoint, and
    OSError with one sentence for a model or adapter that cannot be found or is damaged.

    Example:
        >>> model, tokenizer = load_model("workbook/assets/base", lora=LoraSettings(rank=8))
        >>> model, _ = load_model("Qwen/Qwen2.5-7B", quantization="nf4", lora=LoraSettings())
    """
    _refuse_two_adapters(adapter, lora)
    source = str(name_or_path)
    model, tokenizer, _ = _load(AutoModelForCausalLM, source, revision, quantization, device, dtype)
    _freeze_half_precision(model)
    if adapter is not None:
        model = put_adapter(model, str(adapter), source, trainable=trainable_adapter)
    elif lora is not None:
        model = _with_new_lora(model, lora)  # peft makes the layers float32 itself
    return model.eval(), tokenizer


class RewardModel(nn.Module):
    """A sequence classifier with one label, read at every position: token rewards.

    r_t = w . h_t, with h_t the last hidden state at position t. The head w is float32 whatever
    the body is: in bfloat16 rewards have 8 bits, and near ties count as ties.

    model: the classifier of the model hub (`...ForSequenceClassification`, num_labels=1), or
        that inside a PeftModel.

    Example:
        >>> token_rewards = reward_model(input_ids, attention_mask)  # (B, T), float32
        >>> reward_model.save_pretrained("runs/02/reward")  # the hub's own format
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """input_ids, attention_mask: (B, T), padded on either side. Returns (B, T), float32.

        What stands at padding means nothing. Positions are counted over the attention mask, so
        that padding moves no token. Sequences that share a row come with their `position_ids` and
        a mask (B, 1, T, T) of who may look at whom; see `helpers.shared_rows`. A body that a probe
        shows to read such rows otherwise reads each sequence alone (`helpers.reading`).
        """
        classifier = self.classifier
        body, needed = getattr(classifier, classifier.base_model_prefix), None
        if position_ids is None:
            attention_mask, needed = attention_mask.long(), attention_mask.bool()
            position_ids = positions_of(attention_mask)
        reading = read_rows(body, input_ids, attention_mask, position_ids, needed)
        hidden = body(**reading.arguments).last_hidden_state  # (B, T, H), or a sequence a row
        with torch.autocast(hidden.device.type, enabled=False):
            return reading.fold(classifier.score(at_least_float32(hidden)).squeeze(-1))

    @property
    def classifier(self):
        """The classifier itself, without what peft puts around it (its LoRA layers stay)."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def config(self):
        return self.classifier.config

    @property
    def device(self) -> torch.device:
        return self.classifier.score.weight.device

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the classifier, or the adapter with its head, as `load_reward_model` reads it."""
        self.model.save_pretrained(folder)


def load_reward_model(
    name_or_path: str | Path,
    *,
    adapter: str | Path | None = None,
    lora: LoraSettings | None = None,
    quantization: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
) -> tuple[RewardModel, object]:
    """Load a reward model and its tokenizer, in evaluation mode; the options are `load_model`'s.

    name_or_path: a language model, which gets a new head drawn from `seed`, or a saved reward
        model, whose head is kept.
    adapter: a saved reward adapter, with its head. lora: new LoRA layers; the head is trained too.

    A new head is normal with standard deviation 1 / sqrt(H + 1), H the hidden width (Stiennon et
    al. 2020, appendix B): untrained rewards are then about normal with standard deviation 1.

    Raises what `load_model` raises, and ValueError for the adapter of a language model, which
    holds no head.

    Example:
        >>> model, tokenizer = load_reward_model("workbook/assets/base", lora=LoraSettings())
    """
    _refuse_two_adapters(adapter, lora)
    model, tokenizer, is_new_head = _load(
        AutoModelForSequenceClassification,
        str(name_or_path),
        None,
        quantization,
        device,
        dtype,
        num_labels=1,
    )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ValueError(
            f"{type(model).__name__} has no linear layer named score, which the token rewards of "
            f"a reward model are read with: give another model than {name_or_path}."
        )
    model.config.pad_token_id = tokenizer.pad_token_id  # the hub's own pooling needs it
    _freeze_half_precision(model)
    model.score.float().requires_grad_(True)
    if is_new_head:
        _draw_head(model.score, seed)
    if adapter is not None:
        model = put_adapter(model, str(adapter), str(name_or_path), task=TaskType.SEQ_CLS)
    elif lora is not None:
        model = _with_new_lora(model, lora, TaskType.SEQ_CLS)  # trains and saves the head too
    return RewardModel(model).eval(), tokenizer


@torch.no_grad()
def _draw_head(head: nn.Linear, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = head.in_features
    head.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)


def put_adapter(
    model, adapter: str, source: str, *, task=TaskType.CAUSAL_LM, trainable: bool = True
) -> PeftModel:
    """The base model with a saved adapter on it; see `helpers.loading.load_adapter`.

    source: the base's name or folder. An adapter names the base that it was saved with; peft reads
    its configuration to save anew, and prints a warning where that path does not lead anywhere.
    """
    with _one_sentence("adapter", adapter):
        adapted = loading.load_adapter(model, adapter, task, trainable=trainable)
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = source
    return adapted


def _load(auto_class, source, revision, quantization, device, dtype, **config_options):
    """(model on its device, tokenizer with a padding token, whether the reward head is new)."""
    with _one_sentence("model", source):
        loading.require_one_model(source)
        # The small file first: an unreachable hub is waited for once.
        config = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=False, **config_options
        )
        tokenizer = _load_tokenizer(source, revision)
    kind = quantize.resolve_quantization(quantization, config, source)
    device = _resolve_device(device)
    dtype = _resolve_dtype(dtype, device, auto_class, config)
    arguments = quantize.loading_arguments(kind, config, device, dtype)
    with _one_sentence("model", source), _quiet_loading():
        model, is_new_head = loading.load_checkpoint(
            auto_class, source, config=config, revision=revision, **arguments
        )
        loading.require_special_tokens(model, tokenizer)
    if kind is None:
        _cast(model.to(device), dtype)
    quantize.finish_loading(model, kind)
    return model, tokenizer, is_new_head


def _cast(model, dtype: torch.dtype) -> None:
    """All parameters but the head of a reward model, which stays as exact as it is stored.

    `model.to(dtype)` would round the rotary frequencies too, and with them far positions.
    """
    for name, parameter in model.named_parameters():
        if not name.startswith("score."):
            parameter.data = parameter.data.to(dtype)


def merge_adapter(model, tokenizer, folder: str | Path) -> Path:
    """Write a plain checkpoint with the active adapter merged into its weights: W + (a/r) B A.

    model: of `load_model` or `load_reward_model`; it stays as it is. A quantised base is written
    out first, at the model's dtype: 4-bit numbers cannot take up an update smaller than their
    steps, and AWQ's are packed beyond changing. The result needs no adapter, and more memory.

    Returns the folder, which `load_model` or `load_reward_model` reads. Raises ValueError for an
    adapter that is no plain LoRA, where the merged model does not score as the model does, and for
    a folder that holds an adapter or the parts of another model.
    """
    loading.require_free(folder)
    is_reward = isinstance(model, RewardModel)
    inner = model.model if is_reward else model
    plain = quantize.plain_copy(inner)
    _require_same_scores(model, RewardModel(plain) if is_reward else plain)
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def _require_same_scores(model, merged) -> None:
    """A merge that lost a part would be another model under this one's name."""
    ids = torch.tensor(trial_ids(model, 16), device=model.device)
    kind = quantize.stored_quantization(model.config)
    is_exact = model.config.dtype in (torch.float32, None) and kind != "int8"
    with evaluation_mode(model), torch.autocast(model.device.type, enabled=False):
        right, found = _scores(model, ids), _scores(merged, ids)
    if not same_scores(found, right, **({} if is_exact else {"tolerance": 0.2})):
        raise ValueError(
            f"The merged {type(model).__name__} does not score a few tokens as the model with its "
            "adapter does, so it is not written: keep the adapter, and load it with its base."
        )


def _scores(model, ids: torch.Tensor) -> torch.Tensor:
    """(T, V) of a language model, (T, 1) of a reward model."""
    if isinstance(model, RewardModel):
        return model(ids, torch.ones_like(ids))[0, :, None]
    return model(input_ids=ids).logits[0]


def _load_tokenizer(source: str, revision: str | None):
    tokenizer = AutoTokenizer.from_pretrained(
        source, revision=revision, trust_remote_code=False
    )
    if not tokenizer("a 1")["input_ids"]:
        # Without its files transformers makes an empty one, and every text becomes no token.
        raise ValueError(
            "it holds no tokenizer; save the base model's beside it (tokenizer.save_pretrained)."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _refuse_two_adapters(adapter, lora) -> None:
    if adapter is not None and lora is not None:
        raise ValueError("Give adapter (a saved one) or lora (a new one), not both.")


@contextmanager
def _quiet_loading():
    """No bar for each load, also of a model that is there at once, and no table of new heads."""
    shown = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
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
    except loading.UnfitError:
        raise
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            raise OSError(
                f"The {kind} {source} needs code of its own (auto_map in its config.json), which "
                "is never run here: give a model that transformers knows itself."
            ) from error
        if Path(source).is_dir():
            cause = error.__cause__ if isinstance(error, StrictDataclassError) else error
            first_line = str(cause).split("\n", 1)[0]
            raise OSError(f"The {kind} folder {source} cannot be read: {first_line}") from error
        raise OSError(
            f"The {kind} {source} is neither a folder here nor to be had from the model hub: check "
            "the name and the network, set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1 if it was "
            "downloaded before, or give the path of a local folder instead."
        ) from error


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else mps
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda or mps, but it is {device!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device="{device}" needs a CUDA GPU, and there is none: take "auto".')
    if device == "cuda":  # quantised loading wants a number
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device)


def _resolve_dtype(dtype: str | torch.dtype, device: torch.device, auto_class, config):
    if isinstance(dtype, torch.dtype):
        return dtype
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in named:
        return named[dtype]
    if dtype != "auto":
        raise ValueError(f"dtype must be auto or one of {', '.join(named)}, but it is {dtype!r}.")
    with torch.device("meta"):  # shapes only
        parameters = auto_class.from_config(config).num_parameters()
    if parameters < _SMALL_MODEL:
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def _with_new_lora(model, lora: LoraSettings, task: TaskType = TaskType.CAUSAL_LM) -> PeftModel:
    targets = lora.target_modules
    config = LoraConfig(
        task_type=task,
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
