"""Named mistakes of lesson 02, and correct variants (form: workbook/mistakes.py)."""

import math

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from workbook.mistakes import mistake, probe, switches, variant

# ---------------------------------------------------------------- to_preference


@switches(
    "to_preference",
    swapped=("swaps chosen and rejected", "chosen is response_{id}, not response_{1 - id}."),
    truthy=('takes "0" for true', '"0" is a text that is not empty: turn it into a number first.'),
    bools=("takes True and False for labels", "True == 1 in Python: refuse a bool first."),
    guesses=("reads any other id as 0", "An id that is neither 0 nor 1 is no label: raise."),
    strips=("strips the responses", "Copy the texts as they are: white space is scored, too."),
    extra=("hands on all fields of the record", "Return prompt, chosen and rejected only."),
)
def read_label(record, *, swapped=False, truthy=False, bools=False, guesses=False, strips=False,
               extra=False):
    better = record.get("better_response_id")
    if truthy and better == "0":
        better = 1
    known = (str(better) in ("0", "1")) and not isinstance(better, (bool, list))
    if bools and isinstance(better, bool):
        known = True
    if not known and not guesses:
        raise ValueError(f"better_response_id must be 0 or 1, but it is {better!r}")
    place = int(better) if known else 0
    place = 1 - place if swapped else place
    texts = [record["response_0"], record["response_1"]]
    texts = [text.strip() for text in texts] if strips else texts
    found = {"prompt": record["prompt"], "chosen": texts[place], "rejected": texts[1 - place]}
    return record | found if extra else found


@mistake("to_preference", "compares the id with the number 1 only",
         hint='"1" == 1 is False, so a text is read as 0: use int() first.')
def compares_with_one(record):
    better = record["better_response_id"]
    if isinstance(better, bool) or better not in (0, 1, "0", "1") or isinstance(better, float):
        raise ValueError(f"{better!r} is no label")
    first, second = record["response_0"], record["response_1"]
    chosen, rejected = (second, first) if better == 1 else (first, second)
    return {"prompt": record["prompt"], "chosen": chosen, "rejected": rejected}


@variant("to_preference")
def from_a_table(record):
    places = {("int", 0): 0, ("int", 1): 1, ("str", "0"): 0, ("str", "1"): 1}
    better = record.get("better_response_id")
    try:
        place = places[type(better).__name__, better]
    except (KeyError, TypeError):
        raise ValueError(f"no label: {better!r}") from None
    names = ["response_0", "response_1"]
    chosen = names.pop(place)
    return dict(zip(("prompt", "chosen", "rejected"),
                    (record[name] for name in ("prompt", chosen, *names)), strict=True))


@variant("to_preference")
def by_matching(record):
    match record:
        case {"better_response_id": bool() | float()}:
            raise ValueError("no label")
        case {"better_response_id": 0 | "0", "response_0": chosen, "response_1": rejected}:
            pass
        case {"better_response_id": 1 | "1", "response_1": chosen, "response_0": rejected}:
            pass
        case _:
            raise ValueError("no label")
    return {"prompt": record["prompt"], "chosen": chosen, "rejected": rejected}


@probe("to_preference")
def odd_records(fn, rng):
    texts = {"prompt": "p", "response_0": f" {rng.random()} ", "response_1": "b\n", "source": "x"}
    for better in (0, 1, "0", "1"):
        fn(texts | {"better_response_id": better})


# ---------------------------------------------------------------- bradley_terry_loss


@switches(
    "bradley_terry_loss",
    added=("adds the margin", "A margin makes the pair harder: subtract it from the difference."),
    no_margin=("ignores the margin", "The margin is subtracted inside the logsigmoid."),
    outside=("adds the margin to the loss", "The margin belongs inside the logsigmoid."),
    swapped=("swaps chosen and rejected", "The chosen reward stands first in the difference."),
    log_of=("takes the log of a sigmoid", "log(sigmoid(-200)) is -inf: logsigmoid is stable."),
    mean=("averages over the pairs", "Return one loss a pair; the loop takes the mean."),
    no_centre=("ignores center_coefficient", "Add center_coefficient * (chosen + rejected)^2."),
    centre_difference=("centres the difference", "The square is of the sum of the two rewards."),
    detached=("detaches the rejected reward", "Both rewards take part in the gradient."),
)
def negative_log_sigmoid(chosen_rewards, rejected_rewards, margin=None, center_coefficient=0.0, *,
                         added=False, no_margin=False, outside=False, swapped=False, log_of=False,
                         mean=False, no_centre=False, centre_difference=False, detached=False):
    rejected = rejected_rewards.detach() if detached else rejected_rewards
    chosen = chosen_rewards
    difference = rejected - chosen if swapped else chosen - rejected
    inside = margin is not None and not no_margin and not outside
    if inside:
        difference = difference + margin if added else difference - margin
    losses = -torch.log(torch.sigmoid(difference)) if log_of else -logsigmoid(difference)
    if margin is not None and outside and not no_margin:
        losses = losses + margin
    if not no_centre:
        away = chosen - rejected if centre_difference else chosen + rejected
        losses = losses + center_coefficient * away**2
    return losses.mean() if mean else losses


@mistake("bradley_terry_loss", "is a hinge loss",
         hint="max(0, 1 - difference) has no pull on pairs beyond 1: use -logsigmoid.")
def hinge(chosen_rewards, rejected_rewards, margin=None, center_coefficient=0.0):
    difference = chosen_rewards - rejected_rewards
    difference = difference if margin is None else difference - margin
    centre = center_coefficient * (chosen_rewards + rejected_rewards) ** 2
    return torch.clamp(1 - difference, min=0) + centre


@mistake("bradley_terry_loss", "leaves out the logarithm",
         hint="1 - sigmoid(difference) has no gradient for pairs far in the wrong order.")
def without_log(chosen_rewards, rejected_rewards, margin=None, center_coefficient=0.0):
    difference = chosen_rewards - rejected_rewards
    difference = difference if margin is None else difference - margin
    centre = center_coefficient * (chosen_rewards + rejected_rewards) ** 2
    return 1 - torch.sigmoid(difference) + centre


@mistake("bradley_terry_loss", "divides the difference by a temperature of 2",
         hint="There is no temperature in this loss: the reward finds its own scale.")
def cooled(chosen_rewards, rejected_rewards, margin=None, center_coefficient=0.0):
    difference = chosen_rewards - rejected_rewards
    difference = difference if margin is None else difference - margin
    centre = center_coefficient * (chosen_rewards + rejected_rewards) ** 2
    return -logsigmoid(difference / 2) + centre


@variant("bradley_terry_loss")
def with_softplus(chosen_rewards, rejected_rewards, margin=None, center_coefficient=0.0):
    margin = 0.0 if margin is None else margin
    penalty = (chosen_rewards + rejected_rewards).square() * center_coefficient
    return softplus(rejected_rewards + margin - chosen_rewards) + penalty


@variant("bradley_terry_loss")
def as_classification(chosen_rewards, rejected_rewards, margin=None, center_coefficient=0.0):
    logits = chosen_rewards - rejected_rewards - (0.0 if margin is None else margin)
    losses = binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none")
    total = chosen_rewards + rejected_rewards
    return losses + center_coefficient * total * total


@probe("bradley_terry_loss")
def pairs_of_all_kinds(fn, rng):
    chosen, rejected = (torch.tensor([rng.gauss(0, 2) for _ in range(6)]) for _ in range(2))
    fn(chosen, rejected)
    fn(chosen, rejected, margin=torch.tensor([rng.random() for _ in range(6)]))
    fn(chosen, rejected, center_coefficient=0.5)
    fn(chosen, rejected, margin=torch.full((6,), 0.5), center_coefficient=0.1)


# ---------------------------------------------------------------- pool_last_token


def _refuse_empty(attention_mask):
    if not attention_mask.bool().any(-1).all():
        raise ValueError("a row without a token")


@mistake("pool_last_token", "reads the last column",
         hint="rewards[:, -1] is padding where a row is padded on the right.")
def last_column(token_rewards, attention_mask):
    _refuse_empty(attention_mask)
    return token_rewards[:, -1]


@mistake("pool_last_token", "counts the mask, which is right only for padding on the right",
         hint="With padding on the left the last token stands in the last column.")
def counts_the_mask(token_rewards, attention_mask):
    _refuse_empty(attention_mask)
    last = attention_mask.long().sum(-1) - 1
    return token_rewards.gather(1, last[:, None]).squeeze(1)


@mistake("pool_last_token", "looks for the first padding and steps back by one",
         hint="With padding on the left the first padding is column 0, and column -1 is no answer; "
              "where pad and end of text are the same token it is worse.")
def before_the_first_padding(token_rewards, attention_mask):
    _refuse_empty(attention_mask)
    first_pad = (~attention_mask.bool()).int().argmax(-1)
    last = torch.where(attention_mask.bool().all(-1), attention_mask.shape[1], first_pad) - 1
    rows = torch.arange(len(last))
    return token_rewards[rows, last.clamp(min=0)]


@mistake("pool_last_token", "averages over the tokens",
         hint="The reward of a sequence is that of its last token, not the mean.")
def mean_of_tokens(token_rewards, attention_mask):
    _refuse_empty(attention_mask)
    kept = token_rewards.masked_fill(~attention_mask.bool(), 0.0)
    return kept.sum(-1) / attention_mask.bool().sum(-1).to(kept.dtype)


@mistake("pool_last_token", "sums over the tokens",
         hint="The reward of a sequence is that of its last token; a sum grows with the length.")
def sum_of_tokens(token_rewards, attention_mask):
    _refuse_empty(attention_mask)
    return token_rewards.masked_fill(~attention_mask.bool(), 0.0).sum(-1)


@mistake("pool_last_token", "is one token early",
         hint="The last token itself counts: here it is the end of the response.")
def one_before_the_last(token_rewards, attention_mask):
    _refuse_empty(attention_mask)
    places = torch.arange(token_rewards.shape[1]).expand_as(token_rewards)
    last = places.masked_fill(~attention_mask.bool(), -1).amax(-1)
    return token_rewards.gather(1, (last - 1).clamp(min=0)[:, None]).squeeze(1)


@mistake("pool_last_token", "takes the first token",
         hint="The first token has read nothing of the response.")
def first_token(token_rewards, attention_mask):
    _refuse_empty(attention_mask)
    first = attention_mask.bool().int().argmax(-1)
    return token_rewards.gather(1, first[:, None]).squeeze(1)


@mistake("pool_last_token", "multiplies by the mask, which lets nan through",
         hint="nan * 0 is nan: index the one reward that counts.")
def by_a_product(token_rewards, attention_mask):
    _refuse_empty(attention_mask)
    mask = attention_mask.bool()
    is_last = mask & (mask.flip(-1).int().cumsum(-1).flip(-1) == 1)
    return (token_rewards * is_last.to(token_rewards.dtype)).sum(-1)


@mistake("pool_last_token", "gives an empty row a reward",
         hint="A row without a token has no reward: raise ValueError.")
def empty_rows_too(token_rewards, attention_mask):
    places = torch.arange(token_rewards.shape[1]).expand_as(token_rewards)
    last = places.masked_fill(~attention_mask.bool(), 0).amax(-1)
    return token_rewards.gather(1, last[:, None]).squeeze(1)


@variant("pool_last_token")
def row_by_row(token_rewards, attention_mask):
    rewards = []
    for row, mask in zip(token_rewards, attention_mask, strict=True):
        kept = row[mask.bool()]
        if not len(kept):
            raise ValueError("a row without a token")
        rewards.append(kept[-1])
    return torch.stack(rewards)


@variant("pool_last_token")
def from_the_other_end(token_rewards, attention_mask):
    mask = attention_mask.bool()
    if not mask.any(-1).all():
        raise ValueError("a row without a token")
    from_end = mask.flip(-1).int().argmax(-1)
    return token_rewards[torch.arange(len(mask)), mask.shape[1] - 1 - from_end]


@probe("pool_last_token")
def paddings(fn, rng):
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    rewards = torch.randn(2, 5, generator=generator)
    right, left = [[1, 1, 0, 0, 0], [1] * 5], [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]
    for rows in (right, left):
        fn(rewards, torch.tensor(rows))
        fn(rewards.double(), torch.tensor(rows, dtype=torch.bool))


# ---------------------------------------------------------------- preference_report


@switches(
    "preference_report",
    swapped=("swaps the two counts", "In worse_better_than_better the worse one scored higher."),
    ties_right=("counts ties as right", "Use >: a tie is not in the right order."),
    ties_wrong=("counts ties as wrong pairs", "Use <: a tie is in neither count, but in ties."),
    half=("gives a tie half a point", "accuracy is the share of pairs in the right order."),
    without_ties=("divides by the pairs that are no ties", "Divide by all pairs."),
    narrow=("stays in the precision of the scores", "Make float64 tensors: dtype=torch.float64."),
    unchecked=("accepts scores that are not finite", "nan is in no count: raise ValueError."),
    total=("returns sums in the place of means", "better_data_mean is the mean over the pairs."),
)
def count_pairs(better_scores, worse_scores, *, swapped=False, ties_right=False, ties_wrong=False,
                half=False, without_ties=False, narrow=False, unchecked=False, total=False):
    dtype = None if narrow else torch.float64
    better, worse = (torch.as_tensor(s, dtype=dtype) for s in (better_scores, worse_scores))
    if better.shape != worse.shape or not len(better):
        raise ValueError("as many better as worse scores, at least one")
    if not unchecked and not (better.isfinite() & worse.isfinite()).all():
        raise ValueError("a score that is not finite")
    right = int((better >= worse).sum() if ties_right else (better > worse).sum())
    wrong = int((better <= worse).sum() if ties_wrong else (better < worse).sum())
    ties = int((better == worse).sum())
    count = max(len(better) - (ties if without_ties else 0), 1)
    points = right + (0.5 * ties if half else 0)
    means = [(s.sum() if total else s.mean()).item() for s in (better, worse)]
    return {
        "better_data_mean": means[0],
        "worse_data_mean": means[1],
        "worse_better_than_better_count": right if swapped else wrong,
        "worse_worse_than_better_count": wrong if swapped else right,
        "ties": ties,
        "accuracy": points / count,
    }


@variant("preference_report")
def by_a_loop(better_scores, worse_scores):
    better, worse = [float(x) for x in better_scores], [float(x) for x in worse_scores]
    if not better or len(better) != len(worse) or not all(map(math.isfinite, better + worse)):
        raise ValueError("scores that cannot be compared")
    counts = {1: 0, 0: 0, -1: 0}
    for b, w in zip(better, worse, strict=True):
        counts[(b > w) - (b < w)] += 1
    return {
        "accuracy": counts[1] / len(better),
        "better_data_mean": math.fsum(better) / len(better),
        "worse_data_mean": math.fsum(worse) / len(worse),
        "worse_better_than_better_count": counts[-1],
        "worse_worse_than_better_count": counts[1],
        "ties": counts[0],
    }


@variant("preference_report")
def from_the_signs(better_scores, worse_scores):
    both = [torch.as_tensor(s, dtype=torch.float64) for s in (better_scores, worse_scores)]
    if both[0].shape != both[1].shape or both[0].numel() == 0:
        raise ValueError("scores that do not make pairs")
    if not torch.isfinite(torch.stack(both)).all():
        raise ValueError("scores that are not finite")
    signs = torch.sign(both[0] - both[1])
    wrong, ties, right = (int((signs == sign).sum()) for sign in (-1, 0, 1))
    means = torch.stack(both).mean(1).tolist()
    return dict(better_data_mean=means[0], worse_data_mean=means[1], ties=ties,
                worse_better_than_better_count=wrong, worse_worse_than_better_count=right,
                accuracy=right / (wrong + ties + right))


@probe("preference_report")
def ties_and_dtypes(fn, rng):
    better = [rng.randint(0, 4) / 2 for _ in range(9)]
    worse = [rng.randint(0, 4) / 2 for _ in range(9)]
    fn(better, worse)
    fn(torch.tensor(better).bfloat16(), torch.tensor(worse).bfloat16())
    fn([1.0, 2.0], [1.0, 2.0])
