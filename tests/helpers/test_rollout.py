"""helpers.rollout: the same tokens in any batch, the right log-probs, stops, seeds, and speed-ups
that change nothing."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from helpers.decoding import may_cache, merged_adapters, next_tokens
from helpers.logprobs import pad_prompt_and_response, response_log_probs
from helpers.rollout import SamplingSettings, generate, rejection_sample

PROMPTS = [
    "Nora has 12 apples and buys 30 more.",
    "Where",
    "How many apples does she have now? <think>",
    "价格是十八元。",
    "Luben studied at the school",
]
GREEDY = SamplingSettings(temperature=0, max_new_tokens=24)
SAMPLED = SamplingSettings(temperature=0.8, max_new_tokens=24, seed=5)


def ids(completions) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


@pytest.fixture
def forward_rows(tiny_random_model):
    """The number of rows of each forward pass of the model, as they come; it was tried before."""
    rows = []
    assert may_cache(tiny_random_model[0])

    def note(module, args, kwargs):
        rows.append(len(kwargs["input_ids"]))

    tiny_random_model[0].register_forward_pre_hook(note, with_kwargs=True)
    return rows


# --- the tokens -----------------------------------------------------------------------------------


def test_greedy_in_a_batch_equals_alone_and_transformers(tiny_random_model):
    model, tokenizer = tiny_random_model
    batch = generate(model, tokenizer, PROMPTS, sampling=GREEDY)
    alone = [generate(model, tokenizer, [p], sampling=GREEDY)[0] for p in PROMPTS]
    assert ids(batch) == ids(alone)
    plain = GenerationConfig(do_sample=False, max_new_tokens=24, eos_token_id=0, pad_token_id=0)
    for prompt, completion in zip(PROMPTS, batch, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(**inputs, generation_config=plain)[0]
        assert completion.prompt_token_ids + completion.token_ids == expected.tolist()
    assert len({tuple(row) for row in ids(batch)}) == len(PROMPTS)  # the prompts do matter


def test_learnt_positions_are_counted_without_the_padding(tiny_tokenizer):
    """Qwen2 only sees distances between positions; GPT-2 sees the positions themselves."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128,
        initializer_range=0.3, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    batch = generate(model, tiny_tokenizer, PROMPTS, sampling=GREEDY)
    alone = [generate(model, tiny_tokenizer, [p], sampling=GREEDY)[0] for p in PROMPTS]
    assert ids(batch) == ids(alone)


def test_samples_do_not_depend_on_batching_or_on_later_prompts(tiny_random_model):
    model, tokenizer = tiny_random_model
    together = generate(model, tokenizer, PROMPTS, n=4, sampling=SAMPLED)
    small = generate(model, tokenizer, PROMPTS, n=4, sampling=SAMPLED, batch_size=1)
    fewer = generate(model, tokenizer, PROMPTS[:2], n=4, sampling=SAMPLED)
    assert ids(together) == ids(small)
    assert ids(together)[:8] == ids(fewer)


def test_order_is_prompt_by_prompt(tiny_random_model):
    model, tokenizer = tiny_random_model
    completions = generate(model, tokenizer, PROMPTS, n=3, sampling=SAMPLED, batch_size=6)
    assert len(completions) == 15
    for index, completion in enumerate(completions):
        assert completion.prompt_token_ids == tokenizer(PROMPTS[index // 3])["input_ids"]


def test_seeds_repeat_and_differ(tiny_random_model):
    model, tokenizer = tiny_random_model

    def sample(seed):
        settings = SamplingSettings(temperature=1.0, max_new_tokens=16, seed=seed)
        return ids(generate(model, tokenizer, PROMPTS[:2], n=2, sampling=settings))

    torch.manual_seed(1)
    first = sample(0)
    torch.manual_seed(2)
    assert sample(0) == first
    assert sample(1) != first
    assert first[0] != first[1]  # the samples of a prompt differ


def test_token_ids_are_taken_as_prompts(tiny_random_model):
    model, tokenizer = tiny_random_model
    as_ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert generate(model, tokenizer, as_ids, sampling=GREEDY) == generate(
        model, tokenizer, PROMPTS, sampling=GREEDY
    )
    assert generate(model, tokenizer, [], sampling=GREEDY) == []


def test_the_base_model_agrees_in_batch_and_alone(base_model):
    model, tokenizer = base_model
    batch = generate(model, tokenizer, PROMPTS, sampling=GREEDY)
    assert ids(batch) == [
        generate(model, tokenizer, [prompt], sampling=GREEDY)[0].token_ids for prompt in PROMPTS
    ]


# --- the log-probabilities ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLED,
        GREEDY,
        SamplingSettings(temperature=1.3, top_k=5, top_p=0.7, max_new_tokens=24),
    ],
)
def test_log_probs_are_those_a_training_step_computes(tiny_random_model, sampling):
    """So the first importance ratio of a policy-gradient step is 1 within 1e-5."""
    model, tokenizer = tiny_random_model
    completions = generate(model, tokenizer, PROMPTS, n=3, sampling=sampling)
    batch = pad_prompt_and_response(
        [c.prompt_token_ids for c in completions], ids(completions), tokenizer.pad_token_id
    )
    mask = batch["response_mask"]
    scores = response_log_probs(model, **batch, temperature=sampling.temperature or 1.0)
    sampled = torch.tensor([value for c in completions for value in c.log_probs])
    torch.testing.assert_close(scores["log_probs"][mask], sampled, atol=1e-5, rtol=0)


def test_nothing_hides_in_the_checkpoint_settings(tiny_random_model):
    """transformers keeps top_k = 50 and a checkpoint's penalties; here all tokens can come."""
    model, tokenizer = tiny_random_model
    model.generation_config.update(top_k=1, temperature=0.01, repetition_penalty=9.0)
    settings = SamplingSettings(temperature=3.0, max_new_tokens=40)
    completions = generate(model, tokenizer, PROMPTS, n=4, sampling=settings)
    with torch.no_grad():
        for completion in completions[:4]:
            sequence = torch.tensor([completion.prompt_token_ids + completion.token_ids])
            logits = model(sequence).logits[0, len(completion.prompt_token_ids) - 1 : -1]
            chosen = logits.gather(-1, torch.tensor(completion.token_ids)[:, None])
            ranks = (logits > chosen).sum(-1)
            if (ranks >= 50).any():
                return
    pytest.fail("no token outside the 50 most probable ones was sampled at temperature 3")


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[-math.inf, 1.0, 0.0, -1.0, -math.inf, 2.0, -math.inf]])
    draws = 20_000
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    tokens, _ = next_tokens(logits.expand(draws, -1), uniforms, temperature=0.5)
    share = torch.bincount(tokens, minlength=7) / draws
    torch.testing.assert_close(share, (logits[0] / 0.5).softmax(-1), atol=1e-4, rtol=0)
    for extreme in (0.0, 1 - 2**-53):  # the smallest and the largest number that can be drawn
        token, _ = next_tokens(logits, torch.tensor([extreme], dtype=torch.float64), 1.0)
        assert token.item() in (1, 5)  # never one of probability 0


def test_each_rare_token_of_a_large_vocabulary_can_be_sampled():
    """A float32 running sum near 1 steps over most of 150,000 probabilities of 1.5e-8 each."""
    logits = torch.full((1, 150_000), -18.0)
    logits[0, 0] = 0.0
    cumulative = logits[0].softmax(-1).double().cumsum(-1)
    wanted = torch.arange(100_000, 100_020)
    middle = (cumulative[wanted] + cumulative[wanted - 1]) / 2 / cumulative[-1]
    tokens, log_probs = next_tokens(logits.expand(20, -1), middle, 1.0)
    assert tokens.tolist() == wanted.tolist()
    torch.testing.assert_close(log_probs, torch.full((20,), -18.0), atol=0.01, rtol=0)


def test_top_k_and_top_p_cut_the_right_tokens():
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000

    def drawn(**cut):
        tokens, _ = next_tokens(logits.expand(1000, -1), uniforms, 1.0, **cut)
        return sorted(set(tokens.tolist()))

    assert drawn() == [0, 1, 2, 3]
    assert drawn(top_k=2) == [1, 2]
    assert drawn(top_p=0.6) == [1, 2]
    assert drawn(top_p=0.75) == [1, 2, 3]
    assert drawn(top_p=1e-9) == [1]


# --- how completions end --------------------------------------------------------------------------


def script(model, tokenizer, text: str) -> str:
    """Make the model continue "0" with a text, whatever it was; returns the prompt.

    Each token is made to follow the one before it, so the text may hold no token twice.
    """
    tokens = tokenizer("0" + text)["input_ids"]
    assert len(set(tokens)) == len(tokens)
    follows = dict(zip(tokens, tokens[1:], strict=False))

    def answer(module, args, kwargs, output):
        logits = torch.zeros_like(output.logits)
        for row, last in enumerate(kwargs["input_ids"][:, -1].tolist()):
            logits[row, -1, follows.get(last, tokens[-1])] = 100.0
        output.logits = logits
        return output

    model.register_forward_hook(answer, with_kwargs=True)
    return "0"


def test_eos_is_kept_in_the_ids_and_not_in_the_text(tiny_random_model):
    model, tokenizer = tiny_random_model
    prompt = script(model, tokenizer, "12 apples.<|endoftext|>")
    (completion,) = generate(model, tokenizer, [prompt], sampling=GREEDY)
    assert completion.finish_reason == "eos"
    assert completion.text == "12 apples."
    assert completion.token_ids[-1] == tokenizer.eos_token_id
    assert len(completion.log_probs) == len(completion.token_ids)


def test_more_ids_may_end_a_text(tiny_random_model):
    model, tokenizer = tiny_random_model
    prompt = script(model, tokenizer, "12 apples.<|im_end|>")
    settings = SamplingSettings(temperature=0, max_new_tokens=9, stop_token_ids=(2,))
    (completion,) = generate(model, tokenizer, [prompt], sampling=settings)
    assert (completion.finish_reason, completion.text) == ("eos", "12 apples.")
    model.generation_config.eos_token_id = [0, 2]  # as chat checkpoints have it
    settings = SamplingSettings(temperature=0, max_new_tokens=9)
    (completion,) = generate(model, tokenizer, [prompt], sampling=settings)
    assert completion.finish_reason == "eos"


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("ab</answer> cd", "</answer>", "ab</answer>"),
        ("ab.\nWhere", "\nW", "ab.\nW"),  # inside a token: the text ends with the string
        ("ab€;", "€", "ab€"),  # the last of several byte tokens completes the character
        ("aé元b", "元", "aé元"),
    ],
)
def test_stop_strings_across_token_boundaries(tiny_random_model, text, stop, kept):
    model, tokenizer = tiny_random_model
    prompt = script(model, tokenizer, text)
    settings = SamplingSettings(temperature=0, max_new_tokens=30, stop_strings=("never", stop))
    (completion,) = generate(model, tokenizer, [prompt], sampling=settings)
    assert (completion.finish_reason, completion.text) == ("stop_string", kept)
    whole = tokenizer("0" + text)["input_ids"][1:]
    assert completion.token_ids == whole[: len(completion.token_ids)]  # and no token is cut
    assert kept in tokenizer.decode(completion.token_ids)
    assert kept not in tokenizer.decode(completion.token_ids[:-1])


def test_length(tiny_random_model):
    model, tokenizer = tiny_random_model
    prompt = script(model, tokenizer, "12 apples.<|endoftext|>")
    settings = SamplingSettings(temperature=0, max_new_tokens=2)
    (completion,) = generate(model, tokenizer, [prompt], sampling=settings)
    assert completion.finish_reason == "length"
    assert completion.text == tokenizer.decode(completion.token_ids)
    assert len(completion.token_ids) == 2


def test_the_window_of_the_model_ends_a_text(tiny_random_model):
    model, tokenizer = tiny_random_model
    model.generation_config.eos_token_id, tokenizer_free = None, [[7] * 250, [7] * 3]
    long, short = generate(model, tokenizer, tokenizer_free, sampling=GREEDY)
    assert long.finish_reason == "length" and len(long.token_ids) == 6  # 256 positions in all
    assert len(short.token_ids) > 6
    with pytest.raises(ValueError, match="prompt 1 has 256 tokens.*256"):
        generate(model, tokenizer, [[7], [7] * 256], sampling=GREEDY)


# --- what makes it fast ---------------------------------------------------------------------------


def test_a_group_shares_one_pass_over_its_prompt(tiny_random_model, forward_rows):
    model, tokenizer = tiny_random_model
    generate(model, tokenizer, PROMPTS, n=8, sampling=SAMPLED)
    assert forward_rows[:2] == [5, 40]


def test_ended_rows_are_dropped(tiny_random_model, forward_rows):
    model, tokenizer = tiny_random_model
    settings = SamplingSettings(temperature=2.0, max_new_tokens=60, stop_token_ids=range(3, 40))
    completions = generate(model, tokenizer, PROMPTS, n=8, sampling=settings)
    lengths = sorted(map(len, ids(completions)), reverse=True)
    assert lengths[0] > 3 * lengths[20]  # the fixture has short and long completions
    for step, rows in enumerate(forward_rows[1:], start=1):
        unfinished = sum(length > step for length in lengths)
        assert unfinished <= rows <= max(unfinished, math.ceil(unfinished / (7 / 8)))
    assert ids(completions) == ids(
        generate(model, tokenizer, PROMPTS, n=8, sampling=settings, batch_size=1)
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(tiny_random_model, training):
    model, tokenizer = tiny_random_model
    model.train(training)
    model.config.attention_dropout = 0.5
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5  # would show if the call left the model training
    first = generate(model, tokenizer, PROMPTS, sampling=GREEDY)
    assert generate(model, tokenizer, PROMPTS, sampling=GREEDY) == first
    with pytest.raises(IndexError):
        generate(model, tokenizer, [[10**6]], sampling=GREEDY)
    assert model.training == training
    assert model.config._attn_implementation == "sdpa"
    model(torch.tensor([[5, 6]])).logits.sum().backward()  # gradients are on again


def test_peft_model_samples_with_its_adapter(tiny_random_model):
    model, tokenizer = tiny_random_model
    plain = generate(model, tokenizer, PROMPTS, sampling=GREEDY)
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    assert ids(generate(peft_model, tokenizer, PROMPTS, sampling=GREEDY)) == ids(plain)
    torch.manual_seed(0)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    tuned = generate(peft_model, tokenizer, PROMPTS, sampling=GREEDY)
    assert ids(tuned) != ids(plain)
    with peft_model.disable_adapter():
        assert ids(generate(peft_model, tokenizer, PROMPTS, sampling=GREEDY)) == ids(plain)


def test_adapters_are_merged_while_decoding_and_the_weights_come_back(tiny_random_model):
    model, tokenizer = tiny_random_model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    settings = SamplingSettings(max_new_tokens=6, seed=1)
    with merged_adapters(peft_model):
        layers = [layer for layer in peft_model.modules() if getattr(layer, "merged", False)]
    assert len(layers) == 7 * model.config.num_hidden_layers and not layers[0].merged
    for completion in generate(peft_model, tokenizer, PROMPTS, n=2, sampling=settings):
        sequence = torch.tensor([completion.prompt_token_ids + completion.token_ids])
        scores = peft_model(sequence).logits.log_softmax(-1)[0, :-1]  # not merged
        place = len(completion.prompt_token_ids) - 1
        expected = scores[place:].gather(1, sequence[0, place + 1 :, None]).squeeze(1)
        # float32 rounds each merged weight by 6e-8 of it, and logits of about 10 add up 64 of them.
        torch.testing.assert_close(torch.tensor(completion.log_probs), expected, atol=1e-4, rtol=0)
    with pytest.raises(IndexError):
        generate(peft_model, tokenizer, [[10**6]], sampling=settings)
    after = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(getattr(layer, "merged", False) for layer in peft_model.modules())


@pytest.mark.parametrize("variant", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_that_are_no_plain_lora_are_not_merged(tiny_random_model, variant):
    model, tokenizer = tiny_random_model
    names = ["q_proj", "v_proj"]  # layers that have a bias
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=names, **variant))
    torch.manual_seed(0)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    sampled, = generate(peft_model, tokenizer, PROMPTS[:1], sampling=GREEDY)
    batch = pad_prompt_and_response([sampled.prompt_token_ids], [sampled.token_ids], 0)
    with torch.no_grad():
        scores = response_log_probs(peft_model, **batch)["log_probs"][batch["response_mask"]]
    torch.testing.assert_close(torch.tensor(sampled.log_probs), scores, atol=1e-4, rtol=0)


def test_progress_counts_completions(tiny_random_model, capsys):
    model, tokenizer = tiny_random_model
    generate(model, tokenizer, PROMPTS, n=2, sampling=SAMPLED, progress=True)
    assert "10/10" in capsys.readouterr().err
    generate(model, tokenizer, PROMPTS, n=2, sampling=SAMPLED)
    assert capsys.readouterr().err == ""


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2.5),
        ("max_new_tokens", 0),
        ("stop_strings", ("",)),
        ("stop_token_ids", (-1,)),
        ("seed", True),
    ],
)
def test_settings_name_the_wrong_field(field, value):
    with pytest.raises(ValueError, match=f"sampling setting {field} must be .* but it is"):
        SamplingSettings(**{field: value})


def test_one_stop_string_may_stand_alone():
    assert SamplingSettings(stop_strings="</answer>").stop_strings == ("</answer>",)


def test_wrong_calls_are_answered_in_a_sentence(tiny_random_model):
    model, tokenizer = tiny_random_model
    for call, message in (
        ({"engine": "fast"}, 'engine must be one of "auto", "transformers", "vllm", but it is'),
        ({"n": 0}, "n and batch_size must be 1 or more"),
        ({"prompts": ["one", ""]}, "prompt 1 is empty"),
        ({"prompts": "one"}, "list of prompts"),
        ({"prompts": [1, 2]}, "list of prompts"),
    ):
        arguments = {"prompts": PROMPTS, "sampling": GREEDY} | call
        with pytest.raises(ValueError, match=message):
            generate(model, tokenizer, **arguments)


def test_rejection_sampling_keeps_right_stated_answers_once_and_in_order():
    samples = [
        ["It is red.\nAnswer: red", "It is red.\nAnswer: red", "red", "Answer: blue"],
        ["Answer: no\nAnswer: a fox", "Answer: fox cub"],
    ]
    kept = rejection_sample(["p", "q"], samples, [["red"], ["wolf", "fox"]])
    assert [(row["prompt"], row["response"]) for row in kept] == [
        ("p", samples[0][0]), ("q", samples[1][0]),
    ]
    lower = rejection_sample(["q"], samples[1:], [["fox"]], threshold=0.6)
    assert [row["f1"] for row in lower] == pytest.approx([1.0, 2 / 3])
    with pytest.raises(ValueError):
        rejection_sample(["p"], samples, [["red"]])
