"""The verb `train`: configurations, data of several formats, what is written and printed."""

import json
import re
from pathlib import Path

import pytest
import yaml

from helpers.data import load_records
from helpers.models import load_model, load_reward_model
from workbook.cli import run_command
from workbook.train import (
    DataSection,
    default_config,
    load_data,
    prompt_writer,
    read_config,
    train,
)
from workbook.train_table import settings_table

ROOT = Path(__file__).parents[2]
KINDS = ("sft", "reward", "grpo", "ppo")
CONFIGS = sorted((ROOT / "workbook" / "configs" / "train").glob("*.yaml"))


@pytest.fixture
def config(tmp_path, tiny_folder):
    """A function that writes data and a configuration, and returns the path of the latter."""

    def write(rows, **settings):
        data = tmp_path / "data.jsonl"
        data.write_text("\n".join(map(json.dumps, rows)))
        values = {"model": {"name": str(tiny_folder), "device": "cpu"}, "lora": {"r": 4},
                  "data": {"train": str(data)}, "out": str(tmp_path / "run"), "progress": False}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values | settings))
        return path

    return write


def test_shipped_configurations_are_valid_and_named_by_profile():
    assert [path.stem for path in CONFIGS] == [
        f"{kind}_{profile}" for kind in ("dpo", "grpo", "ppo", "reward", "sft")
        for profile in ("full", "small", "tiny")]
    for path in CONFIGS:
        chosen, settings = read_config(path.stem.split("_")[0], path.stem)
        trains_all = chosen.model.dtype == "float32"
        assert (chosen.lora or chosen.model.adapter or trains_all) and settings.lr > 0


def test_the_full_sft_configuration_carries_the_published_names_and_values():
    values = yaml.safe_load((ROOT / "workbook/configs/train/sft_full.yaml").read_text())
    assert values["model"]["name"] == "Qwen/Qwen2.5-7B-Instruct"
    assert values["lora"] == {"r": 16, "alpha": 32}
    assert (values["num_epochs"], values["batch_size"], values["lr"]) == (3, 4, 2e-4)


def test_the_full_grpo_configuration_carries_the_published_values():
    values = yaml.safe_load((ROOT / "workbook/configs/train/grpo_full.yaml").read_text())
    assert values["model"]["name"] == "Qwen/Qwen2.5-Math-1.5B" and values["lora"] is None
    _, settings = read_config("grpo", "grpo_full")
    published = {
        "max_steps": 100, "lr": 1e-5, "prompts_per_step": 256 // 8, "samples_per_prompt": 8,
        "temperature": 0.7, "max_new_tokens": 1024, "stop": "</answer>",
        "adam_beta2": 0.95, "epochs_per_step": 1, "minibatches": 1, "clip_low": 0.2,
        "clip_high": None, "baseline": "mean", "scale": "std", "beta": 0.0,
    }
    assert {name: getattr(settings, name) for name in published} == published


def test_sft_from_the_command_line(config, tmp_path, tiny_folder, capsys):
    rows = [{"prompt": "Nora has", "response": " 12 apples"}, {"prompt": "x"},
            {"prompt": "How many?", "response": " 42"}]
    path = config(rows)
    assert run_command(["train", "sft", "--config", str(path), "lora.r=2", "--epochs", "2",
                        "--batch_size", "2", "--learning_rate", "1e-2"]) == 0
    shown = capsys.readouterr().out
    for text in ("2 used, 1 bad", "data.jsonl:2", "Finished: 2 of 2 steps", "loss ", "adapter"):
        assert text in shown
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())["settings"]
    assert (settings["num_epochs"], settings["batch_size"], settings["lr"]) == (2, 2, 0.01)
    model, _ = load_model(tiny_folder, adapter=tmp_path / "run" / "adapter", device="cpu")
    assert model.peft_config["default"].r == 2


def test_a_reward_model_from_the_command_line(config, tmp_path, tiny_folder, capsys):
    row = {"prompt": "Where?", "response_0": " here", "response_1": " there",
           "better_response_id": 1}
    path = config([row] * 4, eval_every=1)
    assert run_command(["train", "reward", "--config", str(path), f"data.eval={path.parent}"
                        "/data.jsonl", "max_steps=2"]) == 0
    assert "eval_accuracy" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["method"] == "reward"
    load_reward_model(tiny_folder, adapter=tmp_path / "run" / "adapter", device="cpu")


PAIR = {"prompt": "Where?", "chosen": " here", "rejected": " there"}
OTHER_PAIR = {"prompt": "How many?", "chosen": " 42", "rejected": " no"}


@pytest.mark.parametrize("kind", ["dpo", "ipo", "kto", "orpo", "simpo"])
def test_preferences_from_the_command_line(kind, config, tmp_path, tiny_folder, capsys):
    path = config([PAIR, {"prompt": "x", "chosen": "y"}, OTHER_PAIR], eval_every=1)
    assert run_command(["train", kind, "--config", str(path), "max_steps=2",
                        f"data.eval={path.parent}/data.jsonl"]) == 0
    shown = capsys.readouterr().out
    for text in ("2 used, 1 bad", "Finished: 2 of 2 steps", "margin ", "eval_loss"):
        assert text in shown
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["method"] == kind
    load_model(tiny_folder, adapter=tmp_path / "run" / "adapter", device="cpu")


def test_kto_takes_labelled_responses(config, tmp_path, capsys):
    rows = [{"prompt": f"{i}?", "completion": f" {i}", "label": i % 2 == 0} for i in range(4)]
    assert run_command(["train", "kto", "--config", str(config(rows)), "max_steps=1"]) == 0
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text())["examples"] == 4


def test_a_setting_of_another_method_is_refused_before_a_model_is_loaded(config, capsys):
    path = config([PAIR, OTHER_PAIR], model={"name": "./nowhere"})
    assert run_command(["train", "simpo", "--config", str(path), "label_smoothing=0.1"]) == 2
    assert "label_smoothing is none of simpo" in capsys.readouterr().err


@pytest.mark.parametrize("overrides, sentence", [
    (["lrr=1"], "'lrr=1' is no setting of this training; write it like lr=..."),
    (["model.nam=x"], "write it like model.name=..."),
    (["lr=[1"], "'lr=[1' has a value that cannot be read"),
    (["center_coefficient=1"], "no setting of this training"),
    (["lr=fast"], "Setting lr must be a number, but it is 'fast'."),
    (["lora.r=many"], "lora.r: Input should be a valid integer"),
    (["data.train=nowhere.jsonl"], "There is no file"),
    (["data.prompt=nowhere"], "There is no template 'nowhere'"),
    (["model.name=./nowhere"], "There is no model folder"),
])
def test_a_wrong_setting_is_answered_in_one_sentence(overrides, sentence, config, capsys):
    path = config([{"prompt": "a", "response": "b"}])
    assert run_command(["train", "sft", "--config", str(path), *overrides]) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


@pytest.mark.parametrize("kind, text, sentence", [
    ("rloo", "", "There is no training 'rloo': take sft, reward, dpo, "),
    ("sft", "- 1", "must hold sections"),
    ("sft", "model: {name: x}", "data: Field required"),
    ("sft", "a: [", "is no YAML file"),
])
def test_a_wrong_configuration_is_answered_in_one_sentence(kind, text, sentence, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        train(kind, tmp_path / "a.yaml")
    with pytest.raises(FileNotFoundError, match="one of dpo_full, .*sft_tiny"):
        read_config("sft", "nowhere")


def test_data_for_another_training_is_refused(config):
    path = config([{"prompt": "a", "response": "b"}]).with_name("data.jsonl")
    with pytest.raises(ValueError, match="`train reward` needs prompt, chosen, rejected"):
        load_data("reward", str(path), DataSection(train=str(path)))
    with pytest.raises(ValueError, match="needs prompt, completion, label, or prompt, chosen, rej"):
        load_data("kto", str(path), DataSection(train=str(path)))


def written(tmp_path, base_model, record, prompt):
    """The one record of a file as it is trained on."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    data, _ = load_records(path)
    return prompt_writer(prompt, base_model[1])(data[0])


def test_questions_get_their_prompt(tmp_path, base_model):
    maths = {"question": "2 + 2?", "answer": "2+2=4\n#### 4"}
    row = written(tmp_path, base_model, maths, None)
    assert (row["prompt"], row["response"]) == ("Question: 2 + 2?\nAnswer:", " 2+2=4\n#### 4")
    row = written(tmp_path, base_model, maths, "chat")
    assert row["prompt"] == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert row["response"] == "2+2=4\n#### 4"
    qa = {"question": "Who sings?", "passages": ["Ana sings."], "answers": ["Ana", "she"]}
    row = written(tmp_path, base_model, qa, None)
    assert (row["prompt"], row["response"]) == (
        "[1] Ana sings.\nQuestion: Who sings?\nAnswer:", " Ana")
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    row = written(tmp_path, base_model, {"messages": chat}, "chat")
    assert row["prompt"].count("<|im_start|>") == 4 and row["response"] == "d"


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_lists_every_setting(kind, capsys):
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert settings_table(kind) in page, f"put the output of `workbook train {kind} --settings` in"
    assert run_command(["train", kind, "--settings"]) == 0
    assert capsys.readouterr().out.strip() == settings_table(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_of_the_page_are_valid(kind):
    for line in settings_table(kind).splitlines()[2:]:
        example = re.findall(r"`([^`]*)`", line)[-1]
        read_config(kind, default_config(kind), [example])


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_reinforcement_learning_from_a_grader_and_a_reward_model(kind, config, tiny_folder, capsys):
    rows = [{"question": f"{n} + {n}?", "answer": f"{n}+{n}={2 * n}\n#### {2 * n}"}
            for n in range(6)]
    path = config(rows, max_steps=2, prompts_per_step=3, samples_per_prompt=2, max_new_tokens=6,
                  reward={"grader": "r1_zero", "model": str(tiny_folder), "model_weight": 0.5})
    run = train(kind, path, ["data.prompt=r1_zero"])
    assert run.summary["status"] == "finished" and len(run.metrics) == 2
    record = run.metrics[-1]
    assert record["reward_1"] == 0 and record["reward_mean"] == pytest.approx(
        0.5 * record["reward_2"], abs=1e-5)
    assert "reward_mean" in capsys.readouterr().out
    assert (run.folder / "rollouts.jsonl").exists()
    with pytest.raises(ValueError, match="grader r1_zero needs gold answers"):
        train(kind, config([{"prompt": "Say hi."}]))
