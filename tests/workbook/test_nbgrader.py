"""nbgrader, in an environment of its own, makes the same lesson from our source as our build."""

import os
import subprocess

import nbformat
import pytest

from workbook import setup
from workbook.build import (
    find_source,
    lesson_notebook,
    read_source,
    sources,
    write_for_nbgrader,
)
from workbook.environments import extra_environment
from workbook.hints import lesson_help

pytestmark = pytest.mark.interop
NBGRADER = [
    "nbgrader==0.9.6",
    "alembic==1.20.1",
    "jupyterlab==4.6.6",
    "nbclient==0.11.0",
    "nbconvert==7.17.2",
    "nbformat==5.11.1",
    "notebook==7.6.5",
    "sqlalchemy==2.1.9",
    "traitlets==5.16.1",
]


@pytest.fixture(scope="module")
def nbgrader():
    """The Python that holds nbgrader. It is no package of the course: it adds menus to Lab."""
    try:
        return extra_environment("nbgrader", NBGRADER)
    except setup.SetupError as error:
        if str(error).startswith("No network"):
            pytest.skip(f"nbgrader cannot be installed here. {error}")
        raise


def generate_assignment(python: str, course, name: str) -> nbformat.NotebookNode:
    """Run nbgrader with its defaults; the student's notebook."""
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    own = {key: str(course / "jupyter" / place) for key, place in places.items()}
    own["PATH"] = os.pathsep.join([os.path.dirname(python), os.environ["PATH"]])  # it calls alembic
    command = [python, "-m", "nbgrader", "generate_assignment", name, "--create"]
    done = subprocess.run(
        [*command, f"--course-dir={course}"],
        cwd=course,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return nbformat.read(course / "release" / name / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("lesson", [path.stem[:2] for path in sources()])
def test_student_cells_are_those_of_our_build(nbgrader, tmp_path, lesson):
    """Same cells in the same order, with the same metadata for what is graded."""
    (source,) = write_for_nbgrader(tmp_path, [lesson])
    ours = lesson_notebook(read_source(find_source(lesson))).cells
    theirs = generate_assignment(nbgrader, tmp_path, source.stem).cells
    assert [(cell.cell_type, cell.source) for cell in theirs] == [
        (cell.cell_type, cell.source) for cell in ours
    ]
    assert [cell.id for cell in theirs] == [cell.id for cell in ours]
    graded = {cell.id: cell.metadata["nbgrader"] for cell in ours if "nbgrader" in cell.metadata}
    assert set(graded) == set(lesson_help(lesson).exercises)
    for cell in theirs:
        kept = graded.get(cell.id, {})
        assert {key: cell.metadata.get("nbgrader", {}).get(key) for key in kept} == kept
