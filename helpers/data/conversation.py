"""Conversations: the chat formats read into turns, and turns written as text by a named template.

`turns` is a conversation up to the answer: [{"role": "user", "content": ...}, ...], the last one
the user's. Only in transcripts of HH-RLHF the assistant may speak twice in a row: where the person
sent nothing.
"""

import re
from dataclasses import dataclass
from typing import Any

from helpers.data.fields import (
    BadRecord,
    checked_text,
    different,
    field_text,
    label_of,
    optional_text,
    present,
    short,
)

ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names of the roles
RESPONSES = ("response", "chosen", "rejected", "completion")
NO_USER = "no user's turn stands before the answer"
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")

# ---------------------------------------------------------------- templates


@dataclass(frozen=True)
class Template:
    """How turns are written as one text.

    user and assistant hold {input} and {output}; system holds {input} too. begin stands first,
    separator after each of the assistant's turns. A prompt never ends in a space: the space goes
    to the response, because tokenizers join it to the first word.

    Example:
        >>> turns = [{"role": "user", "content": "2 + 2?"}]
        >>> TEMPLATES["align_anything"].prompt(turns)
        'BEGINNING OF CONVERSATION: USER: 2 + 2? ASSISTANT:'
        >>> TEMPLATES["hh"].prompt(turns) + TEMPLATES["hh"].response("4.")
        '\\n\\nHuman: 2 + 2?\\n\\nAssistant: 4.'
    """

    user: str
    assistant: str
    begin: str = ""
    system: str = "{input}"
    separator: str = ""

    def __post_init__(self) -> None:
        for name, slot in (("user", "{input}"), ("assistant", "{output}"), ("system", "{input}")):
            if getattr(self, name).count(slot) != 1:
                raise ValueError(f"A template's {name} needs {slot} once: {getattr(self, name)!r}.")

    def prompt(self, turns: list[dict]) -> str:
        """The conversation up to the point where the assistant is to speak."""
        label, _ = self.assistant.split("{output}")
        return self.begin + "".join(map(self._turn, turns)) + label.rstrip(" ")

    def response(self, text: str) -> str:
        """What follows the prompt when the assistant says `text`."""
        label, end = self.assistant.split("{output}")
        return " " * (len(label) - len(label.rstrip(" "))) + text + end

    def _turn(self, turn: dict) -> str:
        if turn["role"] == "assistant":
            return self.assistant.replace("{output}", turn["content"]) + self.separator
        return getattr(self, turn["role"]).replace("{input}", turn["content"])


# align_anything: as its second homework registers it. hh: the transcripts of Anthropic's HH-RLHF.
TEMPLATES = {
    "align_anything": Template(begin="BEGINNING OF CONVERSATION: ", system="{input} ",
                               user="USER: {input} ", assistant="ASSISTANT:{output}"),
    "hh": Template(user="\n\nHuman: {input}", assistant="\n\nAssistant: {output}"),
}


def register_template(name: str, template: Template) -> None:
    """Make a template known by name; a name that is taken raises ValueError."""
    if name in TEMPLATES:
        raise ValueError(f"There is a template {name!r} already; choose another name.")
    TEMPLATES[name] = template


def check_template(name: str) -> str:
    """The name, if there is such a template."""
    if name not in TEMPLATES:
        raise ValueError(f"There is no template {name!r}; known: {', '.join(TEMPLATES)}.")
    return name


def turns_of(row: dict) -> list[dict]:
    """The turns of a row; a plain prompt is one turn of the user."""
    return row.get("turns") or [{"role": "user", "content": row["prompt"]}]


def with_prompt(row: dict, template: str | None = None) -> dict:
    """The row with its prompt and responses written in a template; `turns` stay as they are.

    Without a template a plain prompt, and a conversation of one turn, stay as they are; longer
    ones are written in "hh". Maths problems and questions on passages have no prompt yet: they get
    one in the evaluation, so a template for them raises ValueError.

    Example:
        >>> with_prompt({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, "align_anything")
        {'prompt': 'BEGINNING OF CONVERSATION: USER: 2 + 2? ASSISTANT:', 'chosen': '4', \
'rejected': '5'}
    """
    if "question" in row:
        if template is not None:
            raise ValueError(f"The template {template!r} writes prompts, and these records have "
                             "questions; convert them first.")
        return row
    turns = turns_of(row)
    if template is None and len(turns) == 1:
        return {"prompt": turns[0]["content"], **row}
    style = TEMPLATES[template or "hh"]
    texts = {name: style.response(row[name]) for name in RESPONSES if name in row}
    return {"prompt": "", **row} | texts | {"prompt": style.prompt(turns)}


# ---------------------------------------------------------------- chat formats


def from_hh(record: dict) -> dict:
    """Two transcripts that part at the last answer; what they share is the prompt."""
    chosen, rejected = field_text(record, "chosen"), field_text(record, "rejected")
    first, second = _hh_turns(chosen), _hh_turns(rejected)
    if first[:-1] != second[:-1]:
        raise BadRecord("wrong_turns", "the transcripts differ before their last turn")
    pair = {"chosen": _answer(first[-1], "chosen"), "rejected": _answer(second[-1], "rejected")}
    for name in pair:
        field_text(pair, name)  # some transcripts end in an empty answer
    if all(turn["role"] == "assistant" for turn in first):
        raise BadRecord("wrong_turns", NO_USER)
    return different({"turns": first[:-1], **pair})


def _hh_turns(transcript: str) -> list[dict]:
    """The turns of a transcript in which "\\n\\nHuman:" and "\\n\\nAssistant:" begin them."""
    before, *parts = _HH_TURN.split(transcript)
    if before.strip() or len(parts) < 4:
        raise BadRecord("wrong_turns", 'a transcript does not read "\\n\\nHuman: ... '
                                       '\\n\\nAssistant: ..."')
    roles = ["user" if speaker == "Human" else "assistant" for speaker in parts[::2]]
    contents = [text.strip() for text in parts[1::2]]
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]


def from_messages(record: dict) -> dict:
    turns = _turns(record, "messages", "role", "content")
    return {"response": _answer(turns[-1], "messages"), "turns": _ending_with_user(turns[:-1])}


def from_messages_preference(record: dict) -> dict:
    """Two conversations that part at the last answer, or two last turns behind a shared prompt.

    The prompt may be left out, a text or turns; where the conversations hold it, it stands once.
    """
    first, second = (_turns(record, name, "role", "content") for name in ("chosen", "rejected"))
    if first[:-1] != second[:-1]:
        raise BadRecord("wrong_turns", "the conversations differ before their last turn")
    pair = {"chosen": _answer(first[-1], "chosen"), "rejected": _answer(second[-1], "rejected")}
    turns = _with_shared_prompt(_prompt_turns(record), first[:-1])
    return different({"turns": _ending_with_user(turns), **pair})


def _prompt_turns(record: dict) -> list[dict]:
    if isinstance(record.get("prompt"), list):
        return _turns(record, "prompt", "role", "content")
    text = optional_text(record, "prompt")
    return [{"role": "user", "content": text}] if text.strip() else []


def _with_shared_prompt(prompt: list[dict], before: list[dict]) -> list[dict]:
    """The turns of the prompt before the conversation's own, unless they stand there already."""
    if not before or before[0]["role"] == "assistant":
        return prompt + before
    there = {turn["content"].strip() for turn in before}
    if not there.issuperset(turn["content"].strip() for turn in prompt):
        raise BadRecord("wrong_turns", "the field prompt holds what the conversations do not")
    return before


def from_sharegpt(record: dict) -> dict:
    turns = _system_turn(record) + _turns(record, "conversations", "from", "value")
    return {"response": _answer(turns[-1], "conversations"),
            "turns": _ending_with_user(turns[:-1])}


def from_sharegpt_preference(record: dict) -> dict:
    turns = _system_turn(record) + _turns(record, "conversations", "from", "value")
    pair = {name: _answer(_turn(present(record, name), "from", "value"), name)
            for name in ("chosen", "rejected")}
    return different({"turns": _ending_with_user(turns), **pair})


def _turns(record: dict, name: str, role: str, content: str) -> list[dict]:
    turns = present(record, name)
    if not isinstance(turns, list) or not turns:
        raise BadRecord("wrong_type", f"the field {name} is not a list of turns")
    read = [_turn(turn, role, content) for turn in turns]
    said = [turn for turn in read if turn["content"].strip()]
    if not said:
        raise BadRecord("wrong_turns", NO_USER)
    return said


def _turn(turn: Any, role: str, content: str) -> dict:
    """A turn by our names; of a system turn the text may be empty: then nothing was said."""
    if not isinstance(turn, dict) or role not in turn or content not in turn:
        raise BadRecord("wrong_turns", f"{short(turn)} is no turn with {role} and {content}")
    name = ROLES.get(turn[role], turn[role]) if isinstance(turn[role], str) else None
    if name not in ("system", "user", "assistant"):
        raise BadRecord("wrong_turns", f"the role {short(turn[role])} is not system, user (human) "
                                       "or assistant (gpt)")
    for field in ("tool_calls", "function_call"):
        if turn.get(field):
            raise BadRecord("wrong_turns", f"a turn holds {field}, which is no text and would be "
                                           "lost: write the call into its text, or leave it out")
    text = optional_text if name == "system" else field_text
    return {"role": name, "content": text(turn, content)}


def _ending_with_user(turns: list[dict]) -> list[dict]:
    if not turns or turns[-1]["role"] != "user":
        raise BadRecord("wrong_turns", NO_USER)
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise BadRecord("wrong_turns", "a system turn stands behind another turn: join it to the "
                                       "first system turn, or leave it out")
    return turns


def _answer(turn: dict, name: str) -> str:
    if turn["role"] != "assistant":
        raise BadRecord("wrong_turns", f"the field {name} ends with the turn of {turn['role']}, "
                                       "not of the assistant")
    return turn["content"]


def _system_turn(record: dict) -> list[dict]:
    text = optional_text(record, "system")
    return [{"role": "system", "content": text}] if text.strip() else []


def from_alpaca(record: dict) -> dict:
    return {"turns": _alpaca_turns(record), "response": field_text(record, "output")}


def from_alpaca_preference(record: dict) -> dict:
    return different({"turns": _alpaca_turns(record), "chosen": field_text(record, "chosen"),
                      "rejected": field_text(record, "rejected")})


def from_alpaca_unpaired(record: dict) -> dict:
    label = label_of(record, "kto_tag")
    return {"turns": _alpaca_turns(record), "completion": field_text(record, "output"),
            "label": label}


def _alpaca_turns(record: dict) -> list[dict]:
    """system, the pairs of history, and the instruction with its input on the next line."""
    turns, history = _system_turn(record), record.get("history")
    if not isinstance(history, list | None):
        raise BadRecord("wrong_type", f"the field history holds {short(history)}, not pairs")
    for pair in history or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRecord("wrong_turns", f"{short(pair)} in history is no pair of texts")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": checked_text(text, "history")})
    question = field_text(record, "instruction")
    context = optional_text(record, "input")
    return [*turns, {"role": "user", "content": question + (context and f"\n{context}")}]
