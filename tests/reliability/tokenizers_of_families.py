"""Small tokenizers that behave as those of the model families do, for the tests beside."""

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

TEXTS = ["12 eggs and 3 hens\nnext line", "So 6 * 7 = 42.\n\n#### 42", "Q: how many? A: 2+2=4"] * 30
BYTES = [f"<0x{value:02X}>" for value in range(256)]
PIECES = [*"▁aehnigs12347=+.,*#:Q\n", "▁e", "gg", "▁egg", "an", "▁an", "he", "hen", "\n\n"]
MERGES = [("▁", "e"), ("g", "g"), ("▁e", "gg"), ("a", "n"), ("▁", "an"), ("h", "e"), ("he", "n")]


def _vocabulary(*special: str) -> dict[str, int]:
    return {piece: number for number, piece in enumerate([*special, *BYTES, *PIECES])}


def llama2():
    """transformers' own class: SentencePiece's way, byte fallback, BOS before a text."""
    return LlamaTokenizer(
        vocab=_vocabulary("<unk>", "<s>", "</s>"), merges=MERGES, add_bos_token=True
    )


def llama2_legacy():
    """As the first conversions of Llama 2 and Mistral: a space before every piece of text."""
    backend = llama2().backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = None
    backend.post_processor = _bos_before("<s>", 1)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def gemma():
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
    return GemmaTokenizer(
        vocab=_vocabulary(*special),
        merges=MERGES,
        add_bos_token=True,
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )


def unigram():
    """As T5's and XLM-R's: whole words, no merges."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"
    )


def byte_level(*, bos: bool = False, prefix_space: bool = False):
    """As GPT-2's; with `bos` as Llama 3's, whose post-processor puts it; or with a space first."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[*special, "<|end_header_id|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    if bos:
        backend.post_processor = _bos_before("<|begin_of_text|>", 0)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )


def _bos_before(token: str, number: int):
    return processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])


FAMILIES = {
    "llama2": llama2,
    "llama2_legacy": llama2_legacy,
    "gemma": gemma,
    "unigram": unigram,
    "gpt2": byte_level,
    "llama3": lambda: byte_level(bos=True),
    "space_first": lambda: byte_level(prefix_space=True),
}
WITH_BOS = ("llama2", "llama2_legacy", "gemma", "llama3")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
).replace("{{ m.role }}", "{{ 'model' if m.role == 'assistant' else m.role }}")
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + "
    "' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
