"""What the loops that sample their own responses do around their steps: the folder, the start."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from helpers.evaluation import write_jsonl
from helpers.reference import Reference, freeze_reference
from helpers.reward_functions import graders_of, reward_identity
from helpers.rewards import qa_reward, r1_zero_reward
from helpers.training.checkpoint import replace_tensors
from helpers.training.engines import Engine, make_engine, name_of
from helpers.training.loop import run_training, trainable_parameters
from helpers.training.rl_settings import RolloutSettings
from helpers.training.rollout_loop import RolloutLoop
from helpers.training.rollout_method import RolloutMethod
from helpers.training.rollouts import Tasks, read_rollouts
from helpers.training.run import (
    REFERENCE,
    ROLLOUTS,
    Run,
    RunFolder,
    append_lines,
    identity_of,
)

GOLDS = {r1_zero_reward: (str,), qa_reward: (str, list, tuple)}  # what the graders read


def run_rollouts(
    model,
    method: RolloutMethod,
    settings: RolloutSettings,
    *,
    held_out: RolloutMethod | None,
    tokenizer,
    callbacks: Sequence[Callable],
    out_dir: str | Path | None,
    resume: bool,
    engine: str | Engine,
) -> Run:
    """Train `model` by `method`; see `train_grpo`."""
    for tasks in (part.tasks for part in (method, held_out) if part is not None):
        check_golds(tasks, method.reward_fn)
    named = {**method.functions, "reward_fn": method.reward_fn}
    identity = {"reward": reward_identity(method.reward_fn), "engine": name_of(engine)}
    digest = method.tasks.digest
    identity |= identity_of(
        method.name, settings, digest, named, model=model, tokenizer=tokenizer
    )
    folder = RunFolder(out_dir, identity=identity, tokenizer=tokenizer, resume=resume)
    if settings.beta or settings.measure_kl:
        method.reference = start_of(model, folder)
    sampler = make_engine(
        engine, model, tokenizer, settings.sampling_batch_size, settings.precision
    )
    loop = RolloutLoop(model, method, settings, sampler, held_out)
    run = run_training(
        model,
        method,
        settings,
        held_out=held_out,
        folder=folder,
        callbacks=[keeper(loop, folder, method.reference), *callbacks],
        loop=loop,
    )
    if out_dir is not None and not run.rollouts:  # a finished run that was returned at once
        groups = read_rollouts(out_dir)
        run.rollouts = [group for group in groups if group["step"] == groups[-1]["step"]]
    return run


def check_golds(tasks: Tasks, reward_fn: Callable) -> None:
    """Raises ValueError for a gold answer that a grader of the course, which the reward function
    is or is made of, cannot read: before the first step, and not when its prompt is drawn."""
    for grader in graders_of(reward_fn):
        wanted = GOLDS.get(grader)
        for place, gold in zip(tasks.places, tasks.golds, strict=True):
            if wanted and not _is_readable(gold, wanted):
                kind = "a text" if wanted == (str,) else "a text or a list of texts"
                raise ValueError(
                    f"Row {place} of the data: {grader.__name__} needs {kind} as gold_answer or "
                    f"answers, but there is {'none' if gold is None else repr(gold)}."
                )


def _is_readable(gold: Any, wanted: tuple[type, ...]) -> bool:
    texts = [gold] if isinstance(gold, str) else gold
    return isinstance(gold, wanted) and all(isinstance(text, str) for text in texts)


def start_of(model, folder: RunFolder) -> Reference:
    """The reference policy of a run: the model as it is; for a run that goes on, as it was.

    Raises ValueError for a run that goes on with trained weights and has lost its reference.
    """
    parameters = trainable_parameters(model)
    tensors = None
    if folder.holds_this_run(parameters) and not folder.started_from(parameters):
        path = folder.path / REFERENCE
        if not path.is_file():
            raise ValueError(
                f"{folder.path} is a run that goes on, but its {REFERENCE} is missing: load the "
                "model that it started from, or start anew in another folder."
            )
        tensors = _read(path)
    reference = freeze_reference(model, tensors)
    if tensors is not None and folder.reference_of_start() != reference.identity:
        raise _damaged(path)
    folder.notes["reference"] = reference.identity
    return reference


def _read(path: Path) -> dict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"{path} is damaged: delete it and load the model that the run started from; it is then "
        "made anew."
    )


def keeper(loop: RolloutLoop, folder: RunFolder, reference: Reference | None) -> Callable:
    """A callback that shows the groups of the step to the run, and keeps them in its folder.

    It runs after the step and before its checkpoint, so what a killed run wrote of later steps is
    cut off when it goes on.
    """
    is_main, started = loop.accelerator.is_main_process, False

    def keep(run: Run, record: dict) -> None:
        nonlocal started
        run.rollouts = loop.groups
        if folder.path is None or not is_main:
            return
        path = folder.path / ROLLOUTS
        if not started:
            earlier = [row for row in read_rollouts(folder.path) if row["step"] < record["step"]]
            write_jsonl(path, earlier)
            _keep_reference(folder.path / REFERENCE, reference)
            started = True
        append_lines(path, loop.groups)

    return keep


def _keep_reference(path: Path, reference: Reference | None) -> None:
    if reference is None or path.exists():
        return
    tensors = {name: tensor.contiguous() for name, tensor in reference.tensors.items()}
    replace_tensors(tensors, path)
