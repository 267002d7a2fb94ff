"""Run one strategy over problems: prompts, samples, answers, tokens and seconds, one row a problem.

    rows = run_strategy(model, tokenizer, problems, "cot", sampling=sampling, examples=train)
    summarise_strategy(rows)["accuracy"]

The comparison of several is in `helpers.strategies.comparing`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from helpers.evaluation import complete
from helpers.rewards import is_equivalent
from helpers.rollout import Completion, SamplingSettings
from helpers.strategies.answers import (
    final_answer,
    own_response,
    read_structured,
    self_consistency_vote,
)
from helpers.strategies.asking import (
    Form,
    Strategy,
    example_turns,
    few_shot_messages,
    form_named,
    render_messages,
    speaks_chat,
    strategy_named,
    template_of,
)
from helpers.strategies.searching import ModelSteps, TreeSettings
from helpers.strategies.tree import tree_of_thought

OWN = {
    "few_shot_messages": few_shot_messages,
    "read_structured": read_structured,
    "self_consistency_vote": self_consistency_vote,
    "tree_of_thought": tree_of_thought,
}


def run_strategy(
    model,
    tokenizer,
    problems: Sequence[Mapping[str, Any]],
    name: str,
    *,
    sampling: SamplingSettings,
    examples: Sequence[Mapping[str, Any]] = (),
    form: str | None = None,
    shots: int = 3,
    samples: int = 5,
    vote_temperature: float = 0.7,
    tree: TreeSettings | None = None,
    batch_size: int = 128,
    engine: str = "auto",
    functions: Mapping[str, Callable] | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """One row a problem, in their order.

    problems, examples: maths records of `helpers.data.load_records` (id, question, answer,
        gold_answer). examples: worked problems that few_shot, cot and self_consistency choose
        `shots` from; none that is worded like the question is shown.
    form: a name of FORMS; without it "en" in the chat template for a model tuned on it, else
        "plain". "en" and "zh" use the chat template where the model was tuned on it.
    sampling: of every strategy; the texts at which the form stops are added. samples and
        vote_temperature: of self_consistency. tree: of tree_of_thought.
    functions: in place of the course's own: few_shot_messages, read_structured,
        self_consistency_vote, tree_of_thought.

    A row: id, strategy, question, prompt, generations and answers (one a sample), answer (None
    where there is none), gold_answer, correct, finish_reason (of the last sample), token_count
    (written), prompt_token_count (read), seconds, and details of the vote, the sections or the
    tree. Seconds of a batch are shared out evenly over its problems.
    A prompt that does not fit into the window has no answer and finish_reason "prompt_too_long".

    Raises ValueError for an unknown strategy, form or function, or too few examples.
    """
    is_tuned = speaks_chat(tokenizer, model)
    strategy, asked = strategy_named(name), form or ("en" if is_tuned else "plain")
    words, own = form_named(asked), _own(functions)
    problems, chat = list(problems), asked != "plain" and is_tuned
    chat_tokenizer = tokenizer if chat else None
    prompts = _prompts(problems, strategy, words, examples, shots, chat_tokenizer, own)
    sampling = replace(sampling, stop_strings=(*sampling.stop_strings, *words.stop))
    if strategy.searches:
        found = [
            _search(ModelSteps(model, tokenizer, problem["question"], prompt, words, place=place,
                               sampling=sampling, settings=tree or TreeSettings(), chat=chat,
                               engine=engine), tree or TreeSettings(), own)
            for place, (problem, prompt) in enumerate(
                zip(tqdm(problems, disable=not progress, desc=name), prompts, strict=True))
        ]
    else:
        found = _sample(model, tokenizer, prompts, strategy, words, own, sampling=sampling,
                        samples=samples, temperature=vote_temperature, batch_size=batch_size,
                        engine=engine, progress=progress)
    return [_row(name, problem, prompt, facts)
            for problem, prompt, facts in zip(problems, prompts, found, strict=True)]


def _own(functions: Mapping[str, Callable] | None) -> dict[str, Callable]:
    unknown = set(functions or {}) - set(OWN)
    if unknown:
        raise ValueError(f"functions holds {', '.join(sorted(unknown))}, but it takes "
                         f"{', '.join(OWN)}.")
    return OWN | dict(functions or {})


def _prompts(problems, strategy: Strategy, form: Form, examples, shots, tokenizer, own):
    """The text of each problem as the strategy asks it."""
    template = template_of(form, strategy.request)
    shots = 0 if strategy.examples == "none" else shots
    pool = example_turns(examples, strategy, form) if shots else []
    return [
        render_messages(own["few_shot_messages"](p["question"], pool, template, shots=shots),
                        tokenizer)
        for p in problems
    ]


def _sample(model, tokenizer, prompts, strategy, form, own, *, sampling, samples, temperature,
            batch_size, engine, progress) -> list[dict[str, Any]]:
    """What was found for each prompt, by one sample or by the vote of several."""
    start = time.monotonic()
    n = samples if strategy.votes else 1
    if strategy.votes:
        sampling = replace(sampling, temperature=temperature)
    completions = complete(model, tokenizer, prompts, sampling=sampling, n=n,
                           batch_size=batch_size, engine=engine, progress=progress)
    found = [_read(completions[i : i + n], strategy, form, own)
             for i in range(0, len(completions), n)]
    seconds = (time.monotonic() - start) / max(len(prompts), 1)
    return [facts | {"seconds": seconds} for facts in found]


def _read(completions: Sequence[Completion], strategy: Strategy, form: Form, own) -> dict[str, Any]:
    texts = [own_response(c.text, form.stop) for c in completions]
    cue = form.cue if strategy.request == "answer" else ""
    answers = [final_answer(text, cue=cue, finished=c.finish_reason in ("eos", "stop_string"))
               for text, c in zip(texts, completions, strict=True)]
    details: dict[str, Any] = {}
    answer = answers[0]
    if strategy.votes:
        details["vote"] = own["self_consistency_vote"](answers)
        answer = details["vote"]["answer"]
    if strategy.request == "structured":
        details["sections"] = own["read_structured"](texts[0], form.sections)
        answer = (details["sections"] or {}).get(form.sections[-1], answer)
    return {"generations": texts, "answers": answers, "answer": answer,
            "finish_reason": completions[-1].finish_reason,
            "token_count": sum(len(c.token_ids) for c in completions),
            # The samples of a prompt share one pass over it.
            "prompt_token_count": len(completions[0].prompt_token_ids), **details}


def _search(steps: ModelSteps, settings: TreeSettings, own) -> dict[str, Any]:
    start = time.monotonic()
    found = own["tree_of_thought"](
        steps.propose, steps.score, width=settings.width, branches=settings.branches,
        depth=settings.depth, step_tokens=settings.step_tokens, token_budget=settings.token_budget)
    answer = final_answer(found["text"], finished=found["final"])
    return {"generations": [found["text"]], "answers": [answer], "answer": answer,
            "finish_reason": found["stopped"], "token_count": found["tokens"],
            "prompt_token_count": steps.tokens_read, "seconds": time.monotonic() - start,
            "tree": {name: found[name] for name in ("score", "levels", "stopped")}}


def _row(name: str, problem: Mapping[str, Any], prompt: str, facts: dict) -> dict[str, Any]:
    gold = problem["gold_answer"]
    return {"id": problem["id"], "strategy": name, "question": problem["question"],
            "prompt": prompt, "gold_answer": gold,
            "correct": is_equivalent(facts["answer"], gold), **facts}
