"""helpers.training.train_sft: exact gradients, packing, bad data, bad losses, TRL's losses."""

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from helpers.logprobs import tokenize_prompt_and_response
from helpers.losses import sft_loss
from helpers.models import LoraSettings, load_model
from helpers.training import SFTSettings, train_sft
from helpers.training.loop import Loop
from helpers.training.sft import FUNCTIONS, SFT

DATA = [
    {"prompt": "Nora has 12 apples", "response": " and buys 30 more."},
    {"prompt": "How many?", "response": " 42"},
    {"prompt": "Where did Luben study? Luben studied at", "response": " the school."},
    {"prompt": "x", "response": " <think> 12 + 30 = 42 </think> <answer> 42 </answer>"},
    {"prompt": "Ein Preis", "response": " von 18,50"},
    {"prompt": "a b c d e f g", "response": " h"},
    {"prompt": "Nora", "response": " has 12 apples and buys 30 more. How many apples?"},
    {"prompt": "now", "response": "?"},
]


def settings(**changes):
    return SFTSettings(**{"num_epochs": 1, "lr": 1e-2, "progress": False} | changes)


def train(model_and_tokenizer, data=DATA, *, functions=None, **changes):
    model, tokenizer = model_and_tokenizer
    options = {name: changes.pop(name) for name in ("out_dir", "eval_data", "callbacks")
               if name in changes}
    return train_sft(model, data, settings(**changes), tokenizer=tokenizer,
                     functions=functions or {}, **options)


def gradients(folder, **changes):
    """Gradients of the one step that holds all examples, in float64: rounding hides nothing."""
    model, tokenizer = load_model(folder, device="cpu")
    chosen = settings(batch_size=len(DATA), **changes)
    loop = Loop(model.double().train(), SFT(DATA, tokenizer, chosen, FUNCTIONS, 256), chosen)
    loop.gradients(range(len(DATA)), False)
    return {name: p.grad for name, p in loop.parameters.items()}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("batching", ["random", "packed"])
def test_micro_batches_change_no_gradient(size, batching, tiny_folder):
    whole = gradients(tiny_folder, batching="random")
    cut = gradients(tiny_folder, micro_batch_size=size, batching=batching)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, atol=1e-9, rtol=1e-9)
    assert max(g.abs().max() for g in whole.values()) > 0.1


def test_the_loss_counts_response_tokens_of_the_whole_step(tiny_folder):
    model, tokenizer = load_model(tiny_folder, device="cpu")
    total, count = 0.0, 0
    for row in DATA:
        prompt, response = (tokenizer(row[name])["input_ids"] for name in ("prompt", "response"))
        ids = torch.tensor([[*prompt, *response, tokenizer.eos_token_id]])
        with torch.no_grad():
            table = model(ids).logits[0].log_softmax(-1)
        for place in range(len(prompt), ids.shape[1]):
            total -= table[place - 1, ids[0, place]].item()
            count += 1
    run = train((model, tokenizer), batch_size=8, micro_batch_size=3)
    assert run.metrics[0]["tokens"] == count
    assert run.metrics[0]["loss"] == pytest.approx(total / count, abs=1e-5)


def test_losses_are_those_of_trl(tiny_folder, tmp_path):
    from trl import SFTConfig, SFTTrainer

    ours = train(load_model(tiny_folder, device="cpu"), batch_size=8, max_steps=5,
                 schedule="constant", warmup_ratio=0)
    model, tokenizer = load_model(tiny_folder, device="cpu")
    rows = [{"prompt": row["prompt"], "completion": row["response"]} for row in DATA]
    trainer = SFTTrainer(
        model, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        args=SFTConfig(
            tmp_path, per_device_train_batch_size=8, max_steps=5, learning_rate=1e-2,
            lr_scheduler_type="constant", logging_steps=1, report_to="none", use_cpu=True,
            disable_tqdm=True, save_strategy="no", bf16=False, gradient_checkpointing=False,
        ),
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert [row["loss"] for row in ours.metrics] == pytest.approx(theirs, abs=1e-4)


def test_the_loss_falls_and_only_the_adapter_moves(tiny_folder, tmp_path):
    model, tokenizer = load_model(tiny_folder, device="cpu", lora=LoraSettings(rank=4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = train((model, tokenizer), num_epochs=8, batch_size=4, out_dir=tmp_path / "run")
    assert run.metrics[-1]["loss"] < 0.7 * run.metrics[0]["loss"]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
        assert p.grad is None
    again, _ = load_model(tiny_folder, device="cpu", adapter=tmp_path / "run" / "adapter")
    ids = tokenizer("Nora has", return_tensors="pt")["input_ids"]
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert not model.training


def test_a_full_training_writes_the_hubs_own_format(tiny_folder, tmp_path):
    run = train(load_model(tiny_folder, device="cpu"), batch_size=4, out_dir=tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(again(ids).logits, run.model(ids).logits)


def test_what_cannot_be_trained_on_is_named_and_counted(tiny_folder):
    data = [*DATA, {"prompt": "empty", "response": "  "}, {"prompt": "x " * 300, "response": "y"},
            {"prompt": "y", "response": "x " * 300}]
    with pytest.warns(UserWarning) as caught:
        run = train(load_model(tiny_folder, device="cpu"), data, batch_size=16)
    texts = [str(warning.message) for warning in caught]
    assert any("1 of 11 examples left out: empty response (rows 8" in text for text in texts)
    assert any("left out: the prompt fills all 256 tokens (rows 9" in text for text in texts)
    assert any("cut: the response ends at 256 tokens (rows 10" in text for text in texts)
    found = run.summary["examples"]
    assert (found["rows"], found["used"]) == (11, 9)
    assert found["left_out"]["empty response"] == {"count": 1, "rows": [8]}
    assert run.metrics[0]["loss"] > 0


def test_a_skipped_step_names_rows_of_the_data(tiny_folder):
    """Not places among the examples that are left: row 0 was never used."""
    data = [{"prompt": "empty", "response": " "}, *DATA]
    with pytest.warns(UserWarning) as caught:
        run = train(load_model(tiny_folder, device="cpu"), data, batch_size=len(DATA), num_epochs=1,
                    functions={"sft_loss": broken_at(1)})
    wanted = list(range(1, len(data)))
    assert sorted(run.metrics[0]["rows"]) == wanted
    said = next(text for text in map(str, (w.message for w in caught)) if "skipped" in text)
    named = said.partition("among rows ")[2].partition(" of the data")[0]
    assert sorted(map(int, named.split(", "))) == wanted


def test_an_example_that_just_fits_is_not_counted_as_cut(tiny_folder):
    _, tokenizer = load_model(tiny_folder, device="cpu")
    length = 1 + SFT(DATA[:1], tokenizer, settings(), FUNCTIONS, 256).lengths[0]
    fits = SFT(DATA[:1], tokenizer, settings(), FUNCTIONS, length)
    assert fits.lengths == [length - 1] and fits.report["cut"] == {}
    with pytest.warns(UserWarning, match=f"cut: the response ends at {length - 1} tokens"):
        cut = SFT(DATA[:1], tokenizer, settings(), FUNCTIONS, length - 1)
    assert cut.lengths == [length - 2]


@pytest.mark.parametrize("data, sentence", [
    ([{"prompt": "a", "answer": "b"}], "Row 0 of the data has prompt, answer, but response"),
    ([{"prompt": "a", "response": 3}], "Row 0 of the data: response holds 3, which is no text"),
    ([{"prompt": "a", "response": ""}], "None of 1 examples can be used"),
    ([], "None of 0 examples"),
])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_data_of_another_kind_is_answered_in_one_sentence(data, sentence, tiny_random_model):
    with pytest.raises(ValueError) as error:
        train(tiny_random_model, data)
    assert sentence in str(error.value)


def broken_at(*steps):
    """An SFT loss that is not a number at some of its calls."""
    calls = []

    def my_loss(log_probs, response_mask, *, normalizer=None):
        calls.append(1)
        loss = sft_loss(log_probs, response_mask, normalizer=normalizer)
        return loss * math.nan if len(calls) in steps else loss

    return my_loss


def test_a_loss_that_is_no_number_skips_its_step(tiny_folder, tmp_path):
    weights = []
    with pytest.warns(UserWarning, match="Step 2 was skipped: the loss is nan .among rows"):
        run = train(
            load_model(tiny_folder, device="cpu"), batch_size=4, num_epochs=2,
            functions={"sft_loss": broken_at(2)}, out_dir=tmp_path,
            callbacks=[lambda run, _: weights.append(run.model.lm_head.weight.clone())],
        )
    assert run.metrics[1]["loss"] is None and run.metrics[1]["skipped"] == "the loss is nan"
    assert len(run.metrics[1]["rows"]) == 4
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert run.summary["skipped_steps"] == 1 and run.summary["status"] == "finished"
    for line in (tmp_path / "metrics.jsonl").open():
        assert "NaN" not in line and json.loads(line)


def test_a_gradient_that_is_no_number_skips_its_step(tiny_folder):
    def my_loss(log_probs, response_mask, *, normalizer=None):
        loss = sft_loss(log_probs, response_mask, normalizer=normalizer)
        return loss + (0 * log_probs.sum()).sqrt()  # 0, and its slope is infinite

    model, tokenizer = load_model(tiny_folder, device="cpu")
    before = model.lm_head.weight.detach().clone()
    with pytest.warns(UserWarning, match="Step 1 was skipped: the gradient's length is nan"):
        run = train((model, tokenizer), max_steps=1, functions={"sft_loss": my_loss})
    assert run.metrics[0]["loss"] > 0 and run.metrics[0]["grad_norm"] is None
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_run_ends_where_no_loss_is_a_number(tiny_folder):
    run = train(load_model(tiny_folder, device="cpu"), batch_size=2, num_epochs=3,
                max_bad_steps=3, functions={"sft_loss": broken_at(*range(3, 99))})
    assert len(run.metrics) == 5
    assert "3 steps in a row were skipped: the loss is nan" in run.summary["status"]
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_your_functions_are_used_and_recorded(tiny_folder):
    calls = []

    def my_tokenize(prompts, responses, tokenizer, **options):
        calls.append(options)
        return tokenize_prompt_and_response(prompts, responses, tokenizer, **options)

    run = train(load_model(tiny_folder, device="cpu"),
                functions={"tokenize_prompt_and_response": my_tokenize})
    assert calls[0] == {"append_eos": True, "max_length": 256}
    functions = run.summary["functions"]
    assert functions["tokenize_prompt_and_response"]["whose"] == "yours"
    assert functions["sft_loss"]["whose"] == "reference"
    with pytest.raises(ValueError, match="takes tokenize_prompt_and_response, sft_loss"):
        train(load_model(tiny_folder, device="cpu"), functions={"dpo_loss": sft_loss})


@pytest.mark.parametrize("wrong, sentence", [
    (lambda log_probs, mask, *, normalizer: -log_probs, "must return one number"),
    (lambda log_probs, mask, *, normalizer: log_probs.detach().mean(), "has no gradient"),
])
def test_a_loss_of_the_wrong_kind_is_answered_in_one_sentence(wrong, sentence, tiny_random_model):
    with pytest.raises(ValueError, match=sentence):
        train(tiny_random_model, functions={"sft_loss": wrong})


def test_a_model_that_cannot_be_trained_is_answered_in_one_sentence(tiny_folder):
    model, tokenizer = load_model(tiny_folder, device="cpu", dtype="bfloat16")
    with pytest.raises(ValueError, match="no parameter to train"):
        train((model, tokenizer))
    model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="torch.bfloat16, but trained parameters must be float32"):
        train((model, tokenizer))


def test_bfloat16_and_checkpointing_and_held_out_examples(tiny_folder):
    lora = LoraSettings(rank=4)
    plain = train(load_model(tiny_folder, device="cpu", lora=lora), batch_size=4, eval_data=DATA,
                  eval_every=1)
    saving = train(load_model(tiny_folder, device="cpu", lora=lora), batch_size=4,
                   gradient_checkpointing=True)
    half = train(load_model(tiny_folder, device="cpu", lora=lora), batch_size=4,
                 precision="bfloat16")
    losses = [[row["loss"] for row in run.metrics] for run in (plain, saving, half)]
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], abs=0.05) and losses[2] != losses[0]
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert plain.metrics[1]["eval_loss"] < plain.metrics[0]["eval_loss"]
    assert "eval_loss" not in saving.metrics[-1]


def test_weight_decay_spares_biases_and_norms(tiny_folder):
    def moved(**changes):
        run = train(load_model(tiny_folder, device="cpu"), max_steps=1, batch_size=8, **changes)
        return {name: p.detach().clone() for name, p in run.model.named_parameters()}

    plain, decayed = moved(), moved(weight_decay=0.5)
    for name, tensor in plain.items():
        assert torch.equal(tensor, decayed[name]) == (tensor.dim() == 1), name
