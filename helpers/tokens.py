"""Token ids of texts, and texts of token ids: one place for training, sampling and scoring.

    decode(encode_prompt(prompt) + encode_response(response)) is prompt + response

A tokenizer is made for whole texts: it may put BOS or a space before what it is given, and take a
space off what it decodes. A response is the middle of a text, so it gets neither.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from jinja2 import TemplateError


def encode_prompt(prompt: str, tokenizer) -> list[int]:
    """The ids of a prompt, behind what the tokenizer itself puts before a text (Llama's BOS).

    It is not put there twice: a chat template may have written it already. An empty text has no
    ids. The setting is the tokenizer's own, `tokenizer.add_bos_token = False`, and is saved with
    it.

    Example, of a tokenizer with BOS:
        >>> tokenizer.decode(encode_prompt("2+2=", tokenizer))
        '<s>2+2='
    """
    ids = _plain(prompt, tokenizer)
    before = _put_before(ids, tokenizer(prompt)["input_ids"]) if ids else []
    return ids if ids[: len(before)] == before else [*before, *ids]


def _plain(text: str, tokenizer) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _put_before(plain: list[int], whole: list[int]) -> list[int]:
    """What stands in `whole` before the ids of the text itself."""
    starts = range(len(whole) - len(plain) + 1)
    start = next((k for k in starts if whole[k : k + len(plain)] == plain), 0)
    return whole[:start]


def encode_response(
    response: str, tokenizer, *, prompt: str = "", append_end: bool = False
) -> list[int]:
    """The ids of a response as the continuation of a prompt.

    append_end: with the end that the model is to learn: behind a prompt in the tokenizer's chat
        template what the template writes there (`<|im_end|>`), else EOS. A response that ends so
        already gets no second one.

    Raises ValueError where an end is wanted and the tokenizer has none.
    """
    end = end_behind(prompt, tokenizer) if append_end else None
    if end is None or response.rstrip().endswith(_ends(prompt, tokenizer)):
        return _continued(response, tokenizer)
    if end.token_id is None:
        raise ValueError(
            "A response is to end with the end-of-text token, but the tokenizer has none: set its "
            "eos_token, or take append_eos=False."
        )
    return [*_continued(response + end.before, tokenizer), end.token_id]


# Texts to stand before a response while it is tokenised. Some merge with it, so there are several.
_ANCHORS = ("\n", "=", "a", "1", ".", "x", "Q", "#")


def _continued(text: str, tokenizer) -> list[int]:
    """Ids of a text that follows another one: those of the text apart, if they say the same.

    Else (SentencePiece and its like begin a text with a space) those that it has behind an anchor.
    """
    apart = _plain(text, tokenizer)
    for anchor in _ANCHORS if apart else ():
        before, whole = _plain(anchor, tokenizer), _plain(anchor + text, tokenizer)
        if _is_usable(before, tokenizer) and whole[: len(before)] == before:
            said = [_decode([*before, *ids], tokenizer) for ids in (apart, whole[len(before) :])]
            return apart if said[0] == said[1] else whole[len(before) :]
    return apart


def _is_usable(anchor: Sequence[int], tokenizer) -> bool:
    return bool(anchor) and getattr(tokenizer, "unk_token_id", None) not in anchor


def _decode(token_ids: Sequence[int], tokenizer) -> str:
    return tokenizer.decode(
        token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def response_decoder(tokenizer) -> Callable[[Sequence[int]], str]:
    """A function from ids of a response to their text, its leading space kept.

    Special tokens are shown. An id that holds some bytes of a character alone gives U+FFFD.

    Example, of Llama's tokenizer, whose `decode` takes the first space off:
        >>> response_decoder(tokenizer)(tokenizer.convert_tokens_to_ids(["▁The", "▁end"]))
        ' The end'
    """
    before, shown = _spoken_anchor(tokenizer)

    def decode(token_ids: Sequence[int]) -> str:
        text = _decode([*before, *token_ids], tokenizer)
        return text[len(shown) :] if text.startswith(shown) else _decode(token_ids, tokenizer)

    return decode


def _spoken_anchor(tokenizer) -> tuple[list[int], str]:
    """Ids to stand before a response while it is decoded, and their text.

    No byte tokens: bytes in a row are read together, and an unfinished character behind them would
    spoil the anchor.
    """
    for anchor in _ANCHORS:
        ids = _plain(anchor, tokenizer)
        has_bytes = any(str(token).startswith("<0x") for token in _tokens(ids, tokenizer))
        if _is_usable(ids, tokenizer) and not has_bytes and _decode(ids, tokenizer).strip():
            return ids, _decode(ids, tokenizer)
    return [], ""


def _tokens(ids: Sequence[int], tokenizer) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


# ---------------------------------------------------------------- where a text ends


class End(NamedTuple):
    """What stands behind a response: a text (mostly none), and the token that ends it."""

    before: str
    token_id: int | None


class ChatTurn(NamedTuple):
    """How a chat template begins and ends an answer.

    opening: what stands between a question and its answer, without white space. behind: what
    stands behind the last answer. ends: the special tokens in it; before: its text up to them.
    """

    opening: str
    behind: str
    before: str
    ends: tuple[int, ...]


def end_behind(prompt: str, tokenizer) -> End:
    """What a response to this prompt ends with: as the chat template says, or EOS."""
    turn = chat_turn(tokenizer)
    if turn is not None and turn.ends and is_chat(prompt, turn):
        return End(turn.before, turn.ends[0])
    return End("", tokenizer.eos_token_id)


def _ends(prompt: str, tokenizer) -> tuple[str, ...]:
    """The texts of the tokens that may end a response to this prompt."""
    ids = {end_behind(prompt, tokenizer).token_id, tokenizer.eos_token_id} - {None}
    return tuple(map(str, _tokens(sorted(ids), tokenizer)))


def is_chat(prompt: str, turn: ChatTurn) -> bool:
    """Whether a prompt is written in the chat template: it holds what begins an answer there."""
    return bool(turn.opening) and turn.opening in _without_space(prompt)


def _without_space(text: str) -> str:
    return "".join(text.split())


def stop_ids(model, tokenizer) -> set[int]:
    """The ids that end a text, by the checkpoint's generation_config and by the tokenizer."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    return (ids | {tokenizer.eos_token_id}) - {None}


def turn_ends(prompt_ids: Sequence[int], tokenizer) -> set[int]:
    """The ids that end an answer to this prompt beside `stop_ids`: those that the chat template
    writes behind one, where the prompt is written in it."""
    turn = chat_turn(tokenizer)
    if turn is None or not turn.ends or not is_chat(_decode(prompt_ids, tokenizer), turn):
        return set()
    return {turn.ends[0]}


_turns: WeakKeyDictionary = WeakKeyDictionary()


def chat_turn(tokenizer) -> ChatTurn | None:
    """What the tokenizer's chat template writes around an answer; None without a usable one."""
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return None
    key = (repr(template), len(tokenizer), tokenizer.eos_token)
    known = _turns.get(tokenizer)
    if known is None or known[0] != key:
        known = _turns[tokenizer] = (key, _read_turn(tokenizer))
    return known[1]


def _read_turn(tokenizer) -> ChatTurn | None:
    asked = [{"role": "user", "content": "the-question"}]
    answered = [*asked, {"role": "assistant", "content": "the-reply"}]
    try:
        opened = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(answered, tokenize=False)
    except (TemplateError, ValueError, TypeError):  # a template of other roles or other fields
        return None
    _, question, opening = opened.rpartition("the-question")
    _, reply, behind = whole.rpartition("the-reply")
    found = _special_tokens_in(behind, tokenizer) if reply else []
    before = behind[: found[0][0]] if found else ""
    return ChatTurn(
        opening=_without_space(opening) if question else "",
        behind=behind if reply else "",
        before=before,
        ends=tuple(token for _, token in found),
    )


def _special_tokens_in(text: str, tokenizer) -> list[tuple[int, int]]:
    """(place, id) of the special tokens that a text holds, in order."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    names = {str(token): number for number, token in added.items() if str(token).strip()}
    if tokenizer.eos_token:
        names[tokenizer.eos_token] = tokenizer.eos_token_id
    places = {text.find(name): number for name, number in sorted(names.items()) if name in text}
    return sorted(places.items())
