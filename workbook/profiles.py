"""Profiles: which models, engine, sampling and sizes a lesson runs with; one YAML each.

The profile comes from WORKBOOK_PROFILE, else from the lesson's first cell; the depth (short, full
or smoke) from WORKBOOK_DEPTH, else short. Every value can be overridden by `section.key=value`.
"""

import os
import shlex
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.overrides import value_of
from helpers.text_files import read_yaml
from workbook.progress import course_root

Depth = Literal["short", "full", "smoke"]
DEPTHS = ("short", "full", "smoke")
PROFILES = ("tiny", "small", "full")
Count = Annotated[int, Field(ge=1)]
_active: dict[str, "Profile"] = {}


class ProfileError(ValueError):
    """A profile, a depth or an override that is not known or not valid."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Models(_Section):
    """Names on the hub, or folders of the course (relative to its root)."""

    maths: str
    instruct: str
    qa: str
    adapter: str | None = None  # a small tuned adapter of `maths`: what the course builds
    start: str | None = None  # an adapter of `maths` tuned on little data: where 04 and 05 start
    verbose: str | None = None  # an adapter of `maths` that writes at length: for best-of-n
    reward: str | None = None  # a reward adapter of `maths`: the judge of 04 and 05 without 02's
    awq: str | None = None  # a checkpoint in 4-bit AWQ


class Engine(_Section):
    """Where and how the models run."""

    name: Literal["auto", "transformers", "vllm"] = "auto"
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: Literal["nf4", "int8", "awq"] | None = None
    batch_size: Count = 64


class Sampling(_Section):
    """How completions are drawn where a lesson does not say otherwise."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    max_new_tokens: Count = 160
    seed: Annotated[int, Field(ge=0)] = 0

    def settings(self, **changes):
        """These as SamplingSettings for `generate`: `profile.sampling.settings(temperature=1)`."""
        from helpers.rollout import SamplingSettings  # loads transformers: only when needed

        return SamplingSettings(**(self.model_dump() | changes))


class Data(_Section):
    """Files of the course (relative to its root), local paths, or names on the hub."""

    maths_train: str
    maths_test: str
    qa_train: str
    qa_test: str
    reward_train: str
    reward_test: str
    reward_sets: str


class Reward(_Section):
    """How lesson 02 trains its reward model: long enough to learn the pairs by heart."""

    lr: Annotated[float, Field(gt=0)]
    batch_size: Count  # pairs of an optimiser step
    micro_batch: Count | None = None  # pairs at once; a CPU is a quarter faster with 2 than with 16
    epochs: Count
    few_epochs: Count  # of the cures
    weight_decay: Annotated[float, Field(ge=0)]  # of the cure by weight decay
    rank: Count | None = None  # of LoRA layers; none: all weights are trained
    seed: Annotated[int, Field(ge=0)] = 0


class RewardSizes(_Section):
    """How much lesson 02 does at one depth."""

    pairs: Count  # of the main run
    more_pairs: Count  # of the cure by more data
    held_out: Count
    watched: Count  # held-out pairs scored after every epoch
    rough: Count  # pairs scored where a rough figure will do: training pairs, the untrained head
    set_pairs: Count  # for each policy's response set
    best_of_problems: Count
    best_of: Count  # samples a problem


class SFT(_Section):
    """How lesson 03 trains; S2's names and values on the large profiles."""

    lr: Annotated[float, Field(gt=0)]
    full_lr: Annotated[float, Field(gt=0)]  # of training all weights
    batch_size: Count
    rank: Count
    alpha: Count
    complete_targets: Count  # of the sweep's second arm; the rest lost their last tag


class SFTSizes(_Section):
    """How much lesson 03 does at one depth."""

    examples: Count  # demonstrations of the main run
    epochs: Annotated[float, Field(gt=0)]
    problems: Count  # maths problems before and after
    sweep: list[Count]  # numbers of demonstrations of the data-size sweep
    sweep_problems: Count
    method_problems: Count  # for each way to hold the weights
    ladder: list[Annotated[float, Field(gt=0)]]  # learning rates
    qa_questions: Count  # sampled for rejection sampling
    qa_samples: Count  # a question
    qa_problems: Count


class GRPO(_Section):
    """How lesson 05 trains; S0's values on the large profiles."""

    rank: Count = 32  # of the LoRA layers where models.start is none
    lr: Annotated[float, Field(gt=0)]
    samples: Count  # a prompt
    max_new_tokens: Count
    temperature: Annotated[float, Field(gt=0)] = 1.0
    epochs: Count = 4  # gradient steps on the same samples, of the off-policy ablations
    rough_lr: Annotated[float, Field(gt=0)]  # at which they are compared, with and without clipping
    reward_lr: Annotated[float, Field(gt=0)]  # against the learned reward
    reward_tokens: Count  # of a response there: room to grow
    beta: Annotated[float, Field(gt=0)]  # of the KL that holds the learned reward's run
    hole_lr: Annotated[float, Field(gt=0)]  # against a grader that can be fooled
    hole_temperature: Annotated[float, Field(gt=0)]


class GRPOSizes(_Section):
    """How much lesson 05 does at one depth."""

    prompts: Count  # a step
    few_prompts: Count  # a step of the ablations
    steps: Count  # of the main run
    ablation_steps: Count  # of the two that run live
    recorded_steps: Count  # of those that are recorded
    reward_steps: Count  # against the learned reward
    reward_seeds: list[Annotated[int, Field(ge=0)]]  # of those runs
    further_steps: Count  # of the relatives and the learning rates
    hole_steps: Count  # against a grader that can be fooled
    hole_prompts: Count  # a step of that run
    compared: Count  # held-out problems for each way to spend the same tokens
    problems: Count  # held-out problems before and after
    watched: Count  # held-out problems of each evaluation during a run
    every: Count  # steps between those evaluations
    pass_problems: Count  # problems that are sampled several times
    qa_steps: Count  # of a cell of the table of prompts, samples and betas
    qa_problems: Count
    ladder: list[Annotated[float, Field(gt=0)]]  # learning rates
    main_seeds: list[Annotated[int, Field(ge=0)]]  # of the main run
    seeds: list[Annotated[int, Field(ge=0)]]  # of the other recorded runs


class DPO(_Section):
    """How lesson 04 trains on preferences; both arms of its losing run share all of it."""

    lr: Annotated[float, Field(gt=0)]
    batch_size: Count  # pairs of an optimiser step
    micro_batch: Count | None = None  # pairs at once
    epochs: Annotated[float, Field(gt=0)]
    beta: Annotated[float, Field(gt=0)]
    betas: list[Annotated[float, Field(gt=0)]]  # of the sweep, beside beta
    more_betas: list[Annotated[float, Field(gt=0)]]  # of the sweep, recorded
    shares: list[Annotated[float, Field(ge=0, le=1)]]  # of rejected responses that are exchanged
    nll: Annotated[float, Field(gt=0)]  # weight of the chosen response's NLL, where it is the cure
    methods: dict[str, dict[str, Any]]  # settings of each method beside these
    max_new_tokens: Count
    seed: Annotated[int, Field(ge=0)] = 0


class DPOSizes(_Section):
    """How much lesson 04 does at one depth."""

    problems: Count  # sampled for pairs
    held_out: Count  # sampled for held-out pairs
    samples: Count  # a problem, of the policy that starts
    other_samples: Count  # a problem, of the policy whose wrong responses are off-policy
    tested: Count  # problems before and after
    sampled: Count  # of them, with a sample each for the KL divergence
    at_large: Count  # problems of the last word on both arms
    seeds: Count


class Tree(_Section):
    """How lesson 06 searches: long enough for the solutions of the profile's model."""

    width: Count = 2
    branches: Count = 3
    depth: Count
    step_tokens: Count
    token_budget: Count

    def settings(self, **changes):
        """These as TreeSettings: `profile.tree.settings(token_budget=800)`."""
        from helpers.strategies import TreeSettings  # loads transformers: only when needed

        return TreeSettings(**(self.model_dump() | changes))


class StrategySizes(_Section):
    """How much lesson 06 does at one depth."""

    problems: Count  # asked with every strategy
    votes: Count  # samples a problem of self-consistency
    more_problems: Count  # of the two curves below
    more_votes: list[Count]
    more_budgets: list[Count]  # tokens of a tree


class QA(_Section):
    """How lesson 07 trains: every method as LoRA over the AWQ model, on the same questions."""

    rank: Count
    batch_size: Count  # questions of an optimiser step
    samples: Count  # a question, of the base for negatives and of the teacher
    group: Count  # samples a question of GRPO
    max_new_tokens: Count  # of an answer
    reason_tokens: Count  # of a reasoned answer
    lr: dict[str, Annotated[float, Field(gt=0)]]  # of each method


class QASizes(_Section):
    """How much lesson 07 does at one depth."""

    questions: Count  # trained on
    steps: Count  # of every method
    tested: Count  # held-out questions
    seeds: Count  # further ones, recorded


class Sizes(_Section):
    """How much a lesson does at one depth."""

    eval_problems: Count  # maths problems of an evaluation
    qa_problems: Count  # open-book questions of an evaluation
    artefact_problems: Count  # problems for each setting of the artefact study
    pass_at_k_problems: Count  # problems that are sampled several times
    samples: Count  # samples a problem for pass@k
    sft: SFTSizes
    reward: RewardSizes
    dpo: DPOSizes
    grpo: GRPOSizes
    strategies: StrategySizes
    qa: QASizes


class Profile(_Section):
    """One profile at one depth; `profile.sizes` are those of the depth."""

    name: str
    depth: Depth
    models: Models
    engine: Engine
    sampling: Sampling
    data: Data
    sft: SFT
    reward: Reward
    dpo: DPO
    grpo: GRPO
    qa: QA
    tree: Tree
    sizes: Sizes

    def path(self, name: str) -> str:
        """A course file or folder as an absolute path; a name on the hub stays as it is."""
        inside = course_root() / name
        return str(inside) if inside.exists() or name.startswith("workbook/") else name


def load_profile(name: str, depth: str = "short", overrides=()) -> Profile:
    """Read a profile, pick the sizes of the depth, apply `key=value` overrides, validate.

    Raises: ProfileError, one sentence that names the profile and the field.
    """
    check_names(name, depth)
    try:
        values = read_yaml(_config(name))
    except (ValueError, OSError) as error:
        raise ProfileError(f"Profile {name}: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("sizes"), dict):
        raise ProfileError(f"Profile {name}: its file must hold sections, one of them sizes.")
    values |= {"name": name, "depth": depth, "sizes": values["sizes"].get(depth, {})}
    for override in overrides:
        _apply(values, override)
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = f"Profile {name}: {field}: {first['msg']} (got {first['input']!r})."
        raise ProfileError(message) from error


def check_names(name: str, depth: str) -> None:
    """Raises ProfileError for a profile or a depth that there is not."""
    if name not in PROFILES:
        raise ProfileError(f'There is no profile "{name}": take one of {", ".join(PROFILES)}.')
    if depth not in DEPTHS:
        raise ProfileError(f'There is no depth "{depth}": take one of {", ".join(DEPTHS)}.')


def _config(name: str) -> Path:
    return Path(__file__).parent / "configs" / f"{name}.yaml"


def _apply(values: dict, override: str) -> None:
    """Set `section.key=value` in place; the value is read as YAML."""
    key, equals, _ = override.partition("=")
    section, _, field = key.strip().partition(".")
    fields = Profile.model_fields
    kind = fields[section].annotation if section in fields else None
    known = [
        f"{name}.{inner}"
        for name, info in fields.items()
        if hasattr(info.annotation, "model_fields")
        for inner in info.annotation.model_fields
    ]
    if not equals or not hasattr(kind, "model_fields") or field not in kind.model_fields:
        near = get_close_matches(key.strip(), known, n=1)
        example = f"{near[0]}=..." if near else "sampling.temperature=0.7"
        raise ProfileError(f'"{override}" is no setting of a profile; write it like {example}.')
    try:
        values[section] = {**values[section], field: value_of(override)}
    except ValueError as error:
        raise ProfileError(str(error)) from error


def use_profile(name: str = "tiny", *overrides: str) -> Profile:
    """The profile of this lesson; WORKBOOK_PROFILE, _DEPTH and _OVERRIDES come before the cell.

    Example: `profile = use_profile("tiny")`, or `use_profile("tiny", "sampling.temperature=0.7")`.
    """
    name = os.environ.get("WORKBOOK_PROFILE") or name
    depth = os.environ.get("WORKBOOK_DEPTH") or "short"
    overrides = (*overrides, *shlex.split(os.environ.get("WORKBOOK_OVERRIDES", "")))
    profile = load_profile(name, depth, overrides)
    _active["profile"] = profile
    print(f"Profile {profile.name}, depth {profile.depth}.")
    return profile


def active_profile() -> Profile:
    """The profile that this notebook chose.

    Raises: ProfileError before `use_profile` has run.
    """
    if "profile" not in _active:
        raise ProfileError("No profile is chosen yet: run the first cell of the lesson.")
    return _active["profile"]
