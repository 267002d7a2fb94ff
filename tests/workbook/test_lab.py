"""`lab`: a real JupyterLab server, its kernel, and the copies in work/."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest
import websocket

from workbook import lab, setup


def notebook(source: str) -> str:
    cell = nbformat.v4.new_code_cell(source)
    return nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A copy of the course with one small lesson."""
    root = tmp_path_factory.mktemp("a folder") / "my course"
    for folder in ("workbook", "helpers"):
        left_out = shutil.ignore_patterns("__pycache__", "assets", "world")
        shutil.copytree(setup.ROOT / folder, root / folder, ignore=left_out)
    shutil.copy(setup.ROOT / "pyproject.toml", root)
    (root / "lessons").mkdir()
    (root / "lessons" / lab.FIRST_LESSON).write_text(notebook("1 + 1"), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def server(course):
    """(process, port, what it said) of `workbook lab --no-browser`, answering."""
    port = lab.free_port(None)
    process = subprocess.Popen(
        [sys.executable, "-m", "workbook", "lab", "--no-browser", "--port", str(port)],
        cwd=course,
        env={**os.environ, "PYTHONPATH": "", "JUPYTER_CONFIG_DIR": str(course / "config")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        said = process.stdout.readline()
        wait_until(lambda: status(port, "/api") == 200, seconds=60)
        yield process, port, said
    finally:
        process.kill()
        process.wait()


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


def status(port: int, path: str, host: str = "127.0.0.1") -> int | None:
    try:
        return urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def token_of(said: str) -> str:
    return said.split("token=")[1].split()[0]


def test_one_line_says_where_and_how_to_stop(server):
    _, port, said = server
    assert f"http://127.0.0.1:{port}/lab/tree/work/01_baseline_eval.ipynb?token=" in said
    assert "Ctrl-C" in said and said.count("\n") == 1


def test_token_is_demanded(server):
    _, port, said = server
    assert status(port, "/api/kernels") == 403
    assert status(port, f"/api/kernels?token={token_of(said)}") == 200


def test_only_this_machine_is_served(server):
    _, port, _ = server
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for host in {host for host in others if ":" not in host and not host.startswith("127.")}:
        assert status(port, "/api", host) is None


def test_news_and_updates_are_off(server):
    _, port, said = server
    plugin = "@jupyterlab/apputils-extension:notification"
    address = f"http://127.0.0.1:{port}/lab/api/settings/{plugin}?token={token_of(said)}"
    found = json.load(urllib.request.urlopen(address, timeout=20))["schema"]["properties"]
    assert found["fetchNews"]["default"] == "false"
    assert found["checkForUpdates"]["default"] is False


def test_kernel_is_this_python_and_finds_the_course(server, course):
    _, port, said = server
    code = (
        "import helpers, os, sys, workbook\n"
        "print(sys.executable, os.path.basename(os.getcwd()), workbook.__file__, sep='|')"
    )
    python, folder, module = run_in_kernel(port, token_of(said), code).strip().split("|")
    assert python == sys.executable
    assert folder == "work"
    assert module == str(course / "workbook" / "__init__.py")


def run_in_kernel(port: int, token: str, code: str) -> str:
    """Open a session on the lesson, as the page does, and return what the code prints."""
    session = {
        "path": f"work/{lab.FIRST_LESSON}",
        "name": "",
        "type": "notebook",
        "kernel": {"name": None},
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/sessions?token={token}",
        data=json.dumps(session).encode(),
        headers={"Content-Type": "application/json"},
    )
    kernel = json.load(urllib.request.urlopen(request, timeout=30))["kernel"]["id"]
    address = f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels?token={token}"
    channel = websocket.create_connection(address, timeout=60)
    header = {"msg_id": "1", "msg_type": "execute_request", "session": "s", "username": ""}
    content = {"code": code, "silent": False, "store_history": False, "stop_on_error": True}
    empty = {"parent_header": {}, "metadata": {}, "buffers": [], "channel": "shell"}
    channel.send(json.dumps({"header": header, "content": content, **empty}))
    printed = ""
    while True:
        message = json.loads(channel.recv())
        if message["parent_header"].get("msg_id") != "1":
            continue
        content = message["content"]
        assert message["msg_type"] != "error", content
        printed += content["text"] if message["msg_type"] == "stream" else ""
        if content.get("execution_state") == "idle":
            channel.close()
            return printed


def test_port_in_use_is_one_sentence(server, course):
    _, port, _ = server
    done = subprocess.run(
        [sys.executable, "-m", "workbook", "lab", "--no-browser", "--port", str(port)],
        cwd=course,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == f"Port {port} is in use: choose another with --port.\n"


def test_signal_stops_the_server(server):
    process, port, _ = server  # the last test of this server
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    assert status(port, "/api") is None


def test_copies_come_once_and_stay_the_learners(tmp_path):
    lessons, work = tmp_path / "lessons", tmp_path / "work"
    lessons.mkdir()
    for name in ("01_a.ipynb", "02_b.ipynb"):
        (lessons / name).write_text(notebook("blank"), encoding="utf-8")
    assert [path.name for path in lab.copy_lessons(lessons, work)] == ["01_a.ipynb", "02_b.ipynb"]
    (work / "01_a.ipynb").write_text("what the learner wrote")
    (work / "02_b.ipynb").unlink()
    assert [path.name for path in lab.copy_lessons(lessons, work)] == ["02_b.ipynb"]
    assert (work / "01_a.ipynb").read_text() == "what the learner wrote"
    assert sorted(path.name for path in work.glob("[!.]*")) == ["01_a.ipynb", "02_b.ipynb"]


def test_reset_keeps_the_old_copy_and_leaves_the_other_lessons(tmp_path):
    lessons, work = tmp_path / "lessons", tmp_path / "work"
    lessons.mkdir()
    for name in ("01_a.ipynb", "02_b.ipynb"):
        (lessons / name).write_text(notebook("blank"), encoding="utf-8")
    assert lab.reset_lesson("01", lessons, work) is None  # nothing was there yet
    for name in ("01_a.ipynb", "02_b.ipynb"):
        (work / name).write_text("mine")
    aside = lab.reset_lesson("01", lessons, work)
    assert aside.read_text() == "mine" and aside.name.startswith("01_a.")
    assert (work / "01_a.ipynb").read_text() == (lessons / "01_a.ipynb").read_text()
    assert (work / "02_b.ipynb").read_text() == "mine"
    with pytest.raises(ValueError, match='no lesson "09"; there are: 01, 02'):
        lab.reset_lesson("09", lessons, work)


def test_clone_without_lessons_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="is this a complete clone"):
        lab.copy_lessons(tmp_path, tmp_path / "work")
