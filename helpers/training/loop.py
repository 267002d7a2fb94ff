"""The loop that all methods share: optimiser steps over micro-batches and processes."""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from helpers.loading import embedding_rows
from helpers.modes import evaluation_mode, lora_dropout, without_dropout
from helpers.training.batches import StepPlan, micro_batches
from helpers.training.checkpoint import fingerprint, seeded, set_random_states
from helpers.training.method import Batch, Method
from helpers.training.run import Run, RunFolder
from helpers.training.settings import LoopSettings

EVALUATION_ROWS = 64  # examples that are evaluated at once


def run_training(
    model,
    method: Method,
    settings: LoopSettings,
    *,
    folder: RunFolder,
    held_out: Method | None = None,
    callbacks: Sequence[Callable] = (),
    loop: "Loop | None" = None,
) -> Run:
    """Train `model` by `method`, from the folder's checkpoint if it has one; see `train_sft`.

    held_out: the same method on other examples, which are evaluated and not trained on.
    loop: one that makes its steps in another way, in place of `Loop`.
    """
    loop = loop or Loop(model, method, settings, held_out)
    run = Run(model=model, settings=settings, folder=folder.path)
    run.summary = {"method": method.name, "status": "running", "total_steps": loop.total}
    folder.notes["eval_data"] = held_out and held_out.digest
    try:
        with seeded(settings.seed + loop.accelerator.process_index):
            folder.open(loop, run)
            _take_steps(loop, run, folder, callbacks)
            folder.close(loop, run)
    finally:
        folder.leave()
    loop.accelerator.free_memory()
    return run


def without_nan(record: dict) -> dict:
    """A step's metrics, with None where one is no finite number: JSON has no other sign for it."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }


def _take_steps(loop: "Loop", run: Run, folder: RunFolder, callbacks: Sequence[Callable]) -> None:
    settings, is_main = loop.settings, loop.accelerator.is_main_process
    bar = tqdm(
        total=loop.total,
        initial=loop.step,
        desc=loop.method.name,
        unit="step",
        disable=not (settings.progress and is_main),
    )
    _say_what_drops_nothing(loop.model, loop.method)
    with _interrupt_flag() as interrupted, bar, _training_mode(loop.model, settings):
        if loop.ended and loop.held_out and not run.is_evaluated:  # finished with other eval_data
            run.metrics[-1] |= without_nan(loop.evaluate())
            folder.write_metrics(loop, run)
        while not loop.ended:
            record = without_nan(loop.take_step(interrupt=interrupted.is_set()))
            folder.log(run, record, is_main=is_main)
            run.summary["status"] = loop.status
            bar.update()
            for callback in callbacks:
                callback(run, record)
            if settings.save_every and loop.step % settings.save_every == 0:
                folder.save(loop)


class Loop:
    """The state of a training, and the step that changes it."""

    def __init__(
        self, model, method: Method, settings: LoopSettings, held_out: Method | None = None
    ):
        self.model, self.method, self.settings = model, method, settings
        self.held_out = held_out
        _require_padding(model, method)
        self.device = next(model.parameters()).device
        self.accelerator = make_accelerator(self.device)
        self.parameters = trainable_parameters(model)
        self.optimizer = make_optimizer(self.parameters, settings)
        self.wrapped = self.accelerator.prepare_model(
            model, device_placement=self.accelerator.num_processes > 1
        )
        self.plan, self.total = self.make_plan()
        self.step = 0
        self.seconds = 0.0
        self.skipped, self.skipped_in_a_row = 0, 0
        self.stopped = ""  # why the run ended before its last step

    def make_plan(self) -> tuple[StepPlan, int]:
        """The examples of each step, and the number of steps."""
        plan = StepPlan(
            self.method.lengths,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            grouped=self.settings.batching != "random",
        )
        epochs = self.settings.num_epochs * plan.steps_per_epoch
        return plan, self.settings.max_steps or max(1, round(epochs))

    @property
    def ended(self) -> bool:
        return bool(self.stopped) or self.step >= self.total

    @property
    def status(self) -> str:
        return self.stopped or ("finished" if self.ended else "running")

    def take_step(self, *, interrupt: bool = False) -> dict:
        """One optimiser step; returns its metrics.

        interrupt: this process was asked to stop; all of them then stop after this step.
        """
        start = time.monotonic()
        lr = self.set_lr()
        with nullcontext() if self.method.drops else without_dropout(self.model):
            sums, normalizer, bad_rows = self.gradients(self.plan.rows(self.step), interrupt)
        loss, wants_stop = sums.pop("loss"), sums.pop("interrupt") > 0
        grad_norm, problem = self._update(loss)
        self.step += 1
        self.seconds += time.monotonic() - start
        record = {
            "step": self.step,
            "epoch": round(self.step / self.plan.steps_per_epoch, 4),
            "loss": loss if math.isfinite(loss) else None,
            "lr": lr,
            "grad_norm": grad_norm,
            self.method.unit: int(normalizer),
            **self.method.metrics(sums),
            "seconds": round(self.seconds, 4),
        }
        bad_rows = [self.method.places[row] for row in bad_rows]
        if problem:
            record |= {"skipped": problem, "rows": bad_rows}
        if self.held_out and (self.step % (self.settings.eval_every or self.total) == 0):
            record |= self.evaluate()
        self._note(problem, bad_rows, wants_stop)
        return record

    def set_lr(self) -> float:
        """Give the optimiser the learning rate of this step, and return it."""
        lr = self.settings.lr * schedule_factor(self.step, self.total, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def gradients(self, rows: Sequence[int], interrupt: bool) -> tuple[dict, float, list[int]]:
        """Add up the gradients of a step over its micro-batches and processes.

        Returns the sums of the metrics, the normaliser, and the examples whose loss is not finite.
        """
        accelerator, method = self.accelerator, self.method
        own = micro_batches(
            rows,
            method.lengths,
            size=self.settings.micro_batch_size,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        # Every process must take part in the reduction; one without examples counts 0 times.
        pieces, times = (own, accelerator.num_processes) if own else ([rows[:1]], 0)
        batches = [self._on_device(batch) for batch in method.prepare(self.wrapped, pieces)]
        weight = sum(map(method.weight, batches)) if own else 0
        normalizer = self._sum({"weight": weight})["weight"]
        sums, bad_rows = {"interrupt": float(interrupt)}, []
        for place, batch in enumerate(batches):
            is_last = place == len(batches) - 1
            with nullcontext() if is_last else accelerator.no_sync(self.wrapped):
                with self.autocast():
                    loss, extra = method.loss(self.wrapped, batch, normalizer)
                if not loss.requires_grad:
                    raise ValueError("The loss has no gradient: it does not depend on the model.")
                # Times the processes, because the reduction takes the mean over them.
                accelerator.backward(loss * times)
            for name, value in {"loss": loss.detach(), **extra}.items():
                sums[name] = sums.get(name, 0.0) + (float(value) if own else 0.0)
            if own and not torch.isfinite(loss):
                bad_rows += pieces[place] if len(pieces) == len(batches) else []
        return self._sum(sums), normalizer, bad_rows

    def _update(self, loss: float) -> tuple[float | None, str]:
        """Clip and step; returns the norm before clipping, and why the step was skipped."""
        limit = self.settings.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        problem = ""
        if not math.isfinite(loss):
            problem = f"the loss is {loss}"
        elif not math.isfinite(norm):
            problem = f"the gradient's length is {norm}"
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm if math.isfinite(norm) else None, problem

    def _note(self, problem: str, bad_rows: list[int], wants_stop: bool) -> None:
        """Count a skipped step and say so; end the run where it must end."""
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if problem else 0
        if problem:
            self.skipped += 1
            where = f" (among rows {', '.join(map(str, bad_rows))} of the data)" if bad_rows else ""
            warnings.warn(
                f"Step {self.step} was skipped: {problem}{where}; the weights stay.", stacklevel=4
            )
        if wants_stop and self.step < self.total:
            self.stopped = "interrupted"
        elif self.skipped_in_a_row >= self.settings.max_bad_steps:
            self.stopped = f"{self.skipped_in_a_row} steps in a row were skipped: {problem}"
            warnings.warn(f"The run ends at step {self.step}: {self.stopped}.", stacklevel=4)

    def evaluate(self) -> dict[str, float]:
        """Loss and metrics of the held-out examples, each name with eval_ before it."""
        method, size = self.held_out, self.settings.micro_batch_size or EVALUATION_ROWS
        rows = range(len(method.lengths))
        sums: dict[str, float] = {}
        with evaluation_mode(self.model):
            method.before_evaluation(self.model)
            batches = map(method.batch, micro_batches(rows, method.lengths, size=size))
            for batch in map(self._on_device, batches):
                with self.autocast():
                    loss, extra = method.loss(self.model, batch, 1.0)
                extra = {"loss": loss, "weight": method.weight(batch), **extra}
                for name, value in extra.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        found = {"loss": sums.pop("loss") / sums.pop("weight"), **method.metrics(sums)}
        return {f"eval_{name}": value for name, value in found.items()}

    def state(self) -> dict:
        """What a checkpoint holds beside the tensors; the step is the position in the data."""
        return {
            "seconds": self.seconds,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "weights": fingerprint(self.parameters),
        }

    def restore(self, state: dict) -> None:
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        self.skipped_in_a_row = state["skipped_in_a_row"] % self.settings.max_bad_steps
        if self.accelerator.process_index < len(state["random"]):
            set_random_states(state["random"][self.accelerator.process_index])

    def summary(self) -> dict:
        return {
            "status": self.status,
            "steps": self.step,
            "total_steps": self.total,
            "seconds": round(self.seconds, 2),
            "skipped_steps": self.skipped,
            "processes": self.accelerator.num_processes,
            "trained_parameters": sum(p.numel() for p in self.parameters.values()),
            "dtype": least_precise(self.model),
            "examples": self.method.report,
            "eval_examples": self.held_out and self.held_out.report,
        }

    def autocast(self):
        """bfloat16 arithmetic where the settings ask for it; the weights stay float32."""
        is_half = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_half)

    def _on_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _sum(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over the processes."""
        if self.accelerator.num_processes == 1:
            return values
        own = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        total = self.accelerator.reduce(own, reduction="sum").tolist()
        return dict(zip(values, total, strict=True))


def _require_padding(model, method: Method) -> None:
    """Padding is masked, but it is read: its id must have a row in the embedding."""
    pad = getattr(method, "pad", None)
    if pad is not None and pad >= (rows := embedding_rows(model)):
        raise ValueError(
            f"The padding token has the id {pad}, but the model's embedding has {rows} rows: set "
            "tokenizer.pad_token to a token that the model knows, such as tokenizer.eos_token."
        )


def trainable_parameters(model) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name.

    Raises ValueError where there is none, or one in half precision: a step of 1e-5 is lost on a
    bfloat16 weight of 0.01. float64, in which the arithmetic is checked, is trained too.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError(
            "The model has no parameter to train: load it with lora=LoraSettings(), or with "
            'dtype="float32" to train all of it.'
        )
    for name, parameter in found.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"The parameter {name} is {parameter.dtype}, but trained parameters must be "
                'float32: load the model with dtype="float32", or train LoRA layers on it.'
            )
    return found


def least_precise(model) -> str:
    """The dtype of the least precise floating-point weights, such as "bfloat16"."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return str(max(kinds, key=lambda kind: torch.finfo(kind).eps)).removeprefix("torch.")


def make_optimizer(parameters: dict[str, torch.nn.Parameter], settings: LoopSettings):
    """AdamW (Loshchilov and Hutter 2019); the decay acts on matrices, not on biases and norms."""
    matrices = [p for p in parameters.values() if p.dim() > 1]
    vectors = [p for p in parameters.values() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters.values())
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=settings.lr,
        betas=(0.9, settings.adam_beta2),
        fused=fused,
    )


def schedule_factor(step: int, total: int, settings: LoopSettings) -> float:
    """What the learning rate is multiplied by at a step counted from 0.

    Example:
        >>> settings = SFTSettings(warmup_ratio=0.2, schedule="linear")
        >>> [schedule_factor(step, 10, settings) for step in (0, 1, 2, 6)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warmup = round(settings.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if settings.schedule == "linear":
        return 1 - progress
    if settings.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0


def make_accelerator(device: torch.device) -> Accelerator:
    """One process, or what torchrun or `accelerate launch` started; on the CPU through gloo."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(mixed_precision="no", cpu=several and device.type == "cpu")


def _say_what_drops_nothing(model, method: Method) -> None:
    if not method.drops and (share := lora_dropout(model)):
        warnings.warn(
            f"The LoRA dropout of {share} does not act in {method.name}, which compares the policy "
            "with another one: both are computed without any dropout.",
            stacklevel=4,
        )


@contextmanager
def _training_mode(model, settings: LoopSettings):
    """Dropout on, activations as the settings say; afterwards as it was before."""
    was_training = model.training
    model.train()
    body = getattr(model, "model", model)
    checkpointing = settings.gradient_checkpointing
    body = model if hasattr(model, "gradient_checkpointing_enable") else body
    if checkpointing:
        body.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if checkpointing:
            body.gradient_checkpointing_disable()
        model.train(was_training)


@contextmanager
def _interrupt_flag():
    """Inside, the first interrupt (Ctrl-C, the stop button) only sets a flag; a second one acts."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(signum, frame):
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
