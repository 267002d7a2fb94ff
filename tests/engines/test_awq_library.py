"""The AWQ library reads the shipped 4-bit checkpoint as the course's own layer does.

Run by `python3 -m workbook test --engines`, in an environment of its own.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AwqConfig

pytestmark = pytest.mark.engines
pytest.importorskip("gptqmodel", reason="the AWQ library is not in this environment")

from peft import LoraConfig, get_peft_model  # noqa: E402

from helpers.layers import AwqLinear  # noqa: E402
from helpers.models import LoraSettings, load_model  # noqa: E402
from helpers.quantization import loading_arguments, uses_awq_library  # noqa: E402

CHECKPOINT = Path(__file__).parents[2] / "workbook" / "assets" / "base-awq"
TEXT = "Nora has 12 apples and buys 30 more. How many apples does she have now?"


@pytest.fixture(scope="module")
def pair():
    """(the own loader's model, the library's, token ids), with equal LoRA layers on both."""
    ours, tokenizer = load_model(CHECKPOINT, device="cpu", lora=LoraSettings(rank=4, alpha=8))
    # The library's default on a CPU, and its "trainable" choice, give wrong gradients in silence.
    settings = AwqConfig(bits=4, group_size=64, backend="torch_awq")
    theirs = AutoModelForCausalLM.from_pretrained(
        CHECKPOINT, quantization_config=settings, dtype=torch.float32, device_map="cpu"
    )
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = get_peft_model(
        theirs, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=names)
    ).eval()
    torch.manual_seed(0)
    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.05)
            other[name].data.copy_(parameter.data)
    return ours, theirs, tokenizer(TEXT, return_tensors="pt")["input_ids"]


def test_own_layer_is_used_on_a_cpu_also_beside_the_library(pair):
    ours, theirs, _ = pair
    assert not uses_awq_library(torch.device("cpu"))
    assert uses_awq_library(torch.device("cuda"))
    layer = ours.get_base_model().model.layers[0].mlp.up_proj.base_layer
    other = theirs.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert isinstance(layer, AwqLinear)
    assert type(other).__module__.startswith("gptqmodel")


def test_a_gpu_gets_the_librarys_trainable_kernels():
    """What transformers is told there; the kernels themselves need the GPU."""
    config = AutoConfig.from_pretrained(CHECKPOINT)
    arguments = loading_arguments("awq", config, torch.device("cuda", 0), torch.float16)
    assert arguments == {"dtype": torch.float16, "device_map": {"": torch.device("cuda", 0)}}
    assert AwqConfig.from_dict(dict(config.quantization_config)).backend == "auto_trainable"


def test_weights_are_equal(pair):
    """To the last bit of float16, in which the library writes them out."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    ours, theirs, _ = pair
    for name, layer in ours.named_modules():
        if isinstance(layer, AwqLinear):
            other = theirs.get_submodule(name)
            expected = dequantize_gemm(other.qweight, other.qzeros, other.scales, 4, 64)
            assert torch.equal(layer.dequantize().half(), expected.T.half()), name


def test_logits_agree(pair):
    ours, theirs, ids = pair
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        difference = ours(input_ids=ids).logits - expected
    assert difference.norm() / expected.norm() < 1e-3  # the library multiplies in float16
    assert difference.abs().max() < 2e-2


def test_gradients_agree_before_and_after_generating(pair):
    ours, theirs, ids = pair
    for _ in range(2):
        found = [gradients(model, ids) for model in (ours, theirs)]
        assert found[0].keys() == found[1].keys() and len(found[0]) == 4 * 7 * 2
        for name, expected in found[1].items():
            assert (found[0][name] - expected).norm() / expected.norm() < 5e-3, name
        for model in (ours, theirs):
            model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)


def gradients(model, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
