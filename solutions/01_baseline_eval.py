# %% [markdown]
# # 01 Baseline evaluation: what can the model do, and what can the measurement see?
#
# Before a model is tuned it is measured, and the first number is often wrong for reasons that have nothing to do
# with the model. **After this lesson you can** extract and compare answers, write the strict reward of the
# R1-Zero recipe, score open-book answers with SubEM and F1, put an interval on every rate, and tell
# an artefact of the measurement from a weakness of the model.
#
# **You need** Python, and what a language model does when it samples text. **Time:** about 90 minutes.
# Your reward, with your equivalence in it, is what lesson 05 trains on.
#
# Stuck? `hint(1, "extract_answer")` (up to 3), and `extract_answer = use_reference("extract_answer")`
# lets you go on; it is recorded as such.

# %% tags=["setup"]
import re
from collections import Counter
from fractions import Fraction

from IPython.display import display

from helpers.data import load_records
from helpers.evaluation import (
    complete,
    grade_completions,
    mean_pass_at_k,
    paired_test,
    summarise,
    write_jsonl,
)
from helpers.models import load_model
from helpers.plotting import (
    counts_grid,
    failure_categories,
    rates_with_intervals,
    reward_distributions,
)
from helpers.prompts import load_template, render, render_few_shot, render_passages
from helpers.rewards import normalize_answer
from helpers.rollout import generate
from workbook import verifier
from workbook.lesson import (
    answer,
    begin,
    check,
    comparison_table,
    failure_browser,
    hint,
    observed,
    predict,
    progress,
    published,
    ready,
    run_folder,
    save_findings,
    use_profile,
    use_reference,
)

begin("01")
profile = use_profile("tiny")

# %% [markdown]
# ## Ten seconds: this is what you will build
#
# One question, asked in the same words, of the base model and of the same model with a small adapter.
# You train such an adapter yourself in lesson 03.

# %%
problems, report = load_records(profile.path(profile.data.maths_test), split="test",
                                keep=("seen", "steps"), limit=profile.sizes.eval_problems)
R1_ZERO = load_template("r1_zero")
base_path = profile.path(profile.models.maths)
model, tokenizer = load_model(base_path, device=profile.engine.device, dtype=profile.engine.dtype)
greedy = profile.sampling.settings(temperature=0.0)
first = render(R1_ZERO, question=problems[1]["question"])
print(first, "\n\nbase:  ", generate(model, tokenizer, [first], sampling=greedy)[0].text)
if profile.models.adapter:
    tuned, _ = load_model(base_path, adapter=profile.path(profile.models.adapter))
    print("\ntuned: ", generate(tuned, tokenizer, [first], sampling=greedy)[0].text)
print("\ngold:  ", problems[1]["gold_answer"])

# %% [markdown]
# ## The number that started this
#
# A student project (S0 in our tables; S1 to S4 are four more: five methods on Qwen3-8B-AWQ / Natural Questions, tuning and prompting Qwen2.5-7B-Instruct on GSM8K, SFT and DPO in few lines of PyTorch, a reward-model and DPO homework) measured Qwen2.5-Math-1.5B on the 1,319 test problems of GSM8K. The prompt asks for
# reasoning in `<think>` and the result in `<answer>`, as in the R1-Zero recipe
# (DeepSeek-R1, [2501.12948](https://arxiv.org/abs/2501.12948)). In the strict reward that S0 used, a response earns
#
# $$ r = \mathbb{1}[\text{format}] \cdot \mathbb{1}[\text{answer equivalent to gold}] $$
#
# Only 2.5 % of the responses had the format, and 0.38 % earned the reward. Does a maths model solve 0.4 % of
# grade-school problems? You will take this number apart. Beside the strict rate stands a **lenient** one on the same responses:
# the *last number* is the gold one. It misses an answer that is followed by another number, and pays a lucky one: read it as an estimate beside the strict rate.
# The `tiny` profile repeats the experiment on another model; only `full` measures the published one.

# %%
for name in ("s0.num_examples", "s0.format_rate", "s0.accuracy"):
    print(f"{published(name).measured:60s} {published(name).value:.4g}")
print(f"\nHere: {len(problems)} problems, {report.num_bad} bad records. The prompt:\n\n{R1_ZERO}")

# %% [markdown]
# ## Exercise 1: find the answer
# *Difficulty 2 of 5, importance 4 of 5, 15 minutes*
#
# A response holds many numbers; the answer is the one it *states*. Take the forms in this order: the content of the last
# `<answer>...</answer>`; of the last `\boxed{...}`; the rest of the line after the last `####`; the number that stands directly behind
# the last "answer is" (it may have a sign, a $, commas, decimals). White space around it goes. Where nothing is stated, return `None`:
# a guess would hide a failure. Published code took the *first* `= n` it found, which is an intermediate step.

# %% nbgrader={"grade": false, "grade_id": "extract_answer", "locked": false, "schema_version": 3, "solution": true, "task": false}
def extract_answer(text: str) -> str | None:
    r"""The answer that `text` states, or None. Example: "so \boxed{7}" gives "7"."""
    ### BEGIN SOLUTION
    forms = (r"<answer>((?:(?!<answer>).)*?)</answer>", r"\\boxed\{([^{}]*)\}", r"####[ \t]*([^\n]+)",
             r"answer is:?\s*(-?[$]?\d+(?:,\d{3})*(?:\.\d+)?)")
    for form in forms:
        found = re.findall(form, text, re.DOTALL)
        if found:
            return found[-1].strip()
    return None
    ### END SOLUTION

# %%
if ready("extract_answer"):
    for text in ("4*6=24. </think> <answer>24</answer>", "It is \\boxed{24}.", "4*6=24.\n#### 24",
                 "4*6=24."):
        print(f"{text!r:45} -> {extract_answer(text)!r}")

# %%
check(extract_answer)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"It takes the first one."** `re.search` stops at the first match; `re.findall(...)[-1]` is the last.
# **"The tag is not found."** An answer may span lines: `.` needs `re.DOTALL`.
# **"18. instead of 18"**: a full stop ends the sentence, not the number.
# </details>

# %% [markdown]
# ## Exercise 2: is it the same answer?
# *Difficulty 3 of 5, importance 4 of 5, 20 minutes*
#
# `1,000` is `1000`, `$18.00` is `18`, `3/4` is `0.75`. Two answers are the same when both are *one* number of the same
# value, with at most three words of unit behind it (units are not compared; `\boxed{}` around the number is taken off). A number may have a
# sign, a currency sign, commas before groups of three, decimals (`.5`, `18.`), or be a fraction; a zero denominator is no number. Per cent is
# its own case: 18 % is 0.18, and a bare 18 means 18 % only where the gold answer says per cent. What is not one number (`19, 18`, `17 < 18`,
# `not 18`, `18 or so`, `18 million`) equals nothing. A grader reads what a policy writes, and a policy learns to write what is paid:
# refuse texts over 200 characters *before* you parse them, and never `eval` them.

# %% nbgrader={"grade": false, "grade_id": "is_equivalent", "locked": false, "schema_version": 3, "solution": true, "task": false}
def is_equivalent(prediction: str, truth: str) -> bool:
    """Whether both texts are the same single number. Example: "$1,000.00" and "1000" are."""
    ### BEGIN SOLUTION
    whole = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
    size = rf"({whole}\s*/\s*{whole}|{whole}(?:\.\d*)?|\.\d+)"
    number = rf"([-+]?)\s*[$€£]?\s*{size}\s*(%?)((?:\s*[A-Za-z]+){{0,3}})\s*\.?"
    no_unit = set("is not no or and x k hundred thousand million billion dozen".split())

    def value(text: str) -> tuple[Fraction, bool] | None:
        if len(text) > 200:
            return None
        text = text.strip().removeprefix("\\boxed{").removesuffix("}")
        found = re.fullmatch(number, text)
        if found is None or no_unit & set(found[4].lower().split()) or re.search(r"/\s*0+$", found[2]):
            return None
        size = Fraction(re.sub(r"[,\s]", "", found[2]).rstrip("."))
        return (-size if found[1] == "-" else size) / (100 if found[3] else 1), bool(found[3])

    given, wanted = value(prediction), value(truth)
    if given is None or wanted is None:
        return False
    only_truth_has_sign = wanted[1] and not given[1]
    return given[0] == wanted[0] or (only_truth_has_sign and given[0] == 100 * wanted[0])
    ### END SOLUTION

# %%
if ready("is_equivalent"):
    for pair in (("1,000", "1000"), ("$18.00", "18"), ("18 eggs", "18"), ("3/4", "0.75"),
                 ("18", "18%"), ("19, 18", "18")):
        print(f"{pair[0]!r:10} and {pair[1]!r:8} -> {is_equivalent(*pair)}")

# %%
check(is_equivalent)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"19, 18 passes."** `re.search` looks anywhere; `re.fullmatch` wants the whole text.
# **"0.1 + 0.2"**: floats round; `fractions.Fraction("0.33")` does not. **"18. fails"**: take the full stop off before you parse.
# **"It hangs"**: is the length limit before the parsing?
# </details>

# %% [markdown]
# ## Exercise 3: the strict reward
# *Difficulty 2 of 5, importance 5 of 5, 15 minutes*
#
# The format: some text, exactly one `</think>`, white space or none, exactly one `<answer>...</answer>`, and nothing but white space after it. (The prompt
# has opened `<think>` already.) Return all three parts: `format_reward`, `answer_reward`
# (1.0 only inside a right format) and their product `reward`; your `is_equivalent` judges the answer. Why so strict? A reward that pays any
# right number somewhere in the text is paid for *listing* numbers, and a policy finds out.

# %% nbgrader={"grade": false, "grade_id": "r1_zero_reward", "locked": false, "schema_version": 3, "solution": true, "task": false}
def r1_zero_reward(response: str, ground_truth: str) -> dict[str, float]:
    """The parts format_reward, answer_reward, reward.

    Example: " so </think> <answer>7</answer>" and "7" give 1.0 each.
    """
    ### BEGIN SOLUTION
    found = re.fullmatch(r".*</think>\s*<answer>(.*)</answer>\s*", response, re.DOTALL)
    once = all(response.count(tag) == 1 for tag in ("</think>", "<answer>", "</answer>"))
    format_reward = float(found is not None and once)
    answer_reward = float(format_reward and is_equivalent(found[1].strip(), ground_truth))
    return {"format_reward": format_reward, "answer_reward": answer_reward,
            "reward": format_reward * answer_reward}
    ### END SOLUTION

# %%
if ready("is_equivalent", "r1_zero_reward"):
    for text in (" 4*6=24. </think> <answer>24</answer>", " 4*6=24. </think> <answer>25</answer>",
                 " 4*6=24. The answer is 24."):
        print(f"{text!r:45} -> {r1_zero_reward(text, '24')}")

# %%
check(r1_zero_reward)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The reward is 1 without tags."** Every part is 0 where the format fails.
# **"Two answers pass."** `.*` is greedy and swallows the first tag: count the tags.
# **"A new line between the tags fails."** `\s*` is any white space; the published grader wanted exactly one blank, see below.
# </details>

# %% [markdown]
# ## Exercise 4: answers in words, SubEM and F1
# *Difficulty 2 of 5, importance 4 of 5, 15 minutes*
#
# Open-book answers are names. **SubEM** is 1 where any gold answer stands inside the prediction. **F1** is the harmonic mean
# of precision and recall over words, $F_1 = 2PR/(P+R) = 2\,|p \cap g| / (|p| + |g|)$ with multisets of words, at its best over the golds.
# Both compare normalised texts (`normalize_answer`: lower case, no punctuation, no articles), and SubEM asks for the characters of a gold in a row.
# SubEM forgives a long answer, F1 charges for every needless word; so the two are read together. An empty gold
# is a substring of everything: leave it out.

# %% nbgrader={"grade": false, "grade_id": "qa_scores", "locked": false, "schema_version": 3, "solution": true, "task": false}
def qa_scores(prediction: str, golds: list[str]) -> dict[str, float]:
    """{"sub_em": ..., "f1": ...}. Example: "Ana studied in Nelgar" for ["Nelgar"] gives 1.0 and 0.4."""
    ### BEGIN SOLUTION
    said = normalize_answer(prediction)
    wanted = [gold for gold in map(normalize_answer, golds) if gold]

    def f1(gold: str) -> float:
        shared = (Counter(said.split()) & Counter(gold.split())).total()
        return 2 * shared / (len(said.split()) + len(gold.split()))

    return {"sub_em": float(any(gold in said for gold in wanted)),
            "f1": max(map(f1, wanted), default=0.0)}
    ### END SOLUTION

# %%
if ready("qa_scores"):
    for text in ("Nelgar", "Ana studied in Nelgar.", "Nelgar or Halden or Arlo", "not stated"):
        print(f"{text:26} -> {qa_scores(text, ['Nelgar', 'Nelgar Town'])}")

# %%
check(qa_scores)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"F1 is above 1, or shared words count twice."** Use `Counter(a) & Counter(b)`, not a loop over words.
# **"Everything matches."** An empty gold slipped in.
# </details>

# %% [markdown]
# ## Exercise 5: a rate and how far to trust it
# *Difficulty 3 of 5, importance 5 of 5, 15 minutes*
#
# Three rates of the same rows, each with its 95 % interval. Wilson's interval (1927), with $z = 1.96$ and $p$ the rate of $n$ rows:
#
# $$ \frac{p + \frac{z^2}{2n} \pm z \sqrt{\frac{p(1-p)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}} $$
#
# It stays between 0 and 1 and keeps a width at 0 hits, where $p \pm z\sqrt{p(1-p)/n}$ claims certainty. A row holds
# `row["metrics"]["format_reward"]`, `row["metrics"]["reward"]` (its mean is the accuracy) and `row["lenient"]`.

# %% nbgrader={"grade": false, "grade_id": "summarise_rates", "locked": false, "schema_version": 3, "solution": true, "task": false}
def summarise_rates(rows: list[dict]) -> dict[str, tuple[float, float, float]]:
    """format_rate, accuracy and lenient_accuracy, each as (rate, low, high)."""
    ### BEGIN SOLUTION
    n, z = len(rows), 1.959964
    columns = {"format_rate": [row["metrics"]["format_reward"] for row in rows],
               "accuracy": [row["metrics"]["reward"] for row in rows],
               "lenient_accuracy": [row["lenient"] for row in rows]}
    summary = {}
    for name, column in columns.items():
        p = sum(column) / n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
        summary[name] = (p, max(0.0, centre - half), min(1.0, centre + half))
    return summary
    ### END SOLUTION

# %%
if ready("summarise_rates"):
    row = {"metrics": {"format_reward": 0.0, "reward": 0.0}, "lenient": True}
    print("20 rows, no format:", summarise_rates([row] * 20)["format_rate"])
    print("500 rows, no format:", summarise_rates([row] * 500)["format_rate"])

# %%
check(summarise_rates)

# %% [markdown]
# <details><summary>Something does not work?</summary>
#
# **"The interval is symmetric."** Then it is the normal approximation: the centre moves towards 1/2, too.
# **"A slightly negative bound."** Rounding; `max(0.0, ...)`.
# </details>

# %% [markdown]
# ## The run: the base model under the strict reward
#
# All problems, greedy decoding, *your* reward. Say first what you expect of the lenient accuracy on the same outputs, compared with
# the strict one: `"falls"` (it is lower), `"stays"` or `"rises"`.

# %%
predict("lenient accuracy against strict", "rises")

# %%
def direction(gap):
    return "rises" if gap > 0 else "falls" if gap < 0 else "stays"


def evaluate_maths(prompts, records=problems, sampling=greedy, n=1, reward_fn=None):
    """Sample, then grade with your reward: one row a sample, the lines of results.jsonl."""
    completions = complete(model, tokenizer, prompts, sampling=sampling, n=n,
                           batch_size=profile.engine.batch_size, progress=True)
    return grade_completions(records, completions, reward_fn or r1_zero_reward, prompts=prompts)

# %%
if ready("is_equivalent", "r1_zero_reward", "summarise_rates"):
    rows = evaluate_maths([render(R1_ZERO, question=q) for q in problems["question"]])
    write_jsonl(run_folder() / "results.jsonl", rows)
    base = summarise_rates(rows)
    for name, (rate, low, high) in base.items():
        print(f"{name:17} {rate:6.1%}   95 % interval {low:.1%} to {high:.1%}")
    gap = base["lenient_accuracy"][0] - base["accuracy"][0]
    display(observed("lenient accuracy against strict", direction(gap)))

# %%
if ready("is_equivalent", "r1_zero_reward", "summarise_rates"):
    def three(rates):
        return {"format": rates["format_rate"], "strict": rates["accuracy"],
                "lenient": rates["lenient_accuracy"]}

    s0 = {"format": published("s0.format_rate"), "strict": published("s0.accuracy")}
    strict, lenient = base["accuracy"][0], base["lenient_accuracy"][0]
    display(rates_with_intervals(
        {"base model": three(base)},
        title=f"The strict reward sees {strict:.1%}, the last number is right in {lenient:.0%}",
        published={name: (entry.value, entry.source) for name, entry in s0.items()}))

# %% [markdown]
# Strict accuracy cannot exceed the format rate, and lenient accuracy on the *same outputs* shows what that ceiling
# hides. From here on the three always stand together.
#
# ## How do the others fail?

# %%
if ready("is_equivalent", "r1_zero_reward", "summarise_rates"):
    groups = {"all": rows}
    if rows[0]["fields"]["steps"] is not None:  # real GSM8K does not say how many steps a problem has
        groups |= {"1 or 2 steps": [r for r in rows if r["fields"]["steps"] < 3],
                   "3 or 4 steps": [r for r in rows if r["fields"]["steps"] >= 3]}
    kinds = {name: summarise(group).failure_categories for name, group in groups.items()}
    unformatted = kinds["all"].get("right_number_unformatted", 0)
    share = unformatted / len(rows)
    display(failure_categories(
        kinds, title=f"{share:.0%} of all responses hold the right number outside the format"))
    for name in [name for name in ("seen", "unseen") if rows[0]["fields"]["seen"] is not None]:
        part = [r for r in rows if r["fields"]["seen"] == (name == "seen")]
        rate = summarise_rates(part)["lenient_accuracy"][0]
        print(f"{name:6} wordings and structures: lenient {rate:.1%} of {len(part)}")

# %%
if ready("is_equivalent", "r1_zero_reward", "summarise_rates"):
    parts = {name: [row["metrics"][f"{name}_reward"] for row in rows] for name in ("format", "answer")}
    parts |= {"reward": [row["metrics"]["reward"] for row in rows],
              "lenient": [float(row["lenient"]) for row in rows]}
    nothing = parts["reward"].count(0.0) / len(rows)
    display(reward_distributions(
        parts, title=f"{nothing:.0%} of the responses earn 0: little for RL to hold on to"))
    failure_browser(rows)

# %% [markdown]
# ## What the published 0.4 % owes to the measurement
#
# The published evaluation differs from ours in three ways that have nothing to do with the weights. Its prompt ended at
# `Assistant:`, without the `<think>` of the recipe (and held a typing error); it sampled at temperature 1; and its grader
# wanted exactly one blank between `</think>` and `<answer>`. Start from all three, change one at a time, then all.

# %%
predict("strict format rate when the prompt opens <think>", "stays")

# %%
if ready("is_equivalent", "r1_zero_reward", "summarise_rates"):
    some = problems.select(range(min(profile.sizes.artefact_problems, len(problems))))
    prefill = {True: R1_ZERO, False: load_template("r1_zero_no_prefill")}

    def sampled(opens, temperature):
        prompts = [render(prefill[opens], question=q) for q in some["question"]]
        sampling = profile.sampling.settings(temperature=temperature)
        return prompts, complete(model, tokenizer, prompts, sampling=sampling)

    drawn = {(opens, t): sampled(opens, t) for opens in (False, True) for t in (0.0, 1.0)}

# %%
if ready("is_equivalent", "r1_zero_reward", "summarise_rates"):
    def exact(text, gold):
        return r1_zero_reward(text if "</think> <answer>" in text else "", gold)

    def graded_arm(opens, temperature, reward):
        prompts, completions = drawn[opens, temperature]
        return summarise_rates(grade_completions(some, completions, reward, prompts=prompts))

    changes = {"published settings": (False, 1.0, exact), "+ <think> pre-filled": (True, 1.0, exact),
               "+ greedy": (False, 0.0, exact), "+ any spacing": (False, 1.0, r1_zero_reward),
               "all three": (True, 0.0, r1_zero_reward)}
    arms = {name: graded_arm(*change) for name, change in changes.items()}

# %%
if ready("is_equivalent", "r1_zero_reward", "summarise_rates"):
    rates = [arm["format_rate"][0] for arm in arms.values()]
    sampled, decoded = (arms[name]["lenient_accuracy"][0] for name in ("published settings", "+ greedy"))
    display(rates_with_intervals(
        {name: three(arm) for name, arm in arms.items()},
        title=f"Format stays between {min(rates):.1%} and {max(rates):.1%}; greedy decoding moves the "
              f"lenient rate from {sampled:.0%} to {decoded:.0%}",
        published={"strict": (s0["strict"].value, s0["strict"].source)}))
    before, low, high = arms["published settings"]["format_rate"]
    after = arms["+ <think> pre-filled"]["format_rate"][0]
    moved = "stays" if low <= after <= high else direction(after - before)  # inside the interval
    display(observed("strict format rate when the prompt opens <think>", moved))

# %% [markdown]
# Look at the intervals before you believe a difference: a rate of 3 % on 128 problems may be 1 % or 8 %. So `observed` says "stays" where the
# new rate lies inside the old interval.
# An evaluation that stops sampling at `</answer>` makes a fourth such choice: it forgives whatever the model would have written next.
#
# ## What is in the model: pass@k, reasoning, examples
#
# **pass@k**: the chance that one of $k$ samples is right, $1 - \binom{n-c}{k} / \binom{n}{k}$ for $c$ right of $n$
# (Chen et al. 2021, [2107.03374](https://arxiv.org/abs/2107.03374), Eq. 1). The distance between pass@8 and pass@1 is one measure of what reinforcement learning has to gain.

# %%
if ready("is_equivalent", "r1_zero_reward"):
    few = problems.select(range(min(profile.sizes.pass_at_k_problems, len(problems))))
    drawn = evaluate_maths([render(R1_ZERO, question=q) for q in few["question"]], few,
                           profile.sampling.settings(temperature=1.0), n=profile.sizes.samples)
    at = {k: mean_pass_at_k(drawn, k, lenient=True) for k in (1, 2, 4, 8)}
    print("  ".join(f"pass@{k} {value:.1%}" for k, value in at.items()),
          f"  ({len(few)} problems, T = 1, last number)")

# %%
if ready("is_equivalent", "r1_zero_reward", "summarise_rates"):
    training, _ = load_records(profile.path(profile.data.maths_train), limit=3)
    shots = []
    for r in training:
        solution = r["answer"].split("####")[0].strip()
        shots.append((r["question"], f" {solution} </think> <answer>{r['gold_answer']}</answer>"))
    ways = {"direct answer": lambda q: render(load_template("direct"), question=q),
            "chain of thought": lambda q: render(load_template("step_by_step"), question=q),
            "r1_zero, 3 examples": lambda q: render_few_shot(R1_ZERO, shots, q)}
    graded = {name: evaluate_maths([way(q) for q in some["question"]], some)
              for name, way in ways.items()}
    prompted = {name: summarise_rates(found) for name, found in graded.items()}

# %%
if ready("is_equivalent", "r1_zero_reward", "summarise_rates"):
    direct, thought = (prompted[name]["lenient_accuracy"][0] for name in list(ways)[:2])
    shown = {name: {"format": r["format_rate"], "lenient": r["lenient_accuracy"]}
             for name, r in prompted.items()}
    formatted = prompted["r1_zero, 3 examples"]["format_rate"][0]
    display(rates_with_intervals(
        shown, title=f"With reasoning {thought:.0%} right, without {direct:.0%}; "
                     f"three examples bring {formatted:.0%} format"))
    right = {name: [row["lenient"] for row in graded[name]] for name in list(ways)[:2]}
    test = paired_test(right["chain of thought"], right["direct answer"])
    print(f"Only with reasoning right: {test.only_first}; only without: {test.only_second}; "
          f"p = {test.p_value:.2g} (McNemar's exact test: may this split be chance?)")

# %% [markdown]
# ## The other task: open-book questions
#
# Five short passages and a question; in about one question of six the passages hold no answer, and the gold answer says so.
# (The published figures beside yours are of another model, Qwen3-8B-AWQ, on Natural Questions.)

# %%
if ready("qa_scores"):
    questions, _ = load_records(profile.path(profile.data.qa_test), limit=profile.sizes.qa_problems)
    template = load_template("qa")
    prompts = [render(template, passages=render_passages(r["passages"]), question=r["question"])
               for r in questions]
    one_line = profile.sampling.settings(temperature=0.0, stop_strings=("\n",), max_new_tokens=40)
    reader = (model, tokenizer)
    if profile.models.qa != profile.models.maths:
        reader = load_model(profile.path(profile.models.qa), device=profile.engine.device)
    texts = [c.text.strip() for c in complete(*reader, prompts, sampling=one_line, progress=True)]
    scores = [qa_scores(text, r["answers"]) for text, r in zip(texts, questions, strict=True)]
    qa = {name: sum(s[name] for s in scores) / len(scores) for name in ("sub_em", "f1")}
    print(prompts[0], texts[0], "\n\ngold:", questions[0]["answers"])
    print("SubEM {sub_em:.3f}, F1 {f1:.3f}".format(**qa))

# %%
if ready("qa_scores"):
    lengths = {"1 or 2 words": [], "3 words or more": []}
    for text, score in zip(texts, scores, strict=True):
        lengths["1 or 2 words" if len(text.split()) < 3 else "3 words or more"].append(score)
    for name, group in lengths.items():
        means = [sum(s[key] for s in group) / max(len(group), 1) for key in ("sub_em", "f1")]
        print(f"{name:16} {len(group):4} answers   SubEM {means[0]:.2f}   F1 {means[1]:.2f}")

# %% [markdown]
# Long answers that restate the passage keep SubEM and lose F1. A method that shortens answers gains F1 without knowing more; remember it in lesson 07.
#
# ## Findings

# %%
if ready("is_equivalent", "r1_zero_reward", "qa_scores", "summarise_rates"):
    findings = {
        "num_examples": len(rows), "strict_format_rate": base["format_rate"][0],
        "strict_accuracy": base["accuracy"][0], "lenient_accuracy": base["lenient_accuracy"][0],
        "avg_reward": sum(parts["reward"]) / len(rows), "failure_categories": kinds["all"],
        "intervals": {name: list(triple[1:]) for name, triple in base.items()},
        "artefacts": {name: rates["format_rate"][0] for name, rates in arms.items()},
        "pass_at_1": at[1], "pass_at_8": at[8], "direct_accuracy": direct, "cot_accuracy": thought,
        "few_shot_format_rate": formatted, "qa_sub_em": qa["sub_em"], "qa_f1": qa["f1"]}
    save_findings("01", findings, seeds=[profile.sampling.seed])
    shown = ["s0.num_examples", "s0.format_rate", "s0.accuracy", "s0.avg_reward",
             "s1.base_sub_em", "s1.base_f1"]
    display(comparison_table("01", findings, shown))

# %% [markdown]
# **What is built in, what is found.** In the tiny world the base model's habit of answering in many forms, and of leaving out the last step of long
# problems, was put into its training text on purpose (the model card says how). How far spacing, pre-fill and temperature move the
# strict number, what examples do to the format and what long answers do to SubEM and F1 you measured.
#
# **Inspect** in the browser above: a response with the right number and no format; one that never closes `<answer>`; a three-step problem that stops after two.
#
# ## Questions

# %%
answer("01-1", "b")

# %%
answer("01-2", "a")

# %%
answer("01-3", "b")

# %%
answer("01-4", "b")

# %% [markdown]
# ## With a GPU
#
# Change the one word in the first cell to `use_profile("full")`: the same cells load Qwen2.5-Math-1.5B and the test problems of GSM8K
# (512 of them, or all 1,319 with `WORKBOOK_DEPTH=full`). Predict before you look: which of the rates move?
# Its tokenizer has `<|endoftext|>` as end *and* padding, like the tiny one; `HF_ENDPOINT` names a mirror of the hub, and a local folder may stand in for the name.
#
# ## You have finished
#
# Your reward goes with you to lesson 05. Before it, lesson 02 learns a reward from preferences, lesson 03 repairs the format.

# %%
progress()

# %% [markdown]
# ## Going further: break the verifier
# *Difficulty 2 of 5, importance 5 of 5, 20 minutes; the core path ends above*
#
# A grader is a reward, and a policy is paid for whatever the grader takes for right. Before a model finds the holes, find them yourself.
# Three graders of growing strength grade the same question:
#
# - `anywhere` pays where the gold number stands anywhere in the response;
# - `tagged` wants `</think> <answer>...</answer>` at the end, and compares what `float()` reads there with the gold number;
# - `yours` is your `r1_zero_reward`.
#
# `attack(grader, text)` says whether the grader pays a *wrong* text, and counts the classes of exploits that you have found.

# %%
if ready("is_equivalent", "r1_zero_reward"):
    graders = {"anywhere": verifier.anywhere_reward, "tagged": verifier.tagged_reward,
               "yours": r1_zero_reward}
    attack = verifier.Attack(graders)
    print(f"{verifier.golden_sets().question} Gold: {verifier.golden_sets().gold}")
    display(attack("anywhere", " 24 - 6 = 18, less one for me. </think> <answer>17</answer>"))

# %% [markdown]
# Your turn: this text is honest. Change it until `tagged` pays something wrong; then try it on `yours`. How many classes do you find in ten minutes?

# %%
if ready("is_equivalent", "r1_zero_reward"):
    display(attack("tagged", " 24 - 6 = 18 </think> <answer>18</answer>"))

# %% tags=["solution-only"]
if ready("is_equivalent", "r1_zero_reward"):
    for text in ("17 or 18", "18 million", "9 + 9", "17.99999999999999999999"):
        attack("tagged", f" </think> <answer>{text}</answer>")
    display(attack("tagged", " </think> <answer>17</answer> <answer>18</answer>"))

# %% [markdown]
# ### How often does each grader err?
#
# Single finds do not say which grader is better. So `workbook/verifier.yaml` holds two *golden sets*: right answers in many forms, of which a grader should refuse none,
# and exploits of ten classes, of which it should pay none. Before you look: from `anywhere` to `yours`, does the share of right answers that are refused rise or fall?

# %%
predict("right answers refused, from anywhere to yours", "rises")

# %%
if ready("is_equivalent", "r1_zero_reward"):
    errors = verifier.error_rates(graders)
    for name, rates in errors.items():
        print(f"{name:9}", "   ".join(f"{kind} {rate:4.0%} ({low:.0%} to {high:.0%})"
                                      for kind, (rate, low, high) in rates.items()))
    (lost, _, _), (paid, _, _) = errors["yours"].values()
    (lost_before, _, _), (paid_before, _, _) = errors["anywhere"].values()
    display(rates_with_intervals(
        errors, title=f"From anywhere to yours: exploits paid {paid_before:.0%} to {paid:.0%}, "
                      f"right refused {lost_before:.0%} to {lost:.0%}",
        xlabel="share of the golden set"))
    moved = direction(lost - lost_before)
    display(observed("right answers refused, from anywhere to yours", moved))

# %%
if ready("is_equivalent", "r1_zero_reward"):
    by_class = verifier.paid_by_class(graders)
    fooled = {name: sum(row[name][0] > 0 for row in by_class.values()) for name in graders}
    display(counts_grid(by_class, title="Classes that fool a grader: " + ", ".join(
        f"{name} {number} of {len(by_class)}" for name, number in fooled.items())))

# %% [markdown]
# The price of strictness are the right answers that *your* reward refuses. Which of them would you accept, and which new exploit would that open?

# %%
if ready("is_equivalent", "r1_zero_reward"):
    for item in verifier.refused(r1_zero_reward):
        shown = item.text if item.answer is None else f"<answer>{item.answer}</answer>"
        print(f"{shown.strip():70} gold {item.gold:5} {item.why}")

# %% [markdown]
# The two errors do not cost the same. A refused right answer slows learning down; a paid exploit *is* what is learnt, as soon as a policy writes it once and is paid better for
# it than for the truth. So a reward is strict and a report shows the lenient rate beside it.
#
# `tagged` looks reasonable, and most of its errors come from one line of `workbook/verifier.py`. Find that line, but leave it: one hole stays open, and lesson 05 shows who finds it.
