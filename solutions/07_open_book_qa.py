# %% [markdown]
# # 07 Open-book question answering: every method on one quantised model, and which differences are real
#
# S1 tuned Qwen3-8B-AWQ with five methods on Natural Questions and published one table. You rebuild all of it in the tiny world. **After this lesson you can** turn records into prompts,
# make negatives from a policy's own errors, train LoRA layers over 4-bit weights with SFT, DPO, ORPO, KTO and GRPO, and say which differences of a table, yours or a published one, are noise.
#
# **You need** lessons 03 to 05, or their ideas; what you wrote there trains the models here. **Time:** about 90 minutes.
#
# Stuck? `hint(1, "negatives")` (up to 3), and `negatives = use_reference("negatives")` lets you go on; it is recorded as such.

# %% tags=["setup"]
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
from IPython.display import display

from helpers.comparison import difference_of_rates, totals_that_fit
from helpers.data import load_records
from helpers.evaluation import (
    bootstrap_interval,
    complete,
    grade_completions,
    wilson_interval,
)
from helpers.models import LoraSettings, footprint, load_model
from helpers.plotting import method_table, rates_with_intervals
from helpers.plotting_differences import difference_forest
from helpers.prompts import load_template, render, render_passages
from helpers.rewards import normalize_answer, qa_reward, sub_em, token_f1
from helpers.strategies.asking import speaks_chat
from helpers.training import (
    GRPOSettings,
    PreferenceSettings,
    SFTSettings,
    train_grpo,
    train_preference,
    train_sft,
)
from workbook.earlier import own_or_reference
from workbook.hints import reference_function
from workbook.lesson import (
    answer,
    begin,
    check,
    comparison_table,
    hint,
    observed,
    predict,
    progress,
    published,
    published_group,
    ready,
    recorded_or_live,
    run_folder,
    save_findings,
    use_profile,
    use_reference,
)

begin("07")
profile = use_profile("tiny")

# %% [markdown]
# ## Ten seconds: the task, and a base model in four bits
#
# Five passages, a question, and an answer that stands in the passages or does not. SubEM and F1 are those of lesson 01: only F1 charges for needless words.

# %%
sizes = profile.sizes.qa
AWQ = profile.path(profile.models.awq)

def fresh(seed=0):
    """The quantised base with new LoRA layers: the one start of every method."""
    lora = LoraSettings(rank=profile.qa.rank, alpha=2 * profile.qa.rank, seed=seed)
    return load_model(AWQ, quantization="awq", lora=lora, device=profile.engine.device, dtype=profile.engine.dtype)

base, tokenizer = fresh()
train_raw, test_raw = (load_records(profile.path(path), split=split, limit=count)[0] for path, split, count in (
    (profile.data.qa_train, "train", sizes.questions), (profile.data.qa_test, "test", sizes.tested)))
print(f"{footprint(base) / 1e6:.1f} MB of weights, {len(train_raw)} questions to train on, {len(test_raw)} held out")
for text in (*test_raw[0]["passages"], test_raw[0]["question"], f"gold: {test_raw[0]['answers']}"):
    print(" ", text)

# %% [markdown]
# ## Exercise 1: from record to prompt and response
# *Difficulty 2 of 5, importance 4 of 5, 15 minutes*
#
# A retriever returns passages, best first, as texts or as `{"title", "text"}`; Natural Questions has a list of gold answers, aliases of one thing. Return `{"prompt", "response", "answers"}`:
#
# - show the first `most_passages` passages; one with a title as `title: text`; each on one line (white space collapsed). `render_passages` numbers them, `render(template, passages=..., question=...)` fills the template; strip the question;
# - `answers`: stripped, without empty and repeated ones, in their order; a single text counts as a list of one. No question or no answer: `ValueError` (an empty gold is a substring of everything);
# - `response`: a space and the first answer that **stands in a shown passage**, else the first answer. A target that can be copied teaches reading; an alias that stands nowhere teaches guessing.

# %% nbgrader={"grade": false, "grade_id": "open_book_record", "locked": false, "schema_version": 3, "solution": true, "task": false}
def open_book_record(record, template, most_passages=5):
    """{"prompt", "response", "answers"} of a record with "question", "passages" and "answers"."""
    ### BEGIN SOLUTION
    def one_line(passage):
        if not isinstance(passage, str):
            title = passage.get("title") or ""
            passage = f"{title}: {passage['text']}" if title.strip() else passage["text"]
        return " ".join(passage.split())

    question, answers = record["question"].strip(), record["answers"]
    answers = [answers] if isinstance(answers, str) else answers
    answers = list(dict.fromkeys(a.strip() for a in answers if a.strip()))
    if not question or not answers:
        raise ValueError("the record has no question or no answer")
    shown = [one_line(passage) for passage in record["passages"][:most_passages]]
    target = next((a for a in answers if any(a in passage for passage in shown)), answers[0])
    prompt = render(template, passages=render_passages(shown), question=question)
    return {"prompt": prompt, "response": f" {target}", "answers": answers}
    ### END SOLUTION

# %%
if ready("open_book_record"):
    example = {"question": "Where does Ana live? ", "answers": ["", "Arlo Town", "Port Arlo"],
               "passages": [{"title": "Ana", "text": "She lives\nin Port Arlo."}, "Ben keeps a goat.", "Never shown."]}
    for name, value in open_book_record(example, load_template("qa"), most_passages=2).items():
        print(f"{name}: {value!r}")

# %%
check(open_book_record)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"Letters as answers."** A text is a sequence of letters: `[answers] if isinstance(answers, str)`. **"Braces."** `render` fills all fields in one pass. **"The wrong alias."** Look in the passages that are shown, and take the *first* answer that any of them holds.
# </details>

# %%
INSTRUCT = "Answer from the passages alone, with the answer and nothing else; if they do not say, answer: not stated.\n"
REASON = "Quote the passage that decides in one line, then write a line with 'Answer:' and the answer alone ('not stated' if none decides).\n"

def template_for(name, instruction, words=tokenizer):
    """A plain text for a base model; for a chat model the same as a user's turn of its own template."""
    if not speaks_chat(words):
        return load_template(name)
    turn = [{"role": "user", "content": instruction + "{passages}\nQuestion: {question}"}]
    return words.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, enable_thinking=False)

if ready("open_book_record"):
    def converted(raw, template):
        """Your records, with the ids of the raw ones; what cannot be used is counted."""
        rows, refused = [], Counter()
        for record in raw:
            try:
                rows.append({"id": record["id"]} | open_book_record(record, template))
            except ValueError as error:
                refused[str(error)] += 1
        print(f"{len(rows)} records", f"refused: {dict(refused)}" if refused else "")
        return rows

    QA = template_for("qa", INSTRUCT)
    train_rows, test_rows = converted(train_raw, QA), converted(test_raw, QA)
    shown = np.mean([row["response"].strip() in row["prompt"] for row in train_rows])
    print(f"{shown:.0%} of the targets stand in their prompt; the others say that nothing does: {train_rows[0]['response']!r}")

# %% [markdown]
# ## Exercise 2: negatives
# *Difficulty 3 of 5, importance 5 of 5, 20 minutes*
#
# DPO, ORPO and KTO want bad responses, and the most useful ones are the policy's own. S1 sampled them, labelled them and cleaned them. Given are graded samples, several per question: `row["metrics"]` holds `answer_reward` (SubEM) and `reward` (F1). For each row the **first** reason that holds counts:
#
# | reason | when |
# |---|---|
# | `"cut off"` | `finish_reason` is neither `"eos"` nor `"stop_string"` |
# | `"empty"` | `normalize_answer(generation)` leaves nothing |
# | `"right"` | SubEM is 1: the gold is in there, however long the response is |
# | `"partly right"` | F1 is above 0 |
# | `"repeated"` | the same wrong answer (by `normalize_answer`) stood there before for this id, kept or not |
# | `"not needed"` | this id has its `most` negatives |
#
# What is left becomes `{"prompt", "chosen", "rejected"}`: chosen is `targets[id]`, rejected the generation without the white space at its end (the stop string). Rows of a question may stand apart. Return `(pairs, dropped)`.

# %% nbgrader={"grade": false, "grade_id": "negatives", "locked": false, "schema_version": 3, "solution": true, "task": false}
def negatives(rows, targets, *, most=1):
    """([{"prompt", "chosen", "rejected"}, ...], Counter of the reasons of all other rows)."""
    ### BEGIN SOLUTION
    pairs, dropped, wrong = [], Counter(), {}
    for row in rows:
        before = wrong.setdefault(row["id"], set())
        text, metrics = normalize_answer(row["generation"]), row["metrics"]
        if row["finish_reason"] not in ("eos", "stop_string"):
            dropped["cut off"] += 1
        elif not text:
            dropped["empty"] += 1
        elif metrics["answer_reward"]:
            dropped["right"] += 1
        elif metrics["reward"]:
            dropped["partly right"] += 1
        elif text in before:
            dropped["repeated"] += 1
        else:
            before.add(text)
            if len(before) > most:
                dropped["not needed"] += 1
                continue
            sides = {"chosen": targets[row["id"]], "rejected": row["generation"].rstrip()}
            pairs.append({"prompt": row["prompt"], **sides})
    return pairs, dropped
    ### END SOLUTION

# %%
if ready("negatives"):
    some = [{"id": 0, "prompt": "Where?", "finish_reason": "eos", "generation": text, "metrics": qa_reward(text, ["Port Arlo"])}
            for text in (" Mirow\n", " In Port Arlo, of course.\n", " Port Mirow\n", " mirow.\n", " Halden\n")]
    print(negatives(some, {0: " Port Arlo"}))

# %%
check(negatives)

# %% [markdown]
# The same from the command line: `python3 -m workbook data negatives IN OUT` samples, grades, cleans and labels for KTO, `data pairs` makes pairs for DPO, and `data convert IN OUT --to alpaca` writes S1's own format.
#
# <details><summary>Something does not work?</summary>
#
# **"A long right answer is a negative."** Its F1 is low, its SubEM is 1: DPO would unlearn the gold. **"The counts do not add up."** Every row is a pair or has one reason; "repeated" also where the first copy was not needed. **"Another question loses its answer."** What was seen is kept by id.
# </details>

# %%
if ready("open_book_record", "negatives"):
    def answers_of(model, rows, *, n=1, temperature=0.0, seed=0):
        """Graded answers, n per row."""
        prompts = [row["prompt"] for row in rows]
        sampling = profile.sampling.settings(max_new_tokens=profile.qa.max_new_tokens, stop_strings=("\n",), temperature=temperature, seed=seed)
        found = complete(model, tokenizer, prompts, n=n, sampling=sampling, batch_size=profile.engine.batch_size)
        return grade_completions(rows, found, qa_reward, prompts=prompts)

    sampled = answers_of(base, train_rows, n=profile.qa.samples, temperature=1.0)
    pairs, dropped = negatives(sampled, {row["id"]: row["response"] for row in train_rows})
    print(f"{len(sampled)} samples, {len(pairs)} negatives. Dropped: {', '.join(f'{why} {count}' for why, count in Counter(dropped).most_common())}.")
    if len(pairs) < 2:  # a policy that is right everywhere, or says nothing
        others = train_rows[1:] + train_rows[:1]
        pairs = [{"prompt": a["prompt"], "chosen": a["response"], "rejected": b["response"]} for a, b in zip(train_rows, others, strict=True)]
        print("Too few: the answers of other questions serve as negatives.")
    print(f"chosen {pairs[0]['chosen']!r}, rejected {pairs[0]['rejected']!r}")

# %% [markdown]
# ## Exercise 3: the comparison
# *Difficulty 2 of 5, importance 5 of 5, 10 minutes*
#
# Two methods answered the same questions. Some questions are hard for both, so their scores go up and down together, and the *difference* varies less than either mean. The **paired bootstrap** (Efron and Tibshirani 1993) draws questions with replacement and judges both methods on the same draw:
#
# $$ \delta^{*}_r = \frac{1}{N} \sum_{i=1}^{N} \big(a_{d_{r,i}} - b_{d_{r,i}}\big), \qquad r = 1 \dots R $$
#
# `draws` (R, N) holds the drawn question numbers $d$. Return `(difference, low, high)` as floats: the mean difference *first minus second* of the questions as they are, and the quantiles of $\delta^*$ that leave `(1 - confidence) / 2` on either side. Scores may come as a list of bools; unequal numbers of scores raise `ValueError`.

# %% nbgrader={"grade": false, "grade_id": "paired_bootstrap", "locked": false, "schema_version": 3, "solution": true, "task": false}
def paired_bootstrap(first, second, draws, confidence=0.95):
    """(difference, low, high) of the means of two methods' scores (N,) on the same questions."""
    ### BEGIN SOLUTION
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape:
        raise ValueError("the two methods have unequal numbers of scores")
    gaps, tail = first - second, (1 - confidence) / 2
    low, high = np.quantile(gaps[np.asarray(draws)].mean(axis=1), (tail, 1 - tail))
    return float(gaps.mean()), float(low), float(high)
    ### END SOLUTION

# %%
if ready("paired_bootstrap"):
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    one, two = hard + rng.normal(0.04, 0.1, 200), hard + rng.normal(0.0, 0.1, 200)
    draws = rng.integers(0, 200, (2000, 200))
    gap, low, high = paired_bootstrap(one, two, draws)
    apart = paired_bootstrap(one, rng.permutation(two), draws)
    print(f"paired {gap:.3f} ({low:.3f} to {high:.3f}); the same scores, pairs lost: {apart[0]:.3f} ({apart[1]:.3f} to {apart[2]:.3f})")

# %%
check(paired_bootstrap)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The interval is far too wide."** Quantiles of the R *means*, not of the differences. **"Worked case."** One line of `draws` is one draw: `.mean(axis=1)`. **"A constant difference has a width."** Both methods must meet the same questions: subtract first.
# </details>
#
# ## The run: five methods, one start, one budget
#
# Every method starts from the same base in four bits with fresh LoRA layers and takes the same number of optimiser steps, each on the same number of questions. SFT imitates the targets. DPO and ORPO see a target and your negative, KTO the two apart, as a good and a bad response.
# GRPO samples its own answers and is paid their F1. The functions that you wrote in lessons 03 to 05 do the work, where their checks passed.
#
# S1's GRPO gained F1 and hardly any SubEM (its numbers stand in the table below). Say what *your* GRPO does to SubEM, against the base: `"rises"`, `"stays"` (zero lies in the interval) or `"falls"`.

# %%
predict("SubEM after GRPO on F1", "stays")

# %%
EARLIER = {"03": ("tokenize_prompt_and_response", "sft_loss", "rejection_sample"), "04": ("sequence_log_probs", "implicit_rewards", "dpo_loss", "orpo_loss", "kto_loss"),
           "05": ("group_advantages", "grpo_clip_loss", "aggregate", "kl_estimate")}
TAKES = {"sft": ("tokenize_prompt_and_response", "sft_loss"), "grpo": EARLIER["05"], "orpo": ("tokenize_prompt_and_response", "sequence_log_probs", "orpo_loss"),
         **{name: ("tokenize_prompt_and_response", "sequence_log_probs", "implicit_rewards", f"{name}_loss") for name in ("dpo", "kto")}}

with redirect_stdout(StringIO()):  # it says one line per function; a summary is enough
    mine = {name: own_or_reference(lesson, name) for lesson, names in EARLIER.items() for name in names}
yours = [name for name, function in mine.items() if function is not reference_function(name)]
print(f"{len(yours)} of the {len(mine)} functions from lessons 03 to 05 are yours{': ' if yours else ''}{', '.join(yours)}; the course's own stand in for the rest.")

# vLLM's arithmetic differs a little from the trainer's; lesson 05's importance weights correct for it.
SAMPLER = {"importance_cap": 2.0} if profile.engine.name == "vllm" else {}

def train(method, seed=0, rows=None, name=None):
    """A model after one method from the one start, and the seconds that it took."""
    model, _ = fresh(seed)
    common = {"lr": profile.qa.lr[method], "max_steps": sizes.steps, "seed": seed, "progress": False}
    folder = {"functions": {key: mine[key] for key in TAKES[method]}, "tokenizer": tokenizer, "resume": False,
              "out_dir": run_folder() / name if name else None}
    if method == "grpo":
        settings = GRPOSettings(**common, **SAMPLER, prompts_per_step=profile.qa.batch_size, samples_per_prompt=profile.qa.group, max_new_tokens=profile.qa.max_new_tokens, stop="\n")
        run = train_grpo(model, train_rows, settings, reward_fn=qa_reward, engine=profile.engine.name, **folder)
    elif method == "sft":
        run = train_sft(model, rows or train_rows, SFTSettings(**common, batch_size=profile.qa.batch_size), **folder)
    else:
        per_step = profile.qa.batch_size * (2 if method == "kto" else 1)  # KTO counts responses
        run = train_preference(model, pairs, PreferenceSettings(**common, batch_size=per_step), method=method, **folder)
    return model, run

# %%
METHODS = ("sft", "dpo", "grpo", "orpo", "kto")
CORE = ("open_book_record", "negatives", "paired_bootstrap")

if ready(*CORE):
    graded, seconds = {"base": answers_of(base, test_rows)}, {}
    for method in METHODS:
        model, run = train(method, name=method)
        graded[method] = answers_of(model, test_rows)
        seconds[method] = run.metrics[-1]["seconds"]
        means = [np.mean([row["metrics"][score] for row in graded[method]]) for score in ("sub_em", "f1")]
        print(f"{method:5} {len(run.metrics)} steps, {seconds[method]:.0f} s: SubEM {means[0]:.3f}, F1 {means[1]:.3f}")

# %%
if ready(*CORE):
    def column(rows, score):
        return [row["metrics"][score] for row in rows]

    def summary(rows):
        """SubEM and F1 with 95 % intervals, and the words of a response."""
        hits, f1 = column(rows, "sub_em"), column(rows, "f1")
        return {"SubEM": (float(np.mean(hits)), *wilson_interval(int(sum(hits)), len(hits))), "F1": (float(np.mean(f1)), *bootstrap_interval(f1)),
                "words": float(np.mean([len(row["generation"].split()) for row in rows]))}

    found = {name: summary(rows) for name, rows in graded.items()}
    s1 = {name: figure.value for name, figure in published_group("s1.methods").items()}
    best = {score: max(found, key=lambda name: found[name][score][0]) for score in ("SubEM", "F1")}
    display(rates_with_intervals({name: {score: row[score] for score in ("SubEM", "F1")} for name, row in found.items()}, xlabel=f"score on {len(test_rows)} held-out questions, greedy",
                                 title=f"Most SubEM: {best['SubEM']}; most F1: {best['F1']} (S1: dpo in both)"))
    table = {name: {"SubEM": row["SubEM"][0], "F1": row["F1"][0], "words": f"{row['words']:.1f}", "S1 SubEM": s1[name][0], "S1 F1": s1[name][1]} for name, row in found.items()}
    display(method_table(table, title=f"A response of the base has {found['base']['words']:.1f} words, one of {best['F1']} {found[best['F1']]['words']:.1f}"))

# %% [markdown]
# Both scores are means over the same questions, so your paired bootstrap tells them from the base. Read the words beside them. A method that only learns to be *brief* gains F1 without knowing anything new, and whoever recites two candidates gains SubEM.

# %%
if ready(*CORE):
    draws = np.random.default_rng(0).integers(0, len(test_rows), (2000, len(test_rows)))

    def against(rows, other):
        return {name: paired_bootstrap(column(rows, score), column(other, score), draws) for name, score in (("SubEM", "sub_em"), ("F1", "f1"))}

    gaps = {name: against(graded[name], graded["base"]) for name in METHODS}
    clear = [f"{name} {score} {100 * gap[score][0]:+.0f}" for name, gap in gaps.items() for score in gap if not gap[score][1] <= 0 <= gap[score][2]]
    display(difference_forest({f"{name} - base": gap for name, gap in gaps.items()}, xlabel="points", title=f"Told apart from the base: {', '.join(clear) or 'none'}"))
    among = {f"{a} - {b}": against(graded[a], graded[b]) for k, a in enumerate(METHODS) for b in METHODS[k + 1 :]}
    apart = [f"{name} ({score})" for name, row in among.items() for score, gap in row.items() if not gap[1] <= 0 <= gap[2]]
    print(f"Among the five, {len(apart)} of {2 * len(among)} differences are told apart: {', '.join(apart) or 'none'}")
    gap, low, high = gaps["grpo"]["SubEM"]
    display(observed("SubEM after GRPO on F1", "falls" if high < 0 else "rises" if low > 0 else "stays"))

# %% [markdown]
# A table always has a winner; whether it has a *difference* the interval says. On the tiny model all five shorten the answers, by unequal amounts (the column of words). Which of them also reads better would take more steps, and far more questions, than this budget has.
#
# One seed is one throw: other LoRA values, another order, other samples. Further seeds of every method (recorded at depth short, there on more questions) beside yours; n is the number of questions behind each mean:

# %%
if ready(*CORE):
    def with_seed(seed):
        rows = {method: answers_of(train(method, seed)[0], test_rows) for method in METHODS}
        return {method: {"n": len(graded_rows)} | {score: float(np.mean(column(graded_rows, score))) for score in ("sub_em", "f1")} for method, graded_rows in rows.items()}

    seeds = recorded_or_live("seeds", lambda: {str(seed): with_seed(seed) for seed in range(1, 1 + sizes.seeds)})
    for method in METHODS:
        runs = [{"sub_em": found[method]["SubEM"][0], "f1": found[method]["F1"][0], "n": len(test_rows)}, *(seed[method] for seed in seeds.values())]
        print(f"{method:5}", "   ".join(f"{label} " + ", ".join(f"{run[score]:.3f} (n {run['n']})" for run in runs) for label, score in (("SubEM", "sub_em"), ("F1", "f1"))))

# %% [markdown]
# ## The published table: which differences are noise?
#
# S1 gives no number of test questions, and without it a table of means says nothing about noise. But the table gives it away: a SubEM with four digits is $k / n$ for a whole $k$, and few $n$ fit *all* its rates at once.

# %%
s1_grpo, s1_cot = published_group("s1.grpo"), published_group("s1.cot")
published_sub_em = [figure.value[0] for group in (published_group("s1.methods"), s1_grpo, s1_cot) for figure in group.values()]
fitting = totals_that_fit(published_sub_em, 6000)
TOTAL = fitting[0] if fitting else 3610
print(f"{len(published_sub_em)} published SubEM; numbers of questions up to 6,000 that fit them all: {fitting}")

# %% [markdown]
# Natural Questions has an open-domain test set of that size. Now each difference has an interval. It is the *unpaired* one: which questions each method got right was not published, so the pairing is lost. For F1 the variance is bounded by $m (1 - m)$, so its intervals are on the safe side.

# %%
s1_methods = {name: figure.value for name, figure in published_group("s1.methods").items()}
steps = [("sft", "base"), ("dpo", "base"), ("dpo", "sft"), ("grpo", "base"), ("orpo", "base"), ("kto", "base")]
s1_gaps = {f"{a} - {b}": {score: difference_of_rates(s1_methods[a][k], s1_methods[b][k], TOTAL) for k, score in enumerate(("SubEM", "F1"))} for a, b in steps}
s1_gaps["cot: SFT - base"] = {score: difference_of_rates(s1_cot["sft_cot"].value[k], s1_cot["base_cot"].value[k], TOTAL) for k, score in enumerate(("SubEM", "F1"))}
noise = [f"{name} ({score})" for name, row in s1_gaps.items() for score, gap in row.items() if gap[1] <= 0 <= gap[2]]
display(difference_forest(s1_gaps, xlabel=f"points, S1's table, n = {TOTAL}", title=f"Within noise in the published table: {', '.join(noise)}"))

# %%
cells = {score: [figure.value[k] for figure in s1_grpo.values()] for k, score in enumerate(("SubEM", "F1"))}
for score, values in cells.items():
    gap, low, high = difference_of_rates(max(values), min(values), TOTAL)
    print(f"S1's seven GRPO settings, best minus worst {score}: {100 * gap:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})", "- within noise" if low <= 0 else "- not noise")

# %% [markdown]
# The widest spread of seven numbers is larger than that of two even where nothing differs, so a "within noise" stands all the more, and a "not noise" deserves a second seed. S1's tuning for SubEM shows no difference beyond noise; what its prompt and its beta moved is F1.
#
# ## Reasoned answers: a teacher, a filter, a student
#
# S1 let a larger model reason over Natural Questions, kept the answers with F1 of 0.9 or more, and trained on them. F1 rose a little, SubEM fell a little; its authors blamed the filter, which had looked at F1 alone. Here the teacher is another policy, never the writer of the questions: the base model in full precision after GRPO
# on *reasoned* answers (in the large profiles the instruct model). Its samples are kept at F1 >= 0.9, and a second time at F1 >= 0.9 *and* SubEM. Two students learn from them; the quantised base, allowed to reason, is what they are compared with.

# %%
predict("SubEM of the student against the base that reasons", "stays")

# %%
if ready(*CORE):
    COT = template_for("qa_reason", REASON)

    def stated(text):
        """What stands behind the last "Answer:"; nothing where none is stated."""
        return text.removesuffix("\nQuestion:").rpartition("Answer:")[2].strip() if "Answer:" in text else ""

    def stated_reward(response, golds):
        return qa_reward(stated(response), golds)

    def reasoned(model, rows, words=tokenizer, *, n=1, temperature=0.0):
        prompts = [row["prompt"] for row in rows]
        sampling = profile.sampling.settings(temperature=temperature, max_new_tokens=profile.qa.reason_tokens, stop_strings=("\nQuestion:",))
        texts = [c.text.removesuffix("\nQuestion:") for c in complete(model, words, prompts, n=n, sampling=sampling, batch_size=profile.engine.batch_size)]
        return [texts[k : k + n] for k in range(0, len(texts), n)]

    def cot_scores(model, rows, words=tokenizer):
        """SubEM and F1 of the stated answers, one per question."""
        said = [texts[0] for texts in reasoned(model, rows, words)]
        return {name: [score(stated(text), row["answers"]) for text, row in zip(said, rows, strict=True)] for name, score in (("sub_em", sub_em), ("f1", token_f1))}

# %%
if ready(*CORE):
    def teacher_policy(rows):
        """Another policy and its tokenizer: the instruct model, or on tiny the plain base after GRPO on reasoned answers."""
        place = {"device": profile.engine.device, "dtype": profile.engine.dtype}
        if profile.models.instruct != profile.models.maths:
            return load_model(profile.path(profile.models.instruct), **place)
        teacher, _ = load_model(profile.path(profile.models.maths), lora=LoraSettings(rank=profile.qa.rank, alpha=2 * profile.qa.rank), **place)
        settings = GRPOSettings(lr=profile.qa.lr["grpo"], max_steps=sizes.steps, prompts_per_step=profile.qa.batch_size, samples_per_prompt=profile.qa.group,
                                max_new_tokens=profile.qa.reason_tokens, stop="\nQuestion:", progress=False, **SAMPLER)
        train_grpo(teacher, rows, settings, tokenizer=tokenizer, reward_fn=stated_reward, functions={name: mine[name] for name in TAKES["grpo"]}, engine=profile.engine.name)
        return teacher, tokenizer

    def cot_experiment():
        """Scores of teacher, base and both students on the held-out questions, and what was kept."""
        rows, held_out = converted(train_raw, COT), converted(test_raw, COT)
        teacher, words = teacher_policy(rows)
        golds = {row["prompt"]: row["answers"] for row in rows}
        theirs = template_for("qa_reason", REASON, words)
        drawn = reasoned(teacher, converted(train_raw, theirs), words, n=profile.qa.samples, temperature=1.0)
        by_f1 = mine["rejection_sample"]([row["prompt"] for row in rows], drawn, [row["answers"] for row in rows], 0.9)
        by_both = [row for row in by_f1 if sub_em(stated(row["response"]), golds[row["prompt"]])]
        scores = {"teacher": cot_scores(teacher, converted(test_raw, theirs), words), "base_cot": cot_scores(base, held_out)}
        for name, kept in (("sft_cot", by_f1), ("sft_cot_both", by_both)):
            if name == "sft_cot_both" and by_both == by_f1:
                scores[name] = scores["sft_cot"]  # the same examples give the same student
                continue
            student = train("sft", rows=kept)[0] if len(kept) > 1 else base
            scores[name] = cot_scores(student, held_out)
        return {"sampled": sum(map(len, drawn)), "kept_f1": len(by_f1), "kept_both": len(by_both), "example": (by_f1 or [{"response": "none was kept"}])[0]["response"], "scores": scores}

    cot = recorded_or_live("cot", cot_experiment)

# %%
if ready(*CORE):
    def means_of(scores):
        hits = scores["sub_em"]
        return {"SubEM": (float(np.mean(hits)), *wilson_interval(int(sum(hits)), len(hits))), "F1": (float(np.mean(scores["f1"])), *bootstrap_interval(scores["f1"]))}

    print(f"{cot['sampled']} samples of the teacher; kept at F1 >= 0.9: {cot['kept_f1']}, and at SubEM too: {cot['kept_both']}. One of them:{cot['example']}")
    rows = {name: means_of(scores) for name, scores in cot["scores"].items()}
    asked = len(cot["scores"]["base_cot"]["f1"])
    cot_draws = np.random.default_rng(0).integers(0, asked, (2000, asked))
    cot_gap = {score: paired_bootstrap(cot["scores"]["sft_cot"][key], cot["scores"]["base_cot"][key], cot_draws) for score, key in (("SubEM", "sub_em"), ("F1", "f1"))}
    display(rates_with_intervals(rows, xlabel=f"score on {asked} held-out questions", title=(
        "Student minus reasoning base: " + ", ".join(f"{score} {100 * gap[0]:+.1f} ({100 * gap[1]:+.1f} to {100 * gap[2]:+.1f})" for score, gap in cot_gap.items()) + " points")))
    display(observed("SubEM of the student against the base that reasons", "falls" if cot_gap["SubEM"][2] < 0 else "rises" if cot_gap["SubEM"][1] > 0 else "stays"))

# %% [markdown]
# Was the filter to blame? An answer with F1 of 0.9 that does *not* hold the gold must miss a word of it, reorder its words, or (in a gold of five words or more) slip another one in between. The shortest gold for the first:

# %%
def best_f1_without_a_word(length):
    """The highest F1 of a prediction that lacks one of the gold's words and adds none."""
    return 2 * (length - 1) / (2 * length - 1)

needed = next(length for length in range(1, 50) if best_f1_without_a_word(length) >= 0.9)
longest = max(len(normalize_answer(gold).split()) for row in train_raw for gold in row["answers"])
print(f"a gold of {needed} words; the longest here has {longest}, and Natural Questions' short answers have five tokens at most")

# %% [markdown]
# So with short golds the two filters keep the same answers (but for reordered words, or one slipped into a gold of five), and S1's explanation is unlikely to be the reason for its fall, which lies within noise anyway (above). A filter does select: easy questions, and answers as brief as the gold.
#
# ## Findings

# %%
if ready(*CORE):
    findings = {
        "methods": {name: {"sub_em": row["SubEM"][0], "low": row["SubEM"][1], "high": row["SubEM"][2], "f1": row["F1"][0], "f1_low": row["F1"][1], "f1_high": row["F1"][2], "words": row["words"], "n": len(test_rows)}
                    for name, row in found.items()},
        "against_base": {name: {score: list(gap) for score, gap in row.items()} for name, row in gaps.items()},
        "cot": {name: {"sub_em": rows[name]["SubEM"][0], "f1": rows[name]["F1"][0], "low": rows[name]["SubEM"][1], "high": rows[name]["SubEM"][2]} for name in ("base_cot", "sft_cot", "sft_cot_both", "teacher")},
        "kept": {name: cot[name] for name in ("sampled", "kept_f1", "kept_both")}, "other_seeds": seeds, "train_seconds": seconds,
        "negatives": len(pairs), "dropped": dict(dropped), "published_n": TOTAL, "published_within_noise": noise}
    save_findings("07", findings, seeds=[0, *map(int, seeds)])
    display(comparison_table("07", findings))
    reasoned = published("s1.rejection.kept").value
    print(f"the published sample: {reasoned:,.0f} reasoned answers, of Qwen3-Max")

# %% [markdown]
# **What is built in, what is found.** That some answers of the base are whole sentences was put into its training text. What each method makes of it, and at which price in SubEM, you measured; so you did S1's number of questions.
#
# **Inspect**: three questions that the base answered in a sentence and GRPO in a word; one that GRPO answers wrongly and the base did not.

# %%
if ready(*CORE):
    changed = [(a, b) for a, b in zip(graded["base"], graded["grpo"], strict=True) if a["generation"] != b["generation"]]
    for kind, wanted in (("won", 1), ("lost", -1), ("only shorter", 0)):
        for a, b in [(a, b) for a, b in changed if b["metrics"]["sub_em"] - a["metrics"]["sub_em"] == wanted][:2]:
            print(f"{kind:12} gold {a['gold_answer'][0]!r}: {a['generation'].strip()!r} -> {b['generation'].strip()!r}")

# %% [markdown]
# ## Questions

# %%
answer("07-1", "b")

# %%
answer("07-2", "c")

# %%
answer("07-3", "a")

# %%
answer("07-4", "b")

# %%
answer("07-5", "a")

# %% [markdown]
# ## With a GPU
#
# `use_profile("full")` loads Qwen3-8B-AWQ (6 GB, about 16 to train, as S1 says) and runs these cells on it in its own chat template, without thinking; the teacher is Qwen2.5-7B-Instruct, and `data.qa_train` and `data.qa_test` take any NQ-like file.
# GRPO samples through vLLM, which reads the packed weights itself and is handed the adapter anew before each step. It takes 40 % of the GPU's memory: below 80 GB call `use_profile("full", "engine.name=transformers")`. Predict first: an instruct model is brief when it is asked to be; which of the gains above is left?
#
# ## You have finished
#
# All seven lessons are behind you. `python3 -m workbook report` writes a page of what you did, and with it `my_alignment.py`: your own functions in the order of the pipeline.

# %%
progress()

# %% [markdown]
# ---
# # Going further
#
# ## Talk to what you made
#
# The base in four bits and your five models side by side, with the answer that the grader reads; first a held-out question on which GRPO gained. Type passages, one per line, and then the question. The same in a terminal, of the models that you name:
# `python3 -m workbook demo --kind qa --model workbook/assets/base-awq --adapter runs/07/tiny-short/sft/adapter --adapter runs/07/tiny-short/grpo/adapter`. Without options it shows those of lessons 03 to 05 and the reward model's score; with `--web` it is a page.

# %%
from workbook.demo_panel import demo_panel  # noqa: E402

if ready(*CORE):
    gained = next((b["id"] for a, b in changed if b["metrics"]["f1"] > a["metrics"]["f1"]), test_rows[0]["id"])
    record = next(row for row in test_raw if row["id"] == gained)
    texts = [text if isinstance(text, str) else text["text"] for text in record["passages"][:5]]
    demo_panel(kind="qa", templates={"qa": QA}, question="\n".join(" ".join(text.split()) for text in (*texts, record["question"])))
