"""Log-probabilities under the reference policy: computed once, before a run, and kept beside it.

The reference never changes, so one pass over the data serves all epochs, and the frozen copy can
go. What is kept is named after the weights it came from, the token ids it is of (so after data,
template and length, too) and the precision, and is used again for these alone.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from helpers.identity import tensors_identity
from helpers.logprobs import at_least_float32
from helpers.reference import freeze_reference, weights_identity
from helpers.training.batches import micro_batches
from helpers.training.checkpoint import hash_of, replace_tensors
from helpers.training.loop import EVALUATION_ROWS, make_accelerator, trainable_parameters
from helpers.training.method import Batch, Method, data_digest
from helpers.training.run import REFERENCE, RunFolder, provenance
from helpers.training.sft import Row, tokenized_row


class ReferenceMethod(Method):
    """A method whose loss compares the policy with the reference.

    names: of the log-probabilities that it compares.
    reference: name to (n,), the reference's log-probabilities of each usable example; a batch holds
        those of its rows as ref_<name>. Empty until `use_reference` has run.
    rows_hash: names the token ids, and the function that sums over them.
    """

    drops = False

    names: tuple[str, ...]
    reference: dict[str, torch.Tensor]
    rows_hash: str

    @abstractmethod
    def logps(self, model, batch: Batch) -> dict[str, torch.Tensor]:
        """The log-probabilities of `names` under a model, with gradient; each (N,)."""

    def reference_of(self, rows: Sequence[int]) -> Batch:
        return {f"ref_{name}": values[list(rows)] for name, values in self.reference.items()}


def response_row(functions, prompt, response, tokenizer, settings, max_length=None) -> Row:
    """Prompt and response as shifted token ids, uncut unless a length is given."""
    tokenize = functions["tokenize_prompt_and_response"]
    row = tokenized_row(tokenize, prompt, response, tokenizer, settings, max_length)
    if row is None:
        raise ValueError(f"tokenize_prompt_and_response left no response token of {response!r}.")
    return row


def rows_hash(rows: Sequence[Row], functions: Mapping[str, Callable]) -> str:
    """Names token ids and masks, and whose function sums the log-probabilities over them."""
    digests = [data_digest([tensor.tolist() for tensor in row]) for row in rows]
    return hash_of(digests, provenance(functions["sequence_log_probs"]))


def check_shape(name: str, values: torch.Tensor, shape) -> None:
    if values.shape != torch.Size(shape):
        raise ValueError(
            f"{name} must return one number a response, {tuple(shape)}, but returned "
            f"{tuple(values.shape)}."
        )


def use_reference(model, methods: dict[str, ReferenceMethod], settings, folder: RunFolder):
    """Give `methods` ("train", perhaps "eval") their reference log-probabilities.

    The reference is the model as it is now; for a run that goes on, as it was at its start.
    Returns a callback that keeps them in the run's folder, whose settings.json and summary.json
    name the reference.

    Raises ValueError for a run that goes on with trained weights and has lost its reference.
    """
    make_accelerator(next(model.parameters()).device)  # sets up the processes
    rows = _rows_of(methods, settings)
    identity, tensors = _kept(model, rows, folder) or _computed(model, methods, settings)
    for part, method in methods.items():
        own = {name: values for name, values in tensors.items() if name.startswith(f"{part}/")}
        method.reference = {name.partition("/")[2]: values for name, values in own.items()}
    folder.notes["reference"] = identity
    return _keeper(folder, identity, rows, tensors)


def _kept(model, wanted: str, folder: RunFolder):
    """(identity, tensors) of the folder; None where they are of other weights or other rows."""
    parameters = trainable_parameters(model)
    goes_on = folder.holds_this_run(parameters)
    identity, rows, tensors = _read(folder.path)
    is_ours = tensors and rows == wanted
    if is_ours and (goes_on or identity == weights_identity(model)):
        return identity, tensors
    if goes_on and not folder.started_from(parameters):
        raise ValueError(
            f"{folder.path} is a run that goes on, but its {REFERENCE} is missing, damaged "
            "or of other data: load the model that it started from, or start anew in another "
            "folder."
        )
    return None


def _computed(model, methods: dict[str, ReferenceMethod], settings):
    reference = freeze_reference(model)
    with reference as start:
        tensors = {
            f"{part}/{name}": values
            for part, method in methods.items()
            for name, values in _measured(start, method, settings).items()
        }
    return reference.identity, tensors


def _measured(model, method: ReferenceMethod, settings) -> dict[str, torch.Tensor]:
    """Name to (n,); each process takes its share of the rows."""
    state, device = PartialState(), next(model.parameters()).device
    rows = range(len(method.lengths))
    dtype = at_least_float32(next(model.parameters())).dtype
    found = {name: torch.zeros(len(rows), dtype=dtype, device=device) for name in method.names}
    pieces = micro_batches(
        rows,
        method.lengths,
        size=settings.micro_batch_size or EVALUATION_ROWS,
        process=state.process_index,
        num_processes=state.num_processes,
    )
    hidden = not (settings.progress and state.is_main_process)
    for piece in tqdm(pieces, desc="reference", unit="batch", disable=hidden):
        batch = {name: tensor.to(device) for name, tensor in method.batch(piece).items()}
        # The policy's own arithmetic: else its first loss is not that of equal models.
        with half_precision(settings, device):
            for name, values in method.logps(model, batch).items():
                found[name][piece] = values.to(found[name].dtype)
    return {name: reduce(values, "sum").cpu() for name, values in found.items()}


def half_precision(settings, device: torch.device):
    """bfloat16 arithmetic where the settings ask for it, as in the loop's own passes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")


def _keeper(folder: RunFolder, identity: str, rows: str, tensors) -> Callable:
    """A callback that writes the file after the run's first step, and before its checkpoint.

    Only then has the folder been opened, and another run's files been set aside.
    """
    is_kept = folder.path is None or not PartialState().is_main_process

    def keep(run, record) -> None:
        nonlocal is_kept
        if not is_kept:
            about = {"reference": identity, "rows": rows, "hash": tensors_identity(tensors)}
            replace_tensors(tensors, folder.path / REFERENCE, about)
            is_kept = True

    return keep


def _read(folder: Path | None) -> tuple[str, str, dict[str, torch.Tensor]]:
    """(identity, rows, tensors) of the file; nothing where there is none, or it is damaged."""
    nothing = "", "", {}
    if folder is None or not (folder / REFERENCE).is_file():
        return nothing
    try:
        with safe_open(folder / REFERENCE, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError:
        return nothing
    if about.get("hash") != tensors_identity(tensors):
        return nothing
    return about["reference"], about["rows"], tensors


def _rows_of(methods: dict[str, ReferenceMethod], settings) -> str:
    """Names what is kept beside the weights: token ids, and the arithmetic."""
    parts = [f"{part} {method.rows_hash}" for part, method in methods.items()]
    return ", ".join([settings.precision, *parts])
