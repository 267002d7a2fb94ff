"""Quantised bases: what is refused, and that gradients through them are right, always.

The reference is the same model with its weights written out in float32 and the same LoRA layers.
"""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from helpers.layers import AwqLinear
from helpers.models import (
    LoraSettings,
    load_model,
    load_reward_model,
    merge_adapter,
)
from helpers.quantization import dense_weight, footprint
from workbook.world.awq import quantize_model

BIASES = {"qwen2": True, "qwen3": False}
KINDS = ("nf4", "int8", "awq")
# int8 rounds its inputs too; the other two differ from the reference by float32's rounding only.
TOLERANCE = {"nf4": 1e-4, "awq": 1e-4, "int8": 0.1}


def miniature(architecture: str, tokenizer):
    """Two random blocks with widths of true ratio; Qwen2 has biases in attention, Qwen3 none."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        return model
    return Qwen3ForCausalLM(Qwen3Config(head_dim=32, **shape))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, tiny_tokenizer):
    """{(architecture, "plain" or "awq"): folder}"""
    folders = {}
    for architecture in BIASES:
        for kind in ("plain", "awq"):
            folder = tmp_path_factory.mktemp(f"{architecture}-{kind}")
            model = miniature(architecture, tiny_tokenizer)
            if kind == "awq":
                model = quantize_model(model, None).half()
            model.save_pretrained(folder)
            tiny_tokenizer.save_pretrained(folder)
            folders[architecture, kind] = folder
    return folders


SMALL_LORA = LoraSettings(rank=4, seed=1)


def load(checkpoints, architecture: str, kind: str | None, lora=SMALL_LORA, **options):
    stored = "awq" if kind == "awq" else "plain"
    folder = checkpoints[architecture, stored]
    options = {"device": "cpu", "dtype": "float32", "quantization": kind, "lora": lora} | options
    return load_model(folder, **options)


def ids(tokenizer) -> torch.Tensor:
    return tokenizer(["Nora has 12 apples and buys 30 more."], return_tensors="pt")["input_ids"]


def randomize_lora(model) -> None:
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.05)


def gradients(model, tokens) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads


def with_plain_base(model):
    """A copy of the model over a base whose weights are written out in float32."""
    reference, _ = load_model(
        model.reference_folder, device="cpu", dtype="float32", lora=LoraSettings(rank=4)
    )
    for name, target in reference.named_parameters():
        layer, _, key = name.rpartition(".")
        source = model.get_submodule(layer)
        is_base = layer.endswith("base_layer") and key == "weight"
        target.data.copy_(dense_weight(source) if is_base else getattr(source, key))
    return reference


def relative_error(found: dict, expected: dict) -> float:
    assert found.keys() == expected.keys() and found
    errors = [(found[n] - expected[n]).norm() / expected[n].norm() for n in expected]
    return max(errors).item()


@pytest.mark.parametrize("architecture", BIASES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_right_before_and_after_generating(checkpoints, architecture, kind):
    """The trap: generating between two steps, in evaluation mode, must not change the second."""
    model, tokenizer = load(checkpoints, architecture, kind)
    randomize_lora(model)
    model.reference_folder = checkpoints[architecture, "plain"]
    tokens = ids(tokenizer)
    expected = gradients(with_plain_base(model), tokens)
    assert relative_error(gradients(model, tokens), expected) < TOLERANCE[kind]
    model.eval()
    with torch.no_grad():
        model.generate(input_ids=tokens, max_new_tokens=3, do_sample=False)
        before = model(input_ids=tokens).logits
    assert relative_error(gradients(model, tokens), expected) < TOLERANCE[kind]
    model.train()
    assert relative_error(gradients(model, tokens), expected) < TOLERANCE[kind]
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=tokens).logits, before)


def test_no_four_bit_layer_may_repack_itself(checkpoints):
    from bitsandbytes.nn import Linear4bit

    model, _ = load(checkpoints, "qwen3", "nf4")
    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    for layer in layers:
        assert layer.weight.quant_state.nested  # double quantisation
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.compute_dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_adapter_is_trained_and_it_is_float32(checkpoints, kind, dtype):
    model, _ = load(checkpoints, "qwen2", kind, dtype=dtype)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained)
    frozen, _ = load(checkpoints, "qwen2", kind, lora=None, dtype=dtype)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_awq_weights_are_exact_at_any_dtype(checkpoints, tiny_tokenizer, dtype):
    model, _ = load(checkpoints, "qwen2", "awq", lora=None, dtype=dtype)
    expected = quantize_model(miniature("qwen2", tiny_tokenizer), None)
    pairs = zip(model.modules(), expected.modules(), strict=True)
    layers = [(a, b) for a, b in pairs if isinstance(b, AwqLinear)]
    assert len(layers) == 14
    assert all(torch.equal(a.dequantize(), b.dequantize()) for a, b in layers)


def test_none_takes_the_checkpoint_as_it_is_stored(checkpoints):
    model, _ = load(checkpoints, "qwen2", "awq", lora=None, quantization=None)
    assert isinstance(model.model.layers[0].mlp.up_proj, AwqLinear)
    assert model.config.quantization_config["quant_method"] == "awq"


def test_contradictions_name_both(checkpoints):
    plain, awq = checkpoints["qwen2", "plain"], checkpoints["qwen2", "awq"]
    for kind in ("nf4", "int8"):
        with pytest.raises(ValueError, match=f'quantization="{kind}" contradicts .* "awq"'):
            load_model(awq, quantization=kind)
    with pytest.raises(ValueError, match='"awq" contradicts .* unquantised.*workbook world awq'):
        load_model(plain, quantization="awq")
    with pytest.raises(ValueError, match="None or one of nf4, int8, awq, but it is 'gptq'"):
        load_model(plain, quantization="gptq")


@pytest.mark.parametrize(
    "change, message",
    [({"version": "gemv"}, "layout 'gemv'"), ({"quant_method": "gptq"}, 'stored as "gptq"')],
)
def test_layouts_that_are_not_read_are_named(checkpoints, tmp_path, change, message):
    folder = tmp_path / "other"
    folder.mkdir()
    for file in checkpoints["qwen2", "awq"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("variant", [{"use_dora": True}, {"lora_bias": True}])
def test_an_adapter_that_is_no_plain_lora_is_not_merged(checkpoints, tmp_path, variant):
    model, tokenizer = load(checkpoints, "qwen2", None, lora=None)
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], **variant))
    with pytest.raises(ValueError, match="no plain LoRA"):
        merge_adapter(peft_model, tokenizer, tmp_path / "merged")


@pytest.mark.parametrize("architecture", BIASES)
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_merged_checkpoint_is_plain_and_answers_as_the_adapter_did(
    checkpoints, tmp_path, architecture, kind
):
    model, tokenizer = load(checkpoints, architecture, kind)
    randomize_lora(model)
    before = gradients(model, ids(tokenizer))
    merge_adapter(model, tokenizer, tmp_path / "merged")
    merged, _ = load_model(tmp_path / "merged", device="cpu")
    assert not hasattr(merged.config, "quantization_config")
    with torch.no_grad():
        expected = model(input_ids=ids(tokenizer)).logits
        found = merged(input_ids=ids(tokenizer)).logits
    error = (found - expected).norm() / expected.norm()
    assert error < (0.03 if kind == "int8" else 1e-5)
    assert relative_error(gradients(model, ids(tokenizer)), before) == 0  # it stayed as it was


@pytest.mark.parametrize("kind", KINDS)
def test_reward_model_over_a_quantised_base_comes_back_bitwise(checkpoints, tmp_path, kind):
    folder = checkpoints["qwen2", "awq" if kind == "awq" else "plain"]
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10]])
    options = {"device": "cpu", "quantization": kind}
    model, _ = load_reward_model(folder, lora=LoraSettings(rank=4), **options)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2 + 1 and any("score" in name for name in trained)
    randomize_lora(model)
    model(tokens, torch.ones_like(tokens)).sum().backward()
    model.save_pretrained(tmp_path / "reward")
    loaded, _ = load_reward_model(folder, adapter=tmp_path / "reward", seed=9, **options)
    with torch.no_grad():
        expected = model(tokens, torch.ones_like(tokens))
        assert torch.equal(loaded(tokens, torch.ones_like(tokens)), expected)
    merge_adapter(model, _, tmp_path / "merged")
    merged, _ = load_reward_model(tmp_path / "merged", device="cpu")
    with torch.no_grad():
        found = merged(tokens, torch.ones_like(tokens))
    assert (found - expected).norm() / expected.norm() < (0.05 if kind == "int8" else 1e-4)


def test_footprint_counts_each_tensor_once(checkpoints):
    sizes = {
        kind: footprint(load(checkpoints, "qwen2", kind, lora=None)[0]) for kind in (None, *KINDS)
    }
    model, _ = load(checkpoints, "qwen2", None, lora=None)
    weights = sum(p.numel() for p in model.parameters())  # tied embeddings once
    assert sizes[None] == pytest.approx(4 * weights, rel=0.01)
    assert max(sizes["nf4"], sizes["awq"]) < sizes["int8"] < sizes[None]
    # AWQ: 4 bits and 20 for each 64; NF4: 4 bits and 8 for each 64, tables of 1.2 kB a layer
    linear = sum(layer.weight.numel() for layer in model.model.modules() if hasattr(layer, "bias"))
    rest = 4 * (weights - linear)
    assert sizes["awq"] == pytest.approx(rest + linear * (4 + 20 / 64) / 8, rel=0.02)
    assert sizes["nf4"] == pytest.approx(rest + linear * (4 + 8 / 64) / 8 + 14 * 1200, rel=0.02)
