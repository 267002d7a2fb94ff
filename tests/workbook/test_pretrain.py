"""The pre-training script: rows, weights, schedule, one real step, and the average of snapshots."""

import math

import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from workbook.world import pretrain
from workbook.world.pretrain import Phase
from workbook.world.regenerate import assets, regenerate


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(assets() / "base")


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(pretrain.model_config(tokenizer))


def test_rows_follow_each_other_without_loss(tokenizer):
    rows = pretrain.packed_rows(tokenizer, seed=3)
    first, second = next(rows), next(rows)
    assert len(first[0]) == len(first[1]) == pretrain.ROW_LENGTH + 1
    assert first[0][-1] == second[0][0], "the last id of a row is the first input of the next"
    assert set(first[1]) == {1.0, pretrain.PROMPT_WEIGHT}
    ends = [w for i, w in zip(*first, strict=True) if i == tokenizer.eos_token_id]
    assert ends and set(ends) == {1.0}, "the end of a document is learnt in full"


def test_weighted_loss_is_the_weighted_mean():
    logits, ids = torch.randn(2, 5, 11), torch.randint(0, 11, (2, 6))
    weights = torch.rand(2, 6)
    total = sum(
        -logits[b, t].log_softmax(-1)[ids[b, t + 1]] * weights[b, t + 1]
        for b in range(2)
        for t in range(5)
    )
    got = pretrain.weighted_loss(logits, ids, weights)
    torch.testing.assert_close(got, total / weights[:, 1:].sum())


def test_the_rate_warms_up_stays_and_falls():
    flat, falling = Phase(1, 1e-3, 0, falls=False), Phase(1, 1e-3, 0, falls=True)
    assert pretrain.learning_rate(flat, 0, 1000) == pytest.approx(1e-5)
    assert pretrain.learning_rate(flat, 999, 1000) == pytest.approx(1e-3)
    assert pretrain.learning_rate(falling, 400, 1000) == pytest.approx(1e-3)
    assert pretrain.learning_rate(falling, 750, 1000) == pytest.approx(5e-4)


def test_a_step_lowers_the_loss_from_that_of_a_uniform_guess(model, tokenizer):
    rows = pretrain.packed_rows(tokenizer, seed=3)
    optimizer = torch.optim.AdamW(model.parameters())
    losses = [pretrain.training_step(model, optimizer, rows, 1e-3) for _ in range(4)]
    assert losses[0] == pytest.approx(math.log(len(tokenizer)), rel=0.05)
    assert losses[-1] < losses[0] - 0.3


def test_the_average_takes_its_shares(model, tokenizer, tmp_path):
    for tokens, value in zip(pretrain.SNAPSHOTS, (1.0, 3.0), strict=True):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        pretrain.save(model, tokenizer, tmp_path / str(tokens))
    assert sum(pretrain.SNAPSHOTS.values()) == 1
    for parameter in pretrain.averaged(tmp_path).parameters():
        assert torch.all(parameter == 0.75 * 1.0 + 0.25 * 3.0)


def test_an_unknown_part_of_the_world_is_named():
    with pytest.raises(ValueError, match='no part "weights".*data, tokenizer, model'):
        regenerate("weights")
