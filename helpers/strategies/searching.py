"""The halves of a tree of thought that need a model: steps are sampled, solutions are judged."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from helpers.decoding import window_of
from helpers.evaluation import complete
from helpers.logprobs import response_log_probs, sequence_log_probs, tokenize_prompt_and_response
from helpers.modes import evaluation_mode
from helpers.prompts import render
from helpers.rewards import extract_answer
from helpers.rollout import SamplingSettings
from helpers.strategies.asking import Form, render_messages, template_of
from helpers.strategies.tree import Step
from helpers.tokens import encode_prompt, encode_response


@dataclass(frozen=True)
class TreeSettings:
    """How a tree of thought is searched; see `helpers.strategies.tree_of_thought`.

    temperature: of the proposals; at 0 all branches would be the same.
    """

    width: int = 2
    branches: int = 3
    depth: int = 8
    step_tokens: int = 32
    token_budget: int = 400
    temperature: float = 0.7

    def __post_init__(self):
        for name in ("width", "branches", "depth", "step_tokens", "token_budget"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"tree setting {name} must be a whole number, 1 or more, but it "
                                 f"is {value!r}.")


class ModelSteps:
    """`propose` and `score` of one problem, by one model; counts the tokens that it reads.

    prompt: the text before the solution. place: the problem's number in its data set; with the
    seed it decides the samples of each level, so a problem's tree does not depend on the others.
    """

    def __init__(self, model, tokenizer, question: str, prompt: str, form: Form, *, place: int,
                 sampling: SamplingSettings, settings: TreeSettings, chat: bool,
                 engine: str = "auto"):
        self.model, self.tokenizer, self.engine = model, tokenizer, engine
        self.question, self.prompt, self.form = question, prompt, form
        self.place, self.settings = place, settings
        self.chat_tokenizer = tokenizer if chat else None
        self.sampling = replace(
            sampling, temperature=settings.temperature, max_new_tokens=settings.step_tokens,
            stop_strings=(*form.step_end, *form.stop))
        self.level, self.tokens_read = 0, 0

    def propose(self, texts: Sequence[str]) -> list[list[Step]]:
        """For each solution so far, sampled next steps."""
        seed = np.random.SeedSequence((self.sampling.seed, self.place, self.level))
        self.level += 1
        sampling = replace(self.sampling, seed=int(seed.generate_state(1)[0]))
        branches = self.settings.branches
        completions = complete(self.model, self.tokenizer, [self.prompt + text for text in texts],
                               n=branches, sampling=sampling, engine=self.engine)
        self.tokens_read += sum(len(c.prompt_token_ids) for c in completions[::branches])
        steps = [self._step(completion) for completion in completions]
        groups = [steps[i : i + branches] for i in range(0, len(steps), branches)]
        return [[step for step in group if step.text.strip() or step.final] for group in groups]

    def _step(self, completion) -> Step:
        text, tokens = completion.text, len(completion.token_ids)
        asks_on = any(text.endswith(string) for string in self.form.stop)
        for string in self.form.stop:
            text = text.removesuffix(string)
        ended = completion.finish_reason == "eos" or asks_on or extract_answer(text) is not None
        # A space belongs to the next word: at the end of a prompt it would be a token of its own.
        return Step(text.rstrip(" "), tokens, ended)

    def score(self, texts: Sequence[str]) -> list[float]:
        """P(right) / (P(right) + P(wrong)), by the model's own verdict on each solution.

        A solution that does not fit into the model's window with its question cannot be judged: it
        scores 0, the least there is, and a warning says so.
        """
        template = template_of(self.form, "judge")
        prompts = [self._judge_prompt(template, text) for text in texts]
        fits = [self._fits(prompt) for prompt in prompts]
        if not all(fits):
            warnings.warn(
                f"{fits.count(False)} of {len(fits)} solutions to problem {self.place} do not fit "
                "into the model's window when they are judged: they score 0.",
                stacklevel=2,
            )
        judged = iter(self._judged([p for p, fit in zip(prompts, fits, strict=True) if fit]))
        return [next(judged) if fit else 0.0 for fit in fits]

    def _fits(self, prompt: str) -> bool:
        lengths = [len(encode_response(v, self.tokenizer)) for v in self.form.verdicts]
        return len(encode_prompt(prompt, self.tokenizer)) + max(lengths) <= window_of(self.model)

    def _judged(self, prompts: Sequence[str]) -> list[float]:
        if not prompts:
            return []
        pairs = [(prompt, verdict) for prompt in prompts for verdict in self.form.verdicts]
        batch = tokenize_prompt_and_response(*zip(*pairs, strict=True), self.tokenizer)
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        self.tokens_read += int(batch["attention_mask"].sum()) // len(self.form.verdicts)
        with torch.no_grad(), evaluation_mode(self.model):
            scored = response_log_probs(self.model, **batch)["log_probs"]
        logps = sequence_log_probs(scored, batch["response_mask"]).view(-1, 2)
        return logps.softmax(dim=-1)[:, 0].tolist()

    def _judge_prompt(self, template: str, solution: str) -> str:
        text = render(template, question=self.question, solution=solution.strip())
        return render_messages([{"role": "user", "content": text}], self.chat_tokenizer)
