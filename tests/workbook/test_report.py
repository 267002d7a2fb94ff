"""The report and my_alignment.py, from a learner's notebooks, evidence and runs."""

import html
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from workbook import report
from workbook.build import find_source, read_source
from workbook.check import code_hash
from workbook.earlier import _defined
from workbook.hints import lesson_help, lessons_with_help
from workbook.main_numbers import MAIN_NUMBERS, main_numbers
from workbook.own_file import OwnFunctions, apart, collect, own_program, renamed, used
from workbook.progress import course_root, record_check
from workbook.properties import check_version
from workbook.published import own_value
from workbook.recorded import read_recorded
from workbook.submission import read_submission


@pytest.fixture
def learner(tmp_path, monkeypatch):
    """A folder of a learner, empty of evidence and runs."""
    monkeypatch.setenv("WORKBOOK_PROGRESS", str(tmp_path / "work" / ".progress"))
    monkeypatch.setenv("WORKBOOK_RUNS", str(tmp_path / "runs"))
    (tmp_path / "work").mkdir()
    return tmp_path


def solve(learner, lesson, names=None, edit=lambda source: source):
    """The solved notebook of a lesson with evidence of its passed checks."""
    source = read_source(find_source(lesson))
    path = learner / "work" / f"{source.path.stem}.ipynb"
    notebook = nbformat.from_dict(dict(source.notebook))
    for cell in notebook.cells:
        cell.source = edit(cell.source)
    nbformat.write(notebook, path)
    submission = read_submission(path, lesson)
    for name in names or lesson_help(lesson).exercises:
        code = code_hash(_defined(submission, name))
        record_check(lesson, name, "passed", code, check_version(lesson))


def test_without_anything_the_page_says_what_is_missing(learner):
    page, program = report.write_report(learner / "work")
    shown = page.read_text(encoding="utf-8")
    total = sum(len(lesson_help(lesson).exercises) for lesson in lessons_with_help())
    assert f"<b>0 of {total}</b> functions are yours" in shown
    assert "No run of yours yet: lesson 01" in shown and "No adapter of yours" in shown
    assert "No training of yours" in shown and "Not told yet" in shown
    compile(program.read_text(encoding="utf-8"), "my_alignment.py", "exec")


def test_the_page_stands_alone_and_escapes(learner):
    run = learner / "runs" / "05" / "tiny-short"
    (run / "grpo").mkdir(parents=True)
    evil = "<script>alert(1)</script>"
    story = {
        "0": {"proxy": [0.1, 0.9, 1.5], "gold": [0.4, 0.6, 0.2]},
        evil: {"proxy": [1], "gold": []},
    }
    findings = {
        "profile": evil,
        "depth": "short",
        "seconds": 12.3,
        "accuracy": 0.5,
        "reward_model_run": story,
        evil: 3.0,
    }
    (run / "findings.json").write_text(json.dumps(findings))
    (run / "grpo" / "summary.json").write_text(json.dumps({"seconds": 7.0}))
    lines = [json.dumps({"step": k, "loss": 1 / k, "reward_mean": k / 9}) for k in range(1, 9)]
    (run / "grpo" / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "lo']))
    page, _ = report.write_report(learner / "work")
    shown = page.read_text(encoding="utf-8")
    assert "<script" not in shown and "&lt;script&gt;" in shown
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", shown)
    assert links and all(link.startswith("data:image/png") for link in links)
    assert "default-src 'none'" in shown and shown.count("<img") == 2
    assert "12 s" in shown and "7 s" in shown
    assert "0.40 -&gt; 0.60 (step 2) -&gt; 0.20" in shown


MAIN_RESULTS = {
    "01": ["strict_accuracy", "qa_f1"],
    "02": ["test_accuracy", "test_accuracy_clean"],
    "03": ["accuracy_before", ["accuracy_of_seeds", 2]],
    "04": ["accuracy_start", ["accuracy_dpo", 0], ["accuracy_dpo", 2], "win_rate_overtrained"],
    "05": [
        ["accuracy_grpo", 0],
        ["accuracy_grpo", 1],
        ["ablations", "off-policy, clip", "final", 0],
    ],
    "06": ["strategies.cot.base.accuracy", "strategies.self_consistency.tuned.accuracy"],
    "07": ["methods.base.f1", "methods.kto.f1", "methods.sft.sub_em"],
}


@pytest.mark.parametrize("lesson", lessons_with_help())
def test_the_page_shows_the_main_results_of_each_lesson(lesson, learner):
    findings = read_recorded(lesson)
    found = report.runs_part([report.Lesson(lesson, learner, findings)])
    for path in MAIN_RESULTS[lesson]:
        assert f" {own_value(findings, path):.3g}" in found, path
    named = [name for name in MAIN_NUMBERS[lesson] if html.escape(name) not in found]
    assert not named, "these names of MAIN_NUMBERS find nothing in findings.json"


def test_a_lesson_without_its_main_numbers_shows_the_first_plain_ones():
    assert main_numbers("05", {"seconds": 3.0, "ok": True, "some_rate": 0.25, "n": 1319}) == (
        "some rate 0.25; n 1,319"
    )
    broken = {"accuracy_grpo": ["<b>", 0.5], "ablations": {"GRPO": None, "x": {"final": [0.5]}}}
    assert main_numbers("05", broken) == "final accuracy of the ablations, by seed (x: 0.5)"
    assert main_numbers("99", {}) == "-"


def test_broken_files_of_a_run_are_passed_over(learner):
    run = learner / "runs" / "03" / "tiny-short"
    run.mkdir(parents=True)
    (run / "findings.json").write_text("{half")
    (learner / "runs" / "01" / "x").mkdir(parents=True)
    (learner / "runs" / "01" / "x" / "findings.json").write_text("[1]")
    page, _ = report.write_report(learner / "work")
    assert "lesson 01, 02, 03" in page.read_text(encoding="utf-8")


def test_only_functions_that_passed_as_they_are_come_in(learner):
    solve(learner, "03")
    path = next((learner / "work").glob("03_*.ipynb"))
    path.write_text(path.read_text(encoding="utf-8").replace("B, T - 1), right padded", "B, T)"))
    own = collect()
    assert set(own.cells) == {*lesson_help("03").exercises} - {"tokenize_prompt_and_response"}
    assert "has changed" in own.missing["tokenize_prompt_and_response"]
    program = own_program(own, learner / "work")
    assert "class LoRALinear" in program and "def sft_loss" in program
    assert "def tokenize_prompt_and_response" not in program
    assert "4 of " in program.split('"""')[1]


def test_helpers_of_the_same_name_are_kept_apart():
    own = OwnFunctions(
        {
            "one": (
                "01",
                "def clean(x):\n    return x\n\n\ndef one(x):\n    return clean(x).clean\n",
            ),
            "two": ("03", "def clean(x):\n    return -x\n\n\ndef two(x):\n    return clean(x)\n"),
        }
    )
    cells = apart(own, taken={"report"})
    names = {}
    for _, source in cells.values():
        exec(source.replace(".clean", ""), names)
    assert (names["one"](3), names["two"](3)) == (3, -3)
    assert renamed("a.b = b + 1\n", "b", "c") == "a.b = c + 1\n"
    assert used("def f(x, *, y=1):\n    z = [k for k in x]\n    return torch.sum(z) + y\n") == {
        "torch"
    }


def test_my_alignment_runs_the_chain_with_the_learner_s_functions(learner):
    marked = ("sft_loss", "dpo_loss", "group_advantages")

    def mark(source):
        name = next((name for name in marked if f"def {name}(" in source), None)
        line = f"    print('MINE: {name}')\n    ### BEGIN SOLUTION"
        return source.replace("    ### BEGIN SOLUTION", line, 1) if name else source

    for lesson in ("02", "03", "04", "05"):
        solve(learner, lesson, edit=mark)
    _, program = report.write_report(learner / "elsewhere")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, program, "--scale", "0.02", "--out", learner / "adapter"],
        cwd=learner,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    said = re.findall(r"^(base|SFT|DPO|GRPO) +strict accuracy|^MINE: (\w+)", done.stdout, re.M)
    assert list(dict.fromkeys(stage or name for stage, name in said)) == [
        *("base", "sft_loss", "SFT", "dpo_loss", "DPO", "group_advantages", "GRPO")
    ]
    lessons = re.findall(r"^# \w+: lesson (\d\d)$", program.read_text(encoding="utf-8"), re.M)
    assert list(dict.fromkeys(lessons)) == ["03", "02", "04", "05"]
    assert (learner / "adapter" / "adapter_config.json").is_file()
    assert str(course_root()) in program.read_text(encoding="utf-8")
