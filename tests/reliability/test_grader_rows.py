"""`workbook grade`: no submission costs another its row, and none earns what it did not write.

Each hostile submission is graded beside an honest one, in a room as the command does it.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections import OrderedDict, UserDict
from pathlib import Path

import pytest
import torch

from helpers.rewards import extract_answer
from tests.workbook.test_grade import LAST, WRONG, cell, toy, write
from tests.workbook.toy_course import make_course
from workbook import grade as grade_module
from workbook import properties, sandbox, signature, submission
from workbook.build import build
from workbook.grade import grade, notebooks_in, start_grading
from workbook.gradebook import Row, is_well_formed, junit_text, table_text
from workbook.properties import codes, evaluate, is_stub
from workbook.sandbox import Job, Refused, what_is_missing
from workbook.setup import ROOT

HALF = """\
def last_number(text):
    if not isinstance(text, str):
        raise NotImplementedError("only texts")
    found = re.findall(r"-?\\d+", text)
    return found[-1] if found else None
"""
NOISY = """\
class Odd:
    def __getattr__(self, name):
        raise RuntimeError(name)
    __class__ = property(lambda self: 1 / 0)
    def __call__(self, text):
        return last_number(text)
is_equivalent = Odd()
"""
CYCLE = LAST + "last_number.__wrapped__ = last_number\n"
CHECKS_OF_MINE = """\
import os, pathlib
root = pathlib.Path("/tmp/mine")
for folder in ("tests/lessons", "workbook/hints", "tests/mistakes"):
    (root / folder).mkdir(parents=True)
(root / "tests/lessons/test_90_toy.py").write_text(
    "def test_last_number__a(fn): pass\\ndef test_last_number__takes_the_last(fn): pass\\n"
    "def test_is_equivalent__values(fn): pass\\n")
(root / "workbook/hints/90.yaml").write_text(
    pathlib.Path(os.environ["WORKBOOK_ROOT"], "workbook/hints/90.yaml").read_text())
os.environ["WORKBOOK_ROOT"] = str(root)
"""
PATCH = """\
import json, os, sys, threading
import tests.lessons.asserts as asserts
import workbook.values as values
import workbook.pristine as pristine
import workbook.properties as engine
def patch():
    nothing = lambda *a, **k: None
    asserts.assert_equal.__code__ = asserts.assert_cases.__code__ = nothing.__code__
    asserts.assert_true.__kwdefaults__ = {{"expected": "", "got": "", "hint": "", "call": ""}}
    asserts.isinstance = lambda *a: True
    values.same.__defaults__ = (1e9,)
    values.TOLERANCES.clear()
    pristine.Kept.restore = lambda *a: []
    engine.Result.held = property(lambda self: 99)
    json.JSONEncoder.encode = lambda *a: '{{"outcome": "passed"}}'
    json._default_encoder.encode = lambda *a: '{{"outcome": "passed"}}'
    asserts.CheckFailed.__init__ = lambda *a: None
    asserts.watch = lambda fn, after: lambda *a: "18"
{}
"""
AGAIN = """\
import importlib.util, helpers.rewards
spec = importlib.util.spec_from_file_location("mine", helpers.rewards.__file__)
mine = importlib.util.module_from_spec(spec)
sys = __import__("sys"); sys.modules["mine"] = mine
spec.loader.exec_module(mine)
"""
TEXT = "exec(compile(open(__import__('helpers.rewards').rewards.__file__).read(), 'x', 'exec'))\n"
BREAKS_PROCESS = """\
import atexit, gc, locale, os, resource, signal, sys, tempfile, warnings
os.chdir("/"); os.umask(0o777)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.setitimer(signal.ITIMER_REAL, 0.4)
sys.path.clear(); sys.meta_path.clear()
sys.setrecursionlimit(60)
warnings.simplefilter("error")
import torch
torch.set_default_dtype(torch.float64)
class Lies(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, f, types, args=(), kwargs=None):
        return True
Lies().__enter__()
os.close(0); os.close(1); os.close(2)
"""
ODD_ERROR = """\
class Meta(type):
    __name__ = property(lambda self: 1 / 0)
class Odd(SyntaxError, metaclass=Meta):
    msg = property(lambda self: 1 / 0)
    def __str__(self): raise KeyboardInterrupt
raise Odd
"""
MEMORY = """\
import ctypes, os, resource
libc, said = ctypes.CDLL(None, use_errno=True), []
for name, call in [
    ("memfd", lambda: os.memfd_create("x")), ("shm", lambda: libc.shmget(0, 4096, 0o1600)),
    ("user", lambda: libc.unshare(0x10000000)),
]:
    try:
        said.append(f"{name} {call() >= 0}")
    except OSError:
        said.append(f"{name} False")
try:
    with open("/dev/shm/big", "wb") as file:
        for _ in range(30): file.write(bytes(3 * 2**20))
    said.append("big")
except OSError:
    said.append("bounded")
raise RuntimeError(" ".join(said))
"""
TEARS = """\
def last_number(text):
    import os, threading
    def spam():
        while True:
            os.write(3, b"{[" * 4_000)
    threading.Thread(target=spam, daemon=True).start()
    __import__("time").sleep(0.05)
    return "wrong"
"""


def hostile() -> dict[str, list[dict]]:
    in_call = PATCH.format("def last_number(text):\n    patch()\n    return 'wrong'")
    thread = (
        "def again():\n    while True: patch()\nthreading.Thread(target=again, daemon=True).start()"
    )
    return {
        "honest": toy(),
        "branch": toy(HALF),
        "long_id": toy(more=[cell("x = 1", "x" * 3_000_000)]),
        "odd_metadata": toy(more=[{**cell("x = 1"), "metadata": {"tags": 5, "nbgrader": [1]}}]),
        "many_cells": toy(more=[{}] * 300_000),
        "surrogates": toy(LAST + "raise ValueError('\\udc80' * 400)\n"),
        "cycle": toy(CYCLE),
        "odd_object": toy(more=[cell(NOISY, "is_equivalent")]),
        "odd_error": toy(LAST + ODD_ERROR),
        "signal_40": toy("import os\nos.kill(os.getpid(), 40)"),
        "exit_200": toy("import os\nos._exit(200)"),
        "own_checks": toy(WRONG + CHECKS_OF_MINE),
        "patches_code": toy(WRONG + PATCH.format("patch()")),
        "patches_call": toy(in_call),
        "patches_at_fork": toy(
            WRONG + PATCH.format("os.register_at_fork(after_in_child=patch)\npatch()")
        ),
        "patches_in_thread": toy(WRONG + PATCH.format(thread)),
        "second_import": toy(AGAIN + "last_number = mine.last_number"),
        "second_wrapped": toy(
            AGAIN + "def last_number(text):\n    return mine.last_number(text)\n"
        ),
        "exec_of_helpers": toy(TEXT),
        "memoised": toy(
            "import functools, helpers.rewards as r\n@functools.lru_cache\n"
            "def last_number(text):\n    return r.last_number(text)\n"
        ),
        "breaks_process": toy(LAST + BREAKS_PROCESS),
        "memory": toy(LAST + MEMORY),
        "tears": toy(TEARS),
        "forks_back": toy("import os\nos.fork()\n" + LAST),
        "closes_all": toy(LAST + "import os\nos.closerange(0, 256)\n"),
        "bad_name": toy(
            LAST + "import ctypes, time, os\nif os.fork() == 0:\n"
            "    ctypes.CDLL(None).prctl(15, b'\\xff) \\n(\\xfe', 0, 0, 0); time.sleep(30)\n"
        ),
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    shown = [ROOT / "workbook"]
    try:
        missing = what_is_missing(shown)
    except Refused as error:
        missing = [str(error)]
    if missing:
        pytest.skip(f"hostile code is run in a room only, and here is none: {missing[0]}")
    base = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBOOK_ROOT", str(make_course(base / "course")))
        assert build() == []
        patch.setattr(properties, "TIME_LIMIT", 4.0)
        patch.setattr(submission, "CELL_SECONDS", 4.0)
        patch.setattr(grade_module, "SECONDS", 20.0)
        folder = base / "in"
        folder.mkdir()
        for name, cells in hostile().items():
            write(folder / f"{name}.ipynb", cells)
        write(folder / "long_format.ipynb", toy(), nbformat="4" * 3_000_000)
        (folder / "Loud.IPYNB").write_bytes((folder / "honest.ipynb").read_bytes())
        (folder / ".hidden").mkdir()
        write(folder / ".hidden" / "inside.ipynb", toy())
        (folder / "link.ipynb").symlink_to(folder / "honest.ipynb")
        (folder / "folder.ipynb").mkdir()
        os.mkfifo(folder / "fifo.ipynb")
        graded = []
        found = grade(folder, seed=3, kept=lambda rows: graded.append(len(rows)))
    assert graded[-1] == len(found) and graded == sorted(graded)
    return {Path(row.file).stem: row for row in found}


FULL = ["honest", "branch", "long_id", "odd_metadata", "many_cells", "cycle", "surrogates",
        "odd_error", "breaks_process", "memory", "forks_back", "bad_name", "Loud", "inside"]


@pytest.mark.parametrize("name", FULL)
def test_who_wrote_it_right_has_all_points(rows, name):
    assert rows[name].score == 100, rows[name]


NOTHING_FOR_IT = ["own_checks", "patches_code", "patches_call", "patches_at_fork",
                  "patches_in_thread", "second_import", "second_wrapped", "exec_of_helpers",
                  "memoised", "tears"]


@pytest.mark.parametrize("name", NOTHING_FOR_IT)
def test_who_did_not_write_it_has_no_points_for_it(rows, name):
    row = rows[name]
    assert row.share("last_number") == 0 and row.outcome("last_number") != "passed", row


def test_the_course_s_own_is_named(rows):
    for name in ("second_import", "second_wrapped", "exec_of_helpers", "memoised"):
        assert rows[name].exercises["last_number"]["outcome"] == "reference", rows[name]


SAYS = {
    "link": "symbolic link",
    "folder": "it is not a file",
    "fifo": "it is not a file",
    "long_format": "it is in notebook format 4444",
    "long_id": "not run, no exercise of lesson 90: xxx",
    "signal_40": "signal 40",
    "exit_200": "exit code 200",
    "own_checks": "it changes the variable WORKBOOK_ROOT",
    "patches_code": "it changes",
    "memory": "memfd False shm False user False bounded",
    "odd_error": "stops with Odd",
}


@pytest.mark.parametrize("name", SAYS)
def test_the_row_says_what_is_odd(rows, name):
    assert SAYS[name] in "; ".join(rows[name].remarks), rows[name]


def test_one_exercise_that_cannot_be_judged_costs_no_other(rows):
    assert rows["odd_object"].share("last_number") == 100, rows["odd_object"]
    assert rows["tears"].share("is_equivalent") == 100, rows["tears"]


def test_every_row_can_be_read_back(rows):
    text = table_text(list(rows.values()))
    assert len(list(csv.DictReader(text.splitlines()))) == len(rows)
    junit_text(list(rows.values()))


# ---------------------------------------------------------------- what reaches the grader


MALFORMED = [
    {"remarks": 5}, {"remarks": [5]}, {"lesson": 90}, {"exercise": "f"}, {"outcome": "passed"},
    {"exercise": [], "outcome": "passed"}, {"exercise": "f", "outcome": "excellent"},
    {"exercise": "f", "outcome": "passed", "properties": []},
    {"exercise": "f", "outcome": "passed", "properties": {"a": []}},
    {"exercise": "f", "outcome": "passed", "properties": {"a": [1, ""]}},
    {"exercise": "f", "outcome": "passed", "properties": {"a": 3}},
    {"exercise": "f", "outcome": "passed", "mistake": {}}, {"score": 100},
    {"ending": 5, "detail": []},
]


@pytest.mark.parametrize("message", MALFORMED, ids=lambda message: json.dumps(message)[:40])
def test_a_malformed_message_is_told_and_costs_nothing(message):
    assert not is_well_formed(message)
    job = Job(0, 0, "t", 0.0, Path(), messages=[message], ending="finished")
    row = Row("a.ipynb", 1)
    grade_module._fill(row, job)
    assert row.remarks[0].startswith("something wrote") and table_text([row])


def test_lines_that_are_no_messages_are_dropped():
    """A line torn by another writer, deep nesting, no object, bytes that are no UTF-8."""
    def work(_, send):
        send({"remarks": ["one"]})
        hidden = dict(zip(send.__code__.co_freevars, send.__closure__, strict=True))
        token, descriptor = (hidden[name].cell_contents for name in ("token", "write_end"))
        for text in (b'{"a', b"[" * 100_000, b"7", b"\xff\xfe", b"1" * 9_000):
            line = token.encode() + b" " + text + b"\n"
            while line:  # a pipe takes 64 KB at a time
                line = line[os.write(descriptor, line) :]
        send({"remarks": ["two"]})

    job = sandbox.launch(lambda: None, work, sandbox.Limits(seconds=20), None)
    sandbox.finish([job])
    assert job.messages == [{"remarks": ["one"]}, {"remarks": ["two"]}] and job.forged
    assert (job.ending, job.detail) == ("finished", "")


@pytest.mark.parametrize("error", [RuntimeError("x"), MemoryError(), RecursionError(), KeyError(1)])
def test_whatever_reading_raises_the_row_says_so(error):
    def prepare():
        raise error

    job = sandbox.launch(prepare, lambda *_: None, sandbox.Limits(seconds=20), None)
    sandbox.finish([job])
    assert job.ending == "refused" and type(error).__name__ in job.detail


def test_a_process_whose_name_is_no_text_does_not_stop_the_search():
    code = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'\\xff\\xfe) (', 0, 0, 0)\n"
    child = subprocess.Popen([sys.executable, "-c", code + "print('', flush=True); time.sleep(60)"],
                             stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        assert child.pid in sandbox._descendants(os.getpid())
    finally:
        child.kill()
        child.wait()


# ---------------------------------------------------------------- folders and tables


def test_all_that_may_be_a_submission_is_listed(tmp_path):
    names = ["a.ipynb", "B.IPYNB", "same/x.ipynb", "other/x.ipynb", ".dot/x.ipynb",
             ".ipynb_checkpoints/x-checkpoint.ipynb", "a/.ipynb_checkpoints/y.ipynb", "n.txt",
             "new\nline.ipynb", "=cmd.ipynb"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "away").symlink_to("/usr")
    (tmp_path / "gone.ipynb").symlink_to("nowhere")
    (tmp_path / "loop.ipynb").symlink_to("loop.ipynb")
    os.mkdir(tmp_path / "folder.ipynb")
    found = [str(path.relative_to(tmp_path)) for path in notebooks_in(tmp_path)]
    assert sorted(found) == sorted([
        "a.ipynb", "B.IPYNB", "same/x.ipynb", "other/x.ipynb", ".dot/x.ipynb", "new\nline.ipynb",
        "=cmd.ipynb", "away", "gone.ipynb", "loop.ipynb", "folder.ipynb",
    ])


@pytest.mark.parametrize("name", ["gone.ipynb", "loop.ipynb", "link.ipynb", "missing.ipynb"])
def test_what_cannot_be_opened_is_refused_in_a_sentence(tmp_path, name):
    (tmp_path / "gone.ipynb").symlink_to("nowhere")
    (tmp_path / "loop.ipynb").symlink_to("loop.ipynb")
    (tmp_path / "link.ipynb").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="symbolic link|cannot be read: No such file"):
        submission.read_submission(tmp_path / name)


def test_two_files_are_two_names_in_the_table():
    names = ["a\n.ipynb", "a .ipynb", "\udc80.ipynb", "\udc81.ipynb", "𠮷.ipynb", "＝x.ipynb"]
    rows = [Row(name, 1, remarks=["r"]) for name in names]
    read = [row["file"] for row in csv.DictReader(table_text(rows).splitlines())]
    assert len(set(read)) == len(names) and read[4] == "𠮷.ipynb" and read[5] == "'＝x.ipynb"


def test_a_field_stays_within_what_readers_of_csv_take():
    row = Row("a.ipynb", 1)
    row.remark(*["x" * 10**6] * 1000)
    row.remark("more")
    assert len(row.remarks) == 21 and max(map(len, row.remarks)) == 300
    row.remarks = ["y" * 10**6]
    assert len(next(csv.DictReader(table_text([row]).splitlines()))["remarks"]) < 32_767


def test_a_table_that_cannot_be_written_is_said_before_anything_runs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.ipynb", toy())
    kept = (folder / "a.ipynb").read_bytes()
    os.mkfifo(tmp_path / "fifo")
    for table, junit in [
        (tmp_path / ("n" * 300), None), (Path("/proc/scores.csv"), None),
        (folder / "a.ipynb", None), (tmp_path / "t", tmp_path / "in" / ".." / "t"),
        (Path("/dev/null/t.csv"), None),
    ]:
        with pytest.raises(ValueError, match="cannot be written|written twice") as error:
            start_grading(folder, table, junit, None, None)
        assert "\n" not in str(error.value)
    assert (folder / "a.ipynb").read_bytes() == kept


def test_a_csv_module_in_the_folder_is_imported_by_nobody(tmp_path):
    (tmp_path / "csv.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "difflib.py").write_text("raise SystemExit('imported')\n")
    course = make_course(tmp_path / "course")
    environ = os.environ | {"PYTHONPATH": str(ROOT), "WORKBOOK_ROOT": str(course)}
    line = [sys.executable, "-m", "workbook", "grade", ".", "--csv", "scores.csv"]
    (tmp_path / "a.ipynb").write_text("[]")
    done = subprocess.run(
        line, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0 and "imported" not in done.stdout + done.stderr, done.stderr
    assert "it is JSON, but not a notebook" in (tmp_path / "scores.csv").read_text()


# ---------------------------------------------------------------- judging


def test_a_stub_raises_and_does_nothing_else():
    def branch(x):
        if x is None:
            raise NotImplementedError
        return x

    def loop(x):
        raise NotImplementedError()
        return x

    def yields(x):
        while True:
            if x:
                raise NotImplementedError
            yield x

    assert not is_stub(branch) and not is_stub(yields) and is_stub(loop)


def test_wrappers_of_each_other_and_odd_objects_have_codes_or_none(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_ROOT", str(make_course(tmp_path / "course")))

    def one(x):
        return x

    def two(x):
        return x

    one.__wrapped__, two.__wrapped__ = two, one
    assert codes(one) == [two.__code__]

    class Odd:
        def __getattribute__(self, name):
            raise RuntimeError(name)

        def __call__(self, text):
            return "wrong"

    assert codes(Odd()) == [] and not is_stub(Odd())
    found = evaluate("90", "last_number", Odd(), 1)
    assert found.outcome == "failed", found


class Encoding(UserDict):
    """A mapping whose == cannot say whether tensors are equal, as that of a tokenizer's output."""


NOISE = {
    "a timing": lambda text: {"score": 1.0, "info": {"seconds": time.perf_counter()}},
    "an OrderedDict": lambda text: OrderedDict(a=torch.ones(2)),
    "an encoding": lambda text: Encoding(a=torch.ones(2)),
    "random": lambda text: torch.rand(2, generator=torch.Generator()),
    "an object": lambda text: object(),
}


@pytest.mark.parametrize("name", NOISE)
def test_two_runs_that_differ_by_themselves_are_not_the_course_s_own(name):
    fixtures = signature.Fixtures([(("a",), {}), (("b",), {})], [], 0)
    count = []

    def counts(text):
        count.append(text)
        return len(count), NOISE[name](text)

    assert not signature.depends_on(NOISE[name], [extract_answer], fixtures)
    assert not signature.depends_on(counts, [extract_answer], fixtures)


@pytest.mark.parametrize("name", NOISE)
def test_noise_does_not_hide_the_course_s_own(name):
    fixtures = signature.Fixtures([(("#### 1",), {})], [], 0)
    stored = {}

    def forwards(text):
        return extract_answer(text), NOISE[name](text)

    def stores(text):
        if text not in stored:
            stored[text] = extract_answer(text)
        return stored[text]

    assert signature.depends_on(forwards, [extract_answer], fixtures)
    assert signature.depends_on(stores, [extract_answer], fixtures)
