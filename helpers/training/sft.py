"""Supervised fine-tuning on prompts and responses."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from helpers.decoding import window_of
from helpers.logprobs import response_log_probs, tokenize_prompt_and_response
from helpers.losses import sft_loss
from helpers.tokens import encode_prompt
from helpers.training.loop import run_training
from helpers.training.method import (
    EMPTY_PROMPT,
    Batch,
    DataReport,
    Method,
    checked_functions,
    data_digest,
    rows_of,
    text_of,
)
from helpers.training.run import Run, RunFolder, identity_of
from helpers.training.settings import SFTSettings

FUNCTIONS = {
    "tokenize_prompt_and_response": tokenize_prompt_and_response,
    "sft_loss": sft_loss,
}


def train_sft(
    model,
    data,
    settings: SFTSettings,
    *,
    tokenizer,
    eval_data=None,
    functions: Mapping[str, Callable] | None = None,
    callbacks: Sequence[Callable] = (),
    out_dir: str | Path | None = None,
    resume: bool = True,
) -> Run:
    """Fine-tune a language model on the responses to prompts.

        loss = -sum of log p(token | what stands before it) / response tokens of the whole step

    model, tokenizer: from `helpers.models.load_model`. The model itself is trained.
    data, eval_data: a data set or a list of dicts with the texts `prompt` and `response`. Empty
        prompts and responses and prompts that fill the window are left out, counted in the summary
        and named in a warning.
    functions: your own in place of the reference: tokenize_prompt_and_response, sft_loss.
    callbacks: called as callback(run, record) after each step; see `Run.metrics`.
    out_dir: folder for settings.json, metrics.jsonl, summary.json, checkpoints and the model or
        adapter. With `resume` a run that was killed or interrupted goes on from its last
        checkpoint to the same weights, a finished one is returned as it is, and the files of
        another run are set aside. Without, an earlier run in the folder is deleted.

    An interrupt (Ctrl-C, the stop button) ends the run after the current step and returns it.

    Raises ValueError for data or settings that cannot be used.

    Example:
        >>> model, tokenizer = load_model("workbook/assets/base", lora=LoraSettings())
        >>> run = train_sft(model, [{"prompt": "2 + 2 =", "response": " 4"}] * 8,
        ...                 SFTSettings(num_epochs=1), tokenizer=tokenizer)
        >>> [record["loss"] for record in run.metrics]
        [2.31, 1.87]
    """
    chosen = checked_functions(functions or {}, FUNCTIONS)
    max_length = settings.max_length or window_of(model)
    method = SFT(data, tokenizer, settings, chosen, max_length)
    held_out = None
    if eval_data is not None:
        held_out = SFT(eval_data, tokenizer, settings, chosen, max_length)
    identity = identity_of(
        "sft", settings, method.digest, chosen, model=model, tokenizer=tokenizer
    )
    folder = RunFolder(out_dir, identity=identity, tokenizer=tokenizer, resume=resume)
    return run_training(
        model, method, settings, held_out=held_out, folder=folder, callbacks=callbacks
    )


class Row(NamedTuple):
    """One example, shifted and without padding; each (T - 1,)."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    response_mask: torch.Tensor


class SFT(Method):
    """What SFT adds to the loop: rows tokenised once, the loss of their response tokens."""

    name, unit = "sft", "tokens"

    def __init__(self, data, tokenizer, settings: SFTSettings, functions, max_length: int):
        self.pad = tokenizer.pad_token_id
        if self.pad is None:
            self.pad = tokenizer.eos_token_id
        self.packed = settings.batching == "packed"
        self.loss_function = functions["sft_loss"]
        tokenize = functions["tokenize_prompt_and_response"]
        data = rows_of(data)
        report, self.rows, self.places, texts = DataReport(len(data)), [], [], []
        for place, example in enumerate(data):
            prompt, response = (text_of(example, name, place) for name in ("prompt", "response"))
            texts.append((prompt, response))
            if not response.strip():
                report.leave_out("empty response", place)
                continue
            if not encode_prompt(prompt, tokenizer):
                report.leave_out(EMPTY_PROMPT, place)
                continue
            parts = (tokenize, prompt, response, tokenizer, settings)
            row = tokenized_row(*parts, max_length)
            if row is None:
                report.leave_out(f"the prompt fills all {max_length} tokens", place)
                continue
            size = len(row.labels)
            if size + 1 == max_length and len(tokenized_row(*parts, max_length + 1).labels) > size:
                report.note_cut(f"the response ends at {max_length} tokens", place)
            self.rows.append(row)
            self.places.append(place)
        self.report = report.finish(len(self.rows))
        self.digest = data_digest(texts)
        self.lengths = [len(row.labels) for row in self.rows]

    def batch(self, rows: Sequence[int]) -> Batch:
        chosen = [self.rows[row] for row in rows]
        return _packed(chosen) if self.packed else padded_rows(chosen, self.pad)

    def weight(self, batch: Batch) -> int:
        return int(batch["response_mask"].sum())

    def loss(self, model, batch: Batch, normalizer: float):
        scores = response_log_probs(model, **batch)
        loss = self.loss_function(
            scores["log_probs"], batch["response_mask"], normalizer=normalizer
        )
        if loss.dim():
            raise ValueError(
                f"sft_loss must return one number, but returned a tensor {tuple(loss.shape)}."
            )
        return loss, {}


def tokenized_row(tokenize, prompt, response, tokenizer, settings, max_length) -> Row | None:
    """One example through the tokenise function; None where no response token is left."""
    found = tokenize(
        [prompt], [response], tokenizer, append_eos=settings.append_eos, max_length=max_length
    )
    mask = found["response_mask"][0].bool()
    if not mask.any():
        return None
    end = int(mask.nonzero()[-1]) + 1  # without padding, on whichever side
    start = int(found["attention_mask"][0].long().argmax())
    return Row(found["input_ids"][0, start:end], found["labels"][0, start:end], mask[start:end])


def padded_rows(rows: Sequence[Row], pad: int) -> Batch:
    """One sequence a row, (B, T). The padding stands at the end, where causal attention never
    looks, so no attention mask is needed, and attention without one is faster."""
    values = {"input_ids": pad, "labels": pad, "response_mask": False}
    return {
        name: pad_sequence(column, batch_first=True, padding_value=values[name])
        for name, column in _columns(rows).items()
    }


def _packed(rows: Sequence[Row]) -> Batch:
    """All sequences end to end in one row, (1, sum of T). Positions start again at 0 in each,
    which keeps them apart only without cache and attention mask: else they read each other."""
    places = torch.cat([torch.arange(len(row.labels)) for row in rows])
    joined = {name: torch.cat(column)[None] for name, column in _columns(rows).items()}
    return {**joined, "position_ids": places[None]}


def _columns(rows: Sequence[Row]) -> dict[str, list[torch.Tensor]]:
    return {name: [getattr(row, name) for row in rows] for name in Row._fields}
