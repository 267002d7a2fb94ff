"""Who samples the responses of a step: this process's own model, or an engine beside it.

vLLM's is `helpers.vllm_engine.VLLMEngine`.
"""

from collections.abc import Sequence
from typing import Protocol

from helpers.rollout import ENGINES, Completion, SamplingSettings, generate


class Engine(Protocol):
    """Samples with the weights that it was given last.

    `update` is called before the sampling of each step, also of the first one and of one that a
    resumed run starts with. `sample` returns n completions a prompt, prompt by prompt, with the
    log-probabilities of the full distribution at the sampling temperature. A completion depends on
    the weights, its prompt, the seed, the number of its prompt and its own number. `first` is the
    number of the first prompt, because each process samples a part of a step's prompts.
    """

    name: str

    def update(self, model) -> None: ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        sampling: SamplingSettings,
        *,
        first: int = 0,
    ) -> list[Completion]: ...


class TransformersEngine:
    """The trained model itself: what it samples and what it scores are one arithmetic."""

    name = "transformers"

    def __init__(self, model, tokenizer, batch_size: int = 128):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    def update(self, model) -> None:
        self.model = model

    def sample(self, prompts, n, sampling, *, first=0) -> list[Completion]:
        return generate(
            self.model,
            self.tokenizer,
            prompts,
            n=n,
            sampling=sampling,
            batch_size=self.batch_size,
            first=first,
        )


def name_of(engine: str | Engine) -> str:
    """Who samples, as a run's settings say it: another arithmetic draws other responses."""
    if isinstance(engine, str):
        return "transformers" if engine == "auto" else engine
    return str(getattr(engine, "name", type(engine).__name__))


def make_engine(
    engine: str | Engine, model, tokenizer, batch_size: int = 128, precision: str = "float32"
) -> Engine:
    """An engine by its name, as `helpers.rollout.generate` has them; or one that is made already.

    precision: in which the training computes; vLLM then does so too.

    Raises ValueError for an unknown name, and for vLLM where it is not installed.
    """
    if engine in ("auto", "transformers"):
        return TransformersEngine(model, tokenizer, batch_size)
    if engine == "vllm":
        from helpers.vllm_engine import shared_engine  # loads vLLM: only when asked for

        return shared_engine(model, tokenizer, "auto" if precision == "float32" else precision)
    if hasattr(engine, "sample") and hasattr(engine, "update"):
        return engine
    raise ValueError(
        f"engine must be one of {', '.join(ENGINES)}, or an object with sample and update, but it "
        f"is {engine!r}."
    )
