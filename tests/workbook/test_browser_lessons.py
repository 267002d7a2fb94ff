"""The lessons in JupyterLab, in Chromium: untouched, with a mistake, put right, reopened, solved.

A lesson is added by one line in WALKS. Each stage leaves a screenshot in the test's folder.
"""

import ast
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.workbook.browser import (
    code_cells,
    copy_course,
    errors,
    find_cell,
    lab_page,
    restart_kernel,
    run_all,
    run_cell,
    save,
    wait_until_idle,
    write_cell,
)
from workbook import setup
from workbook.build import exercise_of, find_source, read_source
from workbook.hints import lesson_help
from workbook.mistakes import exercise_mistakes

pytestmark = pytest.mark.browser


@dataclass(frozen=True)
class Walk:
    """What a learner does in one lesson: an exercise, and the named mistake made in it first."""

    lesson: str
    exercise: str
    mistake: str


WALKS = [
    Walk("01", "extract_answer", "takes the first statement instead of the last"),
    Walk("02", "bradley_terry_loss", "averages over the pairs"),
    Walk("03", "sft_loss", "averages row means, so tokens of short rows weigh more"),
    Walk("04", "sequence_log_probs", "divides by the number of columns"),
    Walk("05", "kl_estimate", "forgets the half of k2"),
    Walk("06", "self_consistency_vote", "lets samples without a number vote"),
    Walk("07", "negatives", "takes long right answers for wrong ones"),
]


@pytest.fixture
def course(tmp_path):
    return copy_course(tmp_path / "my course")


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.lesson)
def test_a_learner_starts_errs_and_puts_it_right(course, walk):
    """One session: all blank, a mistake, the right answer, a restart, the page opened again."""
    source = read_source(find_source(walk.lesson))
    notebook = course / "work" / f"{source.path.stem}.ipynb"
    exercises = lesson_help(walk.lesson).exercises.values()
    total, core = len(exercises), sum(not one.further for one in exercises)
    with lab_page(course, notebook.name, WORKBOOK_DEPTH="smoke") as page:
        run_all(page)
        blank_lesson_blocks_nobody(notebook, total)
        page.locator(".jp-Notebook .jp-Cell").first.scroll_into_view_if_needed()
        look(page, course, "1-blank")

        exercise = find_cell(page, f"def {walk.exercise}(")
        check = find_cell(page, f"check({walk.exercise})")
        mistake = named_mistake(walk)
        write_cell(exercise, typed_source(mistake.function, walk.exercise))
        run_cell(exercise)
        said = run_cell(check)
        assert "Not yet" in said and walk.mistake in said and mistake.hint in said
        look(page, course, "2-mistake")

        write_cell(exercise, solution_of(source, walk.exercise))
        run_cell(exercise)
        assert "Passed" in run_cell(check)
        look(page, course, "3-right")
        assert f"1 of {core} exercises done" in run_cell(find_cell(page, "progress()"))
        look(page, course, "4-progress")

        save(page)
        restart_kernel(page)
        page.reload()
        wait_until_idle(page)
        run_cell(find_cell(page, "begin("))
        assert f"1 of {core} exercises done" in run_cell(find_cell(page, "progress()"))
        assert "Passed" in run_cell_again(page, walk.exercise)
        save(page)
    assert errors(notebook) == []


def blank_lesson_blocks_nobody(notebook: Path, total: int) -> None:
    """No error anywhere; every check and every cell that needs an exercise says what to do."""
    assert errors(notebook) == []
    cells = code_cells(notebook)
    assert all(cell.execution_count for cell in cells)
    checks = [cell for cell in cells if re.match(r"check\(\w+\)$", cell.source)]
    assert len(checks) == total
    assert all("Not attempted" in shown(cell) for cell in checks)
    waiting = [cell for cell in cells if re.search(r"^if ready\(", cell.source, re.MULTILINE)]
    assert len(waiting) >= total
    line = r'This cell needs (\w+) \(exercise \d\).*: write .+ \1 = use_reference\("\1"\)'
    for cell in waiting:
        assert re.fullmatch(line, shown(cell)), cell.source
    printed = [out for cell in cells for out in cell.outputs if out.get("name") == "stderr"]
    assert printed == []


def shown(cell) -> str:
    """The text of a cell's outputs in a saved notebook."""
    texts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.outputs]
    return "".join(texts).strip()


def run_cell_again(page, exercise: str) -> str:
    """Run an exercise's cell as the page holds it, then its check."""
    run_cell(find_cell(page, f"def {exercise}("))
    return run_cell(find_cell(page, f"check({exercise})"))


def look(page, course: Path, stage: str) -> None:
    """Keep a screenshot, for a person to look at."""
    page.screenshot(path=course.parent / f"{stage}.png")


def named_mistake(walk: Walk):
    """The mistake of that name, from the lesson's mistakes file."""
    found = exercise_mistakes(walk.lesson, walk.exercise).mistakes
    return next(one for one in found if one.name == walk.mistake)


def typed_source(function, name: str) -> str:
    """What to type to get this function under `name`: all that it uses of its file, then itself.

    A switch of the mistakes file (a partial) becomes the default of its keyword.
    """
    switched, function = getattr(function, "keywords", {}), getattr(function, "func", function)
    body = ast.parse(Path(function.__code__.co_filename).read_text(encoding="utf-8")).body
    (target,) = [node for node in body if getattr(node, "name", "") == function.__name__]
    target.decorator_list, target.name = [], name
    for place, argument in enumerate(target.args.kwonlyargs):
        if argument.arg in switched:
            target.args.kw_defaults[place] = ast.Constant(switched[argument.arg])
    wanted, typed = names_in(target), [target]
    for node in reversed(body[: body.index(target)]):
        if wanted & bound_by(node):
            typed.insert(0, node)
            wanted |= names_in(node)
    return "\n".join(ast.unparse(node) for node in typed)


def names_in(node) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def bound_by(node) -> set[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.Assign):
        return {name for target in node.targets for name in names_in(target)}
    return {getattr(node, "name", "")}


def solution_of(source, exercise: str) -> str:
    """The solution's cell, without nbgrader's marks."""
    (cell,) = [cell for cell in source.notebook.cells if exercise_of(cell) == exercise]
    return "\n".join(line for line in cell.source.split("\n") if "SOLUTION" not in line)


@pytest.mark.parametrize("lesson", [walk.lesson for walk in WALKS])
def test_solved_lesson_draws_its_figures_and_widgets(course, lesson):
    """The executed solution as a learner's finished notebook; widgets obey the keyboard."""
    name = f"{find_source(lesson).stem}.ipynb"
    (course / "work").mkdir()
    shutil.copy(setup.ROOT / "solutions" / name, course / "work")
    with lab_page(course, name, WORKBOOK_DEPTH="smoke") as page:
        run_all(page)
        assert page.locator(".jp-OutputArea-output img").count() > 0
        assert page.get_by_text("Error displaying widget").count() == 0
        figures = page.locator(".jp-OutputArea-output img, .jupyter-widgets.widget-vbox")
        for number, figure in enumerate(figures.all()):
            figure.scroll_into_view_if_needed()
            look(page, course, f"figure-{number}")
        if find_cell(page, "failure_browser(rows)").count():
            failure_browser_obeys_the_keyboard(page)
            look(page, course, "keyboard")
    cells = code_cells(course / "work" / name)
    assert errors(course / "work" / name) == []
    assert all(cell.execution_count for cell in cells)


def failure_browser_obeys_the_keyboard(page) -> None:
    """Arrow keys choose a category and step the slider; Tab moves on; Enter presses a button.

    The cell is selected first: then JupyterLab would take these keys for its own commands.
    """
    cell = find_cell(page, "failure_browser(rows)")
    cell.locator(".jp-InputPrompt").click()
    choice, place = cell.locator("select"), cell.locator(".widget-readout")
    choice.focus()
    everything = choice.input_value()
    page.keyboard.press("ArrowDown")
    expect(choice).not_to_have_value(everything)
    page.keyboard.press("ArrowUp")
    expect(choice).to_have_value(everything)
    page.wait_for_timeout(1000)
    wait_until_idle(page)  # a new category goes back to sample 1, by way of the kernel
    page.keyboard.press("Tab")  # to the slider
    page.keyboard.press("ArrowRight")
    expect(place).to_have_text("2")
    before, after = (cell.get_by_role("button", name=name) for name in ("Previous", "Next"))
    expect(before).to_be_enabled()  # the kernel does that; until then Tab would pass over it
    tab_to(page, after)
    page.keyboard.press("Enter")
    expect(place).to_have_text("3")
    tab_to(page, before, "Shift+Tab")
    page.keyboard.press("Enter")
    expect(place).to_have_text("2")


def tab_to(page, element, key: str = "Tab") -> None:
    """Press Tab until the element has the focus, five times at most."""
    for _ in range(5):
        page.keyboard.press(key)
        if element.evaluate("element => element === document.activeElement"):
            return
    pytest.fail(f"{key} does not reach {element}")
