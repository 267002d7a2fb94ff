"""`workbook grade` on real notebooks: honest, wrong, odd and hostile ones, each in its own row."""

import csv
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.workbook.toy_course import make_course
from workbook import grade as grade_module
from workbook import properties, sandbox, submission
from workbook.build import build
from workbook.grade import grade, start_grading
from workbook.gradebook import Row, junit_text, safe, table_text
from workbook.sandbox import Refused, what_is_missing
from workbook.setup import ROOT
from workbook.submission import read_submission

SETUP = """\
import re
from workbook.lesson import begin, check, ready, use_profile, use_reference
begin("90")
profile = use_profile("tiny")
"""
LAST = """\
def last_number(text):
    found = re.findall(r"-?\\d+", text)
    return found[-1] if found else None
"""
LAST_STUB = "def last_number(text):\n    # YOUR CODE HERE\n    raise NotImplementedError()\n"
EQUAL = "def is_equivalent(prediction, truth):\n    return float(prediction) == float(truth)\n"
WRONG = "def last_number(text):\n    return 'wrong'\n"
IN_CALL = "def last_number(text):\n    {}\n    return re.findall(r'\\d+', text)[-1]\n"
# Reports what it could do in the only way that a submission has: the text of its error.
SPY = """\
import os, pathlib, socket
seen = []
def tries(what, action):
    try:
        seen.append(f"{{what}} {{action()}}")
    except OSError as error:
        seen.append(f"{{what}} no ({{error.errno}})")
tries("list", lambda: os.listdir({folder!r}))
tries("secret", lambda: open({secret!r}).read())
tries("home", lambda: os.listdir(os.path.expanduser("~")))
tries("course", lambda: open({course!r} + "/spoiled", "w"))
tries("net", lambda: socket.create_connection(("127.0.0.1", {port}), 2))
tries("env", lambda: os.environ.get("A_TOKEN"))
tries("solutions", lambda: os.listdir({course!r} + "/../solutions"))
raise RuntimeError("; ".join(seen)[:250])
"""
DAEMON = """\
import os, ctypes, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, b"leftover", 0, 0, 0)
        open("/tmp/alive", "w").close()
        time.sleep(600)
    os._exit(0)
"""
FORGERY = """\
import os, json
line = json.dumps({"exercise": "last_number", "outcome": "passed", "properties": {}})
for fd in range(3, 64):
    try:
        os.write(fd, ("\\n" + line + "\\n").encode())
    except OSError:
        pass
"""
PATCHES = """\
import json, math, os, torch
import tests.lessons.asserts as asserts
import workbook.properties as engine
for name in ("assert_equal", "assert_cases", "assert_true"):
    setattr(asserts, name, lambda *a, **k: None)
engine.run_property = lambda test, *a: {"name": test.__name__, "outcome": "passed"}
engine.evaluate = check = lambda *a, **k: None
torch.allclose = math.isclose = lambda *a, **k: True
json.dumps = lambda *a, **k: '{"outcome": "passed"}'
"""


def cell(source: str, name: str = "", tags=()) -> dict:
    meta = {"tags": list(tags)} if tags else {}
    if name:
        meta["nbgrader"] = {
            "grade": False,
            "grade_id": name,
            "locked": False,
            "schema_version": 3,
            "solution": True,
            "task": False,
        }
    return {
        "cell_type": "code",
        "source": source.splitlines(True),
        "metadata": meta,
        "outputs": [],
        "execution_count": None,
    }


def toy(last=LAST, equal=EQUAL, *, setup=SETUP, more=()) -> list[dict]:
    cells = [cell(setup, tags=["setup"])] if setup else []
    cells += [cell(last, "last_number")] if last else []
    return [*cells, *([cell(equal, "is_equivalent")] if equal else []), *more]


def write(path: Path, cells: list[dict], nbformat: int = 4) -> None:
    path.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": nbformat, "nbformat_minor": 5}),
        encoding="utf-8",
    )


def honest() -> dict[str, list[dict]]:
    """Submissions of people who mean well."""
    helper = cell("def numbers(text):\n    return re.findall(r'\\d+', text)\n")
    helped = "def last_number(text):\n    return numbers(text)[-1]\n"
    elsewhere = cell(LAST.replace("last_number", "is_equivalent"))
    training = cell("open('/tmp/trained', 'w'); raise RuntimeError('training ran')")
    return {
        "right": toy(more=[training]),
        "untouched": toy(
            LAST_STUB,
            EQUAL.replace(
                "return float(prediction) == float(truth)", "raise NotImplementedError()"
            ),
        ),
        "half": toy(LAST_STUB),
        "partial": toy(IN_CALL.format("pass")),
        "first_number": toy(IN_CALL.format("pass").replace("[-1]", "[0]")),
        "no_setup": toy(setup=""),
        "broken_setup": toy(setup=SETUP + "import no_such_package\n"),
        "reordered": toy()[::-1],
        "deleted_cell": toy(equal=""),
        "twice": toy(more=[cell(WRONG, "last_number")]),
        "helper_elsewhere": toy(helped, more=[helper]),
        "lost_metadata": toy(equal="", more=[elsewhere]),
        "magic": toy("%time\n" + LAST),
        "imported": toy("from helpers.rewards import last_number"),
        "assigned": toy("last_number = use_reference('last_number')"),
        "forwards": toy(
            "import helpers.rewards as r\ndef last_number(text):\n    return r.last_number(text)"
        ),
        "forwards_mostly": toy(
            "import helpers.rewards as r\ndef last_number(text):\n"
            "    return r.last_number(text) or ''"
        ),
        "=HYPERLINK(1)": toy(),
    }


def hostile(spy: str) -> dict[str, list[dict]]:
    """Submissions that mean harm, or behave as if."""
    keeps_on = (
        "while True:\n    try:\n        time.sleep(9)\n    except BaseException:\n        pass"
    )
    return {
        "endless_cell": toy(LAST + "while True: pass\n"),
        "endless_catches_all": toy("import time\n" + keeps_on),
        "endless_call": toy(IN_CALL.format("while True: pass")),
        "exits_cell": toy("import os\nos._exit(0)\n"),
        "exits_call": toy(IN_CALL.format("import os; os._exit(0)")),
        "fork_bomb": toy(
            "import os\nwhile True:\n    try:\n        os.fork()\n"
            "    except OSError:\n        pass\n"
        ),
        "fork_bomb_call": toy(IN_CALL.format("import os\n    while True: os.fork()")),
        "daemon": toy(DAEMON + LAST),
        "kills_all": toy("import os\nos.kill(-1, 9)\nos.kill(os.getppid(), 9)\n"),
        "kills_all_call": toy(IN_CALL.format("import os; os.kill(-1, 9)")),
        "spies": toy(LAST + spy),
        "big_file": toy(
            LAST + "with open('/tmp/big', 'wb') as f:\n    while True: f.write(bytes(10**7))\n"
        ),
        "many_files": toy(LAST + "n = 0\nwhile True:\n    open(f'/tmp/{n}', 'w').close(); n += 1"),
        "hoards": toy(LAST + "x = bytearray(10**11)\n"),
        "floods": toy(
            LAST + "import os\nfor _ in range(300):\n    print('x' * 10**6)\n"
            "    os.write(1, b'x' * 10**5)\n"
        ),
        "floods_pipe": toy(
            "import os\nwhile True:\n    for fd in range(3, 64):\n        try:\n"
            "            os.write(fd, b'x' * 10**5)\n"
            "        except OSError:\n            pass\n"
        ),
        "forges": toy(WRONG + FORGERY),
        "forges_call": toy(IN_CALL.format(FORGERY.replace("\n", "\n    "))),
        "patches": toy(WRONG + PATCHES),
        "patches_call": toy(
            "def last_number(text):\n    "
            + PATCHES.replace("\n", "\n    ")
            + "\n    return 'wrong'\n"
        ),
        "exit_handlers": toy(
            LAST + "import atexit, sys, threading\natexit.register(sys.exit)\n"
            "threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"
        ),
        "crashes": toy("import ctypes\nctypes.string_at(0)\n"),
    }


@pytest.fixture(scope="module")
def room_shows():
    """What a room shows to these tests, which run hostile code only where there is one."""
    shown = [ROOT / "workbook"]
    try:
        missing = what_is_missing(shown)
    except Refused as error:
        missing = [str(error)]
    if missing:
        pytest.skip(f"hostile code is run in a room only, and here is none: {missing[0]}")
    return shown


@pytest.fixture(scope="module")
def run(tmp_path_factory, room_shows):
    """Every toy submission, graded once: rows by name, the folder, what a listener heard."""
    patch = pytest.MonkeyPatch()
    base = tmp_path_factory.mktemp("grading")
    course = make_course(base / "a course")
    patch.setenv("WORKBOOK_ROOT", str(course))
    assert build() == []  # the course's own set-up cell stands in the built lesson
    patch.setenv("A_TOKEN", "s3cret")
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setattr(properties, "TIME_LIMIT", 2.0)
    patch.setattr(submission, "CELL_SECONDS", 2.0)
    patch.setattr(grade_module, "SECONDS", 7.0)
    folder = base / "handed in"
    folder.mkdir()
    (base / "secret.txt").write_text("s3cret")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    spy = SPY.format(
        folder=str(folder),
        secret=str(base / "secret.txt"),
        course=str(course / "workbook"),
        port=listener.getsockname()[1],
    )
    for name, cells in (honest() | hostile(spy)).items():
        write(folder / f"{name}.ipynb", cells)
    _write_odd_files(folder)
    before = _places()
    try:
        rows = grade(folder, seed=5)
    finally:
        patch.undo()
    yield {Path(row.file).stem: row for row in rows}, listener, before, course
    listener.close()


def _write_odd_files(folder: Path) -> None:
    (folder / "not_json.ipynb").write_text("{'cells': []}")
    (folder / "no_notebook.ipynb").write_text("[1, 2]")
    (folder / "deep.ipynb").write_text("[" * 100_000)
    (folder / "binary.ipynb").write_bytes(bytes(range(256)))
    (folder / "huge.ipynb").write_bytes(b" " * 21 * 2**20)
    write(folder / "old.ipynb", toy(), nbformat=3)
    write(folder / "which.ipynb", [cell("x = 1")])
    write(folder / "odd_cells.ipynb", [*toy(), 7, {"cell_type": "code"}, None])
    os.mkfifo(folder / "pipe.ipynb")
    (folder / ".ipynb_checkpoints").mkdir()
    write(folder / ".ipynb_checkpoints" / "right-checkpoint.ipynb", toy())


def _places() -> set[str]:
    """What lies in the folder for temporary files, but for what pytest puts there."""
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("workbook-")}


HONEST_SCORES = {
    "right": (100, "passed"),
    "untouched": (0, "not attempted"),
    "half": (50, "not attempted"),
    "partial": (100 * (2 / 3 + 1) / 2, "raised"),
    "no_setup": (100, "passed"),
    "broken_setup": (100, "passed"),
    "reordered": (100, "passed"),
    "deleted_cell": (50, "passed"),
    "twice": (50, "failed"),
    "helper_elsewhere": (50, "raised"),
    "lost_metadata": (50, "passed"),
    "magic": (50, "not attempted"),
    "imported": (50, "reference"),
    "assigned": (50, "reference"),
    "forwards": (50, "reference"),
    "forwards_mostly": (50, "reference"),
    "=HYPERLINK(1)": (100, "passed"),
    "odd_cells": (100, "passed"),
}


@pytest.mark.parametrize("name", HONEST_SCORES)
def test_an_honest_submission_gets_its_score(run, name):
    row, (score, outcome) = run[0][name], HONEST_SCORES[name]
    assert row.score == pytest.approx(score), row
    assert row.exercises["last_number"]["outcome"] == outcome
    assert row.lesson == "90" and row.seed == 5


REMARKS = {
    "no_setup": "its set-up cell is gone: the course's own ran",
    "broken_setup": "cell 1 stops with ModuleNotFoundError: No module named 'no_such_package'",
    "twice": "2 cells are marked as last_number",
    "helper_elsewhere": "numbers stands in cell 4, which does not run",
    "lost_metadata": "is_equivalent stands in cell 3, which does not run",
    "magic": "cell 2, line 1: this is not Python",
    "imported": "last_number is the course's own function, or calls it",
    "assigned": "last_number is the course's own function, or calls it",
    "forwards": "last_number is the course's own function, or calls it",
    "forwards_mostly": "last_number is the course's own function, or calls it",
    "odd_cells": "no cells of a notebook: 4, 5, 6",
    "not_json": "it is not JSON",
    "no_notebook": "it is JSON, but not a notebook",
    "deep": "it is not JSON",
    "binary": "it cannot be read",
    "huge": "it has 21 MB, more than 20",
    "old": "notebook format 3, not 4",
    "which": "give --lesson NN",
    "pipe": "it is not a file",
    "endless_cell": "TimeoutError: it takes too long",
    "endless_catches_all": "it was stopped after 7 s",
    "exits_cell": "its process ended early",
    "exits_call": "last_number: it ended the Python process (exit code 0)",
    "crashes": "its process ended early: signal SIGSEGV",
    "fork_bomb": "more than 12 processes at once",
    "fork_bomb_call": "more than 12 processes at once",
    "big_file": "cell 2 stops with OSError",
    "many_files": "cell 2 stops with",
    "hoards": "cell 2 stops with MemoryError",
    "patches": "it changes tests.lessons.asserts.assert_equal",
    "forges": "something wrote to the grader's pipe",
}


@pytest.mark.parametrize("name", REMARKS)
def test_what_is_odd_is_said_in_the_row(run, name):
    assert REMARKS[name] in "; ".join(run[0][name].remarks)


@pytest.mark.parametrize(
    "name",
    [
        "not_json",
        "no_notebook",
        "deep",
        "binary",
        "huge",
        "old",
        "which",
        "pipe",
        "endless_catches_all",
        "exits_cell",
        "fork_bomb",
        "fork_bomb_call",
        "floods_pipe",
        "crashes",
    ],
)
def test_what_cannot_be_graded_scores_nothing(run, name):
    assert run[0][name].score == 0


@pytest.mark.parametrize(
    "name",
    ["endless_call", "exits_call", "forges_call", "kills_all", "kills_all_call"],
)
def test_a_hostile_function_costs_at_most_its_own_exercise(run, name):
    row = run[0][name]
    assert row.share("last_number") < 100 and row.outcome("last_number") != "passed"
    if name != "kills_all_call":  # this one ends its own submission
        assert row.share("is_equivalent") == 100, row


@pytest.mark.parametrize("name", ["forges", "patches", "patches_call"])
def test_a_wrong_function_gains_nothing_by_forging_or_patching(run, name):
    assert run[0][name].held("last_number") == 0, run[0][name]


@pytest.mark.parametrize(
    "name",
    [
        "endless_cell",
        "daemon",
        "spies",
        "big_file",
        "many_files",
        "hoards",
        "floods",
        "exit_handlers",
    ],
)
def test_a_right_function_keeps_its_points_whatever_else_the_cell_does(run, name):
    assert run[0][name].score == 100, run[0][name]


def test_a_submission_sees_neither_files_nor_network_nor_environment(run):
    rows, listener, _, course = run
    said = "; ".join(rows["spies"].remarks)
    for line in (
        "list no (2)",
        "secret no (2)",
        "home []",
        "course no (30)",
        "net no (",
        "env None",
        "solutions no (2)",
    ):
        assert line in said
    assert "s3cret" not in said and not (course / "workbook" / "spoiled").exists()
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_nothing_is_left_behind(run):
    _, _, before, _ = run
    assert _places() == before
    assert not Path("/tmp/alive").exists() and not Path("/tmp/trained").exists()
    assert "leftover" not in _process_names()
    assert sandbox._descendants(os.getpid()) == []


def test_a_grader_that_is_killed_leaves_nothing_behind(room_shows):
    def work(_, send):
        ctypes.CDLL(None).prctl(15, b"survivor", 0, 0, 0)
        time.sleep(60)

    grader = os.fork()
    if grader == 0:
        sandbox.launch(lambda: None, work, sandbox.Limits(seconds=60), room_shows)
        time.sleep(60)
        os._exit(0)
    try:
        assert _soon(lambda: "survivor" in _process_names())
    finally:
        os.kill(grader, signal.SIGKILL)
        os.waitpid(grader, 0)
    assert _soon(lambda: "survivor" not in _process_names() and not _places())


def _soon(condition, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _process_names() -> list[str]:
    names = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.append(path.read_text().strip())
        except OSError:
            continue
    return names


def test_the_same_seed_gives_the_same_rows_and_no_seed_a_fresh_one(
    tmp_path, monkeypatch, room_shows
):
    monkeypatch.setenv("WORKBOOK_ROOT", str(make_course(tmp_path / "course")))
    folder = tmp_path / "in"
    folder.mkdir()
    guesses = "def last_number(text):\n    raise ValueError(text)\n"
    write(folder / "guesses.ipynb", toy(guesses))
    first, again, other = (grade(folder, seed)[0] for seed in (11, 11, None))
    assert first.exercises == again.exercises
    assert other.seed != 11 and first.exercises != other.exercises


@pytest.fixture
def rows():
    total = {"f": ["test_f__a", "test_f__b"]}
    part = {
        "outcome": "failed",
        "mistake": "takes the first\x00 <number>",
        "properties": {"test_f__a": ["passed", ""], "test_f__b": ["failed", "expected 1 \x1b"]},
    }
    return [
        Row("@x.ipynb", 3, "01", {"f": part}, total, ["two\nlines, and a comma"], 1.25),
        Row("b.ipynb", 3, "02", {"g": {"outcome": "not attempted"}}, {"g": ["test_g__a"]}),
        Row("c.ipynb", 3, remarks=["it is not JSON"]),
    ]


def test_the_table_parses_and_holds_no_formula(rows):
    found = list(csv.DictReader(table_text(rows).splitlines()))
    assert [row["score"] for row in found] == ["50.0", "0.0", "0.0"]
    assert found[0]["file"] == "'@x.ipynb" and found[0]["f"] == "50.0" and found[0]["g"] == ""
    assert found[0]["outcomes"] == "f: failed (1/2)"
    assert found[0]["mistakes"] == "f: takes the first <number>"
    assert found[0]["remarks"] == "two lines, and a comma" and found[0]["seed"] == "3"
    assert safe("=1+1") == "'=1+1" and safe("\t=1") == "'=1" and safe("a=1") == "a=1"


def test_the_junit_report_has_one_case_a_property(rows):
    suites = list(ElementTree.fromstring(junit_text(rows).encode()))
    kinds = [[[child.tag for child in case] for case in suite] for suite in suites]
    assert kinds == [[[], ["failure"]], [["skipped"]], [["error"]]]
    assert suites[0].attrib["failures"] == "1" and suites[0].attrib["tests"] == "2"
    assert suites[0][1].attrib == {"classname": "01.f", "name": "b"}
    assert suites[0][1][0].attrib["message"].startswith("expected 1")


def test_the_lesson_is_read_from_cells_then_begin_then_the_file_name(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBOOK_ROOT", str(make_course(tmp_path / "course")))
    path = tmp_path / "smith_90_toy.ipynb"
    write(path, [cell("x = 1")])
    assert read_submission(path).lesson == "90"
    plain = tmp_path / "smith.ipynb"
    write(plain, [cell('begin("90")', tags=["setup"])])
    assert read_submission(plain).lesson == "90"
    write(plain, [cell(LAST, "last_number")])
    assert read_submission(plain).lesson == "90"
    write(plain, [cell('begin("90")')])  # not a set-up cell
    with pytest.raises(Refused, match="--lesson"):
        read_submission(plain)
    assert read_submission(plain, "90").lesson == "90"


def test_a_room_that_cannot_be_had_is_said_and_root_refuses(tmp_path, monkeypatch):
    def forbidden():
        raise OSError(1, "unshare: not permitted")

    monkeypatch.setattr(sandbox.room, "leave_namespaces", forbidden)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "files and network" in what_is_missing([tmp_path])[0]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(Refused, match="Root does not run submissions"):
        what_is_missing([tmp_path])


def test_without_a_room_the_limits_still_hold_and_daemons_are_found(tmp_path):
    """Harmless work only: here it has the rights of this account."""

    def work(_, send):
        send({"home": os.listdir(".")})
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        while True:
            pass

    job = sandbox.launch(lambda: None, work, sandbox.Limits(seconds=1.5), None)
    assert sandbox.finish([job]) == [job]
    assert (job.ending, job.messages) == ("timeout", [{"home": []}])
    assert sandbox._descendants(os.getpid()) == []


def command(*arguments) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "workbook", "grade", *map(str, arguments)]
    environ = os.environ | {"COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)


def test_bad_arguments_get_one_sentence(tmp_path):
    table, full = tmp_path / "t.csv", tmp_path / "full"
    full.mkdir()
    (full / "a.ipynb").write_text("{}")
    for folder, file, lesson, says in [
        (tmp_path / "none", table, None, "is not a folder"),
        (table.parent / "full", tmp_path / "no" / "t.csv", None, "cannot be written"),
        (full, full, None, "cannot be written"),
        (full, table, "77", 'There is no lesson "77"'),
    ]:
        with pytest.raises(ValueError, match=says):
            start_grading(folder, file, None, None, lesson)
    (full / "a.ipynb").unlink()
    done = command(full, "--csv", table)
    assert done.returncode == 2 and done.stderr == f"{full} holds no notebook (*.ipynb).\n"
    assert not table.exists()


def test_lesson_01_from_the_command_line(tmp_path, room_shows):
    folder, table, report = tmp_path / "in", tmp_path / "t.csv", tmp_path / "t.xml"
    folder.mkdir()
    for name, source in (("solution", "solutions"), ("untouched", "lessons")):
        text = (ROOT / source / "01_baseline_eval.ipynb").read_text(encoding="utf-8")
        (folder / f"{name}.ipynb").write_text(text, encoding="utf-8")
    done = command(folder, "--csv", table, "--junit", report, "--seed", 7)
    assert done.returncode == 0, done.stderr
    untouched, solution = sorted(csv.DictReader(table.open()), key=lambda row: float(row["score"]))
    assert solution["score"] == "100.0" and solution["remarks"] == "" and solution["seed"] == "7"
    assert untouched["score"] == "0.0" and untouched["extract_answer"] == "0.0"
    assert untouched["outcomes"].count("not attempted") == 5 and untouched["remarks"] == ""
    suites = {suite.get("name"): suite for suite in ElementTree.parse(report).getroot()}
    assert suites["solution.ipynb"].get("failures") == "0"
    assert suites["untouched.ipynb"].get("skipped") == suites["untouched.ipynb"].get("tests")
    assert "solution.ipynb" in done.stdout and "100 %" in done.stdout
