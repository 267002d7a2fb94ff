"""The demo as a panel in a notebook, with a static table of one question under it."""

import html
import threading

import ipywidgets as widgets
from IPython.display import HTML, display

from workbook.demo import EXAMPLES, KINDS, MOST_CHARACTERS, Demo, Reply, load_demo
from workbook.profiles import active_profile
from workbook.widgets import show_widget


class DemoPanel:
    """A question, buttons, and a column for each model; answers are written by a thread."""

    def __init__(self, demo: Demo, kind: str = "maths", question: str | None = None):
        self.demo, self.stopping, self.thread = demo, threading.Event(), None
        self.question = widgets.Textarea(question or EXAMPLES[kind], rows=3, description="Question")
        self.question.layout.width = "46em"
        self.kind = widgets.Dropdown(options=list(KINDS), value=kind, description="Kind")
        self.temperature = widgets.FloatSlider(
            0.0, min=0.0, max=1.5, step=0.1, description="Temperature"
        )
        self.temperature.style.description_width = "6em"
        self.ask = widgets.Button(description="Ask", button_style="primary")
        self.stop = widgets.Button(description="Stop", disabled=True)
        self.says = widgets.HTML()
        self.cells = [widgets.HTML() for _ in demo.models]
        for cell in self.cells:
            cell.layout.width = f"{96 / len(self.cells):.0f}%"
        self.ask.on_click(lambda _: self.start())
        self.stop.on_click(lambda _: self.stopping.set())
        self.kind.observe(self._example, names="value")
        controls = widgets.HBox([self.kind, self.temperature, self.ask, self.stop])
        controls.layout.flex_flow = "row wrap"
        self.box = widgets.VBox([self.question, controls, self.says, widgets.HBox(self.cells)])
        self.draw([Reply(name) for name in demo.models])

    def _example(self, _change) -> None:
        if self.question.value in EXAMPLES.values():
            self.question.value = EXAMPLES[self.kind.value]

    def start(self) -> None:
        """Answer in a thread, so that Stop is heard; a second click while it writes is not."""
        if self.thread and self.thread.is_alive():
            return
        self.stopping.clear()
        self.ask.disabled, self.stop.disabled, self.says.value = True, False, ""
        self.thread = threading.Thread(target=self._answer, daemon=True)
        self.thread.start()

    def _answer(self) -> None:
        try:
            text = self.question.value[: 2 * MOST_CHARACTERS]
            options = {"temperature": self.temperature.value}
            for replies in self.demo.replies(text, self.kind.value, **options):
                self.draw(replies)
                if self.stopping.is_set():
                    break
        except ValueError as error:
            self.says.value = html.escape(str(error))
        finally:
            self.ask.disabled, self.stop.disabled = False, True

    def draw(self, replies: list[Reply]) -> None:
        for cell, reply in zip(self.cells, replies, strict=True):
            cell.value = reply_html(reply)


def reply_html(reply: Reply) -> str:
    """A column: name, text, graded answer and score; what models write is never markup."""
    text, facts = html.escape(reply.text.strip() or " "), html.escape(reply.facts)
    return (
        "<div style='padding:.2em 1em .2em 0;color:#1c1f24'>"
        f"<b>{html.escape(reply.name)}</b>"
        "<div style='white-space:pre-wrap;overflow-wrap:anywhere;min-height:6em;line-height:1.45;"
        f"background:#f7f8fa;border-left:4px solid #c9ced6;padding:.4em .7em'>{text}</div>"
        f"<div>{facts}</div></div>"
    )


def demo_panel(
    adapters=(),
    model: str | None = None,
    *,
    kind: str = "maths",
    question: str | None = None,
    templates=None,
) -> None:
    """Show the panel, and under it one question answered greedily, which stays on the web.

    adapters: folders; your own where none is given, else the shipped one. kind: "qa" takes your
    own of lesson 07. question: the first one, if it is not too long, in place of the example.
    templates: by kind, where the models were trained on others than the course's.
    """
    profile = active_profile()
    demo = load_demo(adapters, model, profile, kind=kind, templates=templates)
    if not question or len(question) > MOST_CHARACTERS:
        question = EXAMPLES[kind]
    show_widget(DemoPanel(demo, kind, question).box)
    longest = min(96, profile.sampling.max_new_tokens)
    *_, replies = demo.replies(question, kind, max_new_tokens=longest)
    cells = "".join(
        f"<td style='vertical-align:top;text-align:left'>{reply_html(r)}</td>" for r in replies
    )
    asked = html.escape(question).replace("\n", "<br>")
    display(HTML(f"<table><caption>{asked}</caption><tr>{cells}</tr></table>"))
