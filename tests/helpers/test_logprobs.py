"""helpers.logprobs: masks from lengths, no shift errors, padding on either side, chunks, LoRA."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import log_softmax
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

import helpers.logprobs as logprobs
from helpers.logprobs import (
    entropy,
    pad_prompt_and_response,
    response_log_probs,
    tokenize_prompt_and_response,
)

PROMPTS = [[11, 12, 13, 14, 15], [21, 22], [31]]
RESPONSES = [[40, 41], [50, 51, 52, 53, 0], [60]]


def by_hand(model, prompt, response, temperature=1.0):
    """Response log-probs of one sequence from the full logits, position by position."""
    ids = torch.tensor([prompt + response])
    table = log_softmax(model(ids).logits[0] / temperature, dim=-1)
    return torch.stack([table[len(prompt) + k - 1, t] for k, t in enumerate(response)])


class CountsUp(torch.nn.Module):
    """A language model whose next token is certainly the current one plus one."""

    def __init__(self, vocab_size=100):
        super().__init__()
        self.head = torch.nn.Linear(vocab_size, vocab_size, bias=False)
        self.head.weight.data = 50.0 * torch.eye(vocab_size).roll(1, dims=0)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, **kwargs):
        hidden = torch.nn.functional.one_hot(input_ids, self.head.in_features).float()
        return type("Output", (), {"logits": self.head(hidden)})


def test_masks_come_from_lengths_though_pad_equals_eos():
    batch = pad_prompt_and_response(PROMPTS, RESPONSES, pad_token_id=0)
    assert batch["input_ids"].shape == (3, 6)
    assert batch["labels"][1].tolist() == [22, 50, 51, 52, 53, 0]
    assert batch["response_mask"].tolist() == [
        [False, False, False, False, True, True],
        [False, True, True, True, True, True],  # the EOS is learnt though it is also the padding
        [True, False, False, False, False, False],
    ]
    assert batch["attention_mask"].sum(dim=1).tolist() == [6, 6, 2]
    again = pad_prompt_and_response([[5, 0, 6], [7]], [[8, 9], [0]], pad_token_id=0)
    assert again["attention_mask"].sum(dim=1).tolist() == [4, 2]  # an EOS in a prompt is read
    assert batch["response_mask"].dtype == batch["attention_mask"].dtype == torch.bool


def test_tokenised_apart_so_no_token_crosses_the_boundary(tiny_tokenizer):
    prompt, response = "Nora has 12 app", "les and buys 30"
    joined = tiny_tokenizer(prompt + response)["input_ids"]
    batch = tokenize_prompt_and_response([prompt], [response], tiny_tokenizer, append_eos=True)
    ids = [*batch["input_ids"][0, :1].tolist(), *batch["labels"][0].tolist()]
    start = len(tiny_tokenizer(prompt)["input_ids"])
    assert ids[:-1] != joined  # the fixture does merge across the boundary
    assert tiny_tokenizer.decode(ids[:start]) == prompt
    assert tiny_tokenizer.decode(ids[start:-1]) == response
    assert ids[-1] == tiny_tokenizer.eos_token_id
    assert batch["labels"][batch["response_mask"]].tolist() == ids[start:]


def test_max_length_cuts_the_end(tiny_tokenizer):
    texts = ["Nora has 12 apples"], ["and buys 30 more. " * 5]
    whole = tokenize_prompt_and_response(*texts, tiny_tokenizer, append_eos=True)
    cut = tokenize_prompt_and_response(*texts, tiny_tokenizer, append_eos=True, max_length=12)
    assert cut["input_ids"].shape == (1, 11)
    assert torch.equal(cut["labels"], whole["labels"][:, :11])
    with pytest.raises(ValueError, match="1 and 2"):
        tokenize_prompt_and_response(["a"], ["b", "c"], tiny_tokenizer)


def test_a_deterministic_model_proves_the_shift():
    """p(next = current + 1) = 1: any shift by one position gives about -50 instead of 0."""
    batch = pad_prompt_and_response([[3, 4], [7]], [[5, 6, 7], [8]], pad_token_id=0)
    mask = batch["response_mask"]
    scores = response_log_probs(CountsUp(), batch["input_ids"], batch["labels"])["log_probs"]
    torch.testing.assert_close(scores[mask], torch.zeros(4), atol=1e-5, rtol=0)
    assert (scores[1, 1:] < -40).all()  # the padding is not what the model expects


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_of_three_lengths_equals_singles(tiny_random_model, temperature, masked):
    model, _ = tiny_random_model
    batch = pad_prompt_and_response(PROMPTS, RESPONSES, pad_token_id=0)
    mask = batch.pop("response_mask")
    scores = response_log_probs(
        model, **batch, response_mask=mask if masked else None, temperature=temperature
    )["log_probs"]
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected = by_hand(model, prompt, response, temperature)
        torch.testing.assert_close(scores[row][mask[row]], expected, atol=1e-5, rtol=0)
    if masked:
        assert (scores[~mask] == 0).all()


@pytest.mark.parametrize("positions", ["rotary", "learnt"])
def test_left_padding_gives_the_same(tiny_random_model, positions):
    """Rotary embeddings only see distances; learnt ones show when padding is counted."""
    model, _ = tiny_random_model
    if positions == "learnt":
        config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
        model = GPT2LMHeadModel(config).eval()
    batch = pad_prompt_and_response(PROMPTS, RESPONSES, pad_token_id=0)
    lengths = batch["attention_mask"].sum(dim=1)
    left = {
        name: torch.stack([row.roll(6 - int(n)) for row, n in zip(rows, lengths, strict=True)])
        for name, rows in batch.items()
    }
    right_scores = response_log_probs(model, **batch)["log_probs"]
    left_scores = response_log_probs(model, **left)["log_probs"]
    torch.testing.assert_close(
        left_scores[left["response_mask"]],
        right_scores[batch["response_mask"]],
        atol=1e-5,
        rtol=0,
    )


def test_chunks_change_neither_values_nor_gradients(tiny_random_model, monkeypatch):
    model, _ = tiny_random_model
    model.double()
    batch = pad_prompt_and_response(PROMPTS, RESPONSES, pad_token_id=0)
    results = []
    for elements in (10_000_000, 3 * model.config.vocab_size):  # one chunk, then three
        monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", elements)
        model.zero_grad()
        scores = response_log_probs(model, **batch, return_entropy=True)
        (scores["log_probs"].sum() + 0.3 * scores["entropy"].sum()).backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        results.append((scores["log_probs"].detach(), scores["entropy"].detach(), *gradients))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-9, rtol=1e-9)
    assert results[0][2].abs().sum() > 0


def test_the_model_is_left_as_it_was(tiny_random_model):
    model, _ = tiny_random_model
    batch = pad_prompt_and_response(PROMPTS, RESPONSES, pad_token_id=0)
    before = model(batch["input_ids"]).logits
    response_log_probs(model, **batch)
    with pytest.raises(TypeError):
        response_log_probs(model, batch["input_ids"], batch["labels"], temperature="warm")
    assert torch.equal(model(batch["input_ids"]).logits, before)


def test_gradient_by_finite_differences(tiny_random_model):
    model = tiny_random_model[0].double()
    batch = pad_prompt_and_response(PROMPTS, RESPONSES, pad_token_id=0)
    weight = model.model.layers[1].mlp.up_proj.weight

    def total():
        scores = response_log_probs(model, **batch, return_entropy=True)
        return scores["log_probs"].sum() + scores["entropy"].sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    # Along the gradient itself, and no step below 1e-3: Qwen2's norms work in float32 throughout.
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        weight += step
        above = total()
        weight -= 2 * step
        below = total()
    assert above.dtype == torch.float64
    assert float(above - below) / 2e-3 == pytest.approx(float(gradient.norm()), rel=1e-3)


def test_peft_model_trains_through_its_adapter(tiny_random_model):
    model, _ = tiny_random_model
    batch = pad_prompt_and_response(PROMPTS, RESPONSES, pad_token_id=0)
    plain = response_log_probs(model, **batch)["log_probs"]
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    scores = response_log_probs(peft_model, **batch)["log_probs"]
    torch.testing.assert_close(scores, plain)
    scores.sum().backward()
    trained = {n: p.grad for n, p in peft_model.named_parameters() if p.requires_grad}
    assert any("lora_B" in name and grad.abs().sum() > 0 for name, grad in trained.items())


TWO_PROCESSES = """
import torch
import torch.distributed as dist
from transformers import Qwen2Config, Qwen2ForCausalLM
from helpers.logprobs import pad_prompt_and_response, response_log_probs

dist.init_process_group("gloo")
assert dist.get_world_size() == 2
torch.manual_seed(0)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=50, hidden_size=16, intermediate_size=32,
    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True))
rows = [([1, 2], [3, 4, 5]), ([6], [7])]

def gradients(model, rows):
    model.zero_grad()
    batch = pad_prompt_and_response([p for p, _ in rows], [r for _, r in rows], 0)
    response_log_probs(model, **batch)["log_probs"].sum().backward()
    return [p.grad.clone() for p in model.parameters()]

both = gradients(model, rows)
wrapped = torch.nn.parallel.DistributedDataParallel(model)
mine = gradients(wrapped, rows[dist.get_rank() :][:1])
for whole, part in zip(both, mine, strict=True):
    torch.testing.assert_close(2 * part, whole, atol=1e-6, rtol=1e-5)  # DDP takes the mean
"""


def test_gradients_are_reduced_over_two_processes(tmp_path):
    script = tmp_path / "two_processes.py"
    script.write_text(TWO_PROCESSES)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    root = str(Path(logprobs.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_bfloat16_model_is_scored_in_float32(tiny_random_model):
    model, _ = tiny_random_model
    batch = pad_prompt_and_response(PROMPTS, RESPONSES, pad_token_id=0)
    mask = batch["response_mask"]
    exact = response_log_probs(model, **batch)["log_probs"]
    rounded = response_log_probs(model.to(torch.bfloat16), **batch)["log_probs"]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded[mask], exact[mask], atol=0.5, rtol=0.1)


def test_empty_responses(tiny_random_model):
    model, _ = tiny_random_model
    batch = pad_prompt_and_response([[5, 6, 7], [8, 9]], [[], []], pad_token_id=0)
    scores = response_log_probs(model, **batch)["log_probs"]
    assert scores.shape == (2, 2) and (scores == 0).all()
    scores.sum().backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_entropy():
    assert float(entropy(torch.zeros(8))) == pytest.approx(math.log(8))
    assert float(entropy(torch.tensor([1000.0, 0.0, 0.0]))) == 0.0
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), expected)
    assert entropy(logits.to(torch.bfloat16)).dtype == torch.float32


SMALL = {
    "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": None,
}
SCALED = {
    "gemma2": (Gemma2Config(**SMALL, final_logit_softcapping=0.2), Gemma2ForCausalLM),
    "granite": (GraniteConfig(**SMALL, logits_scaling=0.05), GraniteForCausalLM),
    "cohere": (CohereConfig(**SMALL, logit_scale=16.0), CohereForCausalLM),
}


@pytest.mark.parametrize("name", SCALED)
def test_models_that_change_their_logits_behind_the_output_layer(name):
    config, kind = SCALED[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    batch = pad_prompt_and_response(PROMPTS, RESPONSES, pad_token_id=0)
    mask = batch["response_mask"]
    found = response_log_probs(model, **batch, temperature=0.7, return_entropy=True)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected = by_hand(model, prompt, response, temperature=0.7)
        torch.testing.assert_close(found["log_probs"][row][mask[row]], expected)
    assert found["log_probs"].requires_grad


def test_a_model_with_an_unknown_change_of_the_logits_makes_them_itself():
    class Halved(CountsUp):
        def forward(self, input_ids, **kwargs):
            return type("Output", (), {"logits": super().forward(input_ids).logits / 2})

    batch = pad_prompt_and_response([[5]], [[6, 8]], pad_token_id=0)
    with pytest.warns(UserWarning, match="Halved the logits are changed behind the output layer"):
        found = response_log_probs(Halved(), **batch)["log_probs"]
    rest = math.log(1 + 99 * math.exp(-25.0))  # the logits are 25 for the next number, 0 elsewhere
    torch.testing.assert_close(found, torch.tensor([[-rest, -25 - rest]]))
