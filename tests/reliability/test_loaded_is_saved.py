"""What is loaded is what was saved, or a sentence says what is missing.

The right logits come from transformers or peft alone, before anything is written.
"""

import json
import re
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.models import LoraSettings, load_model, load_reward_model, merge_adapter
from helpers.rollout import SamplingSettings, generate
from helpers.training.checkpoint import load_tensors

IDS = torch.arange(5, 17)[None]
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def changed(source, folder, file, change):
    """A copy of a folder, one of whose files holds other tensors."""
    shutil.copytree(source, folder)
    save_file(change(load_file(folder / file)), folder / file, metadata={"format": "pt"})
    return folder


def prefixed(prefix):
    return lambda found: {prefix + name: tensor for name, tensor in found.items()}


def said(function, *args, **kwargs) -> str:
    """The message of the error, which must be one sentence of ours."""
    with pytest.raises((ValueError, OSError)) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 450
    return str(caught.value)


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    """(folder, logits) of an adapter that peft made."""

    def make(kind=LoraConfig, **settings):
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(tiny_folder)
        model = get_peft_model(base, kind(task_type="CAUSAL_LM", **settings))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter", logits(model)

    return make


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_from_inside_a_wrapper_are_read(tiny_folder, tmp_path, prefix):
    folder = changed(tiny_folder, tmp_path / "wrapped", WEIGHTS, prefixed(prefix))
    right = logits(AutoModelForCausalLM.from_pretrained(tiny_folder))
    model, _ = load_model(folder, device="cpu")
    assert torch.equal(logits(model), right)
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / WEIGHTS).keys() == load_file(tiny_folder / WEIGHTS).keys()


def test_a_wrapped_part_of_a_model_is_read(tiny_folder, tmp_path):
    folder = changed(tiny_folder, tmp_path / "part", WEIGHTS, lambda found: {
        name.replace(".mlp.", "._fsdp_wrapped_module.mlp."): t for name, t in found.items()
    })
    right = logits(AutoModelForCausalLM.from_pretrained(tiny_folder))
    assert torch.equal(logits(load_model(folder, device="cpu")[0]), right)


def test_what_is_missing_too_much_or_of_another_size_is_named(tiny_folder, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    changes = {
        "is missing in model.safetensors": lambda found: {
            k: v for k, v in found.items() if k != name
        },
        "and should have": lambda found: found | {name: found[name][:3].contiguous()},
        "has no place for": lambda found: found | {
            name.replace(".0.", ".7."): found[name].clone()
        },
    }
    for place, (words, change) in enumerate(changes.items()):
        folder = changed(tiny_folder, tmp_path / str(place), WEIGHTS, change)
        message = said(load_model, folder, device="cpu")
        assert words in message and "up_proj" in message and WEIGHTS in message


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_weight_of_another_size_is_not_rounded(tiny_folder, tmp_path, kind):
    name = "model.layers.1.mlp.up_proj.weight"
    folder = changed(tiny_folder, tmp_path / "size", WEIGHTS, lambda found: (
        found | {name: found[name][:32].contiguous()}
    ))
    message = said(load_model, folder, quantization=kind, device="cpu")
    assert f"{name} has the size (32, 32)" in message and "(64, 32)" in message
    wrapped = changed(tiny_folder, tmp_path / "wrapped", WEIGHTS, prefixed("_orig_mod."))
    found, right = (
        logits(load_model(place, quantization=kind, device="cpu")[0])
        for place in (wrapped, tiny_folder)
    )
    assert torch.equal(found, right)


def test_an_adapter_folder_without_weights_or_of_no_known_kind_is_named(tiny_folder, adapter):
    folder, _ = adapter(r=2, target_modules=["q_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "NEWEST"}))
    assert "NEWEST" in said(load_model, tiny_folder, adapter=folder)
    (folder / ADAPTER).unlink()
    assert f"holds no {ADAPTER}" in said(load_model, tiny_folder, adapter=folder)


def test_a_body_without_its_untied_head_is_no_language_model(tiny_folder, tmp_path):
    folder = changed(tiny_folder, tmp_path / "body", WEIGHTS, lambda found: {
        name: tensor for name, tensor in found.items() if name != "lm_head.weight"
    })
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    assert "lm_head.weight is missing" in said(load_model, folder, device="cpu")


def test_code_in_a_model_folder_is_never_asked_for(tiny_folder, tmp_path):
    folder = tmp_path / "remote"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own_kind", "auto_map": {"AutoConfig": "code.OwnConfig"}
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('run')")
    assert "auto_map" in said(load_model, folder)


def test_an_adapter_or_other_weights_beside_a_model_are_named(tiny_folder, tmp_path, adapter):
    """transformers puts the adapter on a model that was merged already, and picks one of two."""
    folder, right = adapter(r=2, target_modules=["q_proj"])
    model, tokenizer = load_model(tiny_folder, adapter=folder, device="cpu")
    assert "give another folder" in said(merge_adapter, model, tokenizer, folder)
    assert not (folder / WEIGHTS).exists()
    assert "holds an adapter (adapter_config.json): give its base" in said(load_model, folder)
    merge_adapter(model, tokenizer, tmp_path / "merged")
    for file in folder.glob("adapter*"):
        shutil.copy(file, tmp_path / "merged")
    assert "an adapter (adapter_config.json) and a model" in said(load_model, tmp_path / "merged")
    parts = tmp_path / "parts"
    model.get_base_model().save_pretrained(parts, max_shard_size="20KB")
    tokenizer.save_pretrained(parts)
    assert "index.json" in said(merge_adapter, model, tokenizer, parts)
    shutil.copy(tiny_folder / WEIGHTS, parts)
    assert "two sets of weights" in said(load_reward_model, parts)


def test_a_configuration_that_contradicts_itself_is_one_sentence(tiny_folder, tmp_path):
    folder = tmp_path / "layers"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    assert "num_hidden_layers" in said(load_model, folder)


# ---------------------------------------------------------------- reward models


def renamed_head(head, other):
    """score.weight under another name, and one tensor more."""

    def change(found):
        row = found.pop("score.weight")
        return found | {other: torch.ones_like(row), head: row}

    return change


def test_a_reward_head_is_the_stored_one_or_is_asked_for(tiny_folder, tmp_path):
    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    heads = {"v_head.weight": "v_head.weight", "score.bias": "score.weight"}
    for name, head in heads.items():
        folder = changed(tmp_path / "reward", tmp_path / name, WEIGHTS, renamed_head(head, name))
        assert name in said(load_reward_model, folder, device="cpu")
    headless = changed(tmp_path / "reward", tmp_path / "headless", WEIGHTS, lambda found: {
        k: v for k, v in found.items() if k != "score.weight"
    })
    assert "score.weight is missing" in said(load_reward_model, headless, device="cpu")
    wrapped = changed(tmp_path / "reward", tmp_path / "wrapped", WEIGHTS, prefixed("_orig_mod."))
    again, _ = load_reward_model(wrapped, device="cpu", seed=5)
    assert torch.equal(again.classifier.score.weight, model.classifier.score.weight)


def test_a_reward_model_is_no_language_model(tiny_folder, tmp_path):
    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    assert "load_reward_model" in said(load_model, tmp_path / "reward", device="cpu")


# ---------------------------------------------------------------- adapters


def test_an_adapter_of_which_not_all_fits_is_no_adapter(tiny_folder, tmp_path, adapter):
    folder, right = adapter(r=2, target_modules=["q_proj", "v_proj"])
    loaded, _ = load_model(tiny_folder, adapter=folder, device="cpu")
    assert torch.equal(logits(loaded), right)
    changes = {
        "has no place for": lambda found: {
            name.replace("layers.0.", "layers.9."): t for name, t in found.items()
        },
        "is missing in": lambda found: {k: v for k, v in found.items() if ".v_proj." not in k},
        "has the size": lambda found: {
            k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in found.items()
        },
    }
    for place, (words, change) in enumerate(changes.items()):
        other = changed(folder, tmp_path / f"other{place}", ADAPTER, change)
        message = said(load_model, tiny_folder, adapter=other, device="cpu")
        assert words in message and ADAPTER in message and str(other) in message


def test_an_adapter_of_another_task_is_named(tiny_folder, tmp_path, adapter):
    reward, _ = load_reward_model(tiny_folder, lora=LoraSettings(rank=2), device="cpu")
    reward.save_pretrained(tmp_path / "reward")
    assert "load_reward_model" in said(load_model, tiny_folder, adapter=tmp_path / "reward")
    folder, _ = adapter(r=2, target_modules=["q_proj"])
    assert "language model" in said(load_reward_model, tiny_folder, adapter=folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "TOKEN_CLS"}))
    assert "TOKEN_CLS" in said(load_model, tiny_folder, adapter=folder)


def test_an_adapter_on_a_base_that_is_drawn_at_random_is_named(tiny_folder, adapter):
    folder, right = adapter(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    assert torch.equal(logits(load_model(tiny_folder, adapter=folder, device="cpu")[0]), right)
    shutil.rmtree(folder)
    folder, _ = adapter(r=2, target_modules=["q_proj"], init_lora_weights="pissa_niter_4")
    assert "pissa_niter_4" in said(load_model, tiny_folder, adapter=folder)


def test_a_reward_adapter_without_its_head_is_not_whole(tiny_folder, tmp_path):
    reward, _ = load_reward_model(tiny_folder, lora=LoraSettings(rank=2), device="cpu")
    reward.save_pretrained(tmp_path / "reward")
    folder = changed(tmp_path / "reward", tmp_path / "headless", ADAPTER, lambda found: {
        name: tensor for name, tensor in found.items() if "score" not in name
    })
    assert "score.weight is missing in" in said(load_reward_model, tiny_folder, adapter=folder)


def test_virtual_tokens_are_refused_and_other_layers_are_read(tiny_folder, adapter):
    folder, _ = adapter(PromptTuningConfig, num_virtual_tokens=3)
    assert "PROMPT_TUNING" in said(load_model, tiny_folder, adapter=folder)
    shutil.rmtree(folder)
    folder, right = adapter(IA3Config, target_modules=["v_proj"], feedforward_modules=[])
    assert torch.equal(logits(load_model(tiny_folder, adapter=folder, device="cpu")[0]), right)


# ---------------------------------------------------------------- tokens and runs


def test_a_padding_token_outside_the_embedding_is_named(tiny_folder, tmp_path, tiny_random_model):
    model, tokenizer = load_model(tiny_folder, device="cpu")
    rows = model.get_input_embeddings().weight.shape[0]
    names = [f"<new{number}>" for number in range(rows - len(tokenizer) + 1)]
    tokenizer.add_special_tokens({"additional_special_tokens": names[:-1], "pad_token": names[-1]})
    assert tokenizer.pad_token_id >= rows
    for completion in generate(model, tokenizer, ["a b", "a"], sampling=SamplingSettings(
        temperature=0, max_new_tokens=2
    )):
        alone = torch.tensor([completion.prompt_token_ids])
        assert completion.token_ids[0] == int(model(input_ids=alone).logits[0, -1].argmax())
    shutil.copytree(tiny_folder, tmp_path / "pad")
    tokenizer.save_pretrained(tmp_path / "pad")
    message = said(load_model, tmp_path / "pad", device="cpu")
    number = tokenizer.pad_token_id
    assert re.search(rf"padding token '{names[-1]}' .* {number}, .* {rows} rows", message)


def test_words_of_a_tokenizer_without_a_row_are_said(tiny_folder, tmp_path):
    model, tokenizer = load_model(tiny_folder, device="cpu")
    rows = model.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"zq{number}" for number in range(rows - len(tokenizer) + 2)])
    shutil.copytree(tiny_folder, tmp_path / "words")
    tokenizer.save_pretrained(tmp_path / "words")
    with pytest.warns(UserWarning, match=f"{rows} rows, and none for 2 tokens .*'zq"):
        load_model(tmp_path / "words", device="cpu")


def test_a_checkpoint_of_another_size_is_not_spread_over_the_model(tmp_path):
    save_file({"w": torch.ones(1, 4)}, tmp_path / "model.safetensors")
    wide = {"w": torch.nn.Parameter(torch.zeros(3, 4))}
    message = said(load_tensors, tmp_path, wide, torch.optim.SGD(wide.values()))
    assert str(tmp_path) in message and float(wide["w"].detach().sum()) == 0
