"""Live curves of a training: one picture in the notebook that is drawn again while it runs."""

import time

import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.display import display

from helpers.plotting import training_curves

SHORTEST_PAUSE = 1.0  # seconds between two pictures
SHARE = 0.05  # of the run that drawing may take


class LiveMonitor:
    """A callback for `train_sft` and its like; see `live_monitor`."""

    def __init__(self, *fields: str):
        self.fields = fields or ("loss",)
        self._handle = None
        self._due = self._drawing = 0.0

    def __call__(self, run, record) -> None:
        """Draw, when it is time to: at most once a second, and always after the last step."""
        now = time.monotonic()
        is_last = run.summary.get("status", "running") != "running"
        if get_ipython() is None or (now < self._due and not is_last):
            return
        self._draw(run)
        took = time.monotonic() - now
        self._due = now + took + max(SHORTEST_PAUSE, took / SHARE)

    def _draw(self, run) -> None:
        name = run.summary.get("method", "run")
        figure = training_curves({name: run.metrics}, self.fields, title=self._title(run))
        plt.close(figure)  # else the cell shows it a second time when it ends
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)

    def _title(self, run) -> str:
        """Where the run is, and what the first curve did."""
        field, last = self.fields[0], run.metrics[-1]
        values = [record[field] for record in run.metrics if record.get(field) is not None]
        moved = f": {field.replace('_', ' ')} from {values[0]:.3g} to {values[-1]:.3g}"
        total = run.summary.get("total_steps", last["step"])
        return f"Step {last['step']} of {total}{moved if values else ''}"


def live_monitor(*fields: str) -> LiveMonitor:
    """Live curves of a run, one panel a field of its metrics; the last picture stays.

    It draws at most once a second, and less often where drawing would take over 5 % of the time.
    Outside a notebook it draws nothing.

    Example:
        >>> train_sft(model, data, settings, tokenizer=tokenizer,
        ...           callbacks=[live_monitor("loss", "grad_norm")])  # doctest: +SKIP
    """
    return LiveMonitor(*fields)
