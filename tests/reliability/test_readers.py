"""What is read beside records: YAML, registries, templates, lines of a run, data of any kind."""

import copy
import json
import os

import pytest
from datasets import Dataset, DatasetDict

from helpers.data.registry import find_entry, load_registered
from helpers.diagnose import diagnose
from helpers.evaluation import read_jsonl
from helpers.overrides import value_of
from helpers.prompts import load_template
from helpers.text_files import read_text, read_yaml
from helpers.training import PreferenceSettings, SFTSettings, train_preference, train_sft
from helpers.training.method import rows_of
from workbook import recorded
from workbook.train import read_config


def sentence_of(raised) -> str:
    text = str(raised.value)
    assert "\n" not in text and len(text) < 600
    return text


# ---------------------------------------------------------------- YAML


YAML = [
    ("lr: 0.1\nbatch_size: 2\nlr: 0.2\n", "line 3, column 1: the key 'lr' stands there twice"),
    ("model: {name: a, name: b}\n", "line 1, column 18: the key 'name' stands there twice"),
    ("lr: 0.1\n\tseed: 1\n", "line 2, column 1: "), ("lr: [1\n", "line 2, column 1: "),
    ("- 1\n- 2\n", "must hold"), ("just a text", "must hold"),
    ("a: 1\n---\nb: 2\n", "another document"), ("lr: 2026-13-45\n", "no YAML file: "),
    ("lr: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ("[" * 2_000, "the nesting is too deep"), ("lr: \x00", "special characters"),
    (b"lr: 0.1\nseed: \xff\n", "line 2: byte 15 is not UTF-8"),
]


@pytest.mark.parametrize("text, says", YAML)
def test_yaml_that_is_not_as_it_should_be_is_one_sentence(tmp_path, text, says):
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (SFTSettings.from_yaml, lambda path: read_config("sft", path)):
        with pytest.raises(ValueError) as raised:
            read(path)
        assert says in sentence_of(raised) and str(path) in str(raised.value)


def test_yaml_keeps_anchors_and_byte_order_marks(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("\ufeffbase: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}\n1: one\n", "utf-8")
    assert read_yaml(path) == {"base": {"x": 1, "y": 2}, "own": {"x": 1, "y": 3}, 1: "one"}
    assert SFTSettings.from_yaml(_empty(tmp_path)) == SFTSettings()


def _empty(folder):
    (folder / "empty.yaml").write_text("# nothing\n")
    return folder / "empty.yaml"


def test_a_value_on_the_command_line_is_read_as_strictly():
    with pytest.raises(ValueError, match="'methods=.*the key 'a' stands there twice"):
        value_of("methods={a: 1, a: 2}")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "inf", 10**400, [1] * 10_000])
def test_a_setting_that_is_no_number_is_named(value):
    with pytest.raises(ValueError, match="Setting lr must be a number, but it is") as raised:
        SFTSettings(lr=value)
    sentence_of(raised)


def test_a_key_of_a_section_that_holds_one_value_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("model: tiny\n")
    with pytest.raises(ValueError, match="the section model of the configuration holds one value"):
        read_config("sft", tmp_path / "a.yaml", ["model.name=x"])


def test_no_reader_waits_for_a_pipe_or_reads_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_text, read_yaml, read_jsonl, load_template, SFTSettings.from_yaml,
                 lambda path: find_entry("a", path)):
        for path in (tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(OSError, match="a pipe or a device"):
                read(path)
        with pytest.raises(OSError, match="is a folder"):
            read(tmp_path)
    (tmp_path / "huge.txt").write_bytes(b"a" * 16_000_001)
    with pytest.raises(ValueError, match="over 16 MB"):
        load_template(tmp_path / "huge.txt")


# ---------------------------------------------------------------- registries


@pytest.mark.parametrize("text, says", [
    ('{"a": {"file_name": "x.json"},\n "b": {}, "a": {"file_name": "y.json"}}',
     "the field 'a' stands there twice"),
    ('{"a": {"file_name": "x.json", "columns": {"prompt": "q", "prompt": "r"}}}',
     "the field 'prompt' stands there twice"),
    ('{"a": {"file_name": ["x.json"]}}', "a: file_name must be a text, not "),
    ('{"a": {"hf_hub_url": 7}}', "a: hf_hub_url must be a text, not '7'"),
    ('{"a": {"file_name": "x.json", "ranking": "false"}}', "a: ranking must be true or false"),
    ('{"a": {"file_name": "x.json", "split": {"a": 1}}}', "a: split must be a text"),
    ('{"a": {"file_name": "x.json", "formatting": 1}}', "a: formatting must be a text"),
    ('{"a": {"file_name": "x.json", "columns": ["prompt"]}}', "a: columns is an object of names"),
    ('{"a": {"file_name": "x.json", "columns": {"prompt": 1}}}', "columns is an object of names"),
    ('{"a": {"file_name": "x.json", "columns": {"prompt": "q", "response": "q"}}}',
     "a: columns gives 'q' two parts"),
    ('{"a": {"file_name": "x.json", "format": "csv"}}', "a: There is no record format 'csv'"),
    ('{"a": {"file_name": null}}', "a: it needs file_name or hf_hub_url"),
    ('{"a": [1]}', "an entry is an object"), ('{"a": {}} x', "line 1, column 11: more text"),
    ('{"a": {"file_name": "x.json"},}', "line 1, column 31: "), ("[]", "must hold one object"),
    ('{"a": NaN}', "NaN is no JSON value"), ("", "is not JSON: "), ("[" * 9_000, "too deep"),
])
def test_a_wrong_registry_is_one_sentence(tmp_path, text, says):
    path = tmp_path / "dataset_info.json"
    path.write_text(text)
    with pytest.raises(ValueError) as raised:
        find_entry("a", path)
    assert says in sentence_of(raised) and str(path) in str(raised.value)


def test_a_registry_with_nulls_and_empty_columns_is_read(tmp_path):
    entry = {"file_name": "x.json", "hf_hub_url": None, "subset": None, "split": None,
             "tags": None, "ranking": None,
             "columns": {"prompt": "q", "query": "", "system": "", "response": "r"}}
    (tmp_path / "x.json").write_text(json.dumps([{"q": "2 + 2?", "r": "4", "input": "not read"}]))
    (tmp_path / "info.json").write_text("\ufeff" + json.dumps({"a": entry}), "utf-8")
    data, _ = load_registered("a", tmp_path / "info.json")
    assert (data[0]["prompt"], data[0]["response"]) == ("2 + 2?", "4")


# ---------------------------------------------------------------- lines of a run


def test_a_torn_last_line_is_left_out_and_a_fault_inside_is_named(tmp_path):
    path, rows = tmp_path / "rollouts.jsonl", [{"t": "a\u2028é"}, {"t": "b"}]
    lines = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    for torn in range(1, len(lines)):
        path.write_bytes(lines + lines[:torn].rstrip(b"\n"))
        assert read_jsonl(path)[:2] == rows
    for fault in (b'{"t": "c\n', b"\xff\n", b"7\n", b"[" * 50_000 + b"\n"):
        path.write_bytes(lines + fault + lines)
        with pytest.raises(ValueError, match="rollouts.jsonl, line 3: ") as raised:
            read_jsonl(path)
        sentence_of(raised)
    assert read_jsonl(tmp_path / "none.jsonl") == []


# ---------------------------------------------------------------- data without a length


PAIRS = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(4)]


def test_a_generator_trains_as_its_list(tiny_random_model):
    def losses(train, data, settings, held_out):
        model, tokenizer = copy.deepcopy(tiny_random_model)
        run = train(model, data, settings, tokenizer=tokenizer, eval_data=held_out)
        return [(row["loss"], row.get("eval_loss")) for row in run.metrics]

    pairs = PreferenceSettings(max_steps=2, batch_size=2, progress=False)
    texts = SFTSettings(max_steps=2, batch_size=2, progress=False)
    rows = [{"prompt": pair["prompt"], "response": pair["chosen"]} for pair in PAIRS]
    for train, data, settings in ((train_preference, PAIRS, pairs), (train_sft, rows, texts)):
        as_list = losses(train, data, settings, data)
        assert losses(train, iter(data), settings, (row for row in data)) == as_list
        assert losses(train, Dataset.from_list(data).to_iterable_dataset(), settings,
                      None)[0][0] == as_list[0][0]


@pytest.mark.parametrize("data, says", [
    ("pairs.jsonl", "give the rows of that file"), ({"prompt": ["a"]}, "are a dict with 'prompt'"),
    (DatasetDict(train=Dataset.from_list(PAIRS)), "are a DatasetDict with 'train'"),
    (Dataset.from_list(PAIRS).to_pandas(), 'give data.to_dict("records")'),
    (7, "are a int, not a data set"), ((Dataset.from_list(PAIRS), 0), "is a Dataset, not a dict"),
    (["a"], "Row 0 of the data is a str"), ([None], "is a NoneType"), (iter([]), "None of 0"),
])
def test_other_data_are_named(tiny_random_model, data, says):
    model, tokenizer = tiny_random_model
    with pytest.raises(ValueError) as raised:
        train_preference(model, data, PreferenceSettings(max_steps=1, progress=False),
                         tokenizer=tokenizer)
    assert says in sentence_of(raised)


def test_data_that_never_end_are_refused(monkeypatch):
    monkeypatch.setattr("helpers.training.method.MOST_ROWS", 100)
    with pytest.raises(ValueError, match="of more than 100 rows"):
        rows_of(iter(lambda: PAIRS[0], None))


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_summary_or_recorded_file_is_one_sentence(text, tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "course_root", lambda: tmp_path)
    (tmp_path / "solutions" / "recorded").mkdir(parents=True)
    (tmp_path / "settings.json").write_text('{"settings": {}}')
    readers = {
        tmp_path / "summary.json": lambda: diagnose(tmp_path),
        recorded.recorded_file("03"): lambda: recorded.read_recorded("03"),
    }
    for path, read in readers.items():
        path.write_bytes(text)
        with pytest.raises(ValueError, match="is damaged .*bring it back") as raised:
            read()
        assert str(path) in sentence_of(raised)
