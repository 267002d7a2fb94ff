"""The verb `eval --strategy`: prompting strategies over a file of maths problems, compared."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from helpers.data import load_records
from helpers.evaluation import write_json, write_jsonl
from helpers.identity import model_identity
from helpers.rollout import SamplingSettings, check_engine
from helpers.strategies import STRATEGIES, compare_strategies, run_strategy
from helpers.strategies.asking import form_named, strategy_named
from workbook.evaluate import load_policy
from workbook.outputs import COMPARISON, claim
from workbook.profiles import load_profile
from workbook.progress import run_root

EXAMPLE_POOL = 64  # worked problems to choose from: some may be worded like the question


def evaluate_strategies(
    strategy: str,
    *,
    data: str | Path | None = None,
    examples: str | Path | None = None,
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    limit: int | None = 200,
    out: str | Path | None = None,
    form: str | None = None,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    profile: str = "tiny",
    engine: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run one strategy, several ("cot,few_shot") or "all"; print and write the comparison.

    data, examples: maths files; without them the profile's test and training problems. The
        examples of few-shot prompts come from the second.
    model: a folder or a name on the hub; without it the profile's maths model. adapter: LoRA.
    out: a folder; without it runs/strategies/<model>, or <model>-<adapter>.
    form: plain, en or zh; see `helpers.strategies.run_strategy`.

    Writes <strategy>_results.jsonl for each strategy as soon as it is done, then
    comparison_results.json: summaries with intervals, paired tests, and the settings.
    Raises ValueError or OSError, in one sentence, before a model is loaded where it can.
    """
    names = _names(strategy)
    form_named(form or "plain")
    chosen = load_profile(profile)
    data = data or chosen.path(chosen.data.maths_test)
    examples = examples or chosen.path(chosen.data.maths_train)
    problems, report = _maths(data, limit, "test")
    pool, _ = _maths(examples, EXAMPLE_POOL, "train")
    tree = chosen.tree.settings()
    sampling = SamplingSettings(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    name = str(model or chosen.path(chosen.models.maths))
    folder = Path(out) if out else _default_folder(name, adapter)
    engine = engine or chosen.engine.name
    check_engine(engine)
    policy, tokenizer = load_policy(name, adapter, chosen)
    settings = {"model": name, "adapter": str(adapter) if adapter else None,
                "weights": model_identity(policy), "data": str(data),
                "examples": str(examples), "limit": limit, "form": form, "profile": profile,
                "engine": engine, "sampling": asdict(sampling), "tree": asdict(tree)}
    claim(folder, settings, settings)
    (folder / COMPARISON).unlink(missing_ok=True)  # of the rows that are now replaced
    results = {
        each: _run(policy, tokenizer, problems, each, folder, sampling=sampling, examples=pool,
                   form=form, engine=engine, batch_size=chosen.engine.batch_size, tree=tree,
                   progress=progress)
        for each in names
    }
    comparison = compare_strategies(results)
    write_json(folder / COMPARISON,
               comparison | {"settings": settings, "load_report": report.as_dict()})
    print_comparison(comparison, title=f"{_names_of(name, adapter)} on {Path(data).name}")
    print(report.describe())
    print(f"Files: {folder / 'comparison_results.json'} and one <strategy>_results.jsonl each.")
    return comparison


def _names(strategy: str) -> list[str]:
    names = list(STRATEGIES) if strategy == "all" else strategy.replace(" ", "").split(",")
    return [name for name in dict.fromkeys(names) if strategy_named(name)]


def _run(policy, tokenizer, problems, strategy: str, folder: Path, **options) -> list[dict]:
    """The rows of one strategy, written as soon as they are there."""
    start = time.monotonic()
    rows = run_strategy(policy, tokenizer, problems, strategy, **options)
    write_jsonl(folder / f"{strategy}_results.jsonl", rows)
    print(f"{strategy}: {time.monotonic() - start:.0f} s")
    return rows


def _maths(data: str | Path, limit: int | None, split: str):
    records, report = load_records(data, limit=limit, split=split)
    if "gold_answer" not in records.column_names:
        raise ValueError(f"{data} has {', '.join(records.column_names)}: strategies are compared "
                         "on maths problems, with question and answer.")
    return records, report


def _default_folder(model: str, adapter: str | Path | None) -> Path:
    return run_root() / "strategies" / _names_of(model, adapter)


def _names_of(model: str, adapter: str | Path | None) -> str:
    return "-".join([Path(model).name, *([Path(adapter).name] if adapter else [])])


def print_comparison(comparison: dict[str, Any], *, title: str) -> None:
    """One row a strategy, the best first, each tested against the first."""
    summaries = comparison["strategies"]
    order = sorted(summaries, key=lambda name: -summaries[name]["accuracy"])
    table = Table(title=f"{title}: {summaries[order[0]]['num_examples']} problems")
    for heading in ("strategy", "accuracy (95 %)", "written", "read", "seconds", "p"):
        justify = "left" if heading == "strategy" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for name in order:
        found = summaries[name]
        table.add_row(name, f"{found['accuracy']:.1%} ({found['low']:.1%} to {found['high']:.1%})",
                      f"{found['tokens']:.0f}", f"{found['prompt_tokens']:.0f}",
                      f"{found['seconds']:.2f}", _against(comparison["pairs"], name, order[0]))
    Console().print(table)
    print(f"Tokens (written, read) and seconds are a problem's; p: McNemar against {order[0]}, "
          "adjusted for all pairs.")
    silent = {name: summaries[name]["no_answer"] for name in order if summaries[name]["no_answer"]}
    if silent:
        print("No answer: " + ", ".join(f"{name} {share:.1%}" for name, share in silent.items()))


def _against(pairs: list[dict[str, Any]], name: str, best: str) -> str:
    for pair in pairs:
        if {pair["first"], pair["second"]} == {name, best}:
            return f"{pair['adjusted']:.2g}" if pair["adjusted"] >= 0.001 else "<0.001"
    return "-"
