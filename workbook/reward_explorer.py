"""A widget to ask a reward model why: score a response, edit it, see what moves the score."""

import html
import re
from collections.abc import Callable, Sequence

import ipywidgets as widgets
from IPython.display import display

from helpers.plotting import is_number, score_changes
from helpers.rewards import extract_answer, last_number
from workbook.widgets import show_widget

COURTESY = " I hope this helps."
MOST_PARTS = 8

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
Gold = Callable[[str, object], float]


def parts_of(response: str) -> list[str]:
    """The response cut into its sentences and tags; joined they are the response again.

    >>> parts_of(" 4*6=24. So it is 24. </think> <answer>24</answer>")
    [' 4*6=24.', ' So it is 24.', ' </think>', ' <answer>24</answer>']
    """
    return [part for part in re.split(r"(?<=[.!?])(?=\s)|(?=\s</think>)|(?<=</think>)", response)
            if part]


def edits(response: str) -> dict[str, str]:
    """Versions of a response by what was done to it: a part left out, courtesy, length, answer.

    >>> sorted(edits(" 4*6=24. </think> <answer>24</answer>"))[:2]
    ['+ courtesy', '+ steps told twice']
    """
    parts = parts_of(response)
    found = {}
    for place, part in enumerate(parts[:MOST_PARTS]):
        short = part.strip() if len(part.strip()) <= 30 else f"{part.strip()[:29]}…"
        found[f"without {place + 1}: {short}"] = "".join(parts[:place] + parts[place + 1 :])
    steps, closing, rest = response.partition(" </think>")
    found["+ courtesy"] = steps + COURTESY + closing + rest
    found["+ steps told twice"] = steps * 2 + closing + rest
    number = extract_answer(response) or last_number(response)
    if number and re.fullmatch(r"-?\d+", number):
        before, _, after = response.rpartition(number)
        found["another final answer"] = f"{before}{int(number) + 1}{after}"
    return found


def explain(prompt: str, response: str, gold_answer, *, score: Score, gold: Gold) -> dict:
    """Score and gold reward of a response, and how each edit changes both.

    Returns score, gold, and changes {edit: (change of the score, change of the gold reward)}.
    """
    versions = {"": response, **edits(response)}
    scores = list(score([prompt] * len(versions), list(versions.values())))
    golds = [gold(text, gold_answer) for text in versions.values()]
    changes = {name: (s - scores[0], g - golds[0])
               for name, s, g in zip(versions, scores, golds, strict=True) if name}
    return {"score": scores[0], "gold": golds[0], "changes": changes}


class RewardExplorer:
    """Pick a response of a pair, or type one; see its score, its gold reward, and what moves it.

    records: pairs with prompt, response_0, response_1, gold_answer. score: (prompts, responses)
    to scores. gold: (response, gold answer) to the gold reward. All controls take the keyboard.
    """

    def __init__(self, records: Sequence[dict], *, score: Score, gold: Gold):
        if not records:
            raise ValueError("reward_explorer got no records: load the pairs first.")
        self.records, self._score, self._gold = list(records), score, gold
        options = [(f"pair {k + 1}: {_last_line(r['prompt'])}", k)
                   for k, r in enumerate(self.records)]
        wide = widgets.Layout(width="95%")
        self.pair = widgets.Dropdown(options=options, description="Pair", layout=wide)
        self.which = widgets.ToggleButtons(options=[("first response", 0), ("second response", 1)])
        self.response = widgets.Textarea(description="Response", rows=4, layout=wide)
        self.button = widgets.Button(description="Score it", icon="search")
        self.found = widgets.HTML()
        self.pair.observe(self._pick, names="value")
        self.which.observe(self._pick, names="value")
        self.button.on_click(self._draw)
        controls = [self.pair, self.which, self.response, self.button, self.found]
        self.box = widgets.VBox(controls)
        self._pick()

    @property
    def record(self) -> dict:
        return self.records[self.pair.value]

    def _pick(self, _change=None) -> None:
        self.response.value = self.record[f"response_{self.which.value}"]
        self._draw()

    def _draw(self, _event=None) -> None:
        text = self.response.value
        if not text.strip():
            self.found.value = "There is no response to score: type one."
            return
        prompt, gold_answer = self.record["prompt"], self.record["gold_answer"]
        found = explain(prompt, text, gold_answer, score=self._score, gold=self._gold)
        self.found.value = explanation_html(found, prompt, gold_answer)


def reward_explorer(records: Sequence[dict], *, score: Score, gold: Gold) -> None:
    """Show a RewardExplorer, and under it a figure of the first response's explanation."""
    show_widget(RewardExplorer(records, score=score, gold=gold).box)
    record = records[0]
    found = explain(record["prompt"], record["response_0"], record["gold_answer"],
                    score=score, gold=gold)
    display(score_changes(found["changes"], title=_finding(found)))


def explanation_html(found: dict, prompt: str, gold_answer) -> str:
    """An explanation as a table with a bar for each change of the score."""
    sizes = [abs(change) for change, _ in found["changes"].values() if is_number(change)]
    largest = max(sizes, default=1.0) or 1.0
    rows = "".join(_row(name, *changes, largest) for name, changes in found["changes"].items())
    head = "".join(f"<th style='{_CELL}'>{name}</th>"
                   for name in ("edit", "score changes by", "", "gold reward changes by"))
    return (
        f"<p><b>score {found['score']:+.2f}, gold reward {found['gold']:.2f}</b> "
        f"(gold answer {html.escape(str(gold_answer))}; {html.escape(_last_line(prompt, 300))})</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


_CELL = "text-align:left;padding-right:1em"


def _row(name: str, score: float, gold: float, largest: float) -> str:
    colour = "#0072B2" if score > 0 else "#D55E00"
    width = 100 * abs(score) / largest if is_number(score) else 0
    bar = f"<div style='background:{colour};height:0.8em;width:{width:.0f}px'></div>"
    cells = (html.escape(name), f"{score:+.2f}", bar, f"{gold:+.2f}")
    return "<tr>" + "".join(f"<td style='{_CELL}'>{cell}</td>" for cell in cells) + "</tr>"


def _finding(found: dict) -> str:
    known = {name: change for name, change in found["changes"].items() if is_number(change[0])}
    if not known:
        return f"Score {found['score']:+.2f}, gold reward {found['gold']:.2f}"
    name, (score, gold) = max(known.items(), key=lambda item: abs(item[1][0]))
    return (f"Score {found['score']:+.2f}, gold reward {found['gold']:.2f}. Most moved by "
            f'"{name}": score {score:+.2f}, gold reward {gold:+.2f}')


def _last_line(prompt: str, longest: int = 90) -> str:
    """What the prompt asks: its line that begins with "User:", else its last one, shortened."""
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    asked = [line for line in lines if line.startswith("User:")] or lines[-1:] or [""]
    return asked[-1] if len(asked[-1]) <= longest else f"{asked[-1][: longest - 1]}…"
