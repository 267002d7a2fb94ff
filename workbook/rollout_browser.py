"""A widget to look at rollouts: one prompt, its group of samples, rewards and advantages in colour.

Its groups are those of `Run.rollouts` or of a run's rollouts.jsonl: dicts with step, prompt, gold,
and lists of completions, rewards, parts, advantages, finish_reasons and tokens.
"""

import html
from collections.abc import Sequence

import ipywidgets as widgets
from IPython.display import HTML, display

from helpers.plotting import is_number
from workbook.reward_explorer import _last_line
from workbook.widgets import show_widget

BETTER, WORSE, NEUTRAL = "0, 114, 178", "213, 94, 0", "107, 114, 128"  # blue, orange, grey
STRONGEST = 2.5  # an advantage of this size has the full colour


class RolloutBrowser:
    """Pick a step and a prompt; see each sample with its reward and the push that it gets.

    groups: as in the module's docstring. All controls take the keyboard.
    """

    def __init__(self, groups: Sequence[dict]):
        if not groups:
            raise ValueError("rollout_browser got no groups: run the training first.")
        self.groups = list(groups)
        steps = list(dict.fromkeys(group["step"] for group in self.groups))
        self.step = widgets.SelectionSlider(options=steps, description="Step")
        self.signal = widgets.Checkbox(True, description="only groups with a signal")
        self.prompt = widgets.Dropdown(description="Prompt", layout=widgets.Layout(width="95%"))
        self.shown = widgets.HTML()
        for control in (self.step, self.signal):
            control.observe(self._choose, names="value")
        self.prompt.observe(self._draw, names="value")
        top = widgets.HBox([self.step, self.signal])
        self.box = widgets.VBox([top, self.prompt, self.shown])
        self._choose()

    def _choose(self, _change=None) -> None:
        """The prompts of the step; all of them where none has a signal."""
        here = [k for k, group in enumerate(self.groups) if group["step"] == self.step.value]
        kept = [k for k in here if has_signal(self.groups[k])] if self.signal.value else here
        kept = kept or here
        self.prompt.options = [(_title(self.groups[k]), k) for k in kept]
        self.prompt.value = kept[0]  # a list of options that was empty chooses none by itself
        self._draw()

    def _draw(self, _change=None) -> None:
        if self.prompt.value is not None:  # None: while the options change
            self.shown.value = group_html(self.groups[self.prompt.value])


def rollout_browser(groups: Sequence[dict]) -> None:
    """Show a RolloutBrowser, and under it one group with a signal as a table."""
    show_widget(RolloutBrowser(groups).box)
    chosen = next((group for group in groups if has_signal(group)), groups[0])
    display(HTML(group_html(chosen)))


def has_signal(group: dict) -> bool:
    """Whether the samples of a group differ in their advantages."""
    return len(set(map(_advantage, group["advantages"]))) > 1


def _advantage(value: float | None) -> float:
    """What is missing or no number pushes nothing."""
    return value if is_number(value) else 0.0


def group_html(group: dict) -> str:
    """A group as a table, the best sample first; the colour is the advantage."""
    pushes = list(map(_advantage, group["advantages"]))
    order = sorted(range(len(pushes)), key=lambda k: -pushes[k])
    head = "".join(f"<th style='{_CELL}'>{name}</th>"
                   for name in ("advantage", "reward", "the policy wrote", "tokens"))
    rows = "".join(_row(group, k) for k in order)
    said = f"step {group['step']}, gold answer {html.escape(str(group['gold']))}"
    if not all(map(is_number, group["rewards"])):
        said += "; a reward is not a number, so the group is left out of the step"
    elif not has_signal(group):
        said += "; all samples agree, so none is pushed"
    return (f"<p><b>{html.escape(_last_line(group['prompt'], 400))}</b> ({said})</p>"
            f"<table style='line-height:1.4'><thead><tr>{head}</tr></thead>"
            f"<tbody>{rows}</tbody></table>")


_CELL = "text-align:left;vertical-align:top;padding:.2em .8em"


def _row(group: dict, k: int) -> str:
    advantage = _advantage(group["advantages"][k])
    parts = ", ".join(f"{name.removesuffix('_reward')} {value:g}"
                      for name, value in group["parts"][k].items()
                      if name != "reward" and is_number(value))
    reward = group["rewards"][k]
    shown = f"{reward:.3g}" if is_number(reward) else "not a number"
    ended = "" if group["finish_reasons"][k] != "length" else " (cut)"
    cells = (f"<b>{advantage:+.2f}</b>", f"{shown}<br><small>{html.escape(parts)}</small>",
             f"<span style='white-space:pre-wrap'>{html.escape(group['completions'][k])}</span>",
             f"{group['tokens'][k]}{ended}")
    style = f"{_CELL};background:{shade(advantage)}"
    return "<tr>" + "".join(f"<td style='{style}'>{cell}</td>" for cell in cells) + "</tr>"


def shade(advantage: float) -> str:
    """Blue for what is made likelier, orange for what is made less likely, deeper for more.

    >>> shade(2.5), shade(0.0)
    ('rgba(0, 114, 178, 0.45)', 'rgba(107, 114, 128, 0.08)')
    """
    if advantage == 0:
        return f"rgba({NEUTRAL}, 0.08)"
    depth = 0.1 + 0.35 * min(1.0, abs(advantage) / STRONGEST)
    return f"rgba({BETTER if advantage > 0 else WORSE}, {depth:.2f})"


def _title(group: dict) -> str:
    right = sum((part.get("answer_reward") or 0) > 0 for part in group["parts"])
    return f"{right} of {len(group['parts'])} right: {_last_line(group['prompt'])}"
