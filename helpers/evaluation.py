"""Evaluate a model: generate, grade, summarise, with intervals, and write both artefacts.

`evaluate` does all of it. Its parts stand alone, so that any of them can be replaced:

    prompts     = build_prompts(dataset, prompt)
    completions = complete(model, tokenizer, prompts, ...)
    rows        = grade_completions(dataset, completions, reward_fn, prompts=prompts)
    summary     = summarise(rows)

Below them: the statistics that belong beside every rate (Wilson and bootstrap intervals, an exact
paired test, pass@k), the report of scored preference pairs, and best-of-n.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import comb
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest, bootstrap

from helpers.atomic import write_json as write_json
from helpers.atomic import write_text
from helpers.data import LoadReport
from helpers.prompts import render, render_passages
from helpers.reward_functions import REWARD_PARTS, grade_all, refuse
from helpers.rewards import (
    extract_answer,
    failure_category,
    graded_text,
    is_equivalent,
    last_number,
    qa_failure_category,
    sub_em,
    token_f1,
)
from helpers.rollout import Completion, SamplingSettings, generate, refuse_empty, window_of
from helpers.text_files import regular_file
from helpers.tokens import encode_prompt

# Greedy, and without a stop string: one at </answer> would hide what a model writes after it.
EVALUATION_SAMPLING = SamplingSettings(temperature=0.0, max_new_tokens=512)

Interval = tuple[float, float]
Reward = Callable[..., dict[str, float]]  # (response, gold), and prompt=... if it takes it


@dataclass
class Summary:
    """What an evaluation found; the fields of summary.json.

    num_examples: problems; num_samples: completions (n a problem). format_rate, accuracy,
    avg_reward: means of format_reward, answer_reward and reward over the samples.
    lenient_accuracy: the last number is the gold (maths). sub_em, f1: open-book QA. None where
    the data are of the other kind.
    intervals: 95 %, by the name of the rate: Wilson for one 0/1 result a problem, else a
    bootstrap over problems; None where one problem is all there is.
    """

    num_examples: int
    format_rate: float
    accuracy: float
    avg_reward: float
    results_path: str = ""
    num_samples: int = 0
    lenient_accuracy: float | None = None
    sub_em: float | None = None
    f1: float | None = None
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    failure_categories: dict[str, int] = field(default_factory=dict)
    mean_token_count: float = 0.0
    seconds: float | None = None
    load_report: dict[str, Any] | None = None


def evaluate(
    model,
    tokenizer,
    dataset,
    *,
    prompt: str | Callable[[dict], str],
    reward_fn: Reward,
    out_dir: str | Path,
    sampling: SamplingSettings = EVALUATION_SAMPLING,
    n: int = 1,
    batch_size: int = 128,
    engine: str = "auto",
    load_report: LoadReport | None = None,
    progress: bool = False,
) -> Summary:
    """Run the model over the data set; write results.jsonl and summary.json into out_dir.

    dataset: canonical maths (question, gold_answer) or QA (question, passages, answers) records
    of `helpers.data.load_records`. prompt: a template with {question} (and {passages}), or a
    function from record to prompt. reward_fn: (response, gold) -> format_reward, answer_reward,
    reward, see `helpers.reward_functions`; gold is a text for maths and a list of texts for QA.
    n: samples a problem. engine: who samples, see `helpers.rollout.generate`.
    A prompt that does not fit into the model's window is not dropped: it is graded as a failure
    of the category prompt_too_long, with rewards of 0.

    Raises ValueError for an empty data set, records without a gold answer, or a reward function
    that does not return its three finite numbers.

    Example:
        >>> summary = evaluate(model, tokenizer, data, prompt=load_template("r1_zero"),
        ...                    reward_fn=r1_zero_reward, out_dir="runs/eval")  # doctest: +SKIP
        >>> summary.format_rate, summary.intervals["format_rate"]              # doctest: +SKIP
        (0.025, (0.0178, 0.0349))
    """
    start = time.monotonic()
    dataset = dataset if hasattr(dataset, "__len__") else list(dataset)  # it is read twice
    prompts = build_prompts(dataset, prompt)
    completions = complete(model, tokenizer, prompts, sampling=sampling, n=n,
                           batch_size=batch_size, engine=engine, progress=progress)
    rows = grade_completions(dataset, completions, reward_fn, prompts=prompts)
    results_path = Path(out_dir) / "results.jsonl"
    summary = replace(
        summarise(rows),
        results_path=str(results_path),
        seconds=round(time.monotonic() - start, 2),
        load_report=load_report.as_dict() if load_report else None,
    )
    results_path.with_name("summary.json").unlink(missing_ok=True)  # of the results before
    write_jsonl(results_path, rows)
    write_json(results_path.with_name("summary.json"), asdict(summary))
    return summary


# ---------------------------------------------------------------- the four steps


def build_prompts(records: Iterable[dict], prompt: str | Callable[[dict], str]) -> list[str]:
    """One prompt a record, from a template or by a function.

    >>> build_prompts([{"question": "2 + 2?"}], "Question: {question}")
    ['Question: 2 + 2?']
    """
    return [prompt(record) if callable(prompt) else _fill(prompt, record) for record in records]


def _fill(template: str, record: dict) -> str:
    fields = {"question": record["question"]}
    if "passages" in record:
        fields["passages"] = render_passages(record["passages"])
    return render(template, **fields)


def complete(
    model,
    tokenizer,
    prompts: Sequence[str],
    *,
    sampling: SamplingSettings = EVALUATION_SAMPLING,
    n: int = 1,
    batch_size: int = 128,
    engine: str = "auto",
    progress: bool = False,
) -> list[Completion]:
    """`helpers.rollout.generate`, but a prompt that is too long gives n empty completions.

    Their finish_reason is "prompt_too_long". One long problem must not end a run of thousands.

    Raises ValueError for an empty prompt, before anything is sampled.
    """
    ids, window = [encode_prompt(prompt, tokenizer) for prompt in prompts], window_of(model)
    for index, row in enumerate(ids):
        refuse_empty(row, index)
    places = [index for index, row in enumerate(ids) if len(row) < window]
    # By their places in the whole list: a prompt that is left out changes no other's samples.
    generated = iter(generate(model, tokenizer, [prompts[i] for i in places], n=n,
                              sampling=sampling, engine=engine, batch_size=batch_size,
                              first=places, progress=progress) if places else [])
    return [
        next(generated) if len(row) < window
        else Completion(prompt_token_ids=list(row), finish_reason="prompt_too_long")
        for row in ids for _ in range(n)
    ]


def grade_completions(
    records: Iterable[dict],
    completions: Sequence[Completion],
    reward_fn: Reward,
    *,
    prompts: Sequence[str],
) -> list[dict[str, Any]]:
    """One row a completion: the lines of results.jsonl.

    completions: prompt by prompt, the same number for each record.

    A row holds id, sample (0 .. n - 1), prompt, generation, response_for_grader (the graded
    part; None where the generation states no answer), gold_answer, metrics (the three reward
    parts; for QA also sub_em and f1), lenient, failure_category, token_count, finish_reason,
    and fields (what else the record carries).
    """
    records = list(records)
    if not records or len(completions) % len(records) or len(prompts) != len(records):
        raise ValueError(f"{len(records)} records, {len(prompts)} prompts and {len(completions)} "
                         "completions do not fit together: one prompt and n completions a record.")
    n = len(completions) // len(records)
    each = [(record, prompt) for record, prompt in zip(records, prompts, strict=True)
            for _ in range(n)]
    parts = _graded(each, completions, reward_fn)
    return [
        {"id": record["id"], "sample": i % n, "prompt": prompt,
         **_row(record, completion, metrics)}
        for i, ((record, prompt), completion, metrics) in enumerate(
            zip(each, completions, parts, strict=True))
    ]


def _graded(
    each: Sequence[tuple[dict, str]], completions: Sequence[Completion], reward_fn: Reward
) -> list[dict[str, float]]:
    """The three reward parts of each completion; each: its (record, prompt).

    Nothing was written for a prompt that is too long, and a reward model cannot read it either.
    """
    golds = [_gold(record) for record, _ in each]
    asked = [i for i, c in enumerate(completions) if c.finish_reason != "prompt_too_long"]
    found = grade_all(reward_fn, [each[i][1] for i in asked],
                      [completions[i].text for i in asked], [golds[i] for i in asked])
    parts = [dict.fromkeys(REWARD_PARTS, 0.0) for _ in completions]
    for i, given in zip(asked, found, strict=True):
        parts[i] = {name: given[name] for name in REWARD_PARTS}
        if not np.isfinite(list(parts[i].values())).all():
            refuse(given, reward_fn)
    return parts


def _row(record: dict, completion: Completion, parts: dict[str, float]) -> dict[str, Any]:
    is_qa, text = "answers" in record, completion.text
    gold = _gold(record)
    if is_qa:
        graded = graded_text(text)
        parts |= {"sub_em": sub_em(graded, gold), "f1": token_f1(graded, gold)}
        lenient = parts["sub_em"] == 1
        category = qa_failure_category(text, completion.finish_reason, parts)
    else:
        graded = extract_answer(text)
        lenient = is_equivalent(last_number(text), gold)
        category = failure_category(text, completion.finish_reason, parts, lenient)
    known = ("id", "question", "passages", "answer", "answers", "gold_answer")
    return {
        "generation": text, "response_for_grader": graded, "gold_answer": gold, "metrics": parts,
        "lenient": lenient, "failure_category": category,
        "token_count": len(completion.token_ids), "finish_reason": completion.finish_reason,
        "fields": {name: value for name, value in record.items() if name not in known},
    }


def _gold(record: dict) -> str | list[str]:
    for name in ("answers", "gold_answer"):
        if name in record:
            return record[name]
    raise ValueError(f"Record {record.get('id')} has no gold answer: evaluation needs the column "
                     f"gold_answer or answers, and there are {', '.join(record)}.")


def summarise(rows: Sequence[dict[str, Any]]) -> Summary:
    """The rates of graded rows, each with its 95 % interval, and the counts of failures.

    Rows may be a selection, such as the problems of one kind.

    Raises ValueError where there is no row, or one without a finite number for a rate.
    """
    if not rows:
        raise ValueError("There is nothing to summarise: no rows were given.")
    is_qa = "sub_em" in rows[0]["metrics"]
    columns = {"format_rate": "format_reward", "accuracy": "answer_reward", "avg_reward": "reward"}
    columns |= {"sub_em": "sub_em", "f1": "f1"} if is_qa else {}
    values = {rate: _column(rows, column) for rate, column in columns.items()}
    if not is_qa:
        values["lenient_accuracy"] = [float(row["lenient"]) for row in rows]
    ids = [row["id"] for row in rows]
    return Summary(
        num_examples=len(set(ids)),
        num_samples=len(rows),
        intervals={rate: mean_interval(column, ids) for rate, column in values.items()},
        failure_categories=dict(Counter(row["failure_category"] for row in rows).most_common()),
        mean_token_count=float(np.mean([row["token_count"] for row in rows])),
        **{rate: float(np.mean(column)) for rate, column in values.items()},
    )


def _column(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """One metric of all rows; raises ValueError for the first row that has no number there."""
    for place, row in enumerate(rows):
        value = row["metrics"].get(name)
        if value is None or not np.isfinite(value):
            raise ValueError(f"The row of problem {row.get('id', place)!r} has no number as "
                             f"{name}, but {value}: grade it again, or leave it out.")
    return [float(row["metrics"][name]) for row in rows]


def summarise_rates(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Format, strict and lenient rate of maths rows, each as (rate, low, high): never one alone.

    rows: as in results.jsonl. The interval is Wilson's at 95 % where there is one row a problem
    (rows without an id are problems of their own), else that of `mean_interval`.

    Raises ValueError where there is no row, or one without a finite number for a rate.
    """
    if not rows:
        raise ValueError("There is nothing to summarise: no rows were given.")
    ids = [row.get("id", ("row", place)) for place, row in enumerate(rows)]
    hits = {
        "format_rate": _column(rows, "format_reward"),
        "accuracy": _column(rows, "reward"),
        "lenient_accuracy": [float(row["lenient"]) for row in rows],
    }
    return {name: (sum(column) / len(rows), *(mean_interval(column, ids) or (0.0, 1.0)))
            for name, column in hits.items()}


# ---------------------------------------------------------------- statistics


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """The score interval of a rate (Wilson 1927): it stays inside 0 .. 1 and holds near both.

    >>> [round(bound, 3) for bound in wilson_interval(0, 20)]
    [0.0, 0.161]

    Raises ValueError for no trials, and for more successes than trials.
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"A rate needs one trial or more and at most as many successes, but there "
                         f"are {successes} successes in {total} trials.")
    found = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0,
    weights: Sequence[float] | None = None,
) -> Interval:
    """Percentile bootstrap of the mean, for rewards and F1 that are not 0/1.

    For two methods on the same problems give the differences: that is the paired interval.
    weights: how much each value counts in the mean, such as the samples of a problem.

    A bootstrap knows only what was drawn: ten equal values have no width at all. So the interval
    is at least that of what may not have been drawn (`_unseen`). It binds near the ends of the
    scale and for few values; elsewhere the bootstrap is wider.

    Raises ValueError for fewer than two values, and for one that is no finite number.

    >>> [round(bound, 3) for bound in bootstrap_interval([1.0] * 20)]
    [0.839, 1.0]
    """
    values = _finite(values, "A bootstrap interval")
    if len(values) < 2:
        raise ValueError(f"A bootstrap interval needs two values or more, not {len(values)}.")
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    if counts.shape != values.shape or not ((counts > 0) & np.isfinite(counts)).all():
        raise ValueError(f"A bootstrap interval of {len(values)} values needs as many weights, "
                         "each a finite number above 0.")
    if weights is None or len(set(weights)) == 1:
        data, mean = (values,), np.mean
    else:
        data, mean = (values * counts, counts), _ratio
    found = bootstrap(data, mean, n_resamples=resamples, confidence_level=confidence,
                      method="percentile", batch=100, paired=len(data) > 1, vectorized=True,
                      rng=np.random.default_rng(seed)).confidence_interval
    low, high = _unseen(values, counts, confidence)
    return min(float(found.low), low), max(float(found.high), high)


def _ratio(values: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.sum(axis=axis) / counts.sum(axis=axis)


def _unseen(values: np.ndarray, counts: np.ndarray, confidence: float) -> Interval:
    """How far values of a kind that was not drawn may move the mean.

    A kind with a share of q = z^2 / (n + z^2) can be missing among n values: 1 - q is Wilson's
    lower bound of n right ones out of n. Unequal counts make n smaller (Kish 1965, section 8.2).
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = z * z / (float(counts.sum() ** 2 / (counts**2).sum()) + z * z)
    bottom, top = _scale(values)
    kept = (1 - share) * float((values * counts).sum() / counts.sum())
    return kept + share * bottom, kept + share * top


def _scale(values: np.ndarray) -> Interval:
    """Where a value may lie: 0 to 1 for values inside, else from the least to the largest one.

    Equal values say nothing of their scale: it is taken as -1 to 1, as of differences, or as far
    as the value is from 0.
    """
    low, high = float(values.min()), float(values.max())
    if low >= 0 and 0 < high <= 1:
        return 0.0, 1.0
    if low < high:
        return low, high
    return -max(1.0, abs(low)), max(1.0, abs(low))


def _finite(values: Sequence[float], what: str) -> np.ndarray:
    """The values as an array; raises ValueError for the first that is no finite number."""
    found = np.asarray(values, dtype=float)  # None becomes nan
    if not np.isfinite(found).all():
        place = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ValueError(f"{what} is of finite numbers, but value {place} is {found.flat[place]}: "
                         "leave it out, or mend what gave it.")
    return found


def mean_interval(values: Sequence[float], ids: Sequence[Any]) -> Interval | None:
    """95 % interval of a mean over samples, of which those with the same id are one problem.

    Eight samples of a problem are not eight problems: the bootstrap draws problems, each with all
    of its samples. One 0/1 result a problem gives Wilson's interval; a single problem otherwise
    gives None.

    Raises ValueError for a value that is no finite number.

    >>> [round(bound, 3) for bound in mean_interval([1.0] * 40, [k // 2 for k in range(40)])]
    [0.839, 1.0]
    """
    values = _finite(values, "An interval").tolist()
    if len(set(ids)) == len(values) and set(values) <= {0.0, 1.0}:
        return wilson_interval(int(sum(values)), len(values))
    groups: dict[Any, list[float]] = {}
    for key, value in zip(ids, values, strict=True):
        groups.setdefault(key, []).append(value)
    if len(groups) < 2:
        return None
    low, high = bootstrap_interval([np.mean(group) for group in groups.values()],
                                   weights=[len(group) for group in groups.values()])
    is_rate = 0 <= min(values) and max(values) <= 1
    return (max(low, 0.0), min(high, 1.0)) if is_rate else (low, high)


class PairedTest(NamedTuple):
    """Problems that only the first, only the second method solves; the exact p-value."""

    only_first: int
    only_second: int
    p_value: float


def paired_test(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """McNemar's exact test of two methods on the same problems, in the same order.

    Only the problems on which the two differ tell them apart: under "no difference" each falls
    to either side with probability 1/2 (two-sided binomial test).

    >>> paired_test([True] * 6 + [False], [False] * 6 + [False])
    PairedTest(only_first=6, only_second=0, p_value=0.03125)

    Raises ValueError for unequal numbers of results, and for one that is no finite number.
    """
    first, second = (_finite(column, "A paired test") for column in (first, second))
    pairs = list(zip(first, second, strict=True))
    only_first = sum(bool(a) and not b for a, b in pairs)
    only_second = sum(bool(b) and not a for a, b in pairs)
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return PairedTest(only_first, only_second, p_value)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that one of k samples is right (Chen et al. 2021, 2107.03374, Eq. 1).

    The unbiased estimate from n samples, c of them right: 1 - C(n - c, k) / C(n, k).

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@k needs 0 <= correct <= samples and 1 <= k <= samples, but there "
                         f"are {num_samples} samples, {num_correct} correct, k = {k}.")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def mean_pass_at_k(rows: Sequence[dict], k: int, *, lenient: bool = False) -> float:
    """pass@k over all problems of graded rows; a sample is right by its answer_reward, or,
    with lenient, where its last number is the gold.

    Raises ValueError where there is no row, or one without a number as answer_reward."""
    if not rows:
        raise ValueError("There is no pass@k of nothing: no rows were given.")
    answers = [row["lenient"] for row in rows] if lenient else _column(rows, "answer_reward")
    groups: dict[Any, list[bool]] = {}
    for row, answer in zip(rows, answers, strict=True):
        groups.setdefault(row["id"], []).append(bool(answer >= 1))
    return float(np.mean([pass_at_k(len(group), sum(group), k) for group in groups.values()]))


# ---------------------------------------------------------------- preferences


def preference_report(better_scores: Sequence[float], worse_scores: Sequence[float]) -> dict:
    """How a reward model scores pairs: the first argument is of the responses called better.

    better_data_mean, worse_data_mean: mean scores. worse_worse_than_better_count: pairs in the
    right order; worse_better_than_better_count: in the wrong one; ties: equal scores, which are
    in neither count. accuracy: share of pairs in the right order, so a tie is not right.
    Scores are lists or tensors (N,) of any float type.

    Raises ValueError for no pairs, unequal numbers, and scores that are not finite.

    >>> report = preference_report([2.0, 1.0, 0.5], [1.0, 1.0, 0.75])
    >>> report["worse_worse_than_better_count"], report["ties"], round(report["accuracy"], 3)
    (1, 1, 0.333)
    """
    better, worse = (torch.as_tensor(s, dtype=torch.float64)
                     for s in (better_scores, worse_scores))
    if better.ndim != 1 or better.shape != worse.shape or not len(better):
        raise ValueError(f"preference_report needs as many better as worse scores, and at least "
                         f"one; it got shapes {tuple(better.shape)} and {tuple(worse.shape)}.")
    if not (better.isfinite() & worse.isfinite()).all():
        raise ValueError("preference_report got a score that is not finite.")
    right = int((better > worse).sum())
    wrong = int((better < worse).sum())
    return {
        "better_data_mean": better.mean().item(),
        "worse_data_mean": worse.mean().item(),
        "worse_better_than_better_count": wrong,
        "worse_worse_than_better_count": right,
        "ties": len(better) - right - wrong,
        "accuracy": right / len(better),
    }


def best_of_n(
    proxy: Sequence[Sequence[float]], gold: Sequence[Sequence[float]], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Proxy and gold reward of the sample that the proxy likes best among n, for each prompt.

    proxy, gold: (P, N) rewards of N samples a prompt. Returns two arrays (P,): expectations over
    all choices of n of the N samples, in which the k-th lowest by proxy is the best C(k - 1, n - 1)
    times of C(N, n) (Nakano et al. 2021, 2112.09332, appendix I). Equal proxies keep their order.

    Raises ValueError for shapes that do not fit, and for a reward that is no finite number, which
    could not be ranked.

    >>> proxy, gold = best_of_n([[0.0, 1.0, 2.0]], [[0.0, 9.0, 3.0]], 2)
    >>> gold.tolist() == [(9 + 2 * 3) / 3]
    True
    """
    proxies, golds = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    if proxies.ndim != 2 or proxies.shape != golds.shape or not 1 <= n <= proxies.shape[1]:
        raise ValueError(f"best_of_n needs n of the N samples of each prompt; it got proxies "
                         f"{proxies.shape}, golds {golds.shape} and n = {n}.")
    for name, rewards in (("proxy", proxies), ("gold", golds)):
        if not np.isfinite(rewards).all():
            row, sample = np.argwhere(~np.isfinite(rewards))[0]
            raise ValueError(f"best_of_n cannot rank {rewards[row, sample]}, the {name} reward of "
                             f"sample {sample} of prompt {row}: score it again, or leave the "
                             "prompt out.")
    count = proxies.shape[1]
    choices = comb(count, n)  # of 1,200 by 600 more than a float holds; the quotients are shares
    weights = np.array([comb(k, n - 1) / choices for k in range(count)])
    order = np.argsort(proxies, axis=1, kind="stable")
    return tuple(np.take_along_axis(rewards, order, 1) @ weights for rewards in (proxies, golds))


# ---------------------------------------------------------------- files


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """One JSON object a line, atomically (see `write_json`)."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: str | Path) -> list[dict]:
    """The objects of a JSONL file; none where there is no file, or it is empty.

    A last line that a kill left half written is left out. Raises ValueError, with the line, for a
    fault that stands anywhere else: the rows behind it would be lost.
    """
    path = Path(path)
    content = regular_file(path).read_bytes() if os.path.lexists(path) else b""
    # Not splitlines: it also cuts at U+2028 and others that JSON writes inside a text as they are.
    *lines, last = content.split(b"\n")
    rows = [_row_of(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    try:
        return rows + ([_row_of(last, path, len(lines) + 1)] if last.strip() else [])
    except ValueError:
        return rows


def _row_of(line: bytes, path: Path, number: int) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: {error}; the file is damaged.") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: no object stands there; the file is damaged.")
    return row


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file: says of which weights a measurement is."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
