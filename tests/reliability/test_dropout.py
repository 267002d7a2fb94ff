"""Where two policies are compared nothing is dropped, neither by a layer nor by a flag."""

import math
import warnings

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from helpers.models import LoraSettings, _with_new_lora
from helpers.modes import evaluation_mode, without_dropout
from helpers.training import (
    GRPOSettings,
    PPOSettings,
    PreferenceSettings,
    SFTSettings,
    train_grpo,
    train_ppo,
    train_preference,
    train_sft,
)

PAIRS = [{"prompt": f"{i} + 1 =", "chosen": f" {i + 1}", "rejected": f" {i} no"} for i in range(4)]
PROMPTS = [{"prompt": f"{i} + 1 =", "gold_answer": f"{i + 1}"} for i in range(4)]
IDS = torch.arange(10, 30)[None]


def gpt2(tokenizer):
    """Drops embeddings and sums by layers, and attention weights by a flag."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128,
        attn_pdrop=0.3, embd_pdrop=0.3, resid_pdrop=0.3, initializer_range=0.2,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )).eval()  # fmt: skip


def qwen2(tokenizer):
    """Drops attention weights alone, by a flag."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attention_dropout=0.3,
        initializer_range=0.2, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )).eval()  # fmt: skip


def odd(response, gold):
    value = float(len(response) % 2)
    return {"format_reward": 1.0, "answer_reward": value, "reward": value}


@pytest.mark.parametrize("make", [gpt2, qwen2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_first_loss_of_dpo_is_log_2(make, checkpointing, tiny_tokenizer):
    settings = PreferenceSettings(
        max_steps=2, batch_size=4, eval_every=1, gradient_checkpointing=checkpointing,
        progress=False,
    )  # fmt: skip
    run = train_preference(
        make(tiny_tokenizer), PAIRS, settings, tokenizer=tiny_tokenizer, eval_data=PAIRS
    )
    assert run.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_first_loss_of_dpo_on_an_adapter_that_goes_on_is_log_2(tiny_random_model):
    model, tokenizer = tiny_random_model
    model = _with_new_lora(model, LoraSettings(rank=2, dropout=0.5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    settings = PreferenceSettings(max_steps=1, batch_size=4, progress=False)
    with pytest.warns(UserWarning, match="LoRA dropout of 0.5 does not act in dpo"):
        run = train_preference(model, PAIRS, settings, tokenizer=tokenizer)
    assert run.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("make", [gpt2, qwen2])
@pytest.mark.parametrize(
    ("train", "kind"), [(train_grpo, GRPOSettings), (train_ppo, PPOSettings)]
)
def test_the_first_ratio_of_a_step_is_one(make, train, kind, tiny_tokenizer):
    settings = kind(max_steps=2, prompts_per_step=2, samples_per_prompt=2, max_new_tokens=5,
                    progress=False)  # fmt: skip
    run = train(
        make(tiny_tokenizer), PROMPTS, settings, tokenizer=tiny_tokenizer, reward_fn=odd
    )
    assert max(record["ratio_gap"] for record in run.metrics) < 1e-4


@pytest.mark.parametrize("method", ["sft", "simpo"])
def test_the_lora_dropout_that_was_asked_for_acts_where_nothing_is_compared(
    method, tiny_tokenizer
):
    losses = []
    for share in (0.0, 0.5):
        model = _with_new_lora(qwen2(tiny_tokenizer), LoraSettings(rank=2, dropout=share))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.3)
        for module in model.modules():
            module.attention_dropout = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            losses.append(_first_loss(method, model, tiny_tokenizer))
    assert abs(losses[0] - losses[1]) > 1e-3


def _first_loss(method, model, tokenizer):
    if method == "sft":
        rows = [{"prompt": row["prompt"], "response": row["chosen"]} for row in PAIRS]
        run = train_sft(model, rows, SFTSettings(max_steps=1, progress=False), tokenizer=tokenizer)
    else:
        settings = PreferenceSettings(max_steps=1, progress=False)
        run = train_preference(model, PAIRS, settings, tokenizer=tokenizer, method=method)
    return run.metrics[0]["loss"]


@pytest.mark.parametrize("make", [gpt2, qwen2])
def test_without_dropout_gradients_are_those_of_evaluation_and_layers_are_computed_again(
    make, tiny_tokenizer
):
    model = make(tiny_tokenizer)
    model(IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
    right = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layer, passes = [m for m in model.modules() if getattr(m, "gradient_checkpointing", 0)][-1], []
    layer.register_forward_pre_hook(lambda *_: passes.append(layer.training))
    with without_dropout(model):
        model(IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
    assert len(passes) == 2  # forward, and again for the gradient
    for found, expected in zip(model.parameters(), right, strict=True):
        torch.testing.assert_close(found.grad, expected)
    assert all(module.training for module in model.modules())


def test_a_model_that_is_sampled_from_between_updates_keeps_each_modules_mode(tiny_tokenizer):
    model = qwen2(tiny_tokenizer).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with without_dropout(model):
        modes = [module.training for module in model.modules()]
        with evaluation_mode(model):
            first = model(IDS, use_cache=True)
            again = model(IDS, use_cache=True)
            assert not any(module.training for module in model.modules())
        assert again.past_key_values.get_seq_length() == IDS.shape[1]
        assert torch.equal(first.logits, again.logits)
        assert [module.training for module in model.modules()] == modes
