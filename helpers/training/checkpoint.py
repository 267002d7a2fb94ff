"""Checkpoints: all that a run needs to go on exactly, in safetensors and JSON."""

import base64
import hashlib
import json
import os
import random
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from helpers.evaluation import write_json

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
VALUE_HEAD = "value_head."  # what the names of its parameters start with


@contextmanager
def seeded(seed: int):
    """Inside, Python, numpy and torch draw from `seed`; afterwards they go on as before."""
    before = random_states()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(before)


def random_states() -> dict[str, Any]:
    """The states of all generators that training may draw from, as JSON."""
    name, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": _to_text(torch.get_rng_state()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = _to_text(torch.cuda.get_rng_state())
    return states


def set_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_from_text(states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(_from_text(states["cuda"]))


def _to_text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _from_text(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def save_checkpoint(
    folder: Path,
    step: int,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
) -> Path:
    """Write `folder/step-<step>` beside its place, rename it, and delete the older ones.

    optimizer: None for the last checkpoint, after which no step follows.
    A run that is killed while writing leaves the checkpoint before it as the newest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, beside = folder / f"step-{step:08d}", folder / f".step-{step:08d}.{os.getpid()}"
    beside.mkdir(exist_ok=True)
    save_file({name: p.detach().contiguous() for name, p in parameters.items()}, beside / WEIGHTS)
    tensors = {} if optimizer is None else _optimizer_tensors(parameters, optimizer)
    save_file(tensors, beside / OPTIMIZER)
    write_json(beside / STATE, {"step": step, **state})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(beside, final)
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; a half-written one has another kind of name."""
    return max(folder.glob("step-*"), default=None) if folder.is_dir() else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


def load_tensors(
    checkpoint: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put weights and optimiser tensors back in place."""
    weights = load_file(checkpoint / WEIGHTS)
    if weights.keys() != parameters.keys():
        raise ValueError(f"The checkpoint {checkpoint} holds other parameters than the model.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for key, tensor in load_file(checkpoint / OPTIMIZER).items():
        kind, _, name = key.partition("/")
        parameter = parameters[name]
        optimizer.state[parameter][kind] = tensor.to(parameter.device)


def _optimizer_tensors(parameters, optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}": tensor.contiguous()
        for name, parameter in parameters.items()
        for kind, tensor in optimizer.state[parameter].items()
    }


def fingerprint(parameters: dict[str, torch.nn.Parameter]) -> str:
    """A short description of the weights: other weights give another one, at little cost.

    Without PPO's value head: it is 0 at the start of every run and taken off at its end, so a model
    that was trained in this session comes back without it.
    """
    own = {name: p for name, p in parameters.items() if not name.startswith(VALUE_HEAD)}
    with torch.no_grad():
        sums = [f"{p.sum().item():.8e} {p.abs().sum().item():.8e}" for p in own.values()]
    return f"{len(own)} tensors, {hash_of(list(own), sums)}"


def hash_of(*parts: Any) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]
