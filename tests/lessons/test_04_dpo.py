"""Checks of lesson 04: sequence log-probs, implicit rewards, DPO, on-policy pairs, the family."""

import math

import torch

from tests.lessons.asserts import (
    CheckFailed,
    assert_close,
    assert_close_tensor,
    assert_equal,
    assert_true,
)

# ---------------------------------------------------------------- sequence_log_probs


def _rows(seed: int, dtype=torch.float32):
    """(log-probs (3, 6), response mask): responses of 1, 3 and 4 tokens, padding behind two."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = -3 * torch.rand(3, 6, generator=generator, dtype=dtype) - 0.1
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, (start, stop) in enumerate(((2, 3), (1, 4), (2, 6))):
        mask[row, start:stop] = True
    return log_probs, mask


def test_sequence_log_probs__worked_case(fn):
    "Two response tokens of -1 and -3: -4. The prompt's -9 does not count."
    got = fn(torch.tensor([[-9.0, -1.0, -3.0]]), torch.tensor([[False, True, True]]))
    assert_close_tensor(got, torch.tensor([-4.0]), hint="Sum where the mask is True, row by row.")


def test_sequence_log_probs__a_sum_a_row(fn, seed):
    "The sum over the response tokens of each row, also where rows have unequal lengths."
    log_probs, mask = _rows(seed, torch.float64)
    pairs = zip(log_probs.tolist(), mask.tolist(), strict=True)
    expected = [math.fsum(x for x, kept in zip(*pair, strict=True) if kept) for pair in pairs]
    assert_close_tensor(fn(log_probs, mask), torch.tensor(expected, dtype=torch.float64), tol=1e-8,
                        call="fn(log_probs, response_mask), responses of 1, 3 and 4 tokens",
                        hint="log p(y | x) is a sum over the tokens: no mean, no product.")


def test_sequence_log_probs__outside_may_hold_anything(fn, seed):
    "-inf and nan at the prompt and at padding change nothing."
    log_probs, mask = _rows(seed)
    for filler in (-math.inf, math.nan, -1e9):
        filled = log_probs.masked_fill(~mask, filler)
        assert_close_tensor(fn(filled, mask), (log_probs * mask).sum(-1),
                            call=f"fn(log_probs, response_mask) with {filler} outside the response",
                            hint="0 * inf is nan: select with masked_fill or where.")


def test_sequence_log_probs__mask_of_numbers(fn, seed):
    "The mask may be bool, 0 and 1, or 0.0 and 1.0."
    log_probs, mask = _rows(seed)
    for kind in (torch.bool, torch.long, torch.float32):
        assert_close_tensor(fn(log_probs, mask.to(kind)), (log_probs * mask).sum(-1),
                            hint=f"This mask is {kind}; response_mask.bool() makes it a bool.")


def test_sequence_log_probs__empty_response(fn):
    "A row without a response token gives 0."
    mask = torch.tensor([[False, False], [False, True]])
    got = fn(torch.tensor([[-1.0, -2.0], [-1.0, -2.0]]), mask)
    assert_close_tensor(got, torch.tensor([0.0, -2.0]), hint="The sum of nothing is 0.")


def test_sequence_log_probs__gradient(fn, seed):
    "The gradient is 1 at each response token and 0 elsewhere."
    log_probs, mask = _rows(seed)
    log_probs.requires_grad_()
    total = fn(log_probs, mask).sum()
    got = torch.zeros(3, 6)
    if total.requires_grad:
        got = torch.autograd.grad(total, log_probs)[0]
    assert_close_tensor(got, mask.float(), call="gradient by log_probs",
                        hint="No detach() and no .item(): the policy learns through this sum.")


# ---------------------------------------------------------------- implicit_rewards


def _logps(seed: int, count: int = 4, dtype=torch.float64) -> list[torch.Tensor]:
    """Four tensors (N,): policy and reference log-probs of chosen and rejected responses.

    The log-ratios stand apart, so that no two mistakes agree on them.
    """
    generator = torch.Generator().manual_seed(seed)
    ref = [-8 - 30 * torch.rand(count, generator=generator, dtype=dtype) for _ in range(2)]
    moves = [4 * torch.randn(count, generator=generator, dtype=dtype) for _ in range(2)]
    return [ref[0] + moves[0] + 0.7, ref[1] + moves[1] - 0.4, *ref]


def _lengths(seed: int, count: int = 4) -> list[torch.Tensor]:
    """Whole numbers, as a mask's sums are; `1 / lengths` is float32, hence a tolerance of 1e-6."""
    generator = torch.Generator().manual_seed(seed + 1)
    return [torch.randint(3, 9, (count,), generator=generator) + plus for plus in (0, 2)]


def test_implicit_rewards__worked_case(fn):
    "-10 under the policy and -12 under the reference, with beta 0.5: a reward of 1."
    got = fn(torch.tensor([-10.0, -12.0]), torch.tensor([-12.0, -10.0]), beta=0.5)
    assert_close_tensor(got, torch.tensor([1.0, -1.0]),
                        hint="Positive where the policy likes the response more than before.")


def test_implicit_rewards__zero_at_the_start(fn, seed):
    "Where policy and reference agree, every reward is 0."
    logps = _logps(seed)[0]
    assert_close_tensor(fn(logps, logps.clone(), 0.3), torch.zeros_like(logps),
                        hint="Subtract the reference: raw log-probs rank by length and fluency.")


def test_implicit_rewards__formula(fn, seed):
    "beta times the difference of the log-probs, for several beta."
    policy, _, ref, _ = _logps(seed)
    for beta in (0.05, 1.0, 2.5):
        pairs = zip(policy.tolist(), ref.tolist(), strict=True)
        expected = torch.tensor([beta * (a - b) for a, b in pairs], dtype=torch.float64)
        assert_close_tensor(fn(policy, ref, beta), expected, tol=1e-8,
                            hint="beta * (policy - reference): a log of a quotient is a difference "
                                 "of logs, and beta belongs to both.")


def test_implicit_rewards__default_beta(fn):
    "Without beta it is 0.1."
    got = fn(torch.tensor([-1.0]), torch.tensor([-11.0]))
    assert_close_tensor(got, torch.tensor([1.0]), hint="beta: float = 0.1 in the signature.")


def test_implicit_rewards__half_precision(fn):
    "Half precision is widened to float32 before the subtraction; float64 stays float64."
    policy, ref = torch.tensor([-300.0, -21.5, -7.25]), torch.tensor([-298.0, -22.0, -9.0])
    for dtype in (torch.bfloat16, torch.float16):
        assert_close_tensor(fn(policy.to(dtype), ref.to(dtype), 0.3), 0.3 * (policy - ref),
                            hint="Sums near -300 lie 2 apart in bfloat16: .float() on both first.")


def test_implicit_rewards__gradient(fn, seed):
    "The gradient by the policy is beta: the loss learns through these rewards."
    policy, _, ref, _ = _logps(seed)
    policy.requires_grad_()
    total = fn(policy, ref, 0.3).sum()
    got = torch.zeros_like(policy)
    if total.requires_grad:
        got = torch.autograd.grad(total, policy)[0]
    assert_close_tensor(got, torch.full_like(policy, 0.3), tol=1e-8,
                        call="gradient by policy_logps, beta=0.3",
                        hint="Nothing is detached here; dpo_loss detaches what it reports.")


# ---------------------------------------------------------------- losses on pairs: shared


def _softplus(x: float) -> float:
    """log(1 + exp(x)) without overflow; -log sigmoid(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _expected(four, value) -> torch.Tensor:
    """value(h), (N,): h is the difference of the log-ratios of a pair."""
    pairs = zip(*(x.tolist() for x in four), strict=True)
    return torch.tensor([value((a - c) - (b - d)) for a, b, c, d in pairs], dtype=torch.float64)


def _three(result) -> tuple:
    if not isinstance(result, tuple) or len(result) != 3:
        raise CheckFailed("three tensors (losses, chosen_rewards, rejected_rewards)",
                          f"a {type(result).__name__}", "return losses, chosen, rejected")
    return result


def _losses(fn, *args, **kwargs) -> torch.Tensor:
    return _three(fn(*args, **kwargs))[0]


def _policy_gradients(fn, four, *args, **kwargs) -> list[torch.Tensor]:
    """Gradients of the sum of the losses by both policy log-probs; zeros where there is none."""
    policy = [x.clone().requires_grad_() for x in four[:2]]
    total = _losses(fn, *policy, *four[2:], *args, **kwargs).sum()
    if not total.requires_grad:
        return [torch.zeros_like(x) for x in policy]
    found = torch.autograd.grad(total, policy, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(policy, found, strict=True)]


def _assert_gradients(fn, four, expected, *args, hint: str, **kwargs) -> None:
    """expected: the gradient by the chosen log-probs; by the rejected ones it is the opposite."""
    chosen, rejected = _policy_gradients(fn, four, *args, **kwargs)
    assert_close_tensor(chosen, expected, tol=1e-8, hint=hint,
                        call="gradient of losses.sum() by policy_chosen_logps")
    assert_close_tensor(rejected, -expected, tol=1e-8, hint=hint,
                        call="gradient of losses.sum() by policy_rejected_logps")


def _assert_reported(result, chosen, rejected, hint: str, tol: float = 1e-8) -> None:
    """The rewards of a result have these values and no gradient."""
    _, *rewards = _three(result)
    for name, got, expected in zip(("chosen", "rejected"), rewards, (chosen, rejected),
                                   strict=True):
        assert_close_tensor(got, expected, tol=tol, hint=hint, call=f"{name}_rewards")
        assert_true(not got.requires_grad, expected=f"{name}_rewards without gradient",
                    got="it requires a gradient", hint="Rewards are for reports: .detach() them.")


def _implicit(four, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    return beta * (four[0] - four[2]), beta * (four[1] - four[3])


def _far(dtype=torch.float32) -> list[torch.Tensor]:
    """Pairs that are 3000 apart in log-probs, either way."""
    zero = torch.zeros(2, dtype=dtype)
    return [torch.tensor([1500.0, -1500.0], dtype=dtype),
            torch.tensor([-1500.0, 1500.0], dtype=dtype), zero, zero.clone()]


# ---------------------------------------------------------------- dpo_loss


def test_dpo_loss__log_two_at_the_start(fn, seed):
    "Where policy and reference agree, every loss is log 2 and every reward 0."
    chosen, rejected, _, _ = _logps(seed)
    losses, *rewards = _three(fn(chosen, rejected, chosen.clone(), rejected.clone()))
    assert_close_tensor(losses, torch.full_like(chosen, math.log(2)), tol=1e-8,
                        call="losses where policy and reference agree",
                        hint="Each response has a log-ratio to its own reference log-prob.")
    for got in rewards:
        assert_close_tensor(got, torch.zeros_like(chosen), call="rewards at the start")


def test_dpo_loss__formula(fn, seed):
    "-log sigmoid of the difference of the implicit rewards, one value a pair."
    four = _logps(seed)
    for beta in (0.1, 0.5):
        assert_close_tensor(_losses(fn, *four, beta=beta),
                            _expected(four, lambda h, b=beta: _softplus(-b * h)), tol=1e-8,
                            call=f"losses of 4 pairs, beta={beta}",
                            hint="beta * ((pi_chosen - ref_chosen) - (pi_rejected - ref_rejected)) "
                                 "inside logsigmoid; no mean.")


def test_dpo_loss__default_beta(fn, seed):
    "Without beta it is 0.1, without label_smoothing 0."
    four = _logps(seed)
    assert_close_tensor(_losses(fn, *four), _losses(fn, *four, beta=0.1, label_smoothing=0.0))


def test_dpo_loss__rewards(fn, seed):
    "The rewards are the implicit ones, of chosen and rejected in this order, without gradient."
    four = [x.requires_grad_(place < 2) for place, x in enumerate(_logps(seed))]
    with torch.no_grad():
        chosen, rejected = _implicit(four, 0.3)
    _assert_reported(fn(*four, beta=0.3), chosen, rejected, "implicit_rewards of this side.")


def test_dpo_loss__gradient(fn, seed):
    "The gradient by the chosen log-prob is -beta * sigmoid(-margin), by the rejected its opposite."
    four = _logps(seed)
    expected = _expected(four, lambda h: -0.3 / (1 + math.exp(0.3 * h)))
    _assert_gradients(fn, four, expected, beta=0.3,
                      hint="Both sides of the policy take part: no detach() before the loss.")


def test_dpo_loss__label_smoothing(fn, seed):
    "label_smoothing e weighs the pair as labelled by 1 - e and the flipped pair by e."
    four = _logps(seed)
    for rate in (0.1, 0.3):
        def value(h, e=rate):
            return (1 - e) * _softplus(-0.2 * h) + e * _softplus(0.2 * h)

        assert_close_tensor(_losses(fn, *four, beta=0.2, label_smoothing=rate),
                            _expected(four, value), tol=1e-8,
                            call=f"losses of 4 pairs, beta=0.2, label_smoothing={rate}",
                            hint="-(1 - e) * logsigmoid(margin) - e * logsigmoid(-margin).")


def test_dpo_loss__far_pairs(fn):
    "Pairs that are 300 apart have losses of 0 and 300, and the wrong one still pulls."
    four = _far()
    assert_close_tensor(_losses(fn, *four), torch.tensor([0.0, 300.0]), call="losses, far pairs",
                        hint="log(sigmoid(-300)) is -inf; logsigmoid(-300) is -300.")
    got = _policy_gradients(fn, four)[0]
    assert_close_tensor(got, torch.tensor([0.0, -0.1]), call="gradient by the chosen, far pairs",
                        hint="Use logsigmoid: an underflowing log loses its gradient.")


# ---------------------------------------------------------------- on_policy_pairs


def _graded(*groups) -> list[dict]:
    """Rows of results.jsonl: each group holds one prompt's (text, reward[, finish_reason])."""
    return [
        {"id": place, "prompt": f"{place} + 1?", "generation": text,
         "finish_reason": reason[0] if reason else "eos", "metrics": {"reward": reward}}
        for place, group in enumerate(groups) for text, reward, *reason in group
    ]


def _pairs(result) -> list[dict]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise CheckFailed("two values: the pairs and what was dropped",
                          f"a {type(result).__name__}", "return pairs, dropped")
    return result[0]


def _texts(result) -> list[tuple[str, str, str]]:
    return [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in _pairs(result)]


def _dropped(result) -> dict:
    _pairs(result)
    return {reason: count for reason, count in dict(result[1]).items() if count}


def test_on_policy_pairs__the_best_meets_the_worst(fn, rng):
    "One pair a prompt: its best response is chosen, its worst rejected."
    middle = [round(rng.uniform(0.2, 0.8), 3) for _ in range(2)]
    rows = _graded([("a", middle[0]), (" b\n", 1.0), ("c", 0.0), ("d", middle[1])],
                   [("e", 0.1), ("f", 0.9)])
    expected = [("0 + 1?", " b\n", "c"), ("1 + 1?", "f", "e")]
    assert_equal(_texts(fn(rows)), expected, call="(prompt, chosen, rejected) of the pairs",
                 hint="Rank the responses of each prompt by reward; texts stay as they were.")


def test_on_policy_pairs__fields(fn):
    "A pair holds prompt, chosen, rejected and both rewards."
    got = _pairs(fn(_graded([("a", 0.25), ("b", 1.0)])))
    expected = {"prompt": "0 + 1?", "chosen": "b", "rejected": "a",
                "chosen_reward": 1.0, "rejected_reward": 0.25}
    assert_equal(got, [expected], hint='Rewards stand in row["metrics"]["reward"].')


def test_on_policy_pairs__most(fn):
    "Up to `most` pairs: best with worst, second best with second worst, each response once."
    rows = _graded([("a", 0.2), ("b", 1.0), ("c", 0.0), ("d", 0.6), ("e", 0.4), ("f", 0.8)])
    ranked = [("b", "c"), ("f", "a"), ("d", "e")]
    for most in (1, 2, 3, 9):
        got = [pair[1:] for pair in _texts(fn(rows, most=most))]
        assert_equal(got, ranked[:most], call=f"(chosen, rejected) with most={most}",
                     hint="Go inwards from both ends of the ranking, and stop in the middle.")


def test_on_policy_pairs__no_ties(fn, rng):
    "A pair needs a better and a worse response: equal rewards teach nothing."
    reward = rng.choice([0.0, 0.5, 1.0])
    rows = _graded([("a", reward), ("b", reward), ("c", reward)],
                   [("d", 1.0), ("e", 1.0), ("f", 1.0), ("g", 0.0)])
    got = [(p["chosen_reward"], p["rejected_reward"]) for p in _pairs(fn(rows, most=2))]
    assert_equal(got, [(1.0, 0.0)], call="(chosen_reward, rejected_reward) of the pairs, most=2",
                 hint="Stop where the better one's reward is not above the worse one's.")


def test_on_policy_pairs__cleaned(fn):
    "Cut-off responses, empty ones and copies take no part."
    rows = _graded(
        [("endless", 0.0, "length"), ("a", 1.0), ("b", 0.5, "stop_string")],
        [("  \n", 0.0), ("c", 1.0), ("d", 0.5)],
        [("e", 1.0), ("e", 1.0), ("f", 0.0), ("f", 0.0)],
    )
    expected = [("0 + 1?", "a", "b"), ("1 + 1?", "c", "d"), ("2 + 1?", "e", "f")]
    assert_equal(_texts(fn(rows, most=2)), expected, call="(prompt, chosen, rejected), most=2",
                 hint='Only "eos" and "stop_string" are ends that the policy chose; a text of '
                      "white space is empty; keep one of equal texts.")


def test_on_policy_pairs__prompts_apart(fn):
    "Responses are compared within a prompt; the same text under another prompt is no copy."
    rows = _graded([("a", 1.0), ("b", 1.0)], [("a", 0.0), ("b", 0.0)], [("a", 0.0), ("b", 1.0)])
    assert_equal(_texts(fn(rows)), [("2 + 1?", "b", "a")],
                 call="(prompt, chosen, rejected) of three prompts",
                 hint='Group the rows by row["id"] first.')


def test_on_policy_pairs__dropped_is_counted(fn):
    "Every response is in a pair or counted under why it is not."
    rows = _graded(
        [("a", 1.0), ("a", 1.0), ("", 0.0), ("b", 0.5), ("c", 0.0)],
        [("d", 0.0), ("e", 0.0)],
        [("f", 1.0, "length"), ("g", 1.0), ("h", 0.0)],
        [("alone", 1.0)],
    )
    expected = {"repeated": 1, "empty": 1, "not needed": 1, "all alike": 3, "cut off": 1}
    assert_equal(_dropped(fn(rows)), expected, call="dropped",
                 hint='Responses are counted, not prompts; one that is alone is "all alike".')


# ---------------------------------------------------------------- simpo_loss


def _simpo_value(seed: int, beta: float, gamma: float) -> torch.Tensor:
    four, lengths = _logps(seed), _lengths(seed)
    rows = zip(*(x.tolist() for x in (*four[:2], *lengths)), strict=True)
    values = [_softplus(-beta * (a / m - b / n) + gamma) for a, b, m, n in rows]
    return torch.tensor(values, dtype=torch.float64)


def test_simpo_loss__worked_case(fn):
    "-1 and -2 a token, beta 2: two apart, one more than the target of 1."
    lengths = torch.tensor([4]), torch.tensor([3])
    losses, *rewards = _three(fn(torch.tensor([-4.0]), torch.tensor([-6.0]), *lengths))
    assert_close_tensor(losses, torch.tensor([0.3132617]), call="losses",
                        hint="-logsigmoid(2 * (-1) - 2 * (-2) - 1) = -logsigmoid(1).")
    for got, expected in zip(rewards, (-2.0, -4.0), strict=True):
        assert_close_tensor(got, torch.tensor([expected]), call="rewards",
                            hint="beta times the mean log-prob of a token.")


def test_simpo_loss__formula(fn, seed):
    "Each response is divided by its own length; gamma is subtracted as it stands."
    four, lengths = _logps(seed), _lengths(seed)
    for beta, gamma in ((2.0, 1.0), (10.0, 0.3), (2.5, 0.0)):
        got = _losses(fn, *four[:2], *lengths, beta=beta, gamma=gamma)
        assert_close_tensor(got, _simpo_value(seed, beta, gamma), tol=1e-6,
                            call=f"losses of 4 pairs, beta={beta}, gamma={gamma}",
                            hint="-logsigmoid(r_chosen - r_rejected - gamma), with "
                                 "r = beta * logps / lengths; gamma is not multiplied by beta.")


def test_simpo_loss__defaults(fn, seed):
    "Without beta and gamma they are 2 and 1."
    four, lengths = _logps(seed), _lengths(seed)
    assert_close_tensor(_losses(fn, *four[:2], *lengths), _simpo_value(seed, 2.0, 1.0), tol=1e-6,
                        call="losses with the default beta and gamma")


def test_simpo_loss__rewards(fn, seed):
    "The rewards are beta * logps / lengths, without gamma and without gradient."
    four, lengths = _logps(seed), _lengths(seed)
    expected = [1.5 * x / n for x, n in zip(four[:2], lengths, strict=True)]
    policy = [x.requires_grad_() for x in four[:2]]
    _assert_reported(fn(*policy, *lengths, beta=1.5, gamma=0.5), *(x.detach() for x in expected),
                     "The target margin belongs to the loss alone.", tol=1e-6)


def test_simpo_loss__length_is_no_advantage(fn):
    "A response twice as long with the same mean costs the same."
    chosen, rejected = torch.tensor([-4.0, -8.0]), torch.tensor([-6.0, -12.0])
    losses = _losses(fn, chosen, rejected, torch.tensor([4, 8]), torch.tensor([3, 6]))
    assert_close(losses[1], losses[0].item(), hint="Divide each sum by its length.",
                 call="losses of two pairs with equal means and unequal lengths")


def test_simpo_loss__gradient(fn, seed):
    "The gradient by a log-prob is -+ beta / length * sigmoid(gamma - margin)."
    four, (m, n) = _logps(seed), _lengths(seed)
    pull = 1 - torch.exp(-_simpo_value(seed, 1.5, 0.5))
    chosen, rejected = _policy_gradients(fn, [*four[:2], m, n], beta=1.5, gamma=0.5)
    for got, expected in ((chosen, -1.5 * pull / m), (rejected, 1.5 * pull / n)):
        assert_close_tensor(got, expected, tol=1e-6, call="gradient by the log-probs",
                            hint="Both sides take part: nothing is detached before the loss.")


def test_simpo_loss__far_pairs_and_empty_responses(fn):
    "Far pairs stay finite, and a response without tokens has reward 0."
    ones = torch.ones(2, dtype=torch.long)
    got = _losses(fn, torch.tensor([-400.0, -1.0]), torch.tensor([-1.0, -400.0]), ones, ones)
    assert_close_tensor(got, torch.tensor([799.0, 0.0]), call="losses of far pairs",
                        hint="logsigmoid, not log(sigmoid).")
    empty = fn(torch.zeros(1), torch.tensor([-2.0]), torch.tensor([0]), torch.tensor([2]))
    assert_close_tensor(_three(empty)[0], torch.tensor([0.3132617]), call="losses, chosen empty",
                        hint="0 / 0 is nan: divide by lengths.clamp(min=1).")


# ---------------------------------------------------------------- ipo_loss


def test_ipo_loss__worked_case(fn):
    "With beta 0.1 the target is 5: a margin of 5 costs nothing, of 0 or 10 it costs 25."
    zero = torch.zeros(3)
    losses = _losses(fn, torch.tensor([0.0, 5.0, 10.0]), zero, zero, zero)
    assert_close_tensor(losses, torch.tensor([25.0, 0.0, 25.0]), call="losses",
                        hint="(h - 1 / (2 * beta))^2: too far costs as much as not far enough.")


def test_ipo_loss__formula(fn, seed):
    "The squared distance of the log-ratio difference from 1 / (2 beta); h itself has no beta."
    four = _logps(seed)
    for beta in (0.1, 0.5, 1.0):
        assert_close_tensor(_losses(fn, *four, beta),
                            _expected(four, lambda h, b=beta: (h - 1 / (2 * b)) ** 2), tol=1e-8,
                            call=f"losses of 4 pairs, beta={beta}",
                            hint="h = (pi_chosen - ref_chosen) - (pi_rejected - ref_rejected).")


def test_ipo_loss__lengths(fn, seed):
    "Given lengths, each side's log-ratio is divided by its own length."
    four, (m, n) = _logps(seed), _lengths(seed)
    expected = ((four[0] - four[2]) / m - (four[1] - four[3]) / n - 1 / 0.4) ** 2
    got = _losses(fn, *four, 0.2, chosen_lengths=m, rejected_lengths=n)
    assert_close_tensor(got, expected, tol=1e-6, call="losses with lengths, beta=0.2",
                        hint="None takes the sums, as the paper does; lengths take means.")


def test_ipo_loss__one_length_is_refused(fn, seed):
    "Lengths of one side alone are a mistake: raise ValueError."
    four, (m, n) = _logps(seed), _lengths(seed)
    for lengths in ({"chosen_lengths": m}, {"rejected_lengths": n}):
        try:
            got = fn(*four, **lengths)
        except ValueError:
            continue
        raise CheckFailed("a ValueError", type(got).__name__,
                          "A mean on one side and a sum on the other cannot be compared.")


def test_ipo_loss__rewards(fn, seed):
    "The rewards are the implicit ones, of sums also where lengths are given."
    four, (m, n) = _logps(seed), _lengths(seed)
    policy = [x.requires_grad_() for x in four[:2]]
    with torch.no_grad():
        chosen, rejected = _implicit(four, 0.3)
    for lengths in ({}, {"chosen_lengths": m, "rejected_lengths": n}):
        result = fn(*policy, *four[2:], 0.3, **lengths)
        _assert_reported(result, chosen, rejected, "beta * (policy - reference), detached.")


def test_ipo_loss__gradient(fn, seed):
    "The gradient by the chosen log-prob is 2 (h - 1 / (2 beta)): it turns behind the target."
    four = _logps(seed)
    _assert_gradients(fn, four, _expected(four, lambda h: 2 * (h - 1 / 0.6)), 0.3,
                      hint="A square, of the whole margin: no detach(), no clamp.")


# ---------------------------------------------------------------- hinge_loss


def test_hinge_loss__worked_case(fn):
    "Reward margins of 0.5, 1.5 and -1 cost 0.5, 0 and 2."
    zero = torch.zeros(3)
    losses = _losses(fn, torch.tensor([5.0, 15.0, -10.0]), zero, zero, zero)
    assert_close_tensor(losses, torch.tensor([0.5, 0.0, 2.0]), call="losses, beta 0.1",
                        hint="max(0, 1 - margin of the implicit rewards).")


def test_hinge_loss__formula(fn, seed):
    "max(0, 1 - beta * h), one value a pair."
    four = _logps(seed)
    for beta in (0.05, 0.3):
        assert_close_tensor(_losses(fn, *four, beta),
                            _expected(four, lambda h, b=beta: max(0.0, 1 - b * h)), tol=1e-8,
                            call=f"losses of 4 pairs, beta={beta}",
                            hint="beta stands in front of the log-ratios, not of the 1.")


def test_hinge_loss__rewards(fn, seed):
    "The rewards are the implicit ones, without gradient."
    four = [x.requires_grad_(place < 2) for place, x in enumerate(_logps(seed))]
    with torch.no_grad():
        chosen, rejected = _implicit(four, 0.3)
    _assert_reported(fn(*four, 0.3), chosen, rejected, "beta * (policy - reference), detached.")


def test_hinge_loss__gradient(fn, seed):
    "The gradient is -beta where the margin is below 1, and 0 where it is above."
    four = _logps(seed)
    four[0] = four[0] + torch.tensor([30.0, 0.0, 0.0, 30.0], dtype=torch.float64)
    _assert_gradients(fn, four, _expected(four, lambda h: -0.3 if 0.3 * h < 1 else 0.0), 0.3,
                      hint="A pair that is far enough apart teaches no more: relu.")


# ---------------------------------------------------------------- robust_dpo_loss


def _robust_value(beta: float, rate: float):
    def value(h: float) -> float:
        right, flipped = _softplus(-beta * h), _softplus(beta * h)
        return ((1 - rate) * right - rate * flipped) / (1 - 2 * rate)

    return value


def test_robust_dpo_loss__log_two_at_the_start(fn, seed):
    "Where policy and reference agree the weights cancel, and log 2 is left."
    chosen, rejected, _, _ = _logps(seed)
    for rate in (0.1, 0.4):
        got = _losses(fn, chosen, rejected, chosen.clone(), rejected.clone(), label_smoothing=rate)
        assert_close_tensor(got, torch.full_like(chosen, math.log(2)), tol=1e-8,
                            call=f"losses where policy and reference agree, e = {rate}",
                            hint="(1 - e - e) / (1 - 2 e) is 1.")


def test_robust_dpo_loss__formula(fn, seed):
    "The flipped pair's loss is taken off, and the whole is divided by 1 - 2 e."
    four = _logps(seed)
    for beta, rate in ((0.1, 0.1), (0.3, 0.3)):
        assert_close_tensor(_losses(fn, *four, beta=beta, label_smoothing=rate),
                            _expected(four, _robust_value(beta, rate)), tol=1e-8,
                            call=f"losses of 4 pairs, beta={beta}, label_smoothing={rate}",
                            hint="Conservative DPO adds the term of the flipped pair; this one "
                                 "subtracts it.")


def test_robust_dpo_loss__defaults(fn, seed):
    "Without beta and label_smoothing they are 0.1 and 0.1."
    four = _logps(seed)
    assert_close_tensor(_losses(fn, *four), _expected(four, _robust_value(0.1, 0.1)), tol=1e-8,
                        call="losses with the default settings")


def test_robust_dpo_loss__unbiased(fn, seed):
    "The mean over labels of which a share e is flipped is the plain loss on the true ones."
    four = _logps(seed)
    flipped = [four[1], four[0], four[3], four[2]]
    right, wrong = (_losses(fn, *x, beta=0.2, label_smoothing=0.25) for x in (four, flipped))
    assert_close_tensor(0.75 * right + 0.25 * wrong,
                        _expected(four, lambda h: _softplus(-0.2 * h)), tol=1e-8,
                        call="0.75 * losses + 0.25 * losses of the flipped pairs",
                        hint="This is what the division by 1 - 2 e is for.")


def test_robust_dpo_loss__half_flipped_is_refused(fn, seed):
    "From 0.5 on the labels say nothing: raise ValueError, also below 0."
    for rate in (0.5, 0.7, -0.1):
        try:
            got = fn(*_logps(seed), label_smoothing=rate)
        except ValueError:
            continue
        raise CheckFailed("a ValueError", type(got).__name__,
                          "1 - 2 e is 0 at 0.5, and negative behind it.")


def test_robust_dpo_loss__rewards(fn, seed):
    "The rewards are the implicit ones, without gradient."
    four = [x.requires_grad_(place < 2) for place, x in enumerate(_logps(seed))]
    with torch.no_grad():
        chosen, rejected = _implicit(four, 0.3)
    _assert_reported(fn(*four, beta=0.3), chosen, rejected, "beta * (policy - reference).")


def test_robust_dpo_loss__gradient(fn, seed):
    "Both terms pull: -beta * ((1 - e) sigmoid(-m) + e sigmoid(m)) / (1 - 2 e)."
    four = _logps(seed)

    def value(h: float) -> float:
        behind = 1 / (1 + math.exp(0.3 * h))
        return -0.3 * (0.8 * behind + 0.2 * (1 - behind)) / 0.6

    _assert_gradients(fn, four, _expected(four, value), beta=0.3, label_smoothing=0.2,
                      hint="The term that is taken off has a gradient, too.")


# ---------------------------------------------------------------- orpo_loss


def _log_odds(mean: float) -> float:
    return mean - math.log(-math.expm1(mean))


def _orpo_value(policy, lengths, lam: float) -> torch.Tensor:
    rows = zip(*(x.tolist() for x in (*policy, *lengths)), strict=True)
    values = [-a / m + lam * _softplus(_log_odds(b / n) - _log_odds(a / m)) for a, b, m, n in rows]
    return torch.tensor(values, dtype=torch.float64)


def _likely(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probs and lengths with means near -0.3, where p and 1 - p are both far from 1."""
    generator = torch.Generator().manual_seed(seed)
    lengths = _lengths(seed)
    means = [-0.1 - 0.5 * torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [mean * n for mean, n in zip(means, lengths, strict=True)], lengths


def test_orpo_loss__worked_case(fn):
    "Equal means of -1 a token: the loss of SFT, 1, and lam * log 2."
    lengths = torch.tensor([4])
    losses = _losses(fn, torch.tensor([-4.0]), torch.tensor([-4.0]), lengths, lengths)
    assert_close_tensor(losses, torch.tensor([1 + 0.1 * math.log(2)]), call="losses, lam 0.1",
                        hint="-mean log-prob of the chosen, and -lam * logsigmoid(0).")


def test_orpo_loss__formula(fn, seed):
    "SFT on the chosen response, and the log of the odds ratio of the means."
    policy, lengths = _likely(seed)
    for lam in (0.1, 2.0):
        assert_close_tensor(_losses(fn, *policy, *lengths, lam),
                            _orpo_value(policy, lengths, lam), tol=1e-6,
                            call=f"losses of 4 pairs of likely responses, lam={lam}",
                            hint="log odds = l - log(1 - exp(l)), with l the mean a token.")


def test_orpo_loss__long_and_unlikely(fn, seed):
    "Of means near -4 the odds are p / (1 - p) as well, and nothing is lost."
    four, lengths = _logps(seed), _lengths(seed)
    assert_close_tensor(_losses(fn, *four[:2], *lengths, 1.0),
                        _orpo_value(four[:2], lengths, 1.0), tol=1e-6,
                        call="losses of 4 pairs of unlikely responses, lam=1.0",
                        hint="Divide by the length first: 1 - exp(-40) is 1 for a whole response.")


def test_orpo_loss__nearly_certain(fn):
    "Means of -1e-6, and of 0, have finite odds and gradients in float32."
    ones = torch.ones(2, dtype=torch.long)
    policy = [torch.tensor([-1e-6, -0.5]), torch.tensor([-0.5, -1e-6])]
    expected = _orpo_value([x.double() for x in policy], [ones, ones], 1.0).float()
    assert_close_tensor(_losses(fn, *policy, ones, ones, 1.0), expected, tol=1e-4,
                        call="losses of means -1e-6 and -0.5, lam=1.0",
                        hint="1 - exp(l) loses its digits near 1: use -torch.expm1(l).")
    certain = [torch.zeros(2), torch.tensor([-0.5, 0.0])]
    for got in (_losses(fn, *certain, ones, ones), *_policy_gradients(fn, [*certain, ones, ones])):
        assert_true(bool(got.isfinite().all()), expected="finite losses and gradients", got=got,
                    call="losses and gradients at a log-prob of 0",
                    hint="log(1 - 1) is -inf: clamp l to a number just below 0 first.")


def test_orpo_loss__rewards(fn, seed):
    "The rewards are lam times the means a token, without gradient."
    policy, lengths = _likely(seed)
    expected = [0.3 * x / n for x, n in zip(policy, lengths, strict=True)]
    _assert_reported(fn(*(x.clone().requires_grad_() for x in policy), *lengths, 0.3), *expected,
                     hint="lam * mean log-prob.", tol=1e-6)


def test_orpo_loss__gradient(fn, seed):
    "Chosen responses are raised by both terms, rejected ones are lowered by the second."
    policy, lengths = _likely(seed)
    rows = zip(*(x.tolist() for x in (*policy, *lengths)), strict=True)
    chosen, rejected = [], []
    for a, b, m, n in rows:
        ratio = _log_odds(a / m) - _log_odds(b / n)
        pull = 0.5 / (1 + math.exp(ratio))
        chosen.append((-1 + pull / math.expm1(a / m)) / m)
        rejected.append(-pull / math.expm1(b / n) / n)
    got = _policy_gradients(fn, [*policy, *lengths], 0.5)
    for have, want in zip(got, (chosen, rejected), strict=True):
        assert_close_tensor(have, torch.tensor(want, dtype=torch.float64), tol=1e-6,
                            call="gradient by the log-probs, lam=0.5",
                            hint="d log odds / d l = 1 / (1 - exp(l)); nothing is detached.")


# ---------------------------------------------------------------- kto_loss


def _kto(seed: int):
    """(policy, ref, labels): six responses, good and bad ones mixed, rewards of both signs."""
    four = _logps(seed, 6)
    return four[0], four[2], torch.tensor([True, False, True, True, False, False])


def _kto_value(policy, ref, labels, point, beta, weights=(1.0, 1.0)) -> torch.Tensor:
    rows = zip(policy.tolist(), ref.tolist(), labels.tolist(), strict=True)
    values = [(weights[0] if good else weights[1])
              / (1 + math.exp((1 if good else -1) * beta * (a - b - point))) for a, b, good in rows]
    return torch.tensor(values, dtype=torch.float64)


def _two(result) -> tuple:
    if not isinstance(result, tuple) or len(result) != 2:
        raise CheckFailed("two tensors (losses, rewards)", f"a {type(result).__name__}",
                          "return losses, rewards")
    return result


def test_kto_loss__worked_case(fn):
    "A reward of 1 on a good and on a bad response, reference point 0: 0.269 and 0.731."
    zero = torch.zeros(2)
    losses, _ = _two(fn(torch.tensor([10.0, 10.0]), zero, torch.tensor([True, False]), 0.0))
    assert_close_tensor(losses, torch.tensor([0.26894143, 0.7310586]), call="losses",
                        hint="1 - sigmoid(1) and 1 - sigmoid(-1).")


def test_kto_loss__formula(fn, seed):
    "1 - sigmoid of how far the reward is above the reference point (bad: below it)."
    policy, ref, labels = _kto(seed)
    for beta, point in ((0.1, 0.0), (0.1, 3.0), (0.4, 1.5)):
        got = _two(fn(policy, ref, labels, point, beta=beta))[0]
        assert_close_tensor(got, _kto_value(policy, ref, labels, point, beta), tol=1e-8,
                            call=f"losses of 6 responses, reference_point={point}, beta={beta}",
                            hint="r - beta * z for good responses, beta * z - r for bad ones, with "
                                 "r = beta * (policy - reference).")


def test_kto_loss__point_as_tensor(fn, seed):
    "The reference point may be a tensor of one number."
    policy, ref, labels = _kto(seed)
    got = _two(fn(policy, ref, labels, torch.tensor(2.0, dtype=torch.float64)))[0]
    assert_close_tensor(got, _kto_value(policy, ref, labels, 2.0, 0.1), tol=1e-8,
                        call="losses with a tensor as reference_point")


def test_kto_loss__weights(fn, seed):
    "desirable_weight multiplies good responses, undesirable_weight bad ones."
    policy, ref, labels = _kto(seed)
    got = _two(fn(policy, ref, labels, 1.0, desirable_weight=1.5, undesirable_weight=0.25))[0]
    assert_close_tensor(got, _kto_value(policy, ref, labels, 1.0, 0.1, (1.5, 0.25)), tol=1e-8,
                        call="losses with weights 1.5 and 0.25",
                        hint="The weight stands in front of the whole loss of a response.")


def test_kto_loss__far_right(fn):
    "Rewards of +-30 on the right side still have losses of exp(-30), in float32."
    labels, zero = torch.tensor([True, False]), torch.zeros(2)
    weight = math.exp(30)
    losses = _two(fn(torch.tensor([300.0, -300.0]), zero, labels, 0.0, 0.1, weight, weight))[0]
    assert_close_tensor(losses, torch.ones(2), tol=1e-3,
                        call="losses at rewards of 30 and -30, both weights exp(30)",
                        hint="1 - sigmoid(x) is 0 in float32 from x = 17 on; sigmoid(-x) is not.")


def test_kto_loss__rewards(fn, seed):
    "The rewards are the implicit ones, without the reference point and without gradient."
    policy, ref, labels = _kto(seed)
    rewards = _two(fn(policy.requires_grad_(), ref, labels, 2.0, beta=0.3))[1]
    assert_close_tensor(rewards, 0.3 * (policy - ref).detach(), tol=1e-8, call="rewards",
                        hint="beta * (policy - reference); z belongs to the loss alone.")
    assert_true(not rewards.requires_grad, expected="rewards without gradient",
                got="they require one", hint="Rewards are for reports: .detach() them.")


def test_kto_loss__gradient(fn, seed):
    "Good responses are raised, bad ones lowered: -+ beta * weight * s (1 - s)."
    policy, ref, labels = _kto(seed)
    policy.requires_grad_()
    total = _two(fn(policy, ref, labels, 1.0, 0.3, 2.0, 0.5))[0].sum()
    got = torch.zeros_like(policy)
    if total.requires_grad:
        got = torch.autograd.grad(total, policy)[0]
    weights, sign = torch.where(labels, 2.0, 0.5), torch.where(labels, -1.0, 1.0)
    s = _kto_value(policy.detach(), ref, labels, 1.0, 0.3)
    assert_close_tensor(got, sign * 0.3 * weights * s * (1 - s), tol=1e-8,
                        call="gradient of the losses by policy_logps",
                        hint="The gradient flows through r alone, and is not detached.")
