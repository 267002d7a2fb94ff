"""The losses on preferences: golden vectors, finite differences, properties, limits, and TRL."""

import doctest
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from helpers import preference_losses
from helpers.logprobs import (
    response_log_probs,
    sequence_log_probs,
    tokenize_prompt_and_response,
)
from helpers.losses import (
    dpo_loss,
    hinge_loss,
    implicit_rewards,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, f64(expected), atol=atol, rtol=0)


# policy chosen, policy rejected, reference chosen, reference rejected; margins 2.5 and -2
PAIRS = f64([-10, -20]), f64([-12, -17]), f64([-11, -19.5]), f64([-10.5, -18.5])
LENGTHS = torch.tensor([5, 10]), torch.tensor([4, 9])
REFERENCE_FREE = {"simpo": simpo_loss, "orpo": orpo_loss}
WITH_REFERENCE = {
    "dpo": dpo_loss,
    "smoothed": lambda *four, beta=0.1: dpo_loss(*four, beta=beta, label_smoothing=0.1),
    "robust": lambda *four, beta=0.1: robust_dpo_loss(*four, beta=beta, label_smoothing=0.1),
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "ipo_average": lambda *four, beta=0.1: ipo_loss(*four, beta, *LENGTHS),
}
GOLDEN = {
    "dpo": [0.575939, 0.798139],
    "smoothed": [0.600939, 0.778139],
    "robust": [0.544689, 0.823139],
    "hinge": [0.75, 1.2],
    "ipo": [6.25, 49.0],
    "ipo_average": [19.580625, 27.213611],
    "simpo": [0.313262, 1.480405],
    "orpo": [2.028875, 2.076009],
}


def losses_of(name, four=PAIRS):
    if name in WITH_REFERENCE:
        return WITH_REFERENCE[name](*four)
    return REFERENCE_FREE[name](*four[:2], *LENGTHS)


def test_docstring_examples():
    assert doctest.testmod(preference_losses).failed == 0
    assert doctest.testmod(preference_losses).attempted > 15


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_per_example(name):
    near(losses_of(name)[0], GOLDEN[name])


def test_golden_kto():
    desirable, undesirable = torch.tensor([True, True]), torch.tensor([False, False])
    near(kto_loss(PAIRS[0], PAIRS[2], desirable, 0.05)[0], [0.476268, 0.513747])
    near(kto_loss(PAIRS[1], PAIRS[3], undesirable, 0.05)[0], [0.461327, 0.536187])
    mixed = kto_loss(PAIRS[0], PAIRS[2], ~desirable, 0.05, 0.1, 3.0, 2.0)[0]
    near(mixed, [2 * (1 - 0.476268), 2 * (1 - 0.513747)], atol=3e-6)


@pytest.mark.parametrize("name", GOLDEN)
def test_gradients_are_those_of_finite_differences(name):
    inputs = [x.clone().requires_grad_() for x in PAIRS]
    assert torch.autograd.gradcheck(lambda *four: losses_of(name, four)[0], inputs)


def test_kto_gradient_is_that_of_finite_differences_and_none_reaches_the_reference_point():
    labels = torch.tensor([True, False])
    policy, ref = PAIRS[0].clone().requires_grad_(), PAIRS[2]
    assert torch.autograd.gradcheck(lambda x: kto_loss(x, ref, labels, 0.3, 0.2, 1.5)[0], [policy])
    point = kto_reference_point(policy + 3, ref)
    assert point.item() == pytest.approx(3.25) and not point.requires_grad


@pytest.mark.parametrize("name", GOLDEN)
def test_more_of_the_chosen_and_less_of_the_rejected_lower_the_loss(name):
    four = [x.clone().requires_grad_() for x in PAIRS]
    losses, chosen, rejected = losses_of(name, four)
    assert losses.shape == chosen.shape == rejected.shape == (2,)
    assert not chosen.requires_grad and not rejected.requires_grad
    losses.sum().backward()
    assert (four[0].grad < 0).all() and (four[1].grad > 0).all()


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_rewards_are_the_implicit_ones(name):
    _, chosen, rejected = losses_of(name)
    near(chosen, [0.1, -0.05])
    near(rejected, [-0.15, 0.15])
    assert torch.equal(implicit_rewards(PAIRS[0], PAIRS[2], beta=0.1), chosen)


LOGPS = st.lists(st.floats(-400, -0.5), min_size=4, max_size=4)


@given(LOGPS, st.floats(-50, 50))
def test_a_shift_of_policy_and_reference_changes_nothing(values, shift):
    four = [f64([value]) for value in values]
    moved = [x + shift for x in four]
    for name in ("dpo", "smoothed", "robust", "hinge", "ipo"):
        # ... of both sides alike: only the difference of the log-ratios counts.
        torch.testing.assert_close(losses_of(name, moved)[0], losses_of(name, four)[0])


@given(st.floats(0.0, 0.49), LOGPS)
def test_robust_losses_of_flipped_labels_are_in_the_mean_the_true_ones(rate, values):
    chosen, rejected, ref_chosen, ref_rejected = (f64([value]) for value in values)
    right = robust_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.1, rate)[0]
    flipped = robust_dpo_loss(rejected, chosen, ref_rejected, ref_chosen, 0.1, rate)[0]
    expected = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.1)[0]
    torch.testing.assert_close((1 - rate) * right + rate * flipped, expected)


@given(st.floats(1e-7, 0.5 - 1e-7), st.floats(0.1, 0.9))
def test_orpo_is_the_formula_in_probabilities(low, high):
    p, q = f64([high]), f64([low])
    ones = torch.ones(1)
    odds_ratio = (p / (1 - p)) / (q / (1 - q))
    expected = -p.log() - 0.3 * logsigmoid(odds_ratio.log())
    torch.testing.assert_close(orpo_loss(p.log(), q.log(), ones, ones, 0.3)[0], expected)


def test_refused():
    with pytest.raises(ValueError, match="below 0.5, not 0.5"):
        robust_dpo_loss(*PAIRS, label_smoothing=0.5)
    with pytest.raises(ValueError, match="or neither"):
        ipo_loss(*PAIRS, chosen_lengths=LENGTHS[0])


def test_kto_reference_point_is_never_negative():
    assert kto_reference_point(f64([-5, -1]), f64([-1, -1])).item() == 0
    assert kto_reference_point(f64([-1, -1]), f64([-5, -1])).item() == 2


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_inputs_are_computed_in_float32(name, dtype):
    four = [x.to(dtype) for x in PAIRS]
    losses = losses_of(name, four)[0]
    assert losses.dtype == torch.float32
    expected = losses_of(name, [x.double() for x in four])[0]
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("average", [-1e-9, -1e-6, -1e-3, -0.5, -0.6931, -0.6932, -5.0, -60.0])
def test_orpo_is_finite_and_right_wherever_the_probability_lies(average):
    """log(1 - p) is -inf in bfloat16 from p = 0.998 on, and 0 where p is small."""
    chosen = torch.tensor([average * 4], requires_grad=True)
    rejected, four = torch.tensor([-8.0]), torch.tensor([4])
    loss = orpo_loss(chosen, rejected, four, four, 0.5)[0]
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(chosen.grad).all()
    p, q = math.exp(average), math.exp(-2.0)
    log_odds = average - math.log(-math.expm1(average)) - math.log(q / (1 - q))
    expected = -average - 0.5 * logsigmoid(f64(log_odds)).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5), p


def test_certain_responses_have_finite_odds_and_gradients():
    for dtype in (torch.float32, torch.bfloat16):
        logps = torch.zeros(2, dtype=dtype, requires_grad=True)
        losses, *_ = orpo_loss(logps, torch.tensor([-3.0, 0.0]), *LENGTHS)
        losses.sum().backward()
        assert torch.isfinite(losses).all() and torch.isfinite(logps.grad).all()


@pytest.mark.parametrize("name", GOLDEN)
def test_far_away_values_stay_finite(name):
    far = [torch.tensor([-5e3, -1.0]), torch.tensor([-1.0, -5e3]), torch.tensor([-1.0, -5e3]),
           torch.tensor([-5e3, -1.0])]
    four = [x.requires_grad_() for x in far]
    losses = losses_of(name, four)[0]
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert all(x.grad is None or torch.isfinite(x.grad).all() for x in four)


def test_kto_far_right_still_has_a_loss():
    zero, labels = torch.zeros(2), torch.tensor([True, False])
    losses, _ = kto_loss(torch.tensor([30.0, -30.0]), zero, labels, 0.0, beta=1.0)
    assert (losses > 0).all() and (losses < 1e-12).all()


def test_sequence_log_probs_sums_the_response_alone():
    log_probs = torch.tensor([[math.nan, -1.0, -2.0], [-3.0, math.inf, -9.0]], requires_grad=True)
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    sums = sequence_log_probs(log_probs, mask)
    assert sums.tolist() == [-3.0, -3.0]
    sums.sum().backward()
    assert torch.equal(log_probs.grad, mask.float())
    assert sequence_log_probs(log_probs, torch.zeros(2, 3)).tolist() == [0.0, 0.0]


# --- against TRL, from texts to gradients ---------------------------------------------------------

TEXTS = {
    "prompt": ["Nora has 12 apples.", "Where did Luben study?"],
    "chosen": [" She has 42 now.", " Nelgarton"],
    "rejected": [" 30", " the school of apples and more apples"],
}
OPTIONS = {
    "per_device_train_batch_size": 1, "report_to": "none", "use_cpu": True, "bf16": False,
    "gradient_checkpointing": False, "disable_tqdm": True, "beta": 0.3,
}


@pytest.fixture
def policies(tiny_random_model):
    """(policy, reference, tokenizer): two models that differ a little."""
    import copy

    policy, tokenizer = tiny_random_model
    reference = copy.deepcopy(policy)
    torch.manual_seed(1)
    for parameter in policy.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.01)
    # TRL finds the response by its padding token, which must not be EOS.
    tokenizer.pad_token = "<|im_start|>"
    yield policy, reference, tokenizer
    tokenizer.pad_token = tokenizer.eos_token


def sums(model, tokenizer, side, prompts=None):
    """(log-prob sums, response lengths) of one side of TEXTS."""
    batch = tokenize_prompt_and_response(
        prompts or TEXTS["prompt"], TEXTS[side], tokenizer, append_eos=True
    )
    log_probs = response_log_probs(model, **batch)["log_probs"]
    return sequence_log_probs(log_probs, batch["response_mask"]), batch["response_mask"].sum(-1)


def gradients(model, loss) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))


def assert_same_per_example(model, ours, trainer):
    """TRL's loss and gradients of each example alone are those of ours."""
    batches = list(trainer.get_train_dataloader())
    order = list(trainer._get_train_sampler())
    assert len(batches) == len(ours) == len(order)
    for place, batch in zip(order, batches, strict=True):
        theirs = trainer.compute_loss(model, batch)
        torch.testing.assert_close(ours[place], theirs.squeeze(), atol=1e-5, rtol=1e-5)
        expected = gradients(model, theirs.squeeze())
        for mine, other in zip(gradients(model, ours[place]), expected, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("loss_type", "loss", "smoothing"),
    [("sigmoid", dpo_loss, 0.0), ("hinge", hinge_loss, 0.0), ("ipo", ipo_loss, 0.0),
     ("robust", robust_dpo_loss, 0.2)],
)
def test_dpo_variants_equal_trl_per_example(loss_type, loss, smoothing, policies, tmp_path):
    from trl import DPOConfig, DPOTrainer

    policy, reference, tokenizer = policies
    args = DPOConfig(tmp_path, loss_type=loss_type, label_smoothing=smoothing,
                     disable_dropout=True, **OPTIONS)
    trainer = DPOTrainer(policy, ref_model=reference, args=args, processing_class=tokenizer,
                         train_dataset=Dataset.from_dict(TEXTS))
    sides = [sums(model, tokenizer, side) for model in (policy, reference)
             for side in ("chosen", "rejected")]
    options = {"beta": 0.3}
    if loss_type == "ipo":
        options |= {"chosen_lengths": sides[0][1], "rejected_lengths": sides[1][1]}
    if smoothing:
        options["label_smoothing"] = smoothing
    ours, *_ = loss(*[side[0] for side in sides], **options)
    assert_same_per_example(policy, ours, trainer)


def test_kto_equals_trl_with_its_rotated_reference_point(policies, tmp_path):
    from trl import KTOConfig, KTOTrainer

    policy, reference, tokenizer = policies
    data = {
        "prompt": TEXTS["prompt"],
        "completion": [TEXTS["chosen"][0], TEXTS["rejected"][1]],
        "label": [True, False],
    }
    args = KTOConfig(tmp_path, desirable_weight=1.5, undesirable_weight=0.5,
                     disable_dropout=True, **(OPTIONS | {"per_device_train_batch_size": 2}))
    trainer = KTOTrainer(policy, ref_model=reference, args=args, processing_class=tokenizer,
                         train_dataset=Dataset.from_dict(data))
    theirs = trainer.compute_loss(policy, next(iter(trainer.get_train_dataloader())))

    def logps(model, completions):
        batch = tokenize_prompt_and_response(data["prompt"], completions, tokenizer,
                                             append_eos=True)
        log_probs = response_log_probs(model, **batch)["log_probs"]
        return sequence_log_probs(log_probs, batch["response_mask"])

    both = policy, reference
    point = kto_reference_point(*[logps(m, data["completion"][::-1]) for m in both])
    losses, _ = kto_loss(*[logps(m, data["completion"]) for m in both],
                         torch.tensor(data["label"]), point, 0.3, 1.5, 0.5)
    torch.testing.assert_close(losses.mean(), theirs.squeeze(), atol=1e-5, rtol=1e-5)
    pairs = zip(gradients(policy, losses.mean()), gradients(policy, theirs.squeeze()), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def logps_of_averages():
    """(sums with gradient, lengths) of two sides, whose averages TRL's functions take."""
    torch.manual_seed(0)
    rows = [(-3 * torch.rand(4) * size - 0.01 * size).requires_grad_() for size in (5, 9)]
    return rows, [torch.full((4,), 5), torch.full((4,), 9)]


def test_simpo_equals_trl_per_example():
    from trl.experimental.cpo import CPOTrainer

    (chosen, rejected), lengths = logps_of_averages()
    ours = simpo_loss(chosen, rejected, *lengths, beta=2.0, gamma=0.7)
    fake = SimpleNamespace(alpha=0.0, beta=2.0, simpo_gamma=0.7, label_smoothing=0.0,
                           loss_type="simpo", accelerator=SimpleNamespace(device="cpu"))
    theirs = CPOTrainer.cpo_loss(fake, chosen / 5, rejected / 9)
    assert_same_functions(ours, theirs, chosen, rejected)


def test_orpo_equals_trl_per_example():
    from trl.experimental.orpo import ORPOTrainer

    (chosen, rejected), lengths = logps_of_averages()
    ours = orpo_loss(chosen, rejected, *lengths, lam=0.25)
    fake = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    odds, *rewards = ORPOTrainer.odds_ratio_loss(fake, chosen / 5, rejected / 9)[:3]
    # Theirs is negative and subtracted from the loss of the chosen texts, prompt included.
    assert_same_functions(ours, (-chosen / 5 - odds, *rewards), chosen, rejected)


def assert_same_functions(ours, theirs, *inputs):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.detach() if not mine.requires_grad else other)
    for place in range(len(ours[0])):
        mine, other = (torch.autograd.grad(found[0][place], inputs, retain_graph=True)
                       for found in (ours, theirs))
        torch.testing.assert_close(mine, other)
