"""Training and evaluation mode of a model, module by module."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def kept_modes(model) -> Iterator[None]:
    """What is changed inside comes back for each module: a model may be partly in training."""
    before = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def evaluation_mode(model) -> Iterator[None]:
    """No dropout and no gradients inside; the model's own mode comes back, after an error too."""
    with kept_modes(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def without_dropout(model) -> Iterator[None]:
    """Inside, a model that is trained drops nothing: no layer, and no attention by a flag.

    Attention drops its weights by a function that asks for its module's mode, so every module is
    in evaluation mode. Layers that are computed again for the gradient ask for training mode to do
    so: they keep it, and leave it while they compute.
    """
    handles = []
    with kept_modes(model):
        model.eval()
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
                layer.training = True
                handles += _computing_in_evaluation(layer)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _computing_in_evaluation(layer: nn.Module) -> list:
    """Hooks: the layer is in evaluation mode while it computes, and then as it was asked."""
    modes: list[bool] = []

    def enter(*_) -> None:
        modes.append(layer.training)
        layer.training = False

    def leave(*_) -> None:
        layer.training = modes.pop()

    return [
        layer.register_forward_pre_hook(enter),
        layer.register_forward_hook(leave, always_call=True),
    ]


def lora_dropout(model) -> float:
    """The largest share of the inputs that a LoRA layer drops in training."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    kinds = [drop for layer in layers for drop in layer.lora_dropout.values()]
    return max((getattr(drop, "p", 0.0) for drop in kinds), default=0.0)
