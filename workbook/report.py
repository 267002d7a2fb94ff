"""`workbook report`: one page of the learner's own runs, and my_alignment.py beside it.

The page stands alone: figures are inside it, nothing is loaded, every text is escaped. What was
not run is said, not hidden.
"""

import base64
import html
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

from helpers.plotting import is_number, series, training_curves
from workbook.dashboard import STATES, Dashboard, dashboard
from workbook.hints import lessons_with_help
from workbook.main_numbers import main_numbers
from workbook.own_file import OwnFunctions, collect, own_program
from workbook.panel import count
from workbook.progress import course_root, run_root, write_text

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>My alignment</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #1c1f24; background: #fff }}
table {{ border-collapse: collapse; margin: .6em 0 }}
th, td {{ text-align: left; vertical-align: top; padding: .25em 1em .25em 0;
         border-bottom: 1px solid #e5e7eb }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f7f8fa; padding: .6em .8em;
      border-left: 4px solid #c9ced6; margin: 0 }}
img {{ max-width: 100% }} .missing {{ color: #8a5a00 }} .big {{ font-size: 1.5em }}
</style></head><body>
{body}
</body></html>
"""
# What is drawn of a run: the first of these that its records hold, two at most.
CURVES = ("loss", "reward_mean", "eval_accuracy", "accuracy", "chosen_logps")
QUESTIONS = (
    "Nils has 4 tulips and Kira has 10 tulips. They put them together. Nils gets 4 more tulips a "
    "day for 3 days. Each tulip costs 3 coins. How many coins do they cost in all?",
    "Lucia rides 35 km on Monday and 16 km on Friday. It is 35 degrees outside. Later Lucia walks "
    "12 more km. Lucia stops every 7 km. How many parts are there?",
)


@dataclass(frozen=True)
class Lesson:
    """The newest finished run of a lesson: its folder and findings; None where there is none."""

    number: str
    folder: Path | None = None
    findings: dict | None = None


def newest_run(lesson: str) -> Lesson:
    """The run with the newest findings.json that can be read, smoke runs last."""
    found = []
    for path in (run_root() / lesson).glob("*/findings.json"):
        findings = _read(path)
        if isinstance(findings, dict):
            is_real = findings.get("depth") != "smoke"
            found.append((is_real, path.stat().st_mtime, path.parent, findings))
    if not found:
        return Lesson(lesson)
    _, _, folder, findings = max(found, key=lambda each: each[:2])
    return Lesson(lesson, folder, findings)


def _read(path: Path):
    """A JSON file, or None where it is not there or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; a last line that was cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


# ---------------------------------------------------------------- the parts of the page


def text(value) -> str:
    return html.escape(str(value))


def missing(says: str) -> str:
    return f"<p class='missing'>{text(says)}</p>"


def table(header, rows) -> str:
    head = "".join(f"<th>{text(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{text(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def picture(figure, says: str) -> str:
    """A figure as an image inside the page."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f"<p><img alt='{text(says)}' src='data:image/png;base64,{data}'></p>"


def own_part(own: OwnFunctions, boards: list[Dashboard]) -> str:
    rows = []
    for board in boards:
        done = sum(row.state == "done" for row in board.exercises)
        right = sum(state == "right" for state in board.questions.values())
        rows.append(
            (
                board.lesson,
                f"{done} of {len(board.exercises)}",
                f"{right} of {len(board.questions)}",
                _states(board),
            )
        )
    lacking = [f"{name}: {reason}" for name, reason in own.missing.items()]
    says = f"<p class='big'><b>{len(own.cells)} of {own.total}</b> functions are yours.</p>"
    says += table(("lesson", "exercises", "questions right", "not done yet"), rows)
    if lacking:
        says += "<details><summary>Why the others are not</summary><ul>"
        says += "".join(f"<li>{text(line)}</li>" for line in lacking) + "</ul></details>"
    return says + (
        "<p>They stand in my_alignment.py, in the order of the pipeline.</p>" if own.cells else ""
    )


def _states(board: Dashboard) -> str:
    left = [
        f"{row.name} ({STATES[row.state][2]})" for row in board.exercises if row.state != "done"
    ]
    return ", ".join(left) or "-"


def runs_part(lessons: list[Lesson]) -> str:
    """What each lesson found and what it cost."""
    rows, lacking = [], []
    for lesson in lessons:
        if lesson.findings is None:
            lacking.append(lesson.number)
            continue
        facts = lesson.findings
        seconds = facts.get("seconds")
        cost = f"{seconds:.0f} s" if isinstance(seconds, (int, float)) else "not known"
        trained = sum(summary.get("seconds") or 0 for summary in _summaries(lesson))
        rows.append(
            (
                lesson.number,
                facts.get("profile"),
                facts.get("depth"),
                cost,
                f"{trained:.0f} s",
                main_numbers(lesson.number, facts),
            )
        )
    says = (
        table(("lesson", "profile", "depth", "seconds", "of it training", "found"), rows)
        if rows
        else ""
    )
    if lacking:
        says += missing(
            f"No run of yours yet: lesson {', '.join(lacking)}. "
            f"`python3 -m workbook run {lacking[0]}`, or Run All in its notebook, makes one."
        )
    return says


def _summaries(lesson: Lesson) -> list[dict]:
    found = [_read(path) for path in sorted(lesson.folder.glob("*/summary.json"))]
    return [each for each in found if isinstance(each, dict)]


def curves_part(lessons: list[Lesson]) -> str:
    """The curves of the trainings of the newest runs."""
    parts = []
    for lesson in lessons:
        for path in sorted(lesson.folder.glob("*/metrics.jsonl")) if lesson.folder else []:
            records = read_metrics(path)
            keys = [
                key
                for key in CURVES
                if len(series(records, key)[0]) > 1
            ]
            if len(keys) and len(records) > 1:
                name = f"lesson {lesson.number}, {path.parent.name}"
                title = f"{name}: {len(records)} steps"
                figure = training_curves({name: records}, keys[:2], title=title)
                parts.append(picture(figure, title))
    return "".join(parts) or missing("No training of yours has left its curves in runs/ yet.")


def hacking_part(lesson: Lesson) -> str:
    """The reward-hacking story: the learned reward and the gold reward, step by step."""
    story = (lesson.findings or {}).get("reward_model_run")
    if not isinstance(story, dict) or not story:
        return missing(
            "Not told yet: lesson 05 trains against the learned reward, and has no run here."
        )
    runs, told = {}, []
    for beta, curves in story.items():
        pairs = zip(curves.get("proxy") or [], curves.get("gold") or [], strict=False)
        known = [pair for pair in pairs if all(map(is_number, pair))]
        if len(known) < 2 or len(curves["proxy"]) != len(curves["gold"]):
            continue
        proxy, gold = zip(*known, strict=True)
        runs[f"beta = {beta}"] = [
            {"step": k, "proxy": p, "gold": g}
            for k, (p, g) in enumerate(zip(proxy, gold, strict=True), 1)
        ]
        top = max(range(len(gold)), key=gold.__getitem__)
        told.append(
            (
                beta,
                f"{proxy[0]:+.2f} -> {proxy[-1]:+.2f}",
                f"{gold[0]:.2f} -> {gold[top]:.2f} (step {top + 1}) -> {gold[-1]:.2f}",
            )
        )
    if not runs:
        return missing("The run of lesson 05 holds no curves of the learned reward.")
    says = "The learned reward (proxy) and the truth (gold), by step"
    how = (
        ""
        if lesson.findings.get("depth") == "full"
        else ("<p>At depth short, lesson 05 draws this from the course's own recorded run.</p>")
    )
    return (
        picture(training_curves(runs, ["proxy", "gold"], title=says), says)
        + how
        + table(("KL penalty (beta)", "learned reward", "gold reward: start, peak, end"), told)
    )


def answers_part() -> str:
    """The same questions, to the base model and to the learner's own adapters, answered now."""
    from workbook.demo import load_demo, own_adapters
    from workbook.profiles import load_profile

    adapters = own_adapters(load_profile("tiny"))
    if not adapters:
        return missing("No adapter of yours is in runs/ yet: lessons 03, 04 and 05 train one each.")
    demo = load_demo(adapters)
    rows = []
    for question in QUESTIONS:
        *_, replies = demo.replies(question, max_new_tokens=96)
        cells = "".join(
            f"<tr><th>{text(reply.name)}</th><td><pre>{text(reply.text.strip())}</pre>"
            f"{text(reply.facts)}</td></tr>"
            for reply in replies
        )
        rows.append(f"<p>{text(question)}</p><table>{cells}</table>")
    return "".join(rows)


# ---------------------------------------------------------------- the page


def report_page(own: OwnFunctions) -> str:
    """The whole page as HTML."""
    numbers = lessons_with_help()
    boards, lessons = [dashboard(each) for each in numbers], [newest_run(each) for each in numbers]
    by_number = {lesson.number: lesson for lesson in lessons}
    parts = {
        "What you wrote": own_part(own, boards),
        "Before and after": answers_part(),
        "What you ran, and what it cost": runs_part(lessons),
        "Curves": curves_part(lessons),
        "When the reward is only learned": hacking_part(by_number.get("05", Lesson("05"))),
    }
    body = "".join(f"<h2>{text(title)}</h2>{part}" for title, part in parts.items())
    return PAGE.format(body=f"<h1>My alignment</h1>{body}")


def write_report(out: Path | None = None) -> list[Path]:
    """Write report.html and my_alignment.py to a folder (default: work/); their paths.

    Raises: OSError, one sentence, where the folder cannot be written.
    """
    work = course_root() / "work"
    os.environ.setdefault("WORKBOOK_PROGRESS", str(work / ".progress"))
    folder = Path(out) if out else work
    own = collect()
    page, program = folder / "report.html", folder / "my_alignment.py"
    write_text(program, own_program(own, folder))
    write_text(page, report_page(own))
    print(f"{count(len(own.cells), 'function')} of {own.total} are yours.")
    return [page, program]
