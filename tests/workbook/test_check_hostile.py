"""`check` against learner code that forges, patches, mutates, or returns odd objects."""

import builtins
import json
import math
import os
import re
import signal
import sys
import time

import pytest
import torch

from tests.lessons import asserts
from tests.workbook.toy_course import make_course
from workbook import properties as engine
from workbook.check import check
from workbook.progress import load


@pytest.fixture(autouse=True)
def course(tmp_path, monkeypatch):
    root = make_course(tmp_path / "course")
    monkeypatch.setenv("WORKBOOK_ROOT", str(root))
    monkeypatch.setenv("WORKBOOK_PROGRESS", str(root / "work" / ".progress"))
    monkeypatch.setattr(engine, "TIME_LIMIT", 2.0)


def right(text):
    words = [word for word in text.split() if word.isdigit()]
    return words[-1] if words else None


def wrong(text):
    return "wrong"


# ---------------------------------------------------------------- odd ends


class Odd(BaseException):
    def __str__(self):
        raise RuntimeError("no text")


def _raises(error):
    def raises(text):
        raise error

    return raises


def _kills_itself(text):
    os.kill(os.getpid(), signal.SIGKILL)


def _kills_itself_oddly(text):
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


def _closes_everything(text):
    os.closerange(0, 65_536)
    time.sleep(60)


def _asserts(text):
    assert text == "never", "my own assertion"


def _never_sleeps_enough(text):
    while True:
        try:
            time.sleep(1)
        except Exception:
            pass


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (_raises(GeneratorExit()), "it raises GeneratorExit"),
        (_raises(KeyboardInterrupt()), "it raises KeyboardInterrupt"),
        (_raises(Odd()), "it raises Odd"),
        (_raises(ValueError("x" * 10**7)), "ValueError: xxx"),
        (_kills_itself, "ended the Python process (signal SIGKILL)"),
        (_kills_itself_oddly, "ended the Python process (signal"),
        (_closes_everything, "closes or writes to files that it did not open"),
        (_asserts, "AssertionError: my own assertion"),
        (_never_sleeps_enough, "a loop that never ends"),
    ],
    ids=["GeneratorExit", "KeyboardInterrupt", "no text", "long text", "kill", "odd signal",
         "closed files", "assert", "sleeps"],
)
def test_an_odd_end_gets_one_short_sentence(function, says):
    panel = check(function, "last_number")
    assert panel.kind == "raised" and says in panel.headline
    assert len(panel.headline) < 400


def test_without_a_child_an_exit_ends_neither_check_nor_kernel(monkeypatch):
    monkeypatch.delenv("WORKBOOK_ROOT")
    monkeypatch.setattr(engine, "why_no_fork", lambda: "this system has no fork")
    panel = check(_raises(SystemExit(1)), "extract_answer")
    assert panel.kind == "raised" and "it calls exit()" in panel.headline
    panel = check(lambda text: "18", "extract_answer")
    assert panel.kind == "failed" and "inside the kernel" in dict(panel.rows)["note"]


def test_a_fork_that_returns_adds_no_results_of_its_own():
    def forks(text):
        os.fork()
        return right(text)

    assert check(forks, "last_number").kind == "passed"


# ---------------------------------------------------------------- odd values


class AlwaysEqual:
    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __bool__(self):
        raise RuntimeError("no truth")

    __hash__ = None


class EqualText(str):
    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


class NoRepr:
    def __repr__(self):
        raise RuntimeError("no repr")


class LongRepr:
    def __repr__(self):
        return "x" * 10**8


def _generator(text):
    yield right(text)


async def _coroutine(text):
    return right(text)


RETURNS = {
    "equal to all": lambda text: AlwaysEqual(),
    "equal inside": lambda text: [{"a": AlwaysEqual()}],
    "text subclass": lambda text: EqualText("x"),
    "no repr": lambda text: NoRepr(),
    "long repr": lambda text: LongRepr(),
    "generator": _generator,
    "coroutine": _coroutine,
    "function": lambda text: right,
    "tensor subclass": lambda text: torch.ones(1).as_subclass(type("T", (torch.Tensor,), {})),
    "bool": lambda text: True,
    "long text": lambda text: "9" * 10**7,
    "tensor": lambda text: torch.arange(10**6),
    "nested": lambda text: [[[[[text] * 50] * 50] * 50]],
}


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.filterwarnings("ignore:coroutine")
def test_an_odd_value_fails_with_a_short_panel(name):
    panel = check(RETURNS[name], "last_number")
    assert panel.kind == "failed", panel
    assert len(repr(panel)) < 2_000 and dict(panel.rows)["got"]


def test_a_type_defined_in_the_notebook_is_named():
    rows = dict(check(_generator, "last_number").rows)
    assert rows["got"] == "an object of the type generator"
    assert "no generator" in rows["hint"]


def test_a_changed_argument_is_said_and_shown():
    def sorts(rows):
        rows.sort()
        return rows[0]

    watched = asserts.watch(sorts)
    with pytest.raises(asserts.CheckFailed, match="it changes its argument: now sorts") as failure:
        watched([3, 1, 2])
    assert "[3, 1, 2]" in failure.value.call and "[1, 2, 3]" in failure.value.got
    assert asserts.watch(sorted)([3, 1, 2]) == [1, 2, 3]


@pytest.mark.parametrize("value", [
    torch.ones(3, requires_grad=True), {"a": [torch.zeros(2, dtype=torch.bool)]}, {1, 2},
    torch.tensor([float("nan"), 1.0], dtype=torch.bfloat16),
])
def test_an_argument_that_stays_is_no_change(value):
    assert asserts.watch(lambda x: 1)(value) == 1


def test_a_tensor_changed_in_place_is_seen():
    with pytest.raises(asserts.CheckFailed, match="changes its argument"):
        asserts.watch(lambda x: x.add_(1))(torch.zeros(2))


# ---------------------------------------------------------------- forgery and patches


def test_text_written_to_all_open_files_is_no_result():
    forged = json.dumps({"outcome": "passed", "name": "x", "property": "x"}) + "\n"
    forged = "\n" + forged * 3 + '{"ending": "finished"}\n'

    def forges(text):
        for descriptor in range(3, 256):
            try:
                os.write(descriptor, forged.encode())
            except OSError:
                pass
        os._exit(0)

    def floods(text):
        while True:
            for descriptor in range(3, 256):
                try:
                    os.write(descriptor, b"x" * 60_000)
                except OSError:
                    pass

    assert check(forges, "last_number").kind == "raised"
    assert load("90")["exercises"]["last_number"]["outcome"] == "raised"
    assert check(floods, "last_number").kind == "raised"


PATCHES = {
    "isinstance": (builtins, "isinstance", lambda *a: True),
    "type": (builtins, "type", lambda *a: int),
    "len": (builtins, "len", lambda a: 3),
    "all": (builtins, "all", lambda a: True),
    "allclose": (torch, "allclose", lambda *a, **k: True),
    "equal": (torch, "equal", lambda *a: True),
    "item": (torch.Tensor, "item", lambda self: 1.0),
    "eq": (torch.Tensor, "__eq__", lambda self, other: True),
    "isclose": (math, "isclose", lambda *a, **k: True),
    "sub": (re, "sub", lambda *a: ""),
    "dumps": (json, "dumps", lambda *a: '{"outcome": "passed"}'),
    "assert_equal": (asserts, "assert_equal", lambda *a, **k: None),
    "assert_cases": (asserts, "assert_cases", lambda *a, **k: None),
    "watch": (asserts, "watch", lambda fn, after: lambda text: None),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_function_patched_by_learner_code_changes_no_outcome(name):
    owner, attribute, fake = PATCHES[name]

    def patches(text, change=setattr):  # inside the child
        change(owner, attribute, fake)
        return "wrong"

    assert check(patches, "last_number").kind == "failed"


@pytest.mark.parametrize("name", [key for key in PATCHES if key not in ("type", "len")])
def test_a_function_patched_in_the_kernel_changes_no_outcome(name, monkeypatch):
    owner, attribute, fake = PATCHES[name]
    check(wrong, "last_number")  # binds the lesson, as its first cell does
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, fake, raising=False)
        panel = check(wrong, "last_number")
        assert vars(owner)[attribute] is fake  # the notebook keeps what it made
    assert panel.kind == "failed"


def test_the_engine_patched_from_inside_a_call_changes_no_outcome():
    def patches(text):
        engine.run_property = lambda *a: {"outcome": "passed"}
        sys.modules["workbook_checks_test_90_toy"].assert_cases = lambda *a, **k: None
        asserts.CheckFailed.__init__ = lambda *a: None
        return "wrong"

    assert check(patches, "last_number").kind == "failed"
