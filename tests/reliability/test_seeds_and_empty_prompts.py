"""A completion is its own prompt's; an empty prompt is named, wherever it is given."""

import warnings

import pytest

from helpers.diagnose import _wrong_tokens
from helpers.evaluation import complete
from helpers.models import load_reward_model
from helpers.reward_models import score
from helpers.rollout import SamplingSettings, generate, numbers_of
from helpers.strategies import STRATEGIES, Step, TreeSettings, run_strategy, tree_of_thought
from helpers.streaming import stream
from helpers.training import (
    GRPOSettings,
    PreferenceSettings,
    RewardSettings,
    SFTSettings,
    train_grpo,
    train_preference,
    train_reward_model,
    train_sft,
)

SAMPLED = SamplingSettings(max_new_tokens=6, seed=3)
ONE_STEP = {"max_steps": 1, "batch_size": 4, "progress": False}


def words(completions) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


# ---------------------------------------------------------------- seeds


@pytest.mark.parametrize("refused", [(0,), (1,), (0, 2)])
def test_a_refused_prompt_moves_no_other(refused, tiny_random_model):
    model, tokenizer = tiny_random_model
    prompts = ["1 + 1 =", "2 + 2 =", "3 + 3 =", "4 + 4 ="]
    whole = words(complete(model, tokenizer, prompts, n=2, sampling=SAMPLED))
    given = ["2 " * 400 if place in refused else p for place, p in enumerate(prompts)]
    found = complete(model, tokenizer, given, n=2, sampling=SAMPLED)
    for place, completion in enumerate(found):
        if place // 2 in refused:
            assert completion.finish_reason == "prompt_too_long"
        else:
            assert completion.token_ids == whole[place]


def test_a_selection_holds_what_the_whole_list_does(tiny_random_model):
    model, tokenizer = tiny_random_model
    prompts = ["1 + 1 =", "2 + 2 =", "3 + 3 ="]
    whole = words(generate(model, tokenizer, prompts, sampling=SAMPLED))
    picked = generate(
        model, tokenizer, [prompts[2], prompts[0]], sampling=SAMPLED, first=[2, 0]
    )
    assert words(picked) == [whole[2], whole[0]]
    assert list(numbers_of(5, 3)) == [5, 6, 7]


def test_a_problem_that_does_not_fit_moves_no_vote(tiny_random_model):
    model, tokenizer = tiny_random_model
    problems = [
        {"id": i, "question": f"{i} + 3?", "answer": f"#### {i + 3}", "gold_answer": str(i + 3)}
        for i in range(3)
    ]
    options = {"sampling": SAMPLED, "form": "plain", "samples": 2, "shots": 0}
    whole = run_strategy(model, tokenizer, problems, "self_consistency", **options)
    problems[1] = problems[1] | {"question": "2 " * 400}
    other = run_strategy(model, tokenizer, problems, "self_consistency", **options)
    assert other[1]["finish_reason"] == "prompt_too_long"
    assert [row["generations"] for row in other[::2]] == [row["generations"] for row in whole[::2]]
    assert STRATEGIES["self_consistency"].votes


# ---------------------------------------------------------------- tree of thought


def test_equal_steps_end_a_solution_whichever_comes_first():
    for ends in ([True, False], [False, True]):
        steps = [[Step("x", 4, end) for end in ends]]
        found = tree_of_thought(lambda texts, s=steps: s, lambda texts: [1.0] * len(texts))
        assert (found["text"], found["final"], found["stopped"]) == ("x", True, "ended")


def test_a_solution_that_cannot_be_judged_scores_0_and_is_named(tiny_random_model):
    model, tokenizer = tiny_random_model
    question = "Ana has 3 eggs. " * 12
    problem = {"id": 0, "question": question, "answer": "#### 3", "gold_answer": "3"}
    tree = TreeSettings(depth=40, step_tokens=16, token_budget=4000)
    with pytest.warns(UserWarning, match="do not fit into the model's window when they are judged"):
        row = run_strategy(
            model,
            tokenizer,
            [problem],
            "tree_of_thought",
            sampling=SAMPLED,
            form="plain",
            tree=tree,
        )[0]
    assert row["tree"]["stopped"] in ("ended", "dead_end", "depth", "budget")


# ---------------------------------------------------------------- empty prompts


def pairs(first: dict) -> list[dict]:
    return [first, *({"prompt": f"{i} =", "chosen": f" {i}", "rejected": " no"} for i in range(3))]


def left_out(run) -> dict:
    return run.summary["examples"]["left_out"]


def quietly(train, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return left_out(train(*args, **options))


def test_all_trainings_leave_an_empty_prompt_out_and_name_it(tiny_random_model, tiny_folder):
    model, tokenizer = tiny_random_model
    named = {"empty prompt": {"count": 1, "rows": [0]}}
    rows = [{"prompt": "", "response": " b"}, *({"prompt": "a", "response": " b"},) * 3]
    assert quietly(train_sft, model, rows, SFTSettings(**ONE_STEP), tokenizer=tokenizer) == named
    empty = pairs({"prompt": "", "chosen": " b", "rejected": " c d"})
    settings = PreferenceSettings(**ONE_STEP)
    for method in ("dpo", "orpo"):
        assert named == quietly(
            train_preference, model, empty, settings, tokenizer=tokenizer, method=method
        )
    labelled = [{"prompt": p, "completion": " b", "label": True} for p in ("", "a", "c", "d")]
    kto = {"tokenizer": tokenizer, "method": "kto"}
    assert quietly(train_preference, model, labelled, settings, **kto) == named
    judge, words_of_judge = load_reward_model(tiny_folder)
    settings = RewardSettings(**ONE_STEP)
    assert named == quietly(
        train_reward_model, judge, empty, settings, tokenizer=words_of_judge
    )
    rl = GRPOSettings(max_steps=1, prompts_per_step=1, samples_per_prompt=2, max_new_tokens=2,
                      progress=False)
    found = quietly(train_grpo, model, [{"prompt": ""}, {"prompt": "a"}], rl, tokenizer=tokenizer,
                    reward_fn=lambda response, gold: dict.fromkeys(
                        ("format_reward", "answer_reward", "reward"), float(len(response))))
    assert found == named


def test_all_readers_answer_an_empty_prompt_in_one_sentence(tiny_random_model, tiny_folder):
    model, tokenizer = tiny_random_model
    judge, _ = load_reward_model(tiny_folder)
    for read in (
        lambda: generate(model, tokenizer, ["a", ""], sampling=SAMPLED),
        lambda: generate(model, tokenizer, ["a", []], sampling=SAMPLED),
        lambda: complete(model, tokenizer, ["a " * 400, ""], sampling=SAMPLED),
        lambda: score(judge, tokenizer, ["a", ""], ["b", "b"]),
    ):
        with pytest.raises(ValueError, match="^prompt 1 is empty: it needs one token or more.$"):
            read()
    with pytest.raises(ValueError, match="^prompt 0 is empty"):
        next(stream(model, tokenizer, "", sampling=SAMPLED))


# ---------------------------------------------------------------- what the diagnosis counts


@pytest.mark.parametrize("tail", ["", "<|endoftext|>"])
def test_the_diagnosis_counts_the_ends_that_are_trained(tail, tiny_random_model):
    """An end that the data hold themselves is not doubled, and so is not missed either."""
    model, tokenizer = tiny_random_model
    rows = [{"prompt": f"{i} =", "response": f" {i}{tail}"} for i in range(4)]
    run = train_sft(model, rows, SFTSettings(**ONE_STEP), tokenizer=tokenizer)
    metrics = [record | {"epoch": 1.0} for record in run.metrics]
    assert metrics[0]["tokens"] == sum(
        len(tokenizer(f" {i}", add_special_tokens=False)["input_ids"]) + 1 for i in range(4)
    )
    settings = {"append_eos": True}
    assert _wrong_tokens(metrics, run.summary, settings, rows, tokenizer) is None
