"""The packer of the 4-bit checkpoint: what it writes, and that its scales beat plain rounding."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.layers import dequantize_awq
from helpers.models import load_model
from workbook.world.awq import (
    HELD_OUT_SEED,
    fold_scales,
    input_statistics,
    logits_error,
    quantize_model,
    scaled_groups,
    search_scales,
    text_ids,
)

ASSETS = Path(__file__).parents[2] / "workbook" / "assets"


@pytest.fixture(scope="module")
def held_out(base_model):
    """Rows of text that neither the training nor the calibration has read."""
    return text_ids(base_model[1], HELD_OUT_SEED, rows=6)


def test_folding_scales_changes_no_output(base_model, held_out):
    base, tokenizer = base_model
    model = copy.deepcopy(base)
    torch.manual_seed(0)
    with torch.no_grad():
        for group in scaled_groups(model):
            width = group.shared(torch.ones(group.layers[0].in_features)).numel()
            fold_scales(group, torch.rand(width) + 0.5)
    assert logits_error(model, base, held_out) < 1e-4


def test_searched_scales_are_better_than_rounding_on_text_of_neither(base_model, held_out):
    base, tokenizer = base_model
    ids = text_ids(tokenizer, rows=4)
    searched = logits_error(quantize_model(copy.deepcopy(base), ids), base, held_out)
    plain = logits_error(quantize_model(copy.deepcopy(base), None), base, held_out)
    assert 0.05 < searched < 0.98 * plain


def test_search_finds_the_inputs_that_matter(base_model):
    """One input is a hundred times larger than the others: its weights get the largest scale."""
    base, tokenizer = base_model
    model = copy.deepcopy(base)
    group = next(scaled_groups(model))
    group.makes.weight.data[5] *= 100
    statistics = input_statistics(model, text_ids(tokenizer, rows=1))
    scales = search_scales(group, statistics[group.layers[0]], 64)
    assert scales.argmax() == 5 and scales[5] > 2


def test_shipped_checkpoint_is_in_the_standard_layout(base_model, held_out):
    config = json.loads((ASSETS / "base-awq" / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"] == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 64,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    tensors = load_file(ASSETS / "base-awq" / "model.safetensors")
    prefix = "model.layers.0.mlp.down_proj"  # 640 inputs, 256 outputs
    shapes = {name: tuple(tensors[f"{prefix}.{name}"].shape) for name in ("qweight", "qzeros")}
    assert shapes == {"qweight": (640, 32), "qzeros": (10, 32)}
    assert tensors[f"{prefix}.scales"].shape == (10, 256)
    assert tensors[f"{prefix}.scales"].dtype == torch.float16
    size = sum(file.stat().st_size for file in (ASSETS / "base-awq").iterdir())
    assert size < 3_000_000
    model, _ = load_model(ASSETS / "base-awq", device="cpu")
    parts = [tensors[f"{prefix}.{name}"] for name in ("qweight", "qzeros", "scales")]
    loaded = model.model.layers[0].mlp.down_proj.dequantize()
    assert torch.equal(loaded, dequantize_awq(*parts, group_size=64))
    assert logits_error(model, base_model[0], held_out) < 0.2
