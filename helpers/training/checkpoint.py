"""Checkpoints: all that a run needs to go on exactly, in safetensors and JSON.

The newest two are kept. Each is written aside, flushed to the disk and renamed, and holds the
hashes of its files: one that is damaged is named, and the one before it is there to go on from.
"""

import base64
import hashlib
import json
import os
import random
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from helpers.atomic import flush, flush_folder, naming, remove, written_aside
from helpers.evaluation import file_digest, write_json
from helpers.identity import tensors_identity

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
KEPT = 2  # checkpoints
NAME = r"step-\d{8,}"  # what has another name is no checkpoint, and stays where it is
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
    """Write `folder/step-<step>` beside its place, rename it, and keep it and the one before.

    optimizer: None for the last checkpoint, after which no step follows.
    A run that is killed while writing leaves the checkpoint before it as the newest; a step that
    is there already is not written again.

    Raises OSError, in one sentence that names the path, where the disk is full.
    """
    final, beside = folder / f"step-{step:08d}", folder / f".step-{step:08d}.{os.getpid()}"
    if final.exists():
        return final
    try:
        with naming(final):
            beside.mkdir(parents=True, exist_ok=True)
            weights = {name: p.detach().contiguous() for name, p in parameters.items()}
            save_tensors(weights, beside / WEIGHTS)
            tensors = {} if optimizer is None else _optimizer_tensors(parameters, optimizer)
            save_tensors(tensors, beside / OPTIMIZER)
            hashes = {name: file_digest(beside / name) for name in (WEIGHTS, OPTIMIZER)}
            write_json(beside / STATE, _sealed({"step": step, **state, "files": hashes}))
            flush(beside)
            os.replace(beside, final)
            flush_folder(folder)
    except BaseException:
        remove(beside)
        raise
    half_written = [path for path in folder.iterdir() if re.fullmatch(rf"\.{NAME}\.\d+", path.name)]
    for other in (*all_checkpoints(folder)[:-KEPT], *half_written):
        remove(other)
    return final


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata=None) -> None:
    """A safetensors file. Raises OSError, also where safetensors has an error of its own kind."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if not found:
            raise OSError(f"{path} cannot be written: {error}.") from error
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def replace_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata=None) -> None:
    """The same in place of a file, atomically."""
    with written_aside(path) as beside:
        save_tensors(tensors, beside, metadata)


def _sealed(state: dict[str, Any]) -> dict[str, Any]:
    """The state with a hash of itself."""
    read = json.loads(json.dumps(state))
    return state | {"hash": hash_of(read)}


def all_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, the newest last; a half-written one has another kind of name."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if re.fullmatch(NAME, path.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    return next(reversed(all_checkpoints(folder)), None)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors.

    Raises ValueError where it is damaged, with the way on.
    """
    try:
        state = json.loads((checkpoint / STATE).read_bytes())
        sealed = state.pop("hash")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sealed, state = None, {}
    if sealed != hash_of(state):
        raise _damaged(checkpoint, STATE)
    return state


def check_files(checkpoint: Path, state: dict[str, Any]) -> None:
    """Raises ValueError where a file of a checkpoint is not the one that was written."""
    for name, expected in state["files"].items():
        path = checkpoint / name
        if not path.is_file() or file_digest(path) != expected:
            raise _damaged(checkpoint, name)


def _damaged(checkpoint: Path, name: str) -> ValueError:
    before = [other.name for other in all_checkpoints(checkpoint.parent) if other < checkpoint]
    way_on = f"the one before, {before[-1]}, is used" if before else "the run starts from its start"
    return ValueError(
        f"The checkpoint file {checkpoint / name} is damaged or missing: delete the folder "
        f"{checkpoint}, and {way_on} when the same training is started again."
    )


def load_tensors(
    checkpoint: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put weights and optimiser tensors back in place."""
    weights = load_file(checkpoint / WEIGHTS)
    sizes = {name: tensor.shape for name, tensor in weights.items()}
    if sizes != {name: parameter.shape for name, parameter in parameters.items()}:
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
    """A short description of the trained weights: any other value gives another one.

    Without PPO's value head: it is 0 at the start of every run and taken off at its end, so a model
    that was trained in this session comes back without it.
    """
    own = {name: p for name, p in parameters.items() if not name.startswith(VALUE_HEAD)}
    return f"{len(own)} tensors, {tensors_identity(own)}"


def hash_of(*parts: Any) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]
