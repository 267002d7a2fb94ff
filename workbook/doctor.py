"""`workbook doctor`: is this machine ready for the course? One line a check, with its fix."""

import importlib.metadata
import os
import platform
import sys
import time
from typing import NamedTuple

from workbook.setup import ROOT, missing, package_set, reachable

HUB = "https://huggingface.co"
MEMORY_GB = 2.0  # a notebook kernel with the tiny model takes about 1.6 GB
BASE = ROOT / "workbook" / "assets" / "base"
QUESTION = "Tom has 11 apples. Later Tom gets 8 apples from Ana. How many apples does Tom have now?"
WORKED = " Later: 11+8=19. The answer is 19."
REINSTALL = "delete .venv and run `python3 -m workbook doctor` again"
INCOMPLETE = "the clone is not complete: `git status` shows what is missing"


class Finding(NamedTuple):
    """What a check found; `fix` is empty where all is well."""

    text: str
    fix: str = ""


def run_doctor() -> int:
    """Run every check and print a line for each; 0 if the machine is ready, else 1."""
    trouble = 0
    for name, check in CHECKS.items():
        start = time.monotonic()
        try:
            finding = check()
        except Exception as error:  # a broken library may raise anything: it becomes that line
            lost = isinstance(error, FileNotFoundError)
            finding = Finding(f"{type(error).__name__}: {error}", INCOMPLETE if lost else REINSTALL)
        trouble += bool(finding.fix)
        seconds = time.monotonic() - start
        took = f" ({seconds:.1f} s)" if seconds > 0.5 else ""
        print(f"{'fix' if finding.fix else 'ok':4}{name:11}{finding.text}{took}", flush=True)
        if finding.fix:
            print(f"{'':15}-> {finding.fix}", flush=True)
    print("ready" if not trouble else f"not ready: {trouble} of {len(CHECKS)} lines need a fix")
    return int(bool(trouble))


def check_python() -> Finding:
    """The interpreter, the environment it belongs to, and the pins that it lacks."""
    lacks = missing(package_set())
    text = f"{platform.python_version()} in {sys.prefix}"
    return Finding(text, f"{REINSTALL}: {', '.join(lacks)} missing" if lacks else "")


def check_torch() -> Finding:
    """The build of torch and the device that it will use."""
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        return Finding(f"{torch.__version__}, {torch.cuda.get_device_name(0)} {memory:.0f} GB")
    device = "Apple GPU" if torch.backends.mps.is_available() else "CPU"
    return Finding(f"{torch.__version__}, {device} (enough for the tiny profile)")


def check_memory() -> Finding:
    """Memory that is free now."""
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    short = memory.available / 1e9 < MEMORY_GB
    return Finding(text, f"close programs until {MEMORY_GB:.0f} GB are free" if short else "")


def check_threads() -> Finding:
    """Threads that torch uses, and whether the allocator keeps large blocks."""
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count()
    text = f"{threads} of {cores} cores (those that were free; OMP_NUM_THREADS sets another number)"
    keeps = "MALLOC_TRIM_THRESHOLD_" in os.environ
    return Finding(
        text, "" if keeps else "start by `python3 -m workbook`, which sets the allocator"
    )


def check_engines() -> Finding:
    """The libraries that run and quantise models; only transformers is needed here."""
    names = ("transformers", "bitsandbytes", "vllm", "gptqmodel")
    return Finding(", ".join(f"{name} {version_of(name) or 'not installed'}" for name in names))


def version_of(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_hub() -> Finding:
    """Where models would be downloaded from; the tiny profile downloads nothing."""
    address = os.environ.get("HF_ENDPOINT", HUB)
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return Finding("offline by HF_HUB_OFFLINE (fine for the tiny profile)")
    if reachable(address):
        return Finding(f"{address} answers")
    if "HF_ENDPOINT" in os.environ:
        return Finding(f"{address} does not answer", "correct or unset HF_ENDPOINT")
    return Finding(f"{address} does not answer (fine for the tiny profile; HF_ENDPOINT: a mirror)")


def check_model() -> Finding:
    """Load the model of the tiny profile."""
    model, _ = load_base()
    return Finding(f"workbook/assets/base, {model.num_parameters() / 1e6:.1f} M parameters")


def check_answer() -> Finding:
    """Answer one question, greedily; a base model may be wrong, so the answer is only shown."""
    from helpers.prompts import load_template, render
    from helpers.rollout import SamplingSettings, generate

    model, tokenizer = load_base()
    prompt = render(load_template("question_answer"), question=QUESTION)
    sampling = SamplingSettings(temperature=0.0, max_new_tokens=40)
    answer = generate(model, tokenizer, [prompt], sampling=sampling)[0].text
    return Finding(f"{QUESTION} -> {' '.join(answer.split()) or '(nothing)'}")


def check_training() -> Finding:
    """Take one step on one worked answer: its loss must fall."""
    import torch

    from helpers.logprobs import response_log_probs, tokenize_prompt_and_response

    model, tokenizer = load_base()
    batch = tokenize_prompt_and_response([QUESTION], [WORKED], tokenizer)
    mask = batch["response_mask"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        scored = response_log_probs(
            model, batch["input_ids"], batch["labels"], attention_mask=batch["attention_mask"]
        )
        loss = -scored["log_probs"][mask].mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    fell = losses[1] < losses[0]
    text = f"loss {losses[0]:.3f} -> {losses[1]:.3f} in one step"
    return Finding(text, "" if fell else "it should fall: please report this with the lines above")


def check_check() -> Finding:
    """Run the check of the course's first exercise on the course's own solution."""
    from workbook.hints import lesson_help, lessons_with_help, reference_function
    from workbook.properties import evaluate

    lesson = lessons_with_help()[0]
    name = next(iter(lesson_help(lesson).exercises))
    found = evaluate(lesson, name, reference_function(name), seed=0)
    text = f"{name}: {found.held} of {found.total} properties hold"
    text += f" ({found.remark})" if found.remark else ""
    whole = found.held == found.total
    return Finding(text, "" if whole else "run `git status`: a course file changed")


def load_base():
    """The shipped model and its tokenizer, fresh: the training check changes its copy."""
    from helpers.models import load_model

    return load_model(BASE, device="cpu")


CHECKS = {
    "Python": check_python,
    "PyTorch": check_torch,
    "memory": check_memory,
    "threads": check_threads,
    "engines": check_engines,
    "model hub": check_hub,
    "load": check_model,
    "answer": check_answer,
    "train": check_training,
    "check": check_check,
}
