"""Loading: every format and container, and bad records named with file and line."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from helpers.data import load_records
from helpers.rewards import is_equivalent, parse_number

GOOD = {"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}
QA = {"question": "Which river?", "passages": ["The Nile.", "Sand."], "answers": ["Nile", ""]}
EXAMPLES = {
    "gsm8k": (GOOD, {"question": "2 + 2?", "answer": GOOD["answer"], "gold_answer": "4"}),
    "qa": (QA, QA),
    "prompt_response": ({"prompt": "Hi", "response": "Ho"}, {"prompt": "Hi", "response": "Ho"}),
    "prompt_answer": ({"prompt": "Hi", "answer": "Ho"}, {"prompt": "Hi", "response": "Ho"}),
}


def write(path: Path, *lines: str | bytes | dict) -> Path:
    """A file of lines; objects as JSON; the last line without a line end."""
    as_bytes = [line if isinstance(line, bytes) else
                (line if isinstance(line, str) else json.dumps(line)).encode() for line in lines]
    path.write_bytes(b"\n".join(as_bytes))
    return path


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_format_becomes_its_canonical_columns(tmp_path, name):
    raw, row = EXAMPLES[name]
    data, report = load_records(write(tmp_path / "a.jsonl", raw, {**raw, "id": "own"}))
    assert data[0] == {"id": "a-1", **row} and data[1]["id"] == "own"
    assert (report.num_records, report.num_bad) == (2, 0)


def save(folder: Path, kind: str) -> Path:
    path, text = folder / f"a.{kind}", json.dumps([GOOD, GOOD])
    if kind == "parquet":
        Dataset.from_list([GOOD, GOOD]).to_parquet(str(path))
        return path
    if kind.startswith("jsonl"):
        text = text[1:-1].replace("}, {", "}\n{")
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "json.gz", "jsonl.gz", "parquet"])
def test_each_container_is_read(tmp_path, kind):
    data, report = load_records(save(tmp_path, kind))
    assert data["gold_answer"][:] == ["4", "4"] and report.num_bad == 0


def test_json_lines_under_the_name_json_are_read(tmp_path):
    data, _ = load_records(write(tmp_path / "a.json", GOOD, GOOD))
    assert len(data) == 2


def test_bad_records_are_named_counted_and_the_rest_goes_on(tmp_path):
    path = write(
        tmp_path / "mixed.jsonl",
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),       # 1 byte order mark: good
        "",                                               # 2 blank
        {"question": "2 + 2?"},                           # 3 missing column
        {"question": "?", "answer": "it is 4"},           # 4 no ####
        {"question": "?", "answer": "#### four"},         # 5 gold is no number
        b'{"question": "\xff", "answer": "#### 4"}',      # 6 not UTF-8
        "[1, 2]",                                         # 7 no object
        '{"question": "?", "answer": "' + "9" * 2_000_000 + '"}',     # 8 huge
        '{"question": 5, "answer": "#### 4"}',            # 9 wrong type
        '{"question": "\\ud800", "answer": "#### 4"}',    # 10 half a character
        "{'question': 1}",                                # 11 not JSON
        '{"question": ' + "9" * 5_000 + "}",              # 12 an endless integer
        "[" * 200_000,                                    # 13 endless nesting
        {"question": " ", "answer": "#### 4"},            # 14 empty
        GOOD,                                             # 15 good
        json.dumps(GOOD)[:-9],                            # 16 torn
    )
    data, report = load_records(path)
    assert data["id"][:] == ["mixed-1", "mixed-15"]
    assert report.bad_by_kind == {
        "missing_columns": 1, "wrong_gold": 2, "bad_utf8": 2, "not_an_object": 1, "huge_line": 1,
        "wrong_type": 1, "bad_json": 3, "empty_field": 1, "torn_last_line": 1}
    lines = [int(problem.split(f"{path}:")[1].split(":")[0]) for problem in report.problems]
    assert lines == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16]
    assert report.blank_lines == 1 and report.as_dict()["num_bad"] == 13
    assert "'four' is not a number" in report.problems[2]
    assert all(len(problem) < len(str(path)) + 200 for problem in report.problems)


def test_a_torn_character_is_a_torn_line(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD, '{"question": "\u00e9'.encode()[:-1])
    assert load_records(path)[1].bad_by_kind == {"torn_last_line": 1}


def test_a_huge_line_is_not_held_in_memory(tmp_path):
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        for _ in range(60):
            file.write(b"9" * 1_000_000)
        file.write(b"\n" + json.dumps(GOOD).encode())
    load_records(write(tmp_path / "warm.jsonl", GOOD))
    tracemalloc.start()
    data, report = load_records(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data["id"][:] == ["huge-2"] and report.bad_by_kind == {"huge_line": 1}
    assert peak < 8_000_000


def test_a_damaged_gzip_keeps_what_was_read(tmp_path):
    rows = [json.dumps({**GOOD, "id": os.urandom(40).hex()}) for _ in range(2_000)]
    content = gzip.compress("\n".join(rows).encode())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content[: len(content) // 2])
    data, report = load_records(path)
    assert 100 < len(data) < 2_000 and report.bad_by_kind == {"damaged_gzip": 1}
    path.write_bytes(b"no gzip at all")
    with pytest.raises(ValueError, match="a.jsonl.gz:1: the gzip file is damaged"):
        load_records(path)


@pytest.mark.parametrize("content, sentence", [
    (b"", "a.jsonl:1: the file holds no record"),
    (b"\n\n", "a.jsonl:1: the file holds no record"),
    (b'{"x": 1}', "a.jsonl:1: the record has 'x', and no known format"),
    (b'{"question": "?"}\n', "nearest is gsm8k, which also needs answer"),
    ("{}".encode("utf-16"), "a.jsonl:1: byte 1 is not UTF-8"),
])
def test_nothing_usable_is_one_sentence_with_the_place(tmp_path, content, sentence):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        load_records(path)


def test_an_empty_file_among_others_is_reported(tmp_path):
    empty, full = write(tmp_path / "empty.jsonl"), write(tmp_path / "full.jsonl", GOOD)
    data, report = load_records([empty, full])
    assert len(data) == 1 and report.bad_by_kind == {"empty_file": 1}
    assert "empty.jsonl" in report.problems[0]


def test_limit_counts_good_records_and_keep_carries_fields(tmp_path):
    path = write(tmp_path / "a.jsonl", {"x": 1}, {**GOOD, "seen": True}, GOOD, GOOD)
    data, report = load_records(path, limit=2, keep=("seen",))
    assert data["seen"][:] == [True, None] and report.num_records == 2 and report.num_bad == 1
    mixed = write(tmp_path / "b.jsonl", {**GOOD, "seen": 1}, {**GOOD, "seen": "no"})
    with pytest.raises(ValueError, match="one type"):
        load_records(mixed, keep=("seen",))


def test_ids_are_unique(tmp_path):
    path = write(tmp_path / "a.jsonl", {**GOOD, "id": 7}, {**GOOD, "id": "7"}, {**GOOD, "id": True})
    assert load_records(path)[0]["id"][:] == ["7", f"7@{path}:2", "a-3"]


def test_format_is_kept_after_the_first_record(tmp_path):
    data, report = load_records(write(tmp_path / "a.jsonl", GOOD, QA, GOOD))
    assert len(data) == 2 and report.bad_by_kind == {"missing_columns": 1}


@pytest.mark.parametrize("source, error, sentence", [
    ("missing.jsonl", FileNotFoundError, "no file missing.jsonl"),
    ("a/missing.json.gz", FileNotFoundError, "no file"),
    (".", FileNotFoundError, "a folder"),
])
def test_a_missing_file_is_named(source, error, sentence):
    with pytest.raises(error, match=sentence):
        load_records(source)


def test_wrong_arguments_are_named(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(ValueError, match="'csv'.*gsm8k"):
        load_records(path, format="csv")
    with pytest.raises(ValueError, match="limit"):
        load_records(path, limit=0)


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_ENDPOINT.*HF_HUB_OFFLINE.*local copy"):
        load_records("no-such-owner/no-such-data:main")


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_raise_anything_but_value_error(tmp_path_factory, chunks):
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_bytes(b"\n".join([*chunks, json.dumps(GOOD).encode()]))
    data, report = load_records(path)
    lines = path.read_bytes().count(b"\n") + 1
    assert len(data) + report.num_bad + report.blank_lines == lines


def real_gsm8k() -> Path:
    beside = Path(__file__).parents[2].parent / "shared" / "real" / "gsm8k_train.jsonl"
    return Path(os.environ.get("WORKBOOK_REAL_GSM8K", beside))


@pytest.mark.skipif(not real_gsm8k().is_file(),
                    reason="the real GSM8K file is absent (set WORKBOOK_REAL_GSM8K to its path)")
def test_every_gold_of_the_real_file_is_a_number_and_equals_itself():
    data, report = load_records(real_gsm8k())
    assert (len(data), report.num_bad, report.blank_lines) == (7_473, 0, 0)
    assert all(parse_number(gold) for gold in data["gold_answer"])
    assert all(is_equivalent(gold, gold) for gold in data["gold_answer"])
    assert all(is_equivalent(f"${gold}.00.", gold.replace(",", "")) for gold in data["gold_answer"])
