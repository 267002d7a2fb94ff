"""data pairs and data negatives: what is kept of graded responses, and what is counted."""

import doctest
import json
from collections import Counter
from pathlib import Path

import pytest

from helpers.data import load_records, sampled
from helpers.data.sampled import labelled_responses, on_policy_pairs
from workbook.cli import run_command

ASSETS = Path(__file__).parents[2] / "workbook" / "assets"

def rows(*groups):
    """Rows of results: each group is a prompt's (text, reward, finish_reason) responses."""
    return [
        {"id": place, "prompt": f"{place}?", "generation": text, "finish_reason": reason,
         "metrics": {"reward": reward}}
        for place, group in enumerate(groups) for text, reward, reason in group
    ]


def eos(*pairs):
    return [(text, reward, "eos") for text, reward in pairs]


def test_docstring_examples():
    assert doctest.testmod(sampled).failed == 0


def test_the_best_meets_the_worst():
    graded = rows(eos(("a", 0.2), ("b", 1.0), ("c", 0.0), ("d", 0.6)))
    pairs, dropped = on_policy_pairs(graded)
    assert [(p["prompt"], p["chosen"], p["rejected"]) for p in pairs] == [("0?", "b", "c")]
    assert (pairs[0]["chosen_reward"], pairs[0]["rejected_reward"]) == (1.0, 0.0)
    assert dropped == {"not needed": 2}
    pairs, dropped = on_policy_pairs(graded, most=5)
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("b", "c"), ("d", "a")]
    assert dropped == {}


def test_what_is_dropped_is_counted_and_every_response_is_accounted_for():
    graded = rows(
        eos(("x", 1.0), ("x", 1.0), ("", 0.0), ("y", 1.0)),
        eos(("x", 0.0), ("y", 0.0)),
        [("x", 1.0, "eos"), ("endless", 0.0, "length"), ("y", 0.0, "stop_string")],
        [("", 0.0, "prompt_too_long")] * 2,
        eos(("alone", 1.0)),
    )
    pairs, dropped = on_policy_pairs(graded)
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("x", "y")]
    assert dropped == {"repeated": 1, "empty": 1, "all alike": 5, "cut off": 3}
    assert sum(dropped.values()) + 2 * len(pairs) == len(graded)
    labelled, dropped = labelled_responses(graded)
    assert sum(dropped.values()) + len(labelled) == len(graded)


def test_labels():
    graded = rows(eos(("a", 1.0), ("b", 0.95), ("c", 0.5), ("d", 0.0), ("e", 0.0)),
                  eos(("f", 0.0)))
    records, dropped = labelled_responses(graded)
    assert [(r["prompt"], r["completion"], r["label"]) for r in records] == [
        ("0?", "a", True), ("0?", "d", False), ("1?", "f", False)]
    assert dropped == Counter({"not needed": 2, "partly right": 1})
    assert len(labelled_responses(graded, most=2)[0]) == 5


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "qa.jsonl"
    records = [{"question": f"Who sings {i}?", "passages": ["Ana sings."], "answers": ["Ana"]}
               for i in range(2)]
    path.write_text("\n".join(map(json.dumps, [*records, {"question": "?"}])))
    return path


@pytest.mark.parametrize("kind, columns", [
    ("pairs", ["prompt", "chosen", "rejected"]),
    ("negatives", ["prompt", "completion", "label"]),
])
def test_from_the_command_line(kind, columns, tmp_path, capsys):
    """The course's own model on four of its problems, one of them broken."""
    lines = (ASSETS / "data" / "maths_dev.jsonl").read_text().splitlines()[:4]
    source, out = tmp_path / "problems.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join([*lines, '{"question": "?"}']))
    command = ["data", kind, str(source), str(out), "--adapter", str(ASSETS / "adapters" / "sft"),
               "--samples", "6", "--most", "2", "--max-new-tokens", "160"]
    assert run_command(command) == 0
    shown = capsys.readouterr().out
    for text in ("4 used, 1 bad", "Sampled: 24 responses to 4 problems. Dropped: ", "Written: "):
        assert text in shown
    data, report = load_records(out)
    assert set(columns) <= set(data.column_names) and not report.num_bad
    assert all("Assistant: <think>" in row["prompt"] for row in data)
    if kind == "pairs":
        assert all(row["chosen"].endswith("</answer>") for row in data)
        raw = [json.loads(line) for line in out.read_text().splitlines()]
        assert all(row["chosen_reward"] > row["rejected_reward"] for row in raw)
    else:
        assert set(data["label"]) == {True, False}


def test_where_nothing_is_left_the_file_stays_as_it_was(problems, tmp_path, tiny_folder, capsys):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    assert run_command(["data", "pairs", str(problems), str(out), "--model", str(tiny_folder),
                        "--samples", "2", "--max-new-tokens", "1"]) == 2
    assert "Nothing is left to write" in capsys.readouterr().err
    assert out.read_text() == "mine"
