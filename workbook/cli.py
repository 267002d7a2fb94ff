"""The command line: one short function a verb, each a call into the module of that verb.

The modules are imported inside the functions: `lab` need not wait for torch.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from workbook import VERBS
from workbook.setup import ROOT

Profile = Annotated[str | None, typer.Option(help="tiny (default), small or full.")]
Depth = Annotated[str | None, typer.Option(help="short (default), full or smoke.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
data = typer.Typer(no_args_is_help=True)
app.add_typer(data, name="data", help=VERBS["data"])


def verb(name: str):
    """Register a function as a verb, with the help line that `workbook.VERBS` holds."""
    return app.command(name, help=VERBS[name])


@verb("lab")
def lab(
    port: Annotated[
        int | None, typer.Option(help="Port of the server [default: 8888 or next].")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> int:
    from workbook.lab import open_lab

    return open_lab(port, browser)


@verb("doctor")
def doctor() -> int:
    from workbook.doctor import run_doctor

    return run_doctor()


@verb("run")
def run(
    lessons: Annotated[list[str], typer.Argument(help="Numbers such as 01, or all; key=value.")],
    profile: Profile = None,
    depth: Depth = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Merge the findings into this file.")
    ] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="On random miniatures of the profile's models.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer for --rehearse.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Keep a full run as solutions/recorded/NN.json.")
    ] = False,
) -> None:
    from workbook.run import run_lessons

    names = [text for text in lessons if "=" not in text]
    overrides = [text for text in lessons if "=" in text]
    if not names:
        raise ValueError(f"Name a lesson, or all: `workbook run all {' '.join(overrides)}`.")
    run_lessons(
        names,
        profile,
        depth,
        json_file,
        overrides,
        rehearse=rehearse,
        tokenizer=tokenizer,
        record=record,
    )


@verb("eval")
def evaluate(
    data: Annotated[
        str | None,
        typer.Option(help="JSON, JSONL, gzip or parquet file, or a hub name; else the profile's."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub name; else the profile's.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Folder of a LoRA adapter.")] = None,
    limit: Annotated[
        int,
        typer.Option("--limit", "--samples", min=0, help="At most so many problems; 0: all."),
    ] = 200,
    prompt: Annotated[str | None, typer.Option(help="Template, by name or by path.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    spacing: Annotated[str, typer.Option(help="any, or exact as the published grader.")] = "any",
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends an answer; may be repeated.")
    ] = None,
    profile: Profile = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, transformers or vllm; else the profile's.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="A prompting strategy, several as a,b, or all: compared.")
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="Of a strategy's prompts: plain, en or zh.")
    ] = None,
    examples: Annotated[
        str | None, typer.Option(help="Maths file that few-shot prompts take examples from.")
    ] = None,
) -> None:
    shared = {"model": model, "adapter": adapter, "limit": limit or None, "out": out,
              "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed,
              "profile": profile or "tiny", "engine": engine}
    if strategy:
        from workbook.evaluate_strategies import evaluate_strategies

        own = {"--prompt": prompt, "--stop": stop, "--spacing": spacing != "any"}
        reject(own, "--strategy has its own prompts, stops and grader")
        evaluate_strategies(strategy, data=data, examples=examples, form=form, **shared)
        return
    from workbook.evaluate import default_data, evaluate_file

    reject({"--form": form, "--examples": examples}, "they belong to --strategy")
    data = data or default_data(profile or "tiny")
    evaluate_file(data, prompt=prompt, spacing=spacing, stop=stop or None, **shared)


def reject(options: dict[str, object], reason: str) -> None:
    """Raises ValueError where one of the options was given: it would be ignored."""
    given = [name for name, value in options.items() if value]
    if given:
        raise ValueError(f"{' and '.join(given)} cannot be given here: {reason}.")


@verb("train")
def train(
    kind: Annotated[
        str,
        typer.Argument(help="sft, reward, grpo, ppo, dpo, ipo, kto, orpo, simpo, hinge or robust."),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="lr=1e-4 lora.r=8 ...")] = None,
    config: Annotated[
        str | None, typer.Option(help="A YAML file, or sft_tiny, dpo_small ... [tiny].")
    ] = None,
    model_name: Annotated[str | None, typer.Option("--model_name", help="model.name")] = None,
    output_dir: Annotated[str | None, typer.Option("--output_dir", help="out")] = None,
    epochs: Annotated[float | None, typer.Option(help="num_epochs")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch_size", help="batch_size")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning_rate", help="lr")] = None,
    settings: Annotated[bool, typer.Option("--settings", help="List all settings.")] = False,
) -> None:
    from workbook import train as training

    if settings:
        from workbook.train_table import settings_table

        print(settings_table(kind))
        return
    named = {
        "model.name": model_name,
        "out": output_dir,
        "num_epochs": epochs,
        "batch_size": batch_size,
        "lr": learning_rate,
    }
    given = [f"{name}={value}" for name, value in named.items() if value is not None]
    training.train(kind, config or training.default_config(kind), [*(overrides or []), *given])


@verb("grade")
def grade(
    folder: Annotated[Path, typer.Argument(help="Where the notebooks are.")],
    csv: Annotated[Path, typer.Option(help="File for the scores.")],
    junit: Annotated[Path | None, typer.Option(help="File for a JUnit report.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the fixtures [default: a fresh one].")
    ] = None,
    lesson: Annotated[
        str | None, typer.Option(help="Its number, such as 01 [default: the notebook says].")
    ] = None,
) -> int:
    from workbook.grade import start_grading

    return start_grading(folder, csv, junit, seed, lesson)


@data.command("convert", help="Convert a file from one record format to another.")
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="File, hub name or registry name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".jsonl, .json (.gz), .parquet")],
    to: Annotated[str, typer.Option(help="Format to write; see `data formats`.")],
    format: Annotated[str, typer.Option("--from", help="Format to read; auto guesses.")] = "auto",
    registry: Annotated[
        Path | None, typer.Option(help="JSON file of data sets by name, as dataset_info.json.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="Write prompts in this template.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a hub data set [default: train].")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many records.")] = None,
) -> None:
    from workbook.convert import convert_file

    convert_file(
        source,
        out,
        to=to,
        format=format,
        registry=registry,
        template=template,
        split=split,
        limit=limit,
    )


@data.command("formats", help="List the record formats with two records of each.")
def formats(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the page docs/formats.md.")
    ] = False,
) -> None:
    from workbook.convert import formats_page, formats_table

    print(formats_page().rstrip() if markdown else formats_table())


def sampling_verb(kind: str, help: str) -> None:
    """Register `data pairs` or `data negatives`, which differ in what they keep alone."""

    @data.command(kind, help=help)
    def sample(
        source: Annotated[str, typer.Argument(metavar="IN", help="Problems: maths or QA.")],
        out: Annotated[Path, typer.Argument(metavar="OUT", help=".jsonl, .json (.gz), .parquet")],
        model: Annotated[str | None, typer.Option(help="Folder or hub name.")] = None,
        adapter: Annotated[str | None, typer.Option(help="Folder of a LoRA adapter.")] = None,
        limit: Annotated[int | None, typer.Option(min=1, help="At most so many problems.")] = None,
        samples: Annotated[int, typer.Option(min=2, help="Responses a problem.")] = 8,
        most: Annotated[int, typer.Option(min=1, help="Pairs (or of one label) a problem.")] = 1,
        prompt: Annotated[str | None, typer.Option(help="Template, by name or by path.")] = None,
        temperature: Annotated[float, typer.Option(min=0.0, help="Of the sampling.")] = 1.0,
        max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a response.")] = 512,
        seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
        profile: Profile = None,
    ) -> None:
        from workbook.sample import sample_file

        sample_file(
            kind,
            source,
            out,
            model=model,
            adapter=adapter,
            limit=limit,
            samples=samples,
            most=most,
            prompt=prompt,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            profile=profile or "tiny",
        )


sampling_verb("pairs", "Sample responses; pair the better with the worse (for train dpo).")
sampling_verb("negatives", "Sample responses; label the right and the wrong (for train kto).")


@verb("progress")
def progress() -> None:
    from workbook.dashboard import show

    print(show())


@verb("demo")
def demo(
    web: Annotated[bool, typer.Option("--web/--cli", help="A page, or this terminal.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page.")] = 7860,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", "--lora", help="Folder; may be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub name.")] = None,
    kind: Annotated[str, typer.Option(help="maths, or qa: passages and a question.")] = "maths",
    temperature: Annotated[float, typer.Option(min=0.0, help="0: greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=512, help="Of an answer.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    profile: Profile = None,
) -> None:
    from workbook.demo import load_demo, run_terminal
    from workbook.profiles import load_profile

    if web:
        from workbook.demo_page import serve
    loaded = load_demo(adapter or (), model, load_profile(profile or "tiny"), kind=kind)
    options = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    if web:
        serve(loaded, host=host, port=port, **options)
    else:
        run_terminal(loaded, kind, **options)


@verb("report")
def report(
    out: Annotated[Path | None, typer.Option(help="Folder [default: work].")] = None,
) -> None:
    from workbook.report import write_report

    for path in write_report(out):
        print(path)


@verb("update")
def update() -> int:
    from workbook.lab import outdated
    from workbook.update import update_lessons

    changed = outdated(ROOT / "lessons", ROOT / "work")
    said, problems = update_lessons(ROOT / "lessons", ROOT / "work")
    for line in said:
        print(line)
    if changed:
        print("Is one of them open in JupyterLab? Choose File > Reload Notebook from Disk there.")
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


@verb("reset")
def reset(lesson: Annotated[str, typer.Argument(help="Its number, such as 01.")]) -> None:
    from workbook.lab import reset_lesson

    aside = reset_lesson(lesson, ROOT / "lessons", ROOT / "work")
    kept = f"; your copy is now work/{aside.name}" if aside else ""
    print(f"Lesson {lesson} in work/ is fresh{kept}.")


@verb("results")
def results() -> int:
    from workbook.results import write_results

    changed = write_results()
    print("\n".join(f"Written: {path}" for path in changed) or "Both tables are up to date.")
    return 0


@verb("build")
def build(
    lessons: Annotated[list[str] | None, typer.Argument(help="Numbers; default: all.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; name what differs.")
    ] = False,
    execute: Annotated[bool, typer.Option("--execute", help="Execute the solutions too.")] = False,
    nbgrader: Annotated[
        Path | None, typer.Option(help="Write the lessons as sources of this nbgrader course.")
    ] = None,
    profile: Profile = None,
    depth: Depth = None,
) -> int:
    from workbook.build import build as build_lessons
    from workbook.build import write_for_nbgrader

    if nbgrader:
        for path in write_for_nbgrader(nbgrader, lessons or ["all"]):
            print(path)
        return 0
    problems = build_lessons(check, execute, lessons or ["all"], profile=profile, depth=depth)
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


@verb("world")
def world(
    part: Annotated[str, typer.Argument(
        help="data, tokenizer, model, adapters, preferences, comparisons, judge, awq or card.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to.")] = None,
) -> None:
    from workbook.world.regenerate import regenerate

    print(regenerate(part, out))


@verb("test")
def test(
    everything: Annotated[
        bool, typer.Option("--all", help="Add style, build, every solution, browser, engines.")
    ] = False,
    engines: Annotated[
        bool, typer.Option("--engines", help="Only those of vLLM and the AWQ library (3 GB).")
    ] = False,
) -> int:
    from workbook.engines import run_engine_tests
    from workbook.testing import run_tests

    return run_engine_tests() if engines else run_tests(everything)


def run_command(arguments: list[str]) -> int:
    """Run one verb and return the exit status; an error becomes one sentence and status 2.

    WORKBOOK_DEBUG=1 shows the traceback too.
    """
    try:
        return int(app(arguments, prog_name="python3 -m workbook", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("WORKBOOK_DEBUG"):
            traceback.print_exc()
        print(sentence(error), file=sys.stderr)
        return 2


def sentence(error: Exception) -> str:
    """What to print for an error: its own message where the course or a library wrote one.

    A KeyError's message is only the key, so an error of such a kind is named, with the way to
    see where it happened.
    """
    if hasattr(error, "format_message"):  # a usage error of the command line
        return error.format_message()
    if isinstance(error, (ValueError, OSError, RuntimeError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (WORKBOOK_DEBUG=1 shows where)"
