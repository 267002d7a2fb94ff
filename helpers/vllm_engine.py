"""Sample with vLLM (Kwon et al. 2023, arXiv 2309.06180): a copy of the policy that is kept fresh.

A trainer and a sampler with code of their own differ a little in every log-probability. So vLLM is
asked for the log-probabilities of what it did sample, at the sampling temperature, and
`helpers.policy_losses.importance_weights` corrects for the difference.

How an update reaches vLLM:

- Plain, NF4 and int8 models: all weights, with LoRA merged (W + (a/r) B A, summed in float32 and
  rounded once), are written over vLLM's own in memory. The disk is not read, vLLM's LoRA layers,
  several times slower on CPUs, are not needed, and merging starts from W each time, so that no
  rounding adds up.
- AWQ checkpoints: vLLM reads the packed ones itself, a third of the memory, and they cannot be
  written over. The adapter is handed over as a request, under a new number after each update: vLLM
  keeps adapters by their number.

vLLM runs in this process, so that tensors can be handed over. It is imported only when asked for.
"""

import gc
import itertools
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch

from helpers.quantization import base_of, plain_config, plain_weights
from helpers.rollout import (
    Completion,
    Row,
    SamplingSettings,
    StopRules,
    check_engine,
    numbers_of,
    tokenize_prompts,
    window_of,
)

# Set before vLLM is imported; what the user has set stays.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, which the weights are handed to
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # training goes on in the same threads
}
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the sizes that vLLM makes room for
CPU_CACHE_BYTES = 2**30


class VLLMEngine:
    """A copy of a model inside vLLM; `update` brings it up to date, `sample` samples from it.

    model, tokenizer: from `helpers.models.load_model`; full weights, or LoRA layers on any base.
    dtype: vLLM's arithmetic; "auto" is that of the model's frozen weights, for AWQ half precision.
    max_length: tokens of prompt and completion together (None: the model's window). The cache must
        hold one such sequence, so a shorter one lets a smaller GPU do.
    memory_share: of the GPU's memory, weights and cache of vLLM together: the rest is for training.

    A process holds one engine: a new one ends the one before.

    Raises ValueError where vLLM is not installed, in a run of several processes, or for a model
    that vLLM cannot hold.

    Example:
        >>> engine = VLLMEngine(model, tokenizer)           # doctest: +SKIP
        >>> engine.update(model)                            # after each optimiser step
        >>> engine.sample(["1 + 1 ="], 8, SamplingSettings(max_new_tokens=16))
    """

    name, key = "vllm", ""

    def __init__(
        self,
        model,
        tokenizer,
        *,
        dtype: str | torch.dtype = "auto",
        max_length: int | None = None,
        memory_share: float = 0.4,
    ):
        _require_vllm()
        base = base_of(model)
        for engine in list(_running):
            engine.close()
        self.model, self.tokenizer = model, tokenizer
        self.max_length = min(max_length or window_of(model), window_of(model))
        self.dtype = base.dtype if dtype == "auto" else getattr(torch, str(dtype).split(".")[-1])
        self._device, self.is_packed = base.device, _is_packed(base)
        if self.is_packed and self.dtype == torch.float32:
            self.dtype = torch.bfloat16  # vLLM's AWQ kernels compute in half precision
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-", ignore_cleanup_errors=True)
        self._requests, self._request = itertools.count(1), None
        arguments = self._model_arguments(base) | _device_arguments(
            base.device, self.max_length, memory_share
        )
        if self.is_packed and base is not model:
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_room(model)}
        with _apart(base.device), open(os.devnull, "w") as nowhere:
            with redirect_stdout(nowhere):  # libraries of its own print on import
                import vllm
            set_threads = torch.set_num_threads
            self._vllm, self._llm = vllm, vllm.LLM(**arguments)
            torch.set_num_threads = set_threads  # on CPUs vLLM puts a stand-in in its place
        _running.append(self)
        self.update(model)

    def _model_arguments(self, base) -> dict:
        """Where the model is read from: from nowhere, but for AWQ, because weights are pushed."""
        shared = {
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_model_len": self.max_length,
            "generation_config": "vllm",  # none of the checkpoint's own sampling settings
            "logprobs_mode": "processed_logprobs",  # at the sampling temperature
            "enable_prefix_caching": True,  # the n samples of a prompt read it once
            "disable_log_stats": True,
            "seed": 0,
        }
        folder = self._folder.name
        self.tokenizer.save_pretrained(folder)
        if self.is_packed:
            return {**shared, "model": base.config._name_or_path, "tokenizer": folder}
        plain_config(base).save_pretrained(folder)
        return {**shared, "model": folder, "load_format": "dummy"}

    def update(self, model) -> None:
        """Make vLLM's weights those of the model, which is of the same shape as before."""
        self._require_running()
        self.model = model
        if self.is_packed:
            self._push_adapter()
        else:
            weights = ((name, tensor.to(self.dtype)) for name, tensor in plain_weights(model))
            with _apart(self._device):
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept keys and values of the old weights: start it anew.")

    def _push_adapter(self) -> None:
        """The adapter under a new number; vLLM would serve the old one under a known number."""
        if base_of(self.model) is self.model:
            return
        number = next(self._requests)
        folder = Path(self._folder.name) / "adapter"
        self.model.save_pretrained(folder, selected_adapters=[self.model.active_adapter])
        if self.model.active_adapter != "default":
            folder = folder / self.model.active_adapter
        self._request = self._vllm.lora.request.LoRARequest(str(number), number, str(folder))

    def sample(
        self,
        prompts: Sequence[str | Sequence[int]],
        n: int,
        sampling: SamplingSettings,
        *,
        first: int | Sequence[int] = 0,
    ) -> list[Completion]:
        """n completions of each prompt, prompt by prompt, as `helpers.rollout.generate` gives them.

        first: the number of the first prompt, for a part of a list, or those of all. A completion
        depends on the weights, its prompt, the seed and the two numbers.

        The log-probabilities are those of the full distribution at the sampling temperature; with
        top_p or top_k, of what these leave of it, so training uses neither.
        """
        self._require_running()
        prompt_ids = tokenize_prompts(self.tokenizer, prompts, self.max_length)
        rules = StopRules(self.model, self.tokenizer, sampling)
        rows = [
            Row(
                Completion(ids),
                min(sampling.max_new_tokens, self.max_length - len(ids)),
                follows_text=isinstance(prompt, str),
            )
            for prompt, ids in zip(prompts, prompt_ids, strict=True)
            for _ in range(n)
        ]
        numbers = [(i, j) for i in numbers_of(first, len(prompt_ids)) for j in range(n)]
        parameters = [
            self._parameters(sampling, rules, row, number)
            for row, number in zip(rows, numbers, strict=True)
        ]
        inputs = [{"prompt_token_ids": row.completion.prompt_token_ids} for row in rows]
        with _apart(self._device):
            outputs = self._llm.generate(
                inputs, parameters, lora_request=self._request, use_tqdm=False
            )
        for row, output in zip(rows, outputs, strict=True):
            _fill(row, output.outputs[0], rules)
        return [row.completion for row in rows]

    def _parameters(self, sampling: SamplingSettings, rules: StopRules, row: Row, number):
        # Behind a prompt that ends within a character (decoded: U+FFFD), vLLM takes the prompt's
        # own text for new text and stops at what stands there. `_fill` cuts at the right place.
        ending = rules.decode(row.completion.prompt_token_ids[-8:])
        stops = [] if ending.endswith("\ufffd") else list(sampling.stop_strings)
        seed = np.random.SeedSequence((sampling.seed, *number)).generate_state(1, np.uint64)[0]
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=None if sampling.temperature == 0 else int(seed >> np.uint64(1)),
            max_tokens=row.budget,
            stop=stops,
            stop_token_ids=sorted(rules.ends_of(row)),
            ignore_eos=True,  # the ids above are all of them
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            detokenize=bool(stops),
            logprobs=0,  # of the sampled token alone
        )

    def _require_running(self) -> None:
        if self._llm is None:
            raise RuntimeError("This engine has ended, by close() or by a newer one: make another.")

    def close(self) -> None:
        """Give the memory back; the engine cannot be used again."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        self._folder.cleanup()
        _running.remove(self)
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()
        gc.collect()


def _fill(row: Row, output, rules: StopRules) -> None:
    """Write what vLLM sampled into the row, by the rules of all engines."""
    for token, scores in zip(output.token_ids, output.logprobs, strict=True):
        if not row.done:
            rules.append(row, token, scores[token].logprob)
    if not row.done:
        raise RuntimeError(
            f"vLLM ended a completion after {len(output.token_ids)} tokens "
            f"({output.finish_reason}), which none of the stop rules explains."
        )


# ---------------------------------------------------------------- one engine for all calls

# At most one: vLLM keeps one process group for all, which the first that ends would take along.
_running: list[VLLMEngine] = []


def shared_engine(model, tokenizer, dtype: str = "auto") -> VLLMEngine:
    """The engine of the last call if it can take this model's weights, else a new one.

    A start takes seconds, and new weights hundredths of one, so evaluations and runs of one model
    share it: call `update` before sampling. A model of another shape ends the old engine.
    """
    _require_vllm()
    key = f"{dtype} {_shape_of(model, tokenizer)}"
    for engine in _running:
        if engine.key == key:
            return engine
    engine = VLLMEngine(model, tokenizer, dtype=dtype)
    engine.key = key
    return engine


def _shape_of(model, tokenizer) -> str:
    """Equal for models whose weights can take each other's place in vLLM."""
    base = base_of(model)
    config = plain_config(base).to_dict()
    parts = [config, base.dtype, base.device, tokenizer.name_or_path, len(tokenizer)]
    if _is_packed(base):
        parts += [base.config._name_or_path, base is model or _lora_room(model)]
    return repr(parts)


def _is_packed(base) -> bool:
    """Whether the checkpoint is stored in AWQ's layout."""
    stored = getattr(base.config, "quantization_config", None) or {}
    settings = stored if isinstance(stored, dict) else stored.to_dict()
    return settings.get("quant_method") == "awq"


def _lora_room(model) -> int:
    """The smallest rank that vLLM can make room for and that holds the adapter.

    Raises ValueError for an adapter that vLLM cannot apply.
    """
    settings = model.peft_config[model.active_adapter]
    if not _is_plain_lora(settings) or settings.r > LORA_RANKS[-1]:
        raise ValueError(
            'engine="vllm" over an AWQ base takes plain LoRA layers up to rank '
            f'{LORA_RANKS[-1]}, which this adapter is not: take engine="transformers".'
        )
    return next(rank for rank in LORA_RANKS if rank >= settings.r)


def _is_plain_lora(settings) -> bool:
    """One rank and scale for all layers, and nothing beside A and B: vLLM reads no more."""
    beside = ("modules_to_save", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern")
    beside += ("target_parameters", "trainable_token_indices")
    is_lora = settings.peft_type == "LORA" and settings.bias == "none"
    return is_lora and not any(getattr(settings, name, None) for name in beside)


def _require_vllm() -> None:
    check_engine("vllm")
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ValueError(
            'engine="vllm" samples in one process, but this run has several: start it in one, or '
            'take engine="transformers".'
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _device_arguments(device: torch.device, max_length: int, memory_share: float) -> dict:
    """What vLLM is told for a GPU or a CPU. Raises ValueError for other devices."""
    if device.type == "cuda":
        return {"gpu_memory_utilization": memory_share}
    if device.type != "cpu":
        raise ValueError(
            f'engine="vllm" runs on CUDA and on CPUs, not on {device.type}: take '
            'engine="transformers".'
        )
    return {
        "enforce_eager": True,
        "kv_cache_memory_bytes": CPU_CACHE_BYTES,
        # A prompt that is read in parts turns its random generator back, which CPUs cannot.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, max_length),
    }


@contextmanager
def _apart(device: torch.device) -> Iterator[None]:
    """What happens inside leaves the training's random states and arithmetic alone.

    vLLM seeds every generator of the process at its start and draws from them when it samples, so
    a run would not be repeatable; and a training loop's autocast would reach into its layers. On
    CPUs nothing is compiled, which would want a C++ compiler and tens of seconds.
    """
    stance = "force_eager" if device.type == "cpu" else "default"
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.compiler.set_stance(stance),
        ):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
