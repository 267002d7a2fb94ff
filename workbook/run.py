"""Execute a lesson's solution in its own kernel, with a progress bar, and compare its findings."""

import json
import os
import shlex
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from workbook.build import Source, find_source, read_source, sources
from workbook.profiles import check_names, load_profile
from workbook.progress import course_root, run_root, write_json
from workbook.published import comparison_table
from workbook.recorded import record as record_findings

CELL_SECONDS = {"smoke": 300, "short": 1800, "full": None}  # the longest a cell may take


class RunError(RuntimeError):
    """A lesson that did not come to its end; one sentence."""


def run_lessons(
    names=("all",),
    profile=None,
    depth=None,
    json_file=None,
    overrides=(),
    console=None,
    rehearse=False,
    tokenizer=None,
    record=False,
) -> dict[str, dict]:
    """Run solutions, print "published | recorded | here" for each, and return their findings.

    names: lesson numbers, or "all". json_file: findings are merged into it as
    `{"lessons": {"01": {...}}}`. overrides: `section.key=value` of the profile. rehearse: on
    random-weight miniatures of the profile's models (workbook/rehearse.py), at depth smoke, with
    the files under runs/rehearsal/; tokenizer: the folder of theirs. record: keep what a run at
    depth full found as solutions/recorded/NN.json.

    Raises: RunError, naming the lesson and the cell; ProfileError or BuildError for bad names.
    """
    console = console or Console()
    paths = sources() if "all" in names else [find_source(name) for name in names]
    loaded = load_profile(*chosen(profile, depth), overrides)  # fails before a kernel starts
    runs = run_root()
    if rehearse:
        from workbook.rehearse import rehearsal  # loads transformers: only when needed

        overrides, depth = (*rehearsal(loaded, tokenizer), *overrides), "smoke"
        runs = runs / "rehearsal"
    merged = _read_json(json_file)
    found = {}
    for path in paths:
        source = read_source(path)
        started = time.time()
        _, facts = execute(source, profile, depth, overrides, console, runs)
        found[source.lesson] = _findings(source, runs, facts, started)
        console.print(table(source.lesson, found[source.lesson]))
        if record:
            console.print(f"Recorded: {record_findings(source.lesson, found[source.lesson], runs)}")
        if json_file:
            merged.setdefault("lessons", {})[source.lesson] = found[source.lesson]
            write_json(Path(json_file), merged)
    return found


def execute(
    source: Source, profile=None, depth=None, overrides=(), console=None, runs=None
) -> tuple[nbformat.NotebookNode, dict]:
    """Execute all cells of a solution; the notebook with outputs, and its profile and depth.

    runs: the folder for what the lesson writes; `runs/` when not given.

    Raises: RunError in one sentence when a cell fails, takes too long, or the kernel dies;
    ProfileError before it starts.
    """
    facts = dict(zip(("profile", "depth"), chosen(profile, depth), strict=True))
    runs = runs or run_root()
    folder = runs / source.lesson / f"{facts['profile']}-{facts['depth']}"
    folder.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.from_dict(dict(source.notebook))
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS[facts["depth"]],
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],  # no start-up remarks of the kernel
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        with client.setup_kernel(env=_environment(facts, overrides, runs, folder), cwd=str(folder)):
            _run_cells(client, source, console or Console())
            client.set_widgets_metadata()
    except NoSuchKernel as error:
        says = "No Python kernel is installed here: run `python3 -m workbook doctor`."
        raise RunError(says) from error
    _drop_progress_bars(notebook)
    return notebook, facts


def _drop_progress_bars(notebook) -> None:
    """Where no widget can be drawn, a finished bar would stay in its first state, "0%"."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
            cell.outputs = [
                o for o, text in zip(cell.outputs, texts, strict=True) if "%|" not in text
            ]


def chosen(profile: str | None, depth: str | None) -> tuple[str, str]:
    """Profile and depth: as given, else WORKBOOK_PROFILE and _DEPTH, else tiny and short.

    Raises: ProfileError for others than there are.
    """
    profile = profile or os.environ.get("WORKBOOK_PROFILE") or "tiny"
    depth = depth or os.environ.get("WORKBOOK_DEPTH") or "short"
    check_names(profile, depth)
    return profile, depth


def _environment(facts: dict, overrides, runs: Path, folder: Path) -> dict[str, str]:
    code = str(Path(__file__).resolve().parents[1])
    return os.environ | {
        "WORKBOOK_PROFILE": facts["profile"],
        "WORKBOOK_DEPTH": facts["depth"],
        "WORKBOOK_OVERRIDES": shlex.join(overrides),
        "WORKBOOK_PROGRESS": str(folder / ".progress"),
        "WORKBOOK_RUNS": str(runs),
        "WORKBOOK_ROOT": str(course_root()),
        "PYTHONPATH": os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")])),
    }


def _run_cells(client: NotebookClient, source: Source, console: Console) -> None:
    cells = client.nb.cells
    count = TextColumn("{task.completed}/{task.total}")
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"lesson {source.lesson}", total=len(cells))
        for index, cell in enumerate(cells):
            try:
                client.execute_cell(cell, index)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                raise RunError(_sentence(source, cells, index, error)) from error
            bar.advance(task)


def _sentence(source: Source, cells, index: int, error: Exception) -> str:
    where = f"Lesson {source.lesson} stopped in cell {index + 1} of {len(cells)}"
    heading = _heading(cells[: index + 1])
    where += f' (under "{heading}")' if heading else ""
    if isinstance(error, CellExecutionError):
        first = (error.evalue or "").partition("\n")[0]
        return f"{where}: {error.ename}: {first}"
    if isinstance(error, CellTimeoutError):
        return f"{where}: the cell took longer than allowed at this depth."
    return f"{where}: its kernel died, perhaps for want of memory."


def _heading(cells) -> str:
    """The last markdown heading before a cell."""
    for cell in reversed(cells):
        lines = cell.source.splitlines() if cell.cell_type == "markdown" else []
        headings = [line.lstrip("# ") for line in lines if line.startswith("#")]
        if headings:
            return headings[-1]
    return ""


def _findings(source: Source, runs: Path, facts: dict, started: float) -> dict:
    path = runs / source.lesson / f"{facts['profile']}-{facts['depth']}" / "findings.json"
    if not path.exists() or path.stat().st_mtime < started - 1:
        raise RunError(f"{source.path.name} ran, but save_findings(...) was not called in it.")
    return json.loads(path.read_text(encoding="utf-8"))


def table(lesson: str, findings: dict) -> Table:
    """The comparison table of a lesson for the console."""
    compared = comparison_table(lesson, findings)
    shown = Table(title=f"Lesson {lesson}: {findings['profile']}, {findings['depth']}")
    for name in compared.header:
        shown.add_column(name, justify="left" if name in ("measured", "source") else "right")
    for row in compared.rows:
        shown.add_row(*row)
    shown.caption = f"{findings['seconds']:.0f} s in the notebook. {compared.note}"
    return shown


def _read_json(json_file) -> dict:
    """What the file to merge into holds; a file that is not JSON is never overwritten."""
    if not json_file or not Path(json_file).exists():
        return {}
    try:
        stored = json.loads(Path(json_file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{json_file} is not JSON: name another file, or remove it.") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("lessons", {}), dict):
        raise RunError(f'{json_file} holds no {{"lessons": {{...}}}}: name another file.')
    return stored
