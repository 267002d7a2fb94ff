"""Files that are read as they should be, or refused in a sentence: regular files, text, YAML."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

MAX_TEXT_BYTES = 16_000_000  # of a file that is read whole: a configuration, a template
MAX_DEPTH = 100  # of mappings and lists inside each other in YAML


def regular_file(path: str | Path) -> Path:
    """The path, if a regular file stands there that may be read.

    A pipe would wait for a writer that never comes, and a device such as /dev/zero never ends.

    Raises FileNotFoundError, PermissionError or OSError, each in one sentence.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
        why = " (a link stands there, and it leads nowhere)" if os.path.islink(path) else ""
        raise FileNotFoundError(f"There is no file {_shown(path)}{why}.") from error
    if stat.S_ISDIR(mode):
        raise FileNotFoundError(f"{path} is a folder; name one file in it.")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is a pipe or a device, not a file: write what it gives to a file, "
                      "and name that one.")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} may not be read by this user: change its permissions.")
    return path


def _shown(path: Path) -> str:
    """The name, cut where somebody gave a whole text in the place of a path."""
    name = str(path)
    return name if len(name) <= 200 and name.isprintable() else repr(name[:60] + "...")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file of this course's holds.

    Raises ValueError where it is damaged, else as `regular_file`.
    """
    try:
        value = json.loads(regular_file(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or bring it back.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged (it holds no object): delete it, or bring it back.")
    return value


def read_text(path: str | Path) -> str:
    """The text of a file, without a byte order mark.

    Raises ValueError for what is not UTF-8 or over 16 MB, else as `regular_file`.
    """
    with regular_file(path).open("rb") as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{path} is over {MAX_TEXT_BYTES // 1_000_000} MB: it is not the text "
                         "file that is wanted here.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: byte {error.start + 1} is not UTF-8; save the "
                         "file as UTF-8.") from error


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: else the last value wins in silence."""

    depth = 0

    def compose_node(self, parent, index):
        self.depth += 1
        if self.depth > MAX_DEPTH:  # Python's own limit is met after seconds
            raise yaml.composer.ComposerError(
                None, None, "the nesting is too deep", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # "<<", whose keys may come again
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; a key that stands twice in one mapping is refused.

    Raises ValueError: what is wrong, with line and column, as part of a sentence.

    Example:
        >>> parse_yaml("lr: 0.1\\nlr: 0.2")
        Traceback (most recent call last):
        ValueError: line 2, column 1: the key 'lr' stands there twice
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        says = (getattr(error, "context", None), getattr(error, "problem", None))
        problem = ", ".join(filter(None, says)) or " ".join(str(error).split())
        raise ValueError(f"{place}{problem}") from error
    except ValueError as error:  # a date such as 2026-13-01
        raise ValueError(" ".join(str(error).split())) from error


def read_yaml(path: str | Path) -> Any:
    """The value of a YAML file; ValueError or OSError, in one sentence, where there is none."""
    try:
        return parse_yaml(read_text(path))
    except ValueError as error:
        name = "" if str(error).startswith(str(path)) else f"{path} is no YAML file: "
        raise ValueError(f"{name}{error}".rstrip(".") + ".") from error
