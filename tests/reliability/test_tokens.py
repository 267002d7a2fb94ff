"""Tokens are what the text and the tokenizer say, in training, sampling and scoring alike."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from helpers.logprobs import tokenize_prompt_and_response
from helpers.reward_models import encode
from helpers.rollout import Completion, Row, SamplingSettings, StopRules, generate, tokenize_prompts
from helpers.strategies import speaks_chat
from helpers.streaming import stream
from helpers.tokens import encode_prompt, encode_response, response_decoder
from helpers.training.rollouts import Tasks
from tests.reliability.tokenizers_of_families import (
    CHATML,
    FAMILIES,
    GEMMA,
    LLAMA2,
    LLAMA3,
    WITH_BOS,
    byte_level,
    gemma,
    llama2,
)
from workbook.train import prompt_writer

ROOT = Path(__file__).parents[2]
BASE = ROOT / "workbook" / "assets" / "base"
PROMPTS = ("12 eggs", "12 eggs\n", "12 ", "2+2=", "Q:")
RESPONSES = ("4", " an egg", "hen", "\nhen", "\n\nan", "  an", "=4", "#### 4")


@pytest.fixture(scope="module")
def base():
    return AutoTokenizer.from_pretrained(BASE)


def row_of(tokenizer, prompt: str, response: str, **options) -> list[int]:
    batch = tokenize_prompt_and_response([prompt], [response], tokenizer, **options)
    return [*batch["input_ids"][0].tolist(), batch["labels"][0, -1].item()]


def writer_of(tokenizer, tokens: list[int]) -> LlamaForCausalLM:
    """A model that writes these tokens, each after the one before, whatever stands earlier."""
    size = len(tokenizer)
    width = -(-size // 8) * 8
    config = LlamaConfig(
        vocab_size=size, hidden_size=width, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=None,
        pad_token_id=0, tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        model.lm_head.weight.zero_()
        for before, after in zip(tokens, tokens[1:], strict=False):
            model.lm_head.weight[after, before] = 10.0
    return model


# ---------------------------------------------------------------- text and back


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_of_a_row_say_prompt_and_response(family):
    tokenizer = FAMILIES[family]()
    for prompt in PROMPTS:
        for response in RESPONSES:
            ids = row_of(tokenizer, prompt, response)
            alone = tokenizer.decode(encode_prompt(prompt, tokenizer), skip_special_tokens=True)
            assert tokenizer.decode(ids, skip_special_tokens=True) == alone + response
            assert alone.lstrip(" ") == prompt  # "space_first" begins every text with one


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_of_a_response_keeps_its_leading_space(family):
    tokenizer = FAMILIES[family]()
    decode = response_decoder(tokenizer)
    for response in RESPONSES:
        assert decode(encode_response(response, tokenizer)) == response
    assert decode([]) == ""


def test_every_row_of_the_shipped_tokenizer_is_what_it_was(base):
    texts = ["", " 7", "18 eggs.", "\n\n#### 4", " 🦊。", "é", "e\u0301", "  two", "<|im_end|>x"]
    for prompt in texts[1:]:
        for response in texts:
            first, then = base([prompt, response], add_special_tokens=False)["input_ids"]
            assert encode_prompt(prompt, base) == first
            assert row_of(base, prompt, response, append_eos=True) == [*first, *then, 0]


def test_sampled_text_goes_on_where_its_prompt_ends():
    """Behind a text it is what follows that text; behind ids it is their own decoding."""
    tokenizer = llama2()
    written = tokenizer.convert_tokens_to_ids(["=", "▁egg", "s", ".", "▁an"])
    model = writer_of(tokenizer, written)
    settings = SamplingSettings(temperature=0.0, max_new_tokens=6, stop_strings=(". ",))
    behind_text = generate(model, tokenizer, ["2="], sampling=settings)[0]
    behind_ids = generate(model, tokenizer, [written[:1]], sampling=settings)[0]
    assert behind_text.token_ids == behind_ids.token_ids == written[1:]
    assert behind_text.text == " eggs. " and behind_ids.text == "eggs. "
    *_, (shown, last) = stream(model, tokenizer, "2=", sampling=settings)
    assert shown == last.text == " eggs. "
    whole = tokenizer.decode(behind_text.prompt_token_ids + behind_text.token_ids[:3])
    assert whole.endswith("2= eggs.")  # and this is what the model itself reads
    tasks = Tasks([{"prompt": "2="}], tokenizer, 6, 128)
    assert tasks.text_of(behind_ids) == " eggs. "  # what a reward function is given


def test_a_stop_string_over_byte_tokens_of_llama():
    tokenizer = llama2()
    ids = encode_response(" an 🦊 egg", tokenizer)
    settings = SamplingSettings(stop_strings=("🦊 ",), max_new_tokens=50)
    rules = StopRules(writer_of(tokenizer, []), tokenizer, settings)
    row = Row(Completion([5]), 50, follows_text=True)
    for token in ids:
        if not row.done:
            rules.append(row, token, 0.0)
    assert (row.completion.text, row.completion.finish_reason) == (" an 🦊 ", "stop_string")


# ---------------------------------------------------------------- BOS


@pytest.mark.parametrize("family", FAMILIES)
def test_bos_stands_where_the_tokenizer_puts_it(family):
    tokenizer = FAMILIES[family]()
    bos = [tokenizer.bos_token_id] if family in WITH_BOS else []
    assert tokenizer("12")["input_ids"][: len(bos)] == bos
    for ids in (
        row_of(tokenizer, "12", " an"),
        tokenize_prompts(tokenizer, ["12"], 99)[0],
        encode("12", " an", tokenizer),
        Tasks([{"prompt": "12"}], tokenizer, 4, 99).token_ids[0],
    ):
        assert ids[: len(bos)] == bos and ids.count(tokenizer.bos_token_id) == len(bos)
    assert tokenizer.bos_token_id not in encode_response(" an", tokenizer)


@pytest.mark.parametrize("family", WITH_BOS)
def test_bos_is_never_doubled_and_can_be_switched_off(family, tmp_path):
    tokenizer = FAMILIES[family]()
    bos = tokenizer.bos_token_id
    assert encode_prompt(f"{tokenizer.bos_token}12", tokenizer).count(bos) == 1
    tokenizer.add_bos_token = False
    assert bos not in encode_prompt("12", tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert bos not in encode_prompt("12", AutoTokenizer.from_pretrained(tmp_path))
    tokenizer.add_bos_token = True
    assert encode_prompt("12", tokenizer)[0] == bos


# ---------------------------------------------------------------- ends


def chat_ml(base):
    tokenizer = copy.deepcopy(base)
    tokenizer.chat_template = CHATML
    return tokenizer, "<|im_end|>"


def with_template(tokenizer, template, end):
    tokenizer.chat_template = template
    return tokenizer, end


CHATS = {
    "qwen": chat_ml,
    "gemma": lambda _: with_template(gemma(), GEMMA, "<end_of_turn>"),
    "llama3": lambda _: with_template(byte_level(bos=True), LLAMA3, "<|eot_id|>"),
    "llama2": lambda _: with_template(llama2(), LLAMA2, "</s>"),
}
ROW = {"prompt": "2+2?", "response": "an egg", "turns": [{"role": "user", "content": "2+2?"}]}


@pytest.mark.parametrize("chat", CHATS)
def test_a_chat_row_is_the_templates_own_text(chat, base):
    """The template's whole conversation, tokenised at once, up to the end of the answer."""
    tokenizer, end = CHATS[chat](base)
    row = prompt_writer("chat", tokenizer)(ROW)
    ids = row_of(tokenizer, row["prompt"], row["response"], append_eos=True)
    turns = [*ROW["turns"], {"role": "assistant", "content": "an egg"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    end_id = tokenizer.convert_tokens_to_ids(end)
    assert ids[-1] == end_id and ids.count(end_id) == whole.count(end)
    written = whole[: whole.rindex(end) + len(end)]
    assert tokenizer.decode(ids) == tokenizer.decode(
        tokenizer(written, add_special_tokens=False)["input_ids"]
    )
    rules = StopRules(writer_of(tokenizer, []), tokenizer, SamplingSettings())
    assert end_id in rules.ends_of(Row(Completion(encode_prompt(row["prompt"], tokenizer)), 9))
    assert encode(row["prompt"], row["response"], tokenizer) == ids


@pytest.mark.parametrize("chat", CHATS)
def test_a_plain_row_ends_with_eos_also_of_a_chat_model(chat, base):
    tokenizer, end = CHATS[chat](base)
    ids = row_of(tokenizer, "2+2=", "4", append_eos=True)
    assert ids[-1] == tokenizer.eos_token_id
    rules = StopRules(writer_of(tokenizer, []), tokenizer, SamplingSettings())
    assert rules.ends_of(Row(Completion(ids[:-2]), 9)) == {tokenizer.eos_token_id}


def test_the_true_tokenizer_of_qwen_math():
    folder = ROOT.parent / "shared" / "real" / "qwen2.5-math-tokenizer"
    if not folder.is_dir():
        pytest.skip("the tokenizer of Qwen2.5-Math is not beside the repository")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = prompt_writer("chat", tokenizer)(ROW)
    ids = row_of(tokenizer, row["prompt"], row["response"], append_eos=True)
    turns = [*ROW["turns"], {"role": "assistant", "content": "an egg"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert ids == tokenizer(whole.removesuffix("\n"))["input_ids"]
    assert tokenizer.decode(row_of(tokenizer, "a", " b", append_eos=True)[-1]) == "<|endoftext|>"
    assert not speaks_chat(tokenizer)


def test_sampling_stops_where_the_template_ends_an_answer(base):
    tokenizer, _ = chat_ml(base)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    chat = prompt_writer("chat", tokenizer)(ROW)["prompt"]
    last = encode_prompt(chat, tokenizer)[-1]
    model = writer_of(tokenizer, [last, 70, end, 71])
    settings = SamplingSettings(temperature=0.0, max_new_tokens=3)
    done = generate(model, tokenizer, [chat], sampling=settings)[0]
    assert (done.token_ids, done.finish_reason) == ([70, end], "eos")
    plain = generate(model, tokenizer, [[last]], sampling=settings)[0]
    assert (plain.token_ids, plain.finish_reason) == ([70, end, 71], "length")


@pytest.mark.parametrize("tail", ["<|im_end|>", "<|im_end|>\n", "<|endoftext|>"])
def test_an_end_that_is_written_already_is_not_written_twice(tail, base):
    tokenizer, _ = chat_ml(base)
    prompt = prompt_writer("chat", tokenizer)(ROW)["prompt"]
    written = tokenizer("4" + tail, add_special_tokens=False)["input_ids"]
    assert encode_response("4" + tail, tokenizer, prompt=prompt, append_end=True) == written
    plain = encode_response("4<|endoftext|>", tokenizer, prompt="2+2=", append_end=True)
    assert plain.count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_without_an_end_says_so(base):
    tokenizer = copy.deepcopy(base)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="set its eos_token, or take append_eos=False"):
        encode_response("4", tokenizer, prompt="2+2=", append_end=True)
    assert encode_response("4", tokenizer)


def test_a_chat_model_is_known_by_all_of_its_ends(base):
    """Gemma's tokenizer knows <eos> alone; that <end_of_turn> ends a text is the model's to say."""
    tokenizer, end = CHATS["gemma"](base)
    model = writer_of(tokenizer, [1, 2])
    assert not speaks_chat(tokenizer, model)
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids(end)]
    assert speaks_chat(tokenizer, model)
    tokenizer.chat_template = "{{ raise_exception('only for tools') }}"
    assert not speaks_chat(tokenizer, model)
