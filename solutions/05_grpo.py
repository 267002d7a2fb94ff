# %% [markdown]
# # 05 GRPO: let the model try, grade it, and push what was better than its siblings
#
# Supervised tuning shows answers; reinforcement learning grades attempts. **After this lesson you can** write the whole of GRPO (advantages, clipped
# surrogate, reduction, KL, one step), train a policy with it in this notebook, say which of its parts carry the result and which are decoration,
# and see the central risk of learning from a learned reward with your own eyes.
#
# **You need** lessons 01 (the reward) and 02 (the reward model) or their ideas, and what a policy gradient is: raise the log-probability of a sample in proportion to how good it was. **Time:** about 90 minutes.
#
# Stuck? `hint(1, "grpo_clip_loss")` (up to 3), and `grpo_clip_loss = use_reference("grpo_clip_loss")` lets you go on; it is recorded as such.

# %% tags=["setup"]
import json
import math
import re
import time

import numpy as np
import pandas as pd
import torch
from IPython.display import display

from helpers.data import load_records
from helpers.evaluation import (
    bootstrap_interval,
    complete,
    grade_completions,
    mean_pass_at_k,
    paired_test,
    pass_at_k,
    summarise_rates,
)
from helpers.models import LoraSettings, load_model, load_reward_model
from helpers.plotting import method_table, rates_with_intervals, sweep_curves, training_curves
from helpers.plotting_rl import (
    ablation_marks,
    by_tokens,
    metric_grid,
    over_optimisation,
    rewards_by_step,
    surrogate_shapes,
)
from helpers.prompts import load_template, render, render_passages
from helpers.reward_models import from_model
from helpers.rewards import graded_text, qa_reward, qa_scores, r1_zero_reward
from helpers.training import (
    GRPOSettings,
    PPOSettings,
    PreferenceSettings,
    RewardSettings,
    SFTSettings,
    train_grpo,
    train_ppo,
    train_preference,
    train_reward_model,
    train_sft,
)
from helpers.training.rollouts import read_rollouts
from workbook.earlier import own_or_reference
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
from workbook.progress import run_root
from workbook.published import published_group
from workbook.recorded import read_recorded
from workbook.rollout_browser import rollout_browser
from workbook.verifier import tagged_reward
from workbook.world.preferences import gold_reward

begin("05")
profile = use_profile("tiny")

# %% [markdown]
# ## Ten seconds: this is what you will build
#
# Eight attempts of one policy at one problem. Some are right, some are not: that difference is all that GRPO learns from.

# %%
sizes = profile.sizes.grpo
R1_ZERO = load_template("r1_zero")

def new_policy(adapter=profile.models.start):
    """The policy at its start: tuned to the format on a hundred short problems, or new LoRA layers."""
    adapter = adapter and profile.path(adapter)
    lora = None if adapter else LoraSettings(rank=profile.grpo.rank, alpha=2 * profile.grpo.rank)
    return load_model(profile.path(profile.models.maths), adapter=adapter, lora=lora,
                      quantization=profile.engine.quantization, device=profile.engine.device, dtype=profile.engine.dtype)

def tasks(path, split, limit=None):
    records, _ = load_records(profile.path(path), split=split, limit=limit)
    return [{"id": r["id"], "prompt": render(R1_ZERO, question=r["question"]), "gold_answer": r["gold_answer"]} for r in records]

train_tasks = tasks(profile.data.maths_train, "train")
held_out = tasks(profile.data.maths_test, "test", sizes.problems)
policy, tokenizer = new_policy()
hot = profile.sampling.settings(temperature=1.0, max_new_tokens=profile.grpo.max_new_tokens)
tried = complete(policy, tokenizer, [task["prompt"] for task in train_tasks[:8]], sampling=hot, n=8)
marks = [r1_zero_reward(attempt.text, train_tasks[k // 8]["gold_answer"])["reward"] for k, attempt in enumerate(tried)]
first = next((k for k in range(0, len(marks), 8) if len(set(marks[k : k + 8])) > 1), 0)  # a group that does not agree
print(train_tasks[first // 8]["prompt"].split("\n")[1])
for mark, attempt in zip(marks[first : first + 8], tried[first : first + 8], strict=True):
    print(f"{mark:.0f} {attempt.text}")

# %% [markdown]
# ## The idea
#
# For each prompt $x$ sample $G$ responses from the policy, grade each, and compare it with its siblings (Shao et al. 2024, [2402.03300](https://arxiv.org/abs/2402.03300), Eq. 3):
#
# $$ A_i = \frac{r_i - \mathrm{mean}(r_1 \dots r_G)}{\mathrm{std}(r_1 \dots r_G) + \delta}, \qquad
#    \mathcal{L} = \frac{1}{B}\sum_i \frac{1}{|y_i|} \sum_t \Big[ -\min\big(w_{it} A_i,\ \mathrm{clip}(w_{it}, 1-\epsilon, 1+\epsilon) A_i\big) + \beta\, \mathrm{KL}_{it} \Big] $$
#
# with $w_{it} = \pi_\theta(y_{it}) / \pi_\text{old}(y_{it})$. PPO (Schulman et al. 2017, [1707.06347](https://arxiv.org/abs/1707.06347)) learns a second network to say how good a response should have been; GRPO asks the siblings.
#
# ## Exercise 1: better than whom?
# *Difficulty 2 of 5, importance 5 of 5, 15 minutes*
#
# `rewards` (B,) holds `group_size` consecutive samples of each prompt; return (B,) advantages. `baseline="none"`: do not subtract the mean. `scale="none"`: do not divide. Otherwise divide by the
# group's standard deviation (with $G - 1$) **plus** `eps`. With a baseline, a group in which all rewards are equal gives *exactly* 0: the float32 mean of eight 0.7 is not 0.7, and the tiny difference, divided by an
# equally tiny standard deviation, would become an advantage made of rounding errors. A group of one gives 0, too. Rewards may be whole numbers; a B that is no multiple of `group_size` is a `ValueError`.

# %% nbgrader={"grade": false, "grade_id": "group_advantages", "locked": false, "schema_version": 3, "solution": true, "task": false}
def group_advantages(
    rewards: torch.Tensor,
    group_size: int,
    *,
    baseline: str = "mean",
    scale: str = "std",
    eps: float = 1e-6,
) -> torch.Tensor:
    """(B,) rewards to (B,) advantages. Example: [1, 0, 0, 0] with scale="none" gives [.75, -.25, -.25, -.25]."""
    ### BEGIN SOLUTION
    if len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards are not made of groups of {group_size}.")
    groups = (rewards if rewards.is_floating_point() else rewards.float()).view(-1, group_size)
    centred = groups
    if baseline == "mean":
        equal = (groups == groups[:, :1]).all(dim=1, keepdim=True)
        centred = (groups - groups.mean(dim=1, keepdim=True)).masked_fill(equal, 0.0)
    if scale == "std" and group_size > 1:
        centred = centred / (groups.std(dim=1, keepdim=True) + eps)
    return centred.flatten()
    ### END SOLUTION

# %%
if ready("group_advantages"):
    for rewards in ([1, 0, 0, 0], [1, 1, 1, 0], [0.7] * 4):
        print(rewards, "->", [round(a, 2) for a in group_advantages(torch.tensor(rewards), 4).tolist()])

# %%
check(group_advantages)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The groups are mixed."** Samples of a prompt stand in a row: `view(-1, group_size)`, then work along `dim=1`. **"nan for one sample."** `std` of one number divides by 0.
# **"0.06 where 0 is expected."** Compare `groups == groups[:, :1]` and fill with 0.
# </details>
#
# ## Exercise 2: the clipped surrogate
# *Difficulty 3 of 5, importance 5 of 5, 20 minutes*
#
# Samples cost time, so one wants several gradient steps on each batch. From the second step on, the policy that learns is no longer the one that sampled; the ratio $w$ corrects for that, and clipping takes the
# gradient away from tokens that have already moved far *in the wanted direction*. The minimum makes the bound pessimistic: a bad token that has become **more** likely keeps its full gradient.
# Return the losses (B, T) and `{"ratio": w, "clipped": ...}`; `clipped` is True where the clipped product is the smaller one. `advantages` are (B,) or (B, T); no gradient flows into them or the old log-probs.

# %% nbgrader={"grade": false, "grade_id": "grpo_clip_loss", "locked": false, "schema_version": 3, "solution": true, "task": false}
def grpo_clip_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Token losses (B, T) and info. clip_high=None takes clip_low. Example: ratio 1.5 and A = 1 give -1.2."""
    ### BEGIN SOLUTION
    weights = (advantages[:, None] if advantages.dim() == 1 else advantages).detach()
    high = clip_low if clip_high is None else clip_high
    ratio = (log_probs - old_log_probs.detach()).exp()
    plain, clipped = ratio * weights, ratio.clamp(1 - clip_low, 1 + high) * weights
    return -torch.minimum(plain, clipped), {"ratio": ratio.detach(), "clipped": (clipped < plain).detach()}
    ### END SOLUTION

# %%
if ready("grpo_clip_loss"):
    ratios = torch.linspace(0.3, 1.8, 100)
    def objective(advantage, bound):
        weights = torch.full((100,), float(advantage))
        return -grpo_clip_loss(ratios.log()[:, None], torch.zeros(100, 1), weights, bound)[0][:, 0]
    display(surrogate_shapes(ratios, {
        f"a {kind} token, A = {a:+d}": {"yours": objective(a, 0.2), "without clipping": objective(a, math.inf)}
        for kind, a in (("good", 1), ("bad", -1))}, title="Where the curve is flat, a token gives no gradient"))

# %%
check(grpo_clip_loss)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"Bad tokens are wrong."** Multiply both ratios by A *first*, then take the minimum. **"The ratio is negative."** `exp` of the difference of log-probs.
# **"clipped is True too often."** Outside the band is not yet clipped: compare the two products.
# </details>
#
# ## Exercise 3: from token losses to one number
# *Difficulty 2 of 5, importance 4 of 5, 15 minutes*
#
# Three ways are in use, and they differ in what a token of a long response weighs. `"sequence_mean"` (GRPO): mean over each response, then over the responses. `"token_mean"` (DAPO, [2503.14476](https://arxiv.org/abs/2503.14476)): over all
# tokens alike. `"constant"` (Dr. GRPO, [2503.20783](https://arxiv.org/abs/2503.20783)): the sum of each response / `constant`, then the mean over the responses. `normalizer`, where given, *replaces* the count (responses, tokens, or responses times constant):
# it is that of the whole optimiser step, so that micro-batches add up. An empty row counts as a response of value 0; padding may hold `nan`; another name, or `"constant"` without one, is a `ValueError`.

# %% nbgrader={"grade": false, "grade_id": "aggregate", "locked": false, "schema_version": 3, "solution": true, "task": false}
def aggregate(token_losses, mask, how="sequence_mean", constant=None, normalizer=None):
    """(B, T) to a scalar. Example: rows [1, 1, 1] and [5]: 3 by sequences, 2 by tokens."""
    ### BEGIN SOLUTION
    kept, lengths = token_losses.masked_fill(~mask.bool(), 0.0), mask.sum(dim=-1)
    if how == "sequence_mean":
        total, count = (kept.sum(dim=-1) / lengths.clamp(min=1)).sum(), len(kept)
    elif how == "token_mean":
        total, count = kept.sum(), lengths.sum().clamp(min=1)
    elif how == "constant" and constant is not None:
        total, count = kept.sum(), len(kept) * constant
    else:
        raise ValueError(f"how={how!r} with constant={constant!r} is no reduction.")
    return total / (count if normalizer is None else normalizer)
    ### END SOLUTION

# %%
if ready("aggregate"):
    lengths = torch.tensor([10, 40])
    mask = torch.arange(40) < lengths[:, None]
    for how in ("sequence_mean", "token_mean", "constant"):
        losses = torch.zeros(2, 40, requires_grad=True)
        aggregate(losses, mask, how, constant=48).backward()
        print(f"{how:14} a token of the short response weighs {losses.grad[0, 0]:.4f}, of the long one {losses.grad[1, 0]:.4f}")

# %%
check(aggregate)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"nan."** `masked_fill`, not a product, and `clamp(min=1)` for empty rows. **"Micro-batches do not add up."** With `normalizer` the batch's own count must not appear.
# </details>
#
# ## Exercise 4: how far has it gone?
# *Difficulty 2 of 5, importance 4 of 5, 10 minutes*
#
# The KL of the policy to its start, estimated at the sampled tokens. With $d = \log \pi_\text{ref} - \log \pi$ (Schulman 2020): $k_1 = -d$, unbiased and often negative; $k_2 = d^2/2$; $k_3 = e^d - 1 - d$, unbiased and never negative.
# Turn $d$ round and $k_3$ estimates something else: a mistake that stands in published code. Values (B, T), gradient kept, another kind is a `ValueError`.

# %% nbgrader={"grade": false, "grade_id": "kl_estimate", "locked": false, "schema_version": 3, "solution": true, "task": false}
def kl_estimate(log_probs, ref_log_probs, kind="k3"):
    """KL(pi || ref) at each sampled token. Example: log-probs -1 and -2 give k1 = 1, k2 = 0.5, k3 = 0.37."""
    ### BEGIN SOLUTION
    d = ref_log_probs - log_probs
    if kind == "k1":
        return -d
    if kind == "k2":
        return d**2 / 2
    if kind == "k3":
        return torch.expm1(d) - d
    raise ValueError(f'kind must be "k1", "k2" or "k3", but it is {kind!r}.')
    ### END SOLUTION

# %%
if ready("kl_estimate"):
    generator = torch.Generator().manual_seed(0)
    pi, ref = torch.log_softmax(torch.randn(2, 8, generator=generator), -1)
    print(f"true KL {(pi.exp() * (pi - ref)).sum():.3f}")
    drawn = torch.multinomial(pi.exp(), 4000, replacement=True, generator=generator)
    for kind in ("k1", "k2", "k3"):
        values = kl_estimate(pi[drawn], ref[drawn], kind)
        print(f"{kind}: mean {values.mean():.3f}, spread {values.std():.3f}, negative {(values < 0).float().mean():.0%}")

# %%
check(kl_estimate)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The mean of k3 is not the true KL."** $d$ is log ref minus log pi. **"k1 has the wrong sign."** $k_1 = -d$.
# </details>
#
# ## Exercise 5: one whole step
# *Difficulty 3 of 5, importance 5 of 5, 20 minutes*
#
# Put the four together. The loop hands you the log-probs of the sampled token ids (EOS included in `response_mask`) for one **micro-batch**, and the rewards of the **whole step**; `rows` says which rows of the step the
# micro-batch holds. So advantages come from all rewards and are then indexed; `normalizer` goes to `aggregate`. Where `beta` is not 0, add `beta * kl_estimate(log_probs, ref_log_probs, kl)` to the token losses. Return the loss and
# `info`: that of `grpo_clip_loss`, with `"advantages"`, and with `"kl"` (detached) where there is one.

# %% nbgrader={"grade": false, "grade_id": "grpo_step", "locked": false, "schema_version": 3, "solution": true, "task": false}
def grpo_step(log_probs, old_log_probs, response_mask, rewards, group_size, *, rows=None,
              ref_log_probs=None, beta=0.0, kl="k3", clip_low=0.2, clip_high=None, baseline="mean",
              scale="std", reduction="sequence_mean", constant=None, normalizer=None):
    """Loss of the micro-batch `rows` of a step, and info: advantages, ratio, clipped, kl."""
    ### BEGIN SOLUTION
    advantages = group_advantages(rewards, group_size, baseline=baseline, scale=scale)
    if rows is not None:
        advantages = advantages[rows]
    losses, info = grpo_clip_loss(log_probs, old_log_probs, advantages, clip_low, clip_high)
    info = {"advantages": advantages, **info}
    if beta:
        divergence = kl_estimate(log_probs, ref_log_probs, kl)
        losses = losses + beta * divergence
        info["kl"] = divergence.detach()
    return aggregate(losses, response_mask, reduction, constant, normalizer), info
    ### END SOLUTION

# %%
CORE = ("group_advantages", "grpo_clip_loss", "aggregate", "kl_estimate", "grpo_step")
if ready(*CORE):
    log_probs = torch.tensor([[-1.0, -0.5], [-2.0, -0.1]], requires_grad=True)
    loss, info = grpo_step(log_probs, log_probs.detach(), torch.ones(2, 2), torch.tensor([1.0, 0.0]), 2)
    loss.backward()
    print(f"loss {loss.item():+.4f}, and its gradient {[[round(g, 3) for g in row] for row in log_probs.grad.tolist()]}")

# %%
check(grpo_step)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"Micro-batches do not add up."** Advantages of all rewards first, `[rows]` then; hand `normalizer` on. **"A setting does nothing."** Each of them goes to one of your four functions.
# </details>
#
# ## The run
#
# Your five functions, your reward of lesson 01 if it passed its check, and this loop: sample, grade, update. The start, and later the reward model, are the course's own and not those you trained, so that the recorded runs can stand beside yours. Say first what will happen.

# %%
predict("held-out strict accuracy after GRPO", "rises")

# %%
predict("the value of the loss over the run", "stays")

# %%
reward_fn = own_or_reference("01", "r1_zero_reward")

def settings_for(steps=sizes.steps, kind=GRPOSettings, **changes):
    """The profile's settings."""
    usual = {"max_steps": steps, "prompts_per_step": sizes.prompts, "samples_per_prompt": profile.grpo.samples,
             "max_new_tokens": profile.grpo.max_new_tokens, "temperature": profile.grpo.temperature,
             "lr": profile.grpo.lr, "sampling_batch_size": profile.engine.batch_size, "progress": False}
    if kind is GRPOSettings and profile.engine.name == "vllm":
        usual["importance_cap"] = 2.0
    return kind(**usual | changes)

def my_functions():
    """Your five; vLLM's own arithmetic asks for weights, which the course's step multiplies in: there it calls your other four."""
    notebook, own = globals(), CORE[:4] if profile.engine.name == "vllm" else CORE
    return {name: notebook[name] for name in own}

def graded(model, problems=held_out):
    """Greedy answers to held-out problems, graded."""
    prompts = [p["prompt"] for p in problems]
    answers = complete(model, tokenizer, prompts, sampling=profile.sampling.settings(temperature=0.0),
                       batch_size=profile.engine.batch_size)
    return grade_completions(problems, answers, r1_zero_reward, prompts=prompts)

# %%
if ready(*CORE):
    before = graded(policy)
    monitor = live_monitor("reward_mean", "format_rate", "accuracy", "length", "entropy", "kl", "clip_fraction",
                           "grad_norm", "groups_with_signal", draw=metric_grid, stop_button=True)
    run = train_grpo(policy, train_tasks, settings_for(measure_kl=True), tokenizer=tokenizer, reward_fn=reward_fn,
                     functions=my_functions(), callbacks=[monitor], engine=profile.engine.name,
                     out_dir=run_folder() / "grpo", resume=False)
    after = graded(policy)
    print(f"{run.summary['status']} after {len(run.metrics)} steps, {run.metrics[-1]['seconds'] / len(run.metrics):.1f} s per step")

# %%
if ready(*CORE):
    rates = {"start": summarise_rates(before), "GRPO": summarise_rates(after)}
    named = {"format": "format_rate", "strict": "accuracy", "lenient": "lenient_accuracy"}
    shown = {name: {label: found[key] for label, key in named.items()} for name, found in rates.items()}
    start, end = rates["start"]["accuracy"], rates["GRPO"]["accuracy"]
    test = paired_test(*[[row["metrics"]["reward"] > 0 for row in rows] for rows in (before, after)])
    display(rates_with_intervals(shown, title=(
        f"{len(run.metrics)} steps move strict accuracy from {start[0]:.0%} to {end[0]:.0%}, on problems that it never saw")))
    low, high = start[1:]
    display(observed("held-out strict accuracy after GRPO", "rises" if end[0] > high else "falls" if end[0] < low else "stays"))
    print(f"right only before: {test.only_first}, only after: {test.only_second}; p = {test.p_value:.2g} (McNemar's exact test)")

# %% [markdown]
# To stop a run, press *Stop after this step* above it while it runs, or interrupt the kernel: it ends after the current step and keeps what it has learnt. To train longer, raise `steps` in `settings_for`, load a new start (`policy, tokenizer = new_policy()`) and run the cell again.
#
# ## The loss is about zero, and yet it learns
#
# On fresh samples every ratio is 1; with `sequence_mean` and $\beta = 0$ the loss is then minus the mean advantage, which is 0 in every group. (Other normalisers weigh by length: near 0, not at it.) Its *gradient* weighs each token's score by its advantage, and that does not cancel.

# %%
if ready(*CORE):
    records = run.metrics
    largest = max(abs(record["loss"]) for record in records)
    display(training_curves({"grpo": records}, ["reward_mean", "loss", "grad_norm"], title=(
        f"The loss never leaves ±{max(largest, 1e-4):.1g}; the gradient's norm is {np.mean([r['grad_norm'] for r in records]):.2g} on average")))
    display(observed("the value of the loss over the run", "stays" if largest < 0.05 else "rises"))

# %% [markdown]
# ## Look at the rollouts
#
# Curves hide what a policy writes. Pick a step and a prompt: blue samples are made likelier, orange ones less likely. A group that agrees teaches nothing, be it all right or all wrong.

# %%
if ready(*CORE):
    groups = read_rollouts(run.folder)
    rollout_browser(groups)

# %%
if ready(*CORE):
    by_step = {}
    for group in groups:
        by_step.setdefault(group["step"], []).append([r or 0.0 for r in group["rewards"]])
    mute = {k: np.mean([len(set(rewards)) == 1 for rewards in by_step[k]]) for k in (min(by_step), max(by_step))}
    display(rewards_by_step(by_step, title=(
        f"Groups that agree, and so teach nothing: {mute[min(by_step)]:.0%} at the first step, {mute[max(by_step)]:.0%} at the last")))

# %% [markdown]
# ## Was it there before? pass@k
#
# The chance that at least one of $k$ samples is right, before and after. If only the left end rises, the policy has learnt to choose among what it could already write.

# %%
predict("pass@8 after GRPO", "stays")

# %%
def sampled(model, problems=held_out[: sizes.pass_problems], n=profile.sizes.samples):
    """For each problem how many of n samples are right."""
    answers = complete(model, tokenizer, [p["prompt"] for p in problems], n=n, sampling=hot, batch_size=profile.engine.batch_size)
    right = [r1_zero_reward(a.text, problems[i // n]["gold_answer"])["reward"] for i, a in enumerate(answers)]
    return np.array(right).reshape(-1, n).sum(axis=1)

def pass_curve(right, n=profile.sizes.samples):
    """pass@k with an interval, for k = 1, 2, 4 ..."""
    powers = [2**e for e in range(n.bit_length())]
    chances = {k: [pass_at_k(n, int(c), k) for c in right] for k in powers if k <= n}
    return {k: (float(np.mean(found)), *bootstrap_interval(found)) for k, found in chances.items()}

if ready(*CORE):
    start_policy, _ = new_policy()
    curves = {"start": pass_curve(sampled(start_policy)), "GRPO": pass_curve(sampled(policy))}
    curves_found = {name: {str(k): value for k, (value, *_) in curve.items()} for name, curve in curves.items()}
    most = max(curves["start"])
    gains = {k: curves["GRPO"][k][0] - curves["start"][k][0] for k in (1, most)}
    display(sweep_curves(curves, xlabel="k samples per problem", title=(
        f"pass@1 moves by {100 * gains[1]:+.0f} points, pass@{most} by {100 * gains[most]:+.0f}")))
    low, high = curves["start"][most][1:]
    now = curves["GRPO"][most][0]
    display(observed("pass@8 after GRPO", "rises" if now > high else "falls" if now < low else "stays"))

# %% [markdown]
# ## Which parts carry the result? Five ablations
#
# S0 ran the same questions on Qwen2.5-Math-1.5B. Off-policy runs take several gradient steps on each batch, at twice the learning rate, so that reuse shows; the runs with and without clipping differ in nothing else. Say what
# happens without a baseline, that is, with the plain reward of 0 or 1 as advantage.

# %%
predict("final accuracy without a baseline, against GRPO", "stays")

# %%
rough = {"epochs_per_step": profile.grpo.epochs, "lr": profile.grpo.rough_lr}
ABLATIONS = {
    "GRPO": {}, "no baseline": {"baseline": "none", "scale": "none"}, "constant normaliser": {"reduction": "constant"},
    "mean only": {"scale": "none"}, "off-policy, clip": rough, "off-policy, no clip": rough | {"loss": "no_clip"}}

def trained(steps, seed=0, model=None, watch=(), problems=sizes.watched, reward=None, rows=None, **changes):
    """A run of your functions: its accuracy on held-out problems as it goes, its metrics, and the policy."""
    model = model or new_policy()[0]
    settings = settings_for(steps, seed=seed, eval_every=sizes.every, **{"prompts_per_step": sizes.few_prompts} | changes)
    run = train_grpo(model, rows or train_tasks, settings, tokenizer=tokenizer, reward_fn=reward or reward_fn,
                     eval_data=held_out[:problems], functions=my_functions(), callbacks=watch, engine=profile.engine.name)
    return run.metrics, model

def outcome(records, key="eval_accuracy"):
    """Final and best held-out accuracy; a run has collapsed when it ends at half of its best or less."""
    seen, tokens = {}, 0
    for record in records:
        tokens += record["generated_tokens"]
        if key in record:
            seen[tokens] = record[key]
    final, best = seen[max(seen)], max(seen.values())
    return {"final": final, "best": best, "collapsed": final <= best / 2, "by_tokens": seen}

# %%
if ready(*CORE):
    live = {}
    for name in ("no baseline", "off-policy, no clip"):
        monitor = live_monitor("reward_mean", "accuracy", "grad_norm", "format_rate", "entropy", "length", draw=metric_grid)
        live[name], _ = trained(sizes.ablation_steps, watch=[monitor], **ABLATIONS[name])
        found = outcome(live[name])
        print(f"{name}: final {found['final']:.1%}, best {found['best']:.1%} on {sizes.watched} problems"
              f"{', collapsed' if found['collapsed'] else ''}")

# %%
if ready(*CORE):
    def ablate():
        return {name: {seed: outcome(trained(sizes.recorded_steps, seed, **changes)[0]) for seed in sizes.seeds}
                for name, changes in ABLATIONS.items()}

    ablated = recorded_or_live("ablations", ablate)
    runs = {name: {key: [found[key] for found in seeds.values()] for key in ("final", "best")} for name, seeds in ablated.items()}
    ids = ("s0.grpo.grpo", "s0.grpo.no_baseline", "s0.grpo.length_norm", "s0.grpo.no_std", "s0.grpo.off_policy", "s0.grpo.no_clip")
    marks = {name: tuple(published_group(key)[part].value for part in ("final", "best"))
             for name, key in zip(ABLATIONS, ids, strict=True)}
    ends = {name: np.mean(run["final"]) for name, run in runs.items()}
    worst = min(ends, key=ends.get)
    fell = [f"{name} ({count} of {len(seeds)} seeds)" for name, seeds in ablated.items() if (count := sum(found["collapsed"] for found in seeds.values()))]
    display(ablation_marks(runs, published=marks, source="S0, row 20", title=(
        f"{worst} ends lowest, at {ends[worst]:.0%} against GRPO's {ends['GRPO']:.0%}; "
        f"{'collapsed: ' + ', '.join(fell) if fell else 'no run collapsed in this range'}")))
    def half_rate():
        return {name: {seed: outcome(trained(sizes.recorded_steps, seed, **ABLATIONS[name] | {"lr": profile.grpo.rough_lr / 2})[0]) for seed in sizes.seeds}
                for name in ("off-policy, clip", "off-policy, no clip")}

    for name, seeds in recorded_or_live("half_rate", half_rate).items():
        print(f"{name}, half the learning rate: final", ", ".join(f"{found['final']:.1%}{' (collapsed)' if found['collapsed'] else ''}" for found in seeds.values()))
    gap = ends["no baseline"] - ends["GRPO"]
    display(observed("final accuracy without a baseline, against GRPO", "falls" if gap < -0.08 else "rises" if gap > 0.08 else "stays"))  # two seeds on 96 problems: ±8 points

# %% [markdown]
# Without a baseline a 0/1 reward raises what was right and lowers nothing: lesson 03's rejection sampling, as a gradient. From a start that is right in most of its samples that is no worse, as you see. S0 started where one answer in forty had the
# format; its run reached the format on 95 % of its answers and was right on 12 %. An ablation is a statement about a start, a reward and a learning rate, too.
#
# Without clipping, a few tokens with a large ratio can dominate a step: look for a peak of the gradient's norm above, and at the format rate one step later. Some runs recover; one that gets no reward any more cannot. In the recorded runs one seed of two collapsed, and with
# clipping none; but reused samples cost accuracy there too. At half the learning rate (printed above) no run collapsed, so this is about the level where it starts; the clipped runs are ahead there as well. S0's unclipped run was better than all its others at step 53, and collapsed after it: look at the best mark, and not only at the final one.
#
# ## The same loop on a learned reward
#
# Now the reward is lesson 02's reward model: it has seen a few hundred noisy labels of annotators who like length. The **gold reward** in code is measured beside it and never trained on. Best-of-16 in lesson 02 searched among 16 samples; this loop searches
# with gradients. It starts from the base model: about half of its samples end with the right number (gold reward 0.5), and few of them have the format. So there is something to win, too. The distance from the start is the KL, here per token and not per response (Gao et al. 2023, [2210.10760](https://arxiv.org/abs/2210.10760)).

# %%
predict("gold reward at the end of the run with beta = 0, against its own peak", "falls")

# %%
def judge():
    """The reward model: the shipped one, or one that is trained here on lesson 02's pairs."""
    base, place = profile.path(profile.models.maths), {"device": profile.engine.device, "dtype": profile.engine.dtype}
    shipped = getattr(profile.models, "reward", None)
    if shipped:
        return load_reward_model(base, adapter=profile.path(shipped), **place)
    model, words = load_reward_model(base, lora=LoraSettings(rank=profile.grpo.rank), **place)
    with open(profile.path(profile.data.reward_train), encoding="utf-8") as file:
        pairs = [json.loads(line) for line, _ in zip(file, range(profile.sizes.reward.pairs), strict=False)]
    rows = [{"prompt": p["prompt"], "chosen": p[f"response_{p['better_response_id']}"],
             "rejected": p[f"response_{1 - p['better_response_id']}"]} for p in pairs]
    train_reward_model(model, rows, RewardSettings(num_epochs=profile.reward.epochs, lr=profile.reward.lr, progress=False), tokenizer=words)
    return model.eval(), words

class LearnedReward:
    """The reward model's score as the reward; gold reward and correctness are only measured."""

    def __init__(self, proxy):
        self.proxy, self.identity = proxy, proxy.identity

    def many(self, prompts, responses, golds):
        scores = self.proxy.many(prompts, responses, golds)
        return [{**r1_zero_reward(text, gold), "reward": score["reward"], "gold": gold_reward(text, gold)}
                for text, gold, score in zip(responses, golds, scores, strict=True)]

# %%
if ready(*CORE):
    def over_optimise():
        learned = LearnedReward(from_model(*judge()))
        kept = {"kl": "kl", "proxy": "reward_mean", "gold": "gold", "accuracy": "accuracy", "length": "length"}

        def chase(beta, seed):
            records, _ = trained(sizes.reward_steps, seed, new_policy(None)[0], reward=learned, beta=beta, measure_kl=True,
                                 lr=profile.grpo.reward_lr, prompts_per_step=sizes.prompts,
                                 max_new_tokens=profile.grpo.reward_tokens, problems=1)
            return [{name: record[key] for name, key in kept.items()} for record in records]

        return {f"{beta:g}": {seed: chase(beta, seed) for seed in sizes.reward_seeds} for beta in (0.0, profile.grpo.beta)}

    chased = recorded_or_live("reward_model", over_optimise)
    by_beta = {f"beta = {beta}": list(seeds.values()) for beta, seeds in chased.items()}

def start_peak_end(records, key="gold", width=5):
    """Means over `width` steps in a row: of the first, the best and the last ones."""
    values = [record[key] for record in records]
    means = [np.mean(values[k : k + width]) for k in range(max(1, len(values) - width + 1))]
    return means[0], max(means), means[-1]

if ready(*CORE):
    gold = {name: np.mean([start_peak_end(records) for records in seeds], axis=0) for name, seeds in by_beta.items()}
    said = "; ".join(f"{name}: gold {first:.2f}, at its best {top:.2f}, at the end {end:.2f}" for name, (first, top, end) in gold.items())
    display(over_optimisation(by_beta, title=f"{said} (mean of {len(sizes.reward_seeds)} seeds)"))
    _, top, end = next(iter(gold.values()))
    display(observed("gold reward at the end of the run with beta = 0, against its own peak", "falls" if end < top - 0.1 else "stays"))
    display(pd.DataFrame({f"beta {beta}, seed {seed}": {key: " / ".join(f"{value:.{places}f}" for value in start_peak_end(records, key))
                          for key, places in (("gold", 2), ("accuracy", 2), ("proxy", 2), ("length", 0), ("kl", 3))}
                          for beta, seeds in chased.items() for seed, records in seeds.items()}).T)
    print("means of five steps: the first / the highest / the last")

# %% [markdown]
# At first both rewards rise: the reward model has learnt something true, and the policy takes it. Then the proxy goes on and the gold reward falls below where it began: what is left to win is what the reward model does not know. Without a penalty the strict accuracy comes and goes too, though nobody asked for the format.
#
# A peak is the highest of several noisy means (on the tiny profile five steps are 80 problems, so ±0.1), and stands a little above the end even where nothing falls: compare the two falls. The penalty does not make the reward model better. It keeps the policy where the reward model knows something. How large it must be nobody knows beforehand: learning rate and beta of this profile were chosen after a look at seed 0, so that the other seeds are the fair test.
#
# ## Findings

# %%
if ready(*CORE):
    def more_seeds():
        found = {}
        for seed in sizes.main_seeds[1:]:
            model, _ = new_policy()
            train_grpo(model, train_tasks, settings_for(seed=seed), tokenizer=tokenizer, reward_fn=reward_fn,
                       functions=my_functions(), engine=profile.engine.name)
            found[seed] = summarise_rates(graded(model))["accuracy"]
        return found

    others = recorded_or_live("seeds", more_seeds)
    seeds_found = [rates["GRPO"]["accuracy"][0], *(rate[0] for rate in others.values())]
    drawn = " (recorded, on more problems)" if profile.depth == "short" else ""
    print(f"strict accuracy {rates['start']['accuracy'][0]:.1%} -> {seeds_found[0]:.1%}; other seeds{drawn}: "
          + ", ".join(f"{rate[0]:.1%} ({rate[1]:.1%} to {rate[2]:.1%})" for rate in others.values()))

    def mean_curve(seeds, key):
        return np.mean([[record[key] for record in records] for records in seeds.values()], axis=0).tolist()

    findings = {
        "accuracy_start": rates["start"]["accuracy"][0], "accuracy_grpo": seeds_found,
        "ablations": {name: {"final": runs[name]["final"], "best": runs[name]["best"],
                             "collapsed": [found["collapsed"] for found in seeds.values()]} for name, seeds in ablated.items()},
        "reward_model_run": {beta: {key: mean_curve(seeds, key) for key in ("proxy", "gold")} for beta, seeds in chased.items()},
        "pass_at_k": curves_found, "qa_table": {}, "seconds_per_step": run.metrics[-1]["seconds"] / len(run.metrics)}
    save_findings("05", findings, seeds=sizes.main_seeds)
    display(comparison_table("05", findings, ["s0.grpo.grpo.final", "s0.grpo.grpo.best"]))

# %% [markdown]
# **What is built in, what is found.** The gold reward, the noise of the labels and the annotators' liking for length were put into the world on purpose, and the start was tuned on short problems only. That comparing siblings is enough to learn, what each
# part of GRPO is worth, and what a gradient finds in a reward model, you measured.
#
# **Inspect**: a group with one right sample; the longest sample of the run against the reward model; a step at which few groups had a signal.
#
# ## Questions

# %%
answer("05-1", "b")

# %%
answer("05-2", "c")

# %%
answer("05-3", "a")

# %%
answer("05-4", "b")

# %%
answer("05-5", "a")

# %%
answer("05-6", "b")

# %%
answer("05-7", "c")

# %%
answer("05-8", "a")

# %% [markdown]
# ## With a GPU
#
# `use_profile("small")` or `"full"` runs the same cells on Qwen2.5-0.5B or Qwen2.5-Math-1.5B, from LoRA layers on the base model, with vLLM for the rollouts where it is installed. `python3 -m workbook train grpo --config grpo_full` carries S0's own values. Predict first: a base model that shows
# the format in 2.5 % of its answers has a reward in few groups; what does the share of groups with a signal look like at the start?
#
# ## You have finished
#
# Your policy is in `grpo/` of this lesson's run folder; lesson 06 asks how far prompting alone gets.

# %%
progress()

# %% [markdown]
# ---
# ## Going further
#
# ### Relatives of GRPO, as settings
# Dr. GRPO leaves out both divisions; RLOO compares with the *other* samples; DAPO clips higher, averages over tokens and leaves out what was cut; GSPO takes one ratio per response; REINFORCE++ divides by the spread of the whole batch; MaxRL divides by the group's mean. In `helpers` each is a setting. On fresh samples every ratio is 1: clipping does nothing there, and GSPO *is* GRPO, as its row shows. They part with several steps on each batch.

# %%
RELATIVES = {
    "Dr. GRPO": {"scale": "none", "reduction": "constant"}, "RLOO": {"baseline": "leave_one_out", "scale": "none"},
    "DAPO": {"clip_high": 0.28, "reduction": "token_mean", "resampling": 2, "mask_truncated": True},
    "GSPO": {"loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}, "REINFORCE++": {"scale": "batch"}, "MaxRL": {"scale": "mean"}}

# %%
def reference_run(steps, seed=0, **changes):
    """A run of the course's own functions, which know every setting."""
    settings = settings_for(steps, seed=seed, eval_every=steps, **{"prompts_per_step": sizes.few_prompts} | changes)
    run = train_grpo(new_policy()[0], train_tasks, settings, tokenizer=tokenizer, eval_data=held_out[: sizes.watched], engine=profile.engine.name)
    return {"accuracy": run.metrics[-1]["eval_accuracy"], "length": run.metrics[-1]["length"], "grad norm": float(np.mean([r["grad_norm"] for r in run.metrics])), "problems": sizes.watched}

def as_row(seeds):
    """A line of a table: the accuracy of each seed, and means of what is no share."""
    means = {key: np.mean([found[key] for found in seeds.values()]) for key in ("length", "grad norm")}
    return {**{f"accuracy, seed {seed}": found["accuracy"] for seed, found in seeds.items()},
            "tokens": f"{means['length']:.0f}", "norm of the gradient": f"{means['grad norm']:.3f}"}

def if_recorded(name, run):
    """What takes very long: from the record, or run at depths full and smoke; None where neither is."""
    if profile.depth == "short" and name not in read_recorded("05").get("parts", {}):
        print(f"{name}: not recorded for this profile; python3 -m workbook run 05 --depth full runs it")
        return None
    return recorded_or_live(name, run)

# %%
if ready(*CORE):
    relatives = if_recorded("relatives", lambda: {
        name: {seed: reference_run(sizes.further_steps, seed, **changes) for seed in sizes.seeds}
        for name, changes in {"GRPO": {}, **RELATIVES}.items()})
    if relatives:
        width = 196 * math.sqrt(0.16 / next(iter(relatives["GRPO"].values()))["problems"])
        display(method_table({name: as_row(seeds) for name, seeds in relatives.items()}, title=(
            f"Held-out accuracy after {sizes.further_steps} steps; the interval of one rate near 80 % is ±{width:.0f} points")))

# %% [markdown]
# ### PPO: a second network in place of the siblings
# PPO learns what a response was going to be worth: a *value head* on the policy's last hidden state, trained beside it, and generalised advantage estimation (Schulman et al. 2015, [1506.02438](https://arxiv.org/abs/1506.02438)) make an advantage of every token. At the start the head
# knows nothing. Same start, problems, learning rate and samples as the GRPO of the ablations; PPO makes four updates on each batch, where GRPO makes one. In so few steps the head learns almost nothing (see the title), so its advantages are noisy, and the two seeds differ. We compare at equal generated tokens, because they are what one pays for.

# %%
if ready(*CORE):
    def beside_grpo():
        found = {}
        for seed in sizes.seeds:
            settings = settings_for(sizes.recorded_steps, PPOSettings, seed=seed, eval_every=sizes.every, prompts_per_step=sizes.few_prompts)
            run = train_ppo(new_policy()[0], train_tasks, settings, tokenizer=tokenizer, reward_fn=reward_fn,
                            eval_data=held_out[: sizes.watched], engine=profile.engine.name)
            found[seed] = outcome(run.metrics) | {"explained": [record["explained_variance"] for record in run.metrics]}
        return found

    ppo = if_recorded("ppo", beside_grpo)
    if ppo:
        reached = {name: [{int(k): v for k, v in found["by_tokens"].items()} for found in seeds.values()]
                   for name, seeds in (("GRPO", ablated["GRPO"]), ("PPO", ppo))}
        last = {name: np.mean([list(points.values())[-1] for points in seeds]) for name, seeds in reached.items()}
        explained = np.mean([found["explained"][-1] for found in ppo.values()])
        display(by_tokens(reached, title=(
            f"At as many tokens GRPO ends at {last['GRPO']:.0%} and PPO at {last['PPO']:.0%} ({len(ppo)} seeds); at its end the head explains {max(explained, 0):.0%} of the returns' variance")))

# %% [markdown]
# ### The same tokens, spent in four ways
# GRPO samples from the policy as it is now. Rejection sampling and DPO sample once, from the start: as many prompts and samples, so about as many tokens; the first is tuned on what was right, the second on pairs of a right and a wrong sample of one prompt. SFT generates nothing: it reads worked solutions,
# as many as the others sample. Somebody had to write those.

# %%
def sampled_once(seed):
    """Rows (prompt, response) of the start's right samples, pairs of right and wrong ones, tokens generated."""
    chosen = np.random.default_rng(seed).permutation(len(train_tasks))[: sizes.recorded_steps * sizes.few_prompts]
    drawn = profile.sampling.settings(temperature=1.0, max_new_tokens=profile.grpo.max_new_tokens, seed=seed)
    tries = [train_tasks[k] for k in chosen]
    found = complete(new_policy()[0], tokenizer, [task["prompt"] for task in tries], n=profile.grpo.samples, sampling=drawn, batch_size=profile.engine.batch_size)
    rows, pairs = [], []
    for place, task in enumerate(tries):
        by_verdict = {True: [], False: []}
        for attempt in found[place * profile.grpo.samples : (place + 1) * profile.grpo.samples]:
            by_verdict[r1_zero_reward(attempt.text, task["gold_answer"])["reward"] > 0].append(attempt.text)
        rows += [{"prompt": task["prompt"], "response": text} for text in dict.fromkeys(by_verdict[True])]
        pairs += [{"prompt": task["prompt"], "chosen": right, "rejected": wrong}
                  for right, wrong in zip(by_verdict[True], by_verdict[False], strict=False)]
    return rows, pairs, sum(len(attempt.token_ids) for attempt in found)

def worked_solutions(count, seed):
    """Solutions that were written by somebody, in the format."""
    records, _ = load_records(profile.path(profile.data.maths_train), split="train")
    chosen = np.random.default_rng(seed).permutation(len(records))[:count].tolist()
    return [{"prompt": render(R1_ZERO, question=records[k]["question"]),
             "response": f" {records[k]['answer'].split('####')[0].strip()} </think> <answer>{records[k]['gold_answer']}</answer>"} for k in chosen]

def four_ways(seed):
    """Held-out accuracy, with its interval, of four policies from one start."""
    records, grpo = trained(sizes.recorded_steps, seed, problems=1)
    rows, pairs, tokens = sampled_once(seed)
    tuned = {"num_epochs": profile.dpo.epochs, "seed": seed, "progress": False}
    sft = SFTSettings(lr=profile.sft.lr, batch_size=profile.sft.batch_size, **tuned)
    dpo = PreferenceSettings(lr=profile.dpo.lr, batch_size=profile.dpo.batch_size, beta=profile.dpo.beta, **tuned)
    policies = {name: new_policy()[0] for name in ("rejection sampling", "DPO", "SFT")}
    if rows and pairs:  # a start that is never right has nothing to learn from
        train_sft(policies["rejection sampling"], rows, sft, tokenizer=tokenizer)
        train_preference(policies["DPO"], pairs, dpo, tokenizer=tokenizer)
    many = sizes.recorded_steps * sizes.few_prompts * profile.grpo.samples
    train_sft(policies["SFT"], worked_solutions(many, seed), sft, tokenizer=tokenizer)
    found = {name: summarise_rates(graded(model, held_out[: sizes.compared]))["accuracy"] for name, model in {"GRPO": grpo, **policies}.items()}
    return {"accuracy": found, "tokens": {"GRPO": sum(record["generated_tokens"] for record in records), "the start": tokens}}

# %%
if ready(*CORE):
    ways = if_recorded("equal_tokens", lambda: {seed: four_ways(seed) for seed in sizes.seeds})
    if ways:
        shown = {name: {f"seed {seed}": tuple(found["accuracy"][name]) for seed, found in ways.items()} for name in next(iter(ways.values()))["accuracy"]}
        means = {name: np.mean([rate[0] for rate in seeds.values()]) for name, seeds in shown.items()}
        order = sorted(means, key=means.get, reverse=True)
        display(rates_with_intervals(shown, title="As many prompts and samples (SFT: written solutions): " + ", ".join(f"{name} {means[name]:.0%}" for name in order)))
        for seed, found in ways.items():
            print(f"seed {seed}: {found['tokens']['GRPO']:,} tokens generated by GRPO, {found['tokens']['the start']:,} by the start")

# %% [markdown]
# ### A ladder of learning rates
# S0 saw nothing at 1e-6 (82 of 100 steps without a reward in any group), a good run at 1e-5 and a collapse at 5e-5. Its weights were pure bfloat16, in which a step of 1e-6 moves only weights below 5e-4: part of that ladder is rounding. Ours are float32 LoRA layers.

# %%
if ready(*CORE):
    ladder = if_recorded("ladder", lambda: {
        f"{lr:g}": {sizes.seeds[0]: reference_run(sizes.further_steps, sizes.seeds[0], lr=lr)} for lr in sizes.ladder})
    if ladder:
        marks = {key.rpartition("_")[2]: published_group(key)["final"].value
                 for key in ("s0.grpo.lr_1e-6", "s0.grpo.lr_5e-5", "s0.grpo.lr_1e-4")} | {"1e-5": published("s0.grpo.grpo.final").value}
        display(method_table({lr: as_row(seeds) for lr, seeds in ladder.items()}, title=f"Accuracy by learning rate here; S0's final ones: {', '.join(f'{lr}: {value:.0%}' for lr, value in marks.items())}"))

# %% [markdown]
# ### The verifier, exploited and fixed
# `tagged_reward` of lesson 01's lab pays every answer that `float` cannot read. You found that hole by thinking; a policy finds it by sampling. It only has to be where the honest way is hard (problems of three calculations or more) and to try something odd now and then (a high temperature).
# The strict grader looks on, and is never trained on. Then the same run on the repaired grader.

# %%
def repaired_reward(response, gold):
    """tagged_reward, where the answer is one plain number; anything else is not paid."""
    inside = re.search(r"</think>\s*<answer>(.*)</answer>\s*$", response, re.DOTALL)
    if inside and re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", re.sub("[,$€£]", "", inside[1])):
        return tagged_reward(response, gold)
    return {"format_reward": float(inside is not None), "answer_reward": 0.0, "reward": 0.0}

def exploit(grader, seed):
    """Proxy and strict reward of each step, what was paid wrongly at the end, seconds."""
    def watched(response, gold):
        return {**grader(response, gold), "strict": r1_zero_reward(response, gold)["reward"]}

    records, _ = load_records(profile.path(profile.data.maths_train), split="train")
    hard = [task for task, record in zip(train_tasks, records, strict=True) if record["answer"].count("=") >= 3]
    settings = settings_for(sizes.hole_steps, seed=seed, prompts_per_step=sizes.hole_prompts, lr=profile.grpo.hole_lr,
                            temperature=profile.grpo.hole_temperature, reduction="token_mean", adam_beta2=0.95)
    begun = time.monotonic()
    run = train_grpo(new_policy(profile.models.adapter)[0], hard or train_tasks, settings, tokenizer=tokenizer, reward_fn=watched,
                     engine=profile.engine.name)
    paid = [text.rpartition("<answer>")[2] for group in run.rollouts for text, parts in zip(group["completions"], group["parts"], strict=True)
            if parts["reward"] > parts["strict"]]
    return {"steps": [{"step": r["step"], "proxy": r["reward_mean"], "strict": r["strict"]} for r in run.metrics],
            "paid": paid[:6], "seconds": time.monotonic() - begun}

# %%
if ready(*CORE):
    holes = if_recorded("hole", lambda: {
        "tagged_reward": {seed: exploit(tagged_reward, seed) for seed in sizes.seeds}, "repaired": {seed: exploit(repaired_reward, seed) for seed in sizes.seeds[:1]}})
    if holes:
        ends = {name: {key: [np.mean([r[key] for r in run["steps"][part]]) for part in (slice(0, 3), slice(-3, None))] for key in ("proxy", "strict")}
                for name, runs_found in holes.items() for run in [next(iter(runs_found.values()))]}
        open_, shut = ends["tagged_reward"], ends["repaired"]
        display(training_curves({f"{name}, seed {seed}": run["steps"] for name, runs_found in holes.items() for seed, run in runs_found.items()},
                                ["proxy", "strict"], title=(
            f"With the hole the proxy goes from {open_['proxy'][0]:.2f} to {open_['proxy'][1]:.2f} and the strict reward from {open_['strict'][0]:.2f} to {open_['strict'][1]:.2f}; "
            f"repaired, the strict one from {shut['strict'][0]:.2f} to {shut['strict'][1]:.2f}")))
        for seed, run in holes["tagged_reward"].items():
            print(f"seed {seed}, {run['seconds']:.0f} s: paid were", *(repr(text) for text in run["paid"]))

# %% [markdown]
# ### Prompt, samples, beta: open-book questions
# S1 ran GRPO in seven cells on Natural Questions: two prompts, 4 or 8 samples, five betas. Its prompts are unpublished; in ours, prompt 1 asks for the answer, and prompt 2 asks for it in tags and as short as possible. The reward is the F1 of the stated answer, with
# prompt 2 a little more for the tag. The model of the tiny profile has never met such an instruction before a question: see in the column *tag* whether it finds the tag, and remember that what is never sampled is never rewarded. Which differences are larger than the interval in the title?

# %%
QA = {1: load_template("qa"), 2: "State the answer inside <answer> </answer>, as short as possible.\n" + load_template("qa")}
CELLS = [(1, 4, 0.0), (2, 4, 0.0), *((2, 8, beta) for beta in (0.0, 0.02, 0.04, 0.08, 0.1))]

def questions(path, prompt, limit=None):
    records, _ = load_records(profile.path(path), limit=limit)
    return [{"prompt": render(QA[prompt], passages=render_passages(r["passages"]), question=r["question"]), "answers": r["answers"]}
            for r in records]

def is_tagged(response):
    return float("<answer>" in response and "</answer>" in response)

def brief_reward(response, golds):
    """F1 of the stated answer, and 0.2 for stating it in a tag."""
    parts = qa_reward(response, golds)
    return parts | {"format_reward": is_tagged(response), "reward": parts["reward"] + 0.2 * is_tagged(response)}

def qa_answers(model, words, prompt):
    """SubEM, F1 and share of tags of greedy answers to held-out questions."""
    rows = questions(profile.data.qa_test, prompt, sizes.qa_problems)
    brief = profile.sampling.settings(temperature=0.0, max_new_tokens=24, stop_strings=("\n",))
    texts = [a.text for a in complete(model, words, [r["prompt"] for r in rows], sampling=brief, batch_size=profile.engine.batch_size)]
    scores = [qa_scores(graded_text(text), r["answers"]) | {"tag": is_tagged(text)} for text, r in zip(texts, rows, strict=True)]
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}

def qa_cell(prompt, samples=None, beta=0.0):
    """SubEM and F1 after a run from new LoRA layers; without samples those of the start."""
    lora = LoraSettings(rank=profile.grpo.rank, alpha=2 * profile.grpo.rank)
    model, words = load_model(profile.path(profile.models.maths), lora=lora, device=profile.engine.device, dtype=profile.engine.dtype)
    if samples:
        settings = settings_for(sizes.qa_steps, samples_per_prompt=samples, beta=beta, prompts_per_step=sizes.few_prompts, max_new_tokens=24, stop="\n")
        train_grpo(model, questions(profile.data.qa_train, prompt), settings, tokenizer=words, functions=my_functions(),
                   reward_fn=brief_reward if prompt == 2 else qa_reward, engine=profile.engine.name)
    return qa_answers(model, words, prompt)

# %%
if ready(*CORE):
    qa_table = if_recorded("qa_table", lambda: {
        **{f"P{prompt}": qa_cell(prompt) for prompt in QA}, **{f"P{p} {n} {b:g}": qa_cell(p, n, b) for p, n, b in CELLS}})
    if qa_table:
        theirs, both = published_group("s1.grpo"), {}
        for name, found in qa_table.items():
            prompt, *cell = name.split()
            label = f"{prompt}, {cell[0]} samples, beta {cell[1]}" if cell else f"{prompt}, untrained"
            known = theirs[name.lower().replace(" ", "_").replace(".", "")].value if cell else ("–", "–")
            both[label] = {"SubEM": found["sub_em"], "F1": found["f1"], "tag": found["tag"], **dict(zip(("S1 SubEM", "S1 F1"), known, strict=True))}
        width = 196 * math.sqrt(0.25 / sizes.qa_problems)
        display(method_table(both, title=f"One seed; an interval of SubEM on {sizes.qa_problems} questions is ±{width:.0f} points, wider than most differences between trained cells"))
        save_findings("05", findings | {"qa_table": qa_table}, seeds=sizes.main_seeds)
