"""Loading: every format and container, and bad records named with file and line."""

import gzip
import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from helpers.data import leaks, load_records
from helpers.data.registry import HUB_SETS, find_entry, load_registered, load_registry
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


def test_a_name_that_stands_twice_is_refused(tmp_path):
    """The parser would keep the last value, and the first would be gone in silence."""
    path = write(tmp_path / "a.jsonl", GOOD, '{"prompt": "a", "answer": "b", "answer": "c"}',
                 '{"messages": [{"role": "user", "content": "a", "content": "b"}]}')
    _, report = load_records(path)
    assert report.bad_by_kind == {"duplicate_field": 2}
    assert "a.jsonl:2: the field 'answer' stands there twice" in report.problems[0]


def test_windows_line_ends_and_any_script_are_read(tmp_path):
    rows = [{"prompt": "价格是多少?\u2028", "response": "é\r\n😀"},
            {"prompt": "ß", "response": "\x00"}]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, b"", b"  "]))
    data, report = load_records(path)
    assert [dict(row, id=None) for row in data] == [{"id": None, **row} for row in rows]
    assert (report.num_bad, report.blank_lines) == (0, 2)


def test_records_of_arrays_and_parquet_are_counted_from_one(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([GOOD, {"question": "?"}, 7, None, GOOD]))
    data, report = load_records(path)
    assert data["id"][:] == ["a-1", "a-5"]
    assert [problem.split(": ")[0] for problem in report.problems] == [
        f"{path}:record {number}" for number in (2, 3, 4)]


def test_fifty_thousand_records_load_in_seconds(tmp_path):
    path = write(tmp_path / "many.jsonl", *[json.dumps({**GOOD, "id": n}) for n in range(50_000)])
    start = time.process_time()
    data, report = load_records(path)
    assert len(data) == 50_000 and report.num_bad == 0
    assert time.process_time() - start < 20


# ---------------------------------------------------------------- known sets, and what leaks

SAMPLES = Path(__file__).parent / "samples"
HUB_ROWS = {  # what the first record of each sample file becomes, and which records are bad
    "gsm8k": ({"gold_answer": "42"}, [3]),
    "nq_open": ({"answers": ["Mara Lind"], "passages": []}, [3]),
    "hh_rlhf": ({"prompt": "\n\nHuman: How do I keep bread fresh?\n\nAssistant:",
                 "chosen": " In a paper bag, in a cool place.", "rejected": " You can't."}, [3, 4]),
    "shp": ({"prompt": "Why did my cake sink? I opened the oven once.",
             "chosen": "The draught: wait until it has set.", "rejected": "Bad luck."}, []),
    "stack_exchange": ({"prompt": "How do I copy a list?\n\nb = a\n\nchanges both.",
                        "chosen": "a.copy() & you are done.", "rejected": "You cannot."}, [2]),
}


def sample(name: str) -> Path:
    return next(SAMPLES.glob(f"{name}.json*"))


@pytest.mark.parametrize("name", load_registry(HUB_SETS))
def test_the_named_sets_of_the_hub_are_read(name):
    """From small files with the fields of the real ones."""
    row, bad = HUB_ROWS[name]
    data, report = load_registered(name, file=sample(name))
    assert {key: data[0][key] for key in row} == row
    assert [int(problem.split(":")[1]) for problem in report.problems] == bad
    guessed, _ = load_records(sample(name))
    assert guessed[:] == data[:]


@pytest.mark.parametrize("name", load_registry(HUB_SETS))
def test_the_named_sets_are_read_from_parquet_too(tmp_path, name):
    """As the hub gives them: columns of one type, None where a record lacks a field."""
    lines = [json.loads(line) for line in sample(name).read_text().splitlines()]
    Dataset.from_list(lines).to_parquet(str(tmp_path / f"{name}.parquet"))
    data, report = load_registered(name, file=tmp_path / f"{name}.parquet")
    expected, expected_report = load_registered(name, file=sample(name))
    assert data[:] == expected[:] and report.bad_by_kind == expected_report.bad_by_kind


def test_without_the_hub_a_named_set_says_what_to_do(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError) as raised:
        load_registered("hh_rlhf", limit=10)
    said = str(raised.value)
    assert all(word in said for word in ("Anthropic/hh-rlhf", "HF_ENDPOINT", "HF_HUB_OFFLINE",
                                         "path of a local copy"))
    assert "\n" not in said and said.count(". ") == 0


def test_a_registry_names_its_files_relative_to_itself(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data, report = load_registered("nq_top5_train", SAMPLES / "dataset_info.json")
    assert data[0]["prompt"] == ("Answer from the passages: where did Luben study?\n"
                                 "[1] Luben studied in Arlo.\n[2] Ana keeps a cat.")
    assert data["response"][:] == ["Arlo", "a cat"] and report.format == "alpaca"


@pytest.mark.parametrize("name", ["renamed", "own"])
def test_a_registry_renames_columns(name):
    """The note under the name `input` is not read: the registry does not name it."""
    data, report = load_registered(name, SAMPLES / "dataset_info.json")
    assert (data["prompt"][:], data["response"][:]) == (["Add 2 and 2."], ["4"])
    assert report.bad_by_kind == {"missing_columns": 1}
    assert "renamed.jsonl:2: the field solution is missing (has 'task')" in report.problems[0]


def test_a_registry_renames_tags():
    data, _ = load_registered("pairs", SAMPLES / "dataset_info.json")
    assert {name: data[0][name] for name in ("prompt", "chosen", "rejected")} == {
        "prompt": "Hi!", "chosen": "Hello!", "rejected": "No."}


def test_an_entry_may_stand_on_the_hub():
    entry = find_entry("far", SAMPLES / "dataset_info.json")
    assert (entry.source, entry.split, entry.format) == ("owner/set:main", "test", "gsm8k")


@pytest.mark.parametrize("name, sentence", [
    ("images", "images: columns has images; possible are messages"),
    ("sampled", "sampled: num_samples is not known here"),
    ("none", "no data set 'none'; it has nq_top5_train"),
])
def test_a_wrong_entry_is_one_sentence(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_entry(name, SAMPLES / "dataset_info.json")


@pytest.mark.parametrize("content, sentence", [
    ("[", "is not JSON"), ("[]", "must hold one object"),
    ('{"a": {}}', "a: it needs file_name or hf_hub_url"), ('{"a": 1}', "an entry is an object"),
    ('{"a": {"file_name": "x", "formatting": "csv"}}', "alpaca or sharegpt, not 'csv'"),
    ('{"a": {"file_name": "x", "format": "csv"}}', "no record format 'csv'"),
    ('{"a": {"file_name": "x", "tags": {"role": "x"}}}', "tags has role; possible are role_tag"),
    ('{"a": {"file_name": "x", "columns": []}}', "columns is an object"),
])
def test_a_wrong_registry_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "dataset_info.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        find_entry("a", path)
    with pytest.raises(FileNotFoundError, match="no registry file"):
        find_entry("a", tmp_path / "other.json")


def test_leaks_are_found_through_case_space_and_punctuation():
    train = [{"id": "t1", "question": "Ana has 2 cats. How many?"},
             {"id": "t2", "question": "1.5?"}]
    test = [{"id": "e1", "question": "ana has  2 cats - how many"}, {"id": "e2", "question": "15"},
            {"id": "e3", "question": "ANA has 2 cats, how many!"}, {"id": "e4", "question": "1.5"}]
    found = leaks(train, test)
    assert [(leak["train_id"], leak["test_id"]) for leak in found] == [("t1", "e3"), ("t2", "e4")]


@pytest.mark.parametrize("first, second", [
    ("2 + 3?", "2 - 3?"), ("2 * 3", "2 3"), ("1,000", "1000.5"), ("!?", "??"), ("x < 3", "x > 3")])
def test_other_problems_are_no_leaks(first, second):
    assert leaks([{"prompt": first}], [{"prompt": second}]) == []
    assert len(leaks([{"prompt": first}], [{"prompt": first}])) == 1


def test_the_splits_of_the_tiny_world_do_not_leak():
    folder = Path(__file__).parents[2] / "workbook" / "assets" / "data"
    train, test = (load_records(folder / f"maths_{split}.jsonl")[0] for split in ("train", "test"))
    assert leaks(train, test) == []


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
