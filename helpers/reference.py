"""The reference policy: the model as it was at the start of a run, to compare the policy with."""

from contextlib import ExitStack

import torch

from helpers.identity import model_identity


class Reference:
    """The start of a run. Inside `with reference:` the model is what it was then.

    It holds a copy of the parameters that are trained, and puts them into the model on entering:
    in evaluation mode (no dropout), without gradients, and all undone on leaving, by an exception
    too. So one rule serves new LoRA layers (the reference is the base model), a continued adapter
    (the base *with* that adapter, which switching adapters off would miss) and full training.

    identity: names the weights of the whole reference. Written into a run, and the key of cached
        log-probabilities.
    tensors: the copies, by name: what a checkpoint keeps, so that a resumed run compares with the
        same start.

    Example:
        >>> reference = freeze_reference(model)
        >>> with reference as start:
        ...     ref_log_probs = response_log_probs(start, ids, labels)["log_probs"]
    """

    def __init__(self, model, tensors: dict[str, torch.Tensor]):
        self.model, self.tensors = model, tensors
        self._undo: ExitStack | None = None
        with self:
            self.identity = weights_identity(model)

    def __enter__(self):
        if self._undo is not None:
            raise RuntimeError("The reference is already in use: leave its `with` block first.")
        with ExitStack() as undo:  # undone here where entering itself fails
            undo.callback(_set_modes, {m: m.training for m in self.model.modules()})
            undo.enter_context(torch.no_grad())
            self.model.eval()
            trained = {name: p.data for name, p in self._parameters().items()}
            undo.callback(self._put, trained)
            self._put(self.tensors)
            self._undo = undo.pop_all()
        return self.model

    def __exit__(self, *_) -> None:
        undo, self._undo = self._undo, None
        undo.close()

    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if name in self.tensors}

    def _put(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters().items():
            parameter.data = tensors[name].to(parameter.device)


def freeze_reference(model, tensors: dict[str, torch.Tensor] | None = None) -> Reference:
    """The reference policy of a run that starts now: a copy of what is about to be trained.

    tensors: of an earlier `Reference`, for a run that is resumed; else the model as it is.

    Raises ValueError for tensors that do not fit the model's trained parameters.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if tensors is None:
        tensors = {name: p.detach().clone() for name, p in trained.items()}
    expected = {name: p.shape for name, p in trained.items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ValueError(
            "The saved reference does not fit this model: the run was started with another model "
            "or other LoRA settings; give those, or start a new run."
        )
    return Reference(model, tensors)


def weights_identity(model) -> str:
    """Sixteen hexadecimal digits that change with any weight of the model, and with what its
    weights are used for: configuration, LoRA's scaling."""
    return model_identity(model)


def _set_modes(modes: dict[torch.nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training
