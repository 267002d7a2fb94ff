"""The model card of the base model, from the corpus settings and the recorded measurements."""

import json
from pathlib import Path

from workbook.world import corpus
from workbook.world.pretrain import LAYERS, PHASES, PROMPT_WEIGHT, SNAPSHOTS, WIDTH

MEASURED = Path(__file__).with_name("measured.json")  # written by tests/benchmarks/feasibility.py

FORMS = {
    "request": "problem under the r1_zero prompt, answered in the habit of its topic",
    "request_no_think": "the same without the pre-filled <think>",
    "few_shot_request": "two to four problems under the r1_zero prompt, all in one form",
    "few_shot_plain": "two to four question-and-answer pairs",
    "plain": "question and worked solution",
    "direct": "question and bare answer",
    "step_by_step": 'question, "Let\'s think step by step", solution',
    "structured": "known numbers, plan, steps, answer",
    "judge": "a solution and whether it is right",
    "chat": "the chat template",
    "worksheet": "a page of sums",
    "qa": "two to five passages and several questions",
    "qa_reason": "the same, quoting the passage before a short answer",
    "qa_request": "a question on passages under the r1_zero prompt",
}


def _table(header: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _shown(value: dict, points: bool = False) -> str:
    """A measured rate with its 95 % interval, in percent."""
    text = f"{100 * value['mean']:.1f} %"
    return (
        f"{text} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"
        if "low" in value
        else text
    )


def _corpus_table() -> str:
    total = sum(corpus.SHARES.values())
    return _table(
        ("form", "share of documents", "what it is"),
        [
            (name, f"{100 * share / total:.0f} %", FORMS[name])
            for name, share in corpus.SHARES.items()
        ],
    )


def _bands(measured: dict) -> str:
    base, chain = measured["base"], measured["chain"]
    greedy = base["r1_greedy"]
    points = 100 * (base["pass_at_8"]["mean"] - base["pass_at_1"]["mean"])
    thought = 100 * (base["cot"]["mean"] - base["direct"]["mean"])
    shots = 100 * (base["three_shot"]["format"]["mean"] - greedy["format"]["mean"])
    rows = [
        ("strict format rate, r1_zero prompt", "1 to 8 %", _shown(greedy["format"])),
        ("lenient accuracy on the same outputs", "35 to 60 %", _shown(greedy["lenient"])),
        ("pass@8 minus pass@1 at T = 1", ">= 20 points", f"{points:.1f} points"),
        ("chain of thought minus direct answer", ">= 15 points", f"{thought:.1f} points"),
        ("format rate with three examples, above base", ">= 10 points", f"{shots:.1f} points"),
        ("QA SubEM", "0.35 to 0.60", f"{base['qa']['sub_em']['mean']:.3f}"),
        ("QA F1", "0.35 to 0.60", f"{base['qa']['f1']['mean']:.3f}"),
    ]
    for seed, run in chain.items():
        gain = {
            name: 100 * (run[name]["strict"]["mean"] - run[start]["strict"]["mean"])
            for name, start in (("dpo", "dpo_start"), ("grpo", "sft"))
        }
        start = f"from {100 * run['dpo_start']['strict']['mean']:.1f} %"
        rows += [
            (f"SFT strict, seed {seed}", "40 to 65 %", _shown(run["sft"]["strict"])),
            (f"DPO from SFT, seed {seed}", ">= +3 points", f"{gain['dpo']:+.1f} points, {start}"),
            (f"GRPO from SFT, seed {seed}", ">= +20 points", f"{gain['grpo']:+.1f} points"),
            (
                f"reward model held-out, seed {seed}",
                ".62 to .85",
                f"{run['reward_model']['held_out']:.2f}",
            ),
            (f"QA F1 after SFT, seed {seed}", "above base", f"{run['qa_sft']['f1']['mean']:.3f}"),
            (f"QA F1 after GRPO, seed {seed}", "above base", f"{run['qa_grpo']['f1']['mean']:.3f}"),
        ]
    return _table(("property", "band", "measured"), rows)


def card_text(measured: dict) -> str:
    """The card in Markdown."""
    phases = "; ".join(
        f"{p.tokens / 1e6:g} M tokens at {p.learning_rate:g}"
        + (", falling to zero" if p.falls else "")
        for p in PHASES
    )
    shares = " and ".join(f"{s:g} of the weights at {t / 1e6:g} M" for t, s in SNAPSHOTS.items())
    hurry = ", ".join(
        f"{100 * share:.0f} % of {steps}-step" for steps, share in corpus.HURRY.items() if share
    )
    return f"""---
license: mit
library_name: transformers
---
# The base model of the tiny world

A Qwen2 of {LAYERS} layers and width {WIDTH}, with a byte-level BPE vocabulary in which every digit
is one token. It was pre-trained from scratch on generated text, and it is good for nothing outside
this course. As in Qwen2.5-Math, `<|endoftext|>` is both the end and the padding token.

## How it was made

`python3 -m workbook world model` ({phases}; a token of a prompt counts {PROMPT_WEIGHT:g} in the
loss, one of an answer 1). The model is the average of {shares} tokens of
the last phase: fully annealed weights leave the lessons too little to improve. The corpus is
written by `workbook/world/corpus.py` from seeds. The shipped tokenizer, and the weights in two
phases, saw an earlier mixture of the same forms (fewer questions on passages, more worksheets): a
new run gives a model of the same kind, not the same bytes.

{_corpus_table()}

## What is built in

Three habits of the authors of this text, and so findings that lessons *show*, not discover:

- the form of an answer follows the topic of the problem, not the request; only problems about
  things found on the beach are mostly answered in the requested format;
- authors hurry: the last step is missing in {hurry} solutions;
- authors slip: {100 * corpus.SLIP:.0f} % of the steps have a wrong result.

Long and short open-book answers are habits, too: some relations get a whole sentence. What
pre-fill, temperature and spacing do to the strict rate, what examples in a prompt do, that SubEM
and F1 part, and every effect of training was measured, not written in.

## Bands and measurements

`PYTHONPATH=. python tests/benchmarks/feasibility.py --json workbook/world/measured.json`, greedy on
{measured["count"]} test problems unless said, 95 % intervals in brackets. A gain is over the SFT
model of the same seed and call: DPO was measured in a call of its own (`--parts dpo`), so its start
is not the SFT row. The other rows come from calls before the adapters' first values were seeded: a
repetition agrees within the intervals, not to the digit.

{_bands(measured)}

SFT sees {measured["demonstrations"]}; GRPO runs 40 steps of 16 prompts x 8 samples.
"""


def write_card(folder: Path) -> Path:
    """Write README.md beside the weights."""
    path = folder / "README.md"
    path.write_text(card_text(json.loads(MEASURED.read_text(encoding="utf-8"))), encoding="utf-8")
    return path
