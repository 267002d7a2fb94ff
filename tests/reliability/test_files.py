"""Files of records in every state that people report: read right, or one sentence says why not."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import time
import zipfile
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.data import load_records
from helpers.data.files import write_records

A, B = {"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}
LINES = f"{json.dumps(A)}\n{json.dumps(B)}\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def prompts(path, **options) -> tuple[list, dict, list]:
    """(prompts, bad records by kind, problems without the path)."""
    data, report = load_records(path, **options)
    return data["prompt"][:], dict(report.bad_by_kind), [
        problem.removeprefix(f"{path}:") for problem in report.problems]


def refused(path, **options) -> str:
    with pytest.raises((ValueError, OSError)) as raised:
        load_records(path, **options)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500
    return str(raised.value)


# ---------------------------------------------------------------- read right


@pytest.mark.parametrize("name, content", {
    "lines.jsonl": LINES, "lines.json": LINES, "no_name": LINES, "end.jsonl": LINES.rstrip(),
    "array.json": json.dumps([A, B]), "array.jsonl": json.dumps([A, B], indent=1),
    "on_one_line.jsonl": json.dumps([A, B]) + "\n",
    "crlf.jsonl": LINES.replace("\n", "\r\n"), "bom.jsonl": "\ufeff" + LINES,
    "bom.json": "\ufeff" + json.dumps([A, B]), "cr.json": json.dumps([A, B], indent=1).replace(
        "\n", "\r"), "pretty.jsonl": json.dumps(A, indent=2) + "\n" + json.dumps(B, indent=2),
    "pretty.json": json.dumps(A, indent=2) + json.dumps(B, indent=2),
    "space.json": " \n" * 9_000 + json.dumps([A, B]),
}.items())
def test_the_layout_is_found_whatever_the_name(tmp_path, name, content):
    for path in (write(tmp_path / name, content),
                 write(tmp_path / f"{name}.gz", gzip.compress(content.encode())),
                 write(tmp_path / f"unnamed-{name}", gzip.compress(content.encode()))):
        assert prompts(path)[:2] == (["a", "c"], {})


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such name")
def test_a_name_that_is_not_utf_8_is_read_and_shown(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff.jsonl")
    write(Path(os.fsdecode(path)), LINES + "x\n")
    data, report = load_records(os.fsdecode(path))
    assert data["id"][:] == ["\\udcff-1", "\\udcff-2"]
    assert "udcff.jsonl:3: column 1" in report.describe().encode("utf-8").decode()


def test_line_separators_inside_a_text_are_no_line_ends(tmp_path):
    texts = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb"]
    rows = [{"prompt": text, "response": "r"} for text in texts]
    lines = "\n".join(json.dumps(row, ensure_ascii=text < "a\x80")
                      for row, text in zip(rows, texts, strict=True))
    assert prompts(write(tmp_path / "a.jsonl", lines))[0] == texts


@pytest.mark.parametrize("around", [
    {"version": 1, "data": [A, B]}, {"data": [A, B], "version": {"a": [1, {"b": []}]}},
    {"none": [], "numbers": [1, 2], "text": "[{", "rows": [A, B]},
])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_around_the_records_is_read_and_its_field_named(tmp_path, around, indent):
    path = write(tmp_path / "a.json", json.dumps(around, indent=indent))
    data, report = load_records(path)
    key = "rows" if "rows" in around else "data"
    assert data["prompt"][:] == ["a", "c"] and report.num_bad == 0
    assert report.notes == [f"{path}: the records are those of its field '{key}'"]
    assert report.notes[0] in report.describe() and report.as_dict()["notes"] == report.notes


def test_an_object_around_records_that_is_larger_than_the_window_is_read(tmp_path):
    rows = [{"prompt": f"{n} " + "x" * 3_000, "response": "y"} for n in range(1_000)]
    text = json.dumps({"info": "w" * 70_000, "records": rows, "end": None})
    data, report = load_records(write(tmp_path / "a.json", text))
    assert [p.split()[0] for p in data["prompt"]] == [str(n) for n in range(1_000)]
    assert report.num_bad == 0


def test_a_second_list_of_records_is_not_dropped_in_silence(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"train": [A], "test": [B]}))
    found, kinds, problems = prompts(path)
    assert found == ["a"] and kinds == {"two_lists": 1}
    assert "'train' and 'test' both hold lists of records" in problems[0]


def test_an_object_around_records_on_a_line_of_json_lines_is_named(tmp_path):
    sentence = refused(write(tmp_path / "a.jsonl", json.dumps({"version": 1, "data": [A, B]})))
    assert "its field 'data' holds a list of objects" in sentence
    assert "one object a line" in sentence


def test_one_record_with_a_list_of_objects_is_a_record(tmp_path):
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for name, indent in (("a.json", 1), ("b.json", None), ("c.jsonl", 1), ("d.jsonl", None)):
        data, report = load_records(write(tmp_path / name, json.dumps(chat, indent=indent)))
        assert data["response"][:] == ["b"] and not report.notes


# ---------------------------------------------------------------- faults inside a text


@pytest.mark.parametrize("text, problem", [
    ('{"prompt": "a",, "response": "b"}', "column 16: Expecting property name"),
    ('{"prompt": "a", "response": "b",}', "column "),
    ('{"prompt": "a" "response": "b"}', "column 16: Expecting ',' delimiter"),
    ('{"prompt": "a\tb", "response": "b"}', "column 14: Invalid control character"),
    ('{"prompt": "a"} // note', "column 17: more text stands behind the record"),
    ('{"prompt": "a"}{"prompt": "b"}', "column 16: more text stands behind the record"),
    ('{"prompt": "NaN", "score": NaN}', "column 28: NaN is no JSON value"),
    ('{"prompt": "a", "score": -Infinity}', "column 26: -Infinity is no JSON value"),
    ('{"prompt": "a", "score": 1e999}', "'1e999' is too large for a number"),
    ('{"prompt": "a", "n": ' + "9" * 5_000 + "}", "a number has thousands of digits"),
    ('{"prompt": ' + "[" * 100_000, "the nesting is too deep"),
    ('{"prompt": "a\x00"}', "byte 14 is NUL"),
    ('{"prompt": "a", "prompt": "b"}', "the field 'prompt' stands there twice"),
    ("{'prompt': 'a'}", "column 2: Expecting property name"),
    ("None", "column 1: Expecting value"), ("42", "here stands '42', not an object"),
    (json.dumps(A) + "\r" + json.dumps(B), "its lines end in CR alone"),
])
@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_fault_inside_a_line_is_never_called_torn(tmp_path, text, problem, at_the_end):
    lines = [json.dumps(A), text] + ([] if at_the_end else [json.dumps(B)])
    found, kinds, problems = prompts(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert found == (["a"] if at_the_end else ["a", "c"]) and "torn_last_line" not in kinds
    assert problems[0].startswith("2: ") and problem in problems[0] and len(problems) == 1


@pytest.mark.parametrize("end", range(1, len(json.dumps(A | {"seen": True, "n": -1.5})) - 1))
def test_a_line_that_stops_anywhere_is_torn(tmp_path, end):
    line = json.dumps({"seen": True, "n": -1.5} | A)[:end]
    found, kinds, problems = prompts(write(tmp_path / "a.jsonl", LINES + line))
    assert found == ["a", "c"] and kinds == {"torn_last_line": 1} and problems[0][:3] == "3: "


@pytest.mark.parametrize("text, found, problem", [
    ('[\n{"prompt": "a", "response": "b"},\n{"prompt" "c"}]', ["a"],
     "line 3, column 11: Expecting ':' delimiter"),
    ('[\n{"prompt": "a", "response": "b"},\n]', ["a"], "line 3, column 1: Expecting value"),
    ('[\n{"prompt": "a", "response": "b"} // x\n]', ["a"], "line 2, column 34: '/' stands in"),
    ('[{"prompt": "a", "response": "b"}] [1]', ["a"], "line 1, column 36: more text stands"),
    ('[{"prompt": "a", "response": "b"},\n {"prompt": "c", "response": "\udcff"}]', ["a"],
     "line 2, column 31: byte 66 is not UTF-8"),
    ('{"data": [{"prompt": "a", "response": "b"}],\n "x": tru}', ["a"], "line 2, column 7: "),
])
def test_a_fault_inside_an_array_keeps_what_stands_before_it(tmp_path, text, found, problem):
    path = write(tmp_path / "a.json", text.encode("utf-8", "surrogateescape"))
    got, kinds, problems = prompts(path)
    assert got == found and len(problems) == 1 and problem in problems[0]
    assert "torn" not in str(kinds) and problems[0].endswith("not read")


def test_a_record_to_refuse_costs_an_array_no_other_record(tmp_path):
    text = f'[{json.dumps(A)},\n {{"prompt": "x", "s": NaN}}, {{"p": 1, "p": 2}},\n{json.dumps(B)}]'
    found, kinds, problems = prompts(write(tmp_path / "a.json", text))
    assert found == ["a", "c"] and kinds == {"no_number": 1, "duplicate_field": 1}
    assert problems[0].startswith("record 2: line 2, column 23: NaN is no JSON value")
    assert problems[1].startswith("record 3: line 2, column 29: the field 'p'")


@pytest.mark.parametrize("cut", [1, 20, 40, 70])
def test_an_array_that_stops_is_torn(tmp_path, cut):
    text = json.dumps([A, B])
    path = write(tmp_path / "a.json", text[:-cut])
    found, kinds, _ = prompts(path) if cut < 35 else ([], {"torn_last_line": 1}, refused(path))
    assert kinds == {"torn_last_line": 1} and found == (["a", "c"] if cut == 1 else ["a"])[
        : 2 if cut < 35 else 0]


# ---------------------------------------------------------------- no file of records


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return content.getvalue()


@pytest.mark.parametrize("name, content, says", [
    ("a.jsonl", zipped(), "a zip archive"), ("a.json", bz2.compress(LINES.encode()), "bzip2"),
    ("a.jsonl", lzma.compress(LINES.encode()), "packed with xz"),
    ("a.jsonl.gz", gzip.compress(gzip.compress(LINES.encode())), "gzip twice"),
    ("a.csv", "prompt,response\na,b\n", "a table, not JSON: read it with pandas"),
    ("a.jsonl", "<!DOCTYPE html>\n<html><body>404</body></html>", "a web page"),
    ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    ("a.jsonl", LINES.encode("utf-16"), "UTF-16"), ("a.json", LINES.encode("utf-32"), "UTF-16"),
    ("a.jsonl", LINES.encode("utf-16-le"), "the file is UTF-16"),
    ("a.jsonl", LINES.replace("\n", "\r"), "CR alone"),
    ("a.jsonl", "", "holds no record"), ("a.json", "[]", "holds no record"),
    ("a.parquet", "", "0 bytes are not a readable parquet file (Parquet file size is 0 bytes"),
    ("a.parquet", LINES, "magic bytes"), ("a.jsonl.gz", LINES, "Not a gzipped file"),
    ("a.json", json.dumps({"prompt": {"0": "a"}, "response": {"0": "b"}}), "which is no text"),
])
def test_another_kind_of_file_is_named_with_what_to_do(tmp_path, name, content, says):
    sentence = refused(write(tmp_path / name, content))
    assert says in sentence and str(tmp_path / name) in sentence


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    start = time.perf_counter()
    assert "a pipe or a device" in refused(tmp_path / "pipe.jsonl")
    assert "a pipe or a device" in refused("/dev/zero") and "a folder" in refused(tmp_path)
    assert "leads nowhere" in refused(tmp_path / "loop")
    assert "leads nowhere" in refused(tmp_path / "dangling")
    assert "no file" in refused("a\x00b.jsonl") and "no file" in refused(json.dumps([A] * 60))
    assert "a pattern stands for no file" in refused(str(tmp_path / "*.jsonl"))
    assert "it is an address" in refused("https://example.org/a.jsonl")
    assert "a path or a list of paths" in refused(None) and "not '[None]'" in refused([None])
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("value", [float("nan"), "\ud800"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz"])
def test_what_no_reader_takes_is_not_written(tmp_path, name, value):
    path = tmp_path / name
    write_records(path, [A])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Record 2 cannot be written as JSON"):
        write_records(path, [A, {"score": value}])
    assert path.read_bytes() == before and os.listdir(tmp_path) == [name]


def test_records_of_two_formats_behind_a_thousand_bad_ones_keep_one_format(tmp_path):
    lines = ["x"] * 1_100 + [json.dumps(A), json.dumps({"prompt": "p", "answer": "r"})]
    data, report = load_records(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert report.format == "prompt_response" and len(data) == 1
    assert report.bad_by_kind == {"bad_json": 1_100, "missing_columns": 1}


# ---------------------------------------------------------------- bombs


BOMBS = {  # first bytes, what follows, how often
    "blank.jsonl": (b"", b"\n", 32_000_000), "spaces.jsonl": (b"", b" ", 32_000_000),
    "zeros.jsonl": (b"", b"\x00", 32_000_000), "space.json": (b"[", b" ", 32_000_000),
    "brackets.json": (b"", b"[", 32_000_000), "numbers.json": (b"[[", b"0,", 16_000_000),
    "objects.json": (b"[", b"{},", 10_000_000), "lines.jsonl": (b"", b"{}\n", 10_000_000),
    "bad.jsonl": (b"", b"x\n", 16_000_000), "text.json": (b'["', b"a", 32_000_000),
    "around.json": (b'{"data": [', b"{},", 10_000_000), "many.jsonl": (b"", b"\n", 300_000_000),
}


def memory(name: str) -> int:
    """Megabytes of this process: VmRSS now, VmHWM at most; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.split(f"{name}:")[1].split()[0]) // 1_000


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_gzip_of_much_is_answered_soon_and_in_little_memory(tmp_path, name):
    first, unit, count = BOMBS[name]
    path = tmp_path / f"{name}.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(first)
        for _ in range(10):
            file.write(unit * (count // 10))
    if memory("VmRSS"):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the present from here on
    before, start = memory("VmRSS"), time.process_time()
    refused(path)
    assert time.process_time() - start < 10
    assert memory("VmHWM") - before < 150


def test_good_records_behind_many_blank_lines_are_found_at_their_line(tmp_path):
    path = write(tmp_path / "a.jsonl", b"\n" * 3_000_000 + b'{"x": 1}\n' + LINES.encode())
    data, report = load_records(path)
    assert data["id"][:] == ["a-3000002", "a-3000003"] and report.blank_lines == 3_000_000
    assert report.problems[0].startswith(f"{path}:3000001: ")


# ---------------------------------------------------------------- parquet


def test_parquet_columns_of_every_type_are_read(tmp_path):
    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 2
    table = pa.table({
        "messages": turns, "id": pa.array(["x", "y"], pa.large_string()),
        "kind": pa.array(["k", "k"]).dictionary_encode(),
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(5, 2)),
        "when": pa.array([datetime(2024, 1, 2), None], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet")
    data, report = load_records(tmp_path / "a.parquet", keep=("kind", "price", "when"))
    assert data["id"][:] == ["x", "y"] and data["response"][:] == ["b", "b"] and not report.num_bad
    assert data[0]["kind"] == "k" and data[0]["price"] == Decimal("1.50")
    assert data[0]["when"] == datetime(2024, 1, 2)


def test_parquet_under_another_name_and_rewritten_in_place(tmp_path):
    """A copy kept under name and time of change would give the old rows."""
    path = tmp_path / "a.jsonl"
    for row in (A, B):
        pq.write_table(pa.Table.from_pylist([row]), path)
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert prompts(path)[0] == [row["prompt"]]


def test_a_parquet_file_without_rows_or_cut_off(tmp_path):
    pq.write_table(pa.Table.from_pylist([A]).slice(0, 0), tmp_path / "none.parquet")
    assert "holds no record" in refused(tmp_path / "none.parquet")
    pq.write_table(pa.Table.from_pylist([A]), tmp_path / "a.parquet")
    write(tmp_path / "cut.parquet", (tmp_path / "a.parquet").read_bytes()[:-9])
    assert "footer" in refused(tmp_path / "cut.parquet")
