"""Evaluation: rows, summary, artefacts, statistics, and a real model from prompt to file."""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from helpers.data import LoadReport
from helpers.evaluation import (
    best_of_n,
    bootstrap_interval,
    build_prompts,
    complete,
    evaluate,
    grade_completions,
    mean_interval,
    mean_pass_at_k,
    paired_test,
    pass_at_k,
    preference_report,
    read_jsonl,
    summarise,
    wilson_interval,
    write_json,
    write_jsonl,
)
from helpers.models import load_reward_model
from helpers.reward_functions import weighted_sum
from helpers.reward_models import from_model
from helpers.rewards import qa_reward, r1_zero_reward
from helpers.rollout import Completion, SamplingSettings

MATHS = [
    {"id": "a", "question": "9 + 9?", "answer": "#### 18", "gold_answer": "18", "seen": True},
    {"id": "b", "question": "2 + 2?", "answer": "#### 4", "gold_answer": "4", "seen": False},
]
QA = [{"id": "q", "question": "Who?", "passages": ["Ana sings.", "Ben."], "answers": ["Ana", ""]}]
RIGHT, PLAIN = "9 </think> <answer> 18 </answer>", "That makes 18 eggs."


def completion(text: str, finish_reason: str = "eos") -> Completion:
    return Completion([1], list(range(len(text.split()))), text=text, finish_reason=finish_reason)


def maths_rows(*texts: str, records=MATHS) -> list[dict]:
    return grade_completions(records, [completion(text) for text in texts], r1_zero_reward,
                             prompts=[record["question"] for record in records])


# ---------------------------------------------------------------- rows and summary


def test_a_row_holds_everything_that_the_grader_saw():
    row = maths_rows(RIGHT, PLAIN)[0]
    assert row == {
        "id": "a", "sample": 0, "prompt": "9 + 9?", "generation": RIGHT,
        "response_for_grader": "18", "gold_answer": "18",
        "metrics": {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}, "lenient": True,
        "failure_category": "correct", "token_count": 5, "finish_reason": "eos",
        "fields": {"seen": True}}


def test_samples_stay_with_their_record():
    rows = maths_rows(RIGHT, PLAIN, "4", "5")
    assert [(row["id"], row["sample"], row["gold_answer"]) for row in rows] == [
        ("a", 0, "18"), ("a", 1, "18"), ("b", 0, "4"), ("b", 1, "4")]
    assert [row["lenient"] for row in rows] == [True, True, True, False]
    assert [row["response_for_grader"] for row in rows] == ["18", None, None, None]


def test_the_summary_separates_strict_lenient_and_format():
    records = [{**MATHS[0], "id": str(i)} for i in range(4)]
    rows = maths_rows(RIGHT, PLAIN, "</think> <answer>17</answer>", "no idea", records=records)
    summary = summarise(rows)
    assert (summary.num_examples, summary.num_samples) == (4, 4)
    assert (summary.format_rate, summary.accuracy, summary.avg_reward) == (0.5, 0.25, 0.25)
    assert summary.lenient_accuracy == 0.5 and summary.sub_em is None
    assert summary.intervals["accuracy"] == wilson_interval(1, 4)
    assert summary.failure_categories == {
        "correct": 1, "right_number_unformatted": 1, "wrong_number": 1, "no_number": 1}
    assert sum(summary.failure_categories.values()) == summary.num_samples


def test_qa_rows_hold_sub_em_and_f1():
    prompts = build_prompts(QA, "{passages}\n{question}")
    assert prompts == ["[1] Ana sings.\n[2] Ben.\nWho?"]
    row, = grade_completions(QA, [completion("It was Ana.")], qa_reward, prompts=prompts)
    assert row["metrics"]["sub_em"] == 1 and row["metrics"]["f1"] == pytest.approx(0.5)
    assert row["lenient"] and row["gold_answer"] == ["Ana", ""]
    summary = summarise([row])
    assert (summary.sub_em, summary.f1) == (1, 0.5) and summary.lenient_accuracy is None
    assert summary.intervals["f1"] is None


@pytest.mark.parametrize("returned", [None, 1.0, {}, {"reward": 1.0}, [1, 1, 1], "yes",
                                      {"format_reward": 1, "answer_reward": "x", "reward": 0},
                                      {"format_reward": 1, "answer_reward": 1,
                                       "reward": float("nan")}])
def test_a_reward_function_of_ones_own_is_checked(returned):
    def my_reward(response, gold):
        return returned

    with pytest.raises(ValueError, match="my_reward must return.*format_reward"):
        grade_completions(MATHS[:1], [completion("18")], my_reward, prompts=["?"])


def test_a_reward_function_is_given_the_prompt_that_was_answered(tiny_folder):
    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    judge = from_model(model, tokenizer)
    answers, prompts = [completion(RIGHT), completion(PLAIN)], ["9 + 9?", "2 + 2?"]
    rows = grade_completions(MATHS, answers, weighted_sum((0.0, r1_zero_reward), (1.0, judge)),
                             prompts=prompts)
    for row, answer, prompt in zip(rows, answers, prompts, strict=True):
        wanted = judge(answer.text, prompt=prompt)["reward"]
        assert row["metrics"]["reward"] == pytest.approx(wanted, abs=1e-5)
        other = judge(answer.text, prompt="Another question")["reward"]
        assert wanted != pytest.approx(other, abs=1e-5)
        assert list(row["metrics"]) == ["format_reward", "answer_reward", "reward"]


def test_a_prompt_that_is_too_long_is_not_given_to_a_reward_model(tiny_folder):
    reward = from_model(*load_reward_model(tiny_folder, device="cpu"))
    row, = grade_completions(MATHS[:1], [completion("", "prompt_too_long")], reward,
                             prompts=["18 " * 4000])
    assert set(row["metrics"].values()) == {0.0}
    assert row["failure_category"] == "prompt_too_long"


def test_what_does_not_fit_together_is_said():
    with pytest.raises(ValueError, match="2 records, 2 prompts and 3 completions"):
        maths_rows("1", "2", "3")
    with pytest.raises(ValueError, match="no rows"):
        summarise([])
    with pytest.raises(ValueError, match="no gold answer.*prompt, response"):
        grade_completions([{"id": "a", "prompt": "p", "response": "r"}], [completion("1")],
                          r1_zero_reward, prompts=["p"])


# ---------------------------------------------------------------- a real model


def test_evaluate_writes_both_artefacts(tiny_random_model, tmp_path):
    model, tokenizer = tiny_random_model
    report = LoadReport(num_records=2)
    summary = evaluate(
        model, tokenizer, Dataset.from_list(MATHS), prompt="Question: {question}\n<think>",
        reward_fn=r1_zero_reward, out_dir=tmp_path / "run", load_report=report,
        sampling=SamplingSettings(temperature=1.0, max_new_tokens=6, seed=1), n=2)
    rows = [json.loads(line) for line in (tmp_path / "run/results.jsonl").open(encoding="utf-8")]
    assert [row["id"] for row in rows] == ["a", "a", "b", "b"]
    assert rows[0]["prompt"] == "Question: 9 + 9?\n<think>"
    assert all(0 < row["token_count"] <= 6 for row in rows)
    assert rows[0]["generation"] != rows[1]["generation"]
    stored = json.loads((tmp_path / "run/summary.json").read_text())
    assert stored == json.loads(json.dumps(asdict(summary)))
    assert {"num_examples", "format_rate", "accuracy", "avg_reward", "results_path"} <= set(stored)
    assert stored["load_report"]["num_records"] == 2 and stored["seconds"] > 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "results.jsonl", "summary.json"]


def test_a_prompt_that_is_too_long_is_a_failure_of_its_own(tiny_random_model):
    model, tokenizer = tiny_random_model
    records = [{**MATHS[0], "question": "18 " * 400}, MATHS[1]]
    prompts = build_prompts(records, lambda record: record["question"])
    sampling = SamplingSettings(temperature=0.0, max_new_tokens=3)
    completions = complete(model, tokenizer, prompts, sampling=sampling, n=2)
    assert [c.finish_reason == "prompt_too_long" for c in completions] == [True, True, False, False]
    rows = grade_completions(records, completions, r1_zero_reward, prompts=prompts)
    assert [row["failure_category"] for row in rows][:2] == ["prompt_too_long"] * 2
    assert rows[0]["token_count"] == 0 < rows[2]["token_count"]
    only_long = complete(model, tokenizer, prompts[:1], sampling=sampling)
    assert [c.text for c in only_long] == [""]


# ---------------------------------------------------------------- statistics


def test_wilson_against_the_published_formula():
    low, high = wilson_interval(33, 1319)        # a published format rate of 2.5 %
    z, n, p = 1.959963984540054, 1319, 33 / 1319
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (low, high) == pytest.approx((centre - half, centre + half))
    assert wilson_interval(0, 20)[0] == 0 and wilson_interval(20, 20)[1] == 1


def test_the_bootstrap_agrees_with_wilson_and_repeats():
    values = [1.0] * 200 + [0.0] * 300
    assert bootstrap_interval(values) == pytest.approx(wilson_interval(200, 500), abs=0.01)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    low, high = bootstrap_interval([0.5, 0.5])
    assert low < 0.25 and 0.75 < high
    with pytest.raises(ValueError, match="two values"):
        bootstrap_interval([1.0])


def test_samples_of_one_problem_do_not_narrow_the_interval():
    ids = [i for i in range(50) for _ in range(8)]
    values = [float(i % 2) for i in ids]          # all eight samples of a problem agree
    low, high = mean_interval(values, ids)
    assert high - low > 2 * (wilson_interval(200, 400)[1] - wilson_interval(200, 400)[0])
    assert mean_interval([1.0, 0.0], ["a", "a"]) is None
    assert mean_interval([1.0, 0.0], ["a", "b"]) == wilson_interval(1, 2)


@pytest.mark.parametrize("first, second, expected", [
    ([1, 1, 0, 0], [1, 0, 0, 0], (1, 0, 1.0)),
    ([1] * 10 + [0], [0] * 10 + [1], (10, 1, 2 * (1 + 11) / 2**11)),
    ([1, 0], [1, 0], (0, 0, 1.0)),
])
def test_paired_test_counts_only_differences(first, second, expected):
    assert tuple(paired_test(first, second)) == pytest.approx(expected)
    with pytest.raises(ValueError):
        paired_test(first, second[1:])


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(
    st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_mean_over_all_choices(case):
    n, c, k = case
    choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_over_rows():
    rows = maths_rows(RIGHT, PLAIN, "4", "5")
    assert mean_pass_at_k(rows, 1) == 0.25 and mean_pass_at_k(rows, 2) == 0.5
    assert mean_pass_at_k(rows, 1, lenient=True) == 0.75
    assert mean_pass_at_k(rows, 2, lenient=True) == 1
    for arguments in ((2, 3, 1), (2, 1, 3), (2, 1, 0)):
        with pytest.raises(ValueError, match="pass@k"):
            pass_at_k(*arguments)


# ---------------------------------------------------------------- files


def test_files_are_replaced_whole_and_hold_any_text(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    write_jsonl(path, [{"text": "价格 \u2028 \ud800"}])
    assert json.loads(path.read_text(encoding="utf-8"))["text"] == "价格 \u2028 \ud800"
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]
    assert "价格" in path.read_text(encoding="utf-8")


def test_jsonl_is_read_as_it_was_written_up_to_a_torn_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_jsonl(path) == []
    rows = [{"text": "one\u2028two\u2029three\u0085four\n"}, {"text": ""}]
    write_jsonl(path, rows)
    assert read_jsonl(path) == rows
    path.write_text(path.read_text(encoding="utf-8") + '{"text": "tor', encoding="utf-8")
    assert read_jsonl(path) == rows


# ---------------------------------------------------------------- preferences


def test_the_report_of_published_counts_gives_their_accuracy():
    better = [1.0] * 2017 + [0.0] * 891
    worse = [0.0] * 2017 + [1.0] * 891
    report = preference_report(better, worse)
    assert report["worse_worse_than_better_count"] == 2017
    assert report["worse_better_than_better_count"] == 891
    assert report["accuracy"] == pytest.approx(0.6936, abs=1e-4)


def test_scores_of_unequal_shape_are_refused_by_name():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        preference_report([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        preference_report([float("nan")], [1.0])
    with pytest.raises(ValueError, match="shapes"):
        preference_report(torch.ones(2, 2), torch.zeros(2, 2))


def test_best_of_n_is_the_mean_over_all_choices():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    for n in range(1, 7):
        chosen = [[max(some, key=lambda k: proxy[row, k]) for some in
                   itertools.combinations(range(6), n)] for row in range(3)]
        found = best_of_n(proxy, gold, n)
        for rewards, got in zip((proxy, gold), found, strict=True):
            expected = [rewards[row, best].mean() for row, best in enumerate(chosen)]
            assert got == pytest.approx(expected)


def test_best_of_n_with_one_sample_is_the_mean_and_with_all_the_best():
    proxy, gold = np.array([[0.0, 2.0, 1.0]]), np.array([[5.0, 1.0, 3.0]])
    assert best_of_n(proxy, gold, 1)[1] == pytest.approx([3.0])
    assert best_of_n(proxy, gold, 3)[1] == pytest.approx([1.0])


@pytest.mark.parametrize("n", [0, 4])
def test_best_of_n_wants_n_of_the_samples(n):
    with pytest.raises(ValueError, match=f"n = {n}"):
        best_of_n([[0.0, 1.0, 2.0]], [[0.0, 1.0, 2.0]], n)
