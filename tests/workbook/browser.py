"""A course copy served by `workbook lab`, opened in headless Chromium.

with lab_page(tmp_path, "01_baseline_eval.ipynb") as page:
    run_all(page)
assert errors(tmp_path / "work" / "01_baseline_eval.ipynb") == []
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import Page, expect, sync_playwright

from workbook import lab, setup

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
# In the default mode cells off the screen are not in the page: a wait for all would never end.
ALL_CELLS = {"windowingMode": "none"}
COURSE = ("workbook", "helpers", "lessons", "solutions", "tests/lessons", "pyproject.toml")


def chromium() -> str:
    """The distribution's Chromium.

    Raises: FileNotFoundError; the browser tests are asked for by name, so nothing is skipped.
    """
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        raise FileNotFoundError("No Chromium: install the package chromium (see .ci/run).")
    return found


def copy_course(root: Path) -> Path:
    """What a learner's clone holds, so that a test leaves work/ and runs/ of this one alone."""
    for name in COURSE:
        source = setup.ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, root / name)
    return root


@contextmanager
def lab_page(folder: Path, notebook: str, **environ: str) -> Iterator[Page]:
    """Serve the course copy in `folder` and open work/<notebook>; both end with the block."""
    settings = folder / "jupyter" / "user-settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps(ALL_CELLS))
    own = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "user-settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    own = {name: str(folder / "jupyter" / place) for name, place in own.items()}
    port = lab.free_port(None)
    server = subprocess.Popen(
        [sys.executable, "-m", "workbook", "lab", "--no-browser", "--port", str(port)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **own, **environ},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        page_address = server.stdout.readline().split(" at ")[1].split()[0]
        wait_for(f"http://{lab.ADDRESS}:{port}/api")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 1600})
            page.goto(page_address.replace(lab.FIRST_LESSON, notebook))
            # Before the kernel is idle the page shows an empty notebook, which runs at once.
            idle = page.locator(".jp-StatusBar-TextItem", has_text="| Idle")
            expect(idle).to_be_visible(timeout=90_000)
            yield page
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


def wait_for(address: str, seconds: float = 60) -> None:
    """Return when a web server answers there."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except urllib.error.URLError:
            assert time.monotonic() < end, f"{address} does not answer"
            time.sleep(0.2)


def run_all(page: Page, seconds: float = 300) -> None:
    """Choose Run > Run All Cells, as a person does; wait for the end or an error; save."""
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
    page.wait_for_function(
        """() => {
            const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')]
                .map(cell => cell.querySelector('.jp-InputPrompt').innerText);
            const some = pattern => prompts.some(text => pattern.test(text));
            return some(/\\d/) && !some(/\\*/);
        }""",
        timeout=seconds * 1000,
        polling=500,
    )
    page.keyboard.press("Control+s")
    expect(page.locator(".lm-TabBar-tab.jp-mod-dirty")).to_have_count(0, timeout=30_000)


def code_cells(notebook: Path) -> list:
    """The code cells of a saved notebook that hold code."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


def errors(notebook: Path) -> list[str]:
    """Every error that a saved notebook shows: `ValueError: ...`."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [f"{out.ename}: {out.evalue}" for out in outputs if out.output_type == "error"]
