"""Record formats: what a raw record looks like, and the canonical row that it becomes.

Each format is one small function from a raw record to a row, or a `BadRecord` that says in a
sentence what is wrong. `FORMATS` lists them in the order in which they are guessed. Two records of
each stand in `formats.yaml`; docs/formats.md shows them.

`COLUMNS` says which columns each kind of row has. Chats have `turns` in place of the
prompt: the conversation up to the answer, [{"role": "user", "content": ...}, ...]; from it
`helpers.data.conversation.with_prompt` makes the prompt.
"""

from collections.abc import Callable, Iterable
from functools import cache
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import yaml

from helpers.data import conversation
from helpers.data.fields import (
    BadRecord,
    different,
    field_names,
    field_text,
    label_of,
    present,
    short,
    texts,
    zero_or_one,
)
from helpers.data.html_text import plain_text
from helpers.rewards import has_words, parse_number

COLUMNS = {
    "maths": ("question", "answer", "gold_answer"),
    "qa": ("question", "passages", "answers"),
    "supervised": ("prompt", "response"),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "prompt": ("prompt",),
}

# ---------------------------------------------------------------- preferences


def to_preference(record: dict) -> dict[str, str]:
    """{"prompt", "response_0", "response_1", "better_response_id"} as prompt, chosen, rejected.

    chosen is response_{id} and rejected is response_{1 - id}. The id is 0 or 1, as a number or as
    the text "0" or "1"; anything else, True and False too, raises ValueError.

    Example:
        >>> to_preference({"prompt": "2 + 2?", "response_0": "5", "response_1": "4",
        ...                "better_response_id": 1})
        {'prompt': '2 + 2?', 'chosen': '4', 'rejected': '5'}
    """
    better = zero_or_one(record, "better_response_id", accept_text=True)
    return {
        "prompt": field_text(record, "prompt"),
        "chosen": field_text(record, f"response_{better}"),
        "rejected": field_text(record, f"response_{1 - better}"),
    }


def _from_better_id(record: dict) -> dict:
    return different(to_preference(record))


def _from_pair(chosen: str, rejected: str) -> Callable[[dict], dict]:
    def convert(record: dict) -> dict:
        return different({"prompt": field_text(record, "prompt"),
                          "chosen": field_text(record, chosen),
                          "rejected": field_text(record, rejected)})

    return convert


def _from_unpaired(record: dict) -> dict:
    label = label_of(record, "label")
    return {"prompt": field_text(record, "prompt"),
            "completion": field_text(record, "completion"), "label": label}


def _from_shp(record: dict) -> dict:
    """Stanford Human Preferences: labels is 1 where the first of the two answers was preferred."""
    better, worse = ("A", "B") if zero_or_one(record, "labels") else ("B", "A")
    return different({"prompt": field_text(record, "history"),
                      "chosen": field_text(record, f"human_ref_{better}"),
                      "rejected": field_text(record, f"human_ref_{worse}")})


def _from_stack_exchange(record: dict) -> dict:
    """The answers of highest and lowest pm_score; the others of that question are not used.

    Of equal ones the answer that the asker selected stands first. The texts are HTML.
    """
    answers = present(record, "answers")
    try:
        ranked = sorted(answers, key=lambda answer: (answer["pm_score"], bool(answer["selected"])))
        if not all(isfinite(answer["pm_score"]) for answer in answers):
            raise BadRecord("wrong_label", "the field answers holds a pm_score that is no number")
    except (TypeError, KeyError, OverflowError):
        raise BadRecord("wrong_type", "the field answers is not a list of objects with text, "
                                      "pm_score and selected") from None
    if len(ranked) < 2 or ranked[0]["pm_score"] == ranked[-1]["pm_score"]:
        raise BadRecord("equal_responses", f"the {len(ranked)} answers have one pm_score")
    return different({"prompt": _html_text(record, "question"),
                      "chosen": _html_text(ranked[-1], "text"),
                      "rejected": _html_text(ranked[0], "text")})


def _html_text(record: dict, name: str) -> str:
    html = field_text(record, name)
    try:
        return field_text({name: plain_text(html)}, name)
    except AssertionError:  # the parser's own, for broken marked sections such as "<![a["
        raise BadRecord("bad_html", f"the field {name} holds broken HTML") from None


# ---------------------------------------------------------------- plain texts, maths, questions


def _from_gsm8k(record: dict) -> dict:
    answer = field_text(record, "answer")
    _, mark, gold = answer.rpartition("####")
    if not mark:
        raise BadRecord("wrong_gold", 'the answer has no line "#### number"')
    gold = gold.strip()
    if parse_number(gold) is None:
        raise BadRecord("wrong_gold", f"the gold answer {short(gold)} is not a number")
    return {"question": field_text(record, "question"), "answer": answer, "gold_answer": gold}


def _from_qa(record: dict) -> dict:
    return {"question": field_text(record, "question"), "passages": texts(record, "passages"),
            "answers": _golds(record, "answers")}


def _from_closed_book(record: dict) -> dict:
    """Questions without the pages: Natural Questions (nq_open) calls the answers `answer`."""
    name = "answer" if "answer" in record else "answers"
    return {"question": field_text(record, "question"), "passages": [],
            "answers": _golds(record, name)}


def _from_squad(record: dict) -> dict:
    """SQuAD: the one passage is `context`; where in it an answer starts is not used."""
    return {"question": field_text(record, "question"), "passages": texts(record, "context"),
            "answers": _golds(record, "answers")}


def _golds(record: dict, name: str) -> list[str]:
    """The answers that count: texts, or SQuAD's {"text": [...]} or [{"text": ...}, ...]."""
    answers = present(record, name)
    if isinstance(answers, list) and answers and all(isinstance(a, dict) for a in answers):
        answers = [present(answer, "text") for answer in answers]
    elif isinstance(answers, dict):
        answers = present(answers, "text")
        if answers == []:  # SQuAD 2 has questions that the passage does not answer
            raise BadRecord("wrong_gold", f"the field {name} holds no answer")
    answers = texts({name: answers}, name)
    if not any(map(has_words, answers)):
        raise BadRecord("wrong_gold", f"the field {name} holds no answer")
    return answers


def _from_prompt_response(record: dict) -> dict:
    return {"prompt": field_text(record, "prompt"), "response": field_text(record, "response")}


def _from_prompt_answer(record: dict) -> dict:
    return {"prompt": field_text(record, "prompt"), "response": field_text(record, "answer")}


def _from_prompt_completion(record: dict) -> dict:
    return {"prompt": field_text(record, "prompt"), "response": field_text(record, "completion")}


def _from_prompt(record: dict) -> dict:
    return {"prompt": field_text(record, "prompt")}


# ---------------------------------------------------------------- the table


class Format(NamedTuple):
    """How a format is recognised and read.

    kind: the set of columns that comes out. fields: those that a raw record must have.
    convert: raw record to row. optional: further fields that are read. template: in which a
    conversation is written as text unless another is asked for.
    """

    kind: str
    fields: tuple[str, ...]
    convert: Callable[[dict], dict]
    optional: tuple[str, ...] = ()
    template: str | None = None
    fits_values: Callable[[dict], bool] | None = None

    def fits(self, record: dict) -> bool:
        has_fields = all(name in record for name in self.fields)
        return has_fields and (self.fits_values is None or self.fits_values(record))


def _holds_scores(record: dict) -> bool:
    answers = record["answers"]
    return (isinstance(answers, list) and bool(answers) and isinstance(answers[0], dict)
            and "pm_score" in answers[0])


def _holds_golds(record: dict) -> bool:
    """Texts, or objects in SQuAD's form; objects with scores are no gold answers."""
    answers = record["answers"]
    if isinstance(answers, list):
        return all(isinstance(a, str) or (isinstance(a, dict) and "answer_start" in a)
                   for a in answers)
    return isinstance(answers, str) or (isinstance(answers, dict) and "text" in answers)


def _holds_turns(record: dict) -> bool:
    return isinstance(record["chosen"], list) and isinstance(record["rejected"], list)


# In the order of detection: the format that asks for more stands first.
FORMATS = {
    "qa": Format("qa", ("question", "passages", "answers"), _from_qa),
    "squad": Format("qa", ("question", "context", "answers"), _from_squad),
    "stack_exchange": Format("preference", ("question", "answers"), _from_stack_exchange,
                             fits_values=_holds_scores),
    "closed_book": Format("qa", ("question", "answers"), _from_closed_book,
                          fits_values=_holds_golds),
    "nq_open": Format("qa", ("question", "answer"), _from_closed_book,
                      fits_values=lambda record: isinstance(record["answer"], list)),
    "gsm8k": Format("maths", ("question", "answer"), _from_gsm8k),
    "shp": Format("preference", ("history", "human_ref_A", "human_ref_B", "labels"), _from_shp),
    "messages_preference": Format("preference", ("chosen", "rejected"),
                                  conversation.from_messages_preference, ("prompt",),
                                  fits_values=_holds_turns),
    "better_response_id": Format(
        "preference", ("prompt", "response_0", "response_1", "better_response_id"),
        _from_better_id),
    "prompt_chosen_response": Format(
        "preference", ("prompt", "chosen_response", "rejected_response"),
        _from_pair("chosen_response", "rejected_response")),
    "prompt_chosen_rejected": Format("preference", ("prompt", "chosen", "rejected"),
                                     _from_pair("chosen", "rejected")),
    "sharegpt_preference": Format("preference", ("conversations", "chosen", "rejected"),
                                  conversation.from_sharegpt_preference, optional=("system",)),
    "alpaca_preference": Format(
        "preference", ("instruction", "chosen", "rejected"), conversation.from_alpaca_preference,
        ("input", "system", "history")),
    "hh_rlhf": Format("preference", ("chosen", "rejected"), conversation.from_hh, template="hh"),
    "unpaired": Format("unpaired", ("prompt", "completion", "label"), _from_unpaired),
    "alpaca_unpaired": Format("unpaired", ("instruction", "output", "kto_tag"),
                              conversation.from_alpaca_unpaired, ("input", "system", "history")),
    "alpaca": Format("supervised", ("instruction", "output"), conversation.from_alpaca,
                     ("input", "system", "history")),
    "messages": Format("supervised", ("messages",), conversation.from_messages),
    "sharegpt": Format("supervised", ("conversations",), conversation.from_sharegpt, ("system",)),
    "prompt_response": Format("supervised", ("prompt", "response"), _from_prompt_response),
    "prompt_answer": Format("supervised", ("prompt", "answer"), _from_prompt_answer),
    "prompt_completion": Format("supervised", ("prompt", "completion"), _from_prompt_completion),
    "prompt": Format("prompt", ("prompt",), _from_prompt),
}


def format_of(record: dict) -> str:
    """The first format of FORMATS that the record fits; BadRecord where none is.

    Example:
        >>> format_of({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"})
        'prompt_chosen_rejected'
    """
    for name, known in FORMATS.items():
        if known.fits(record):
            return name
    raise BadRecord("missing_columns",
                    f"the record has {field_names(record)}, and no known format{_near(record)}")


def _near(record: dict) -> str:
    """What the record lacks of the format whose fields it has the most of."""
    if isinstance(record.get("paragraphs"), list):
        return ("; it is an article of SQuAD's original file: write each of its questions as one "
                "record with question, context and answers")
    if isinstance(record.get("row"), dict):
        return ("; the record stands in its field 'row', as the hub's viewer writes it: write what "
                "stands there, one object a line")
    around = [name for name, value in record.items()
              if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(around) == 1 and not any(set(known.fields) & set(record) for known in FORMATS.values()):
        return (f"; its field {short(around[0], 30)} holds a list of objects: if these are the "
                "records, write them one object a line, or give the file a name in .json")
    nearest = max(FORMATS, key=lambda name: (_share_present(FORMATS[name].fields, record),
                                             FORMATS[name].fits_values is None))
    fields = FORMATS[nearest].fields
    lacking = [field for field in fields if field not in record]
    if not lacking:
        whole = [name for name in FORMATS if not set(FORMATS[name].fields) - set(record)]
        return (f"; it has the fields of {' and '.join(whole)}, but other values in them than "
                "docs/formats.md shows")
    return (f"; nearest is {nearest}, which also needs {', '.join(lacking)}"
            if len(lacking) < len(fields) else "")


def _share_present(fields: Iterable[str], record: dict) -> float:
    return sum(field in record for field in fields) / len(tuple(fields))


def check_format(name: str) -> str:
    """The name, if there is such a format."""
    if name not in FORMATS:
        raise ValueError(f"There is no record format {name!r}; known: {', '.join(FORMATS)}.")
    return name


@cache
def examples() -> dict[str, dict]:
    """For each format: `about`, a sentence, and `records`, two raw records (formats.yaml)."""
    text = Path(__file__).with_name("formats.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)
