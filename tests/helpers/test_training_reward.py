"""helpers.training.train_reward_model and helpers.reward_models: losses, metrics, scores."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from helpers.losses import bradley_terry_loss
from helpers.models import LoraSettings, load_reward_model
from helpers.rewards import from_model, pool_last_token, score
from helpers.training import RewardSettings, train_reward_model

PAIRS = [
    {"prompt": "Nora has 12 apples", "chosen": " and buys 30 more.", "rejected": " no"},
    {"prompt": "How many?", "chosen": " 42", "rejected": " I do not know how many apples."},
    {"prompt": "Where?", "chosen": " at the school of Nelgarton.", "rejected": " Where?"},
    {"prompt": "x", "chosen": " <answer> 42 </answer>", "rejected": " 18,50"},
    {"prompt": "Ein Preis", "chosen": " von 18,50", "rejected": " von 12 apples and 30"},
    {"prompt": "a b c d", "chosen": " e", "rejected": " apples"},
]


def settings(**changes):
    return RewardSettings(**{"lr": 1e-2, "progress": False, "batch_size": 6} | changes)


def train(folder, data=PAIRS, *, lora=None, functions=None, eval_data=None, out_dir=None,
          **changes):
    model, tokenizer = load_reward_model(folder, lora=lora, device="cpu")
    return train_reward_model(model, data, settings(**changes), tokenizer=tokenizer,
                              functions=functions or {}, eval_data=eval_data, out_dir=out_dir)


def scores(model, tokenizer, name):
    return score(model, tokenizer, [row["prompt"] for row in PAIRS], [row[name] for row in PAIRS])


def test_pool_takes_the_last_token_on_either_side():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]])
    pooled = pool_last_token(rewards, mask)
    assert pooled.tolist() == [2.0, 6.0, 7.0]
    pooled.sum().backward()
    assert rewards.grad.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match="Row 1 "):
        pool_last_token(rewards[:2], torch.tensor([[1, 1, 0], [0, 0, 0]]).bool())


def test_scores_do_not_depend_on_the_batch_or_on_training_mode(tiny_folder):
    model, tokenizer = load_reward_model(tiny_folder, lora=LoraSettings(dropout=0.5), device="cpu")
    model.train()
    together = scores(model, tokenizer, "chosen")
    assert model.training
    alone = [score(model, tokenizer, [row["prompt"]], [row["chosen"]])[0] for row in PAIRS]
    assert together == pytest.approx(alone, abs=1e-5)
    assert score(model, tokenizer, [], []) == []


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("longest", [8, 40, 768])
def test_responses_to_one_prompt_are_scored_as_if_alone(
    tiny_folder, monkeypatch, batch_size, longest
):
    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    texts = [(row["prompt"], other["chosen"]) for other in PAIRS for row in PAIRS[:3]]
    alone = [score(model, tokenizer, [prompt], [text])[0] for prompt, text in texts]
    monkeypatch.setattr("helpers.reward_models.LONGEST_SHARED", longest)
    together = score(model, tokenizer, *zip(*texts, strict=True), batch_size=batch_size)
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_prompt_is_read_once_for_its_responses(tiny_folder):
    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    prompt, responses = "Nora has 12 apples", [" 42", " 30", " no", " apples"]
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    score(model, tokenizer, [prompt] * 4, responses)
    (shape,) = seen
    tokens = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in responses]
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert tuple(shape) == (1, start + sum(tokens))


def test_scores_are_those_of_the_hubs_own_classifier(tiny_folder, tmp_path):
    run = train(tiny_folder, out_dir=tmp_path)
    _, tokenizer = load_reward_model(tiny_folder, device="cpu")
    hub = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    for row, expected in zip(PAIRS, scores(run.model, tokenizer, "chosen"), strict=True):
        texts = [tokenizer(row[name])["input_ids"] for name in ("prompt", "chosen")]
        ids = torch.tensor([[*texts[0], *texts[1], tokenizer.eos_token_id]])
        hub.config.pad_token_id = None  # it pools before the first padding token, which is EOS too
        assert hub(ids).logits.item() == pytest.approx(expected, abs=1e-5)


def test_a_reward_function_made_of_a_model(tiny_folder):
    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    model.double()  # a row alone and in a batch takes other kernels, which round otherwise
    reward = from_model(model, tokenizer)
    found = reward(" 42", None, prompt="How many?")
    in_a_batch = scores(model, tokenizer, "chosen")[1]
    assert found["reward"] == found["answer_reward"] == pytest.approx(in_a_batch, rel=1e-9)
    assert found["format_reward"] == 0
    with pytest.raises(ValueError, match="as many, but they are 1 and 2"):
        score(model, tokenizer, ["a"], ["b", "c"])
    with pytest.raises(ValueError, match="response 0 have .* tokens, but the model reads at most"):
        score(model, tokenizer, ["a " * 300], ["b"])


@pytest.mark.parametrize("size", [1, 4])
def test_metrics_and_loss_are_of_the_whole_step(size, tiny_folder):
    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    chosen = torch.tensor(scores(model, tokenizer, "chosen"))
    rejected = torch.tensor(scores(model, tokenizer, "rejected"))
    data = [row | {"margin": 0.5 * i} for i, row in enumerate(PAIRS)]
    margin = torch.tensor([row["margin"] for row in data])
    found = train(tiny_folder, data, micro_batch_size=size, center_coefficient=0.1).metrics[0]
    losses = bradley_terry_loss(chosen, rejected, margin, 0.1)
    rewards = torch.cat([chosen, rejected])
    assert found["loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert found["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
    assert found["margin"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)
    assert found["reward_mean"] == pytest.approx(rewards.mean().item(), abs=1e-5)
    assert found["reward_std"] == pytest.approx(rewards.std(correction=0).item(), abs=1e-4)
    assert found["pairs"] == 6


def test_training_tells_the_pairs_apart_and_is_read_back(tiny_folder, tmp_path):
    run = train(tiny_folder, lora=LoraSettings(rank=4), num_epochs=25, eval_data=PAIRS[:3],
                eval_every=5, out_dir=tmp_path, micro_batch_size=2)
    assert run.metrics[-1]["accuracy"] == 1.0 and run.metrics[-1]["loss"] < 0.3
    assert [row["step"] for row in run.metrics if "eval_accuracy" in row] == [5, 10, 15, 20, 25]
    assert run.metrics[-1]["eval_accuracy"] == 1.0
    again, tokenizer = load_reward_model(tiny_folder, adapter=tmp_path / "adapter", device="cpu")
    assert scores(again, tokenizer, "chosen") == scores(run.model, tokenizer, "chosen")
    better = zip(*(scores(again, tokenizer, name) for name in ("chosen", "rejected")), strict=True)
    assert all(a > b for a, b in better)


def test_losses_are_those_of_trl(tiny_folder, tmp_path):
    from trl import RewardConfig, RewardTrainer

    ours = train(tiny_folder, max_steps=4, schedule="constant", warmup_ratio=0,
                 center_coefficient=0.01)
    model, tokenizer = load_reward_model(tiny_folder, device="cpu")
    classifier = model.classifier
    # Their pooling looks for the first padding token, so padding must not be EOS.
    tokenizer.pad_token = "<|im_start|>"
    classifier.config.pad_token_id = tokenizer.pad_token_id
    ids = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
    rows = [
        {f"{name}_ids": [*ids(row["prompt"]), *ids(row[name]), tokenizer.eos_token_id]
         for name in ("chosen", "rejected")} for row in PAIRS
    ]
    trainer = RewardTrainer(
        classifier, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        args=RewardConfig(
            tmp_path, per_device_train_batch_size=6, max_steps=4, learning_rate=1e-2,
            lr_scheduler_type="constant", logging_steps=1, report_to="none", use_cpu=True,
            disable_tqdm=True, save_strategy="no", bf16=False, gradient_checkpointing=False,
            center_rewards_coefficient=0.01, disable_dropout=True,
        ),
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert [row["loss"] for row in ours.metrics] == pytest.approx(theirs, abs=1e-4)


def test_your_loss_and_pooling_are_used(tiny_folder):
    seen = {}

    def my_loss(chosen_rewards, rejected_rewards):  # without margin and centring
        seen["loss"] = chosen_rewards.shape
        return -torch.nn.functional.logsigmoid(chosen_rewards - rejected_rewards)

    def my_pool(token_rewards, attention_mask):
        seen["pool"] = token_rewards.shape
        return pool_last_token(token_rewards, attention_mask)

    mine = train(tiny_folder, functions={"bradley_terry_loss": my_loss, "pool_last_token": my_pool})
    assert seen["loss"] == (6,) and seen["pool"][0] == 12
    assert mine.metrics[0]["loss"] == train(tiny_folder).metrics[0]["loss"]
    whose = {name: entry["whose"] for name, entry in mine.summary["functions"].items()}
    assert whose == {"bradley_terry_loss": "yours", "pool_last_token": "yours"}
    with pytest.raises(ValueError, match=r"one loss a pair, \(6,\), but returned \(\)"):
        train(tiny_folder, functions={"bradley_terry_loss": lambda a, b: (b - a).mean()})


def test_bad_pairs_are_named_and_counted(tiny_folder):
    data = [*PAIRS, {"prompt": "a", "chosen": "", "rejected": "b"},
            {"prompt": "a", "chosen": "b " * 300, "rejected": "c"}]
    with pytest.warns(UserWarning) as caught:
        run = train(tiny_folder, data)
    assert [str(warning.message).split(":")[0] for warning in caught] == [
        "1 of 8 examples left out"] * 2
    assert run.summary["examples"]["used"] == 6
    assert list(run.summary["examples"]["left_out"]) == ["empty response", "longer than 256 tokens"]
