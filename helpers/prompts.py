"""Prompt templates: text files with {fields}, filled by plain replacement."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from helpers.text_files import read_text

TEMPLATE_FOLDER = Path(__file__).parent / "templates"


def template_names() -> list[str]:
    """The templates that ship with the course."""
    return sorted(path.stem for path in TEMPLATE_FOLDER.glob("*.txt"))


def load_template(name_or_path: str | Path) -> str:
    """The text of a template: one of the course's own by name, or any text file by path.

    A published template is used by its path, so that its wording need not be copied into the code.

    >>> load_template("direct")
    'Question: {question}\\nThe answer is'

    Raises:
        FileNotFoundError: neither a known name nor a file; the message lists the names.
        ValueError, OSError: what stands there is no text file.
    """
    path = TEMPLATE_FOLDER / f"{name_or_path}.txt"
    if not path.is_file():
        path = Path(name_or_path)
    if not os.path.lexists(path):
        raise FileNotFoundError(
            f"There is no template {str(name_or_path)!r}: give a path to a text file, or one of "
            f"{', '.join(template_names())}."
        )
    return read_text(path)


def fields_of(template: str) -> list[str]:
    """The fields that a template wants, in order.

    >>> fields_of("{passages}\\nQuestion: {question}")
    ['passages', 'question']
    """
    return re.findall(r"\{([a-z_]+)\}", template)


def render(template: str, **fields: str) -> str:
    """Fill the fields in one pass.

    Not `str.format`: a question that holds braces ("the set {1, 2}") would raise or be rewritten.

    >>> render("Question: {question}", question="Is {question} a field?")
    'Question: Is {question} a field?'

    Raises:
        ValueError: a field of the template was not given.
    """
    missing = [name for name in fields_of(template) if name not in fields]
    if missing:
        raise ValueError(
            f"The template wants the field {missing[0]!r}; given: {', '.join(fields) or 'none'}."
        )
    return re.sub(r"\{([a-z_]+)\}", lambda match: fields[match[1]], template)


def split_turn(template: str) -> tuple[str, str]:
    """The instruction of a template, and its turn: from the line that holds {question} on.

    >>> split_turn("Be brief.\\nUser: {question}\\nAssistant:")
    ('Be brief.\\n', 'User: {question}\\nAssistant:')
    """
    start = template.rfind("\n", 0, template.index("{question}")) + 1
    return template[:start], template[start:]


def render_few_shot(template: str, examples: Iterable[tuple[str, str]], question: str) -> str:
    """The instruction once, then worked examples (question, response), then the question itself.

    >>> render_few_shot("Q: {question}\\nA:", [("1 + 1?", " 2")], "2 + 2?")
    'Q: 1 + 1?\\nA: 2\\n\\nQ: 2 + 2?\\nA:'
    """
    instruction, turn = split_turn(template)
    turns = [render(turn, question=asked) + response for asked, response in examples]
    return instruction + "\n\n".join([*turns, render(turn, question=question)])


def render_passages(passages: Iterable[str]) -> str:
    """Numbered passages, one a line.

    >>> render_passages(["Ana keeps a cat.", "Ben lives in Arlo."])
    '[1] Ana keeps a cat.\\n[2] Ben lives in Arlo.'
    """
    return "\n".join(f"[{number}] {text}" for number, text in enumerate(passages, start=1))
