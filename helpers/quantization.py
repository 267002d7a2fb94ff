"""Load frozen base models in 4 or 8 bits so that gradients through them are right, and undo it.

Kinds: "nf4" and "int8" are made from a plain checkpoint at load (Dettmers et al. 2023, 2022);
"awq" is a checkpoint that was quantised beforehand (Lin et al. 2023).
"""

import importlib.util
from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.integrations import dequantize_bnb_weight
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from helpers.layers import AwqLinear

KINDS = ("nf4", "int8", "awq")
# The same layout read by this package's own layer instead of the AWQ library's kernels.
OWN_AWQ = "awq_own_layer"
# Layers whose LoRA update has the form of their weight.
MERGEABLE = (nn.Linear, Conv1D, nn.Embedding)


# ---------------------------------------------------------------- which quantisation


def stored_quantization(config) -> str | None:
    """How a checkpoint is quantised: None, one of KINDS, or another method by its own name."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    stored = stored if isinstance(stored, dict) else stored.to_dict()  # of a loaded model
    if stored.get("quant_method") == "bitsandbytes" or "load_in_4bit" in stored:
        nf4 = stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4"
        return "nf4" if nf4 else "int8" if stored.get("load_in_8bit") else "fp4"
    return stored.get("quant_method")


def resolve_quantization(wanted: str | None, config, source: str) -> str | None:
    """The kind to load with; None wants what is stored. Raises ValueError where they exclude.

    A checkpoint that is already quantised is not quantised again, and AWQ is not made at load.
    """
    stored = stored_quantization(config)
    if wanted is not None and wanted not in KINDS:
        raise ValueError(
            f"quantization must be None or one of {', '.join(KINDS)}, but it is {wanted!r}."
        )
    if stored is not None and wanted not in (None, stored):
        raise ValueError(
            f'quantization="{wanted}" contradicts the checkpoint {source}, which is stored as '
            f'"{stored}": leave quantization out, or give the unquantised checkpoint.'
        )
    if stored is None and wanted == "awq":
        raise ValueError(
            f'quantization="awq" contradicts the checkpoint {source}, which is stored unquantised: '
            "AWQ is made beforehand, from calibration text (`python3 -m workbook world awq` makes "
            "the course's own); give such a checkpoint."
        )
    if stored is not None and stored not in KINDS:
        raise ValueError(
            f'The checkpoint {source} is stored as "{stored}", which is not supported: give an '
            "unquantised or an AWQ checkpoint."
        )
    return stored or wanted


def loading_arguments(kind: str | None, config, device: torch.device, dtype: torch.dtype) -> dict:
    """What `from_pretrained` is told for a kind; may change `config`, which it is given too.

    nf4: 4-bit normal floats in blocks of 64, the blocks' scales in 8 bits (double quantisation),
    multiplied in `dtype`. int8: rows in 8 bits, outlier features in 16.
    """
    if kind is None:
        return {"dtype": "auto"}
    arguments = {"dtype": dtype, "device_map": {"": device}}
    if kind == "awq":
        _choose_awq_kernel(config, device)
    elif stored_quantization(config) is None:
        arguments["quantization_config"] = (
            BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "score"])
            if kind == "int8"
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=["lm_head", "score"],
            )
        )
    return arguments


def uses_awq_library(device: torch.device) -> bool:
    """Its kernels are fast on CUDA; on a CPU those it chooses give wrong gradients, in silence."""
    installed = all(importlib.util.find_spec(name) for name in ("gptqmodel", "optimum"))
    return device.type == "cuda" and installed


def _choose_awq_kernel(config, device: torch.device) -> None:
    stored = dict(config.quantization_config)
    if uses_awq_library(device):
        config.quantization_config = stored | {"backend": "auto_trainable"}
        return
    layout = (stored.get("bits", 4), str(stored.get("version", "gemm")).lower())
    if layout != (4, "gemm") or not stored.get("zero_point", True):
        raise ValueError(
            f"This AWQ checkpoint has {layout[0]} bits in the layout {layout[1]!r}, zero points: "
            f"{stored.get('zero_point', True)}; 4 bits in the layout 'gemm' with zero points are "
            "read here."
        )
    config.quantization_config = {"quant_method": OWN_AWQ, "stored": stored}


def finish_loading(model, kind: str | None) -> None:
    """Freeze a quantised model and see to it that gradients through it are right.

    On a CPU with AVX512-BF16 the 4-bit layers, in evaluation mode, repack their weight for a
    kernel without a backward pass and go on using it in training: gradients are then wrong by
    100 %, with one warning at most. Generating between two training steps is enough.
    """
    if kind is None:
        return
    model.requires_grad_(False)
    if kind == "nf4":
        from bitsandbytes.nn import Linear4bit

        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False


# ---------------------------------------------------------------- AWQ through the own layer


@register_quantization_config(OWN_AWQ)
class OwnAwqConfig(QuantizationConfigMixin):
    """Wraps the checkpoint's own description, which the loaded model gets back."""

    def __init__(self, stored: dict, **_):
        self.quant_method = OWN_AWQ
        self.stored = stored


@register_quantizer(OWN_AWQ)
class OwnAwqQuantizer(HfQuantizer):
    """Puts `AwqLinear` in the place of the linear layers; transformers then fills it by name."""

    def _process_model_before_weight_loading(self, model, **_):
        stored = self.quantization_config.stored
        plain_parts = stored.get("modules_to_not_convert") or []
        skipped = self.get_modules_to_not_convert(model, ["score"], add_default_skips=True)
        for name, layer in list(model.named_modules()):
            if any(part in name for part in plain_parts):  # as AutoAWQ reads the list
                continue
            if isinstance(layer, nn.Linear) and should_convert_module(name, skipped):
                size = stored.get("group_size", 128)
                size = layer.in_features if size == -1 else size
                with torch.device("meta"):
                    new = AwqLinear(
                        layer.in_features, layer.out_features, layer.bias is not None, size
                    )
                model.set_submodule(name, new)

    def _process_model_after_weight_loading(self, model, **_):
        model.config.quantization_config = self.quantization_config.stored

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


# ---------------------------------------------------------------- back to plain weights


def dense_weight(layer: nn.Module) -> torch.Tensor:
    """The float32 weight that a layer stands for, with its active LoRA updates, as it is stored.

    Knows linear layers (plain, NF4, int8 and AWQ; GPT-2's, which are stored as (in, out)) and
    embeddings, alone or inside peft's LoRA layer. Raises ValueError for the AWQ library's kernels,
    which keep their weight in layouts of their own, and for DoRA and other relatives of LoRA,
    whose update is more than (a/r) B A.
    """
    if isinstance(layer, LoraLayer):
        weight = dense_weight(layer.get_base_layer())
        for name in _unmerged_adapters(layer):
            if not is_plain_update(layer, name):
                raise ValueError(
                    f"The adapter {name} is no plain LoRA (it uses DoRA, a bias or another "
                    "variant), so it cannot be merged here: train one without use_dora."
                )
            weight = weight + layer.get_delta_weight(name).float()
        return weight
    if isinstance(layer, AwqLinear):
        return layer.dequantize()
    if getattr(layer, "weight", None) is None:
        raise ValueError(
            "The AWQ library's kernels do not give their weights back: load the model with "
            'device="cpu" to merge its adapter.'
        )
    weight = layer.weight
    if type(weight).__name__ in ("Params4bit", "Int8Params"):
        weight = dequantize_bnb_weight(weight, state=getattr(layer, "state", None))
    return weight.detach().float()


def _unmerged_adapters(layer: LoraLayer) -> list[str]:
    """The active adapters whose update the layer's weight does not hold yet."""
    if layer.disable_adapters or layer.merged:
        return []
    return [name for name in layer.active_adapters if name in layer.scaling]


def is_plain_update(layer: LoraLayer, name: str) -> bool:
    """Whether an adapter adds (a/r) B A to the weight, and nothing else: no magnitudes (DoRA, Liu
    et al. 2024), no bias of B."""
    return name not in layer.lora_variant and not layer.lora_bias.get(name, False)


def require_mergeable(model) -> None:
    """Raises ValueError for an adapter that `dense_weight` does not know, by its kind or place."""
    for name, layer in base_of(model).named_modules():
        if not isinstance(layer, BaseTunerLayer) or isinstance(layer, TrainableTokensLayer):
            continue
        if not isinstance(layer, LoraLayer):
            kind = type(layer).__module__.split(".")[-2]
            raise ValueError(
                f"The adapter's layer {name} is of the kind {kind}, which is not merged here: "
                "train LoRA layers, or merge it by peft's merge_and_unload."
            )
        inner = layer.get_base_layer()
        if isinstance(layer, ParamWrapper) or not isinstance(inner, MERGEABLE):
            raise ValueError(
                f"The LoRA layer {name} lies on {type(inner).__name__}, which is not merged here: "
                "linear layers and embeddings are; train the adapter without target_parameters."
            )


@torch.no_grad()
def plain_copy(model):
    """A new unquantised model with every LoRA update merged in; `model` stays as it is.

    model: a transformers model, or a PeftModel. Merging into packed weights themselves would
    round each update away or change a copy, so the weights are written out: W' = W + (a/r) B A.
    An output layer that shares its weight with the embedding gets its own where an adapter changes
    one of the two. Raises ValueError for what is not merged; see `require_mergeable`.
    """
    base = base_of(model)
    plain = _empty_copy(model).to_empty(device=base.device)
    for parameter in plain.parameters():
        parameter.data = parameter.data.to(base.dtype)
    targets = dict(plain.named_parameters(remove_duplicate=False))
    for name, tensor in plain_weights(model):
        targets[name].copy_(tensor)
    for name, buffer in plain.named_buffers():
        place, _, key = name.rpartition(".")
        buffer.copy_(getattr(_module_at(base, place), key))
    plain.tie_weights()  # leaving meta made two of the shared one
    return plain.eval()


@torch.no_grad()
def plain_weights(model) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of `plain_copy`, by their names in a plain checkpoint, one at a time.

    Linear weights are float32. A shared tensor comes once for each of its names.
    """
    require_mergeable(model)
    base = base_of(model)
    for name, target in _empty_copy(model).named_modules():
        source = _module_at(base, name)
        for key, _ in target.named_parameters(recurse=False):
            is_weight = isinstance(source, (LoraLayer, nn.Linear)) and key == "weight"
            tensor = dense_weight(source) if is_weight else getattr(source, key)
            yield f"{name}.{key}".removeprefix("."), tensor


def _module_at(base, path: str) -> nn.Module:
    """The module that answers at a place; of one that is trained as a whole, the trained copy."""
    module = base
    for part in filter(None, path.split(".")):
        module = getattr(module, part)
        if isinstance(module, ModulesToSaveWrapper):
            active = [name for name in module.active_adapters if name in module.modules_to_save]
            is_off = module.disable_adapters or not active
            module = module.original_module if is_off else module.modules_to_save[active[0]]
    return module


def plain_config(model):
    """The configuration of a model without its quantisation, and of its `plain_copy`."""
    base = base_of(model)
    config = type(base.config).from_dict(base.config.to_dict())
    if not _shares_embedding(base):
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    for setting in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, setting):
            delattr(config, setting)
    return config


def _shares_embedding(base) -> bool:
    """Whether the output layer is the embedding, whatever an adapter learns."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    adapted = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    if head is None or isinstance(head, adapted) or isinstance(embedding, adapted):
        return False
    return head.weight.data_ptr() == embedding.weight.data_ptr()


def base_of(model):
    """The transformers model, without what peft puts around it (its LoRA layers stay)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _empty_copy(model):
    """The unquantised model without its numbers."""
    with torch.device("meta"):
        return type(base_of(model))(plain_config(model))


def footprint(model) -> int:
    """Bytes that the weights of a model take: parameters, buffers and quantisation constants.

    A tensor that two layers share counts once. Example: a float32 layer of 64 x 32: 8,192.
    """
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight, state = getattr(module, "weight", None), getattr(module, "state", None)
        if getattr(weight, "quant_state", None) is not None:  # NF4
            packed = weight.quant_state.as_dict(packed=True).values()
            tensors += [value for value in packed if torch.is_tensor(value)]
        for holder in (weight, state):  # int8: the first forward moves the scales
            if getattr(holder, "SCB", None) is not None:
                tensors.append(holder.SCB)
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
