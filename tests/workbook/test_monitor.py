"""workbook.monitor: in a real kernel, one picture that is drawn again and stays."""

import base64
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

from workbook import monitor

CELL = """
import time
from types import SimpleNamespace
from workbook.monitor import live_monitor
import workbook.monitor as monitor

drawn = []
real = monitor.LiveMonitor._draw
monitor.LiveMonitor._draw = lambda self, run: (drawn.append(len(run.metrics)), real(self, run))

run = SimpleNamespace(metrics=[], summary={"method": "sft", "status": "running", "total_steps": 60})
show = live_monitor("loss", "grad_norm")
start = time.monotonic()
for step in range(1, 61):
    time.sleep(0.05)
    run.summary["status"] = "running" if step < 60 else "interrupted"
    loss = None if step == 5 else 3 / step
    run.metrics.append({"step": step, "loss": loss, "grad_norm": 1.0})
    show(run, run.metrics[-1])
took = time.monotonic() - start
"""


@pytest.fixture(scope="module")
def outputs():
    cells = [nbformat.v4.new_code_cell(text) for text in (CELL, "print(drawn, took)")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120).execute()
    return [cell.outputs for cell in notebook.cells]


def test_one_picture_is_left_and_it_is_the_last(outputs):
    (picture,) = [output for output in outputs[0] if "data" in output]
    png = base64.b64decode(picture["data"]["image/png"])
    assert png.startswith(b"\x89PNG") and len(png) > 5000
    assert not [output for output in outputs[0] if output.output_type == "error"]


def test_it_draws_at_the_first_and_last_step_and_at_most_once_a_second(outputs):
    drawn, took = outputs[1][0]["text"].rsplit("]", 1)
    drawn = [int(step) for step in drawn.strip("[").split(",")]
    assert drawn[0] == 1 and drawn[-1] == 60
    assert 2 <= len(drawn) <= float(took) + 2


@pytest.mark.parametrize("seconds", [0.02, 2.0, 30.0])
def test_drawing_takes_at_most_its_share_of_a_long_run(monkeypatch, seconds):
    """By a clock that only steps of 0.1 s and pictures move: 10,000 steps, and the last picture."""
    now, drawn = [0.0], []

    def draw(*_):
        drawn.append(now[0])
        now[0] += seconds

    monkeypatch.setattr(monitor, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(monitor, "get_ipython", lambda: True)
    monkeypatch.setattr(monitor.LiveMonitor, "_draw", draw)
    show, run = monitor.live_monitor("loss"), SimpleNamespace(summary={"status": "running"})
    for _ in range(10_000):
        now[0] += 0.1
        show(run, {})
    first, *later = drawn
    assert later and seconds * len(later) <= 0.05 * (now[0] - first)
    pauses = [after - before - seconds for before, after in zip(drawn, later, strict=False)]
    assert max(pauses) < max(1.0, seconds / 0.05) + 0.2
    run.summary["status"] = "finished"
    show(run, {})
    assert len(drawn) == len(later) + 2


def test_outside_a_notebook_it_draws_nothing(capsys):
    from workbook.lesson import live_monitor

    show = live_monitor()
    run = type("Run", (), {"metrics": [{"step": 1, "loss": 1.0}], "summary": {}})
    show(run, run.metrics[0])
    assert capsys.readouterr().out == "" and show._handle is None
