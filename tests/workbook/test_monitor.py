"""workbook.monitor: in a real kernel, one picture that is drawn again and stays."""

import base64

import nbformat
import pytest
from nbclient import NotebookClient

CELL = """
import time
from types import SimpleNamespace
from workbook.monitor import live_monitor, SHARE
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


def test_outside_a_notebook_it_draws_nothing(capsys):
    from workbook.lesson import live_monitor

    show = live_monitor()
    run = type("Run", (), {"metrics": [{"step": 1, "loss": 1.0}], "summary": {}})
    show(run, run.metrics[0])
    assert capsys.readouterr().out == "" and show._handle is None
