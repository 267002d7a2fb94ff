"""Live curves of a training: one picture in the notebook that is drawn again while it runs."""

import time
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
from ipykernel.connect import get_connection_file
from IPython import get_ipython
from IPython.display import Javascript, display

from helpers.plotting import series, training_curves

SHORTEST_PAUSE = 1.0  # seconds between two pictures
SHARE = 0.05  # of the run that drawing may take


class LiveMonitor:
    """A callback for `train_sft` and its like; see `live_monitor`."""

    def __init__(self, *fields: str, draw: Callable = training_curves, stop_button: bool = False):
        self.fields = fields or ("loss",)
        self._figure = draw
        self._button = StopButton() if stop_button else None
        self._handle = None
        self._due = self._drawing = 0.0

    def __call__(self, run, record) -> None:
        """Draw, when it is time to: at most once a second, and always after the last step."""
        now = time.monotonic()
        status = run.summary.get("status", "running")
        is_last = status != "running"
        if get_ipython() is None:
            return
        if self._button:
            self._button.show(status)
        if now < self._due and not is_last:
            return
        self._draw(run)
        took = time.monotonic() - now
        self._due = now + took + max(SHORTEST_PAUSE, took / SHARE)

    def _draw(self, run) -> None:
        name = run.summary.get("method", "run")
        figure = self._figure({name: run.metrics}, self.fields, title=self._title(run))
        plt.close(figure)  # else the cell shows it a second time when it ends
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)

    def _title(self, run) -> str:
        """Where the run is, and what the first curve did."""
        field, last = self.fields[0], run.metrics[-1]
        _, values = series(run.metrics, field)
        total = run.summary.get("total_steps", last["step"])
        where = f"Step {last['step']} of {total}"
        if not values:  # a metric of later steps, or one that was no number
            return where
        return f"{where}: {field.replace('_', ' ')} from {values[0]:.3g} to {values[-1]:.3g}"


class StopButton:
    """A button that ends a run after its current step: it interrupts the kernel.

    While a cell runs, a kernel handles no message of a widget; so the page itself asks the server
    for the interrupt, as the menu's entry does. Where the page is not JupyterLab's (or Notebook's)
    the button does nothing, and the menu's entry remains.
    """

    def __init__(self):
        self.button = widgets.Button(description="Stop after this step", icon="stop")
        self.button.layout.width = "16em"
        self._shown = False

    def show(self, status: str) -> None:
        """Show the button at the first step; at the last one it says how the run ended."""
        if not self._shown:
            self.button.add_class(f"workbook-stop-{kernel_id()}")
            display(self.button)
            display(INTERRUPT)
            self._shown = True
        if status != "running":
            self.button.disabled, self.button.description = True, status.capitalize()[:30]


def kernel_id() -> str:
    """The id under which the server knows this kernel."""
    return Path(get_connection_file()).stem.removeprefix("kernel-")


# A second click would end the cell at once, so the first one takes the button out of use.
INTERRUPT = Javascript("""
window.workbookStops ??= document.addEventListener('click', event => {
    const button = event.target.closest?.('[class*="workbook-stop-"]');
    const page = document.getElementById('jupyter-config-data');
    if (!button || button.disabled || !page) return;
    button.disabled = true;
    const id = button.className.match(/workbook-stop-([\\w-]+)/)[1];
    const {baseUrl, token} = JSON.parse(page.textContent);
    const xsrf = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/);
    const headers = {...(token && {Authorization: `token ${token}`}),
                     ...(xsrf && {'X-XSRFToken': xsrf[1]})};
    fetch(`${baseUrl}api/kernels/${id}/interrupt`, {method: 'POST', headers});
}) ?? true;
""")


def live_monitor(
    *fields: str, draw: Callable = training_curves, stop_button: bool = False
) -> LiveMonitor:
    """Live curves of a run, one panel a field of its metrics; the last picture stays.

    draw: the figure of the runs' metrics and the fields; `helpers.plotting_rl.metric_grid` has
        small panels for many fields.
    stop_button: show a button that ends the run after its current step.

    It draws at most once a second, and less often where drawing would take over 5 % of the time.
    Outside a notebook it draws nothing.

    Example:
        >>> train_sft(model, data, settings, tokenizer=tokenizer,
        ...           callbacks=[live_monitor("loss", "grad_norm")])  # doctest: +SKIP
    """
    return LiveMonitor(*fields, draw=draw, stop_button=stop_button)
