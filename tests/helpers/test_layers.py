"""helpers.layers: the LoRA layer against peft's, the AWQ layout, and the 4-bit layer."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from helpers.layers import (
    AwqLinear,
    LoRALinear,
    dequantize_awq,
    pack_awq,
    quantize_awq,
    unpack_awq,
)

# ---------------------------------------------------------------- LoRA


def peft_layer(linear: nn.Linear, ours: LoRALinear, alpha: float):
    """The same weights inside peft's layer."""
    rank = ours.lora_A.shape[0]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"])
    theirs = get_peft_model(nn.Sequential(linear), config).base_model.model[0]
    theirs.lora_A["default"].weight.data.copy_(ours.lora_A.data)
    theirs.lora_B["default"].weight.data.copy_(ours.lora_B.data)
    return theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_lora_equals_pefts_in_value_and_gradient(dtype, bias):
    torch.manual_seed(0)
    linear = nn.Linear(12, 7, bias=bias).to(dtype)
    ours = LoRALinear(linear, rank=3, alpha=8)
    nn.init.normal_(ours.lora_B)
    theirs = peft_layer(linear, ours, alpha=8)
    x = torch.randn(2, 5, 12, dtype=dtype)
    results = []
    for layer, a, b in (
        (ours, ours.lora_A, ours.lora_B),
        (theirs, theirs.lora_A["default"].weight, theirs.lora_B["default"].weight),
    ):
        inputs = x.clone().requires_grad_()
        out = layer(inputs)
        out.float().square().sum().backward()
        results.append((out, inputs.grad, a.grad, b.grad))
    for mine, oracle in zip(*results, strict=True):
        assert mine.dtype == oracle.dtype
        torch.testing.assert_close(mine, oracle, atol=1e-5, rtol=1e-5)


def test_lora_starts_unchanged_and_trains_only_a_and_b():
    torch.manual_seed(0)
    linear = nn.Linear(12, 7)
    layer = LoRALinear(linear, rank=3, alpha=6)
    x = torch.randn(4, 12)
    assert torch.equal(layer(x), linear(x))
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    assert {name: tuple(p.shape) for name, p in trained.items()} == {
        "lora_A": (3, 12),
        "lora_B": (7, 3),
    }
    half = LoRALinear(nn.Linear(12, 7).bfloat16(), rank=3, alpha=6)
    assert half.lora_A.dtype == half.lora_B.dtype == torch.float32
    assert half(x.bfloat16()).dtype == torch.bfloat16


# ---------------------------------------------------------------- the AWQ layout


def test_words_are_interleaved():
    """By hand: the nibbles from the lowest hold columns 0 2 4 6 1 3 5 7."""
    word = sum(value << (4 * place) for place, value in enumerate([10, 12, 14, 15, 11, 13, 9, 8]))
    packed = torch.tensor([[word - 2**32]]).to(torch.int32)  # the sign bit is set
    assert unpack_awq(packed).tolist() == [[10, 11, 12, 13, 14, 9, 15, 8]]


def test_pack_is_the_inverse_of_unpack():
    torch.manual_seed(0)
    values = torch.randint(0, 16, (6, 24))
    assert pack_awq(values).dtype == torch.int32
    assert torch.equal(unpack_awq(pack_awq(values)), values.int())


def test_dequantize_by_hand():
    """Two groups of two inputs, eight outputs; w = (q - z) s, transposed."""
    q = torch.arange(32).view(4, 8) % 16
    z = torch.tensor([[8] * 8, [1, 2, 3, 4, 5, 6, 7, 8]])
    s = torch.tensor([[0.5] * 8, [0.25, 1, 1, 1, 1, 1, 1, 2]]).half()
    weight = dequantize_awq(pack_awq(q), pack_awq(z), s, group_size=2)
    assert weight.shape == (8, 4) and weight.dtype == torch.float32
    assert weight[0].tolist() == [-4.0, 0.0, -0.25, 1.75]
    assert weight[7].tolist() == [-0.5, 3.5, -2.0, 14.0]


def test_rounding_is_to_nearest_within_half_a_step():
    torch.manual_seed(0)
    weight = torch.randn(16, 24) * 0.05
    weight[:, :8] += 0.3  # a group without a negative number: 0 is still among the levels
    qweight, qzeros, scales = quantize_awq(weight, group_size=8)
    assert qweight.shape == (24, 2) and qzeros.shape == (3, 2) and scales.shape == (3, 16)
    back = dequantize_awq(qweight, qzeros, scales, group_size=8)
    steps = scales.float().repeat_interleave(8, 0).T
    inner = (back - weight).abs() / steps
    assert inner.max() < 1.01  # at an end of the range the zero point's own rounding adds to it
    assert (inner < 0.51).float().mean() > 0.97
    exact = dequantize_awq(*quantize_awq(back, 8), 8)
    torch.testing.assert_close(exact, back, atol=1e-3, rtol=1e-2)


def test_constant_zero_group_stays_zero():
    back = dequantize_awq(*quantize_awq(torch.zeros(8, 8), 8), 8)
    assert torch.equal(back, torch.zeros(8, 8))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="group size 64.*12 inputs"):
        quantize_awq(torch.zeros(8, 12), 64)
    with pytest.raises(ValueError, match="7 outputs"):
        quantize_awq(torch.zeros(7, 64), 64)


# ---------------------------------------------------------------- the 4-bit layer


@pytest.mark.parametrize("bias", [True, False])
def test_awq_layer_equals_its_dense_form_in_value_and_gradient(bias):
    torch.manual_seed(0)
    layer = AwqLinear.from_linear(nn.Linear(64, 24, bias=bias), group_size=32)
    dense = nn.Linear(64, 24, bias=bias)
    dense.weight.data = layer.dequantize()
    if bias:
        dense.bias.data = layer.bias.clone()
    results = []
    for which in (layer, dense):
        x = torch.linspace(-1, 1, 3 * 5 * 64).view(3, 5, 64).requires_grad_()
        out = which(x)
        out.square().sum().backward()
        results.append((out, x.grad))
    for mine, oracle in zip(*results, strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-5, rtol=1e-5)
    assert not list(layer.parameters())


def test_awq_layer_keeps_no_full_size_tensor_for_the_gradient():
    layer = AwqLinear.from_linear(nn.Linear(64, 64, bias=False), group_size=64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True)).sum()
    assert all(tensor.numel() < 64 * 64 for tensor in kept)
    stored = sum(buffer.nbytes for buffer in layer.buffers())
    assert stored == 64 * 64 // 2 + 64 * 2 + 64 // 2  # weights, scales, zero points


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_awq_layer_answers_in_the_dtype_of_its_input(dtype):
    layer = AwqLinear.from_linear(nn.Linear(64, 16), group_size=64)
    assert layer(torch.randn(2, 64, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("safe", [True, False])
def test_merging_into_packed_weights_is_an_error_and_not_a_change_of_a_copy(safe):
    layer = AwqLinear.from_linear(nn.Linear(64, 16), group_size=64)
    model = nn.Sequential(layer, nn.Linear(16, 2))
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["0"]))
    words = layer.qweight.clone()
    with pytest.raises(RuntimeError, match="packed 4-bit weights.*helpers.models.merge_adapter"):
        peft_model.merge_and_unload(safe_merge=safe)
    assert torch.equal(layer.qweight, words)
