"""Checks of lesson 02: preference keys, the Bradley-Terry loss, pooling, the preference report."""

import math

import torch

from tests.lessons.asserts import (
    CheckFailed,
    assert_close,
    assert_close_tensor,
    assert_equal,
    assert_true,
)

# ---------------------------------------------------------------- to_preference


def _record(better_id, first="It is 7.", second="It is 8.") -> dict:
    return {"prompt": "3 + 4?", "response_0": first, "response_1": second,
            "better_response_id": better_id}


def test_to_preference__picks_the_better_response(fn):
    "chosen is the response with the number of better_response_id, rejected the other one."
    for better_id, chosen, rejected in ((0, "It is 7.", "It is 8."), (1, "It is 8.", "It is 7.")):
        expected = {"prompt": "3 + 4?", "chosen": chosen, "rejected": rejected}
        assert_equal(fn(_record(better_id)), expected,
                     hint='chosen is record[f"response_{i}"] and rejected response_{1 - i}.')


def test_to_preference__the_id_may_be_text(fn):
    'A file may hold "0" and "1" as texts: "0" is truthy, and still means the first response.'
    for better_id in ("0", "1"):
        expected = ("It is 7.", "It is 8.")[int(better_id)]
        got = fn(_record(better_id))
        assert_equal(got["chosen"], expected, hint="Turn the id into a number with int() first.")


def test_to_preference__texts_stay_as_they_are(fn, rng):
    "Responses are copied with the white space around them."
    text = f" {rng.random()}\n\n  </think> "
    got = fn(_record(1, first=" no ", second=text))
    assert_equal(got, {"prompt": "3 + 4?", "chosen": text, "rejected": " no "},
                 hint="Do not strip: every token of a response is scored.")


def test_to_preference__leaves_the_record_alone(fn):
    "The record that was given is not changed, and its other fields do not come along."
    record = _record(1) | {"gold_reward_0": 1.0}
    before = dict(record)
    got = fn(record)
    assert_equal(sorted(got), ["chosen", "prompt", "rejected"], hint="Return these three fields.")
    assert_equal(record, before, hint="Build a new dict instead of changing the record.")


def test_to_preference__other_labels_are_refused(fn):
    "2, -1, True, None, 0.0 or a missing id is not a label: raise ValueError, do not guess."
    for better_id in (2, -1, True, False, None, "", "yes", "True", 0.0, [0]):
        _assert_refused(fn, _record(better_id))
    record = _record(0)
    del record["better_response_id"]
    _assert_refused(fn, record)


def _assert_refused(fn, record: dict) -> None:
    try:
        got = fn(record)
    except (ValueError, KeyError) as error:
        assert_true(len(str(error)) > 0, expected="an error that says what is wrong")
        return
    raise CheckFailed("a ValueError", repr(got),
                      "A label that is neither 0 nor 1 must not be read as one of them. Note that "
                      "True == 1 in Python; isinstance(x, bool) tells them apart.")


# ---------------------------------------------------------------- bradley_terry_loss


def _scores(seed: int, count: int = 5, scale: float = 2.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(count, generator=generator, dtype=dtype) for _ in range(3)]


def _expected_loss(chosen: float, rejected: float, margin: float = 0.0) -> float:
    """log(1 + exp(-x)) without overflow."""
    x = chosen - rejected - margin
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


def test_bradley_terry_loss__known_values(fn):
    "Equal rewards cost log 2; one ahead costs 0.3133, one behind 1.3133."
    got = fn(torch.tensor([0.5, 2.0, -1.0]), torch.tensor([0.5, 1.0, 0.0]))
    expected = torch.tensor([math.log(2), 0.313262, 1.313262])
    assert_close_tensor(got, expected, hint="-logsigmoid(chosen - rejected), one value a pair.")


def test_bradley_terry_loss__one_value_a_pair(fn, seed):
    "The loss is (N,): the training loop takes the mean over the whole optimiser step."
    chosen, rejected, _ = _scores(seed)
    expected = torch.tensor([_expected_loss(c, r) for c, r in
                             zip(chosen.tolist(), rejected.tolist(), strict=True)])
    assert_close_tensor(fn(chosen, rejected), expected, hint="No mean() and no sum() here.")


def test_bradley_terry_loss__only_the_difference_counts(fn, seed):
    "The same amount added to both rewards changes nothing."
    chosen, rejected, _ = _scores(seed)
    assert_close_tensor(fn(chosen + 3.0, rejected + 3.0), fn(chosen, rejected), tol=1e-4,
                        hint="The loss is a function of chosen - rejected.")


def test_bradley_terry_loss__margin_is_subtracted(fn, seed):
    "With a margin the chosen reward must be ahead by that much: the loss grows."
    chosen, rejected, extra = _scores(seed)
    margin = extra.abs() + 0.1
    triples = zip(chosen.tolist(), rejected.tolist(), margin.tolist(), strict=True)
    expected = torch.tensor([_expected_loss(*triple) for triple in triples])
    assert_close_tensor(fn(chosen, rejected, margin=margin), expected,
                        hint="-logsigmoid(chosen - rejected - margin).")


def test_bradley_terry_loss__large_differences(fn):
    "A difference of 200 either way gives about 0 or 200, never inf or nan."
    chosen = torch.tensor([100.0, -100.0, 3e4])
    got = fn(chosen, -chosen)
    assert_close_tensor(got, torch.tensor([0.0, 200.0, 0.0]),
                        hint="log(sigmoid(x)) is -inf for x = -200; logsigmoid(x) is not.")


def test_bradley_terry_loss__float64_is_exact(fn):
    "In float64 the loss of a wide lead is exp(-x), not 0."
    got = fn(torch.tensor([40.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64))
    expected = torch.tensor([math.log1p(math.exp(-40.0))], dtype=torch.float64)
    assert_close_tensor(got / expected, torch.ones(1, dtype=torch.float64), tol=1e-8,
                        hint="-log(sigmoid(40)) rounds to 0; logsigmoid keeps it, in float64 too.")


def test_bradley_terry_loss__bfloat16(fn):
    "bfloat16 rewards give a finite bfloat16 loss close to the float32 one."
    chosen, rejected = torch.tensor([1.0, -30.0, 0.0]), torch.tensor([0.0, 30.0, 0.0])
    got = fn(chosen.bfloat16(), rejected.bfloat16())
    assert_close_tensor(got.float(), fn(chosen, rejected), tol=1e-2)


def test_bradley_terry_loss__gradient(fn, seed):
    "The gradient is -sigmoid(rejected - chosen) on the chosen reward, its opposite on the other."
    chosen, rejected, _ = (s.requires_grad_() for s in _scores(seed, dtype=torch.float64))
    fn(chosen, rejected).sum().backward()
    expected = -torch.sigmoid((rejected - chosen).detach())
    hint = "Both rewards take part: no detach(), no .item(), no comparison."
    sides = (("chosen", chosen.grad, expected), ("rejected", rejected.grad, -expected))
    for side, grad, want in sides:
        got = torch.zeros_like(want) if grad is None else grad
        assert_close_tensor(got, want, tol=1e-8, hint=f"{hint} This is the gradient of {side}.")


def test_bradley_terry_loss__gradient_when_far_behind(fn):
    "A pair in the wrong order by 200 still pulls with gradient -1."
    chosen = torch.tensor([-100.0], requires_grad=True)
    fn(chosen, torch.tensor([100.0])).sum().backward()
    assert_close_tensor(chosen.grad, torch.tensor([-1.0]),
                        hint="A clamped or underflowing log loses its gradient here.")


def test_bradley_terry_loss__centring(fn, seed):
    "center_coefficient adds coefficient * (chosen + rejected)^2 to each pair's loss."
    chosen, rejected, _ = _scores(seed)
    extra = fn(chosen, rejected, center_coefficient=0.25) - fn(chosen, rejected)
    assert_close_tensor(extra, 0.25 * (chosen + rejected) ** 2, tol=1e-4,
                        hint="The square of the sum, a pair at a time.")


# ---------------------------------------------------------------- pool_last_token


def _masked(seed: int, lengths=(4, 1, 6), width: int = 6, side: str = "right"):
    """(token rewards (B, T), mask (B, T), the reward at each row's last token)."""
    rewards = torch.randn(len(lengths), width, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(width - length, None) if side == "left" else slice(length)] = 1
    last = [width - 1 if side == "left" else length - 1 for length in lengths]
    return rewards, mask, torch.stack([rewards[row, t] for row, t in enumerate(last)])


def test_pool_last_token__right_padding(fn, seed):
    "Rows padded on the right: the reward at each row's own last token."
    rewards, mask, expected = _masked(seed)
    assert_close_tensor(fn(rewards, mask), expected,
                        hint="rewards[:, -1] reads the padding of the shorter rows.")


def test_pool_last_token__left_padding(fn, seed):
    "Rows padded on the left: the last column, though the mask has fewer ones."
    rewards, mask, expected = _masked(seed, side="left")
    assert_close_tensor(fn(rewards, mask), expected,
                        hint="mask.sum(-1) - 1 is the last token only with padding on the right.")


def test_pool_last_token__one_token_rows(fn):
    "A response of one token, and a batch of one row."
    rewards = torch.tensor([[5.0, 6.0, 7.0]])
    cases = [([1, 0, 0], 5.0), ([0, 0, 1], 7.0), ([0, 1, 0], 6.0), ([1, 1, 1], 7.0)]
    for ones, expected in cases:
        got = fn(rewards, torch.tensor([ones]))
        assert_close_tensor(got, torch.tensor([expected]), hint="Find the last 1 of the mask.")


def test_pool_last_token__bool_mask(fn, seed):
    "The mask may be bool or numbers."
    rewards, mask, expected = _masked(seed)
    for kind in (torch.bool, torch.int32, torch.float32):
        assert_close_tensor(fn(rewards, mask.to(kind)), expected, hint=f"This mask is {kind}.")


def test_pool_last_token__padding_may_hold_anything(fn, seed):
    "nan, inf or a huge reward at padding changes nothing."
    for filler in (float("nan"), float("inf"), 1e9):
        rewards, mask, expected = _masked(seed)
        rewards = rewards.masked_fill(mask == 0, filler)
        assert_close_tensor(fn(rewards, mask), expected,
                            hint="Index the one reward; a product with the mask keeps nan.")


def test_pool_last_token__keeps_the_dtype(fn, seed):
    "bfloat16 in, bfloat16 out, and float64 to 1e-8: pooling computes nothing."
    rewards, mask, expected = _masked(seed)
    for dtype, tol in ((torch.bfloat16, 1e-6), (torch.float64, 1e-8)):
        assert_close_tensor(fn(rewards.to(dtype), mask), expected.to(dtype), tol=tol)


def test_pool_last_token__gradient(fn, seed):
    "The gradient reaches exactly one token a row."
    rewards, mask, _ = _masked(seed)
    rewards.requires_grad_()
    fn(rewards, mask).sum().backward()
    expected = torch.zeros_like(rewards)
    expected[[0, 1, 2], [3, 0, 5]] = 1.0
    got = torch.zeros_like(expected) if rewards.grad is None else rewards.grad
    assert_close_tensor(got, expected, hint="Only the last token's reward is the row's reward.")


def test_pool_last_token__empty_row(fn):
    "A row without a token has no reward: raise ValueError instead of returning a padding value."
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    try:
        got = fn(torch.ones(2, 3), mask)
    except ValueError:
        return
    raise CheckFailed("a ValueError", repr(got), "Check mask.any(-1).all() before you index.")


# ---------------------------------------------------------------- preference_report

KEYS = ("accuracy", "better_data_mean", "ties", "worse_better_than_better_count",
        "worse_data_mean", "worse_worse_than_better_count")


def test_preference_report__six_keys(fn):
    "Two means, three counts and the accuracy; counts are whole numbers."
    got = fn([2.0, 1.0, 0.5], [1.0, 3.0, 0.25])
    assert_equal(sorted(got), sorted(KEYS))
    expected = {"better_data_mean": 3.5 / 3, "worse_data_mean": 4.25 / 3, "accuracy": 2 / 3}
    for key, value in expected.items():
        assert_close(got[key], value, hint=f"This is {key}.")
    for key, count in (("worse_better_than_better_count", 1),
                       ("worse_worse_than_better_count", 2), ("ties", 0)):
        assert_equal(got[key], count, hint=f"This is {key}: a Python int.")


def test_preference_report__which_count_is_which(fn, rng):
    "worse_better_than_better_count: pairs where the worse response scored higher."
    better = [rng.uniform(0, 1) for _ in range(7)]
    worse = [b - 0.5 for b in better[:5]] + [b + 0.5 for b in better[5:]]
    got = fn(better, worse)
    assert_equal(got["worse_better_than_better_count"], 2, hint="The worse response scored higher.")
    assert_equal(got["worse_worse_than_better_count"], 5)


def test_preference_report__ties_count_apart(fn):
    "Equal scores are ties, and a tie is not in the right order."
    got = fn([1.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 5.0])
    for key, count in (("ties", 2), ("worse_worse_than_better_count", 1),
                       ("worse_better_than_better_count", 1)):
        assert_equal(got[key], count, hint=f"This is {key}; use > and <, not >=.")
    assert_close(got["accuracy"], 0.25, hint="Divide by all pairs, ties included.")


def test_preference_report__counts_add_up(fn, rng):
    "Right order, wrong order and ties together are all pairs."
    better = [rng.randint(0, 3) / 2 for _ in range(41)]
    worse = [rng.randint(0, 3) / 2 for _ in range(41)]
    got = fn(better, worse)
    total = sum(got[key] for key in KEYS if key.endswith("count")) + got["ties"]
    assert_equal(total, 41)
    right = sum(b > w for b, w in zip(better, worse, strict=True))
    assert_close(got["accuracy"], right / 41)


def test_preference_report__lists_and_tensors(fn):
    "Scores come as lists or as tensors, also in bfloat16; the means are exact."
    better, worse = [1.5, 2.5, -3.0], [0.5, 3.5, -4.0]
    expected = fn(better, worse)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        got = fn(torch.tensor(better, dtype=dtype), torch.tensor(worse, dtype=dtype))
        for key in KEYS:
            assert_equal(type(got[key]), type(expected[key]), hint=f"{key} of {dtype} scores.")
            assert_close(got[key], float(expected[key]), hint=f"{key} of {dtype} scores.")


def test_preference_report__many_bfloat16_scores(fn):
    "The mean of many bfloat16 scores is taken in a wider type."
    scores = torch.full((3000,), 1.0, dtype=torch.bfloat16)
    scores[::2] = 1.0078125
    got = fn(scores, torch.zeros(3000, dtype=torch.bfloat16))
    assert_close(got["better_data_mean"], 1.00390625, tol=1e-6,
                 hint="bfloat16 has 8 bits: convert to float64 before the mean.")


def test_preference_report__extreme_scores(fn):
    "Large scores, and differences that are small beside them."
    got = fn([1e8 + 1.0, -1e8], [1e8, -1e8 - 1.0])
    assert_equal(got["worse_worse_than_better_count"], 2,
                 hint="A tensor of a list is float32, and 1e8 + 1 is 1e8 there.")


def test_preference_report__bad_input(fn):
    "No pairs, lists of unequal length, and scores that are not finite raise ValueError."
    bad = (([], []), ([1.0, 2.0], [1.0]), ([math.nan], [0.0]), ([1.0], [math.inf]))
    for better, worse in bad:
        try:
            got = fn(better, worse)
        except ValueError:
            continue
        raise CheckFailed("a ValueError", repr(got),
                          "nan is neither above nor below: its pair would be in no count.")
