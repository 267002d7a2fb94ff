"""`check` in this process and in a real kernel: outcomes, panels, and hostile learner code."""

import ctypes
import os
import random
import sys
import time

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from tests.workbook.toy_course import make_course
from workbook import child, pristine
from workbook import properties as engine
from workbook.check import check
from workbook.progress import load
from workbook.properties import is_stub


@pytest.fixture(autouse=True)
def course(tmp_path, monkeypatch):
    root = make_course(tmp_path / "a course")
    monkeypatch.setenv("WORKBOOK_ROOT", str(root))
    monkeypatch.setenv("WORKBOOK_PROGRESS", str(root / "work" / ".progress"))
    monkeypatch.setattr(engine, "TIME_LIMIT", 2.0)
    return root


def right(text):
    words = [word for word in text.split() if word.isdigit()]
    return words[-1] if words else None


def stub(text):
    # YOUR CODE HERE
    raise NotImplementedError()


def test_a_right_function_passes_and_says_what_was_learnt():
    panel = check(right, "last_number")
    assert panel.kind == "passed"
    assert panel.headline == "last_number has its 3 properties."
    assert ("learnt", "The last number is the answer.") in panel.rows
    assert load("90")["exercises"]["last_number"]["outcome"] == "passed"


def test_a_stub_is_not_attempted_and_is_told_apart_from_a_wrong_function():
    assert check(stub, "last_number").kind == "not attempted"
    assert load("90")["exercises"]["last_number"]["outcome"] == "not attempted"
    assert is_stub(stub) and not is_stub(right)


def test_a_failure_shows_the_smallest_example_expected_got_and_hint():
    def first(text):
        words = [word for word in text.split() if word.isdigit()]
        return words[0] if words else None

    panel = check(first, "last_number", seed=7)
    rows = dict(panel.rows)
    assert panel.kind == "failed" and "The last number wins." in panel.headline
    assert rows["call"] == "first('3 then 5')"  # the shorter of the two failing cases
    assert (rows["expected"], rows["got"]) == ("'5'", "'3'")
    assert rows["hint"] == "Look at the end." and rows["seed"] == "7"
    assert "Traceback" not in repr(panel) and "assert" not in repr(panel)


def test_an_error_names_the_line_and_shows_no_traceback():
    def divides(text):
        return 1 / 0

    panel = check(divides, "last_number")
    rows = dict(panel.rows)
    assert panel.kind == "raised" and "ZeroDivisionError: division by zero" in panel.headline
    assert rows["line"].endswith("return 1 / 0") and rows["call"].startswith("divides(")
    assert "Traceback" not in repr(panel)


def test_a_call_of_another_stub_names_it():
    def calls_stub(text):
        return stub(text)

    panel = check(calls_stub, "last_number")
    assert panel.kind == "raised" and "calls stub, which is not written yet" in panel.headline


def test_a_forgotten_return_is_said():
    panel = check(lambda text: None, "last_number")
    assert panel.kind == "failed"
    assert "check" in dict(panel.rows)["hint"] or "None" in dict(panel.rows)["got"]


def _loops(text):
    while True:
        pass


def _loops_in_c(text):
    return sum(range(10**12))


def _exits(text):
    os._exit(3)


def _crashes(text):
    return ctypes.string_at(0)


def _leaves(text):
    sys.exit(0)


def _asks(text):
    return input("number? ")


def _hoards(text):
    return len(torch.ones(4 * 10**9))


def _hoards_text(text):
    return len("x" * 10**10)


def _recurses(text):
    return _recurses(text)


def _interrupts(text):
    raise KeyboardInterrupt


def _closes_all_files(text):
    os.closerange(0, 256)


def _forks(text):
    for _ in range(3):
        if os.fork() == 0:
            time.sleep(60)
    _loops(text)


HOSTILE = {
    _loops: "a loop that never ends",
    _loops_in_c: "a loop that never ends",
    _exits: "it ended the Python process (exit code 3)",
    _crashes: "it ended the Python process (signal SIGSEGV)",
    _leaves: "it calls exit()",
    _asks: "it asks for input",
    _hoards: "of memory",
    _hoards_text: "of memory",
    _recurses: "calls itself without end",
    _interrupts: "KeyboardInterrupt",
    _closes_all_files: "it closes or writes to files that it did not open",
    _forks: "a loop that never ends",
}


@pytest.mark.parametrize("function", HOSTILE, ids=lambda function: function.__name__)
def test_hostile_code_gets_one_sentence_and_this_process_lives(function):
    started = time.monotonic()
    panel = check(function, "last_number")
    assert panel.kind == "raised"
    assert HOSTILE[function] in panel.headline
    assert "\n" not in panel.headline
    assert time.monotonic() - started < engine.TIME_LIMIT + 3


def test_what_learner_code_prints_is_cut_and_changes_no_outcome(capfd):
    def prints(text):
        print("much " * 1_000_000)
        os.write(1, b"past sys.stdout\n")
        return right(text)

    assert check(prints, "last_number").kind == "passed"
    assert capfd.readouterr().out == ""


def test_learner_code_leaves_no_trace_in_this_process():
    def meddles(text):
        random.seed(0)
        os.environ["MEDDLED"] = "1"
        os.chdir("/")
        return right(text)

    before = (torch.random.get_rng_state(), random.getstate(), os.getcwd(), torch.get_num_threads())
    assert check(meddles, "last_number").kind == "passed"
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), os.getcwd(), torch.get_num_threads())
    assert "MEDDLED" not in os.environ


SETTINGS = {
    "gradient mode": lambda: torch.set_grad_enabled(False),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "number of threads": lambda: torch.set_num_threads(3),
    "random seed": lambda: torch.manual_seed(0),
    "recursion limit": lambda: sys.setrecursionlimit(9_999),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_function_that_changes_a_setting_for_all_later_code_is_told_so(setting):
    def changes(text):
        SETTINGS[setting]()
        return right(text)

    before = pristine.settings()
    panel = check(changes, "last_number", seed=1)
    assert panel.kind == "failed" and pristine.settings() == before
    assert dict(panel.rows)["got"].startswith(f"it changes the {setting}")


def test_no_process_and_no_open_file_is_left_behind():
    def count():
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    check(right, "last_number")
    before = count()
    for function in (right, _exits, _forks):
        check(function, "last_number")
    assert count() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_without_a_child_the_timer_ends_a_loop_and_the_panel_says_so(monkeypatch):
    monkeypatch.setattr(engine, "why_no_fork", lambda: "this system has no fork")
    panel = check(_loops, "last_number")
    assert panel.kind == "raised" and "a loop that never ends" in panel.headline
    assert "inside the kernel: this system has no fork" in dict(panel.rows)["note"]
    assert check(right, "last_number").kind == "passed"


def test_where_autograd_refuses_to_work_in_a_fork_the_kernel_checks():
    kernel = os.getpid()

    def refuses(text):  # what torch says in a fork of a process with autograd threads
        if os.getpid() != kernel:
            raise RuntimeError("Unable to handle autograd's threading in combination with "
                               "fork-based multiprocessing.")
        return right(text)

    panel = check(refuses, "last_number")
    assert panel.kind == "passed"
    assert "inside the kernel: a GPU is present" in dict(panel.rows)["note"]


def test_backward_works_in_the_child_after_threaded_work_in_the_parent():
    code = """
import torch
from workbook.child import run_forked
torch.set_num_threads(2)
weight = torch.ones(600, 600, requires_grad=True)
(weight @ weight).sum().backward()
def work(send):
    weight.grad = None
    (weight @ weight).exp().mean().backward()
    send({"shape": list(weight.grad.shape), "threads": torch.get_num_threads()})
report = run_forked(work, seconds=20)
print(report.ending, report.messages)
"""
    import subprocess

    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "finished [{'shape': [600, 600], 'threads': 1}]", done.stderr


def test_a_report_of_a_child_that_says_nothing():
    report = child.run_forked(lambda send: time.sleep(30), seconds=0.3)
    assert (report.ending, report.messages) == ("timeout", [])


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        (lambda: check("last_numbr"), 'did you mean "last_number"?'),
        (lambda: check("last_number"), "is not defined yet"),
        (lambda: check(right), "There is no exercise"),
        (lambda: check(3, "last_number"), "this is a int"),
    ],
    ids=["misspelt", "undefined", "unknown", "no function"],
)
def test_a_bad_call_of_check_is_answered_in_a_sentence(argument, says):
    panel = argument()
    assert panel.kind == "not attempted" and says in panel.headline


def test_the_reference_is_recorded_as_such():
    from workbook.hints import reference_function

    panel = check(reference_function("last_number"), "last_number")
    assert load("90")["exercises"]["last_number"]["outcome"] in ("reference", "failed")
    assert "course's own" in panel.headline or panel.kind == "failed"


def test_in_a_kernel_display_and_figures_of_learner_code_do_no_harm(course):
    cells = [
        "import torch\ntorch.set_num_threads(2)\n_ = torch.ones(900, 900) @ torch.ones(900, 900)",
        "from workbook.lesson import check, hint\nimport matplotlib.pyplot as plt",
        "def last_number(text):\n"
        "    plt.plot([1, 2]); plt.show(); display(text)\n"
        "    words = [w for w in text.split() if w.isdigit()]\n"
        "    return words[-1] if words else None",
        "check('last_number')",
        "def last_number(text):\n    return int(text)",
        "check(last_number)",
        "hint(1)",
        "def last_number(text):\n    while True: pass",
        "check(last_number)",
        "print('alive')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    with client.setup_kernel(env=os.environ | {"PYTHONPATH": root}, cwd=str(course)):
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
    shown = [_text(cell) for cell in notebook.cells]
    assert shown[3].startswith("Passed")
    assert "ValueError" in shown[5] and "line 2 of the cell: return int(text)" in shown[5]
    assert "Look at the end." in shown[6]
    assert "a loop that never ends" in shown[8]
    assert shown[9] == "alive\n"


def _text(cell) -> str:
    return "".join(o.get("text") or o["data"]["text/plain"] for o in cell.outputs)
