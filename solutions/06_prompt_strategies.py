# %% [markdown]
# # 06 Prompting strategies: seven ways to ask the same model, what they gain and what they cost
#
# Lessons 03 to 05 changed the weights. Here the weights stay, and only the question changes. **After this lesson you can** build a few-shot prompt that gives no answer away,
# read a structured response, let several samples vote, and search over steps within a budget of tokens; and you can say which strategy is worth its cost, with a test.
#
# **You need** lesson 01 or its ideas (the last number of a text, intervals). **Time:** about 90 minutes.
#
# Stuck? `hint(1, "self_consistency_vote")` (up to 3), and `self_consistency_vote = use_reference("self_consistency_vote")` lets you go on; it is recorded as such.

# %% tags=["setup"]
import re

import numpy as np
import pandas as pd
from IPython.display import display

from helpers.data import load_records
from helpers.evaluation import bootstrap_interval
from helpers.models import load_model
from helpers.plotting import frontier, method_table, rates_with_intervals, sweep_curves
from helpers.prompts import load_template, render, split_turn
from helpers.rewards import is_equivalent, parse_number
from helpers.strategies import (
    FORMS,
    STRATEGIES,
    Step,
    compare_strategies,
    final_answer,
    render_messages,
    run_strategy,
    wording,
)
from helpers.strategies.asking import example_turns
from workbook.artefacts import earlier
from workbook.lesson import (
    answer,
    begin,
    check,
    comparison_table,
    hint,
    observed,
    predict,
    progress,
    ready,
    recorded_or_live,
    save_findings,
    use_profile,
    use_reference,
)

begin("06")
profile = use_profile("tiny")

# %% [markdown]
# ## Ten seconds: one problem, asked in two ways
#
# The first prompt wants the number at once; the second lets the model write its steps. The model is the same.

# %%
base_path = profile.path(profile.models.instruct)
place = {"device": profile.engine.device, "dtype": profile.engine.dtype, "quantization": profile.engine.quantization}
model, tokenizer = load_model(base_path, **place)
sizes, greedy = profile.sizes.strategies, profile.sampling.settings(temperature=0.0)
problems, _ = load_records(profile.path(profile.data.maths_test), split="test",
                           limit=sizes.problems)
pool, _ = load_records(profile.path(profile.data.maths_train), limit=64)
for name in ("zero_shot", "zero_shot_cot"):
    row = run_strategy(model, tokenizer, problems.select([2]), name, sampling=greedy)[0]
    print(f"{name}: {row['prompt']}[{row['generations'][0]}]  right: {row['correct']}\n")

# %% [markdown]
# ## The idea
#
# A causal model spends the same computation on every token. An answer that is asked for at once must be found in one step; an answer after a chain of steps $z$ can lean on each of them:
#
# $$ p(y \mid x) = \sum_{z} p(y \mid x, z)\, p(z \mid x) $$
#
# Chain of thought (Wei et al. 2022, [2201.11903](https://arxiv.org/abs/2201.11903)) samples one $z$; self-consistency (Wang et al. 2022, [2203.11171](https://arxiv.org/abs/2203.11171))
# estimates the sum with several and takes the $y$ with the most votes; tree of thought (Yao et al. 2023, [2305.10601](https://arxiv.org/abs/2305.10601)) searches for a good $z$ step by step.

# %%
for name, strategy in STRATEGIES.items():
    kind = "votes" if strategy.votes else "search" if strategy.searches else "one sample"
    print(f"{name:17} examples: {strategy.examples:10} {kind:11} {strategy.paper}")

# %% [markdown]
# ## Exercise 1: a few-shot prompt that gives nothing away
# *Difficulty 2 of 5, importance 4 of 5, 15 minutes*
#
# Examples in the prompt show form and method (Brown et al. 2020, [2005.14165](https://arxiv.org/abs/2005.14165)). An example that *is* the question hands the answer over, and one with the same words
# and other numbers hands the solution over: the model copies its steps. Either way the score measures copying. `wording(question)` is the question without its numbers, case and punctuation: pass over every
# example whose wording is the question's. Take the first `shots` of the rest, in their order; raise `ValueError` when there are fewer.
#
# Return the turns of a conversation: `{"role": "user", "content": ...}` for a question, `{"role": "assistant", "content": response}` for its response, and last the user's turn with the asked question.
# `split_turn(template)` gives the instruction (it stands once, before the first question) and the turn, which `render(turn, question=...)` fills.

# %%
print(wording("Ana has 12 eggs and sells 5."), "|", wording("ana has 7 eggs and sells 30"))
print(split_turn("Be brief.\nQ: {question}\nA:"))

# %% nbgrader={"grade": false, "grade_id": "few_shot_messages", "locked": false, "schema_version": 3, "solution": true, "task": false}
def few_shot_messages(question, pool, template, *, shots=3):
    """The turns of a prompt: `shots` examples, then the question. pool: [{"question", "response"}, ...]"""
    ### BEGIN SOLUTION
    usable = [row for row in pool if wording(row["question"]) != wording(question)]
    if len(usable) < shots:
        raise ValueError(f"{shots} examples are wanted, but only {len(usable)} can be shown.")
    instruction, turn = split_turn(template)
    turns = []
    for row in usable[:shots]:
        turns.append({"role": "user", "content": render(turn, question=row["question"])})
        turns.append({"role": "assistant", "content": row["response"]})
    turns.append({"role": "user", "content": render(turn, question=question)})
    turns[0] = turns[0] | {"content": instruction + turns[0]["content"]}
    return turns
    ### END SOLUTION

# %%
if ready("few_shot_messages"):
    examples = example_turns(pool, STRATEGIES["cot"], FORMS["plain"])
    turns = few_shot_messages(problems[0]["question"], examples, load_template("question_answer"),
                              shots=2)
    print(render_messages(turns))

# %%
check(few_shot_messages)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The question leaks."** Compare wordings, not questions, and do so before you take the first `shots`.
# **"The instruction stands twice."** Only the first turn carries it; without examples that is the question's own.
# **"Braces."** `str.format` fails on "the set {1, 2}"; `render` fills in one pass.
# </details>

# %% [markdown]
# ## Exercise 2: read a structured response
# *Difficulty 2 of 5, importance 3 of 5, 15 minutes*
#
# Structured chain of thought asks for named parts: what is known, the plan, the steps, the answer (Li et al. 2023, [2305.06599](https://arxiv.org/abs/2305.06599), for code; Wang et al. 2023, [2305.04091](https://arxiv.org/abs/2305.04091), plan and solve).
# A response in parts can be checked part by part, if it is read with care. A heading stands at the start of a line (spaces may come before it) and ends with `:` or the full-width `：`. All headings
# come in the given order, each once; only the first may be missing, because the prompt ends with it. The last part is one line: what follows is the model's own next text. Any other response, or one with an empty part, is `None`.

# %% nbgrader={"grade": false, "grade_id": "read_structured", "locked": false, "schema_version": 3, "solution": true, "task": false}
def read_structured(response, sections):
    """{"Known": ..., "Plan": ..., ...} in the order of the sections, or None."""
    ### BEGIN SOLUTION
    names = "|".join(map(re.escape, sections))
    pieces = re.split(rf"^[ \t]*({names})[ \t]*[:：]", response, flags=re.MULTILINE)
    if pieces[1:2] != [sections[0]]:
        pieces = ["", sections[0], *pieces]
    if pieces[0].strip() or tuple(pieces[1::2]) != tuple(sections):
        return None
    parts = {name: text.strip() for name, text in zip(sections, pieces[2::2], strict=True)}
    parts[sections[-1]] = parts[sections[-1]].split("\n")[0].strip()
    return parts if all(parts.values()) else None
    ### END SOLUTION

# %%
if ready("read_structured"):
    row = run_strategy(model, tokenizer, problems.select([2]), "structured_cot", sampling=greedy)[0]
    print(row["prompt"] + row["generations"][0])
    print(read_structured(row["generations"][0], FORMS["plain"].sections))

# %%
check(read_structured)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"A word in the middle of a line counts as a heading."** `re.MULTILINE` lets `^` match at each line.
# **"The first part is lost."** With a group in the pattern, `re.split` keeps the headings: text, name, text, name, text.
# **"Two answers."** Each heading once, in order: compare the list of names found with the sections.
# </details>

# %% [markdown]
# ## Exercise 3: let samples vote
# *Difficulty 2 of 5, importance 5 of 5, 15 minutes*
#
# Wrong chains go wrong in many ways, right ones meet. So several are sampled and the answer with the most votes wins:
#
# $$ \hat y = \arg\max_a \sum_{i=1}^{n} \mathbb 1[\,y_i \equiv a\,] $$
#
# The small print decides. "18", "18.0" and "18 eggs" are one candidate (`is_equivalent` in *both* directions: as a gold answer, "18 %" would forgive an 18). A sample without a number is no vote: it is
# counted, and were it the majority it does not win (`parse_number(text)` is None for it). Of a tie the candidate that was given first wins.

# %% nbgrader={"grade": false, "grade_id": "self_consistency_vote", "locked": false, "schema_version": 3, "solution": true, "task": false}
def self_consistency_vote(answers):
    """{"answer", "votes", "unparsable", "tie"} of a list of texts and Nones."""
    ### BEGIN SOLUTION
    parsed = [a for a in answers if a is not None and parse_number(a) is not None]
    counts = {}
    for a in parsed:
        same = [b for b in counts if is_equivalent(a, b) and is_equivalent(b, a)]
        candidate = same[0] if same else a
        counts[candidate] = counts.get(candidate, 0) + 1
    most = max(counts.values(), default=0)
    winners = [candidate for candidate, votes in counts.items() if votes == most]
    return {"answer": winners[0] if winners else None, "votes": most,
            "unparsable": len(answers) - len(parsed), "tie": len(winners) > 1}
    ### END SOLUTION

# %%
if ready("self_consistency_vote"):
    for case in (["20", "18", "18.0"], ["20", "18"], [None, "?", None, "3"], [None]):
        print(case, "->", self_consistency_vote(case))

# %%
check(self_consistency_vote)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"None wins."** Leave it out before counting. **"18 and 18.0 are two."** Compare with `is_equivalent`, not `==`.
# **"The tie."** A dict keeps the order in which its keys came: the first of the most frequent wins.
# </details>

# %% [markdown]
# ## Exercise 4: a tree of thought within a budget
# *Difficulty 4 of 5, importance 3 of 5, 30 minutes*
#
# A chain cannot take a step back. A tree proposes several next steps for each solution so far, scores the longer solutions, and keeps the best `width`. Two functions are given: `propose(texts)` returns
# for each text a list of `Step(text, tokens, final)`, at most `branches` of them, each of at most `step_tokens` tokens; `score(texts)` returns a number for each text, higher is better.
#
# 1. Start from the one empty solution `""`. A level opens the kept solutions that have not ended, best first, but only as many as the rest of `token_budget` can pay for, at `branches * step_tokens` each. None can be paid for: stop, `"budget"`. All kept have ended: stop, `"ended"`.
# 2. Propose, count the tokens of *all* proposals, put equal longer solutions together, and score them once each.
# 3. Keep the `width` best of the longer ones and of those that had ended before; of equal scores what came first, the ended ones first of all. Nothing longer and nothing ended: stop, `"dead_end"`, and keep what there was.
# 4. After `depth` levels stop: `"ended"` if all kept have ended, else `"depth"`.
#
# Return the best ended solution, or the best open one: `{"text", "final", "score", "tokens", "levels", "stopped"}`; the score of `""` is 0.

# %% nbgrader={"grade": false, "grade_id": "tree_of_thought", "locked": false, "schema_version": 3, "solution": true, "task": false}
def tree_of_thought(propose, score, *, width=2, branches=3, depth=8, step_tokens=32,
                    token_budget=400):
    """The best solution of a breadth-first search that never spends more than token_budget."""
    ### BEGIN SOLUTION
    kept, tokens, levels, stopped = [("", False, 0.0)], 0, 0, "depth"  # (text, final, score)
    while levels < depth:
        affordable = (token_budget - tokens) // (branches * step_tokens)
        opened = [text for text, final, _ in kept if not final][:max(affordable, 0)]
        if not opened:
            stopped = "ended" if all(final for _, final, _ in kept) else "budget"
            break
        proposed = propose(opened)
        tokens += sum(step.tokens for steps in proposed for step in steps)
        longer = {text + step.text: step.final
                  for text, steps in zip(opened, proposed, strict=True) for step in steps}
        ended = [thought for thought in kept if thought[1]]
        if not longer and not ended:
            stopped = "dead_end"
            break
        scores = score(list(longer)) if longer else []
        new = [(text, longer[text], value) for text, value in zip(longer, scores, strict=True)]
        kept = sorted(ended + new, key=lambda thought: -thought[2])[:width]
        levels += 1
    if stopped == "depth" and all(final for _, final, _ in kept):
        stopped = "ended"
    text, final, value = max(kept, key=lambda thought: (thought[1], thought[2]))
    return {"text": text, "final": final, "score": value, "tokens": tokens, "levels": levels,
            "stopped": stopped}
    ### END SOLUTION

# %% [markdown]
# A toy: each step appends 0 or 1, a solution ends after three, and more ones are better. With 100 tokens the tree finds 111; with 25 it has to stop.

# %%
if ready("tree_of_thought"):
    def zero_or_one(texts):
        return [[Step(bit, 10, len(text) == 2) for bit in "01"] for text in texts]

    for budget in (100, 60, 25):
        print(budget, tree_of_thought(zero_or_one, lambda texts: [t.count("1") for t in texts],
                                      branches=2, step_tokens=10, token_budget=budget))

# %%
check(tree_of_thought)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"Over the budget."** Count before you spend: how many solutions can be opened if every step takes `step_tokens`?
# **"A good solution is lost."** Those that ended stay in the race: join them with the new ones before you cut to `width`.
# **"The order."** Python's `sorted` is stable: equal scores keep their order.
# </details>

# %% [markdown]
# ## The run: seven strategies, base and tuned, through your functions
#
# The tuned model is the one your lesson 05 or 03 left behind, or the shipped adapter of lesson 03: tuned to reason, in another format than any of these prompts ask for. All strategies see the same problems, so pairs of them can be tested problem by problem.
# Say first how far chain of thought with examples is ahead of the direct answer on the *tuned* model, compared with its lead on the base model: `"falls"`, `"stays"` or `"rises"`.

# %%
predict("lead of cot over zero_shot after tuning", "rises")

# %%
FOUR = ("few_shot_messages", "read_structured", "self_consistency_vote", "tree_of_thought")

def ask(policy, name, problems=problems, **options):
    """Rows of one strategy, by your functions."""
    settings = {"examples": pool, "samples": sizes.votes, "tree": profile.tree.settings()} | options
    return run_strategy(policy, tokenizer, problems, name, sampling=greedy,
                        functions={each: globals()[each] for each in FOUR},
                        batch_size=profile.engine.batch_size, engine=profile.engine.name, **settings)

candidates, missing = {}, f"none, because lessons 03 and 05 tune another model, {profile.models.maths}"
if profile.models.instruct == profile.models.maths:  # an adapter fits only the model that it was trained on
    candidates = {"your own of lesson 05": earlier("05", "grpo"), "your own of lesson 03": earlier("03", "sft"),
                  "the shipped adapter": profile.models.adapter and profile.path(profile.models.adapter)}
    missing = "none yet: lesson 03 makes one"
whose, tuned_path = next(((who, path) for who, path in candidates.items() if path), (missing, None))
print("tuned model:", whose)

# %%
if ready(*FOUR):
    results = {"base": {name: ask(model, name) for name in STRATEGIES}}
    if tuned_path:
        tuned, _ = load_model(base_path, adapter=tuned_path, trainable_adapter=False, **place)
        results["tuned"] = {name: ask(tuned, name) for name in STRATEGIES}
    compared = {who: compare_strategies(rows) for who, rows in results.items()}

# %%
if ready(*FOUR):
    def rate(who, name):
        s = compared[who]["strategies"][name]
        return s["accuracy"], s["low"], s["high"]

    def row_of(name):
        found = {who: compared[who]["strategies"][name] for who in compared}
        costs = {"tokens written": ("tokens", ".0f"), "tokens read": ("prompt_tokens", ".0f"), "seconds": ("seconds", ".2f")}
        return {**{who: s["accuracy"] for who, s in found.items()},
                **{title: " / ".join(f"{s[key]:{form}}" for s in found.values()) for title, (key, form) in costs.items()}}

    display(method_table({name: row_of(name) for name in STRATEGIES},
                         title=f"Accuracy on {len(problems)} problems, and what one costs ({' / '.join(compared)})"))

# %%
if ready(*FOUR):
    def ahead(who):
        """For each problem: 1 where cot alone is right, -1 where the direct answer alone is."""
        rows = results[who]
        return np.array([int(a["correct"]) - int(b["correct"]) for a, b in zip(rows["cot"], rows["zero_shot"], strict=True)])

    leads = {who: (ahead(who).mean(), *bootstrap_interval(ahead(who))) for who in compared}
    for who, (lead, low, high) in leads.items():
        print(f"{who}: chain of thought leads by {100 * lead:.1f} points ({100 * low:.1f} to {100 * high:.1f})")
    display(rates_with_intervals(
        {name: {who: rate(who, name) for who in compared} for name in STRATEGIES},
        title="Chain of thought leads the direct answer by "
              + " and by ".join(f"{100 * lead:.0f} points on the {who} model" for who, (lead, *_) in leads.items())))
    if "tuned" in results:
        low, high = bootstrap_interval(ahead("tuned") - ahead("base"))
        word = "rises" if low > 0 else "falls" if high < 0 else "stays"
        display(observed("lead of cot over zero_shot after tuning", word))

# %% [markdown]
# Compare `few_shot` with `zero_shot`: examples of bare answers show the *form* of an answer. Was the form what was missing? And did tuning move the direct answer at all?
#
# Which differences are more than chance? Each pair of strategies is tested on the problems that only one of the two solves (McNemar 1947). Seven strategies make 21 pairs, so the p-values are adjusted for that. In the table: row minus column in points, with a star where the adjusted p is below 0.05.

# %%
if ready(*FOUR):
    for who in compared:
        table = pd.DataFrame("", index=list(STRATEGIES), columns=list(STRATEGIES)[1:])
        for pair in compared[who]["pairs"]:
            star = "*" if pair["adjusted"] < 0.05 else ""
            table.loc[pair["first"], pair["second"]] = f"{100 * pair['difference']:+.0f}{star}"
        display(table.iloc[:-1].rename_axis(index=f"{who}, {len(problems)} problems"))

# %% [markdown]
# ## What a point of accuracy costs
#
# Tokens that the model writes are the cost of an answer: each is one pass. Tokens that it reads are cheaper, but long examples are read with every question.

# %%
if ready(*FOUR):
    for who in compared:
        costs = {name: compared[who]["strategies"][name]["tokens"] for name in STRATEGIES}
        worth = [name for name in STRATEGIES
                 if all(rate(who, name)[0] > rate(who, other)[0] for other in STRATEGIES
                        if other != name and costs[other] <= costs[name])]
        display(frontier({name: (costs[name], rate(who, name)) for name in STRATEGIES},
                         title=f"{who} model: no cheaper one does as well as {', '.join(worth)}",
                         xlabel="tokens written per problem"))

# %% [markdown]
# ## Where the votes went, and what the judge knows
#
# Self-consistency is only as good as its samples: how often is a majority right? A tree is only as good as its judge: does it give right solutions a higher score than wrong ones? 50 % is a coin.
# `zero_shot_cot` asks as the tree does, but once and greedily: the difference is what the search adds.

# %%
if ready(*FOUR):
    def searched(who):
        """The tree minus zero_shot_cot, with the paired interval, and how many times the tokens it wrote."""
        tree, chain = results[who]["tree_of_thought"], results[who]["zero_shot_cot"]
        gaps = np.array([int(a["correct"]) - int(b["correct"]) for a, b in zip(tree, chain, strict=True)])
        written = [sum(row["token_count"] for row in rows) for rows in (tree, chain)]
        return (gaps.mean(), *bootstrap_interval(gaps)), written[0] / written[1]

    for who in results:
        for most in range(sizes.votes + 1):
            rows = [row for row in results[who]["self_consistency"] if row["vote"]["votes"] == most]
            if rows:
                right = sum(row["correct"] for row in rows)
                print(f"{who}: {most} of {sizes.votes} votes: {len(rows):4} problems, {right / len(rows):.0%} right")
        scores = {hit: [row["tree"]["score"] for row in results[who]["tree_of_thought"] if row["correct"] is hit]
                  for hit in (True, False)}
        pairs = [(good > bad) + (good == bad) / 2 for good in scores[True] for bad in scores[False]]
        if pairs:
            print(f"{who}: a right solution is scored above a wrong one in {np.mean(pairs):.0%} of such pairs")
        (gap, low, high), times = searched(who)
        print(f"{who}: the tree minus one greedy chain: {100 * gap:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), for {times:.1f} times the tokens\n")

# %% [markdown]
# The judge here reads whole solutions of *different* problems; within a tree it compares solutions of one. Either way, look before you pay: a tree with a judge that knows nothing is no better than one *sampled* chain, at the price of many,
# and where sampling costs accuracy it is worse than the greedy chain. The lines above say by how much here.
#
# ## The first "= n", or the last stated answer
#
# A published evaluation of such strategies searched for the first match of "= n". Graded that way, every chain that takes two steps is judged by its first.

# %%
if ready(*FOUR):
    def first_equals(text):
        found = re.search(r"=\s*(-?\d+)", text)
        return found[1] if found else None

    for who in results:
        for name, read in (("first = n", first_equals), ("last stated", final_answer)):
            rows = results[who]["cot"]
            hits = sum(is_equivalent(read(row["generations"][0]), row["gold_answer"]) for row in rows)
            print(f"{who:6} {name:12} {hits / len(rows):.1%}")

# %% [markdown]
# ## Findings

# %%
if ready(*FOUR):
    keys = ("accuracy", "low", "high", "tokens", "seconds")
    findings = {
        "strategies": {name: {who: {key: found["strategies"][name][key] for key in keys}
                              for who, found in compared.items()} for name in STRATEGIES},
        "cot_lead": {who: [float(value) for value in lead] for who, lead in leads.items()},
        "pairs": {who: found["pairs"] for who, found in compared.items()},
        "cot_accuracy": rate("base", "cot")[0],
        "accuracy_after": rate("tuned", "cot")[0] if tuned_path else None}
    save_findings("06", findings, seeds=[greedy.seed])
    display(comparison_table("06", findings, ["s2.base_accuracy", "s2.tuned_accuracy"]))

# %% [markdown]
# S2 expected its two numbers of a 7B model on GSM8K, by chain of thought; here stands the same quantity for the model of your profile.
#
# **What is built in, what is found.** Every form of prompt, and the judge's verdict, was put into the model's training text. How much examples, votes and search add, what they cost, and which of it survives tuning, you measured.
#
# **Inspect**: a problem that only the direct answer solves; a majority of five that is wrong; the tree's best solution where its score is lowest.
#
# ## Questions

# %%
answer("06-1", "b")

# %%
answer("06-2", "c")

# %%
answer("06-3", "a")

# %%
answer("06-4", "b")

# %%
answer("06-5", "c")

# %% [markdown]
# ## With a GPU
#
# `use_profile("full")` asks Qwen2.5-7B-Instruct, the model of S2's figures, in its chat template, through vLLM (which holds weights of its own: below 48 GB add `"engine.name=transformers"` to the call).
# No tuned model stands beside it: the adapters of lessons 03 and 05 belong to Qwen2.5-Math-1.5B. `use_profile("full", "models.instruct=Qwen/Qwen2.5-Math-1.5B")` asks that one in plain text, before and after your lesson 05. `small` is alike: Qwen2.5-1.5B-Instruct alone, or both with `"models.instruct=Qwen/Qwen2.5-0.5B"`. All strategies in Chinese:
# `python3 -m workbook eval --strategy all --model Qwen/Qwen2.5-7B-Instruct --profile full --form zh --samples 200`. Predict first: does chain of thought still gain on a model that reasons unasked?
#
# ## You have finished

# %%
progress()

# %% [markdown]
# ---
# # Going further
#
# ## In Chinese
#
# The same strategies in Chinese serve the real models, with fifty problems of our own and a grader that reads full-width digits, units and Chinese numerals, and refuses what has two meanings. The tiny model has never seen a Chinese character: for it, the next cells show prompts and the grader, not a result.

# %%
chinese, _ = load_records(profile.path("workbook/assets/data/maths_chinese.jsonl"))
if ready("few_shot_messages"):
    shown = example_turns(chinese, STRATEGIES["cot"], FORMS["zh"])
    template = load_template(FORMS["zh"].templates["work"])
    print(render_messages(few_shot_messages(chinese[0]["question"], shown, template, shots=2)), "\n")
    for text in ("11+8=１９", "答案等于１９。", "一共有19个，答案是：19℃"):
        print(f"{text} states {final_answer(text)}")
    for text in ("１９", "一共19个", "十九", "百分之19", "约19", "1万9千", "十几个"):
        print(f"{text}: {is_equivalent(text, '19')}")

# %%
if ready(*FOUR):
    if profile.name == "tiny":
        print(f"{len(chinese)} problems wait for a profile whose model reads Chinese.")
    else:
        few = chinese.select(range(min(sizes.problems, len(chinese))))
        told = compare_strategies({name: ask(model, name, few, form="zh", examples=chinese)
                                   for name in ("zero_shot", "cot", "zero_shot_cot", "structured_cot")})
        display(rates_with_intervals(
            {name: (s["accuracy"], s["low"], s["high"]) for name, s in told["strategies"].items()},
            title=f"{len(few)} Chinese problems, asked in Chinese"))

# %% [markdown]
# ## More votes, more tokens for the tree
#
# What do twice as many samples buy, and what twice the budget?

# %%
if ready(*FOUR):
    def more(name, **options):
        rows = ask(model, name, problems.select(range(sizes.more_problems)), **options)
        found = compare_strategies({name: rows})["strategies"][name]
        return [found[key] for key in ("tokens", "accuracy", "low", "high")]

    curves = recorded_or_live("more", lambda: {
        "votes": {n: more("self_consistency", samples=n) for n in sizes.more_votes},
        "tree": {n: more("tree_of_thought", tree=profile.tree.settings(token_budget=n))
                 for n in sizes.more_budgets}})
    def of_sizes(name):
        return {int(n): point[1:] for n, point in curves[name].items()}

    def span(name):
        (first, *_), *_, (last, *_) = of_sizes(name).values()
        return f"{100 * first:.0f} % to {100 * last:.0f} %"

    display(sweep_curves({"self_consistency": of_sizes("votes")}, xlabel="votes",
                         title=f"More votes: {span('votes')}, for {curves['votes'][max(curves['votes'], key=int)][0]:.0f} tokens per problem"))
    display(sweep_curves({"tree_of_thought": of_sizes("tree")}, xlabel="budget of tokens per problem",
                         title=f"A larger budget for the tree: {span('tree')}; it ends by itself after {curves['tree'][max(curves['tree'], key=int)][0]:.0f} tokens"))
