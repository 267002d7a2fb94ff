"""Settings of the training loops: typed, checked with the field's name, loaded from YAML."""

import math
import reprlib
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from helpers.overrides import value_of
from helpers.text_files import read_yaml

# Sections of a configuration file that say what is trained, on what, and where it is written; they
# belong to the command line, which reads them itself.
OTHER_SECTIONS = ("model", "lora", "data", "reward", "engine", "out")


def setting(default, effect: str, *, low=None, above=None, high=None, choices=None):
    """A field with its limits and the sentence that the table of settings shows."""
    limits = {"low": low, "above": above, "high": high, "choices": choices}
    return field(default=default, metadata={"effect": effect, **limits})


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What all loops share. Every value is checked; errors name the field.

    Example:
        >>> SFTSettings(lr=-1)
        Traceback (most recent call last):
        ...
        ValueError: Setting lr must be above 0, but it is -1.
    """

    lr: float = setting(
        2e-4, "learning rate at its peak; LoRA wants about ten times that of full training", above=0
    )
    schedule: str = setting(
        "linear",
        "how lr falls after the warm-up: linear or cosine to zero, or constant",
        choices=("linear", "cosine", "constant"),
    )
    warmup_ratio: float = setting(
        0.03, "share of the steps in which lr rises from zero", low=0, high=1
    )
    weight_decay: float = setting(0.0, "AdamW's pull of the weight matrices to zero", low=0)
    adam_beta2: float = setting(0.999, "AdamW's memory of squared gradients", above=0, high=0.99999)
    max_grad_norm: float | None = setting(
        1.0, "longer gradients are cut to this length (none: never)", above=0
    )
    precision: str = setting(
        "float32",
        "arithmetic of the forward pass; trained weights are float32 in both",
        choices=("float32", "bfloat16"),
    )
    gradient_checkpointing: bool = setting(
        False, "compute activations again in the backward pass: less memory, a third slower"
    )
    seed: int = setting(0, "order of the examples, dropout", low=0)
    save_every: int | None = setting(
        None, "steps between checkpoints (none: at the end and when interrupted)", low=1
    )
    eval_every: int | None = setting(
        None, "steps between evaluations of eval_data (none: at the end)", low=1
    )
    max_bad_steps: int = setting(
        5, "so many skipped steps in a row (a loss that is not finite) end the run", low=1
    )
    progress: bool = setting(True, "show a progress bar")

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for info in fields(self):
            value = _read(info.name, getattr(self, info.name), hints[info.name])
            _check_limits(info.name, value, info.metadata)
            object.__setattr__(self, info.name, value)

    @classmethod
    def from_yaml(cls, path: str | Path, *overrides: str):
        """Settings of a YAML file, then of `name=value` texts; the rest keeps its default.

        What is not of the training itself, such as model and data, is left to the command line.

        Example:
            >>> SFTSettings.from_yaml("workbook/configs/train/sft_tiny.yaml", "lr=1e-3").lr
            0.001
        """
        values = read_yaml(path)
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise ValueError(
                f"{path} must hold settings as `name: value`, but holds {reprlib.repr(values)}."
            )
        values = {name: value for name, value in values.items() if name not in OTHER_SECTIONS}
        return cls.from_dict(values | dict(map(_split, overrides)), source=str(path))

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "The settings"):
        """Settings by name; an unknown name is answered with the nearest known one."""
        known = [info.name for info in fields(cls)]
        for name in values:
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
                raise ValueError(f"{source}: there is no setting {name!r}; {hint}")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(LoopSettings):
    """What the loops over given examples share."""

    num_epochs: float = setting(3.0, "passes over the data", above=0)
    max_steps: int | None = setting(
        None, "optimiser steps; given, it stands in place of num_epochs", low=1
    )
    batch_size: int = setting(
        4, "examples of one optimiser step, over all processes and micro-batches", low=1
    )
    micro_batch_size: int | None = setting(
        None,
        "examples that go through the model at once; fewer take less memory and change no "
        "gradient (none: the whole share of a process)",
        low=1,
    )
    max_length: int | None = setting(
        None, "tokens of an example; what is longer loses its end (none: the model's window)", low=2
    )
    batching: str = setting(
        "length_grouped",
        "which examples share a step: random ones, or length_grouped ones with less padding",
        choices=("length_grouped", "random"),
    )


@dataclass(frozen=True, kw_only=True)
class SFTSettings(TrainSettings):
    """Settings of `train_sft`."""

    append_eos: bool = setting(
        True, "responses end with the end-of-text token, so that the model learns to stop"
    )
    batching: str = setting(
        "length_grouped",
        "which examples share a step: random ones, or length_grouped ones with less padding; "
        "packed puts a micro-batch into one row without padding",
        choices=("length_grouped", "random", "packed"),
    )


@dataclass(frozen=True, kw_only=True)
class RewardSettings(TrainSettings):
    """Settings of `train_reward_model`; an example is a pair."""

    num_epochs: float = setting(1.0, "passes over the data", above=0)
    batch_size: int = setting(
        32, "pairs of one optimiser step, over all processes and micro-batches", low=1
    )
    max_length: int | None = setting(
        None,
        "tokens of prompt and response; a longer pair is left out (none: the model's window)",
        low=2,
    )
    center_coefficient: float = setting(
        0.0, "weight of (chosen + rejected reward)^2, which keeps rewards near zero", low=0
    )


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings(TrainSettings):
    """Settings of `train_preference`; an example is a pair, of KTO a single response.

    A method takes some of the last seven, see `helpers.training.preference.USED`; one that it does
    not take must keep its default.
    """

    num_epochs: float = setting(1.0, "passes over the data", above=0)
    batch_size: int = setting(
        32, "pairs (kto: responses) of one optimiser step, over all processes", low=1
    )
    lr: float = setting(5e-5, "learning rate at its peak; smaller than for SFT", above=0)
    warmup_ratio: float = setting(
        0.1, "share of the steps in which lr rises from zero", low=0, high=1
    )
    max_length: int | None = setting(
        None,
        "tokens of prompt and response; a longer pair is left out (none: the model's window)",
        low=2,
    )
    batching: str = setting(
        "random",
        "which examples share a step: random ones, or length_grouped ones with less padding, whose "
        "log-probabilities do not compare from step to step",
        choices=("length_grouped", "random"),
    )
    append_eos: bool = setting(True, "responses end with the end-of-text token")
    beta: float | None = setting(
        None,
        "pull towards the reference policy; of simpo and its per-token rewards, their scale "
        "(none: 0.1; simpo 2)",
        above=0,
    )
    label_smoothing: float = setting(
        0.0, "dpo, robust: share of labels believed to be flipped", low=0, high=0.49
    )
    gamma: float = setting(1.0, "simpo: the margin that is asked for", low=0)
    lam: float = setting(0.1, "orpo: weight of the odds ratio beside the SFT loss", low=0)
    nll_coefficient: float = setting(
        0.0,
        "weight of the SFT loss of the chosen response, which keeps its probability from falling "
        "(all but orpo and kto)",
        low=0,
    )
    desirable_weight: float = setting(1.0, "kto: weight of good responses", low=0)
    undesirable_weight: float = setting(1.0, "kto: weight of bad responses", low=0)


def _split(override: str) -> tuple[str, Any]:
    name, equals, _ = override.partition("=")
    if not equals:
        raise ValueError(f"{override!r} is no setting: write it like lr=1e-4.")
    return name.strip(), value_of(override)


def _read(name: str, value: Any, hint: Any) -> Any:
    """The value in the type of its field. YAML reads 2e-4 as a text and 3 as a whole number."""
    kinds = get_args(hint) or (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = kinds[0]
    try:
        if kind is float and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    if type(value) is kind and kind is not float:
        return value
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    raise ValueError(f"Setting {name} must be {wanted}, but it is {reprlib.repr(value)}.")


def _check_limits(name: str, value: Any, limits) -> None:
    if value is None:
        return
    wanted = ""
    if limits["choices"] and value not in limits["choices"]:
        wanted = "one of " + ", ".join(limits["choices"])
    elif limits["above"] is not None and not value > limits["above"]:
        wanted = f"above {limits['above']}"
    elif limits["low"] is not None and not value >= limits["low"]:
        wanted = f"{limits['low']} or more"
    elif limits["high"] is not None and not value <= limits["high"]:
        wanted = f"{limits['high']} or less"
    if wanted:
        shown = f"{value:g}" if isinstance(value, float) else repr(value)
        raise ValueError(f"Setting {name} must be {wanted}, but it is {shown}.")
