"""`workbook grade`: run the checks on a folder of submissions and write one row for each.

    python3 -m workbook grade submitted --csv scores.csv --junit scores.xml --seed 7

Scores. Every property of an exercise weighs the same: with 3 of 5 an exercise has 60 %. The score
of a lesson is the mean over its exercises. A stub, an exercise whose cell is gone, and the
course's own function (imported, assigned by `use_reference`, or called in a wrapper) have 0 %.

What is promised. Only set-up and exercise cells run. Each submission runs in a process of its own
with limits on time, memory, processes and files; the checks run in a fork of it, in which what its
cells have changed is put back. On Linux these sit in a room (workbook/room.py): no network, no file
but Python, the system's programs and the course, all read-only, an empty home that is gone
afterwards, no right of any kind. Whatever it starts ends with it. A submission can spoil its own
row and no other.

What is not promised. Checks and learner code share one process, so a submission written against
this grader, one that searches memory for the grader's own objects, can forge a pass for itself; it
could not do so by accident. A pasted copy of the course's code is not recognised. Limits on memory
count for each process, not for their sum. The room is as strong as the kernel: it keeps out
careless and mischievous code, not somebody with an unknown hole in Linux; use a machine without
secrets for people whom you do not know. Names and scores of the submissions graded before are in
the memory of the grader, and so of the processes forked from it. Where the system allows no room
(macOS, some containers) the limits that are missing are printed before the first submission runs;
root refuses to grade without one.
"""

import ast
import errno
import json
import os
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

from workbook.gradebook import Row, is_well_formed, junit_text, show, table_text
from workbook.process import process_settings, restart
from workbook.progress import course_root, write_text
from workbook.setup import ROOT

WORKERS = 2
PASSED_ON = ("PATH", "HOME", "LANG", "TERM", "COLUMNS", "LD_LIBRARY_PATH", "TMPDIR")
SHOWN = ("workbook", "helpers", "tests", "pyproject.toml")
SECONDS = 60.0  # of one submission in all; its cells and checks have shorter limits of their own


def start_grading(folder: Path, table: Path, junit: Path | None, seed, lesson) -> int:
    """Grade in a fresh process: submissions must not find the variables of this one.

    Raises: ValueError in one sentence for a folder, file or lesson that will not do.
    """
    files = [file for file in (table, junit) if file]
    _refuse_bad(folder, files, lesson)
    environ = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environ |= {name: value for name, value in os.environ.items() if name == "WORKBOOK_ROOT"}
    environ |= {"CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1"}
    environ |= {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    environ |= process_settings(environ)
    paths = [str(path.absolute()) if path else None for path in (folder, table, junit)]
    return restart(
        # -P: a csv.py among the submissions, or in the folder at hand, is nobody's import.
        sys.executable, ["-P", "-m", "workbook.grade", json.dumps([*paths, seed, lesson])], environ
    )


def _refuse_bad(folder: Path, files: list[Path], lesson: str | None) -> None:
    from workbook.hints import lessons_with_help

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the one that holds the submissions.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be read: chmod u+rx {folder}")
    found = notebooks_in(folder)
    if not found:
        raise ValueError(f"{folder} holds no notebook (*.ipynb).")
    taken = {path.resolve() for path in found}
    for file in files:
        if file.resolve() in taken:
            raise ValueError(f"{file} would be written twice, or over a submission: name another.")
        taken.add(file.resolve())
        _refuse_unwritable(file)
    if lesson and lesson not in lessons_with_help():
        known = ", ".join(lessons_with_help())
        raise ValueError(f'There is no lesson "{lesson}"; there are: {known}.')


def _refuse_unwritable(file: Path) -> None:
    """Write beside the file and open it, as will be done later; it stays as it is.

    Raises: ValueError where that fails: before the grading, not behind it.
    """
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.touch()
        beside.unlink()
        if file.exists():
            with file.open("r+b") as opened:
                if not file.is_file():
                    raise OSError(errno.EINVAL, f"{opened.name} is no file")
    except OSError as error:
        raise ValueError(
            f"{file} cannot be written ({error.strerror}): name a file in a folder that exists."
        ) from error


def notebooks_in(folder: Path) -> list[Path]:
    """All that is called *.ipynb below a folder, whatever it is; Jupyter's own copies are left out.

    Folders that cannot be read and links to folders are listed, too: they may hold some.
    """
    found, waiting = [], [folder]
    while waiting:
        here = waiting.pop()
        try:
            entries = list(os.scandir(here))
        except OSError:
            found.append(here)
            continue
        for entry in entries:
            path = here / entry.name
            is_link = entry.is_symlink()
            is_folder = os.path.isdir(path)
            if is_folder and not is_link and entry.name != ".ipynb_checkpoints":
                waiting.append(path)
            if entry.name.lower().endswith(".ipynb") or (is_folder and is_link):
                found.append(path)
    return sorted(found)


def grade(
    folder: Path,
    seed: int | None = None,
    lesson: str | None = None,
    told=print,
    kept=lambda rows: None,
) -> list[Row]:
    """Grade every notebook of a folder; rows in the order of the files.

    told: called with each sentence on what this system cannot enforce.
    kept: called behind each submission with the rows that are there so far.

    Raises: Refused where submissions cannot be run at all.
    """
    from workbook import sandbox

    shown = _shown()
    _warm()
    missing = sandbox.what_is_missing(shown)
    for sentence in missing:
        told(f"Not in force here: {sentence}.")
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    rows = [Row(str(path.relative_to(folder)), seed) for path in notebooks_in(folder)]
    _run(rows, folder, lesson, None if missing else shown, kept)
    return rows


def _shown() -> list[Path]:
    """What a room shows: the course without lessons and solutions, and Python."""
    course = {root / name for root in (ROOT, course_root()) for name in SHOWN}
    python = {Path(sys.prefix), Path(sys.base_prefix)}
    python |= {Path(p) for p in sys.path if p.endswith(("site-packages", "dist-packages"))}
    return sorted(path for path in course | python if path.exists())


def _warm() -> None:
    """Import what the lessons' set-up cells and checks import, so that each fork has it."""
    from workbook.hints import lesson_help, lessons_with_help, reference_function
    from workbook.mistakes import exercise_mistakes
    from workbook.properties import properties
    from workbook.submission import course_codes, setup_of

    for lesson in lessons_with_help():
        # A lesson that cannot be loaded says so in the rows of its own submissions.
        with suppress(Exception):
            body = ast.parse(setup_of(lesson)).body
            imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
            exec(compile(ast.Module(imports, []), f"set-up of {lesson}", "exec"), {})
            for name in lesson_help(lesson).exercises:
                properties(lesson, name)
                exercise_mistakes(lesson, name)
                reference_function(name)
            course_codes(lesson)


def _run(rows: list[Row], folder: Path, lesson: str | None, shown, kept) -> None:
    """Run the submissions, two at a time, and fill their rows."""
    from workbook import sandbox

    waiting, running = list(rows), []
    try:
        while waiting or running:
            while waiting and len(running) < WORKERS:
                row = waiting.pop(0)
                try:
                    running.append((row, _launch(row, folder, lesson, shown)))
                except OSError as error:  # no process, no temporary folder: the next one may start
                    row.remark(f"it could not be started ({error.strerror}): grade it again")
                    row.ended = True
            if not running:
                continue
            ended = sandbox.finish([job for _, job in running])
            for row, job in [pair for pair in running if pair[1] in ended]:
                _fill(row, job)
                running.remove((row, job))
                row.ended = True
            kept([row for row in rows if row.ended])
    finally:
        sandbox.stop([job for _, job in running])


def _launch(row: Row, folder: Path, lesson: str | None, shown: list[Path] | None):
    from workbook import sandbox
    from workbook.submission import attempt, read_submission

    return sandbox.launch(
        lambda: read_submission(folder / row.file, lesson),
        lambda submission, send: attempt(submission, row.seed, send),
        sandbox.Limits(seconds=SECONDS),
        shown,
    )


def _fill(row: Row, job) -> None:
    """Sort a job's messages into its row; what was not reported counts as not held."""
    row.seconds = time.monotonic() - job.started
    for message in job.messages:
        if not is_well_formed(message):
            job.forged = True
            continue
        row.remark(*message.get("remarks", []))
        if "lesson" in message and not row.lesson:
            _expect(row, message["lesson"])
        elif row.exercises.get(message.get("exercise"), {}).get("outcome") == "did not end":
            row.exercises[message["exercise"]] = message
    row.remark(
        *[
            f"{name} is the course's own function, or calls it"
            for name, found in row.exercises.items()
            if found["outcome"] == "reference"
        ]
    )
    says = {"timeout": "it was stopped after ", "flood": "it was stopped: ", "refused": ""}
    if job.ending != "finished":
        row.remark(says.get(job.ending, "its process ended early: ") + job.detail)
    elif any(found["outcome"] == "did not end" for found in row.exercises.values()):
        row.remark("its process ended early")
    if job.forged:
        row.remarks.insert(0, "something wrote to the grader's pipe: read this notebook")


def _expect(row: Row, lesson: str) -> None:
    """Note the exercises and properties of a lesson, from the course's own files."""
    from workbook.hints import lesson_help
    from workbook.properties import properties

    row.lesson = lesson
    try:
        for name in lesson_help(lesson).exercises:
            row.totals[name] = [test.__name__ for test in properties(lesson, name)]
            row.exercises[name] = {"outcome": "did not end"}
    except ValueError as error:  # a lesson that lacks checks: its own rows say so
        row.remark(str(error))


def main(arguments: list[str]) -> int:
    """What the fresh process of `start_grading` does."""
    folder, table, junit, seed, lesson = json.loads(arguments[0])
    sys.stdout.reconfigure(errors="backslashreplace")  # a file may have any name
    started = time.monotonic()

    def write(rows: list[Row]) -> None:
        write_text(Path(table), table_text(rows))
        if junit:
            write_text(Path(junit), junit_text(rows))

    def kept(rows: list[Row]) -> None:
        with suppress(OSError):  # a full disk: what is missing is written at the end
            write(rows)

    try:
        rows = grade(Path(folder), seed, lesson, kept=kept)
        show(rows)
        write(rows)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped; the rows so far are in {table}.", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started
    print(f"{len(rows)} submissions in {seconds:.0f} s, seed {rows[0].seed}: {table}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
