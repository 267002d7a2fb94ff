"""`workbook grade`: run the checks on a folder of submissions and write one row for each.

    python3 -m workbook grade submitted --csv scores.csv --junit scores.xml --seed 7

Scores. Every property of an exercise weighs the same: with 3 of 5 an exercise has 60 %. The score
of a lesson is the mean over its exercises. A stub, an exercise whose cell is gone, and the
course's own function (imported, assigned by `use_reference`, or called in a wrapper) have 0 %.

What is promised. Only set-up and exercise cells run. Each submission runs in a process of its own
with limits on time, memory, processes and files. On Linux that process sits in a room
(workbook/room.py): no network, no file but Python, the system's programs and the course, all
read-only, an empty home that is gone afterwards, no right of any kind. Whatever it starts ends
with it. A submission can spoil its own row and no other.

What is not promised. Checks and learner code share one process, so a submission written against
this grader, one that searches memory for the grader's own objects, can forge a pass; it could not
do so by accident. A pasted copy of the course's code is not recognised. Limits on memory count for
each process, not for their sum. The room is as strong as the kernel: it keeps out careless and
mischievous code, not somebody with an unknown hole in Linux; use a machine without secrets for
people whom you do not know. Names and scores of the submissions graded before are in the memory of
the grader, and so of the processes forked from it. Where the system allows no room (macOS, some
containers) the limits that are missing are printed before the first submission runs; root refuses
to grade without one.
"""

import ast
import json
import os
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

from workbook.gradebook import Row, junit_text, show, table_text
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
    environ |= {"OMP_NUM_THREADS": "1"}
    environ |= process_settings(environ)
    paths = [str(path.absolute()) if path else None for path in (folder, table, junit)]
    return restart(
        sys.executable, ["-m", "workbook.grade", json.dumps([*paths, seed, lesson])], environ
    )


def _refuse_bad(folder: Path, files: list[Path], lesson: str | None) -> None:
    from workbook.hints import lessons_with_help

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the one that holds the submissions.")
    if not notebooks_in(folder):
        raise ValueError(f"{folder} holds no notebook (*.ipynb).")
    for file in files:
        if file.is_dir() or not file.absolute().parent.is_dir():
            raise ValueError(f"{file} cannot be written: name a file in a folder that exists.")
    if lesson and lesson not in lessons_with_help():
        known = ", ".join(lessons_with_help())
        raise ValueError(f'There is no lesson "{lesson}"; there are: {known}.')


def notebooks_in(folder: Path) -> list[Path]:
    """The notebooks of a folder and its sub-folders, without Jupyter's own copies."""
    found = sorted(folder.rglob("*.ipynb"))
    return [p for p in found if not any(s.startswith(".") for s in p.relative_to(folder).parts)]


def grade(
    folder: Path, seed: int | None = None, lesson: str | None = None, told=print
) -> list[Row]:
    """Grade every notebook of a folder; rows in the order of the files.

    told: called with each sentence on what this system cannot enforce.

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
    _run(rows, folder, lesson, None if missing else shown)
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
    from workbook.submission import setup_of

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


def _run(rows: list[Row], folder: Path, lesson: str | None, shown: list[Path] | None) -> None:
    """Run the submissions, two at a time, and fill their rows."""
    from workbook import sandbox

    waiting, running = list(rows), []
    try:
        while waiting or running:
            while waiting and len(running) < WORKERS:
                row = waiting.pop(0)
                running.append((row, _launch(row, folder, lesson, shown)))
            ended = sandbox.finish([job for _, job in running])
            for row, job in [pair for pair in running if pair[1] in ended]:
                _fill(row, job)
                running.remove((row, job))
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
        row.remarks += message.get("remarks", [])
        if "lesson" in message and not row.lesson:
            _expect(row, message["lesson"])
        elif row.exercises.get(message.get("exercise"), {}).get("outcome") == "did not end":
            row.exercises[message["exercise"]] = message
    row.remarks += [
        f"{name} is the course's own function, or calls it"
        for name, found in row.exercises.items()
        if found["outcome"] == "reference"
    ]
    says = {"timeout": "it was stopped after ", "flood": "it was stopped: ", "refused": ""}
    if job.ending != "finished":
        row.remarks.append(says.get(job.ending, "its process ended early: ") + job.detail)
    elif any(found["outcome"] == "did not end" for found in row.exercises.values()):
        row.remarks.append("its process ended early")
    if job.forged:
        row.remarks.append("something wrote to the grader's pipe: read this notebook")


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
        row.remarks.append(str(error))


def main(arguments: list[str]) -> int:
    """What the fresh process of `start_grading` does."""
    folder, table, junit, seed, lesson = json.loads(arguments[0])
    started = time.monotonic()
    try:
        rows = grade(Path(folder), seed, lesson)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        return 130
    write_text(Path(table), table_text(rows))
    if junit:
        write_text(Path(junit), junit_text(rows))
    show(rows)
    seconds = time.monotonic() - started
    print(f"{len(rows)} submissions in {seconds:.0f} s, seed {rows[0].seed}: {table}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
