"""The verb data: conversions with their summaries, files written whole, the page of formats."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from helpers.data import load_records
from helpers.data.files import write_records
from helpers.data.formats import examples
from workbook import cli
from workbook.convert import convert_file, formats_page, formats_table
from workbook.setup import ROOT

SAMPLES = ROOT / "tests" / "helpers" / "samples"


def data(*arguments: object) -> int:
    return cli.run_command(["data", *map(str, arguments)])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def example_file(folder: Path, name: str, *more: dict) -> Path:
    path = folder / f"{name}.jsonl"
    write_records(path, [*examples()[name]["records"], *more])
    return path


def test_a_conversion_says_what_it_guessed_read_wrote_and_lost(tmp_path, capsys):
    source = example_file(tmp_path, "hh_rlhf", {"chosen": "Hello", "rejected": "Hi"})
    out = tmp_path / "sub" / "out.jsonl"
    assert data("convert", "--to", "messages", source, out) == 0
    assert lines(out) == [
        {"messages": [{"role": "user", "content": "What is 2 + 2?"},
                      {"role": "assistant", "content": "4"}]},
        {"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hi."},
                      {"role": "user", "content": "A joke?"},
                      {"role": "assistant", "content": "Sure."}]}]
    said = capsys.readouterr().out
    assert "Format: hh_rlhf, guessed from the fields" in said
    assert "Records: 2 used, 1 bad (wrong_turns 1):" in said
    assert f"  {source}:3: a transcript does not read" in said
    assert "Lost, with the number of records: rejected (2)." in said
    assert f"Written: 2 records as messages to {out}." in said


def test_a_given_format_is_not_guessed(tmp_path, capsys):
    source = example_file(tmp_path, "gsm8k")
    assert data("convert", "--from", "gsm8k", "--to", "alpaca", source, tmp_path / "o.jsonl") == 0
    said = capsys.readouterr().out
    assert "guessed" not in said and "Lost: no field." in said
    assert lines(tmp_path / "o.jsonl")[1]["output"] == "6 * 4 = <<6*4=24>>24\n#### 24"


@pytest.mark.parametrize("name", ["out.jsonl", "out.json", "out.jsonl.gz", "out.json.gz",
                                  "out.parquet"])
def test_each_file_kind_is_written_and_read_back(tmp_path, name):
    source = example_file(tmp_path, "alpaca")
    done = convert_file(source, tmp_path / name, to="alpaca")
    assert done.written == 2
    again, report = load_records(tmp_path / name)
    first, _ = load_records(source)
    assert report.num_bad == 0
    assert again.remove_columns("id")[:] == first.remove_columns("id")[:]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_array_is_json_and_text_stays_readable(tmp_path):
    source = tmp_path / "a.jsonl"
    write_records(source, [{"prompt": "价格?", "response": "é"}])
    convert_file(source, tmp_path / "a.json.gz", to="prompt_response")
    text = gzip.decompress((tmp_path / "a.json.gz").read_bytes()).decode()
    assert "价格" in text and json.loads(text) == [{"prompt": "价格?", "response": "é"}]


def test_a_record_that_cannot_go_there_is_counted(tmp_path, capsys):
    source = example_file(tmp_path, "unpaired")
    done = convert_file(source, tmp_path / "o.jsonl", to="prompt_response")
    assert (done.written, done.report.num_records) == (1, 1)
    assert done.report.bad_by_kind == {"undesirable": 1} and done.lost == {"label": 1}
    assert "unpaired.jsonl:2: the completion is labelled undesirable" in capsys.readouterr().out


def test_limit_counts_what_is_written(tmp_path):
    records = [{"prompt": "a", "completion": "b", "label": n % 2 == 1} for n in range(9)]
    write_records(tmp_path / "a.jsonl", records)
    assert convert_file(tmp_path / "a.jsonl", tmp_path / "o.jsonl", to="messages", limit=2
                        ).written == 2


def test_a_registered_set_is_converted_by_name(tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    assert data("convert", "--registry", SAMPLES / "dataset_info.json", "--to", "messages",
                "nq_top5_train", out) == 0
    assert lines(out)[0]["messages"][1] == {"role": "assistant", "content": "Arlo"}
    said = capsys.readouterr().out
    assert "input (joined to the prompt) (2)" in said and "guessed" not in said


def test_a_template_is_written_into_the_prompt(tmp_path):
    source = example_file(tmp_path, "better_response_id")
    convert_file(source, tmp_path / "o.jsonl", to="prompt_chosen_rejected",
                 template="align_anything")
    assert lines(tmp_path / "o.jsonl")[0] == {
        "prompt": "BEGINNING OF CONVERSATION: USER: What is 2 + 2? ASSISTANT:", "chosen": "4",
        "rejected": "5"}


def test_a_file_may_be_converted_onto_itself(tmp_path):
    source = example_file(tmp_path, "prompt_answer")
    convert_file(source, source, to="prompt_response")
    assert [set(record) for record in lines(source)] == [{"prompt", "response"}] * 2


@pytest.mark.parametrize("arguments, sentence", [
    (["--to", "hh_rlhf", "{pairs}", "{out}"], "'hh_rlhf' is not written; written are prompt_resp"),
    (["--to", "messages", "{pairs}", "out.csv"], "ends in .jsonl"),
    (["--to", "messages", "--template", "hh", "{pairs}", "{out}"], "takes no template"),
    (["--to", "prompt_response", "--template", "none", "{pairs}", "{out}"], "no template 'none'"),
    (["--to", "messages", "--from", "csv", "{pairs}", "{out}"], "no record format 'csv'"),
    (["--to", "messages", "missing.jsonl", "{out}"], "There is no file missing.jsonl"),
    (["--to", "messages", "{prompts}", "{out}"], "cannot be made of prompt records"),
    (["--to", "prompt_chosen_rejected", "{chats}", "{out}"], "cannot be made of messages records"),
    (["--to", "messages", "--from", "shp", "{pairs}", "{out}"], "No usable record .2 bad"),
    (["--to", "messages", "--from", "shp", "--registry", "{pairs}", "x", "{out}"], "--from out"),
])
def test_what_cannot_be_done_is_one_sentence_and_leaves_the_file(tmp_path, capsys, arguments,
                                                                sentence):
    files = {"pairs": example_file(tmp_path, "prompt_chosen_rejected"),
             "prompts": example_file(tmp_path, "prompt"),
             "chats": example_file(tmp_path, "messages"), "out": tmp_path / "out.jsonl"}
    files["out"].write_text("as it was")
    assert data("convert", *[argument.format(**files) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert sentence.replace(".2", "(2") in said and said.count("\n") == 1
    assert files["out"].read_text() == "as it was"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_write_that_breaks_off_leaves_the_file(tmp_path):
    """Half of the records are written when the source turns out to be unusable."""
    out = tmp_path / "out.jsonl"
    out.write_text("as it was")

    def records():
        yield {"a": 1}
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_records(out, records())
    assert out.read_text() == "as it was" and list(tmp_path.iterdir()) == [out]


def test_no_record_makes_an_empty_file(tmp_path):
    assert write_records(tmp_path / "a.json", []) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == []


def test_parquet_keeps_columns_that_come_late(tmp_path):
    write_records(tmp_path / "a.parquet", [{"a": 1}, {"a": 2, "b": "x"}])
    assert Dataset.from_parquet(str(tmp_path / "a.parquet"))["b"][:] == [None, "x"]


def test_formats_are_listed_with_two_records_each(capsys):
    assert data("formats") == 0
    said = capsys.readouterr().out
    assert all(f"\n{name}: " in f"\n{said}" for name in examples())
    assert said == formats_table() + "\n"
    record = examples()["shp"]["records"][1]
    assert json.dumps(record) in said


def test_the_page_of_formats_is_current():
    """Else: python3 -m workbook data formats --markdown > docs/formats.md"""
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert page == formats_page()
