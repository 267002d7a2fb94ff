"""Conversations: the chat formats read into turns, and turns written as text by a named template.

`turns` is a conversation up to the answer: [{"role": "user", "content": ...}, ...], the last one
the user's.
"""

import re
from typing import Any

from helpers.fields import (
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
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")

def from_hh(record: dict) -> dict:
    """Two transcripts that part at the last answer; what they share is the prompt."""
    chosen, rejected = field_text(record, "chosen"), field_text(record, "rejected")
    first, second = _hh_turns(chosen), _hh_turns(rejected)
    if first[:-1] != second[:-1]:
        raise BadRecord("wrong_turns", "the transcripts differ before their last turn")
    return different({"turns": _ending_with_user(first[:-1]),
                      "chosen": _answer(first[-1], "chosen"),
                      "rejected": _answer(second[-1], "rejected")})


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
    return {"turns": _ending_with_user(turns[:-1]), "response": _answer(turns[-1], "messages")}


def from_sharegpt(record: dict) -> dict:
    turns = _system_turn(record) + _turns(record, "conversations", "from", "value")
    return {"turns": _ending_with_user(turns[:-1]),
            "response": _answer(turns[-1], "conversations")}


def from_sharegpt_preference(record: dict) -> dict:
    turns = _system_turn(record) + _turns(record, "conversations", "from", "value")
    pair = {name: _answer(_turn(present(record, name), "from", "value"), name)
            for name in ("chosen", "rejected")}
    return different({"turns": _ending_with_user(turns), **pair})


def _turns(record: dict, name: str, role: str, content: str) -> list[dict]:
    turns = present(record, name)
    if not isinstance(turns, list) or not turns:
        raise BadRecord("wrong_type", f"the field {name} is not a list of turns")
    return [_turn(turn, role, content) for turn in turns]


def _turn(turn: Any, role: str, content: str) -> dict:
    if not isinstance(turn, dict) or role not in turn or content not in turn:
        raise BadRecord("wrong_turns", f"{short(turn)} is no turn with {role} and {content}")
    name = ROLES.get(turn[role], turn[role]) if isinstance(turn[role], str) else None
    if name not in ("system", "user", "assistant"):
        raise BadRecord("wrong_turns", f"the role {short(turn[role])} is not system, user (human) "
                                       "or assistant (gpt)")
    return {"role": name, "content": field_text(turn, content)}


def _ending_with_user(turns: list[dict]) -> list[dict]:
    if not turns or turns[-1]["role"] != "user":
        raise BadRecord("wrong_turns", "no user's turn stands before the answer")
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
    turns = _system_turn(record)
    for pair in record.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRecord("wrong_turns", f"{short(pair)} in history is no pair of texts")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": checked_text(text, "history")})
    question = field_text(record, "instruction")
    context = optional_text(record, "input")
    return [*turns, {"role": "user", "content": question + (context and f"\n{context}")}]
