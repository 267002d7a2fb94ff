"""Each silent failure by a run of seconds that has it, and healthy runs that are called healthy."""

import copy

import pytest
import torch

from helpers.diagnose import diagnose
from helpers.evaluation import grade_completions
from helpers.logprobs import sequence_log_probs, tokenize_prompt_and_response
from helpers.losses import dpo_loss
from helpers.rollout import SamplingSettings, generate
from helpers.training import PreferenceSettings, SFTSettings, train_preference, train_sft

ROWS = [
    {"prompt": f"Nora has {n} apples and buys {n + 1} more. How many?", "response": f" {2 * n + 1}"}
    for n in range(16)
]


def prompt_in_the_loss(*args, **kwargs):
    batch = tokenize_prompt_and_response(*args, **kwargs)
    return batch | {"response_mask": batch["attention_mask"]}


def eos_masked(prompts, responses, tokenizer, **kwargs):
    batch = tokenize_prompt_and_response(prompts, responses, tokenizer, **kwargs)
    mask = batch["response_mask"] & (batch["labels"] != tokenizer.eos_token_id)
    return batch | {"response_mask": mask}


def names(model_and_tokenizer, *, held_out=None, out_dir=None, functions=None, **changes):
    model, tokenizer = model_and_tokenizer
    wanted = {"num_epochs": 5, "batch_size": 4, "lr": 1e-2, "progress": False} | changes
    run = train_sft(model, ROWS, SFTSettings(**wanted), tokenizer=tokenizer, out_dir=out_dir,
                    functions=functions or {})
    found = diagnose(out_dir or run, data=ROWS, held_out=held_out, tokenizer=tokenizer)
    return [symptom.name for symptom in found]


@pytest.mark.parametrize(
    ("reproducer", "symptom"),
    [
        ({"lr": 1e-9}, "stuck loss"),
        ({"functions": {"tokenize_prompt_and_response": prompt_in_the_loss}}, "prompt in the loss"),
        ({"functions": {"tokenize_prompt_and_response": eos_masked}}, "EOS masked"),
        ({"held_out": [{"prompt": "nora has 3 apples, and buys 4 more. How many?"}]},
         "leak between splits"),
    ],
)
def test_a_failure_is_named_and_no_other(reproducer, symptom, tiny_random_model):
    assert names(tiny_random_model, **reproducer) == [symptom]


@pytest.mark.filterwarnings("ignore:.* of 16 examples")
def test_truncation_is_named(tiny_random_model):
    _, tokenizer = tiny_random_model
    shortest = min(len(tokenizer(r["prompt"] + r["response"])["input_ids"]) for r in ROWS)
    assert names(tiny_random_model, max_length=shortest) == ["everything truncated"]


@pytest.mark.parametrize("changes", [{}, {"batch_size": 8, "lr": 3e-3}, {"batching": "packed"},
                                     {"append_eos": False}, {"max_steps": 10}])
def test_healthy_runs_are_called_healthy(changes, tiny_random_model):
    held_out = [{"prompt": "Nora has 99 apples. How many?"}]
    assert names(tiny_random_model, held_out=held_out, **changes) == []


def test_a_folder_is_read_like_the_run(tiny_random_model, tmp_path):
    assert names(tiny_random_model, lr=1e-9, out_dir=tmp_path / "run") == ["stuck loss"]
    with pytest.raises(ValueError, match="no folder of a run"):
        diagnose(tmp_path)


def test_a_torn_last_line_is_left_out_and_a_run_without_a_step_is_said(tiny_random_model, tmp_path):
    assert names(tiny_random_model, lr=1e-9, out_dir=tmp_path) == ["stuck loss"]
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 99, "lo')
    assert [symptom.name for symptom in diagnose(tmp_path)] == ["stuck loss"]
    file.write_text("")
    with pytest.raises(ValueError, match="has logged no step"):
        diagnose(tmp_path)


def test_a_diagnosis_reads_as_sentences(tiny_random_model):
    model, tokenizer = tiny_random_model
    settings = SFTSettings(num_epochs=5, batch_size=4, lr=1e-9, progress=False)
    text = repr(diagnose(train_sft(model, ROWS, settings, tokenizer=tokenizer)))
    assert text.startswith("stuck loss: it went from") and "Raise lr (now 1e-09" in text


# --- preferences ----------------------------------------------------------------------------------

PAIRS = [row | {"chosen": row["response"], "rejected": f" {2 * n}"} for n, row in enumerate(ROWS)]
UNEQUAL = [row | {"rejected": row["rejected"] + " eggs"} for row in PAIRS]


def without_gradient(*four, beta):
    return dpo_loss(*(logps.detach() for logps in four), beta=beta)[0] + 0 * four[0], *four[:2]


def without_reference(chosen, rejected, ref_chosen, ref_rejected, beta):
    return dpo_loss(chosen, rejected, 0 * ref_chosen, 0 * ref_rejected, beta=beta)


def of_the_moving_policy(policy, ref, beta):
    """The implicit reward where the reference is another name of the policy: always 0."""
    return beta * (policy - policy.detach())


def against_itself(chosen, rejected, ref_chosen, ref_rejected, beta):
    return dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=beta)


def dropping_out(log_probs, mask):
    """As dropout in the policy alone: the reference has no gradient to drop."""
    kept = torch.rand(log_probs.shape) > 0.2 * log_probs.requires_grad
    return sequence_log_probs(log_probs * kept, mask)


ALIASED = {"dpo_loss": against_itself, "implicit_rewards": of_the_moving_policy}


def preference_names(model_and_tokenizer, *, data=PAIRS, out_dir=None, method="dpo",
                     functions=None, **changes):
    model, tokenizer = model_and_tokenizer
    wanted = {"num_epochs": 4, "batch_size": 4, "lr": 1e-2, "progress": False} | changes
    run = train_preference(model, data, PreferenceSettings(**wanted), tokenizer=tokenizer,
                           method=method, out_dir=out_dir, functions=functions or {})
    found = diagnose(out_dir or run, data=data, tokenizer=tokenizer, held_out=[])
    return [symptom.name for symptom in found]


@pytest.mark.parametrize(
    ("reproducer", "symptom"),
    [
        ({"lr": 1e-9}, "stuck at ln 2"),
        ({"method": "robust", "label_smoothing": 0.1, "lr": 1e-9}, "stuck at ln 2"),
        ({"method": "ipo", "lr": 1e-9}, "stuck loss"),
        ({"functions": {"dpo_loss": without_gradient}}, "stuck at ln 2"),
        ({"functions": {"dpo_loss": without_reference}, "data": UNEQUAL}, "wrong reference"),
        ({"functions": {"sequence_log_probs": dropping_out}}, "wrong reference"),
        ({"functions": ALIASED}, "wrong reference"),
    ],
)
def test_a_failure_of_preferences_is_named_and_no_other(reproducer, symptom, tiny_random_model):
    assert preference_names(tiny_random_model, **reproducer) == [symptom]


def test_what_a_wrong_reference_looks_like_is_said(tiny_random_model):
    model, tokenizer = tiny_random_model
    settings = PreferenceSettings(num_epochs=3, batch_size=4, lr=1e-2, progress=False)
    for functions, says in (({"dpo_loss": without_reference}, "(of equal models: 0.693)"),
                            (ALIASED, "The reference follows the policy")):
        run = train_preference(copy.deepcopy(model), UNEQUAL, settings, tokenizer=tokenizer,
                               functions=functions)
        assert says in repr(diagnose(run))


@pytest.mark.parametrize("changes", [
    {}, {"label_smoothing": 0.1}, {"nll_coefficient": 1.0, "max_steps": 10},
    {"method": "ipo", "beta": 0.3}, {"method": "hinge"}, {"method": "simpo"}, {"method": "orpo"},
    {"method": "robust", "label_smoothing": 0.2}, {"method": "kto", "lr": 2e-2},
])
def test_healthy_preferences_are_called_healthy(changes, tiny_random_model):
    assert preference_names(tiny_random_model, **changes) == []


def test_a_falling_chosen_log_prob_is_no_symptom(tiny_random_model):
    """Margin up while both fall is what DPO does after SFT; it is no failure by itself."""
    model, tokenizer = tiny_random_model
    twins = [row | {"chosen": " 42 apples", "rejected": " 42 eggs"} for row in ROWS]
    train_sft(model, [row | {"response": row["chosen"]} for row in twins],
              SFTSettings(num_epochs=6, batch_size=4, lr=1e-2, progress=False), tokenizer=tokenizer)
    settings = PreferenceSettings(num_epochs=4, batch_size=4, lr=3e-3, progress=False)
    run = train_preference(model, twins, settings, tokenizer=tokenizer)
    assert run.metrics[-1]["margin"] > 0.3
    assert diagnose(run, data=twins, tokenizer=tokenizer) == []


def test_a_continued_start_is_healthy_and_a_folder_is_read(tiny_random_model, tmp_path):
    model, tokenizer = tiny_random_model
    train_sft(model, ROWS, SFTSettings(num_epochs=2, lr=1e-2, progress=False), tokenizer=tokenizer)
    assert preference_names((model, tokenizer), out_dir=tmp_path / "run") == []


def graded(model, tokenizer):
    """One greedy response a row; right is an answer that starts with the row's number."""
    records = [{"id": n, "gold_answer": row["response"]} for n, row in enumerate(ROWS)]
    prompts = [row["prompt"] for row in ROWS]
    completions = generate(model, tokenizer, prompts,
                           sampling=SamplingSettings(temperature=0, max_new_tokens=12))

    def reward(text, gold):
        right = float(text.split()[:1] == gold.split())
        return {"format_reward": right, "answer_reward": right, "reward": right}

    return grade_completions(records, completions, reward, prompts=prompts)


def after_preferences(model_and_tokenizer, pairs):
    """Symptoms of DPO on pairs, from a model that has learnt to answer in one word."""
    model, tokenizer = model_and_tokenizer
    torch.manual_seed(0)
    train_sft(model, ROWS, SFTSettings(num_epochs=8, batch_size=4, lr=1e-2, progress=False),
              tokenizer=tokenizer)
    before = graded(model, tokenizer)
    run = train_preference(model, pairs, PreferenceSettings(num_epochs=6, batch_size=4, lr=5e-3,
                                                            progress=False), tokenizer=tokenizer)
    return diagnose(run, data=pairs, before=before, after=graded(model, tokenizer),
                    tokenizer=tokenizer)


def test_length_gaming_is_named(tiny_random_model):
    """All that is better in these pairs is that there is more of it."""
    pairs = [row | {"chosen": row["response"] + " I hope this helps" * 2,
                    "rejected": row["response"]} for row in ROWS]
    found = after_preferences(tiny_random_model, pairs)
    assert [symptom.name for symptom in found] == ["length gaming"]
    assert "In 16 of 16 pairs the chosen response is longer." in str(found[0])


def test_preferences_of_like_length_are_called_healthy(tiny_random_model):
    assert after_preferences(tiny_random_model, PAIRS) == []


def rows_of(texts, rewards):
    return [{"generation": text, "metrics": {"reward": reward}}
            for text, reward in zip(texts, rewards, strict=True)]


def test_longer_and_better_is_no_gaming(tiny_random_model):
    model, tokenizer = tiny_random_model
    run = train_sft(model, ROWS, SFTSettings(max_steps=2, progress=False), tokenizer=tokenizer)
    short, long = rows_of(["42"] * 20, [0.0] * 20), ["I think that it is 42"] * 20
    assert diagnose(run, before=short, after=rows_of(long, [1.0] * 15 + [0.0] * 5)) == []
    assert len(diagnose(run, before=short, after=rows_of(long, [0.0] * 20))) == 1
    with pytest.raises(ValueError, match="before and after, or neither"):
        diagnose(run, before=short)
