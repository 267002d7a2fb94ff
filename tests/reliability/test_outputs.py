"""Folders of evaluations and of a lesson's parts: never of two models or two states at once."""

import json

import pytest
import torch

from helpers.models import load_model
from workbook.evaluate import evaluate_file
from workbook.evaluate_strategies import evaluate_strategies
from workbook.profiles import load_profile


@pytest.fixture
def two_of_one_name(tiny_folder, tmp_path):
    """Two models of one shape in two folders of one last name, and a file of problems."""
    model, tokenizer = load_model(tiny_folder, device="cpu")
    for place in "ab":
        model.save_pretrained(tmp_path / place / "model")
        tokenizer.save_pretrained(tmp_path / place / "model")
        with torch.no_grad():
            model.lm_head.weight.add_(torch.randn_like(model.lm_head.weight))
    (tmp_path / "p.jsonl").write_text('{"question": "2 + 2?", "answer": "#### 4"}\n' * 2)
    return [tmp_path / place / "model" for place in "ab"], tmp_path / "p.jsonl"


def test_evaluations_of_two_models_of_one_name(two_of_one_name, tmp_path, monkeypatch):
    (first, second), data = two_of_one_name
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / "runs"))
    options = {"max_new_tokens": 2, "progress": False}
    evaluate_file(data, model=first, **options)
    evaluate_file(data, model=first, **options)  # the same: replaced
    with pytest.warns(UserWarning, match="held other results .model, weights differ"):
        evaluate_file(data, model=second, **options)
    folder = tmp_path / "runs" / "eval"
    for name, model in (("model-p-before-1", first), ("model-p", second)):
        assert json.loads((folder / name / "settings.json").read_text())["model"] == str(model)
        assert {path.name for path in (folder / name).iterdir()} == {
            "results.jsonl", "summary.json", "settings.json"}
    assert len(list(folder.iterdir())) == 2


def test_strategies_of_other_weights_are_not_left_beside_new_ones(two_of_one_name, tmp_path):
    (first, second), data = two_of_one_name
    options = {"data": data, "examples": data, "out": tmp_path / "out", "max_new_tokens": 2,
               "progress": False}
    evaluate_strategies("zero_shot", model=first, **options)
    with pytest.warns(UserWarning, match="weights"):
        evaluate_strategies("zero_shot_cot", model=second, **options)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"zero_shot_cot_results.jsonl", "comparison_results.json"}
    assert (tmp_path / "out-before-1" / "zero_shot_results.jsonl").exists()


def test_the_folder_of_a_training_is_left_alone(two_of_one_name, tmp_path):
    (model, _), data = two_of_one_name
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text('{"start": "3 tensors, 0"}')
    with pytest.raises(ValueError, match="is the folder of a training: give another one"):
        evaluate_file(data, model=model, out=tmp_path / "run", max_new_tokens=2, progress=False)
    assert (tmp_path / "run" / "settings.json").read_text() == '{"start": "3 tensors, 0"}'


def test_a_recorded_part_is_of_the_values_that_it_reads(tmp_path, monkeypatch):
    from workbook import recorded

    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path))
    profile = load_profile("tiny").model_copy(update={"depth": "full"})
    monkeypatch.setattr(recorded, "active_profile", lambda: profile)
    monkeypatch.setattr(recorded, "current_lesson", lambda: "03")

    calls = []

    def part(sizes):
        return recorded.recorded_or_live(
            "sweep", lambda: calls.append(1) or [size + len(calls) for size in sizes])

    assert part((1, 2)) == [2, 3]
    assert part((1, 2)) == [2, 3]  # kept: a log that grows is no setting
    assert part((1, 3)) == [3, 5]
