"""Pack the base model into 4 bits, in the layout of AWQ checkpoints, with scales that are searched.

    python3 -m workbook world awq

Rounding costs most where the inputs of a layer are large. AWQ (Lin et al. 2023, section 3.2)
multiplies the weights of those inputs by s > 1 before rounding and divides the inputs by s, in the
layer that makes them. Before rounding this changes nothing; after it the error is smaller. s is
(mean |x|)^alpha for each input, with the alpha of a grid that gives the least output error.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from helpers.layers import AwqLinear, dequantize_awq, quantize_awq
from helpers.models import load_model
from workbook.world.pretrain import packed_rows

GROUP_SIZE = 64
# Seeds of text that no phase of the pre-training has read.
CALIBRATION_SEED = 77
HELD_OUT_SEED = 91
CALIBRATION_ROWS = 16
ALPHAS = [step / 20 for step in range(20)]  # 0: no scaling, plain rounding to nearest
CARD = """# The tiny base model in 4 bits

The linear layers of `../base` in the layout of AWQ checkpoints (4 bits, groups of {group_size},
zero points, version gemm), made by `python3 -m workbook world awq`: a scale for each input is
searched on {rows} rows of text of the pre-training's kind. Embeddings, norms and biases are
float16.

Against the model in float32 the logits on held-out text are off by {errors[0]:.3f} (root mean
square); rounding to nearest without searched scales: {errors[1]:.3f}. Lenient accuracy (last
number, greedy, 512 test problems, at most 256 tokens), with 95 % intervals: 59.0 % (54.7 to 63.2);
the model itself 58.6 % (54.3 to 62.8); rounded to nearest 56.6 % (52.3 to 60.9). From
`python3 -m workbook eval --limit 512 --max-new-tokens 256 --data FILE --model FOLDER`.

Any reader of AWQ checkpoints takes it, such as transformers with gptqmodel, or vLLM;
`helpers.models.load_model` needs neither. An adapter trained on `../base` does not fit it: the
scales change what the layers read.
"""


@dataclass
class ScaledGroup:
    """Layers that share their inputs, and what makes those inputs.

    makes: a norm with one weight an input, or a linear layer with one output row an input.
    repeats: how many heads in a row share each head's values (grouped-query attention), else 1.
    """

    makes: nn.Module
    layers: list[nn.Linear]
    repeats: int = 1
    head_width: int = 1

    def shared(self, per_input: torch.Tensor) -> torch.Tensor:
        """Mean over the inputs that come from the same output of `makes`: (in,) to (out,)."""
        return per_input.view(-1, self.repeats, self.head_width).mean(1).flatten()

    def spread(self, per_output: torch.Tensor) -> torch.Tensor:
        """Each output's number at all inputs that come from it: (out,) to (in,)."""
        by_head = per_output.view(-1, 1, self.head_width).expand(-1, self.repeats, -1)
        return by_head.flatten()


def scaled_groups(model) -> Iterator[ScaledGroup]:
    """The groups of a Qwen2 or Qwen3 model."""
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        repeats = attention.num_key_value_groups
        yield ScaledGroup(block.input_layernorm, [q, k, v])
        yield ScaledGroup(v, [attention.o_proj], repeats, attention.head_dim)
        yield ScaledGroup(block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])
        yield ScaledGroup(mlp.up_proj, [mlp.down_proj])


def text_ids(tokenizer, seed: int = CALIBRATION_SEED, rows: int = CALIBRATION_ROWS):
    """Rows of the corpus's text: token ids (rows, T)."""
    return torch.tensor([ids for ids, _ in islice(packed_rows(tokenizer, seed), rows)])


@dataclass
class InputStatistics:
    """Of the inputs x of a layer over the calibration text: all that the search needs."""

    magnitude: torch.Tensor  # mean |x|, (in_features,)
    moments: torch.Tensor  # mean x x^T, (in_features, in_features)


@torch.no_grad()
def input_statistics(model, ids: torch.Tensor) -> dict[nn.Linear, InputStatistics]:
    """The statistics of what the first layer of each group reads on the text."""
    found: dict[nn.Linear, InputStatistics] = {}

    def keep(layer, arguments):
        x = arguments[0].flatten(0, -2).float()
        found[layer] = InputStatistics(x.abs().mean(0), x.T @ x / len(x))

    readers = [group.layers[0] for group in scaled_groups(model)]
    hooks = [layer.register_forward_pre_hook(keep) for layer in readers]
    model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def rounded(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """The weight after rounding to 4 bits and back."""
    return dequantize_awq(*quantize_awq(weight, group_size), group_size)


def output_error(
    layers: list[nn.Linear], moments: torch.Tensor, scales: torch.Tensor, group_size: int
) -> float:
    """Mean |W x - round(W s) (x / s)|^2 over tokens and outputs, summed over the layers.

    Lin et al. 2023, equation 4. With D the change of the weight it is the trace of D E[x x^T] D^T
    over the number of outputs, so the tokens themselves are not needed again.
    """
    error = 0.0
    for layer in layers:
        change = rounded(layer.weight * scales, group_size) / scales - layer.weight
        error += ((change @ moments) * change).sum(1).mean().item()
    return error


@torch.no_grad()
def search_scales(group: ScaledGroup, statistics: InputStatistics, group_size: int) -> torch.Tensor:
    """The scale of each output of `group.makes`, (mean |x|)^alpha with the best alpha."""
    magnitude = group.shared(statistics.magnitude).clamp(min=1e-4)
    best_error, best = float("inf"), torch.ones_like(magnitude)
    for alpha in ALPHAS:
        scales = magnitude**alpha
        scales = scales / (scales.max() * scales.min()).sqrt()
        error = output_error(group.layers, statistics.moments, group.spread(scales), group_size)
        if error < best_error:
            best_error, best = error, scales
    return best


@torch.no_grad()
def fold_scales(group: ScaledGroup, scales: torch.Tensor) -> None:
    """Divide what makes the inputs by the scales and multiply what reads them: same function."""
    if isinstance(group.makes, nn.Linear):
        group.makes.weight /= scales[:, None]
        if group.makes.bias is not None:
            group.makes.bias /= scales
    else:
        group.makes.weight /= scales
    for layer in group.layers:
        layer.weight *= group.spread(scales)


def quantize_model(model, ids: torch.Tensor | None, group_size: int = GROUP_SIZE):
    """Turn the linear layers of `model` into AWQ layers, in place, and return it.

    ids: calibration text; without it every weight is rounded to nearest as it is.
    """
    if ids is not None:
        statistics = input_statistics(model, ids)
        for group in scaled_groups(model):
            fold_scales(group, search_scales(group, statistics[group.layers[0]], group_size))
    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, nn.Linear):
            model.model.set_submodule(name, AwqLinear.from_linear(layer, group_size))
    model.config.quantization_config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    return model


@torch.no_grad()
def logits_error(model, reference, ids: torch.Tensor) -> float:
    """Root mean square difference of the logits of two models on a text."""
    difference = model(input_ids=ids).logits - reference(input_ids=ids).logits
    return difference.square().mean().sqrt().item()


def write_awq(base: Path, out: Path) -> Path:
    """Pack the model in `base` and write a checkpoint that AWQ readers take, to `out`.

    Its card tells the error on held-out text, and that of rounding without searched scales.
    """
    reference, tokenizer = load_model(base, device="cpu", dtype="float32")
    held_out = text_ids(tokenizer, HELD_OUT_SEED)
    nearest = quantize_model(copy.deepcopy(reference), None)
    model = quantize_model(copy.deepcopy(reference), text_ids(tokenizer))
    errors = [logits_error(other, reference, held_out) for other in (model, nearest)]
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    card = CARD.format(group_size=GROUP_SIZE, rows=CALIBRATION_ROWS, errors=errors)
    (out / "README.md").write_text(card, encoding="utf-8")
    return out
