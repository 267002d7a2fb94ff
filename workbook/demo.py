"""The demo: one question, answered by the base model and by adapters side by side.

Each answer is shown while it is written, then with what the grader reads in it and the reward
model's score. `workbook demo` runs it in a terminal; workbook/demo_panel.py shows it in a notebook
and workbook/demo_page.py as a web page.
"""

import copy
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from helpers.models import load_model, load_reward_model, put_adapter
from helpers.prompts import load_template, render, render_passages
from helpers.reward_models import score
from helpers.rewards import extract_answer, graded_text
from helpers.rollout import SamplingSettings
from helpers.streaming import stream
from workbook.profiles import Profile, load_profile
from workbook.progress import run_root

MOST_CHARACTERS = 4000
MOST_TOKENS = 512
MOST_ADAPTERS = 5
KINDS = {"maths": "r1_zero", "qa": "qa"}
OWN_RUNS = {
    "maths": ("03/{run}/sft", "04/{run}/dpo", "05/{run}/grpo"),
    "qa": tuple(f"07/{{run}}/{method}" for method in ("sft", "dpo", "grpo", "orpo", "kto")),
}
EXAMPLES = {
    "maths": "Nils has 4 tulips and Kira has 10 tulips. They put them together. Nils gets 4 more "
    "tulips a day for 3 days. Each tulip costs 3 coins. How many coins do they cost in all?",
    "qa": "Ana lives in Port Arlo. Ben keeps a goat.\nBen plays the flute.\nWhere does Ana live?",
}


@dataclass
class Reply:
    """What one model has written so far; answer and score when it has ended."""

    name: str
    text: str = ""
    ended: str = ""  # eos, stop_string or length
    answer: str | None = None
    score: float | None = None

    @property
    def facts(self) -> str:
        """One line under the text: the answer that is graded, and the reward model's score."""
        if not self.ended:
            return "..."
        answer = "no answer" if self.answer is None else f"answer: {self.answer}"
        judged = "" if self.score is None else f", reward model: {self.score:+.2f}"
        return answer + judged + (", cut off" if self.ended == "length" else "")


def printable(text: str) -> str:
    """A text without control characters, escape sequences and direction marks; line ends stay.

    Models with bytes in their vocabulary can write any of them, and a terminal obeys.

    Example:
        >>> printable("a\\x1b[31mb\\u202ec\\n")
        'ab' + 'c\\n'
    """
    text = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?)", "", text)
    hidden = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    text = text.replace("\r\n", "\n")
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in hidden)


@dataclass
class Demo:
    """Models that answer the same question, and a reward model that may judge them.

    templates: by kind, in place of the course's own; what the models were trained on.
    """

    models: dict[str, object]
    tokenizer: object
    judge: tuple | None = None  # (reward model, its tokenizer)
    stop: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"maths": ("\nUser:",), "qa": ("\n",)}
    )
    templates: dict[str, str] = field(default_factory=dict)

    def prompt(self, text: str, kind: str) -> str:
        """The text in the template of its kind; of qa the last line is the question.

        Raises ValueError, one sentence, for a text that is empty or too long.
        """
        _require_kind(kind)
        text = printable(text).strip()
        if not text:
            raise ValueError("There is no question: type one.")
        if len(text) > MOST_CHARACTERS:
            raise ValueError(
                f"The question has more than {MOST_CHARACTERS:,} characters: shorten it."
            )
        text = self._without_special_tokens(text)
        template = self.templates.get(kind) or load_template(KINDS[kind])
        if kind == "maths":
            return render(template, question=" ".join(text.split()))
        *passages, question = [line.strip() for line in text.split("\n") if line.strip()]
        if not passages:
            raise ValueError(
                "An open-book question needs its passages: one a line, then the question."
            )
        return render(template, passages=render_passages(passages[:5]), question=question)

    def _without_special_tokens(self, text: str) -> str:
        """A typed <|endoftext|> is text: as a token it would end the prompt."""
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def replies(
        self, text: str, kind: str = "maths", *, temperature=0.0, max_new_tokens=160, seed=0
    ) -> Iterator[list[Reply]]:
        """The replies of all models, again and again while they are written, a token each in turn.

        Raises ValueError for a text, a kind or a number that cannot be used.
        """
        prompt = self.prompt(text, kind)
        if not 1 <= max_new_tokens <= MOST_TOKENS:
            raise ValueError(
                f"max_new_tokens must be 1 to {MOST_TOKENS}, but it is {max_new_tokens}."
            )
        sampling = SamplingSettings(
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop_strings=self.stop[kind],
        )
        found = [Reply(name) for name in self.models]
        running = {
            place: stream(model, self.tokenizer, prompt, sampling=sampling)
            for place, model in enumerate(self.models.values())
        }
        reasons = {}
        while running:
            for place in list(running):
                written = next(running[place], None)
                if written is None:
                    del running[place]
                    self._finish(found[place], reasons[place], prompt, kind)
                else:
                    found[place].text = printable(written[0])
                    reasons[place] = written[1].finish_reason
            yield found

    def _finish(self, reply: Reply, reason: str, prompt: str, kind: str) -> None:
        text, reply.ended = reply.text, reason
        reply.answer = extract_answer(text) if kind == "maths" else graded_text(text) or None
        if self.judge and kind == "maths":  # it has read nothing else
            model, words = self.judge
            with suppress(ValueError):  # longer than its window: no score
                reply.score = score(model, words, [prompt], [text])[0]


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"There is no kind {kind!r}: take one of {', '.join(KINDS)}.")


# ---------------------------------------------------------------- what is loaded


def own_adapters(profile: Profile, kind: str = "maths") -> list[Path]:
    """Your own in runs/, of this profile, the newest of each: for maths those of lessons 03, 04 and
    05; for qa the five of lesson 07, which belong to the model in 4 bits."""
    found = []
    for pattern in OWN_RUNS[kind]:
        lesson, _, name = pattern.partition("/{run}/")
        runs = (run_root() / lesson).glob(f"{profile.name}-*/{name}/adapter")
        runs = [path for path in runs if (path / "adapter_config.json").is_file()]
        found += sorted(runs, key=lambda path: path.stat().st_mtime)[-1:]
    return found


def load_demo(
    adapters: Sequence[str | Path] = (),
    model: str | None = None,
    profile: Profile | None = None,
    *,
    kind: str = "maths",
    templates: Mapping[str, str] | None = None,
) -> Demo:
    """The base model and the adapters: those given, else your own of lessons 03 to 05, else the
    shipped one; with the reward model that the profile names.

    kind: "qa" takes your own of lesson 07, and their base in 4 bits, where neither adapters nor
        model are given; where there are none, what maths takes.
    templates: of the demo, by kind.

    Raises ValueError, one sentence, for a folder that is no adapter, and for too many.
    """
    _require_kind(kind)
    profile = profile or load_profile("tiny")
    readers = own_adapters(profile, "qa") if kind == "qa" and not (adapters or model) else []
    name = profile.path(profile.models.awq) if readers else model
    name = name or profile.path(profile.models.maths)
    place = {"device": profile.engine.device, "dtype": profile.engine.dtype}
    chosen = readers or [Path(path) for path in adapters] or own_adapters(profile)
    if not chosen and not model and profile.models.adapter:
        chosen = [Path(profile.path(profile.models.adapter))]
    if len(chosen) > MOST_ADAPTERS:
        raise ValueError(
            f"{len(chosen)} adapters are too many: at most {MOST_ADAPTERS} fit side by side."
        )
    base, tokenizer = load_model(name, **place)
    models = {"base": base.eval()}
    for path in chosen:
        if not (path / "adapter_config.json").is_file():
            raise ValueError(f"{path} is no adapter: a folder with adapter_config.json is wanted.")
        models[unique(short_name(path), models)] = with_adapter(base, path)
    judge = None
    if profile.models.reward and not (model or readers):
        judge = load_reward_model(name, adapter=profile.path(profile.models.reward), **place)
    return Demo(models, tokenizer, judge, templates=dict(templates or {}))


def with_adapter(base, path: Path):
    """The base with an adapter, around the same weights: five of them cost hardly more than one.

    Raises ValueError or OSError, one sentence, for an adapter of another model or a damaged one.
    """
    shared = {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())}
    source = base.name_or_path
    return put_adapter(copy.deepcopy(base, shared), str(path), source, trainable=False).eval()


def short_name(path: Path) -> str:
    """runs/03/tiny-short/sft/adapter is "03 sft"; any other folder has its own name."""
    parts = path.resolve().parts
    if path.name == "adapter" and len(parts) > 4:
        lesson = parts[-4] if parts[-4].isdigit() else ""
        return f"{lesson} {parts[-2]}".strip()
    return path.name


def unique(name: str, taken) -> str:
    names = chain([name], (f"{name} {number}" for number in count(2)))
    return next(each for each in names if each not in taken)


# ---------------------------------------------------------------- in a terminal


def columns(replies: Sequence[Reply]) -> Table:
    """The replies side by side; texts are texts, never markup."""
    table = Table(expand=True)
    for reply in replies:
        table.add_column(Text(reply.name), ratio=1, overflow="fold")
    table.add_row(*(Text(reply.text) for reply in replies))
    table.add_section()
    table.add_row(*(Text(reply.facts, style="bold") for reply in replies))
    return table


def show_replies(console: Console, replies: Iterator[list[Reply]]) -> None:
    """Live where the console is a terminal; else each reply once it is written."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=12) as live:
            for found in replies:
                live.update(columns(found))
        return
    *_, last = replies
    for reply in last:
        console.print(Text(f"--- {reply.name}\n{reply.text.strip()}\n{reply.facts}"))


def run_terminal(demo: Demo, kind: str, console: Console | None = None, lines=None, **options):
    """Questions line by line until the end of input; of qa a question ends with an empty line."""
    console = console or Console()
    wanted = (
        "A question"
        if kind == "maths"
        else "Passages, one a line, then the question, then an empty line"
    )
    console.print(f"{wanted}; Ctrl-D ends. For example:\n{EXAMPLES[kind]}\n", markup=False)
    for text in questions(sys.stdin if lines is None else lines, kind):
        try:
            show_replies(console, demo.replies(text, kind, **options))
        except ValueError as error:
            console.print(Text(str(error)))
        except KeyboardInterrupt:
            console.print("Stopped.")


def questions(lines, kind: str) -> Iterator[str]:
    """A line each; of qa the lines up to an empty one."""
    held: list[str] = []
    for line in lines:
        held.append(line[: 2 * MOST_CHARACTERS].rstrip("\n"))
        if kind == "qa" and line.strip():
            continue
        text, held = "\n".join(held), []
        if text.strip():
            yield text
    if held:
        yield "\n".join(held)
