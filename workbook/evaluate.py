"""The verb `eval`: any causal language model on a file of maths or open-book QA problems."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from rich.console import Console
from rich.table import Table

from helpers.data import LoadReport, load_records
from helpers.evaluation import Summary, evaluate, write_json
from helpers.identity import model_identity
from helpers.models import load_model
from helpers.prompts import load_template
from helpers.rewards import qa_reward, r1_zero_reward
from helpers.rollout import SamplingSettings, check_engine
from workbook.outputs import SETTINGS, claim
from workbook.profiles import Profile, load_profile
from workbook.progress import run_root

RATES = {  # in the order of the table; those that the data do not have are left out
    "format_rate": "format",
    "accuracy": "strict accuracy",
    "lenient_accuracy": "lenient accuracy (last number)",
    "sub_em": "SubEM",
    "f1": "F1",
    "avg_reward": "mean reward",
}


class Problems(NamedTuple):
    """Records to answer, how they are asked, where an answer stops, and how it is graded."""

    records: Dataset
    report: LoadReport
    template: str
    stop: tuple[str, ...]
    reward_fn: Callable[..., dict]


def read_problems(
    data: str | Path,
    *,
    limit: int | None,
    prompt: str | Path | None,
    stop: Sequence[str] | None,
    spacing: str = "any",
) -> Problems:
    """Maths or QA problems of a file or hub name; the options are those of `evaluate_file`."""
    records, report = load_records(data, limit=limit)
    is_qa = "answers" in records.column_names
    if not is_qa and "gold_answer" not in records.column_names:
        raise ValueError(f"{data} has {', '.join(records.column_names)}: to evaluate, question and "
                         "answer are needed, or question, passages and answers.")
    template = load_template(prompt or ("qa" if is_qa else "r1_zero"))
    if stop is None:
        stop = ("\n",) if is_qa else ()
    r1_zero_reward("", "", spacing=spacing)  # an unknown spacing is answered before the model loads
    reward_fn = qa_reward if is_qa else partial(r1_zero_reward, spacing=spacing)
    return Problems(records, report, template, tuple(stop), reward_fn)


def evaluate_file(
    data: str | Path,
    *,
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    limit: int | None = 200,
    prompt: str | Path | None = None,
    out: str | Path | None = None,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    spacing: str = "any",
    stop: Sequence[str] | None = None,
    profile: str = "tiny",
    engine: str | None = None,
    progress: bool = True,
) -> Summary:
    """Evaluate a model on a file; print a table; write results, summary and settings.

    data: GSM8K-like (`question`, `answer` with "#### n") or QA (`question`, `passages`,
        `answers`) records: JSON, JSONL, gzip, parquet, or a hub name.
    model: a folder or a name on the hub; without it the profile's maths model. adapter: LoRA.
    limit: at most so many problems; None takes all.
    prompt: a template by name or by path; without it r1_zero, or qa for QA records.
    out: a folder; without it runs/eval/<model>-<data>. Earlier results of the same weights and
        data are replaced there, others set aside.
    spacing: "any" or "exact", see `helpers.rewards.r1_zero_reward`.
    stop: texts that end a completion; without it none for maths, and the end of the line for QA,
        where a base model would go on with a question of its own.
    engine: auto, transformers or vllm; without it the profile's.

    Raises ValueError or OSError, in one sentence, before a model is loaded where it can.
    """
    problems = read_problems(data, limit=limit, prompt=prompt, stop=stop, spacing=spacing)
    records, report, template, stop, reward_fn = problems
    sampling = SamplingSettings(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed,
                                stop_strings=stop)
    chosen = load_profile(profile)
    name = str(model or chosen.path(chosen.models.maths))
    folder = Path(out) if out else _default_folder(name, data)
    engine = engine or chosen.engine.name
    check_engine(engine)
    policy, tokenizer = load_policy(name, adapter, chosen)
    settings = {
        "model": name, "adapter": str(adapter) if adapter else None,
        "weights": model_identity(policy), "data": str(data),
        "limit": limit, "prompt": template, "spacing": spacing, "profile": profile,
        "engine": engine,
        "sampling": asdict(sampling)}
    claim(folder, settings, ("model", "adapter", "weights", "data"))
    write_json(folder / SETTINGS, settings)
    summary = evaluate(policy, tokenizer, records, prompt=template, reward_fn=reward_fn,
                       out_dir=folder, sampling=sampling, load_report=report,
                       batch_size=chosen.engine.batch_size, engine=engine, progress=progress)
    print_summary(summary, report, title=f"{Path(name).name} on {Path(data).name}")
    return summary


def default_data(profile: str) -> str:
    """The profile's held-out maths problems."""
    chosen = load_profile(profile)
    return chosen.path(chosen.data.maths_test)


def load_policy(name: str, adapter: str | Path | None, profile: Profile):
    engine = profile.engine
    return load_model(name, adapter=adapter, trainable_adapter=False, device=engine.device,
                      dtype=engine.dtype, quantization=engine.quantization)


def _default_folder(model: str, data: str | Path) -> Path:
    stem = Path(data).name.split(".")[0].replace(":", "-")
    return run_root() / "eval" / f"{Path(model).name}-{stem}"


def print_summary(summary: Summary, report: LoadReport, *, title: str) -> None:
    """The rates with their intervals, what failed and why, the bad records, and the files."""
    console = Console()
    table = Table(title=f"{title}: {summary.num_examples} problems")
    for heading in ("", "value", "95 % interval"):
        table.add_column(heading, justify="left" if not heading else "right")
    for rate, label in RATES.items():
        value, interval = getattr(summary, rate), summary.intervals.get(rate)
        if value is not None:
            table.add_row(label, f"{value:.1%}",
                          f"{interval[0]:.1%} to {interval[1]:.1%}" if interval else "-")
    console.print(table)
    causes = ", ".join(f"{name} {count}" for name, count in summary.failure_categories.items())
    print(f"Outcomes: {causes}.")
    print(report.describe())
    print(f"Files: {summary.results_path} and summary.json, settings.json beside it.")
