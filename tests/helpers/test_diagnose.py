"""Each silent failure by a run of seconds that has it, and healthy runs that are called healthy."""

import pytest

from helpers.diagnose import diagnose
from helpers.logprobs import tokenize_prompt_and_response
from helpers.training import SFTSettings, train_sft

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


def test_a_diagnosis_reads_as_sentences(tiny_random_model):
    model, tokenizer = tiny_random_model
    settings = SFTSettings(num_epochs=5, batch_size=4, lr=1e-9, progress=False)
    text = repr(diagnose(train_sft(model, ROWS, settings, tokenizer=tokenizer)))
    assert text.startswith("stuck loss: it went from") and "Raise lr (now 1e-09" in text
