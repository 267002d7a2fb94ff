"""What a strategy asks: its template, its examples, and the text that the model reads.

A strategy is data (`STRATEGIES`), and so is the form in which it is put (`FORMS`): the plain text
that a base model continues, or the English or Chinese requests that an instruct model is sent in
its own chat template. One function, `few_shot_messages`, writes the turns of all of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from helpers.prompts import load_template, render, split_turn
from helpers.tokens import chat_turn, stop_ids

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Strategy:
    """How a problem is put to a model, and what is done with what comes back.

    request: which template of the form; see `Form.templates`.
    examples: what is shown before the question: "none", the bare "answers", or whole "solutions".
    votes: True where several samples vote. searches: True where steps are searched.
    paper: where it was proposed, with its arXiv id.
    """

    request: Literal["answer", "work", "think", "structured"]
    paper: str
    examples: Literal["none", "answers", "solutions"] = "none"
    votes: bool = False
    searches: bool = False


_FEW_SHOT_PAPER = "Brown et al. 2020, arXiv 2005.14165"
STRATEGIES = {
    "zero_shot": Strategy("answer", _FEW_SHOT_PAPER),
    "few_shot": Strategy("answer", _FEW_SHOT_PAPER, examples="answers"),
    "cot": Strategy("work", "Wei et al. 2022, arXiv 2201.11903", examples="solutions"),
    "zero_shot_cot": Strategy("think", "Kojima et al. 2022, arXiv 2205.11916"),
    # Structured chain of thought was proposed for code; plan, then solve, is its form for maths.
    "structured_cot": Strategy(
        "structured", "Li et al. 2023, arXiv 2305.06599; Wang et al. 2023, arXiv 2305.04091"),
    "tree_of_thought": Strategy("think", "Yao et al. 2023, arXiv 2305.10601", searches=True),
    "self_consistency": Strategy(
        "work", "Wang et al. 2022, arXiv 2203.11171", examples="solutions", votes=True),
}


@dataclass(frozen=True)
class Form:
    """The words of one way to ask.

    templates: a template for each request, and "judge", which asks whether a solution is right.
    as_answer, as_solution: an example's response, with the fields {reasoning} and {answer}.
    cue: what an "answer" prompt ends with; its response is read together with it.
    sections: the headings of a structured response, in order.
    stop: where a model has begun a question of its own. step_end: where a step of a search ends.
    verdicts: what a judge says of a right and of a wrong solution.
    """

    templates: dict[str, str]
    as_answer: str
    as_solution: str
    cue: str
    sections: tuple[str, ...]
    stop: tuple[str, ...]
    step_end: tuple[str, ...]
    verdicts: tuple[str, str]


def _requests(language: str) -> dict[str, str]:
    names = ("answer", "work", "think", "structured", "judge")
    return {name: f"{language}/{name}" for name in names}


FORMS = {
    "plain": Form(
        templates={"answer": "direct", "work": "question_answer", "think": "step_by_step",
                   "structured": "structured", "judge": "judge"},
        as_answer=" {answer}.", as_solution=" {reasoning}\n#### {answer}", cue="The answer is",
        sections=("Known", "Plan", "Steps", "Answer"), stop=("\nQuestion:", "\nUser:"),
        step_end=(". ", "\n"), verdicts=(" yes", " no")),
    "en": Form(
        templates=_requests("en"), as_answer="{answer}", as_solution="{reasoning}\n#### {answer}",
        cue="", sections=("Known", "Plan", "Steps", "Answer"), stop=("\nProblem:",),
        step_end=("\n",), verdicts=("yes", "no")),
    "zh": Form(
        templates=_requests("zh"), as_answer="{answer}",
        as_solution="{reasoning}\n答案是：{answer}", cue="",
        sections=("已知", "计划", "步骤", "答案"), stop=("\n题目：",), step_end=("\n", "。"),
        verdicts=("对", "错")),
}


def strategy_named(name: str) -> Strategy:
    """Raises ValueError, with the names there are, for another one."""
    if name not in STRATEGIES:
        raise ValueError(f"There is no strategy {name!r}: take one of {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]


def form_named(name: str) -> Form:
    """Raises ValueError, with the names there are, for another one."""
    if name not in FORMS:
        raise ValueError(f"There is no form {name!r}: take one of {', '.join(FORMS)}.")
    return FORMS[name]


def wording(question: str) -> str:
    """The question without what numbers it holds: two problems of one wording differ in these only.

    Case, white space and punctuation do not count either, and full-width characters are as ASCII.

    >>> wording("Ana has 12 eggs."), wording("ana has  ７ eggs")
    ('ana has 0 eggs', 'ana has 0 eggs')
    """
    plain = question.translate({code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)})
    numbers = re.sub(r"\d+(?:[.,]\d+)*", "0", plain.casefold())
    return " ".join(re.sub(r"[^\w\s]|_", " ", numbers).split())


def example_turns(records: Sequence[dict[str, Any]], strategy: Strategy, form: Form) -> list[dict]:
    """Worked problems as {"question", "response"}: what `few_shot_messages` chooses from.

    records: GSM8K-like `question`, `answer` (its reasoning, then "#### n") and `gold_answer`.
    """
    shown = form.as_answer if strategy.examples == "answers" else form.as_solution
    return [
        {"question": record["question"],
         "response": render(shown, answer=record["gold_answer"],
                            reasoning=_reasoning(record["answer"]))}
        for record in records
    ]


def _reasoning(answer: str) -> str:
    """The solution before its last line, without GSM8K's calculator notes (<<2*3=6>>)."""
    return re.sub(r"<<[^<>]*>>", "", answer.split("####")[0]).strip()


def few_shot_messages(
    question: str, pool: Sequence[dict[str, str]], template: str, *, shots: int = 3
) -> Messages:
    """The turns of a prompt: `shots` worked examples, then the question; the instruction once.

    Few-shot prompting (Brown et al. 2020, arXiv 2005.14165). No example gives the answer away: one
    whose `wording` is that of the question is passed over, whatever its numbers, for its solution
    is the asked one with other numbers in it. Names of people and things are not looked through.

    pool: records with "question" and "response", in the order in which they are wanted.
    template: text with {question}; what stands above the line of {question} is the instruction.

    Returns [{"role": "user" or "assistant", "content": text}, ...]; the last is the question's.
    Raises ValueError where fewer than `shots` examples are left.

    Example:
        >>> pool = [{"question": "Half of 8?", "response": " 4"},
        ...         {"question": "Twice 3?", "response": " 6"}]
        >>> turns = few_shot_messages("Half of 12?", pool, "Q: {question}\\nA:", shots=1)
        >>> [turn["content"] for turn in turns]
        ['Q: Twice 3?\\nA:', ' 6', 'Q: Half of 12?\\nA:']
    """
    asked = wording(question)
    usable = [example for example in pool if wording(example["question"]) != asked]
    if len(usable) < shots:
        raise ValueError(f"{shots} examples are wanted, but only {len(usable)} of {len(pool)} are "
                         f"worded otherwise than the question {question[:60]!r}.")
    instruction, turn = split_turn(template)
    turns = []
    for example in usable[:shots]:
        turns += [{"role": "user", "content": render(turn, question=example["question"])},
                  {"role": "assistant", "content": example["response"]}]
    turns.append({"role": "user", "content": render(turn, question=question)})
    return [{"role": "user", "content": instruction + turns[0]["content"]}, *turns[1:]]


def speaks_chat(tokenizer, model=None) -> bool:
    """Whether the model was tuned on its chat template: its texts end as the template's turns do.

    Base models ship a chat template, too (Qwen2.5-Math does), but end a text by another token.
    model: its generation_config may name further ends (Gemma's `<end_of_turn>`), which the
        tokenizer does not know of.
    """
    turn = chat_turn(tokenizer)
    return turn is not None and bool(stop_ids(model, tokenizer) & set(turn.ends))


def render_messages(messages: Messages, tokenizer=None) -> str:
    """The text that the model reads: in the tokenizer's chat template, or plain without one.

    In plain text a response follows its request at once, and an empty line parts the examples.

    >>> render_messages([{"role": "user", "content": "Q: 2 + 2?\\nA:"}])
    'Q: 2 + 2?\\nA:'
    """
    if tokenizer is not None:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    texts = [turn["content"] for turn in messages]
    pairs = [request + response for request, response in zip(texts[::2], texts[1::2], strict=False)]
    return "\n\n".join([*pairs, texts[-1]])


def template_of(form: Form, request: str) -> str:
    """The text of the form's template for a request."""
    return load_template(form.templates[request])
