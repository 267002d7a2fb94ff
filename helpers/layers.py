"""Linear layers: a low-rank update over a frozen layer, and 4-bit weights in the AWQ layout.

Notation: x (..., in_features) to (..., out_features); G is the group size, the number of
neighbouring inputs that share one scale and one zero point.
"""

import math

import torch
from torch import nn
from torch.nn.functional import linear

# Nibble i of a packed 32-bit word, counted from its lowest bits, holds column AWQ_ORDER[i] of the
# eight that the word stands for: the order in which the layout's CUDA kernels read them.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS = 4


class LoRALinear(nn.Module):
    """A frozen linear layer and a low-rank update that is trained.

    h = W x + b + (alpha / r) B A x     (Hu et al. 2021, section 4.1, equation 3)

    linear: the layer W, b; its parameters are frozen here.
    rank: r, the rows of A (r, in_features) and the columns of B (out_features, r).
    alpha: the update is scaled by alpha / r, so that r can change at about equal learning rate.

    A starts at random and B at zero: the layer starts as the one it wraps. Both are float32
    whatever the frozen weight is, and the update is computed in float32.

    Example:
        >>> layer = LoRALinear(nn.Linear(64, 32), rank=4, alpha=8)
        >>> [tuple(p.shape) for p in layer.parameters() if p.requires_grad]
        [(4, 64), (32, 4)]
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        device = linear.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as nn.Linear starts its weight
        self.scaling = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frozen = self.linear(x)
        # x A^T B^T and not x (B A)^T: the product of rank r is never written out
        update = x.to(self.lora_A.dtype) @ self.lora_A.T @ self.lora_B.T
        return (frozen + self.scaling * update).to(frozen.dtype)


def unpack_awq(packed: torch.Tensor) -> torch.Tensor:
    """Eight 4-bit numbers out of each 32-bit word: (rows, columns / 8) to (rows, columns).

    The words are interleaved: nibble i, from the lowest bits, is column AWQ_ORDER[i]. Returns
    int32 from 0 to 15.

    Example:
        >>> unpack_awq(torch.tensor([[0x75316420]], dtype=torch.int32))
        tensor([[0, 1, 2, 3, 4, 5, 6, 7]], dtype=torch.int32)
    """
    nibble_of_column = [AWQ_ORDER.index(column) for column in range(8)]
    shifts = BITS * torch.tensor(nibble_of_column, device=packed.device, dtype=torch.int32)
    # The shift of a negative word brings ones in from the left; & 15 takes them off again.
    return ((packed[..., None] >> shifts) & 15).flatten(-2)


def pack_awq(values: torch.Tensor) -> torch.Tensor:
    """The inverse of `unpack_awq`: (rows, columns) of 0 to 15 to int32 (rows, columns / 8)."""
    words = values.to(torch.int64).unflatten(-1, (-1, 8))[..., list(AWQ_ORDER)]
    shifts = BITS * torch.arange(8, device=values.device)
    return (words << shifts).sum(-1).to(torch.int32)  # the ninth hexadecimal digit never comes


def dequantize_awq(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, group_size: int
) -> torch.Tensor:
    """The weight that an AWQ checkpoint stands for: w = (q - z) s  (Lin et al. 2023).

    qweight: int32 (in, out / 8), packed. qzeros: int32 (in / G, out / 8), packed.
    scales: (in / G, out). Each group of G inputs has its own zero point z and scale s.

    Returns the weight as `nn.Linear` holds it, float32 (out, in); exact for scales in float16.

    Example: q = 9, z = 8, s = 0.5 give w = 0.5.
    """
    q = unpack_awq(qweight).unflatten(0, (-1, group_size))  # (in / G, G, out)
    z = unpack_awq(qzeros)[:, None]  # (in / G, 1, out)
    weight = (q - z) * scales[:, None].float()
    return weight.flatten(0, 1).T.contiguous()


def quantize_awq(
    weight: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round a weight (out, in) to 4 bits a number: (qweight, qzeros, scales), as stored.

    In each group the numbers from the smallest to the largest, 0 among them, are spread over 16
    levels: s = (max - min) / 15, z = round(-min / s), q = round(w / s) + z. Round to nearest: the
    error is at most s / 2 a weight.

    Raises ValueError where in is no multiple of the group size, or out none of 8.
    """
    out_features, in_features = weight.shape
    if in_features % group_size or out_features % 8:
        raise ValueError(
            f"AWQ needs inputs in multiples of the group size {group_size} and outputs in "
            f"multiples of 8, but this weight has {in_features} inputs, {out_features} outputs."
        )
    groups = weight.T.float().unflatten(0, (-1, group_size))  # (in / G, G, out)
    lowest = groups.amin(1, keepdim=True).clamp(max=0)
    highest = groups.amax(1, keepdim=True).clamp(min=0)
    scales = ((highest - lowest) / 15).clamp(min=1e-5).half()  # as stored: rounded before its use
    zeros = (-lowest / scales.float()).round().clamp(0, 15)
    q = ((groups / scales.float()).round() + zeros).clamp(0, 15)
    return pack_awq(q.flatten(0, 1)), pack_awq(zeros.squeeze(1)), scales.squeeze(1)


class AwqLinear(nn.Linear):
    """A linear layer that keeps its weight in 4 bits, in the AWQ layout, and is never trained.

    y = x dequantize_awq(...)^T + b. The weight is written out for the product and thrown away;
    for the gradient of x it is written out once more, so a training step holds one such weight at
    a time. LoRA layers go over it as over any linear layer.

    Merging an adapter into it in place raises: packed integers cannot take up a fraction, and a
    written-out weight would be a copy. `helpers.models.merge_adapter` writes a plain checkpoint.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, group_size: int):
        nn.Module.__init__(self)  # not nn.Linear's: it would make a full-size weight
        self.in_features, self.out_features = in_features, out_features
        self.group_size = group_size
        words, groups = out_features // 8, in_features // group_size
        self.register_buffer("qweight", torch.zeros(in_features, words, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(groups, words, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(groups, out_features, dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def from_linear(cls, layer: nn.Linear, group_size: int) -> "AwqLinear":
        """The rounded form of a layer: `quantize_awq` of its weight, its bias as it is."""
        quantized = cls(layer.in_features, layer.out_features, layer.bias is not None, group_size)
        parts = quantize_awq(layer.weight.detach(), group_size)
        quantized.qweight, quantized.qzeros, quantized.scales = parts
        quantized.bias = None if layer.bias is None else layer.bias.detach().clone()
        return quantized

    @property
    def weight(self) -> torch.Tensor:
        """The packed words: what asks a layer for its device finds it here."""
        words = self.qweight.as_subclass(_PackedWords)
        vars(words).update(vars(self.qweight))  # transformers' mark: loaded, not to be drawn anew
        return words

    def dequantize(self) -> torch.Tensor:
        """The weight (out_features, in_features) in float32."""
        return dequantize_awq(self.qweight, self.qzeros, self.scales, self.group_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = _AwqProduct.apply(x, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _PackedWords(torch.Tensor):
    """Words of eight numbers each, to which peft's merge cannot add its update."""

    def normal_(self, *_, **__):
        """Missing ones are no numbers to draw: whoever loads the model says that they lack."""
        return self

    def __iadd__(self, other):
        raise RuntimeError(
            "An adapter cannot be merged into packed 4-bit weights in place: write a plain "
            "checkpoint by helpers.models.merge_adapter instead."
        )


class _AwqProduct(torch.autograd.Function):
    """x W^T with W written out from 4 bits in both directions, and kept in neither."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, layer: AwqLinear) -> torch.Tensor:
        ctx.layer = layer
        return linear(x, layer.dequantize().to(x.dtype))

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient @ ctx.layer.dequantize().to(gradient.dtype), None
