"""Rows written back as records: prompt_response, messages, prompt_chosen_rejected, alpaca.

Not everything goes back. Each function returns, beside its result, the names of what was lost, so
that a caller can count them.
"""

from collections.abc import Callable
from typing import NamedTuple

from helpers.data.conversation import turns_of, with_prompt
from helpers.data.fields import BadRecord
from helpers.data.formats import FORMATS
from helpers.prompts import render_passages

Lost = list[str]


# ---------------------------------------------------------------- what reading leaves behind


def unread_fields(record: dict, format: str) -> Lost:
    """The fields of a raw record that its format does not read, or joins to another.

    Example:
        >>> unread_fields({"prompt": "Hi", "response": "Ho", "source": "web"}, "prompt_response")
        ['source']
    """
    known = (*FORMATS[format].fields, *FORMATS[format].optional)
    lost = [name for name, value in record.items() if name not in known and value is not None]
    if format.startswith("alpaca") and record.get("input"):
        lost.append("input (joined to the prompt)")
    if format == "stack_exchange" and len(record["answers"]) > 2:
        lost.append("answers but the best and the worst")
    return lost + _unread_inside(record, format)


_OPENAI, _SHAREGPT = ("role", "content"), ("from", "value")
_READ_INSIDE = {  # format: field: what is read of the objects in it
    "messages": {"messages": _OPENAI},
    "messages_preference": {"prompt": _OPENAI, "chosen": _OPENAI, "rejected": _OPENAI},
    "sharegpt": {"conversations": _SHAREGPT},
    "sharegpt_preference": {"conversations": _SHAREGPT, "chosen": _SHAREGPT,
                            "rejected": _SHAREGPT},
    "qa": {"answers": ("text",)}, "squad": {"answers": ("text",)},
    "closed_book": {"answers": ("text",)},
}


def _unread_inside(record: dict, format: str) -> Lost:
    """Fields of the objects in a field, such as name, weight and tool_calls of a turn."""
    lost: dict[str, None] = {}
    for name, read in _READ_INSIDE.get(format, {}).items():
        inside = record.get(name)
        for part in inside if isinstance(inside, list) else [inside]:
            unread = [key for key, value in part.items()
                      if key not in read and value is not None] if isinstance(part, dict) else []
            lost.update(dict.fromkeys(f"{name}.{key}" for key in unread))
    return list(lost)


# ---------------------------------------------------------------- the rows of other kinds


def _supervised_from_maths(row: dict) -> tuple[dict, Lost]:
    return {"prompt": row["question"], "response": row["answer"]}, []


def _supervised_from_qa(row: dict) -> tuple[dict, Lost]:
    """The first answer with words in it, to the numbered passages and the question."""
    prompt = "\n".join(filter(None, [render_passages(row["passages"]), row["question"]]))
    answers = [answer for answer in row["answers"] if answer.strip()]
    return ({"prompt": prompt, "response": answers[0]},
            ["answers but the first"] if len(answers) > 1 else [])


def _supervised_from_preference(row: dict) -> tuple[dict, Lost]:
    return {**row, "response": row["chosen"]}, ["rejected"]


def _supervised_from_unpaired(row: dict) -> tuple[dict, Lost]:
    if not row["label"]:
        raise BadRecord("undesirable", "the completion is labelled undesirable: nothing to imitate")
    return {**row, "response": row["completion"]}, ["label"]


def _unchanged(row: dict) -> tuple[dict, Lost]:
    return row, []


_AS_SUPERVISED = {"supervised": _unchanged, "maths": _supervised_from_maths,
                  "qa": _supervised_from_qa, "preference": _supervised_from_preference,
                  "unpaired": _supervised_from_unpaired}
_AS_PREFERENCE = {"preference": _unchanged}


# ---------------------------------------------------------------- records


def _to_prompt_response(row: dict, template: str | None) -> tuple[dict, Lost]:
    text = with_prompt(row, template)
    return {"prompt": text["prompt"], "response": text["response"]}, _flattened(row)


def _to_prompt_chosen_rejected(row: dict, template: str | None) -> tuple[dict, Lost]:
    text = with_prompt(row, template)
    return {name: text[name] for name in ("prompt", "chosen", "rejected")}, _flattened(row)


def _flattened(row: dict) -> Lost:
    return ["turns (now text in the prompt)"] if len(turns_of(row)) > 1 else []


def _to_messages(row: dict, template: str | None) -> tuple[dict, Lost]:
    answer = {"role": "assistant", "content": row["response"]}
    return {"messages": [*turns_of(row), answer]}, []


def _to_alpaca(row: dict, template: str | None) -> tuple[dict, Lost]:
    """instruction, empty input, output; system and history where the conversation has them."""
    turns = list(turns_of(row))
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else None
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise BadRecord("wrong_turns", "alpaca needs turns of user and assistant in turn, and one "
                                       f"system text before them, not {', '.join(roles)}")
    record = {"instruction": turns[-1]["content"], "input": "", "output": row["response"]}
    texts = [turn["content"] for turn in turns[:-1]]
    history = [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
    return record | ({"system": system} if system else {}) | (
        {"history": history} if history else {}), []


class Target(NamedTuple):
    """A format that is written: from which kinds, how, and whether a template has a place in it."""

    kinds: dict[str, Callable[[dict], tuple[dict, Lost]]]
    write: Callable[[dict, str | None], tuple[dict, Lost]]
    takes_template: bool


TARGETS = {
    "prompt_response": Target(_AS_SUPERVISED, _to_prompt_response, True),
    "messages": Target(_AS_SUPERVISED, _to_messages, False),
    "prompt_chosen_rejected": Target(_AS_PREFERENCE, _to_prompt_chosen_rejected, True),
    "alpaca": Target(_AS_SUPERVISED, _to_alpaca, False),
}


def check_target(target: str, template: str | None = None) -> None:
    """Raise ValueError, in one sentence, where `target` is not written or takes no template."""
    if target not in TARGETS:
        raise ValueError(f"{target!r} is not written; written are {', '.join(TARGETS)}.")
    if template is not None and not TARGETS[target].takes_template:
        raise ValueError(f"{target} keeps the turns apart, so it takes no template; "
                         "prompt_response and prompt_chosen_rejected do.")


def write_record(row: dict, format: str, target: str,
                 template: str | None = None) -> tuple[dict, Lost]:
    """A row of `format` as a record of `target`, and the names of what was lost.

    Raises BadRecord where this row cannot go there, ValueError where no row of its format can.

    Example:
        >>> write_record({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, "shp", "messages")
        ({'messages': [{'role': 'user', 'content': '2 + 2?'}, \
{'role': 'assistant', 'content': '4'}]}, ['rejected'])
    """
    kinds, write, _ = TARGETS[target]
    kind = FORMATS[format].kind
    if kind not in kinds:
        sources = ", ".join(name for name, known in FORMATS.items() if known.kind in kinds)
        raise ValueError(f"{target} cannot be made of {format} records, which are of the kind "
                         f"{kind}; it can be made of {sources}.")
    row, lost = kinds[kind](row)
    record, lost_in_writing = write(row, template or FORMATS[format].template)
    return record, lost + lost_in_writing
