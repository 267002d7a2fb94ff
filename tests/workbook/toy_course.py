"""A miniature course in a temporary folder: one lesson, two exercises, for the engine's tests."""

from pathlib import Path

META = (
    '{"grade": false, "grade_id": "NAME", "locked": false, "schema_version": 3, '
    '"solution": true, "task": false}'
)

SOURCE = '''\
# %% [markdown]
# # Lesson 90: a toy
#
# Two exercises.

# %% tags=["setup"]
import re

from workbook.lesson import (
    answer, begin, check, comparison_table, hint, observed, predict, progress,
    ready, run_folder, save_findings, use_profile, use_reference,
)

begin("90")
profile = use_profile("tiny")

# %% [markdown]
# ## The last number

# %% nbgrader=META_last_number
def last_number(text: str) -> str | None:
    """The last number of a text."""
    ### BEGIN SOLUTION
    found = re.findall(r"-?\\d+", text)
    return found[-1] if found else None
    ### END SOLUTION

# %%
check(last_number)

# %% nbgrader=META_is_equivalent
def is_equivalent(prediction: str, truth: str) -> bool:
    """Whether two numbers are the same."""
    ### BEGIN SOLUTION
    return float(prediction) == float(truth)
    ### END SOLUTION

# %%
check(is_equivalent, "is_equivalent")

# %% tags=["solution-only"]
print("only in the solution")

# %%
predict("the score", "rises")

# %% [markdown]
# ## The run

# %%
if ready("last_number", "is_equivalent"):
    right = is_equivalent(last_number("6 + 12 = 18"), "18.0")
    save_findings("90", {"strict_accuracy": float(right), "num_examples": 1}, seeds=[0])
    display(comparison_table("90", {"strict_accuracy": float(right)}, ["s0.accuracy"]))

# %%
answer("90-1", "b")

# %%
progress()
'''

CHECKS = '''\
from tests.lessons.asserts import assert_cases, assert_equal, assert_true


def test_last_number__takes_the_last(fn):
    "The last number wins."
    assert_cases(fn, [("6 + 12 = 18 eggs", "18"), ("3 then 5", "5")], hint="Look at the end.")


def test_last_number__none_without_a_number(fn):
    "Without a number the result is None."
    assert_equal(fn("no number"), None)


def test_last_number__random_numbers(fn, rng):
    "Any number is found."
    number = str(rng.randrange(10_000))
    assert_equal(fn(f"so it is {number}"), number)


def test_is_equivalent__values(fn):
    "18.0 equals 18."
    assert_true(fn("18.0", "18"), expected="True", hint="Compare values, not texts.")
    assert_true(not fn("17", "18"), expected="False")
'''

HINTS = '''\
lesson: "90"
exercises:
  last_number:
    title: The last number
    reference: helpers.rewards.last_number
    learnt: The last number is the answer.
    hints: [Look at the end., Find all and take the last., "re.findall(...)[-1]"]
  is_equivalent:
    title: Equivalence
    reference: helpers.rewards.is_equivalent
    learnt: Values are compared, not texts.
    hints: [Texts differ., Make numbers of both., Compare floats.]
'''

QUESTIONS = '''\
lesson: "90"
questions:
  "90-1":
    question: Which number is the answer?
    choices:
      a: {text: the first, why: The first is a step.}
      b: {text: the last}
    right: b
    explanation: The steps come first.
'''


def make_course(root: Path) -> Path:
    """Write the toy course under `root`; WORKBOOK_ROOT is to name it."""
    source = SOURCE
    for name in ("last_number", "is_equivalent"):
        source = source.replace(f"META_{name}", META.replace("NAME", name))
    files = {
        "solutions/90_toy.py": source,
        "tests/lessons/test_90_toy.py": CHECKS,
        "workbook/hints/90.yaml": HINTS,
        "workbook/questions/90.yaml": QUESTIONS,
        "helpers/method.py": "X = 1\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
