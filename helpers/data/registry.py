"""Data sets known by name: a JSON file that says where each is and how its columns are called.

The file has the shape of LLaMA-Factory's dataset_info.json:

    {"nq_top5_train": {
        "file_name": "nq_top5_train.json",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"}}}

`columns` goes from the part that a column plays to its name in the file. File names are relative to
the registry file. Beyond that shape an entry may hold `format`, a name of `FORMATS`; then `columns`
goes from the fields of that format. `HUB_SETS` is such a file: well-known sets of the hub.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from helpers.data import LoadReport, load_records
from helpers.data.fields import BadRecord, field_names, short
from helpers.data.formats import FORMATS, check_format
from helpers.data.json_text import parse_document
from helpers.text_files import read_text

HUB_SETS = Path(__file__).with_name("hub_sets.json")

# The part that a column plays, and the field of our format that it becomes.
ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "system": "system",
          "history": "history", "chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag"}
SHAREGPT = {"messages": "conversations", "system": "system", "chosen": "chosen",
            "rejected": "rejected"}
TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
        "system_tag": "system"}
OTHER_TAGS = ("observation_tag", "function_tag")  # turns of these roles are refused as they come
KEYS = ("file_name", "hf_hub_url", "subset", "split", "formatting", "ranking", "columns", "tags",
        "format")


@dataclass(frozen=True)
class Entry:
    """One data set of a registry: where it is, its format, and how its columns are called.

    columns: field of the format -> column of the file. tags: as LLaMA-Factory names them.
    named: the columns that the entry itself names, which some record should have.
    """

    source: str
    format: str
    columns: dict[str, str]
    tags: dict[str, str]
    split: str = "train"
    named: tuple[str, ...] = ()

    def prepare(self, record: dict) -> dict:
        """A raw record with the names that its format reads.

        A column that the registry does not name, but the format would read, is set aside under
        another name: the registry decides what is read.
        """
        known = FORMATS[self.format]
        for name in known.fields:
            if name in self.columns and self.columns[name] not in record:
                raise BadRecord("missing_columns", f"the field {self.columns[name]} is missing "
                                                   f"(has {field_names(record)})")
        taken, read = set(self.columns.values()), (*known.fields, *known.optional)
        rest = {(f"{name} (not in columns)" if name in read else name): value
                for name, value in record.items() if name not in taken}
        found = {name: record[column] for name, column in self.columns.items() if column in record}
        return {name: self._retag(value) for name, value in found.items()} | rest

    def _retag(self, value: Any) -> Any:
        """Turns in ShareGPT's names of role, content and speakers."""
        if isinstance(value, list):
            return [self._retag(turn) for turn in value]
        if not self.tags or not isinstance(value, dict):
            return value
        names = {theirs: TAGS[tag] for tag, theirs in self.tags.items() if tag in TAGS}
        turn = {names.get(key, key): item for key, item in value.items()}
        if isinstance(turn.get("from"), str):
            turn["from"] = names.get(turn["from"], turn["from"])
        return turn


def load_registry(path: str | Path = HUB_SETS) -> dict[str, Any]:
    """The entries of a registry file as they stand there, by name.

    Raises FileNotFoundError or OSError, or ValueError for a file that is no JSON object or in which
    a name stands twice: of the two entries one would be lost.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no registry file {path}.")
    text = read_text(path)
    try:
        entries = parse_document(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} must hold one object: names of data sets, and their entries.")
    return entries


def find_entry(name: str, registry: str | Path = HUB_SETS) -> Entry:
    """The entry of that name; ValueError that says what is wrong with it, or which names there are.

    Example:
        >>> find_entry("hh_rlhf").source
        'Anthropic/hh-rlhf'
    """
    entries = load_registry(registry)
    if name not in entries:
        raise ValueError(f"{registry} has no data set {name!r}; it has {', '.join(entries)}.")
    return _entry(entries[name], f"{registry}: {name}", Path(registry).parent)


def _entry(entry: Any, where: str, folder: Path) -> Entry:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: an entry is an object with file_name or hf_hub_url.")
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        raise ValueError(f"{where}: {', '.join(unknown)} is not known here; known are "
                         f"{', '.join(KEYS)}.")
    _check_types(entry, where)
    _check_names(entry, "tags", (*TAGS, *OTHER_TAGS), where)
    if entry.get("hf_hub_url"):
        source = ":".join(filter(None, [entry["hf_hub_url"], entry.get("subset")]))
    elif entry.get("file_name"):
        source = str(folder / entry["file_name"])
    else:
        raise ValueError(f"{where}: it needs file_name or hf_hub_url.")
    format, columns = _format_and_columns(entry, where)
    named = tuple(filter(None, (entry.get("columns") or {}).values()))
    return Entry(source, format, columns, entry.get("tags") or {}, entry.get("split") or "train",
                 named)


def _check_types(entry: dict, where: str) -> None:
    """Texts are texts, and ranking is true or false: "false" would count as true."""
    for key, value in entry.items():
        kind, wanted = (bool, "true or false") if key == "ranking" else (str, "a text")
        if key not in ("columns", "tags") and not isinstance(value, kind | None):
            raise ValueError(f"{where}: {key} must be {wanted}, not {short(value)}.")


def _format_and_columns(entry: dict, where: str) -> tuple[str, dict[str, str]]:
    """Our name of the format, and the columns of its fields."""
    columns, formatting = entry.get("columns") or {}, entry.get("formatting") or "alpaca"
    if entry.get("format"):
        try:
            known = FORMATS[check_format(entry["format"])]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        parts = {name: name for name in (*known.fields, *known.optional)}
        format = entry["format"]
    elif formatting == "sharegpt":
        parts, format = SHAREGPT, "sharegpt_preference" if entry.get("ranking") else "sharegpt"
    elif formatting == "alpaca":
        unpaired = "alpaca_unpaired" if "kto_tag" in columns else "alpaca"
        parts, format = ALPACA, "alpaca_preference" if entry.get("ranking") else unpaired
    else:
        raise ValueError(f"{where}: formatting is alpaca or sharegpt, not {formatting!r}.")
    _check_names(entry, "columns", parts, where)
    return format, {parts[part]: column for part, column in (columns or parts).items()}


def _check_names(entry: dict, key: str, known: Iterable[str], where: str) -> None:
    names = {} if entry.get(key) is None else entry[key]
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{where}: {key} is an object of names.")
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ValueError(f"{where}: {key} has {', '.join(wrong)}; possible are "
                         f"{', '.join(known)}.")
    twice = [name for name, count in Counter(filter(None, names.values())).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: {key} gives {short(twice[0])} two parts; it can play one.")


def load_registered(name: str, registry: str | Path = HUB_SETS, *,
                    file: str | Path | None = None, **options) -> tuple[Dataset, LoadReport]:
    """Load a data set by its name in a registry.

    registry: without it the well-known sets of the hub: gsm8k, hh_rlhf, nq_open, shp,
    stack_exchange. file: a local copy to read instead. options: as `load_records` takes them.

    Example:
        >>> data, report = load_registered("shp", limit=1000)     # doctest: +SKIP
    """
    entry, met = find_entry(name, registry), set()

    def prepare(record: dict) -> dict:
        met.update(record)
        return entry.prepare(record)

    options = {"split": entry.split} | options
    data, report = load_records(file or entry.source, format=entry.format, prepare=prepare,
                                **options)
    report.notes += [f"{registry}: {name}: no record has the column {short(column)}, so nothing "
                     "was read from it" for column in entry.named if column not in met]
    return data, report
