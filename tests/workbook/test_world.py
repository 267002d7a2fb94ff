"""The tiny world: nothing leaks between splits, solutions compute, data files follow from seeds."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest

from helpers.rewards import is_equivalent, sub_em, token_f1
from workbook.world import chinese, corpus, maths, qa
from workbook.world.data import SIZES, split_records
from workbook.world.splits import split_of

DATA = Path(__file__).parents[2] / "workbook" / "assets" / "data"
TRAINING = ("pretrain", "train", "dev")


def shipped(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus_problems() -> list[maths.Problem]:
    rng = random.Random("leak")
    return [maths.sample_problem(rng, "pretrain") for _ in range(8000)]


def test_no_test_problem_in_training(corpus_problems):
    test = shipped("maths_test")
    training = [
        *shipped("maths_train"),
        *shipped("maths_dev"),
        *(p.record() for p in corpus_problems),
    ]
    assert not {r["question"] for r in test} & {r["question"] for r in training}
    keys = {(r["structure"], tuple(r["numbers"])) for r in test}
    assert not keys & {(r["structure"], tuple(r["numbers"])) for r in training}


def test_every_problem_stands_in_the_split_of_its_key():
    for split in (*TRAINING, "test"):
        for problem in maths.sample_problems(300, split, seed=11):
            assert split_of(problem.key) == split


def test_test_only_structures_and_wordings_stay_in_test(corpus_problems):
    test_only = {
        p.text
        for ops in maths.bank()["banks"].values()
        for lines in ops.values()
        for p in lines
        if p.test_only
    }
    training = [*corpus_problems, *maths.sample_problems(1000, "train", 3)]
    assert not {p.structure for p in training} & maths.TEST_ONLY_STRUCTURES
    assert not {text for p in training for text in p.patterns} & test_only
    assert all(p.seen for p in training)
    unseen = [p for p in maths.sample_problems(1000, "test", 3) if not p.seen]
    assert 200 < len(unseen) < 600
    assert {p.structure for p in unseen} >= maths.TEST_ONLY_STRUCTURES


def test_the_corpus_text_holds_no_test_question():
    text = "\n".join(
        "".join(piece for piece, _ in document) for document in islice(corpus.documents(1), 3000)
    )
    for record in [*shipped("maths_test"), *shipped("qa_test")]:
        if "passages" in record:
            assert record["passages"][0] + "\n[2] " + record["passages"][1] not in text
        else:
            assert record["question"] not in text


def test_the_world_is_as_rich_as_promised():
    patterns = [
        p for ops in maths.bank()["banks"].values() for lines in ops.values() for p in lines
    ]
    assert len(patterns) >= 150
    assert 0.18 <= sum(p.test_only for p in patterns) / len(patterns) <= 0.3
    assert len(maths.STRUCTURES) >= 30 and len(maths.TEST_ONLY_STRUCTURES) == 5
    assert len(set(maths.STRUCTURES)) == len(maths.STRUCTURES)
    assert {maths.step_count(s) for s in maths.STRUCTURES} == {1, 2, 3, 4}
    seen = {p.structure for p in maths.sample_problems(3000, "test", 5)}
    assert seen == set(maths.STRUCTURES)


def test_worked_solutions_compute():
    for problem in maths.sample_problems(500, "train", 9):
        for step in problem.steps:
            left, right = step.left, step.right
            exact = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}
            assert exact[step.op] == step.value >= 1
        assert problem.record()["answer"].endswith(f"#### {problem.final}")


def test_the_running_total_links_the_steps():
    problem = next(p for p in maths.sample_problems(200, "train", 2) if len(p.steps) == 4)
    values = {step.value for step in problem.steps} | set(problem.numbers)
    assert all(step.left in values for step in problem.steps[1:])


@pytest.mark.parametrize("name", SIZES)
def test_shipped_data_follow_from_their_seed(name):
    assert split_records(name)[:40] == shipped(name)[:40]
    assert len(shipped(name)) == SIZES[name]


def test_qa_evidence_stands_in_the_passages_and_holds_the_answer():
    for record in shipped("qa_test"):
        assert len(record["passages"]) == 5
        if record["answerable"]:
            assert any(record["evidence"] in passage for passage in record["passages"])
            assert sub_em(record["evidence"], record["answers"]) == 1
        else:
            assert sub_em("This is not stated.", record["answers"]) == 1
            assert not any(sub_em(p, record["answers"]) for p in record["passages"])


def test_qa_shares_lengths_and_distractors():
    records = shipped("qa_test")
    unanswerable = sum(not r["answerable"] for r in records) / len(records)
    assert 0.15 <= unanswerable <= 0.20
    answerable = [r for r in records if r["answerable"]]
    pools = {
        name: {a for value in pool.values() for a in value}
        for name, pool in qa.world()["pools"].items()
    }
    same_relation = [
        r
        for r in answerable
        if sum(
            any(
                f" {value}" in passage
                for value in pools[qa.world()["relations"][r["relation"]]["pool"]]
            )
            for passage in r["passages"]
        )
        > 1
    ]
    assert len(same_relation) / len(answerable) > 0.5


def test_no_asked_test_fact_is_stated_in_training():
    stated = {
        tuple(f.key)
        for seed in range(300)
        for f in qa.sample_context(random.Random(seed), "pretrain", questions=8).facts
    }
    asked = set()
    for seed in range(300):
        context = qa.sample_context(random.Random(seed), "test")
        asked |= {tuple(q.fact.key) for q in context.questions if q.fact}
    assert asked and not asked & stated


def test_long_answers_raise_sub_em_and_lower_f1():
    context = qa.sample_context(random.Random(4), "train")
    question = context.questions[0]
    long, short = corpus.long_answer(question), corpus.short_answer(question)
    assert sub_em(long, question.answers) == sub_em(short, question.answers) == 1
    assert token_f1(long, question.answers) < token_f1(short, question.answers) == 1


def test_authors_hurry_on_long_problems_only():
    rng = random.Random(0)
    problems = maths.sample_problems(2000, "train", 21)
    dropped = {steps: [] for steps in (1, 2, 3, 4)}
    for problem in problems:
        written = corpus.as_written(problem, rng)
        dropped[len(problem.steps)].append(len(written.steps) < len(problem.steps))
    for steps, flags in dropped.items():
        assert abs(sum(flags) / len(flags) - corpus.HURRY[steps]) < 0.06


def test_documents_repeat_with_their_seed():
    assert list(islice(corpus.documents(5), 50)) == list(islice(corpus.documents(5), 50))
    assert list(islice(corpus.documents(5), 50)) != list(islice(corpus.documents(6), 50))


def test_chinese_samples_compute():
    records = chinese.chinese_problems()
    assert len({r["question"] for r in records}) == 50
    for record in records:
        solution, gold = record["answer"].split("\n#### ")
        last = solution.rstrip("。个支块页元岁千米枚").rpartition("=")
        assert is_equivalent(last[2], gold)
        for expression in solution.replace("。", " ").replace("，", " ").split():
            left, sign, right = expression.rpartition("=")
            if sign:
                assert right
