"""The verb `train`: every training of `helpers`, from a file and `key=value` texts."""

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.data import LoadReport, load_records
from helpers.data.conversation import turns_of
from helpers.data.registry import load_registered
from helpers.models import LoraSettings, load_model, load_reward_model
from helpers.overrides import value_of
from helpers.prompts import load_template, render, render_passages
from helpers.text_files import read_yaml
from helpers.tokens import chat_turn
from helpers.training import (
    GRPOSettings,
    PPOSettings,
    PreferenceSettings,
    RewardSettings,
    Run,
    SFTSettings,
    train_grpo,
    train_ppo,
    train_preference,
    train_reward_model,
    train_sft,
)
from helpers.training.preference import USED as PREFERENCE_METHODS
from helpers.training.preference import check_settings
from workbook.progress import course_root, in_course, run_root
from workbook.train_rl import RewardSection, reward_function

SETTINGS = {"sft": SFTSettings, "reward": RewardSettings} | dict.fromkeys(
    PREFERENCE_METHODS, PreferenceSettings
)
SETTINGS |= {"grpo": GRPOSettings, "ppo": PPOSettings}
ROLLOUT_METHODS = ("grpo", "ppo")
PAIR, LABELLED = ("prompt", "chosen", "rejected"), ("prompt", "completion", "label")
COLUMNS = {kind: [PAIR] for kind in SETTINGS} | {
    "sft": [("prompt", "response"), ("question", "answer"), ("question", "answers")],
    "kto": [LABELLED, PAIR],
    **dict.fromkeys(
        ROLLOUT_METHODS, [("question", "gold_answer"), ("question", "answers"), ("prompt",)]
    ),
}
RESPONSES = ("response", "chosen", "rejected", "completion")
CHAT = "chat"  # the prompt "template" that is the model's own chat template


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSection(_Section):
    name: str = Field(description="folder or hub name of the model that is trained")
    adapter: str | None = Field(None, description="saved adapter to go on from, in place of lora")
    quantization: Literal["nf4", "int8", "awq"] | None = Field(
        None, description="of the frozen base: nf4, int8 or awq"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the frozen weights; training all of a large model wants float32"
    )
    device: str = Field("auto", description="auto is CUDA, else Apple's GPU, else the CPU")
    add_bos: bool | None = Field(
        None, description="BOS before every prompt (none: where the tokenizer itself puts one)"
    )


class LoraSection(_Section):
    r: int = Field(16, description="rank of the update")
    alpha: int = Field(32, description="the update counts alpha / r")
    dropout: float = Field(0.0, description="share of the inputs dropped in training")
    target_modules: str | list[str] = Field("all-linear", description="layers that get one")


class DataSection(_Section):
    train: str = Field(description="file, hub name, or name in the registry")
    eval: str | None = Field(None, description="the same, held out")
    format: str = Field("auto", description="a name of `workbook data formats`")
    registry: str | None = Field(None, description="JSON file of data sets by name")
    template: str | None = Field(None, description="conversation style that prompts are written in")
    prompt: str | None = Field(
        None,
        description="template for questions, by name or path; chat: the model's own chat template "
        "(none: question_answer, or qa)",
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(None, description="so many records at most")
    split: str = Field("train", description="of a hub data set")


class Config(_Section):
    """The sections that say what is trained, on what, and where it is written."""

    model: ModelSection
    lora: LoraSection | None = None
    data: DataSection
    reward: RewardSection | None = None
    engine: str = "auto"
    out: str | None = None


def train(kind: str, config: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Train what a configuration file says, changed by `key=value` texts; print what came of it.

    kind: "sft", "reward", "grpo", "ppo", or a method of `train_preference`, such as "dpo". Keys are
    those of the file: `lr=1e-4`, `model.name=...`, `lora=null`.
    A run that was stopped goes on from its last checkpoint when the same command is given again.

    Raises ValueError or OSError in one sentence, before a model is loaded where it can.
    """
    chosen, settings = read_config(kind, config, overrides)
    options = {}
    if kind in PREFERENCE_METHODS:
        check_settings(kind, settings)
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    is_main = os.environ.get("RANK", "0") == "0"
    parts = {name: source for name in ("train", "eval") if (source := getattr(chosen.data, name))}
    loaded = {name: load_data(kind, source, chosen.data) for name, source in parts.items()}
    if kind in ROLLOUT_METHODS:
        reward = reward_function(chosen.reward or RewardSection(), loaded["train"][0].column_names)
        options = {"reward_fn": reward, "engine": chosen.engine}
    model, tokenizer = load(kind, chosen)
    write = prompt_writer(chosen.data.prompt, tokenizer)
    rows = {name: [write(row) for row in data] for name, (data, _) in loaded.items()}
    if is_main:
        for name, (_, report) in loaded.items():
            print(f"{name}: {report.describe()}")
    run = trainer(kind)(
        model,
        rows["train"],
        settings,
        tokenizer=tokenizer,
        eval_data=rows.get("eval"),
        out_dir=chosen.out or run_root() / "train" / f"{kind}-{Path(chosen.model.name).name}",
        **options,
    )
    if is_main:
        print(described(run))
    return run


def trainer(kind: str) -> Callable[..., Run]:
    if kind in PREFERENCE_METHODS:
        return partial(train_preference, method=kind)
    return {
        "sft": train_sft,
        "reward": train_reward_model,
        "grpo": train_grpo,
        "ppo": train_ppo,
    }[kind]


def default_config(kind: str) -> str:
    """The name of the tiny profile's configuration; one serves all methods on preferences."""
    return "dpo_tiny" if kind in PREFERENCE_METHODS else f"{kind}_tiny"


def read_config(kind: str, config: str | Path, overrides: Sequence[str] = ()):
    """(Config, settings of the training) of a file and `key=value` texts.

    config: a path, or the name of a file of workbook/configs/train.
    """
    known = [row[0] for row in settings_rows(kind)] + ["lora", "out"]
    path = Path(config)
    if not path.is_file():
        shipped = Path(__file__).parent / "configs" / "train"
        names = sorted(file.stem for file in shipped.glob("*.yaml"))
        if str(config) not in names:
            raise FileNotFoundError(
                f"There is no configuration {config}: give a file, or one of {', '.join(names)}."
            )
        path = shipped / f"{config}.yaml"
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold sections and settings as `name: value`.")
    for override in overrides:
        _apply(override, values, known)
    sections = {name: values.pop(name) for name in Config.model_fields if name in values}
    try:
        chosen = Config.model_validate(sections)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {field}: {first['msg']} (got {first['input']!r}).") from error
    return chosen, SETTINGS[kind].from_dict(values, source=str(path))


def _apply(override: str, values: dict, known: Sequence[str]) -> None:
    """Set `key=value` or `section.key=value` in place; the value is read as YAML."""
    key, equals, _ = override.partition("=")
    section, _, field = key.strip().partition(".")
    if not equals or key.strip() not in known:
        near = get_close_matches(key.strip(), known, n=1)
        example = f"{near[0]}=..." if near else "lr=1e-4"
        raise ValueError(f"{override!r} is no setting of this training; write it like {example}.")
    value = value_of(override)
    if field and not isinstance(values.get(section), dict | None):
        raise ValueError(f"{override!r} does not fit: the section {section} of the configuration "
                         "holds one value, not `name: value` lines.")
    if field:
        values[section] = {**(values.get(section) or {}), field: value}
    else:
        values[section] = value


def load_data(kind: str, source: str, section: DataSection) -> tuple[Any, LoadReport]:
    """The records of a file, hub name or registry, and what was bad among them.

    Raises ValueError where they are not what this training reads.
    """
    options = {"limit": section.limit, "split": section.split, "template": section.template}
    if section.registry:
        data, report = load_registered(source, section.registry, **options)
    else:
        inside = course_root() / source  # a file of the course, wherever the command is given
        source = str(inside) if inside.is_file() else source
        data, report = load_records(source, format=section.format, **options)
    if not any(set(names) <= set(data.column_names) for names in COLUMNS[kind]):
        wanted = ", or ".join(", ".join(names) for names in COLUMNS[kind])
        raise ValueError(
            f"{source} holds {', '.join(data.column_names)} (read as {report.format}), but "
            f"`train {kind}` needs {wanted}."
        )
    return data, report


def load(kind: str, config: Config):
    """(model, tokenizer) of the model and lora sections."""
    section, lora = config.model, None
    if config.lora and not section.adapter:
        lora = LoraSettings(
            rank=config.lora.r,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            target_modules=config.lora.target_modules,
        )
    model, tokenizer = (load_reward_model if kind == "reward" else load_model)(
        in_course(section.name),
        adapter=section.adapter and in_course(section.adapter),
        lora=lora,
        quantization=section.quantization,
        device=section.device,
        dtype=section.dtype,
    )
    if section.add_bos is not None:
        _set_bos(tokenizer, section.add_bos, section.name)
    return model, tokenizer


def _set_bos(tokenizer, add_bos: bool, name: str) -> None:
    if add_bos and tokenizer.bos_token is None:
        raise ValueError(f"model.add_bos is true, but the tokenizer of {name} has no BOS token.")
    tokenizer.add_bos_token = add_bos


def prompt_writer(prompt: str | None, tokenizer) -> Callable[[dict], dict]:
    """A function from a loaded record to one with prompt and response, or the pair's columns."""
    template = load_template(prompt) if prompt not in (None, CHAT) else None

    def turns(row: dict) -> list[dict]:
        return turns_of({"prompt": asked(row), **row})

    def asked(row: dict) -> str:
        if "question" not in row:
            return row["prompt"]
        passages = row.get("passages")
        return f"{render_passages(passages)}\n{row['question']}" if passages else row["question"]

    def write(row: dict) -> dict:
        written = dict(row)
        if "question" in row:
            answer = row["answer"] if "answer" in row else row["answers"][0]
            written["response"] = f" {answer}"
            if prompt != CHAT:
                written["prompt"] = _filled(template, row)
        if prompt == CHAT:
            written["prompt"] = tokenizer.apply_chat_template(
                turns(row), tokenize=False, add_generation_prompt=True
            )
            for name in RESPONSES:
                if name in written:
                    written[name] = chat_answer(turns(row), written[name], tokenizer)
        return written

    return write


def chat_answer(turns: list[dict], answer: str, tokenizer) -> str:
    """An answer as the chat template writes it behind the prompt, without the end of the turn.

    In Llama 2's template a space stands before it, in Qwen 3's an empty thought.
    """
    answer = answer.removeprefix(" ")  # the chat template ends where the response starts
    answered = [*turns, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    turn = chat_turn(tokenizer)
    if turn is None or not turn.behind or not whole.startswith(prompt):
        return answer
    return whole.removeprefix(prompt).removesuffix(turn.behind)


def _filled(template: str | None, row: dict) -> str:
    template = template or load_template("qa" if "passages" in row else "question_answer")
    values = {"question": row["question"]}
    if "passages" in row:
        values["passages"] = render_passages(row["passages"])
    return render(template, **values)


SHOWN = ("loss", "reward_mean", "accuracy", "format_rate", "length", "entropy", "kl", "margin",
         "chosen_logps", "grad_norm")


def described(run: Run) -> str:
    """What came of a run, in a few lines."""
    rows, summary = run.metrics or [{}], run.summary  # a finished run may have lost its metrics
    first, last = rows[0], rows[-1]
    shown = [
        f"{name} {first[name]:.4g} -> {last[name]:.4g}"
        for name in SHOWN
        if first.get(name) is not None and last.get(name) is not None
    ]
    evaluated = {name: value for name, value in last.items() if name.startswith("eval_")}
    shown += [f"{name} {value:.4g}" for name, value in evaluated.items() if value is not None]
    skipped = f", {summary['skipped_steps']} skipped" if summary["skipped_steps"] else ""
    return "\n".join([
        f"{summary['status'].capitalize()}: {summary['steps']} of {summary['total_steps']} steps"
        f"{skipped} in {summary['seconds']:.0f} s on {summary['examples']['used']} of "
        f"{summary['examples']['rows']} examples.",
        "; ".join(shown) + ".",
        f"Files: {run.folder / summary['model']}, and metrics.jsonl, settings.json, summary.json "
        "beside it.",
    ])


def settings_rows(kind: str) -> list[tuple[str, Any, str]]:
    """(name, default, effect) of every key that a configuration may hold."""
    if kind not in SETTINGS:
        raise ValueError(f"There is no training {kind!r}: take {', '.join(SETTINGS)}.")
    rows = []
    for name, section in sections_of(kind).items():
        for field, info in section.model_fields.items():
            default = "needed" if info.is_required() else info.default
            rows.append((f"{name}.{field}", default, info.description))
    if kind in ROLLOUT_METHODS:
        rows.append(("engine", "auto", "who samples: transformers (auto), or vllm"))
    rows += [(info.name, info.default, info.metadata["effect"]) for info in fields(SETTINGS[kind])]
    return rows


def sections_of(kind: str) -> dict[str, type[BaseModel]]:
    """The sections of a configuration whose fields are written as section.field=value."""
    sections = {"model": ModelSection, "lora": LoraSection, "data": DataSection}
    return sections | ({"reward": RewardSection} if kind in ROLLOUT_METHODS else {})
