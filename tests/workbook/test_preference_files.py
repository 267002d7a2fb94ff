"""Files of preferences as they are published, loaded and trained on from the command line.

HH-RLHF's transcripts and pairs with better_response_id: count in is count out, and a record that
cannot be used is named with its line.
"""

import gzip
import json
import os
from pathlib import Path

import pytest
import yaml

from helpers.data import load_records
from helpers.models import load_model
from workbook.cli import run_command

ROOT = Path(__file__).parents[2]


def transcript(*turns):
    """Turns of Human and Assistant in alternation, as HH-RLHF writes them."""
    speakers = ["Human", "Assistant"] * len(turns)
    return "".join(f"\n\n{who}: {text}" for who, text in zip(speakers, turns, strict=False))


def pair(shared, chosen, rejected):
    return {"chosen": transcript(*shared, chosen), "rejected": transcript(*shared, rejected)}


# What the published files hold beside the plain case; all of these can be used.
USABLE = [
    pair(["How do I keep bread fresh?"], "In a bag.", "You can't."),
    pair(["Tell a joke.", "About what?", "Maths."], "Why was 6 afraid?\n\nOf 7.", "I know none."),
    pair(["Hi.", "Hello!", "Bye.", "Bye!", "Wait"], "Yes?", "Human error: no."),
    pair(["Was heißt «vielleicht»? 也许? 🤔"], "Perhaps — 也许。", "Nein 🙅"),
    pair(["What is it?  "], "A cat. ", "A dog.\n"),
    pair(["Is it late?"], "Yes.", "Yes"),
    pair(["Say it.", "", "Again."], "It.", "No."),
    pair(["Write a list\n- of two"], "- a\n- b", "Assistant: none"),
    {"chosen": "\n\nHuman: q\n\nAssistant:a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    # The person sent nothing, and the assistant spoke again.
    {side: transcript("A prank?", "Soap?") + f"\n\nAssistant: {last}"
     for side, last in (("chosen", "Or none?"), ("rejected", "Or paint?"))},
]
# And what cannot: the files hold some of each, and every one is named.
UNUSABLE = [
    (pair(["Is it late?"], "", "Yes."), "empty"),
    (pair(["Is it late?"], "No.", " "), "empty"),
    (pair(["Is it late?"], "No.", "No."), "the same"),
    ({"chosen": transcript("Hi.", "Hello!", "Bye.", "Bye!"),
      "rejected": transcript("Hi.", "What?", "Never mind.", "Fine.")}, "differ before"),
    ({"chosen": transcript("Hi.", "Hello!", "Bye."), "rejected": transcript("Hi.", "Oh.", "Bye.")},
     "differ before"),
]


@pytest.fixture
def command(tmp_path, tiny_folder):
    """A function that trains on records in a gzip, as they are published; returns the summary."""

    def train(kind, records, *settings):
        source = tmp_path / "train.jsonl.gz"
        with gzip.open(source, "wt", encoding="utf-8") as file:
            file.write("\n".join(json.dumps(record, ensure_ascii=False) for record in records))
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({
            "model": {"name": str(tiny_folder), "device": "cpu"}, "lora": {"r": 4},
            "data": {"train": str(source)}, "out": str(tmp_path / kind), "progress": False}))
        command = ["train", kind, "--config", str(config), "batch_size=4", *settings]
        assert run_command(command) == 0
        return json.loads((tmp_path / kind / "summary.json").read_text())

    return train


@pytest.mark.parametrize("kind", ["dpo", "simpo", "kto"])
def test_transcripts_train_without_a_dropped_record(kind, command, capsys):
    examples = command(kind, USABLE)["examples"]
    sides = 2 if kind == "kto" else 1
    assert examples["used"] == sides * len(USABLE)
    assert examples["left_out"] == {} and examples["cut"] == {}
    assert f"Records: {len(USABLE)} read, none bad." in capsys.readouterr().out


def test_prompt_and_response_are_the_transcript(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, USABLE)), encoding="utf-8")
    data, report = load_records(path)
    assert report.format == "hh_rlhf" and len(data) == len(USABLE)
    for row, raw in zip(data, USABLE, strict=True):
        for side in ("chosen", "rejected"):
            again = (row["prompt"] + row[side]).replace(" ", "")
            assert again.strip() == raw[side].replace(" ", "").strip()
        assert row["prompt"].endswith("\n\nAssistant:") and row["chosen"].startswith(" ")


def test_what_cannot_be_used_is_named_and_the_rest_trains(command, capsys):
    mixed = [record for two in zip(USABLE, [raw for raw, _ in UNUSABLE], strict=False)
             for record in two]
    summary, shown = command("dpo", mixed), capsys.readouterr().out
    assert f"Records: {len(UNUSABLE)} used, {len(UNUSABLE)} bad" in shown
    for line, (_, why) in zip(range(2, 2 * len(UNUSABLE) + 1, 2), UNUSABLE, strict=True):
        named = [text for text in shown.splitlines() if f"train.jsonl.gz:{line}:" in text]
        assert len(named) == 1 and why in named[0], (line, why)
    assert summary["examples"]["used"] == summary["examples"]["rows"] == len(UNUSABLE)


def better(prompt, first, second, better_id):
    return {"prompt": prompt, "response_0": first, "response_1": second,
            "better_response_id": better_id}


def test_pairs_with_better_response_id_train_without_a_dropped_record(command, tmp_path, capsys):
    shipped = ROOT / "workbook" / "assets" / "data" / "preferences_better_id.jsonl"
    lines = [json.loads(line) for line in shipped.read_text(encoding="utf-8").splitlines()]
    short = [row | {"prompt": row["prompt"][-60:]} for row in lines]  # the model reads 256 tokens
    odd = [
        better("Which?", " a ", " b\n", "1"),
        better("Wie?", "Ungefähr 18,50 € 🙂", "也许", 0),
        better("Say\n\nnothing.", "…", ".", "0"),
        better("More?", "yes" * 30, "yes", 1),
    ]
    examples = command("ipo", [*short, *odd], "max_steps=2")["examples"]
    count = len(lines) + len(odd)
    assert len(lines) == 50 and examples["rows"] == examples["used"] == count
    assert f"Records: {count} read, none bad." in capsys.readouterr().out
    data, _ = load_records(tmp_path / "train.jsonl.gz")
    assert [row["chosen"].strip() for row in data][-4:] == ["b", "Ungefähr 18,50 € 🙂", "…", "yes"]


def test_a_wrong_label_among_them_is_named(command, capsys):
    good = better("Which?", "a", "b", 1)
    rows = [good, good | {"better_response_id": 2}, good | {"response_1": "a"}, good]
    examples, shown = command("dpo", rows)["examples"], capsys.readouterr().out
    assert examples["used"] == 2 and "2 used, 2 bad" in shown
    assert "train.jsonl.gz:2:" in shown and "train.jsonl.gz:3:" in shown


def real_transcripts() -> Path:
    beside = ROOT.parent / "shared" / "real" / "hh_rlhf_test.jsonl.gz"
    return Path(os.environ.get("WORKBOOK_REAL_HH_RLHF", beside))


@pytest.mark.skipif(not real_transcripts().is_file(),
                    reason="no file of HH-RLHF (set WORKBOOK_REAL_HH_RLHF to its path)")
def test_the_published_file_is_accounted_for():
    data, report = load_records(real_transcripts())
    with gzip.open(real_transcripts(), "rt", encoding="utf-8") as file:
        assert len(data) + report.num_bad == sum(1 for _ in file)
    assert report.num_bad < 0.02 * len(data), report.describe()
    assert set(report.bad_by_kind) <= {"empty_field", "equal_responses", "wrong_turns"}


# ---------------------------------------------------------------- from SFT to preferences


def test_dpo_goes_on_from_an_sft_adapter_at_log_two(command, tmp_path, tiny_folder, capsys):
    """The same command again goes on, or returns the finished run; the reference stays."""
    rows = [{"prompt": f"{n} and {n}?", "response": f" {2 * n}"} for n in range(8)]
    command("sft", rows, "lr=1e-2", "num_epochs=3")
    pairs = [{"prompt": row["prompt"], "chosen": row["response"], "rejected": " no"}
             for row in rows]
    settings = [f"model.adapter={tmp_path / 'sft' / 'adapter'}", "lora=null", "lr=1e-2"]
    command("dpo", pairs, *settings, "max_steps=4", "save_every=2")
    out = tmp_path / "dpo"
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert metrics[-1]["loss"] < 0.6
    kept = (out / "reference.safetensors").read_bytes()
    command("dpo", pairs, *settings, "max_steps=4", "save_every=2")
    assert (out / "reference.safetensors").read_bytes() == kept
    assert [json.loads(line) for line in (out / "metrics.jsonl").open()] == metrics
    load_model(tiny_folder, adapter=out / "adapter", device="cpu")
