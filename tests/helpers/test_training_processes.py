"""helpers.training in two processes: the gradients, losses and weights of one."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("training_processes.py")
ROOT = SCRIPT.parents[2]
# In float64 two orders of summation differ by about 1e-16 times the terms (thousands), and a few
# steps of AdamW carry that on: 1e-9 leaves a factor of a thousand and would show a lost example.
CLOSE = 1e-9
# KTO hands its reference point around in float32: 6e-8 of it, which its losses and steps carry on.
CLOSE_IN_KTO = 1e-6


def found_in(out, processes):
    """The script's report and tensors of every process."""
    reports = [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]
    return reports, [load_file(out / f"{rank}.safetensors") for rank in range(processes)]


def in_two_processes(folder, out, size):
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
               "2", str(SCRIPT), str(folder), str(out), str(size)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return found_in(out, processes=2)


def in_this_process(folder, out, size):
    out.mkdir()
    runpy.run_path(str(SCRIPT))["main"](str(folder), str(out), str(size))
    return found_in(out, processes=1)


def test_two_processes_are_one(tiny_folder, tmp_path):
    (single,), (expected,) = in_this_process(tiny_folder, tmp_path / "one", size=8)
    reports, tensors = in_two_processes(tiny_folder, tmp_path / "two", size=2)
    assert single["processes"] == 1
    for report, found in zip(reports, tensors, strict=True):
        assert report["processes"] == 2 and report["threads"] == 1
        for kind, steps in (("sft", 8), ("reward", 8), ("dpo", 4), ("kto", 6), ("robust", 2),
                            ("hinge", 2), ("ipo", 2), ("simpo", 2), ("orpo", 2)):
            assert [row["step"] for row in report[kind]] == list(range(1, steps + 1))
            close = CLOSE_IN_KTO if kind == "kto" else CLOSE
            for name in ("loss", "grad_norm", "lr"):
                assert [row[name] for row in report[kind]] == pytest.approx(
                    [row[name] for row in single[kind]], abs=close, rel=close), (kind, name)
        for kind in ("sft", "dpo", "kto"):
            assert report[kind][-1]["eval_loss"] == pytest.approx(
                single[kind][-1]["eval_loss"], abs=CLOSE_IN_KTO)
        assert [row["reference_point"] for row in report["kto"]] == pytest.approx(
            [row["reference_point"] for row in single["kto"]], abs=CLOSE_IN_KTO)
        for name, tensor in expected.items():
            close = CLOSE_IN_KTO if name.startswith("kto/") else CLOSE
            assert (found[name] - tensor).abs().max() < close, name
    references = [load_file(tmp_path / name / "dpo/reference.safetensors") for name in
                  ("one", "two")]
    for name, logps in references[0].items():
        assert (references[1][name] - logps).abs().max() < CLOSE
    logged = (tmp_path / "two" / "sft" / "metrics.jsonl").read_text().splitlines()
    assert len(logged) == 8
