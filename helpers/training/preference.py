"""Preference optimisation: DPO and its family on pairs, KTO on single labelled responses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from helpers import losses as reference_losses
from helpers.decoding import window_of
from helpers.logprobs import sequence_log_probs, tokenize_prompt_and_response
from helpers.losses import implicit_rewards, kto_reference_point
from helpers.training.cached_reference import use_reference
from helpers.training.kto import KTO
from helpers.training.loop import run_training
from helpers.training.method import checked_functions
from helpers.training.pairwise import REFERENCE_FREE, Pairs, loss_name
from helpers.training.run import Run, RunFolder, identity_of
from helpers.training.settings import PreferenceSettings

# Which settings a method takes beside those of every training.
USED = {
    "dpo": ("beta", "label_smoothing", "nll_coefficient"),
    "robust": ("beta", "label_smoothing", "nll_coefficient"),
    "hinge": ("beta", "nll_coefficient"),
    "ipo": ("beta", "nll_coefficient"),
    "simpo": ("beta", "gamma", "nll_coefficient"),
    "orpo": ("lam",),
    "kto": ("beta", "desirable_weight", "undesirable_weight"),
}


def train_preference(
    model,
    data,
    settings: PreferenceSettings,
    *,
    tokenizer,
    method: str = "dpo",
    eval_data=None,
    functions: Mapping[str, Callable] | None = None,
    callbacks: Sequence[Callable] = (),
    out_dir: str | Path | None = None,
    resume: bool = True,
) -> Run:
    """Train a language model on which responses are better.

    method: "dpo", "robust", "hinge", "ipo", "simpo", "orpo" on pairs; "kto" on single responses.
        The losses and their papers are in `helpers.losses`; conservative DPO is "dpo" with
        label_smoothing. With nll_coefficient c, -c * log pi(chosen) / |chosen| is added to the loss
        of a pair (Pang et al. 2024, Eq. 1).
    model, tokenizer: from `helpers.models.load_model`. The model as it is now is the reference,
        also where a trained adapter goes on: the first loss of dpo is log 2. Its log-probabilities
        are computed once, before the first step, and kept in the run's folder; simpo and orpo need
        none.
    data, eval_data: a data set or a list of dicts with the texts `prompt`, `chosen`, `rejected`;
        for kto with `prompt`, `completion` and `label` (true or false), or pairs, whose two
        responses then count as a good one and a bad one. What has an empty prompt or response, or
        is too long for the window, is left out, counted in the summary and named in a warning.
    functions: your own in place of the reference: tokenize_prompt_and_response,
        sequence_log_probs, implicit_rewards and the loss of the method: dpo_loss,
        robust_dpo_loss, hinge_loss, ipo_loss, simpo_loss, orpo_loss; kto_loss and
        kto_reference_point.
    callbacks, out_dir, resume, interrupts: as in `train_sft`.

    Metrics of a step beside the loss: chosen_reward, rejected_reward (mean implicit rewards; simpo
    and orpo: those of the loss), margin (their difference), accuracy (share of pairs with the
    chosen reward above the other; a tie counts as wrong), chosen_logps, rejected_logps (mean
    log-probability of a response). KTO has no accuracy, but its reference_point.

    Raises ValueError for data or settings that cannot be used, and for a setting that the method
    does not take.

    Example:
        >>> model, tokenizer = load_model("workbook/assets/base", lora=LoraSettings())
        >>> run = train_preference(model, pairs, PreferenceSettings(beta=0.1), tokenizer=tokenizer)
        >>> run.metrics[0]["loss"], run.metrics[-1]["accuracy"]
        (0.6931, 0.94)
    """
    check_settings(method, settings)
    chosen = checked_functions(functions or {}, functions_of(method))
    max_length = settings.max_length or window_of(model)
    parts = {"train": data} | ({} if eval_data is None else {"eval": eval_data})
    kind = KTO if method == "kto" else Pairs
    methods = {
        name: kind(part, tokenizer, settings, chosen, max_length, method)
        for name, part in parts.items()
    }
    digest = methods["train"].digest
    identity = identity_of(method, settings, digest, chosen, model=model, tokenizer=tokenizer)
    folder = RunFolder(out_dir, identity=identity, tokenizer=tokenizer, resume=resume)
    keep = []
    if method not in REFERENCE_FREE:
        keep = [use_reference(model, methods, settings, folder)]
    return run_training(
        model,
        methods["train"],
        settings,
        held_out=methods.get("eval"),
        folder=folder,
        callbacks=[*keep, *callbacks],
    )


def functions_of(method: str) -> dict[str, Callable]:
    """The functions that a method takes, by name."""
    named = {
        "tokenize_prompt_and_response": tokenize_prompt_and_response,
        "sequence_log_probs": sequence_log_probs,
        loss_name(method): getattr(reference_losses, loss_name(method)),
    }
    if method not in REFERENCE_FREE:
        named["implicit_rewards"] = implicit_rewards
    if method == "kto":
        named["kto_reference_point"] = kto_reference_point
    return named


def check_settings(method: str, settings: PreferenceSettings) -> None:
    """Raises ValueError for an unknown method, and for a setting that the method does not take."""
    if method not in USED:
        raise ValueError(f"There is no method {method!r}: take one of {', '.join(USED)}.")
    own = {name for names in USED.values() for name in names}
    for info in fields(settings):
        is_foreign = info.name in own and info.name not in USED[method]
        if is_foreign and getattr(settings, info.name) != info.default:
            raise ValueError(
                f"Setting {info.name} is none of {method}, which takes {', '.join(USED[method])}."
            )
    if method == "robust" and not settings.label_smoothing:
        raise ValueError("robust needs label_smoothing, the share of flipped labels: 0 is dpo.")
