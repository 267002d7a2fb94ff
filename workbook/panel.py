"""What a learner sees under a cell: a short panel, as HTML in a notebook and as text elsewhere."""

import html
from dataclasses import dataclass, field

# Dark text on a pale ground, a bar on the left; the word says the outcome, not the colour alone.
_STYLES = {
    "passed": ("#1a7f5a", "#e9f6f0", "Passed"),
    "failed": ("#b3541e", "#fdf1e7", "Not yet"),
    "raised": ("#a1343c", "#fbecec", "Raised an error"),
    "not attempted": ("#5b6270", "#f1f2f4", "Not attempted"),
    "right": ("#1a7f5a", "#e9f6f0", "Right"),
    "note": ("#2b6cb0", "#ebf3fb", ""),
}


@dataclass
class Panel:
    """An outcome, a headline, and rows of (label, text); `code` rows are set in a fixed width."""

    kind: str
    headline: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    code: tuple[str, ...] = ("call", "expected", "got", "line", "printed", "go on")

    def __repr__(self) -> str:
        word = _STYLES[self.kind][2]
        first = f"{word}: {self.headline}" if word else self.headline
        width = max((len(label) for label, _ in self.rows), default=0)
        return "\n".join([first, *(f"  {label:<{width}}  {text}" for label, text in self.rows)])

    def _repr_html_(self) -> str:
        bar, ground, word = _STYLES[self.kind]
        title = f"<b style='color:{bar}'>{word}</b> &nbsp;" if word else ""
        rows = "".join(self._html_row(label, text) for label, text in self.rows)
        look = "margin:.4em 0 0 0;border:0;font-size:inherit;color:#1c1f24"
        table = f"<table style='{look}'>{rows}</table>"
        return (
            f"<div role='status' style='border-left:5px solid {bar};background:{ground};"
            "color:#1c1f24;padding:.6em .9em;max-width:60em'>"
            f"{title}{html.escape(self.headline)}{table if rows else ''}</div>"
        )

    def _html_row(self, label: str, text: str) -> str:
        shown = html.escape(text)
        if label in self.code:
            shown = f"<code style='white-space:pre-wrap;color:#1c1f24'>{shown}</code>"
        style = "border:0;padding:.1em .8em .1em 0;text-align:left;vertical-align:top"
        return (
            f"<tr style='background:transparent'><td style='{style};color:#5b6270'>"
            f"{html.escape(label)}</td><td style='{style}'>{shown}</td></tr>"
        )


def count(number: int, thing: str) -> str:
    """`count(1, "question")` is "1 question"; 2 gives "2 questions"."""
    many = thing[:-1] + "ies" if thing.endswith("y") else thing + "s"
    return f"{number} {thing if number == 1 else many}"


def note(headline: str, *rows: tuple[str, str]) -> Panel:
    """A panel that states something and judges nothing."""
    return Panel("note", headline, list(rows))
