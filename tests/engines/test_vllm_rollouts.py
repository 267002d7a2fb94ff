"""vLLM as rollout engine: the same call, the same tokens, weights that follow the policy.

Run by `python3 -m workbook test --engines`, in an environment of its own.
"""

from pathlib import Path

import pytest
import torch

from helpers.logprobs import pad_prompt_and_response, response_log_probs
from helpers.models import LoraSettings, load_model
from helpers.rollout import SamplingSettings, generate
from helpers.vllm_engine import VLLMEngine, shared_engine

pytestmark = pytest.mark.engines
pytest.importorskip("vllm", reason="vLLM is not in this environment")

ASSETS = Path(__file__).parents[2] / "workbook" / "assets"
QUESTIONS = [
    "Question: Nora has 12 apples and buys 30 more. How many apples does she have now?\nAnswer:",
    "Question: A pen costs 3 euros. How much do 4 pens cost?\nAnswer:",
    "Question: Tom reads 7 pages a day. How many pages does he read in 5 days?\nAnswer:",
]
GREEDY = SamplingSettings(temperature=0, max_new_tokens=48)


def load(**options):
    return load_model(ASSETS / "base", device="cpu", **options)


def change(model, seed: int = 1) -> None:
    """What an optimiser step does, but larger: noise on all that is trained."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.1 if hasattr(model, "peft_config") else 0.01
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


def both(model, tokenizer, sampling=GREEDY, n=1, prompts=QUESTIONS):
    ours, theirs = (
        generate(model, tokenizer, prompts, n=n, sampling=sampling, engine=engine)
        for engine in ("transformers", "vllm")
    )
    return ours, theirs


def assert_equal(ours, theirs) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert other.prompt_token_ids == mine.prompt_token_ids
        assert other.token_ids == mine.token_ids
        assert other.text == mine.text and other.finish_reason == mine.finish_reason
        assert other.log_probs == pytest.approx(mine.log_probs, abs=2e-5)


def recomputed(model, completions, temperature: float) -> torch.Tensor:
    """The trainer's log-probabilities of what was sampled, minus the sampler's."""
    batch = pad_prompt_and_response(
        [c.prompt_token_ids for c in completions], [c.token_ids for c in completions], 0
    )
    with torch.no_grad():
        scores = response_log_probs(model, **batch, temperature=temperature)["log_probs"]
    sampled = torch.tensor([value for c in completions for value in c.log_probs])
    return scores[batch["response_mask"]] - sampled


@pytest.mark.parametrize("options", [{}, {"lora": LoraSettings(rank=12, alpha=24)}],
                         ids=["all weights", "lora"])
def test_greedy_is_equal_before_and_after_an_update(options):
    model, tokenizer = load(**options)
    before = both(model, tokenizer)
    assert_equal(*before)
    change(model)
    after = both(model, tokenizer)
    assert_equal(*after)
    assert [c.token_ids for c in after[1]] != [c.token_ids for c in before[1]]


def test_greedy_is_equal_with_a_saved_adapter():
    model, tokenizer = load(adapter=ASSETS / "adapters" / "sft")
    assert_equal(*both(model, tokenizer))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_log_probs_are_those_of_the_sampling_temperature(temperature):
    model, tokenizer = load(lora=LoraSettings(rank=8))
    change(model)
    sampling = SamplingSettings(temperature=temperature, max_new_tokens=48, seed=5)
    found = generate(model, tokenizer, QUESTIONS, n=8, sampling=sampling, engine="vllm")
    assert recomputed(model, found, temperature).abs().max() < 1e-4
    wrong = recomputed(model, found, temperature * 1.2)
    assert wrong.abs().max() > 0.1


def test_samples_follow_the_seed_and_not_the_batch():
    model, tokenizer = load()
    sampling = SamplingSettings(max_new_tokens=24, seed=3)
    engine = shared_engine(model, tokenizer)
    engine.update(model)
    whole = engine.sample(QUESTIONS, 4, sampling)
    assert [c.token_ids for c in engine.sample(QUESTIONS, 4, sampling)] == [
        c.token_ids for c in whole]
    part = engine.sample(QUESTIONS[1:2], 4, sampling, first=1)
    assert [c.token_ids for c in part] == [c.token_ids for c in whole[4:8]]
    assert len({tuple(c.token_ids) for c in whole[:4]}) > 1
    other = engine.sample(QUESTIONS, 4, SamplingSettings(max_new_tokens=24, seed=4))
    assert [c.token_ids for c in other] != [c.token_ids for c in whole]


def test_sampled_frequencies_are_the_models_probabilities():
    """The first token of 4,000 samples: a top-k left on by someone's defaults would show."""
    model, tokenizer = load()
    sampling = SamplingSettings(temperature=1.5, max_new_tokens=1, seed=0)
    found = generate(model, tokenizer, QUESTIONS[:1], n=4000, sampling=sampling, engine="vllm")
    logits = model(torch.tensor([found[0].prompt_token_ids])).logits[0, -1].detach() / 1.5
    expected = logits.double().softmax(-1) * 4000
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in found]), minlength=len(logits))
    common = expected > 20
    deviation = (counts - expected)[common] / expected[common].sqrt()
    assert common.sum() >= 5 and deviation.abs().max() < 4.5
    rare = counts[expected < 4000 * 2e-3].sum()
    assert rare == pytest.approx(float(expected[expected < 4000 * 2e-3].sum()), rel=0.2)


def test_completions_end_where_transformers_ends_them():
    model, tokenizer = load()
    stops = tuple(tokenizer("7", add_special_tokens=False)["input_ids"])
    for sampling in (
        SamplingSettings(temperature=0, max_new_tokens=5),
        SamplingSettings(temperature=0, max_new_tokens=48, stop_strings=("\n", "pages")),
        SamplingSettings(temperature=0, max_new_tokens=48, stop_token_ids=stops),
    ):
        ours, theirs = both(model, tokenizer, sampling)
        assert_equal(ours, theirs)
    assert {c.finish_reason for c in theirs} <= {"eos", "length"}


def test_a_prompt_that_ends_within_a_character_is_not_taken_for_new_text():
    model, tokenizer = load()
    prompts = [QUESTIONS[0] + ". A line.\n 7 pages \ufffd", QUESTIONS[1]]
    stops = (". ", "\n", "pages")
    sampling = SamplingSettings(temperature=0, max_new_tokens=24, stop_strings=stops)
    ours, theirs = both(model, tokenizer, sampling, prompts=prompts)
    assert_equal(ours, theirs)


def test_a_prompt_near_the_window_is_cut_and_flagged():
    model, tokenizer = load()
    window = model.config.max_position_embeddings
    prompt = tokenizer(QUESTIONS[0] * 60, add_special_tokens=False)["input_ids"][: window - 6]
    ours, theirs = both(model, tokenizer, prompts=[prompt])
    assert_equal(ours, theirs)
    assert len(theirs[0].token_ids) <= 6
    with pytest.raises(ValueError, match="shorten the prompt"):
        generate(model, tokenizer, [prompt + [5] * 6], sampling=GREEDY, engine="vllm")


def test_random_states_and_threads_are_left_as_they_were():
    model, tokenizer = load()
    torch.manual_seed(11)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(11)
    engine = VLLMEngine(model, tokenizer)
    engine.sample(QUESTIONS, 2, SamplingSettings(max_new_tokens=8))
    assert torch.equal(torch.rand(3), expected)
    torch.set_num_threads(threads)
    assert torch.get_num_threads() == threads
    engine.close()
    engine.close()


def test_a_new_engine_ends_the_one_before():
    model, tokenizer = load()
    before = generate(model, tokenizer, QUESTIONS, sampling=GREEDY, engine="vllm")
    first = shared_engine(model, tokenizer)
    VLLMEngine(model, tokenizer).close()
    with pytest.raises(RuntimeError, match="has ended"):
        first.update(model)
    after = generate(model, tokenizer, QUESTIONS, sampling=GREEDY, engine="vllm")
    assert [c.token_ids for c in after] == [c.token_ids for c in before]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_base_that_is_quantised_at_load_is_written_out(kind):
    model, tokenizer = load(quantization=kind, lora=LoraSettings(rank=8), dtype="float32")
    change(model)
    found = generate(model, tokenizer, QUESTIONS, n=4, sampling=SamplingSettings(max_new_tokens=32),
                     engine="vllm")
    limit = {"nf4": 1e-3, "int8": 0.3}[kind]  # int8 layers round their inputs too
    assert recomputed(model, found, 1.0).abs().mean() < limit


def test_an_awq_base_takes_the_adapter_of_each_update():
    model, tokenizer = load_model(
        ASSETS / "base-awq", lora=LoraSettings(rank=8), device="cpu", dtype="bfloat16")
    engine = shared_engine(model, tokenizer)
    for seed in (1, 2):
        change(model, seed)
        engine.update(model)
        found = engine.sample(QUESTIONS, 4, SamplingSettings(max_new_tokens=32, seed=seed))
        assert recomputed(model, found, 1.0).abs().mean() < 0.15
    with model.disable_adapter():
        assert recomputed(model, found, 1.0).abs().mean() > 0.5
