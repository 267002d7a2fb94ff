# %% [markdown]
# # 02 The reward model: learn what people prefer, and see what was learnt instead
#
# A verifier can say that 24 is the right number. Nobody can write a verifier for "the better answer", but people can say which of two they
# prefer. A reward model turns such choices into a number. **After this lesson you can** read preference data in its common form, write the
# loss that turns choices into scores, find the one token that carries the score, report a reward model honestly, and show three ways in
# which it goes wrong: it learns its data by heart, it likes length, and it gives way where it is searched.
#
# **You need** lesson 01, and what a gradient step is. **Time:** about 90 minutes. The model that you train here judges lesson 04; lesson 05 optimises a policy
# against the shipped one of its kind.
#
# Stuck? `hint(1, "bradley_terry_loss")` (up to 3), and `bradley_terry_loss = use_reference("bradley_terry_loss")` lets you go on; it is
# recorded as such.

# %% tags=["setup"]
import json

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from torch.nn.functional import logsigmoid

from helpers.data import load_records
from helpers.evaluation import best_of_n, bootstrap_interval, complete, wilson_interval
from helpers.models import LoraSettings, load_model, load_reward_model
from helpers.plotting import (
    best_of_n_curves,
    better_worse_scatter,
    rates_with_intervals,
    reward_distributions,
    training_curves,
)
from helpers.prompts import load_template, render
from helpers.reward_models import score
from helpers.training import RewardSettings, train_reward_model
from workbook.lesson import (
    answer,
    begin,
    check,
    comparison_table,
    hint,
    live_monitor,
    observed,
    predict,
    progress,
    published,
    ready,
    recorded_or_live,
    run_folder,
    save_findings,
    use_profile,
    use_reference,
)
from workbook.published import published_group
from workbook.reward_explorer import reward_explorer
from workbook.world.comparisons import ANNOTATOR
from workbook.world.preferences import gold_reward

begin("02")
profile = use_profile("tiny")

# %% [markdown]
# ## Ten seconds: this is what you will build
#
# Two responses to one prompt; an annotator preferred one of them. The untrained reward model has no idea which.

# %%
def read_pairs(path, limit):
    with open(profile.path(path), encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(limit), strict=False)]

def new_reward_model(seed=0):
    lora = LoraSettings(rank=profile.reward.rank, alpha=2 * profile.reward.rank) if profile.reward.rank else None
    return load_reward_model(profile.path(profile.models.maths), lora=lora, seed=seed,
                             device=profile.engine.device, dtype=profile.engine.dtype)

sizes = profile.sizes.reward
held_out = read_pairs(profile.data.reward_test, sizes.held_out)
untrained, tokenizer = new_reward_model()
pair = held_out[0]
scores = score(untrained, tokenizer, [pair["prompt"]] * 2, [pair["response_0"], pair["response_1"]])
for k in (0, 1):
    label = "labelled better" if pair["better_response_id"] == k else "labelled worse"
    print(f"{label}, untrained score {scores[k]:+.2f}:{pair[f'response_{k}']}\n")

# %% [markdown]
# ## The idea
#
# Give every response $y$ to a prompt $x$ a score $r(x, y)$, and let the chance that $y_1$ is preferred to $y_2$ depend on their difference
# alone (Bradley and Terry 1952; for language models Ouyang et al. 2022, [2203.02155](https://arxiv.org/abs/2203.02155), Eq. 1):
#
# $$ P(y_1 \succ y_2 \mid x) = \sigma\big(r(x, y_1) - r(x, y_2)\big), \qquad
#    \mathcal{L} = -\log \sigma\big(r(x, y_\text{chosen}) - r(x, y_\text{rejected})\big) $$
#
# The network is a language model whose output layer is replaced by one vector, the *head*: a number at every token, of which the last one counts. Here
# the truth behind the labels is known: a **gold reward** written in code pays 1 for a right answer, 0.4 for owning up to not knowing, and up to
# 0.1 for courtesy. The annotators see it through a glass: they like length, and now and then they slip.
#
# ## Exercise 1: which response is the better one?
# *Difficulty 1 of 5, importance 4 of 5, 10 minutes*
#
# A common form of preference data (S4 uses it) has `prompt`, `response_0`, `response_1` and `better_response_id`. Turn such a record into `prompt`,
# `chosen`, `rejected`, with the texts as they are. The id is 0 or 1, or the text `"0"` or `"1"`, as some files have it. Anything else
# (2, -1, `True`, `0.0`, `None`, nothing at all) is no label: raise a `ValueError` that says so. A swapped label gives 1 minus the accuracy, and `bool("0")` is `True`.

# %% nbgrader={"grade": false, "grade_id": "to_preference", "locked": false, "schema_version": 3, "solution": true, "task": false}
def to_preference(record: dict) -> dict[str, str]:
    """prompt, chosen and rejected of a record.

    Example: response_0 "5", response_1 "4" and better_response_id 1 give chosen "4".
    """
    ### BEGIN SOLUTION
    better = record.get("better_response_id")
    if type(better) not in (int, str) or str(better) not in ("0", "1"):
        raise ValueError(f"better_response_id must be 0 or 1, but it is {better!r}")
    place = int(better)
    return {"prompt": record["prompt"], "chosen": record[f"response_{place}"],
            "rejected": record[f"response_{1 - place}"]}
    ### END SOLUTION

# %%
if ready("to_preference"):
    for better in (0, 1, "0"):
        record = {"prompt": "2 + 2?", "response_0": "5", "response_1": "4", "better_response_id": better}
        print(f"{better!r:4} -> chosen {to_preference(record)['chosen']!r}")

# %%
check(to_preference)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"True passes."** `True == 1` in Python; look at `type(better)` or refuse a `bool` first. **`"0"` picks the second one**: a text that is not empty
# is truthy; `int("0")` is 0. **"KeyError"**: `record.get(...)` gives `None` where the field is missing.
# </details>
#
# ## Exercise 2: the loss
# *Difficulty 2 of 5, importance 5 of 5, 15 minutes*
#
# One loss a pair, no mean: the loop divides by the pairs of the whole step. Two options come with it. A **margin** $m$ asks the chosen
# response to be ahead by that much (Llama 2, [2307.09288](https://arxiv.org/abs/2307.09288), Eq. 2). **Centring** adds $c\,(r_\text{chosen} + r_\text{rejected})^2$, since the first term
# leaves the zero of the scores free (Eisenstein et al. 2023, [2312.09244](https://arxiv.org/abs/2312.09244)):
#
# $$ \mathcal{L} = -\log \sigma(r_\text{chosen} - r_\text{rejected} - m) + c\,(r_\text{chosen} + r_\text{rejected})^2 $$
#
# A pair that is wrong by 200 must still give a finite loss and a gradient of 1; `torch.log(torch.sigmoid(...))` gives neither.

# %% nbgrader={"grade": false, "grade_id": "bradley_terry_loss", "locked": false, "schema_version": 3, "solution": true, "task": false}
def bradley_terry_loss(
    chosen_rewards: torch.Tensor,
    rejected_rewards: torch.Tensor,
    margin: torch.Tensor | None = None,
    center_coefficient: float = 0.0,
) -> torch.Tensor:
    """(N,) rewards of both sides to (N,) losses. Example: equal rewards cost log 2 = 0.6931."""
    ### BEGIN SOLUTION
    difference = chosen_rewards - rejected_rewards
    if margin is not None:
        difference = difference - margin
    return -logsigmoid(difference) + center_coefficient * (chosen_rewards + rejected_rewards) ** 2
    ### END SOLUTION

# %%
if ready("bradley_terry_loss"):
    chosen, rejected = torch.tensor([0.0, 2.0, -100.0]), torch.tensor([0.0, 1.0, 100.0])
    print("loss:", bradley_terry_loss(chosen, rejected))
    print("with a margin of 1:", bradley_terry_loss(chosen, rejected, margin=torch.ones(3)))

# %%
check(bradley_terry_loss)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"inf at 200."** Use `logsigmoid`. **"The margin makes it smaller."** It is subtracted from the lead, so the loss grows.
# **"One number comes out"**: no `mean()`.
# </details>
#
# ## Exercise 3: the token that carries the score
# *Difficulty 2 of 5, importance 5 of 5, 15 minutes*
#
# The model gives a number at each of $T$ positions, `token_rewards` (B, T). The score of a row is the one at its **last real token**, the only one that has read the whole
# response. Rows are padded to a common length, on the right in training and often on the left in generation: find the last 1 of `attention_mask`, wherever it stands. Never look for the pad
# token's *id*: in many models it is the end-of-text token, too. A row without any token has no score: raise `ValueError`.

# %% nbgrader={"grade": false, "grade_id": "pool_last_token", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pool_last_token(token_rewards: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) rewards and mask to the (B,) rewards of the last tokens, for padding on either side."""
    ### BEGIN SOLUTION
    places = torch.arange(token_rewards.shape[1], device=token_rewards.device)
    last = torch.where(attention_mask.bool(), places, -1).max(dim=-1).values
    if (last < 0).any():
        raise ValueError("a row of the attention mask holds no token, so it has no reward")
    return token_rewards[torch.arange(len(last), device=last.device), last]
    ### END SOLUTION

# %%
if ready("pool_last_token"):
    token_rewards = torch.tensor([[1.0, 2.0, 9.0], [9.0, 3.0, 4.0], [5.0, 6.0, 7.0]])
    attention_mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1]])
    print(pool_last_token(token_rewards, attention_mask), "expected 2, 4, 7")

# %%
check(pool_last_token)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"Right padding works, left does not."** `mask.sum(-1) - 1` counts tokens; it is a position only when they start at 0.
# **"nan comes back."** Padding may hold anything: index, do not multiply by the mask.
# </details>
#
# ## Exercise 4: the report
# *Difficulty 1 of 5, importance 4 of 5, 10 minutes*
#
# S4 reports four numbers of scored pairs, and you give six: `better_data_mean` and `worse_data_mean`, the mean scores of the two sides;
# `worse_better_than_better_count`, pairs in which the worse response scored higher; `worse_worse_than_better_count`, pairs in the right order;
# `ties`; and `accuracy`, the share of **all** pairs in the right order, so that a model that gives everybody the same score is at 0 and not at 1/2.
# Scores come as lists or as tensors of any float type: compute in float64. No pairs, unequal numbers of scores, `nan` or `inf`: `ValueError`.

# %% nbgrader={"grade": false, "grade_id": "preference_report", "locked": false, "schema_version": 3, "solution": true, "task": false}
def preference_report(better_scores, worse_scores) -> dict[str, float | int]:
    """The six numbers. Example: [2, 1, 0] against [1, 1, 3] has accuracy 1/3 and one tie."""
    ### BEGIN SOLUTION
    better, worse = (torch.as_tensor(scores, dtype=torch.float64)
                     for scores in (better_scores, worse_scores))
    if len(better) == 0 or better.shape != worse.shape:
        raise ValueError("as many better as worse scores are needed, and at least one")
    if not (better.isfinite() & worse.isfinite()).all():
        raise ValueError("a score is not finite")
    right, wrong = int((better > worse).sum()), int((better < worse).sum())
    return {"better_data_mean": better.mean().item(), "worse_data_mean": worse.mean().item(),
            "worse_better_than_better_count": wrong, "worse_worse_than_better_count": right,
            "ties": len(better) - right - wrong, "accuracy": right / len(better)}
    ### END SOLUTION

# %%
if ready("preference_report"):
    print(preference_report([2.0, 1.0, 0.0], [1.0, 1.0, 3.0]))

# %%
check(preference_report)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The counts are swapped."** Read the long names as sentences: the *worse* one is *better than* the *better* one.
# **"bfloat16 is off by a little."** `torch.as_tensor(scores, dtype=torch.float64)` comes before the mean. **"A tie is right."** `>` and not `>=`.
# </details>
#
# ## The pairs, and how good anybody could be
#
# The responses were sampled from five policies: the base model at temperature 1 and, wilder, at 1.4, two that were tuned to the format (on few and on more examples), and a long-winded one. Pairs that
# an annotator would feel to be alike were not asked about. Three rulers before any training, on held-out pairs whose prompts occur in no training pair: an **untrained head**; **length alone** (the longer one is better); and the **noise ceiling**: an annotator who feels exactly as ours do but never slips. *Clean* labels are the
# order of the gold reward; pairs of equal gold reward have none.

# %%
def clean(records):
    """The same pairs with the label of the gold reward; equal ones are left out."""
    order = [(r, r["gold_reward_1"] - r["gold_reward_0"]) for r in records]
    return [r | {"better_response_id": int(gap > 0)} for r, gap in order if gap]

def both_scores(records, measure):
    """Scores of the better and of the worse responses, by a function of a list of (prompt, text)."""
    rows = [to_preference(r) for r in records]
    found = measure([(r["prompt"], r[side]) for side in ("chosen", "rejected") for r in rows])
    return found[: len(rows)], found[len(rows) :]

def words(texts):
    return [len(text.split()) for _, text in texts]

def scored_by(model):
    """A function of a list of (prompt, text) to scores; what it has scored it keeps."""
    kept = {}

    def measure(texts):
        if new := [text for text in dict.fromkeys(texts) if text not in kept]:
            found = score(model, tokenizer, *zip(*new, strict=True), pool=pool_last_token)
            kept.update(zip(new, found, strict=True))
        return [kept[text] for text in texts]
    return measure

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    pairs = read_pairs(profile.data.reward_train, sizes.pairs)
    felt = {(r["prompt"], r[f"response_{k}"]): ANNOTATOR.felt(r[f"response_{k}"], r[f"gold_reward_{k}"])
            for r in held_out for k in (0, 1)}
    rulers = {"length alone": words, "noise ceiling": lambda texts: [felt[text] for text in texts]}
    def rates(measure, records=held_out):
        """Accuracy with its interval, against the labels and against the clean ones."""
        found = {}
        for name, some in (("noisy labels", records), ("clean labels", clean(records))):
            report = preference_report(*both_scores(some, measure))
            right = report["worse_worse_than_better_count"]
            found[name] = (report["accuracy"], *wilson_interval(right, len(some)))
        return found
    no_training = recorded_or_live("untrained", lambda: rates(scored_by(untrained)))
    known = {"untrained head": {kind: tuple(rate) for kind, rate in no_training.items()}}
    known |= {name: rates(measure) for name, measure in rulers.items()}
    for name, found in known.items():
        print(f"{name:15}", "   ".join(f"{kind} {rate[0]:.1%}" for kind, rate in found.items()))

# %% [markdown]
# Look at the two columns of *length alone*: what it knows of the labels, it hardly knows of the truth. Nobody can be much better than the ceiling. And an untrained head is no coin: it is one random direction in a space
# that tells wild text from calm, and another seed gives another number.
#
# ## The run
#
# All of it is yours: conversion, loss, pooling. Say what you expect of the accuracy on the *held-out* pairs while the accuracy on the training pairs climbs towards 1: between the first epoch and the last,
# does it end clearly higher (`"rises"`), lower (`"falls"`), or about where it was (`"stays"`)?

# %%
predict("held-out accuracy from the first to the last epoch", "stays")

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    functions = {"bradley_terry_loss": bradley_terry_loss, "pool_last_token": pool_last_token}

    def train(records, seed=profile.reward.seed, margins=None, extra=None, **changes):
        """A reward model trained on records with your functions; returns the run."""
        rows = [to_preference(r) for r in records]
        rows = rows if margins is None else [r | {"margin": m} for r, m in zip(rows, margins, strict=True)]
        options = {"lr": profile.reward.lr, "batch_size": profile.reward.batch_size,
                   "micro_batch_size": profile.reward.micro_batch, "num_epochs": profile.reward.epochs,
                   "seed": seed, "progress": False} | changes
        model, _ = new_reward_model(seed)
        return train_reward_model(model, rows, RewardSettings(**options), tokenizer=tokenizer,
                                  functions=functions, **(extra or {}))

    steps = -(-len(pairs) // profile.reward.batch_size)  # of one epoch
    watched = [to_preference(r) for r in held_out[: sizes.watched]]
    run = train(pairs, eval_every=steps, extra={
        "eval_data": watched, "callbacks": [live_monitor("loss", "accuracy")],
        "out_dir": run_folder() / "reward_model", "resume": False})
    model = run.model

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    epochs = [run.metrics[start : start + steps] for start in range(0, len(run.metrics), steps)]
    curves = {"training pairs": [], f"{len(watched)} held-out pairs": []}
    for part in epochs:
        last = part[-1]
        curves["training pairs"].append({"step": last["step"]} | {
            key: float(np.mean([record[key] for record in part])) for key in ("loss", "accuracy")})
        curves[f"{len(watched)} held-out pairs"].append(
            {"step": last["step"], "loss": last["eval_loss"], "accuracy": last["eval_accuracy"]})
    seen, unseen = (curve[-1]["accuracy"] for curve in curves.values())
    display(training_curves(curves, ["loss", "accuracy"], title=(
        f"By the last epoch {seen:.0%} of the training pairs are in order, and {unseen:.0%} of the held-out ones")))
    before, after = (curves[f"{len(watched)} held-out pairs"][k]["accuracy"] for k in (0, -1))
    noise = 1 / len(watched) ** 0.5  # two standard errors of a share near one half
    moved = "stays" if abs(after - before) < noise else "rises" if after > before else "falls"
    display(observed("held-out accuracy from the first to the last epoch", moved))

# %% [markdown]
# The loss tells it more clearly than the accuracy: on held-out pairs it goes *up* while the training loss goes to 0. The model grows ever surer of what it cannot know. (S4 saw the same: training accuracy about 1, loss about 0, held-out about 70 %.)

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    judge = scored_by(model)
    better, worse = both_scores(held_out, judge)
    known["trained"] = rates(judge)
    on_training = preference_report(*both_scores(pairs[: sizes.rough], judge))
    label, truth = known["trained"]["noisy labels"][0], known["trained"]["clean labels"][0]
    s4 = published("s4.test_accuracy")
    display(rates_with_intervals(
        known, xlabel="share of held-out pairs in order", published={"noisy labels": (s4.value, s4.source)},
        title=f"Of {min(len(pairs), sizes.rough)} training pairs {on_training['accuracy']:.1%} right; of {len(held_out)} held-out ones {label:.0%} of the labels, {truth:.0%} of the truth"))
    bound = known["length alone"]["clean labels"][0]
    head = known["untrained head"]["clean labels"][0]
    print(f"Against the truth the model is right on {truth - bound:+.1%} of the pairs over length alone, and {truth - head:+.1%} over the untrained head.")

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    report = preference_report(better, worse)
    gap = report["better_data_mean"] - report["worse_data_mean"]
    display(reward_distributions(
        {"better": better, "worse": worse}, xlabel="learned reward",
        title=f"The two sides overlap widely: their means are {gap:.2f} apart, the spread is {np.std(better + worse):.2f}"))
    display(better_worse_scatter(better, worse, title=(
        f"{report['worse_better_than_better_count']} of {len(held_out)} held-out pairs lie above the diagonal: the worse one scored higher")))

# %% [markdown]
# ## The cure
#
# Look once more at the untrained head: against the *truth*, the model that has learnt its pairs by heart is hardly ahead of that one random direction. It has learnt the labels, slips included. Fewer epochs, more data, weights pulled towards zero: each is compared with the run above, and a second seed says how much is chance. Watch two columns: accuracy, and the **held-out loss**, which asks how sure the model may be.

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    def summary_of(measure, records):
        """Of a trained model: accuracy on its pairs and the held-out ones, held-out loss, spread."""
        better, worse = (torch.tensor(s) for s in both_scores(held_out, measure))
        every = torch.cat([better, worse])
        return {"training": preference_report(*both_scores(records[: sizes.rough], measure))["accuracy"],
                "loss": bradley_terry_loss(better, worse).mean().item(),
                "correlation": length_correlation(measure),
                "mean": every.mean().item(), "std": every.std().item()} | rates(measure)

    def outcome(records, **changes):
        """`summary_of` a model that is trained on these records."""
        return summary_of(scored_by(train(records, **changes).model), records)

    def length_correlation(measure, records=held_out):
        texts = [(r["prompt"], r[f"response_{k}"]) for r in records for k in (0, 1)]
        return float(np.corrcoef(words(texts), measure(texts))[0, 1])

    more = read_pairs(profile.data.reward_train, sizes.more_pairs)
    few = {"num_epochs": profile.reward.few_epochs}
    cures = {
        f"seed {profile.reward.seed}, as above": summary_of(judge, pairs),
        **recorded_or_live("cures", lambda: {
            f"seed {profile.reward.seed + 1}": outcome(pairs, seed=profile.reward.seed + 1),
            "fewer epochs": outcome(pairs, **few),
            f"{len(more)} pairs, fewer epochs": outcome(more, **few),
            "weight decay": outcome(pairs, weight_decay=profile.reward.weight_decay)})}

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    kinds = ("noisy labels", "clean labels")
    best = min(cures, key=lambda name: cures[name]["loss"])
    display(rates_with_intervals(
        {name: {kind: tuple(found[kind]) for kind in kinds} for name, found in cures.items()},
        xlabel="share of held-out pairs in order", title=f"Lowest held-out loss: {best}"))
    for name, found in cures.items():
        print(f"{name:30} training {found['training']:.1%}   held-out loss {found['loss']:.2f}")

# %% [markdown]
# ## Three policies, three response sets
#
# S4 scored the pairs of three policies, each pair written by one of them. Here are ours (`base`; `sft_short`, tuned on few short examples; `verbose`, the long-winded one), on common prompts, with S4's below. (Its reward and its policies are others; only the *shape* of the table compares.)

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    sets = {}
    for r in read_pairs(profile.data.reward_sets, 10**6):
        sets.setdefault(r["policy_0"], []).append(r)
    response_sets = {}
    for name, records in sets.items():
        records = records[: sizes.set_pairs]
        sides = both_scores(records, judge)
        response_sets[name] = preference_report(*sides) | {
            "reward_mean": float(np.mean(sides)), "reward_std": float(np.std(sides)),
            "gold_mean": float(np.mean([r[f"gold_reward_{k}"] for r in records for k in (0, 1)]))}
    others = {f"S4: {name}": {key: figure.value for key, figure in published_group(group).items()}
              for name, group in (("Alpaca-7B", "s4.alpaca_7b"), ("Alpaca2-7B", "s4.alpaca2_7b"),
                                  ("Alpaca3-8B", "s4.alpaca3_8b"))}
    columns = list(next(iter(response_sets.values())))
    display(pd.DataFrame(response_sets | others).T[columns].astype(float).round(3))

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    for name, row in others.items():
        right, wrong = row["worse_worse_than_better_count"], row["worse_better_than_better_count"]
        print(f"{name:17} accuracy as published {row['accuracy']:.1%}; from its counts {right / (right + wrong):.1%}")

# %% [markdown]
# S4's two tables do not agree: the accuracies that its counts give differ from those it states, and the order of the first two policies is swapped. The source does not say why. Two more things do not follow from such a table, though its report drew
# both: equal standard deviations do not mean equally stable texts, and a higher accuracy does not mean a better policy. Compare our `reward_mean` with `gold_mean`: which policy does the learned reward prefer, and which is really right most often?
#
# ## Length
#
# Ten more words are worth 0.2 to our annotators, and nothing to the gold reward. How much of it did the model take over? The correlation of reward and number of words, beside that of the gold reward, which is the honest target.
# Two cures. **Length as margin**: fit how labels depend on the difference in words alone, $P = \sigma(b\,\Delta)$, and give the loss $m = -b\,\Delta$: what length explains, the reward need not (it trains again). **Taken out afterwards**: fit the slope of
# the scores on the number of words on half of the held-out responses (no labels are needed) and subtract it on the other half. (Padding or cutting to one length, which a course answer named, cures nothing: the mask hides the padding, and the cut removes the answers.)

# %%
predict("accuracy against the clean labels without the length", "rises")

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    def word_gap(r):
        row = to_preference(r)
        return len(row["chosen"].split()) - len(row["rejected"].split())

    def length_weight(records):
        """b of P(first is better) = sigmoid(b * difference in words), by Newton's method."""
        gaps, b = np.array([word_gap(r) for r in records], dtype=float), 0.0
        for _ in range(20):
            p = 1 / (1 + np.exp(-b * gaps))
            b += ((1 - p) * gaps).sum() / (p * (1 - p) * gaps**2).sum()
        return float(b)

    b = length_weight(pairs)
    print(f"b = {b:.3f} for a word: ten more words move the odds by a factor of {np.exp(10 * b):.1f}")
    half = [(r["prompt"], r[f"response_{k}"]) for r in held_out[::2] for k in (0, 1)]
    slope = np.polyfit(words(half), judge(half), 1)[0]
    print(f"slope of the learned reward: {slope:+.3f} for a word")

    def without_length(texts):
        return (np.array(judge(texts)) - slope * np.array(words(texts))).tolist()

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    cured = recorded_or_live("length", lambda: outcome(
        pairs, margins=[-b * word_gap(r) for r in pairs], **few))
    tested = held_out[1::2]
    gold_of = {(r["prompt"], r[f"response_{k}"]): r[f"gold_reward_{k}"] for r in held_out for k in (0, 1)}
    lengths = {"trained, as above": length_correlation(judge, tested),
               "taken out afterwards": length_correlation(without_length, tested),
               "fewer epochs": cures["fewer epochs"]["correlation"], "fewer epochs, length as margin": cured["correlation"],
               "gold reward": length_correlation(lambda texts: [gold_of[text] for text in texts], tested)}
    for name, value in lengths.items():
        print(f"{name:31} correlation with the number of words {value:+.2f}")

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    shown = {"trained, as above": rates(judge, tested), "taken out afterwards": rates(without_length, tested),
             "fewer epochs": cures["fewer epochs"], "fewer epochs, length as margin": cured}
    display(rates_with_intervals(
        {name: {kind: tuple(found[kind]) for kind in kinds} for name, found in shown.items()},
        xlabel="share of held-out pairs in order",
        title=f"The correlation with length goes from {lengths['trained, as above']:+.2f} to {lengths['taken out afterwards']:+.2f}, "
              f"and from {lengths['fewer epochs']:+.2f} to {lengths['fewer epochs, length as margin']:+.2f}"))
    old, new = (shown[name]["clean labels"][0] for name in ("trained, as above", "taken out afterwards"))
    display(observed("accuracy against the clean labels without the length", "rises" if new > old else "falls" if new < old else "stays"))

# %% [markdown]
# Accuracy against the *labels* can fall when the bias goes: the held-out labels hold the bias, too. Judge a cure by the clean labels, or by people who were asked with care.
#
# ## Best of n: search, and what it finds
#
# Sample $n$ responses, keep the one that the reward model (the *proxy* of the gold reward) likes best: the simplest use of a reward model, and the simplest attack on it. Both rewards in units of their own spread at $n = 1$ (Gao et al. 2023, [2210.10760](https://arxiv.org/abs/2210.10760), draw
# the same curves). Where the proxy climbs and the gold reward does not follow, the search pays for the model's mistakes.

# %%
predict("gold reward of the best of n against that of one sample", "rises")

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    problems, _ = load_records(profile.path(profile.data.maths_test), split="test", limit=sizes.best_of_problems)
    writer, writer_tokenizer = load_model(
        profile.path(profile.models.maths), device=profile.engine.device, dtype=profile.engine.dtype, trainable_adapter=False,
        adapter=profile.models.verbose and profile.path(profile.models.verbose))
    prompts = [render(load_template("r1_zero"), question=q) for q in problems["question"]]
    n = sizes.best_of
    drawn = complete(writer, writer_tokenizer, prompts, n=n, progress=True, batch_size=profile.engine.batch_size,
                     sampling=profile.sampling.settings(temperature=1.0, max_new_tokens=192))
    texts = [(prompts[k // n], completion.text) for k, completion in enumerate(drawn)]
    proxy = np.array(judge(texts)).reshape(-1, n)
    golds = [gold for gold in problems["gold_answer"] for _ in range(n)]
    gold = np.array([gold_reward(text, g) for (_, text), g in zip(texts, golds, strict=True)]).reshape(-1, n)

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    def curve(chosen_by, paid):
        """{n: (mean, low, high)} of the reward `paid` of the best by `chosen_by`, from one sample."""
        gains = {k: (best_of_n(chosen_by, paid, k)[1] - paid.mean(1)) / (paid.std() or 1.0) for k in range(1, n + 1)}
        return {k: (float(g.mean()), *bootstrap_interval(g)) for k, g in gains.items()}

    curves = {"reward model": curve(proxy, proxy), "gold reward": curve(proxy, gold),
              "gold reward, chosen by the gold reward": curve(gold, gold)}
    gained = {name: points[n][0] for name, points in curves.items()}
    top = max(curves["gold reward"], key=lambda k: curves["gold reward"][k][0])
    display(best_of_n_curves(curves, ylabel="gain (standard deviations)", title=(
        f"At n = {n} the reward model has gained {gained['reward model']:.1f}, the gold reward {gained['gold reward']:.1f} "
        f"(most at n = {top})")))
    low, high = curves["gold reward"][n][1:]
    display(observed("gold reward of the best of n against that of one sample", "rises" if low > 0 else "falls" if high < 0 else "stays"))

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    counts = np.array(words(texts)).reshape(-1, n)
    picked = counts[np.arange(len(counts)), proxy.argmax(1)]
    print(f"words: a sample {counts.mean():.1f}, the one picked of {n} {picked.mean():.1f}, the longest {counts.max(1).mean():.1f}")
    best_of = {str(k): {"proxy": float(best_of_n(proxy, gold, k)[0].mean()),
                        "gold": float(best_of_n(proxy, gold, k)[1].mean())} for k in range(1, n + 1)}

# %% [markdown]
# ## What moves the score?
#
# Pick a pair, change the response, score it. The bars take one part away at a time, add courtesy, tell the steps twice, or change the final number. Which edit moves the learned reward and not the gold reward, and which the other way round?

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    reward_explorer(held_out[:20], gold=gold_reward, score=lambda prompts, texts: score(
        model, tokenizer, prompts, texts, pool=pool_last_token))

# %% [markdown]
# ## Findings

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    findings = {
        "train_accuracy": on_training["accuracy"], "test_accuracy": known["trained"]["noisy labels"][0],
        "test_accuracy_clean": known["trained"]["clean labels"][0], "noise_ceiling": known["noise ceiling"]["noisy labels"][0],
        "test_accuracy_second_seed": cures[f"seed {profile.reward.seed + 1}"]["noisy labels"][0],
        "length_only_accuracy": known["length alone"]["noisy labels"][0],
        "untrained_accuracy": known["untrained head"]["noisy labels"][0], "untrained_accuracy_clean": known["untrained head"]["clean labels"][0],
        "reward_mean": float(np.mean(better + worse)), "reward_std": float(np.std(better + worse)),
        **{key: report[key] for key in ("better_data_mean", "worse_data_mean", "worse_better_than_better_count",
                                        "worse_worse_than_better_count")},
        "response_sets": response_sets, "length_correlation_before": lengths["trained, as above"],
        "length_correlation_after": lengths["taken out afterwards"], "length_correlations": lengths, "best_of_n": best_of}
    save_findings("02", findings, seeds=[profile.reward.seed, profile.reward.seed + 1])
    display(comparison_table("02", findings, ["s4.train_accuracy", "s4.test_accuracy"]))

# %% [markdown]
# **What is built in, what is found.** The gold reward, the noise and the annotators' liking for length were put into the world on purpose, and so was a policy that says things twice. How much of each the model takes over, that a few
# hundred pairs are learnt by heart, and how far the two rewards part under search you measured.
#
# **Inspect** in the explorer: a pair with a flipped label (the gold rewards say otherwise); a right short answer against a wrong long one; what courtesy is worth.
#
# ## Questions

# %%
answer("02-1", "b")

# %%
answer("02-2", "c")

# %%
answer("02-3", "b")

# %%
answer("02-4", "a")

# %%
answer("02-5", "a")

# %%
answer("02-6", "b")

# %%
answer("02-7", "c")

# %% [markdown]
# ## With a GPU
#
# `use_profile("small")` or `"full"` puts the head on a larger model with LoRA layers; the pairs stay the same. Predict first: does a larger model over-fit 512 pairs less, and does it like length less? Preference data of your own in this
# form (or in any other that `helpers.data` reads) takes the place of ours by `data.reward_train=FILE`; without gold rewards there are no clean labels.
#
# ## You have finished
#
# Your reward model is saved as the hub's own classifier in `reward_model/` of this lesson's run folder. Lesson 03 repairs the format; lesson 04 comes back to this judge, lesson 05 to the shipped one.

# %%
progress()

# %% [markdown]
# ---
# ## Going further
#
# ### Calibration
# The loss promises more than an order: $\sigma(r_1 - r_2)$ should be the *share* of people who prefer $y_1$. A model that has learnt its pairs by heart is sure everywhere. One number repairs most of it: divide the scores by a temperature fitted
# on held-out pairs (Guo et al. 2017, [1706.04599](https://arxiv.org/abs/1706.04599)).

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    gaps = np.array(better) - np.array(worse)
    fitting, testing = gaps[::2], gaps[1::2]

    def loss_at(temperature, some):
        return np.logaddexp(0, -some / temperature).mean()

    temperature = min(np.linspace(0.2, 20, 200), key=lambda t: loss_at(t, fitting))
    print(f"temperature {temperature:.1f}: held-out loss {loss_at(1, testing):.2f} -> {loss_at(temperature, testing):.2f}")
    for low in np.arange(0.5, 1.0, 0.1):
        sure = 1 / (1 + np.exp(-np.abs(testing)))
        kept = (sure >= low) & (sure < low + 0.1 + 1e-9)
        if kept.sum():
            print(f"sure {low:.0%} to {low + 0.1:.0%}: right {np.mean(testing[kept] > 0):.0%} of {kept.sum()} pairs")

# %% [markdown]
# ### Margins and centring
# If annotators say *how much* better one response is, a margin can ask for it: here the gap of the gold rewards stands in for their answer. Centring holds the mean of all scores near 0, which makes scores of two runs comparable, and changes little else.

# %%
if ready("to_preference", "bradley_terry_loss", "pool_last_token", "preference_report"):
    def strength(r):
        return abs(r["gold_reward_1"] - r["gold_reward_0"])

    further = recorded_or_live("further", lambda: {
        "margin": outcome(pairs, margins=[strength(r) for r in pairs], **few),
        "centred": outcome(pairs, center_coefficient=0.05, **few)})
    for name, found in ({"plain": cures["fewer epochs"]} | further).items():
        print(f"{name:8} mean {found['mean']:+.2f}, std {found['std']:.2f}, noisy {found['noisy labels'][0]:.1%}, "
              f"clean {found['clean labels'][0]:.1%}")
