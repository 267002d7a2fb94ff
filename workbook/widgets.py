"""Widgets of the lessons. Each draws a static table under itself, for the web and for export."""

import html
from collections import Counter
from collections.abc import Sequence

import ipywidgets as widgets
from IPython.display import HTML, Javascript, display

ALL = "all samples"
SHOWN = (  # label, key of a record of results.jsonl
    ("prompt", "prompt"),
    ("the model wrote", "generation"),
    ("graded part", "response_for_grader"),
    ("gold answer", "gold_answer"),
    ("category", "failure_category"),
)
# JupyterLab takes arrow keys, Enter and letters for its own commands while a cell is selected,
# even from a widget that has the focus; an element with this attribute keeps its keys.
KEEP_KEYS = Javascript("""
window.workbookKeepsKeys ??= document.addEventListener('focusin', event => {
    if (event.target.closest?.('.jupyter-widgets'))
        event.target.setAttribute('data-lm-suppress-shortcuts', 'true');
}) ?? true;
""")


class FailureBrowser:
    """Look through evaluated samples by category.

    rows: the records of results.jsonl (`helpers.evaluation.grade_completions`).
    The buttons and the slider take the Tab, arrow and space keys.
    """

    def __init__(self, rows: Sequence[dict]):
        if not rows:
            raise ValueError("failure_browser got no rows: run the evaluation first.")
        self.rows = list(rows)
        counts = Counter(row["failure_category"] for row in self.rows)
        options = [(f"{ALL} ({len(self.rows)})", ALL)]
        options += [(f"{name} ({count})", name) for name, count in counts.most_common()]
        self.category = widgets.Dropdown(options=options, value=ALL, description="Category")
        self.place = widgets.IntSlider(1, 1, len(self.rows), description="Sample")
        self.previous = widgets.Button(description="Previous", icon="arrow-left")
        self.next = widgets.Button(description="Next", icon="arrow-right")
        for control, width in ((self.category, "20em"), (self.place, "19em")):
            control.layout.width, control.style.description_width = width, "5em"
        self.previous.layout.width = self.next.layout.width = "7em"
        self.sample = widgets.HTML()
        self.category.observe(self._choose, names="value")
        self.place.observe(self._draw, names="value")
        self.previous.on_click(lambda _: self._step(-1))
        self.next.on_click(lambda _: self._step(1))
        controls = widgets.HBox([self.category, self.place, self.previous, self.next])
        controls.layout.flex_flow = "row wrap"
        self.box = widgets.VBox([controls, self.sample])
        self._draw()

    def _chosen(self) -> list[dict]:
        category = self.category.value
        return [row for row in self.rows if category in (ALL, row["failure_category"])]

    def _choose(self, _change) -> None:
        self.place.value = 1
        self.place.max = len(self._chosen())
        self._draw()

    def _step(self, by: int) -> None:
        self.place.value = min(max(self.place.value + by, 1), self.place.max)

    def _draw(self, _change=None) -> None:
        self.sample.value = sample_html(self._chosen()[self.place.value - 1])
        self.previous.disabled = self.place.value == 1
        self.next.disabled = self.place.value == self.place.max


def show_widget(widget: widgets.Widget) -> None:
    """Show a widget that obeys the keyboard once it has the focus."""
    display(widget)
    display(KEEP_KEYS)


def failure_browser(rows: Sequence[dict], *, static: int = 1) -> None:
    """Show a FailureBrowser, and under it `static` samples of each category as a table."""
    show_widget(FailureBrowser(rows).box)
    display(HTML(static_table(rows, each=static)))


def sample_html(row: dict) -> str:
    """One sample: prompt, generation, graded part, gold, category, length, reward parts."""
    cells = [(label, _text(row[key])) for label, key in SHOWN]
    length = f"{row['token_count']} tokens, ended by {row['finish_reason']}"
    parts = [f"{name.replace('_', ' ')} {value:g}" for name, value in row["metrics"].items()]
    lenient = "right" if row["lenient"] else "wrong"
    rewards = f"{', '.join(parts)}; lenient: {lenient}"
    cells += [("length", html.escape(length)), ("rewards", html.escape(rewards))]
    body = "".join(
        f"<tr><th scope='row' style='{_CELL};white-space:nowrap;font-weight:normal;color:#5b6270'>"
        f"{label}</th><td style='{_CELL}'>{text}</td></tr>"
        for label, text in cells
    )
    card = "max-width:60em;line-height:1.45;background:#f7f8fa;border-left:5px solid #c9ced6"
    return f"<table style='{card};color:#1c1f24;margin:.3em 0'>{body}</table>"


def static_table(rows: Sequence[dict], each: int = 1) -> str:
    """The first samples of each category, as a table that needs no widget."""
    counts = Counter(row["failure_category"] for row in rows)
    body = ""
    for category, count in counts.most_common():
        for row in [row for row in rows if row["failure_category"] == category][:each]:
            cells = [f"{html.escape(category)}<br>{count} of {len(rows)}"]
            cells += [_text(row["prompt"], 300), _text(row["generation"], 400)]
            cells += [_text(row["gold_answer"])]
            body += "<tr>" + "".join(f"<td style='{_CELL}'>{cell}</td>" for cell in cells) + "</tr>"
    head = "".join(
        f"<th style='text-align:left'>{name}</th>"
        for name in ("category", "prompt", "the model wrote", "gold answer")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_CELL = "text-align:left;vertical-align:top;padding:.2em 1em .2em .6em"


def _text(value, longest: int = 4000) -> str:
    """A value as safe HTML that keeps its line breaks; the start and the end of a long one."""
    text = " | ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = "–" if value is None else text
    if len(text) > longest:
        half = longest // 2
        text = f"{text[:half]} … {text[-half:]}"
    return f"<span style='white-space:pre-wrap'>{html.escape(text)}</span>"
