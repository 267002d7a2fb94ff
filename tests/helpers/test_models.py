"""helpers.models: what is loaded, what is trained, and what is said when it cannot be loaded."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.models import LoraSettings, load_model


@pytest.fixture
def folder(tmp_path, tiny_random_model):
    """A saved random model in bfloat16, as the course's own model is stored."""
    model, tokenizer = tiny_random_model
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def logits(model, tokenizer, text="Nora has 12 apples"):
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


def trainable(model) -> dict:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_small_model_is_float32_and_trainable(folder):
    model, tokenizer = load_model(folder, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(trainable(model)) == len(list(model.parameters()))
    assert not model.training
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0


def test_half_precision_plain_model_is_frozen(folder):
    model, _ = load_model(folder, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not trainable(model)


def test_half_precision_leaves_the_positions_exact(folder):
    """A model cast as a whole has rounded rotary frequencies: far tokens stand elsewhere."""
    model, tokenizer = load_model(folder, device="cpu", dtype="bfloat16")
    hub = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    text = "Nora has 12 apples and buys 30 more. " * 20
    assert torch.equal(logits(model, tokenizer, text), logits(hub, tokenizer, text))
    whole = hub.float().to(torch.bfloat16)
    assert not torch.equal(logits(whole, tokenizer, text), logits(model, tokenizer, text))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_new_lora_trains_only_float32_adapters_and_starts_unchanged(folder, dtype):
    plain, tokenizer = load_model(folder, device="cpu", dtype=dtype)
    model, _ = load_model(folder, device="cpu", dtype=dtype, lora=LoraSettings(rank=4, alpha=8))
    assert isinstance(model, PeftModel)
    parameters = trainable(model)
    assert len(parameters) == 2 * 7 * 2  # A and B, seven linear layers a block, two blocks
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in parameters.items())
    assert torch.equal(logits(plain, tokenizer), logits(model, tokenizer))


def test_lora_start_repeats_by_its_seed_only(folder):
    starts = []
    for global_seed, seed in ((7, 1), (8, 1), (7, 2)):
        torch.manual_seed(global_seed)
        model, _ = load_model(folder, device="cpu", lora=LoraSettings(rank=4, seed=seed))
        starts.append(next(p for name, p in trainable(model).items() if "lora_A" in name))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("train_it", [True, False])
def test_saved_adapter_comes_back_with_its_effect(folder, tmp_path, train_it):
    model, tokenizer = load_model(folder, device="cpu", lora=LoraSettings(rank=4))
    torch.manual_seed(0)
    for parameter in trainable(model).values():
        parameter.data.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    loaded, _ = load_model(
        folder, device="cpu", adapter=tmp_path / "adapter", trainable_adapter=train_it
    )
    torch.testing.assert_close(logits(loaded, tokenizer), logits(model, tokenizer))
    plain, _ = load_model(folder, device="cpu")
    assert not torch.allclose(logits(loaded, tokenizer), logits(plain, tokenizer), atol=0.1)
    assert bool(trainable(loaded)) == train_it
    half, _ = load_model(folder, device="cpu", adapter=tmp_path / "adapter", dtype="bfloat16")
    assert {p.dtype for p in trainable(half).values()} == {torch.float32}


def test_a_loaded_adapter_names_the_base_that_it_stands_on(folder, tmp_path, capfd, monkeypatch):
    """Shipped adapters name theirs by a path inside the course, which leads nowhere elsewhere."""
    model, _ = load_model(folder, device="cpu", lora=LoraSettings(rank=4))
    model.peft_config["default"].base_model_name_or_path = "no/such/base"
    model.save_pretrained(tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    loaded, _ = load_model(folder, device="cpu", adapter=tmp_path / "shipped")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.save_pretrained(tmp_path / "again")
    assert capfd.readouterr().err == ""
    written = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(folder)


def test_settings_that_cannot_be(folder):
    with pytest.raises(ValueError, match="not both"):
        load_model(folder, adapter="somewhere", lora=LoraSettings())
    with pytest.raises(ValueError, match="dtype must be auto or one of"):
        load_model(folder, dtype="int4")
    with pytest.raises(ValueError, match="rank"):
        LoraSettings(rank=0)
    with pytest.raises(ValueError, match="dropout"):
        LoraSettings(dropout=1.0)
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or mps.*'gpu'"):
        load_model(folder, device="gpu")


def test_a_truncated_file_of_weights_is_one_sentence(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(OSError, match="The model folder .* cannot be read: ") as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_missing_folders_are_named(folder, tmp_path):
    with pytest.raises(OSError, match="no model folder .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(OSError, match="no adapter folder .*nowhere"):
        load_model(folder, adapter=tmp_path / "nowhere", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="empty cannot be read"):
        load_model(tmp_path / "empty")


def test_unreachable_hub_is_one_sentence():
    """In a process of its own: the hub's client reads HF_HUB_OFFLINE when it is imported."""
    code = (
        "from helpers.models import load_model\n"
        "try: load_model('Qwen/Qwen2.5-0.5B')\n"
        "except OSError as error: print(error)\n"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    (sentence,) = done.stdout.strip().splitlines()
    for word in ("Qwen/Qwen2.5-0.5B", "HF_ENDPOINT", "HF_HUB_OFFLINE", "local folder"):
        assert word in sentence


def test_a_folder_without_a_tokenizer_is_refused(tmp_path, tiny_random_model):
    tiny_random_model[0].save_pretrained(tmp_path)
    with pytest.raises(OSError, match="holds no tokenizer"):
        load_model(tmp_path, device="cpu")
