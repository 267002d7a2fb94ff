"""A course copy served by `workbook lab`, opened in headless Chromium.

with lab_page(tmp_path, "01_baseline_eval.ipynb") as page:
    run_all(page)
    write_cell(find_cell(page, "def extract_answer("), "def extract_answer(text): ...")
    said = run_cell(find_cell(page, "check(extract_answer)"))
assert errors(tmp_path / "work" / "01_baseline_eval.ipynb") == []

Nothing may leave the machine: the block ends with an error where the page asked another host, or
where the server or a kernel tried to reach one.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from playwright.sync_api import Locator, Page, expect, sync_playwright

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
COURSE = (
    "workbook",
    "helpers",
    "lessons",
    "solutions",
    "tests/lessons",
    "tests/mistakes",
    "pyproject.toml",
)


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
    with outside_world() as proxy:
        server = subprocess.Popen(
            [sys.executable, "-m", "workbook", "lab", "--no-browser", "--port", str(port)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": "", **own, **proxy, **environ},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            page_address = server.stdout.readline().split(" at ")[1].split()[0]
            wait_for(f"http://{lab.ADDRESS}:{port}/api")
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
                page = browser.new_page(viewport={"width": 1280, "height": 1600})
                hosts = hosts_asked_by(page)
                page.goto(page_address.replace(lab.FIRST_LESSON, notebook))
                wait_until_idle(page)
                yield page
                browser.close()
            assert hosts == {lab.ADDRESS}, f"the page asked {hosts}"
        finally:
            server.terminate()
            server.wait(20)


@contextmanager
def outside_world() -> Iterator[dict[str, str]]:
    """The settings of a proxy that nobody may call: where one does, the block ends in an error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = {
            "HTTP_PROXY": address,
            "HTTPS_PROXY": address,
            "NO_PROXY": "127.0.0.1,localhost",
        }
        yield settings | {name.lower(): value for name, value in settings.items()}
        listener.setblocking(False)
        try:
            asked = listener.accept()[0].recv(200)
        except BlockingIOError:
            return
        raise AssertionError(f"the server or a kernel asked for {asked}")


def hosts_asked_by(page: Page) -> set[str]:
    """The hosts of every request and web socket of a page; the set grows with it."""
    hosts = set()

    def note(request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob"):
            hosts.add(address.hostname)

    page.on("request", note)
    page.on("websocket", note)
    return hosts


def wait_until_idle(page: Page) -> None:
    """Return when the kernel is there: before, the page shows an empty notebook, which runs."""
    idle = page.locator(".jp-StatusBar-TextItem", has_text="| Idle")
    expect(idle).to_be_visible(timeout=90_000)


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
    choose(page, "Run", "Run All Cells")
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
    save(page)


def save(page: Page) -> None:
    """Save the notebook and wait until it is on the disk."""
    page.keyboard.press("Control+s")
    expect(page.locator(".lm-TabBar-tab.jp-mod-dirty")).to_have_count(0, timeout=30_000)


def choose(page: Page, menu: str, entry: str) -> None:
    """Choose an entry of the menu bar, as a person does."""
    page.locator(".lm-MenuBar-itemLabel", has_text=menu).first.click()
    page.locator(".lm-Menu-itemLabel", has_text=entry).first.click()


def restart_kernel(page: Page) -> None:
    """Choose Kernel > Restart Kernel and confirm it."""
    choose(page, "Kernel", "Restart Kernel…")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    expect(page.locator(".jp-Dialog")).to_have_count(0)
    wait_until_idle(page)


def find_cell(page: Page, text: str) -> Locator:
    """The first code cell that holds a text."""
    editor = page.locator(".cm-content", has_text=text)
    return page.locator(".jp-Notebook .jp-CodeCell").filter(has=editor).first


def write_cell(cell: Locator, source: str) -> None:
    """Put a source in place of what a cell holds."""
    cell.locator(".cm-content").click()
    cell.page.keyboard.press("Control+a")
    cell.page.keyboard.insert_text(source)  # typed key by key, the editor would indent again


def run_cell(cell: Locator, seconds: float = 60) -> str:
    """Run one cell by the keyboard; the text that it shows."""
    prompt = cell.locator(".jp-InputPrompt")
    prompt.click()
    before = prompt.inner_text()
    cell.page.keyboard.press("Control+Enter")
    expect(prompt).not_to_have_text(before)
    expect(prompt).to_have_text(re.compile(r"\[\d+\]"), timeout=seconds * 1000)
    cell.page.wait_for_timeout(300)  # the last output may come a moment after the number
    return "\n".join(cell.locator(".jp-OutputArea-output").all_inner_texts())


def code_cells(notebook: Path) -> list:
    """The code cells of a saved notebook that hold code."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


def errors(notebook: Path) -> list[str]:
    """Every error that a saved notebook shows: `ValueError: ...`."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [f"{out.ename}: {out.evalue}" for out in outputs if out.output_type == "error"]
