"""The verb `eval` on a model folder and a file, from load to artefacts."""

import json
import os
from pathlib import Path

import pytest

from workbook.evaluate import evaluate_file

GOOD = {"question": "9 + 9?", "answer": "#### 18"}


@pytest.fixture
def model_folder(tiny_random_model, tmp_path):
    model, tokenizer = tiny_random_model
    folder = tmp_path / "random-model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_lines(path: Path, *lines) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line)
                              for line in lines), encoding="utf-8")
    return path


def test_the_rest_is_evaluated_and_bad_records_are_shown(model_folder, tmp_path, capsys):
    data = write_lines(tmp_path / "mixed.jsonl", GOOD, {"question": "?"},
                       {"question": "?", "answer": "#### x"}, GOOD, '{"question": "9')
    out = tmp_path / "out"
    summary = evaluate_file(data, model=model_folder, out=out, max_new_tokens=4, progress=False)
    stored = json.loads((out / "summary.json").read_text())
    assert summary.num_examples == stored["num_examples"] == 2
    assert stored["load_report"]["bad_by_kind"] == {
        "missing_columns": 1, "wrong_gold": 1, "torn_last_line": 1}
    assert len((out / "results.jsonl").read_text().splitlines()) == 2
    settings = json.loads((out / "settings.json").read_text())
    assert settings["model"] == str(model_folder) and settings["sampling"]["temperature"] == 0
    shown = capsys.readouterr().out
    for text in ("format", "strict accuracy", "lenient accuracy", "95 % interval", "3 bad",
                 f"{data}:2: ", f"{data}:3: ", f"{data}:5: ", "results.jsonl"):
        assert text in shown


def test_qa_records_get_their_own_prompt_and_measures(model_folder, tmp_path, capsys):
    data = write_lines(tmp_path / "qa.jsonl", {
        "question": "Who sings?", "passages": ["Ana sings."], "answers": ["Ana"]})
    summary = evaluate_file(data, model=model_folder, out=tmp_path, max_new_tokens=4,
                            progress=False)
    assert summary.sub_em is not None and summary.lenient_accuracy is None
    row = json.loads((tmp_path / "results.jsonl").read_text())
    assert row["prompt"].startswith("[1] Ana sings.\nQuestion: Who sings?")
    assert "SubEM" in capsys.readouterr().out


def test_without_out_the_run_folder_is_used(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / "runs"))
    data = write_lines(tmp_path / "a.jsonl", GOOD)
    summary = evaluate_file(data, model=model_folder, max_new_tokens=2, progress=False)
    assert Path(summary.results_path) == tmp_path / "runs/eval/random-model-a/results.jsonl"


@pytest.mark.parametrize("changes, sentence", [
    ({"spacing": "none"}, "spacing"),
    ({"prompt": "no-such-template"}, "no-such-template"),
    ({"temperature": -1}, "temperature"),
    ({"limit": 0}, "limit"),
    ({"profile": "huge"}, "huge"),
    ({"data": "no-such-file.jsonl"}, "no-such-file.jsonl"),
    ({"model": "./no-such-folder"}, "no-such-folder"),
])
def test_a_wrong_argument_is_answered_in_one_sentence(tmp_path, changes, sentence):
    arguments = {"data": write_lines(tmp_path / "a.jsonl", GOOD), "model": "./no-such-folder",
                 "out": tmp_path / "out"} | changes
    with pytest.raises((ValueError, OSError), match=sentence) as caught:
        evaluate_file(**arguments)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_records_without_a_gold_answer_are_refused(tmp_path):
    data = write_lines(tmp_path / "a.jsonl", {"prompt": "Hi", "response": "Ho"})
    with pytest.raises(ValueError, match="a.jsonl has id, prompt, response"):
        evaluate_file(data, model="unused")


def real_gsm8k() -> Path:
    beside = Path(__file__).parents[2].parent / "shared" / "real" / "gsm8k_train.jsonl"
    return Path(os.environ.get("WORKBOOK_REAL_GSM8K", beside))


@pytest.mark.skipif(not real_gsm8k().is_file(),
                    reason="the real GSM8K file is absent (set WORKBOOK_REAL_GSM8K to its path)")
def test_the_real_file_goes_through(model_folder, tmp_path):
    summary = evaluate_file(real_gsm8k(), model=model_folder, limit=20, out=tmp_path / "out",
                            max_new_tokens=8, progress=False)
    assert summary.num_examples == 20 and summary.load_report["num_bad"] == 0
    assert sum(summary.failure_categories.values()) == 20
