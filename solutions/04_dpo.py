# %% [markdown]
# # 04 DPO and its family: learn from preferences without a reward model, and notice when it makes things worse
#
# A demonstration says "write this". A preference says less, "rather this than that", and you can get it for any response, also for those that the model itself writes. **After this
# lesson you can** write the DPO loss and say what each term does, make preference pairs from a model's own samples, read the curves of a run (why the chosen
# response may become *less* likely), and judge the result: you will train a model whose held-out accuracy and margin look better, and that is worse than its own start.
#
# **You need** lesson 03, or its ideas (response masks, an SFT adapter), and what a reward model is (lesson 02). **Time:** about 90 minutes.
#
# Stuck? `hint(1, "dpo_loss")` (up to 3), and `dpo_loss = use_reference("dpo_loss")` lets you go on; it is recorded as such.

# %% tags=["setup"]
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from torch.nn.functional import logsigmoid, relu

from helpers.data import load_records
from helpers.evaluation import (
    bootstrap_interval,
    complete,
    grade_completions,
    paired_test,
    wilson_interval,
)
from helpers.logprobs import (
    pad_prompt_and_response,
    response_log_probs,
    tokenize_prompt_and_response,
)
from helpers.models import LoraSettings, load_model, load_reward_model
from helpers.plotting import (
    better_worse_scatter,
    frontier,
    rates_with_intervals,
    reward_distributions,
    training_curves,
)
from helpers.prompts import load_template, render
from helpers.reward_models import score
from helpers.rewards import r1_zero_reward
from helpers.training import PreferenceSettings, train_preference
from workbook.artefacts import earlier
from workbook.bughunt import BETA, DPO_LR, DPO_STEPS, MICRO_PAIRS, PAIRS, judge_dpo_loop
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
    published_group,
    ready,
    recorded_or_live,
    run_folder,
    save_findings,
    use_profile,
    use_reference,
)
from workbook.properties import is_stub
from workbook.reading_list import reading_table
from workbook.world.preferences import gold_reward

begin("04")
profile = use_profile("tiny")

# %% [markdown]
# ## Ten seconds: this is what you will build
#
# One problem, several samples of the tuned model. It knows the right way and a wrong one, and chooses between them by chance. Nobody has to show it a solution: it is enough to say which of its own is better.

# %%
base_path = profile.path(profile.models.maths)
start_path = earlier("03", "sft") or (profile.models.start and profile.path(profile.models.start))
R1_ZERO = load_template("r1_zero")

def new_start(seed=0):
    """The model that every run of this lesson starts from: your SFT adapter, or the shipped one."""
    lora = None if start_path else LoraSettings(rank=profile.sft.rank, alpha=profile.sft.alpha, seed=seed)
    return load_model(base_path, adapter=start_path, lora=lora, device=profile.engine.device, dtype=profile.engine.dtype)

def problems_of(split, first, count):
    records, _ = load_records(profile.path(profile.data.maths_test if split == "test" else profile.data.maths_train), split=split)
    return records.select(range(min(first, len(records) - 1), min(first + count, len(records))))

def respond(model, problems, *, n=1, temperature=1.0, seed=0):
    """Graded responses, n per problem: rows with id, prompt, generation, finish_reason, metrics."""
    prompts = [render(R1_ZERO, question=q) for q in problems["question"]]
    longest = min(profile.dpo.max_new_tokens, profile.sampling.max_new_tokens)
    sampling = profile.sampling.settings(temperature=temperature, max_new_tokens=longest, seed=seed)
    found = complete(model, tokenizer, prompts, n=n, sampling=sampling, batch_size=profile.engine.batch_size)
    rows = grade_completions(problems, found, r1_zero_reward, prompts=prompts)
    return [row | {"completion": completion} for row, completion in zip(rows, found, strict=True)]

start, tokenizer = new_start()
print("from", "your own lesson 03" if earlier("03", "sft") else "the shipped adapter")
tried = respond(start, problems_of("test", 0, 12), n=4)
groups = [tried[k : k + 4] for k in range(0, len(tried), 4)]
unsure = [group for group in groups if 0 < sum(row["metrics"]["reward"] for row in group) < 4]
for row in (unsure or groups)[0]:
    print(f"reward {row['metrics']['reward']:.0f}:{row['generation']}")

# %% [markdown]
# ## The idea
#
# Reinforcement learning from human feedback looks for the policy with the highest reward that stays near a reference: $\max_\pi \mathbb{E}[r(x, y)] - \beta\,\mathrm{KL}(\pi \| \pi_\text{ref})$. The best one
# is known in closed form, $\pi^*(y|x) = \pi_\text{ref}(y|x)\, e^{r(x,y)/\beta} / Z(x)$. Rafailov et al. (2023, [2305.18290](https://arxiv.org/abs/2305.18290)) read it backwards: every policy *is* the best one for some reward, namely
#
# $$ r(x, y) = \beta \log \frac{\pi(y|x)}{\pi_\text{ref}(y|x)} + \beta \log Z(x) $$
#
# Put this reward into lesson 02's Bradley-Terry loss. Both responses answer the same prompt, so the unknown $Z(x)$ cancels, and what is left trains the policy itself: no reward model, no sampling loop.
#
# ## Exercise 1: how likely is a whole response?
# *Difficulty 1 of 5, importance 5 of 5, 10 minutes*
#
# `log_probs` (B, T) holds the log-probability of each label; `response_mask` (B, T) is True where the label belongs to the response. Return the **sum** over the response, (B,). A mean would be another method (SimPO, below). What stands outside
# the mask must not matter, were it `-inf` or `nan`; a row without response tokens gives 0; the mask may come as bool or as numbers.

# %% nbgrader={"grade": false, "grade_id": "sequence_log_probs", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sequence_log_probs(log_probs: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) and (B, T) to (B,). Example: [[-9, -1, -3]] with mask [[0, 1, 1]] gives [-4]."""
    ### BEGIN SOLUTION
    return torch.where(response_mask.bool(), log_probs, 0.0).sum(dim=-1)
    ### END SOLUTION

# %%
if ready("sequence_log_probs"):
    batch = pad_prompt_and_response([[5, 6, 7], [5, 6, 7]], [[8, 9], [8, 9, 10, 11]], pad_token_id=0)
    log_probs = torch.full(batch["labels"].shape, -0.5)
    print(batch["response_mask"].int())
    print("two and four response tokens at -0.5:", sequence_log_probs(log_probs, batch["response_mask"]))

# %%
check(sequence_log_probs)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"nan."** `nan * 0` is `nan`: choose with `torch.where` or `masked_fill`. **"Too many tokens."** The prompt's labels are outside the mask; sum over the last axis only.
# **"An int mask picks the wrong places."** `response_mask.bool()`.
# </details>
#
# ## Exercise 2: the reward inside the policy
# *Difficulty 1 of 5, importance 5 of 5, 5 minutes*
#
# $$ \hat r(x, y) = \beta\,\big(\log \pi(y|x) - \log \pi_\text{ref}(y|x)\big) $$
#
# It says how much more the policy likes a response than the reference did. Sums come in float32, or in bfloat16 from a large model: there, numbers near -300 lie 2 apart, so convert to float32 *before* the subtraction (leave float64 as it is). Keep the gradient.

# %% nbgrader={"grade": false, "grade_id": "implicit_rewards", "locked": false, "schema_version": 3, "solution": true, "task": false}
def implicit_rewards(policy_logps: torch.Tensor, ref_logps: torch.Tensor, beta: float = 0.1) -> torch.Tensor:
    """(N,) and (N,) to (N,). Example: -10 against -12 with beta 0.5 gives 1."""
    ### BEGIN SOLUTION
    policy, reference = (t if t.dtype == torch.float64 else t.float() for t in (policy_logps, ref_logps))
    return beta * (policy - reference)
    ### END SOLUTION

# %%
if ready("implicit_rewards"):
    short, long = torch.tensor([-6.0, -60.0]), torch.tensor([-7.0, -64.0])
    print("log-probabilities", short, "rank by length; rewards", implicit_rewards(short, long), "do not")

# %%
check(implicit_rewards)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"bfloat16 is off."** `.float()` on both before the difference. **"No gradient."** No `detach()` here; the loss needs it.
# </details>
#
# ## Exercise 3: the DPO loss
# *Difficulty 2 of 5, importance 5 of 5, 15 minutes*
#
# With $m = \hat r(x, y_\text{chosen}) - \hat r(x, y_\text{rejected})$ and a share $\varepsilon$ of labels that are believed to be flipped (`label_smoothing`; conservative DPO, Mitchell 2023):
#
# $$ \mathcal{L} = -(1 - \varepsilon) \log \sigma(m) - \varepsilon \log \sigma(-m) $$
#
# Return `(losses, chosen_rewards, rejected_rewards)`, each (N,), not reduced; the two rewards are for the curves, so detach them. Where policy and reference agree, every loss is $\log 2 = 0.6931$: the first number of every run, and the first thing to look at.
# With $\varepsilon = 0$ the gradient is $-\sigma(-m)\,\beta\,\nabla(\log \pi_\text{chosen} - \log \pi_\text{rejected})$: strong where the order is wrong, and never anything but a *difference*.

# %% nbgrader={"grade": false, "grade_id": "dpo_loss", "locked": false, "schema_version": 3, "solution": true, "task": false}
def dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
             beta=0.1, label_smoothing=0.0):
    """Four (N,) of summed log-probabilities to (losses, chosen_rewards, rejected_rewards)."""
    ### BEGIN SOLUTION
    chosen = implicit_rewards(policy_chosen_logps, ref_chosen_logps, beta)
    rejected = implicit_rewards(policy_rejected_logps, ref_rejected_logps, beta)
    margin = chosen - rejected
    losses = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return losses, chosen.detach(), rejected.detach()
    ### END SOLUTION

# %%
if ready("implicit_rewards", "dpo_loss"):
    reference = torch.tensor([-10.0, -10.0, -10.0])
    policy = torch.tensor([-10.0, -5.0, -12.0])  # as at the start; chosen up; both down by 2
    for beta in (0.1, 0.5):
        losses = dpo_loss(policy, torch.tensor([-10.0, -10.0, -12.0]), reference, reference, beta)[0]
        print(f"beta {beta}: {losses.tolist()}")

# %%
check(dpo_loss)

# %% [markdown]
# The third loss is $\log 2$, too, although both responses have become less likely: the loss cannot see it. Remember this one.
#
# <details><summary>Something does not work?</summary>
#
# **"inf far from zero."** `logsigmoid(m)`, not `log(sigmoid(m))`. **"The rewards carry a gradient."** `.detach()`. **"Smoothing goes the wrong way."** Its term is $-\varepsilon \log \sigma(-m)$: sure and wrong must cost more.
# </details>
#
# ## Exercise 4: pairs from the policy's own samples
# *Difficulty 3 of 5, importance 4 of 5, 15 minutes*
#
# Who writes the pairs? If the policy does (*on-policy*), the loss teaches about texts that it would really write. Given are graded rows, several per problem, one problem after the other. Drop a response that was cut off (`finish_reason` neither `"eos"` nor `"stop_string"`),
# is empty, or repeats an earlier response to the same problem. Then pair the best with the worst, the second best the second worst, and so on, at most `most` pairs per problem, each response once, and only where the first is *strictly* better: two wrong ones teach nothing.
# Return the pairs and a count of what was dropped and why (`"cut off"`, `"empty"`, `"repeated"`; in a problem with pairs `"not needed"`, in one without `"all alike"`), without zeros.

# %% nbgrader={"grade": false, "grade_id": "on_policy_pairs", "locked": false, "schema_version": 3, "solution": true, "task": false}
def on_policy_pairs(rows, *, most=1):
    """([{"prompt", "chosen", "rejected", "chosen_reward", "rejected_reward"}, ...], dropped).

    A row has "id", "prompt", "generation", "finish_reason" and "metrics": {"reward": ...}.
    """
    ### BEGIN SOLUTION
    pairs, dropped, problems = [], Counter(), {}
    for row in rows:
        kept, text = problems.setdefault(row["id"], {}), row["generation"]
        if row["finish_reason"] not in ("eos", "stop_string"):
            dropped["cut off"] += 1
        elif not text.strip():
            dropped["empty"] += 1
        elif text in kept:
            dropped["repeated"] += 1
        else:
            kept[text] = {"prompt": row["prompt"], "text": text, "reward": row["metrics"]["reward"]}
    for kept in problems.values():
        ranked = sorted(kept.values(), key=lambda r: r["reward"], reverse=True)
        two = [(ranked[k], ranked[-1 - k]) for k in range(len(ranked) // 2)]
        two = [(better, worse) for better, worse in two if better["reward"] > worse["reward"]][:most]
        dropped["not needed" if two else "all alike"] += len(ranked) - 2 * len(two)
        pairs += [{"prompt": better["prompt"], "chosen": better["text"], "rejected": worse["text"],
                   "chosen_reward": better["reward"], "rejected_reward": worse["reward"]} for better, worse in two]
    return pairs, +dropped
    ### END SOLUTION

# %%
if ready("on_policy_pairs"):
    row = {"id": 0, "prompt": "2+2=", "finish_reason": "eos"}
    some = [row | {"generation": text, "metrics": {"reward": r}} for text, r in ((" 4", 1.0), (" 5", 0.0), (" 5", 0.0), (" 6", 0.0))]
    print(on_policy_pairs(some))

# %%
check(on_policy_pairs)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"A pair of two wrong ones."** The comparison is `>`. **"A cut-off text is chosen."** Its end was never written: drop it before ranking. **"Copies."** Within one problem keep each text once; across problems the same text may appear again.
# **"The counts are off."** Every row is in a pair or counted once.
# </details>
#
# ## The pairs
#
# Your function on samples of the model that all runs start from. A verifier grades them (the reward of lesson 01), so no person labels anything. A second policy answers the same problems; its wrong answers
# wait for a later experiment, so only problems on which both kinds of wrong answer exist are kept.

# %%
FIRST = 1000  # training problems behind those that lesson 03 shows

def pairs_of(first, count, seed):
    """(on-policy pairs, the same with the other policy's wrong responses, what was dropped)."""
    problems = problems_of("train", first, count)
    pairs, dropped = on_policy_pairs(respond(start, problems, n=sizes.samples, seed=seed))
    asked = [k for k, q in enumerate(problems["question"]) if render(R1_ZERO, question=q) in {p["prompt"] for p in pairs}]
    rows = respond(other, problems.select(asked), n=sizes.other_samples, seed=seed) if asked else []
    wrong = {row["prompt"]: row["generation"] for row in reversed(rows)
             if not row["metrics"]["reward"] and row["finish_reason"] == "eos" and row["generation"].strip()}
    kept = [p for p in pairs if p["prompt"] in wrong]
    dropped["a pair without a wrong answer of the other policy"] = len(pairs) - len(kept)
    kept = kept if len(kept) > 1 else worked(problems)
    return kept, [p | {"rejected": wrong.get(p["prompt"], p["rejected"])} for p in kept], +dropped

def worked(problems):
    """Pairs for a model that is hardly ever right: worked solutions, and the same with a wrong number."""
    solution = " {} </think> <answer>{}</answer>"
    steps = [text.split("####")[0].strip() for text in problems["answer"]]
    return [{"prompt": render(R1_ZERO, question=q), "chosen": solution.format(s, gold), "rejected": solution.format(s, f"1{gold}")}
            for q, s, gold in zip(problems["question"], steps, problems["gold_answer"], strict=True)]

if ready("on_policy_pairs"):
    sizes = profile.sizes.dpo
    other, _ = load_model(base_path, adapter=profile.models.verbose and profile.path(profile.models.verbose), trainable_adapter=False,
                          device=profile.engine.device, dtype=profile.engine.dtype)
    pairs, off_policy, dropped = pairs_of(FIRST, sizes.problems, profile.dpo.seed)
    held_out, off_held_out, _ = pairs_of(FIRST + 600, sizes.held_out, profile.dpo.seed)
    print(f"{sizes.problems} problems, {sizes.samples} samples each: {len(pairs)} pairs and {len(held_out)} held-out ones. "
          f"Dropped: {', '.join(f'{why} {count}' for why, count in dropped.most_common())}.")
    shown = sorted(range(len(pairs)), key=lambda k: len(off_policy[k]["rejected"]))[len(pairs) // 2]  # of middling length
    for name, text in {"chosen": pairs[shown]["chosen"], "rejected, its own": pairs[shown]["rejected"],
                       "rejected, of the other policy": off_policy[shown]["rejected"]}.items():
        print(f"{name}:{text}")

# %% [markdown]
# ## The run
#
# The policy starts where the reference stands, and your functions train it. Three curves matter: the **margin** $m$, the **accuracy** (share of pairs with $m > 0$), both on held-out pairs, and the log-probability of the chosen
# responses. Everybody expects the last one to rise, since these are the good answers. Say what you expect on held-out pairs: `"rises"`, `"falls"`, or `"stays"` (moves less than 0.1, in natural logarithms).

# %%
predict("log-probability of the held-out chosen responses", "rises")

# %%
NEEDED = ("sequence_log_probs", "implicit_rewards", "dpo_loss", "on_policy_pairs")

if ready(*NEEDED):
    def functions_for(method):
        """Your functions that a method takes, as far as they are written."""
        loss = {"robust": "robust_dpo_loss"}.get(method, f"{method}_loss")
        names = ["sequence_log_probs", loss] + ["implicit_rewards"] * (method not in ("simpo", "orpo"))
        mine = {name: globals()[name] for name in names if name in globals()}
        return {name: function for name, function in mine.items() if not is_stub(function)}

    def train(data, watched, method="dpo", extra=None, **changes):
        """A run of `train_preference` from the common start, with your functions."""
        steps = max(1, round(profile.dpo.epochs * -(-len(data) // profile.dpo.batch_size)))
        options = {"lr": profile.dpo.lr, "batch_size": profile.dpo.batch_size, "micro_batch_size": profile.dpo.micro_batch, "num_epochs": profile.dpo.epochs,
                   "beta": profile.dpo.beta, "seed": profile.dpo.seed, "progress": False, "eval_every": max(1, steps // 8)}
        policy, _ = new_start()
        return train_preference(policy, data, PreferenceSettings(**options | changes), tokenizer=tokenizer, method=method,
                                functions=functions_for(method), eval_data=watched, **(extra or {}))

    run = train(pairs, held_out, extra={"callbacks": [live_monitor("loss", "accuracy", "chosen_logps")],
                                        "out_dir": run_folder() / "dpo", "resume": False})
    print(f"first loss {run.metrics[0]['loss']:.4f} (log 2 is 0.6931), last {run.metrics[-1]['loss']:.4f}; saved in {run.folder.name}/")

# %%
if ready(*NEEDED):
    def curve_of(run):
        """The held-out records of a run, from before its first step on."""
        kept = [{"step": r["step"]} | {name[5:]: r[name] for name in r if name.startswith("eval_")}
                for r in run.metrics if "eval_loss" in r]
        first, beta = kept[0], run.settings.beta or 0.1
        at_start = {f"{side}_logps": first[f"{side}_logps"] - first[f"{side}_reward"] / beta for side in ("chosen", "rejected")}
        return [{"step": 0, "margin": 0.0, "accuracy": 0.5} | at_start, *kept]  # all ties: drawn as a coin, though lesson 02's report counts them as wrong

    curve = curve_of(run)
    old, new = curve[0]["chosen_logps"], curve[-1]["chosen_logps"]
    display(training_curves({"on-policy pairs": curve}, ["accuracy", "margin", "chosen_logps"], title=(
        f"{len(held_out)} held-out pairs: accuracy {curve[-1]['accuracy']:.0%}, margin {curve[-1]['margin']:.2f}; "
        f"log-probability of the chosen ones {old:.2f} -> {new:.2f}")))
    display(observed("log-probability of the held-out chosen responses", "stays" if abs(new - old) < 0.1 else "rises" if new > old else "falls"))
    print(f"rejected ones: {curve[0]['rejected_logps']:.2f} -> {curve[-1]['rejected_logps']:.2f}")

# %% [markdown]
# ## Did it help?
#
# Greedy, on test problems, before and after; the same problems, so the paired test counts those that changed. Other seeds draw other samples, make other pairs and train in another order. (S0 reports the accuracy on validation *pairs*, from 63 to 67 %. It is a
# number about telling pairs apart; what a policy writes is another question, and the rest of this lesson is about the difference.)

# %%
if ready(*NEEDED):
    tested = problems_of("test", 0, sizes.tested)

    def greedy(model):
        """What the model answers to the test problems, graded."""
        return respond(model, tested, temperature=0.0)

    def right(rows):
        return [bool(row["metrics"]["reward"]) for row in rows]

    def seed_run(seed):
        data, _, _ = pairs_of(FIRST, sizes.problems, seed)
        return sum(right(greedy(train(data, held_out, seed=seed).model)))

    rows_start, rows_dpo = greedy(start), greedy(run.model)
    hits_start, hits_dpo = right(rows_start), right(rows_dpo)
    other_seeds = recorded_or_live("seeds", lambda: {
        "tested": len(tested), "start": sum(hits_start), "right": [seed_run(profile.dpo.seed + k) for k in range(1, sizes.seeds)]})
    drawn = " (recorded)" if profile.depth == "short" else ""
    rates = {"start": (sum(hits_start), len(tested)), f"DPO, seed {profile.dpo.seed}": (sum(hits_dpo), len(tested))}
    rates |= {"start (recorded)": (other_seeds["start"], other_seeds["tested"])} if drawn else {}
    rates |= {f"DPO, seed {profile.dpo.seed + k}{drawn}": (count, other_seeds["tested"]) for k, count in enumerate(other_seeds["right"], 1)}
    test = paired_test(hits_dpo, hits_start)
    print(f"right only after: {test.only_first}, only before: {test.only_second}; p = {test.p_value:.2g}")
    accuracy = {name: (count / total, *wilson_interval(count, total)) for name, (count, total) in rates.items()}
    shown = {name: {"strict accuracy": rate} for name, rate in accuracy.items()}
    gains = [100 * (rate[0] - accuracy["start" + drawn * (drawn in name)][0]) for name, rate in accuracy.items() if name.startswith("DPO")]
    display(rates_with_intervals(shown, xlabel=f"share of test problems right (greedy, {len(tested)} here)", title=(
        f"{', '.join(f'{gain:+.1f}' for gain in gains)} points, each seed over its own start")))

# %% [markdown]
# ## The judges
#
# Accuracy is one view. S4 asked a **reward model** instead: it scored the answers of the model before and after DPO on 366 prompts. Here two judges look at the greedy answers: lesson 02's reward model (yours, if you have trained it) and the **gold reward**, the
# truth behind the world. On these problems no answer abstains and none is polite, so the gold reward is 1 for a right number and 0 for a wrong one, inside the format or outside: nearly the accuracy again. The second opinion is the reward model's. Beside them stand the number of words and, from samples, the KL divergence from the start: the mean of $\log \pi - \log \pi_\text{start}$ over what $\pi$ writes.

# %%
judge_path = earlier("02", "reward_model") or (profile.models.reward and profile.path(profile.models.reward))
is_adapter = bool(judge_path) and (Path(judge_path) / "adapter_config.json").exists()
judge, judge_words = load_reward_model(*([base_path] if is_adapter or not judge_path else [judge_path]), adapter=judge_path if is_adapter else None,
                                       device=profile.engine.device, dtype=profile.engine.dtype)

def divergence(model):
    """KL(model, start) in nats per response: the mean of log pi - log pi_start over samples of pi."""
    if model is start:
        return 0.0
    rows = respond(model, tested.select(range(min(sizes.sampled, len(tested)))), seed=profile.dpo.seed)
    gaps = []
    for first in range(0, len(rows), 64):
        drawn = [row["completion"] for row in rows[first : first + 64]]
        batch = pad_prompt_and_response([c.prompt_token_ids for c in drawn], [c.token_ids for c in drawn], tokenizer.pad_token_id)
        batch = {name: tensor.to(start.device) for name, tensor in batch.items()}
        with torch.no_grad():
            at_start = sequence_log_probs(response_log_probs(start, **batch)["log_probs"], batch["response_mask"]).tolist()
        gaps += [sum(c.log_probs) - there for c, there in zip(drawn, at_start, strict=True)]
    return float(np.mean(gaps))

def judged(model, rows=None):
    """The greedy answers under both judges: texts, gold rewards, the reward model's scores, words, KL."""
    rows = rows or greedy(model)
    texts, prompts = [row["generation"] for row in rows], [row["prompt"] for row in rows]
    return {"prompts": prompts, "texts": texts, "kl": divergence(model), "words": [len(text.split()) for text in texts],
            "right": sum(right(rows)), "gold": [gold_reward(row["generation"], row["gold_answer"]) for row in rows],
            "model": score(judge, judge_words, prompts, texts, batch_size=profile.engine.batch_size)}

def duel(new, old, by, kept=None):
    """Prompts on which `new` scores higher, lower, equal; and its share of the decided ones."""
    gap = np.array(new[by]) - np.array(old[by])
    gap = gap if kept is None else gap[kept]
    won, lost = int((gap > 0).sum()), int((gap < 0).sum())
    share = (won / (won + lost), *wilson_interval(won, won + lost)) if won + lost else (0.5, 0.0, 1.0)
    return {"won": won, "lost": lost, "ties": len(gap) - won - lost, "share": share}

if ready(*NEEDED):
    print("judge:", "your own of lesson 02" if earlier("02", "reward_model") else "the shipped one" if judge_path
          else "an untrained head, which says nothing: run lesson 02 with this profile first")
    at_start, after = judged(start, rows_start), judged(run.model, rows_dpo)
    for name, by in (("reward model", "model"), ("gold reward", "gold")):
        found = duel(after, at_start, by)
        print(f"{name:12} mean {np.mean(at_start[by]):+.3f} -> {np.mean(after[by]):+.3f}; DPO higher on {found['won']}, lower on {found['lost']}, "
              f"equal on {found['ties']}: wins {found['share'][0]:.0%} of the decided")

# %% [markdown]
# ## A run that looks better
#
# The held-out accuracy above is modest: two samples of one policy look alike. Clearer pairs are easy to have. Take the *same* problems and the *same* chosen responses, and let the rejected ones come from **another policy**, one that is long-winded and
# wrong (an old model, a competitor, a file from the web). Every other setting stays: $\beta$, learning rate, epochs, seed. Look at its curves first. Each run is watched on held-out pairs of its own kind, so the two accuracies answer different questions.

# %%
predict("gold reward after training on the clearer pairs, against the start", "rises")

# %%
if ready(*NEEDED):
    off_run = train(off_policy, off_held_out)
    curves = {"rejected: its own": curve, "rejected: another policy's": curve_of(off_run)}
    last = {name: points[-1] for name, points in curves.items()}
    display(training_curves(curves, ["accuracy", "margin", "chosen_logps"], title=(
        "Held-out accuracy " + " against ".join(f"{point['accuracy']:.0%}" for point in last.values()) + ", margin "
        + " against ".join(f"{point['margin']:.1f}" for point in last.values()) + ": by these two the second run looks better")))

# %%
if ready(*NEEDED):
    off_after = judged(off_run.model)
    arms = {"its own (on-policy)": after, "another policy's (off-policy)": off_after}
    wins = {by: {name: duel(arm, at_start, by) for name, arm in arms.items()} for by in ("model", "gold")}
    s4 = published_group("s4.dpo")
    shares = {name: {"reward model": wins["model"][name]["share"], "gold reward": wins["gold"][name]["share"]} for name in arms}
    display(rates_with_intervals(shares, xlabel="share of the decided prompts won against the start", published={
        "reward model": (s4["win_rate"].value, "S4, row 70")}, title=(
        "One setting, who wrote the rejected response: " + ", ".join(f"{name} wins {row['gold reward'][0]:.0%}" for name, row in shares.items()))))
    gap = np.array(off_after["gold"]) - np.array(at_start["gold"])
    low, high = bootstrap_interval(gap)
    display(observed("gold reward after training on the clearer pairs, against the start", "falls" if high < 0 else "rises" if low > 0 else "stays"))

    table = {"start": {"gold reward": float(np.mean(at_start["gold"])), "reward model": float(np.mean(at_start["model"])), "words": float(np.mean(at_start["words"]))}}
    for name, arm in arms.items():
        table[name] = {"gold reward": float(np.mean(arm["gold"])), "reward model": float(np.mean(arm["model"])), "words": float(np.mean(arm["words"])), "KL": arm["kl"],
                       "won / lost (reward model)": "{won} / {lost}".format(**wins["model"][name]), "won / lost (gold)": "{won} / {lost}".format(**wins["gold"][name])}
    table["S4"] = {"reward model": f"{s4['no_dpo_data_mean'].value:.2f} -> {s4['dpo_data_mean'].value:.2f}",
                   "won / lost (reward model)": f"{s4['no_dpo_worse_than_dpo_count'].value:.0f} / {s4['no_dpo_better_than_dpo_count'].value:.0f}"}
    display(pd.DataFrame({name: {what: round(value, 2) if isinstance(value, float) else value for what, value in row.items()} for name, row in table.items()}).T.fillna("–"))
    display(reward_distributions({"start": at_start["model"], "on-policy": after["model"], "off-policy": off_after["model"]}, xlabel="learned reward",
                                 title="Off-policy pairs move the rewards down, on-policy pairs up" if np.mean(off_after["model"]) < np.mean(at_start["model"]) < np.mean(after["model"])
                                 else "The learned rewards before and after"))
    found = wins["model"]["another policy's (off-policy)"]
    display(better_worse_scatter(at_start["model"], off_after["model"], names=("before", "after"), title=(
        f"The reward model prefers the start on {found['lost']} prompts and the off-policy run on {found['won']}")))

# %% [markdown]
# The curves did not lie; they answered another question. Telling a long-winded wrong answer from a short right one is easy, and what was learnt is "not like that policy", above all "shorter". The model never wrote such texts, so nothing useful changed where it does write; what
# did change is that it now stops a step too early. S4's run won 28 % of its prompts; its report lists noisy preferences, a wrong $\beta$, too little training, and a metric that is not the objective. Any of them may be true there. Here a further cause is *shown*, who wrote the rejected response: the arms share every other setting.
#
# Two checks before believing it. First, more problems, and length: is it the length that the judge punishes? Prompts whose two responses are equally long (to a word) are judged apart from the others. The gold reward does not look at length: where it
# agrees on the others, what got shorter got wrong. Second: how many bad pairs does it take? We exchange a share of the rejected responses, and nothing else; all runs are judged on the same problems and watched on the same held-out pairs, those with the other policy's wrong answers.

# %%
every = problems_of("test", 0, profile.sizes.dpo.at_large)

def answered(model):
    """Greedy answers to many problems: words, gold rewards, the reward model's scores."""
    rows = respond(model, every, temperature=0.0)
    texts = [row["generation"] for row in rows]
    return {"words": np.array([len(text.split()) for text in texts]), "gold": [gold_reward(row["generation"], row["gold_answer"]) for row in rows],
            "model": score(judge, judge_words, [row["prompt"] for row in rows], texts, batch_size=profile.engine.batch_size)}

def against_start(model, before):
    """Duels with the start: on all problems, where both answers are equally long, and on the others."""
    arm = answered(model)
    same = np.abs(arm["words"] - before["words"]) <= 1
    return {kind: {by: duel(arm, before, by, kept) for by in ("model", "gold")}
            for kind, kept in (("all", same >= 0), ("equally long", same), ("shorter or longer", ~same))}

def duels_at_large():
    """Both arms on many problems, and their curves on held-out pairs of their own kind."""
    before, both = answered(start), dict(zip(arms, (run, off_run), strict=True))
    return {"problems": len(every), "held_out": len(held_out), "arms": {name: against_start(done.model, before) for name, done in both.items()},
            "curves": {name: [{key: point[key] for key in ("step", "accuracy", "margin")} for point in curve_of(done)] for name, done in both.items()}}

def in_words(found):
    share, low, high = found["share"]
    return f"{found['won']} / {found['lost']}: {share:.0%} ({low:.0%} to {high:.0%})"

if ready(*NEEDED):
    large = recorded_or_live("large", duels_at_large)
    display(pd.DataFrame({f"{name}, {kind}": {"prompts": sum(found["gold"][k] for k in ("won", "lost", "ties"))} | {
        f"won / lost ({judge_name})": in_words(found[by]) for judge_name, by in (("reward model", "model"), ("gold", "gold"))}
        for name, kinds in large["arms"].items() for kind, found in kinds.items()}).T)
    for name, points in large["curves"].items():
        print(f"{large['held_out']} held-out pairs, rejected: {name}: accuracy", ", ".join(f"{point['accuracy']:.0%}" for point in points[1:]),
              "; margin", ", ".join(f"{point['margin']:.2f}" for point in points[1:]))

# %%
def exchanged(share, seed=0):
    """`pairs` in which that share of the rejected responses is the other policy's."""
    chosen = set(np.random.default_rng(seed).permutation(len(pairs))[: round(share * len(pairs))].tolist())
    return [off_policy[k] if k in chosen else pairs[k] for k in range(len(pairs))]

def poisoned():
    """For each share of exchanged pairs the run against the start, and its accuracy on one set of held-out pairs."""
    before, found = answered(start), {}
    for share in (0.0, *profile.dpo.shares, 1.0):
        done = train(exchanged(share), off_held_out)
        found[share] = against_start(done.model, before)["all"] | {"accuracy": curve_of(done)[-1]["accuracy"]}
    return found

def summary_of(run, found=None):
    """What a run is judged by, as plain numbers; `found` where it has been judged before."""
    found, points = found or judged(run.model), curve_of(run)
    duels = {by: duel(found, at_start, by) for by in ("model", "gold")}
    return {"accuracy": (found["right"] / len(tested), *wilson_interval(found["right"], len(tested))), "win_rate_model": duels["model"]["share"], "win_rate_gold": duels["gold"]["share"], "kl": found["kl"],
            "gold": (float(np.mean(found["gold"])), *bootstrap_interval(found["gold"])), "model": float(np.mean(found["model"])),
            "words": float(np.mean(found["words"])), "eval_accuracy": points[-1].get("accuracy"), "eval_margin": points[-1]["margin"],
            "chosen_logps": points[-1]["chosen_logps"]}

def both_arms(seed):
    """Both arms from samples, pairs and an order of another seed."""
    own, theirs, _ = pairs_of(FIRST, sizes.problems, seed)
    return {name: summary_of(train(data, watched, seed=seed))
            for name, data, watched in zip(arms, (own, theirs), (held_out, off_held_out), strict=True)}

if ready(*NEEDED):
    ladder = {float(share): found for share, found in recorded_or_live("ladder", poisoned).items()}
    def loses_from(by):
        """Where the whole interval falls below one half: between which two shares."""
        shares = list(ladder)
        lost = [k for k, found in enumerate(ladder.values()) if found[by]["share"][2] < 0.5]
        return f"between {100 * shares[lost[0] - 1]:g} % and {100 * shares[lost[0]]:g} %" if lost and lost[0] else "at none" if not lost else "at once"

    print(f"A run loses where its whole interval is below one half. Under the reward model that begins {loses_from('model')}, under the gold reward {loses_from('gold')}.")
    display(pd.DataFrame({f"{100 * share:g} % exchanged": {"held-out accuracy": f"{found['accuracy']:.0%}"} | {
        f"won / lost ({judge_name})": in_words(found[by]) for judge_name, by in (("reward model", "model"), ("gold", "gold"))} for share, found in ladder.items()}).T)
    again = recorded_or_live("second seed", lambda: both_arms(profile.dpo.seed + 1))
    for name, found in again.items():
        told = ", ".join(f"{by} {found[key][0]:.0%} ({found[key][1]:.0%} to {found[key][2]:.0%})"
                         for by, key in (("reward model", "win_rate_model"), ("gold reward", "win_rate_gold")))
        print(f"seed {profile.dpo.seed + 1}, rejected: {name}: held-out accuracy {found['eval_accuracy']:.0%}; of the decided prompts it wins {told}")

# %% [markdown]
# In the recorded run the off-policy model loses only where its answers changed length. On equally long answers the reward model is undecided, and the gold reward decides few prompts, for the new model rather than against it. On the others both judges are against it: it stops a step
# too early, and that makes its answers wrong, not only short.
#
# The reward model turns against the run at a smaller share of exchanged pairs than the gold reward does: it likes length (lesson 02), so shorter answers cost there even where they are right. And the accuracy on held-out pairs ranks the runs the wrong way round: the one that wins most is right on about a
# quarter of these pairs.
#
# ## Margin up, chosen down
#
# Back to the third example of `dpo_loss`: the loss sees a difference, so the chosen response may fall as long as the rejected one falls faster. Below it does so with the off-policy pairs, whose rejected texts the policy hardly ever writes; with its own samples
# it rises. Whether a fall does harm, only samples tell. One cure keeps the chosen response likely: $\mathcal{L} + c \cdot (-\log \pi(y_\text{chosen}) / |y_\text{chosen}|)$ (Pang et al. 2024, [2404.19733](https://arxiv.org/abs/2404.19733), Eq. 1), the setting `nll_coefficient`.
# Below, the off-policy pairs, with and without it, beside the on-policy ones. Look at the printed win rate, too: the term is a second cure, beside better pairs. It needs a large $c$ here; Pang et al. took 1.

# %%
if ready(*NEEDED):
    cured = train(off_policy, off_held_out, nll_coefficient=profile.dpo.nll)
    cure = duel(judged(cured.model), at_start, "gold")["share"]
    lines = {"off-policy pairs": curve_of(off_run), f"with NLL of the chosen, c = {profile.dpo.nll:g}": curve_of(cured), "on-policy pairs": curve}
    change = {name: points[-1]["chosen_logps"] - points[0]["chosen_logps"] for name, points in lines.items()}
    display(training_curves(lines, ["margin", "chosen_logps", "rejected_logps"], title=(
        "Log-probability of the chosen responses: " + "; ".join(f"{name}: {value:+.2f}" for name, value in change.items()))))
    print(f"gold reward: with the NLL term the off-policy run wins {cure[0]:.0%} ({cure[1]:.0%} to {cure[2]:.0%}) of the decided prompts, "
          f"without it {wins['gold'][list(arms)[1]]['share'][0]:.0%}")

# %% [markdown]
# ## How far to go: $\beta$
#
# $\beta$ is the price of leaving the reference. A small one allows a large KL for the same margin. Gold reward against KL, one point per $\beta$: the frontier tells what each nat of KL buys.

# %%
if ready(*NEEDED):
    on_summary = summary_of(run, after)
    swept = {profile.dpo.beta: on_summary}
    for beta in profile.dpo.betas:
        swept[beta] = summary_of(train(pairs, held_out, beta=beta))
    more = recorded_or_live("betas", lambda: {str(beta): summary_of(train(pairs, held_out, beta=beta)) for beta in profile.dpo.more_betas})
    if profile.depth == "short":  # another start, perhaps another judge: not in one figure with yours
        for beta, found in more.items():
            print(f"recorded: beta {float(beta):g}, KL {found['kl']:.2f}, gold reward {found['gold'][0]:.3f} (its own start: {other_seeds['start'] / other_seeds['tested']:.0%} right)")
    else:
        swept |= {float(beta): found for beta, found in more.items()}
    swept = dict(sorted(swept.items()))
    points = {"start": (0.0, (float(np.mean(at_start["gold"])), *bootstrap_interval(at_start["gold"])))}
    points |= {f"beta {beta:g}": (max(found["kl"], 0.0), tuple(found["gold"])) for beta, found in swept.items()}
    best = max(swept, key=lambda beta: (round(swept[beta]["gold"][0], 3), -swept[beta]["kl"]))
    display(frontier(points, xlabel="KL from the start (nats per response)", ylabel="gold reward", title=(
        f"From beta {max(swept):g} to {min(swept):g} the KL goes from {swept[max(swept)]['kl']:.2f} to {swept[min(swept)]['kl']:.2f}; beta {best:g} reaches the most at the least KL")))

# %% [markdown]
# ## Cases
#
# Numbers do not say *what* changed. S4 asked for such a table and left it empty. Yours fills itself from your runs: for each, a prompt that changed most for the better, one for the worse, and the one whose length changed most.

# %%
if ready(*NEEDED):
    def analysis(k, arm):
        """One line on what changed between the start's response and the arm's."""
        before, after_text = at_start["texts"][k], arm["texts"][k]
        gain = arm["gold"][k] - at_start["gold"][k]
        words = arm["words"][k] - at_start["words"][k]
        verdict = "now right" if gain > 0.5 else "now wrong" if gain < -0.5 else "as right as before"
        size = "the same text" if before == after_text else f"{words:+d} words" if words else "as long"
        closed = "" if after_text.rstrip().endswith("</answer>") else "; the answer is not closed"
        taste = arm["model"][k] - at_start["model"][k]
        judges = "; the reward model disagrees" if gain * taste < 0 else ""
        return f"{verdict}, {size}{closed}{judges}"

    cases = []
    for name, arm in arms.items():
        gap = np.array(arm["gold"]) - np.array(at_start["gold"])
        for k in dict.fromkeys([int(gap.argmax()), int(gap.argmin()), int(np.argmax(np.abs(np.array(arm["words"]) - at_start["words"])))]):
            question = at_start["prompts"][k].rpartition("User:")[2].partition("Assistant:")[0].strip()
            cases.append({"run": name, "prompt": question, "before": at_start["texts"][k], "after": arm["texts"][k], "analysis": analysis(k, arm)})
    display(pd.DataFrame(cases).style.format(escape="html").hide(axis="index").set_properties(**{"text-align": "left", "white-space": "pre-wrap"}))

# %% [markdown]
# ## Exercise 5: SimPO, without a reference
# *Difficulty 2 of 5, importance 4 of 5, 10 minutes*
#
# Meng et al. (2024, [2405.14734](https://arxiv.org/abs/2405.14734), Eq. 6) make the reward what greedy decoding ranks by, the mean log-probability of a token, and ask for a margin $\gamma$:
#
# $$ \mathcal{L} = -\log \sigma\Big(\frac{\beta}{|y_c|} \log \pi(y_c|x) - \frac{\beta}{|y_r|} \log \pi(y_r|x) - \gamma\Big) $$
#
# `gamma` stands in the loss as it is (some libraries take the ratio $\gamma / \beta$). Rewards are $\beta \log \pi(y|x) / |y|$, detached; an empty response counts as one token. Convert to float32 as before.

# %% nbgrader={"grade": false, "grade_id": "simpo_loss", "locked": false, "schema_version": 3, "solution": true, "task": false}
def simpo_loss(policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths, beta=2.0, gamma=1.0):
    """(N,) sums and token counts to (losses, chosen_rewards, rejected_rewards)."""
    ### BEGIN SOLUTION
    chosen, rejected = (implicit_rewards(logps, torch.zeros_like(logps), beta) / lengths.clamp(min=1)  # in float32
                        for logps, lengths in ((policy_chosen_logps, chosen_lengths), (policy_rejected_logps, rejected_lengths)))
    return -logsigmoid(chosen - rejected - gamma), chosen.detach(), rejected.detach()
    ### END SOLUTION

# %%
if ready("simpo_loss"):
    lengths = torch.tensor([4]), torch.tensor([3])
    print("-1 and -2 per token, a margin of 2 where 1 is asked for:", simpo_loss(torch.tensor([-4.0]), torch.tensor([-6.0]), *lengths)[0])

# %%
check(simpo_loss)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The longer one always loses."** Divide by the length. **"gamma is scaled."** It is subtracted after beta. **"bfloat16 is off."** `.float()` before the division.
# </details>
#
# ## All methods, one budget
#
# The same pairs, the same start, the same number of steps; each loss with settings of its own (the profile holds them). KTO sees the two responses of a pair as a good and a bad one. Publications differ in the order of the methods (S1's table is below ours): read the intervals.
# The last table is S3's reading list with the place of each method in this course. S3 dated GRPO 2017/07 by mistake.

# %%
def run_method(name):
    """One method on the common pairs, as `summary_of` sees it."""
    return summary_of(train(pairs, held_out, **profile.dpo.methods[name]))

if ready(*NEEDED, "simpo_loss"):
    methods = recorded_or_live("methods", lambda: {"DPO": on_summary} | {name: run_method(name) for name in profile.dpo.methods})
    compared = {name: {"strict (greedy)": tuple(found["accuracy"]), "wins, reward model": tuple(found["win_rate_model"]),
                       "wins, gold reward": tuple(found["win_rate_gold"])} for name, found in methods.items()}
    best = max(methods, key=lambda name: methods[name]["accuracy"][0])
    rival = [name for name, found in methods.items() if found["accuracy"][2] >= methods[best]["accuracy"][0]]
    display(rates_with_intervals(compared, xlabel="share of the problems, of the decided prompts", title=(
        f"{best} has the highest accuracy; the intervals of {len(rival) - 1} others reach it")))
    numbers = {name: {"KL": found["kl"], "words": found["words"], "chosen, log-prob": found["chosen_logps"],
                      "reward model": found["model"]} for name, found in methods.items()}
    display(pd.DataFrame(numbers).T.round(2))
    s1 = published_group("s1.methods")
    display(pd.DataFrame({f"S1 {name}": figure.value for name, figure in s1.items()}, index=["SubEM", "F1"]).T)
    with pd.option_context("display.max_colwidth", None):
        display(reading_table())

# %% [markdown]
# ## Findings

# %%
if ready(*NEEDED, "simpo_loss"):
    off, on = (wins["model"][name] for name in ("another policy's (off-policy)", "its own (on-policy)"))
    findings = {
        "accuracy_start": accuracy["start"][0], "accuracy_dpo": [rate[0] for name, rate in accuracy.items() if name.startswith("DPO")],
        "start_of_each_seed": [accuracy["start"][0]] + [accuracy["start" + drawn][0]] * len(other_seeds["right"]),
        "win_rate_overtrained": off["share"][0], "win_rate_fixed": on["share"][0],
        "win_rate_overtrained_gold": wins["gold"]["another policy's (off-policy)"]["share"][0], "win_rate_fixed_gold": wins["gold"]["its own (on-policy)"]["share"][0],
        "dpo_data_mean": float(np.mean(off_after["model"])), "no_dpo_data_mean": float(np.mean(at_start["model"])),
        "no_dpo_better_than_dpo_count": off["lost"], "no_dpo_worse_than_dpo_count": off["won"], "ties": off["ties"],
        "beta_sweep": {f"{beta:g}": found for beta, found in swept.items()}, "methods": methods,
        "at_large": large, "second_seed": again, "pairs": len(pairs), "held_out_accuracy": {"on-policy": curve[-1]["accuracy"], "off-policy": curve_of(off_run)[-1]["accuracy"]}}
    save_findings("04", findings, seeds=[profile.dpo.seed + k for k in range(sizes.seeds)])
    ours = [f"s4.dpo.{name}" for name, figure in published_group("s4.dpo").items() if figure.finding]
    display(comparison_table("04", findings, ours))
    s0 = published_group("s0.dpo")
    print(f"S0, accuracy on validation pairs: {s0['accuracy_before'].value:.0%} -> {s0['accuracy_after'].value:.0%}; "
          f"here, on held-out pairs after training: {curve[-1]['accuracy']:.0%}")

# %% [markdown]
# **What is built in, what is found.** The long-winded policy was put into the world on purpose, and so was the habit of the start to stop a step too early. That DPO on its own samples cures the habit, and that clearer pairs make it worse while accuracy and margin improve, you measured.
#
# **Inspect** in the case table: a prompt that the off-policy run made wrong. Which step is missing?
#
# ## Questions

# %%
answer("04-1", "b")

# %%
answer("04-2", "c")

# %%
answer("04-3", "b")

# %%
answer("04-6", "c")

# %%
answer("04-8", "b")

# %%
answer("04-9", "a")

# %% [markdown]
# ## With a GPU
#
# `use_profile("small")` or `"full"` samples pairs from your own lesson 03 adapter of that profile (or from the plain model) on GSM8K; the other policy is then the model without its adapter. S0 trained Llama-3.1-8B on HH-RLHF with $\beta = 0.1$ and a learning
# rate of 1e-6; `python3 -m workbook train dpo --config dpo_full` trains Qwen2.5-7B-Instruct with LoRA on the same transcripts, and `data.train=FILE` takes ShareGPT pairs, chosen and rejected, or `better_response_id` as they are. Predict first: will a larger model's chosen log-probability fall, too?
#
# ## You have finished
#
# Your DPO adapter lies in the run folder, under `dpo/`. Lesson 05 starts from the shipped SFT adapter and lets it sample *while* it trains.

# %%
progress()

# %% [markdown]
# ---
# # Going further
#
# Five more losses; each is a small change of one you have. The check after each holds the same properties as in the core path, and `train(pairs, held_out, "ipo")` runs yours.
#
# ## IPO: a target instead of infinity
# *Difficulty 2 of 5, 10 minutes*
#
# DPO's loss wants an infinite margin wherever all labels agree. Azar et al. (2023, [2310.12036](https://arxiv.org/abs/2310.12036), Eq. 17) regress it to a target: with $h$ the difference of the two log-ratios (without $\beta$), $\mathcal{L} = (h - 1 / (2 \beta))^2$. Without lengths take sums,
# as the paper; with both lengths given divide each log-ratio by its length first, as TRL does. The rewards are $\beta$ times the log-ratios of the sums, in both cases.

# %% nbgrader={"grade": false, "grade_id": "ipo_loss", "locked": false, "schema_version": 3, "solution": true, "task": false}
def ipo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
             beta=0.1, chosen_lengths=None, rejected_lengths=None):
    """(losses, chosen_rewards, rejected_rewards). Example: with beta 0.1 the target of h is 5."""
    ### BEGIN SOLUTION
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError("give both lengths, or neither")
    chosen = implicit_rewards(policy_chosen_logps, ref_chosen_logps, 1.0)
    rejected = implicit_rewards(policy_rejected_logps, ref_rejected_logps, 1.0)
    difference = chosen - rejected
    if chosen_lengths is not None:
        difference = chosen / chosen_lengths.clamp(min=1) - rejected / rejected_lengths.clamp(min=1)
    return (difference - 1 / (2 * beta)) ** 2, beta * chosen.detach(), beta * rejected.detach()
    ### END SOLUTION

# %%
check(ipo_loss)

# %% [markdown]
# ## The hinge: enough is enough
# *Difficulty 1 of 5, 5 minutes*
#
# $\mathcal{L} = \max(0, 1 - m)$ with DPO's margin $m$ (SLiC, Zhao et al. 2023, [2305.10425](https://arxiv.org/abs/2305.10425), on log-ratios). A pair whose margin has reached 1 teaches nothing more.

# %% nbgrader={"grade": false, "grade_id": "hinge_loss", "locked": false, "schema_version": 3, "solution": true, "task": false}
def hinge_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1):
    """(losses, chosen_rewards, rejected_rewards). Example: a margin of 0.4 costs 0.6, one of 2 nothing."""
    ### BEGIN SOLUTION
    chosen = implicit_rewards(policy_chosen_logps, ref_chosen_logps, beta)
    rejected = implicit_rewards(policy_rejected_logps, ref_rejected_logps, beta)
    return relu(1 - (chosen - rejected)), chosen.detach(), rejected.detach()
    ### END SOLUTION

# %%
check(hinge_loss)

# %% [markdown]
# ## Robust DPO: noise subtracted, not smoothed
# *Difficulty 2 of 5, 5 minutes*
#
# If a share $\varepsilon$ of the labels is flipped, this loss has the true one as its mean (Chowdhury et al. 2024, [2403.00409](https://arxiv.org/abs/2403.00409)): $\mathcal{L} = \big(-(1 - \varepsilon) \log \sigma(m) + \varepsilon \log \sigma(-m)\big) / (1 - 2 \varepsilon)$. The sign of
# the second term is the opposite of conservative DPO's. An $\varepsilon$ below 0, or of one half or more, is a `ValueError`.

# %% nbgrader={"grade": false, "grade_id": "robust_dpo_loss", "locked": false, "schema_version": 3, "solution": true, "task": false}
def robust_dpo_loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
                    beta=0.1, label_smoothing=0.1):
    """(losses, chosen_rewards, rejected_rewards). Example: a margin of 0 costs log 2."""
    ### BEGIN SOLUTION
    if not 0 <= label_smoothing < 0.5:
        raise ValueError("label_smoothing must be from 0 to below one half")
    chosen = implicit_rewards(policy_chosen_logps, ref_chosen_logps, beta)
    rejected = implicit_rewards(policy_rejected_logps, ref_rejected_logps, beta)
    margin = chosen - rejected
    losses = -(1 - label_smoothing) * logsigmoid(margin) + label_smoothing * logsigmoid(-margin)
    return losses / (1 - 2 * label_smoothing), chosen.detach(), rejected.detach()
    ### END SOLUTION

# %%
check(robust_dpo_loss)

# %% [markdown]
# ## ORPO: SFT and preference in one stage
# *Difficulty 3 of 5, 15 minutes*
#
# Hong et al. (2024, [2403.07691](https://arxiv.org/abs/2403.07691), Eq. 6 and 7): with $l = \log \pi(y|x) / |y|$, $p = e^l$ and odds $p / (1 - p)$, $\mathcal{L} = -l_c - \lambda \log \sigma(\log \text{odds}_c - \log \text{odds}_r)$. No reference. The mean over
# tokens matters: of a sum, $1 - p$ would be 1. Near $p = 1$, $\log(1 - p)$ loses its digits: use `torch.log(-torch.expm1(l))` for $l > -\log 2$ and `torch.log1p(-torch.exp(l))` below, with $l$ at most `-torch.finfo(l.dtype).eps`. Rewards are $\lambda l$.

# %% nbgrader={"grade": false, "grade_id": "orpo_loss", "locked": false, "schema_version": 3, "solution": true, "task": false}
def orpo_loss(policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths, lam=0.1):
    """(losses, chosen_rewards, rejected_rewards). Example: equal odds add lam * log 2 to -l."""
    ### BEGIN SOLUTION
    def log_one_minus_p(x):
        x = x.clamp(max=-torch.finfo(x.dtype).eps)
        is_near = x > -0.6931
        # Each branch gets a harmless number where the other is taken: torch.where sends gradients through both.
        near = torch.log(-torch.expm1(torch.where(is_near, x, -1.0)))
        return torch.where(is_near, near, torch.log1p(-torch.exp(torch.where(is_near, -1.0, x))))

    chosen = implicit_rewards(policy_chosen_logps, torch.zeros_like(policy_chosen_logps), 1.0) / chosen_lengths.clamp(min=1)
    rejected = implicit_rewards(policy_rejected_logps, torch.zeros_like(policy_rejected_logps), 1.0) / rejected_lengths.clamp(min=1)
    odds = (chosen - log_one_minus_p(chosen)) - (rejected - log_one_minus_p(rejected))
    return -chosen - lam * logsigmoid(odds), lam * chosen.detach(), lam * rejected.detach()
    ### END SOLUTION

# %%
check(orpo_loss)

# %%
answer("04-7", "a")

# %% [markdown]
# ## KTO: no pairs at all
# *Difficulty 3 of 5, 15 minutes*
#
# Ethayarajh et al. (2024, [2402.01306](https://arxiv.org/abs/2402.01306), Eq. 7) take single responses that are good or bad. With $\hat r$ of exercise 2 and a reference point $z \ge 0$ (given; estimated on responses that belong to *other* prompts): a good one costs
# $w_D\,(1 - \sigma(\hat r - \beta z))$, a bad one $w_U\,(1 - \sigma(\beta z - \hat r))$. Write $1 - \sigma(x)$ as $\sigma(-x)$: the first is 0 in float32 from 17 on. $z$ has no gradient and holds nothing back. Return `(losses, rewards)`.

# %% nbgrader={"grade": false, "grade_id": "kto_loss", "locked": false, "schema_version": 3, "solution": true, "task": false}
def kto_loss(policy_logps, ref_logps, is_desirable, reference_point, beta=0.1,
             desirable_weight=1.0, undesirable_weight=1.0):
    """(N,) each to (losses, rewards). is_desirable is bool; reference_point is z."""
    ### BEGIN SOLUTION
    rewards = implicit_rewards(policy_logps, ref_logps, beta)
    is_good = is_desirable.bool()
    gain = torch.where(is_good, 1.0, -1.0) * (rewards - beta * reference_point)
    weights = torch.where(is_good, desirable_weight, undesirable_weight)
    return weights * torch.sigmoid(-gain), rewards.detach()
    ### END SOLUTION

# %%
check(kto_loss)

# %%
answer("04-5", "b")

# %% [markdown]
# ## What each loss pulls at
#
# The slope of each loss at a margin tells how hard it still pulls there. Where does DPO's pull end, where the hinge's, and which ones pull *back*?

# %%
if ready("dpo_loss", "ipo_loss", "hinge_loss", "robust_dpo_loss"):
    def pull(loss, **options):
        margins = torch.linspace(-30, 60, 91).requires_grad_()
        zero = torch.zeros(91)
        loss(margins, zero, zero, zero, **options)[0].sum().backward()
        return [{"step": float(x), "pull": -float(slope)} for x, slope in zip(margins.detach(), margins.grad, strict=True)]

    pulls = {"DPO": pull(dpo_loss), "smoothed, 0.1": pull(dpo_loss, label_smoothing=0.1), "robust, 0.1": pull(robust_dpo_loss), "hinge": pull(hinge_loss)}
    figure = training_curves(pulls, ["pull"], title="The pull on the difference of the log-ratios, beta 0.1")
    figure.axes[-1].set_xlabel("log-ratio of the chosen response minus that of the rejected one")
    display(figure)
    print(f"IPO at 0, at its target of 5, at 10: {[round(r['pull'], 1) for r in pull(ipo_loss) if r['step'] in (0.0, 5.0, 10.0)]}")

# %% [markdown]
# ## A bug hunt
#
# The loop below continues an SFT adapter with DPO; it runs without an error. It has up to three bugs, and they hide each other. Mend it in place; the judge trains for some seconds with yours and with a right loop, on the same pairs in the same
# order, and shows where the curves part. Look at the *first* loss first.

# %%
def both_sides(model, pairs, tokenizer):
    """log p of the chosen and of the rejected responses, (N,) each."""
    prompts = [pair["prompt"] for pair in pairs] * 2
    responses = [pair[side] for side in ("chosen", "rejected") for pair in pairs]
    batch = tokenize_prompt_and_response(prompts, responses, tokenizer, append_eos=True)
    sums = sequence_log_probs(response_log_probs(model, **batch)["log_probs"], batch["response_mask"])
    return sums[0::2], sums[1::2]


def dpo_loop(model, tokenizer, pairs):
    """DPO_STEPS steps of PAIRS pairs in micro-batches of MICRO_PAIRS; the start is the reference."""
    parts = [pairs[k : k + MICRO_PAIRS] for k in range(0, DPO_STEPS * PAIRS, MICRO_PAIRS)]
    with torch.no_grad(), model.disable_adapter():
        kept = [both_sides(model, part, tokenizer) for part in parts]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=DPO_LR)
    losses, micro = [], PAIRS // MICRO_PAIRS
    for step in range(DPO_STEPS):
        total = 0.0
        for place in range(step * micro, (step + 1) * micro):
            loss = dpo_loss(*both_sides(model, parts[place], tokenizer), *kept[place], beta=BETA)[0].sum() / PAIRS
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses

# %%
if ready("sequence_log_probs", "dpo_loss"):
    verdict = judge_dpo_loop(dpo_loop)
    display(verdict.panel)
    display(verdict.figure)

# %% tags=["solution-only"]
def mended_sides(model, pairs, tokenizer):
    prompts = [pair["prompt"] for pair in pairs] * 2
    responses = [pair[side] for side in ("chosen", "rejected") for pair in pairs]
    batch = tokenize_prompt_and_response(prompts, responses, tokenizer, append_eos=True)
    sums = sequence_log_probs(response_log_probs(model, **batch)["log_probs"], batch["response_mask"])
    return sums.chunk(2)  # the chosen ones stand in the first half, not in every second row


def mended_loop(model, tokenizer, pairs):
    parts = [pairs[k : k + MICRO_PAIRS] for k in range(0, DPO_STEPS * PAIRS, MICRO_PAIRS)]
    with torch.no_grad():  # with the adapter: it is part of the start
        kept = [mended_sides(model, part, tokenizer) for part in parts]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=DPO_LR)
    losses, micro = [], PAIRS // MICRO_PAIRS
    for step in range(DPO_STEPS):
        total = 0.0
        for place in range(step * micro, (step + 1) * micro):
            loss = dpo_loss(*mended_sides(model, parts[place], tokenizer), *kept[place], beta=BETA)[0].sum() / PAIRS
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()  # gradients of earlier steps were added again
        losses.append(total)
    return losses

display(judge_dpo_loop(mended_loop).panel)

# %% [markdown]
# ## One more question

# %%
answer("04-4", "b")
