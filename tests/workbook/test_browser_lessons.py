"""Lesson 01 in JupyterLab, in Chromium: what a learner sees at first, and with all solved."""

import shutil

import pytest

from tests.workbook.browser import code_cells, copy_course, errors, lab_page, run_all
from workbook import setup
from workbook.lab import FIRST_LESSON

pytestmark = pytest.mark.browser


@pytest.fixture
def course(tmp_path):
    return copy_course(tmp_path / "my course")


def test_blank_lesson_runs_through(course):
    """Nobody is blocked: with every exercise still blank no cell ends in an error."""
    with lab_page(course, FIRST_LESSON, WORKBOOK_DEPTH="smoke") as page:
        run_all(page)
        assert page.locator(".jp-OutputArea-output").count() > 0
    cells = code_cells(course / "work" / FIRST_LESSON)
    assert errors(course / "work" / FIRST_LESSON) == []
    assert all(cell.execution_count for cell in cells)


def test_solved_lesson_draws_its_figures_and_widgets(course):
    """The executed solution as a learner's finished notebook."""
    (course / "work").mkdir()
    shutil.copy(setup.ROOT / "solutions" / FIRST_LESSON, course / "work")
    with lab_page(course, FIRST_LESSON, WORKBOOK_DEPTH="smoke") as page:
        run_all(page)
        assert page.locator(".jp-OutputArea-output img").count() > 0
        assert page.locator(".jupyter-widgets").count() > 0
        assert page.get_by_text("Error displaying widget").count() == 0
    cells = code_cells(course / "work" / FIRST_LESSON)
    assert errors(course / "work" / FIRST_LESSON) == []
    assert all(cell.execution_count for cell in cells)
