"""Merged, for a folder or only while sampling, an adapter does what it does beside the weights.

The right logits are peft's own forward pass, not merged.
"""

import json
import shutil
import warnings

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from helpers.decoding import merged_adapters
from helpers.layers import AwqLinear
from helpers.models import LoraSettings, load_model, load_reward_model, merge_adapter
from helpers.quantization import OwnAwqConfig, OwnAwqQuantizer, plain_config, plain_weights

IDS = torch.arange(5, 17)[None]
KINDS = {
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2},
                 "alpha_pattern": {"q_proj": 64}},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head"]},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "whole part": {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [6, 9]},
}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def adapted(base, kind=LoraConfig, **settings):
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft on tied weights: this is what is tested
        model = get_peft_model(base, kind(task_type="CAUSAL_LM", **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def is_close(found, right):
    """Sums in float32 in another order: 64 terms and two layers, far below 1e-4 of the logits."""
    return bool((found - right).norm() <= 1e-4 * right.norm())


@pytest.mark.parametrize("name", KINDS)
def test_merged_is_the_adapter(tiny_folder, tmp_path, name):
    base, tokenizer = load_model(tiny_folder, device="cpu")
    assert base.config.tie_word_embeddings
    plain = logits(base)
    model = adapted(base, **KINDS[name])
    right = logits(model)
    assert not is_close(right, plain)
    merge_adapter(model, tokenizer, tmp_path)
    assert is_close(logits(load_model(tmp_path, device="cpu")[0]), right)
    assert torch.equal(logits(model), right)  # the model stays as it is
    with merged_adapters(model):
        assert is_close(logits(model), right)
    assert torch.equal(logits(model), right)


def test_merged_is_the_adapter_in_gpt2_whose_weights_lie_the_other_way(tiny_folder, tmp_path):
    _, tokenizer = load_model(tiny_folder, device="cpu")
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64,
        bos_token_id=0, eos_token_id=0,
    )
    torch.manual_seed(0)
    model = adapted(AutoModelForCausalLM.from_config(config), target_modules="all-linear")
    merge_adapter(model, tokenizer, tmp_path)
    assert is_close(logits(load_model(tmp_path, device="cpu")[0]), logits(model))


def test_an_update_that_peft_has_merged_in_place_counts_once(tiny_folder, tmp_path):
    base, tokenizer = load_model(tiny_folder, device="cpu")
    model = adapted(base, target_modules="all-linear")
    right = logits(model)
    model.merge_adapter()
    merge_adapter(model, tokenizer, tmp_path)
    assert is_close(logits(load_model(tmp_path, device="cpu")[0]), right)


def test_a_head_with_an_adapter_is_untied_before_it_differs(tiny_folder):
    """What a sampler is built from must have room for the head that training will make."""
    base, _ = load_model(tiny_folder, device="cpu")
    assert plain_config(base).tie_word_embeddings
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["lm_head"]))  # B is still 0
    assert not plain_config(model).tie_word_embeddings
    weights = dict(plain_weights(model))
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    "kind, settings, word",
    [
        (LoraConfig, {"target_modules": ["q_proj"], "use_dora": True}, "use_dora"),
        (IA3Config, {"target_modules": ["v_proj"], "feedforward_modules": []}, "ia3"),
        (LoHaConfig, {"target_modules": ["v_proj"]}, "loha"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(tiny_folder, tmp_path, kind, settings, word):
    base, tokenizer = load_model(tiny_folder, device="cpu")
    model = adapted(base, kind, **settings)
    right = logits(model)
    with pytest.raises(ValueError, match=word):
        merge_adapter(model, tokenizer, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with merged_adapters(model):  # left as they are
        assert torch.equal(logits(model), right)


def test_lora_on_stacked_experts_is_refused_by_name(tmp_path, tiny_tokenizer):
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        intermediate_size=16,
    )
    model = adapted(Qwen3MoeForCausalLM(config), target_modules=["q_proj"],
                    target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(ValueError, match="experts lies on .*target_parameters"):
        merge_adapter(model, tiny_tokenizer, tmp_path)


def test_a_merge_that_lost_a_part_is_not_written(tiny_folder, tmp_path):
    """A hook is seen by no rule; the scores show it."""
    base, tokenizer = load_model(tiny_folder, device="cpu")
    model = adapted(base, target_modules=["q_proj"])
    model.get_submodule("base_model.model.model.layers.0.mlp").register_forward_hook(
        lambda module, inputs, output: 2 * output
    )
    with pytest.raises(ValueError, match="does not score"):
        merge_adapter(model, tokenizer, tmp_path / "merged")


def test_sampling_leaves_layers_apart_that_merging_would_change(tiny_folder):
    base, _ = load_model(tiny_folder, device="cpu")
    model = adapted(base, target_modules=["q_proj"])
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer.lora_B["default"].register_forward_hook(lambda module, inputs, output: 3 * output)
    right = logits(model)
    with pytest.warns(UserWarning, match="leaves them apart"), merged_adapters(model):
        assert torch.equal(logits(model), right)


def test_a_reward_model_is_merged_with_its_head(tiny_folder, tmp_path):
    model, tokenizer = load_reward_model(tiny_folder, lora=LoraSettings(rank=2), device="cpu")
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    merge_adapter(model, tokenizer, tmp_path)
    again, _ = load_reward_model(tmp_path, device="cpu")
    with torch.no_grad():
        assert is_close(again(IDS, torch.ones_like(IDS)), model(IDS, torch.ones_like(IDS)))


@pytest.mark.parametrize("part", ["k_proj", "mlp", "layers.0."])
def test_awq_layers_left_out_by_a_part_of_their_name_are_read_plainly(tiny_folder, part):
    model, _ = load_model(tiny_folder, device="cpu")
    stored = {"quant_method": "awq", "group_size": 8, "modules_to_not_convert": [part]}
    quantizer = OwnAwqQuantizer(OwnAwqConfig(stored))
    quantizer._process_model_before_weight_loading(model)
    names = {name for name, layer in model.named_modules() if isinstance(layer, AwqLinear)}
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert names == {name for name in linear if part not in name and name != "lm_head"} and names


def test_awq_words_that_lack_are_said_and_not_drawn(tiny_folder, tmp_path):
    """The list of layers left out does not agree with the file: every tensor is as a 4-bit one."""
    folder = tmp_path / "awq"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm", "zero_point": True
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="proj.weight in model.safetensors.*no place for"):
        load_model(folder, device="cpu")
