"""helpers.models.freeze_reference: the start of a run, whatever was trained since."""

import pytest
import torch

from helpers.models import LoraSettings, freeze_reference, load_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture
def folder(tmp_path, tiny_random_model):
    model, tokenizer = tiny_random_model
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def change(model, seed: int = 3) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)


def start(folder, tmp_path, kind: str):
    """A model at the start of a run: new LoRA layers, a continued adapter, or all of it."""
    if kind == "full":
        return load_model(folder, device="cpu")[0]
    lora = LoraSettings(rank=4, dropout=0.5)
    model = load_model(folder, device="cpu", lora=lora)[0]
    if kind == "continued":
        change(model)
        model.save_pretrained(tmp_path / "adapter")
        model = load_model(folder, device="cpu", adapter=tmp_path / "adapter")[0]
    return model


def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["new", "continued", "full"])
def test_reference_is_the_start_and_training_goes_on_untouched(folder, tmp_path, kind):
    model = start(folder, tmp_path, kind)
    with torch.no_grad():
        expected = logits(model)
    reference = freeze_reference(model)
    change(model, seed=4)
    with torch.no_grad():
        moved = logits(model)
    model.train()
    policy = logits(model)  # its graph is alive while the reference is used
    with reference as at_start:
        assert not any(module.training for module in model.modules())
        found = logits(at_start)
    assert not found.requires_grad
    assert torch.equal(found, expected) and not torch.equal(found, moved)
    assert all(module.training for module in model.modules())
    policy.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        assert torch.equal(logits(model.eval()), moved)


def test_gradients_do_not_depend_on_a_reference_pass_before_the_backward(folder, tmp_path):
    model = start(folder, tmp_path, "continued")
    reference = freeze_reference(model)
    change(model, seed=4)
    found = []
    for use in (False, True):
        model.zero_grad()
        loss = logits(model).square().mean()
        if use:
            with reference as at_start:
                logits(at_start)
        loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_an_exception_restores_everything(folder, tmp_path):
    model = start(folder, tmp_path, "continued")
    reference = freeze_reference(model)
    change(model)
    with torch.no_grad():
        moved = logits(model)
    model.train()
    with pytest.raises(KeyError):
        with reference:
            raise KeyError("in the middle")
    assert torch.is_grad_enabled() and all(module.training for module in model.modules())
    with torch.no_grad():
        assert torch.equal(logits(model.eval()), moved)
    with reference, pytest.raises(RuntimeError, match="already in use"):
        with reference:
            pass
    with torch.no_grad():
        assert torch.equal(logits(model), moved)


def test_identity_names_the_start_and_is_reloaded(folder, tmp_path):
    first = start(folder, tmp_path, "continued")
    reference = freeze_reference(first)
    kept = {name: tensor.clone() for name, tensor in reference.tensors.items()}
    change(first)
    assert freeze_reference(first).identity != reference.identity  # another start
    resumed = freeze_reference(first, kept)
    assert resumed.identity == reference.identity
    again = load_model(folder, device="cpu", adapter=tmp_path / "adapter")[0]
    assert freeze_reference(again).identity == reference.identity
    with pytest.raises(ValueError, match="does not fit"):
        freeze_reference(load_model(folder, device="cpu", lora=LoraSettings(rank=2))[0], kept)


def test_nothing_of_the_reference_is_saved_with_the_model(folder, tmp_path):
    model = start(folder, tmp_path, "continued")
    freeze_reference(model)
    model.save_pretrained(tmp_path / "saved")
    files = sorted(file.name for file in (tmp_path / "saved").iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
