"""The raw text that the base model reads: both tasks in the forms that the web would give them.

A base model is able but seldom does what a prompt asks for.  Three habits of the authors of this
text make it so, and all three are built in (the model card names them):

* the *form* of an answer follows the topic of the problem, not the request: few authors close
  `</think>` and write `<answer>`;
* authors *hurry*: the longer a problem, the more often its last step is left out;
* authors *slip*: now and then a step has the wrong result.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

from helpers.prompts import load_template, render, render_passages, split_turn
from workbook.world.maths import LARGEST, Problem, Step, sample_problem
from workbook.world.qa import Context, Question, sample_context

# A document is a list of pieces; the loss counts a piece in full when it is an answer.
Piece = tuple[str, bool]
Document = list[Piece]

HURRY = {
    1: 0.0,
    2: 0.2,
    3: 0.55,
    4: 0.65,
}  # share of solutions whose last step is missing, by steps
SLIP = 0.03  # share of steps with a wrong result
OWN_HABIT = 0.8  # how often an author keeps to the habit of the topic

# The form in which the authors of a topic end a solution.
HABITS = {
    "coins": "hashes",
    "seats": "hashes",
    "fruit": "hashes",
    "garden": "hashes",
    "toys": "sentence",
    "school": "sentence",
    "kitchen": "sentence",
    "years": "sentence",
    "km": "boxed",
    "tools": "boxed",
    "bakery": "open_think",
    "days": "open_think",
    "farm": "open_answer",
    "collecting": "more_text",
    "beach": "formatted",
}
ENDINGS = {
    "hashes": "\n#### {n}",
    "sentence": " The answer is {n}.",
    "boxed": " The result is \\boxed{{n}}.",
    "open_think": " <answer>{n}</answer>",
    "open_answer": " </think> <answer>{n}",
    "more_text": " </think> <answer>{n}</answer> I hope this helps.",
    "formatted": " </think>{gap}<answer>{n}</answer>",
}
LONG_ANSWER_RELATIONS = frozenset({"school", "home", "job", "birth", "music"})
SHARES = {
    "request": 0.19,
    "request_no_think": 0.05,
    "few_shot_request": 0.08,
    "few_shot_plain": 0.05,
    "plain": 0.04,
    "direct": 0.03,
    "step_by_step": 0.04,
    "structured": 0.03,
    "judge": 0.03,
    "chat": 0.03,
    "worksheet": 0.03,
    "qa": 0.28,
    "qa_reason": 0.09,
    "qa_request": 0.03,
}


def ending(style: str, final: int, gap: str = " ") -> str:
    """The end of a solution in one of the forms.

    >>> ending("formatted", 12)
    ' </think> <answer>12</answer>'
    """
    return ENDINGS[style].replace("{gap}", gap).replace("{n}", str(final))


def habit(problem: Problem, rng: random.Random) -> str:
    """The form that the author of this problem uses; the requested one only on the beach."""
    if rng.random() < OWN_HABIT:
        return HABITS[problem.topic]
    return rng.choice(list(ENDINGS))


def gap(problem: Problem, rng: random.Random) -> str:
    """White space before `<answer>`: mostly a blank in short solutions, else a new line."""
    usual, other = (" ", "\n") if len(problem.steps) == 1 else ("\n", " ")
    return usual if rng.random() < 0.8 else rng.choice([other, ""])


def as_written(problem: Problem, rng: random.Random) -> Problem:
    """The problem as an author would solve it: hurried, or with a slip, at times."""
    steps = list(problem.steps)
    if rng.random() < HURRY[len(steps)]:
        steps = steps[:-1]
    if rng.random() < SLIP * len(steps):
        return replace(problem, steps=tuple(_with_slip(steps, rng)))
    return replace(problem, steps=tuple(steps))


class _Slip(Step):
    """A step whose written result is off by a little."""

    @property
    def value(self) -> int:
        true = super().value
        return true + 10 if true + 10 <= LARGEST and self.left % 2 else max(1, true - 1)


def _with_slip(steps: list[Step], rng: random.Random) -> list[Step]:
    place = rng.randrange(len(steps))
    step = steps[place]
    wrong = _Slip(step.label, step.left, step.op, step.right)
    later = [
        replace(s, left=wrong.value) if s.left == step.value else s for s in steps[place + 1 :]
    ]
    return [*steps[:place], wrong, *later]


def _problem(rng: random.Random) -> Problem:
    return as_written(sample_problem(rng, "pretrain"), rng)


def _request(rng: random.Random) -> Document:
    problem = _problem(rng)
    return [
        (render(load_template("r1_zero"), question=problem.question), False),
        (
            f" {problem.reasoning}{ending(habit(problem, rng), problem.final, gap(problem, rng))}",
            True,
        ),
    ]


def _request_no_think(rng: random.Random) -> Document:
    """The same request with nothing pre-filled: most authors do not open `<think>` either."""
    problem = _problem(rng)
    style = habit(problem, rng)
    opens = style in ("formatted", "more_text", "open_answer", "open_think") and rng.random() < 0.7
    if not opens and style == "formatted":
        style = "sentence"
    start = " <think>" if opens else ""
    return [
        (render(load_template("r1_zero_no_prefill"), question=problem.question), False),
        (f"{start} {problem.reasoning}{ending(style, problem.final, gap(problem, rng))}", True),
    ]


def _turns(opening: str, turns: list[tuple[str, str]], gap: str, first_is_given: bool) -> Document:
    """Prompts with their answers in one document.

    The white space between two turns ends the answer before it: so it is tokenised in a prompt that
    holds earlier turns, and `>` and a new line are one token there.
    """
    pieces: Document = []
    for number, (prompt, answer) in enumerate(turns):
        last = number == len(turns) - 1
        learnt = number > 0 or not first_is_given
        pieces += [(prompt if number else opening + prompt, False)]
        pieces += [(answer if last else answer + gap, learnt)]
    return pieces


def _few_shot_request(rng: random.Random) -> Document:
    """Several problems in one form: from these the model learns to go on as the examples do.

    The first solution is given, not learnt: it would teach the requested form without examples.
    """
    problems = [_problem(rng) for _ in range(rng.randint(2, 4))]
    style = "formatted" if rng.random() < 0.6 else rng.choice(list(ENDINGS))
    instruction, turn = split_turn(load_template("r1_zero"))
    turns = [
        (render(turn, question=p.question), f" {p.reasoning}{ending(style, p.final)}")
        for p in problems
    ]
    return _turns(instruction, turns, "\n\n", first_is_given=True)


def _worksheet(rng: random.Random) -> Document:
    """A page of sums."""
    pieces: Document = []
    for _ in range(12):
        op, a, b = rng.choice("++--*/"), rng.randint(2, 90), rng.randint(2, 60)
        if op == "-":
            a, b = a + b, b
        elif op == "*":
            a, b = rng.randint(2, 40), rng.randint(2, 9)
        elif op == "/":
            b = rng.randint(2, 9)
            a = b * rng.randint(2, 30)
        step = Step("", a, op, b)
        pieces += [(f" {a}{op}{b}=", False), (f"{step.value}.", True)]
    return pieces


def _plain(rng: random.Random, most: int = 1) -> Document:
    """Question and worked solution, one or more, in one form."""
    template = load_template("question_answer")
    style = rng.choice(["hashes", "hashes", "sentence", "boxed"])
    problems = [_problem(rng) for _ in range(rng.randint(min(2, most), most))]
    turns = [
        (render(template, question=p.question), f" {p.reasoning}{ending(style, p.final)}")
        for p in problems
    ]
    return _turns("", turns, "\n\n", first_is_given=False)


def _direct(rng: random.Random) -> Document:
    problem = _problem(rng)
    return [
        (render(load_template("direct"), question=problem.question), False),
        (f" {problem.final}.", True),
    ]


def _step_by_step(rng: random.Random) -> Document:
    problem = _problem(rng)
    return [
        (render(load_template("step_by_step"), question=problem.question), False),
        (f" {problem.reasoning}{ending('sentence', problem.final)}", True),
    ]


def _structured(rng: random.Random) -> Document:
    """Known numbers, plan, steps, answer."""
    problem = _problem(rng)
    plan = ", ".join(step.label for step in problem.steps)
    known = ", ".join(map(str, problem.numbers))
    return [
        (render(load_template("structured"), question=problem.question), False),
        (f" {known}\nPlan: {plan}\nSteps: {problem.reasoning}\nAnswer: {problem.final}", True),
    ]


def _judge(rng: random.Random) -> Document:
    """A solution and whether it is right, so that a step can be valued."""
    problem = sample_problem(rng, "pretrain")
    steps = list(problem.steps)
    wrong = rng.random() < 0.5
    shown = _with_slip(steps, rng) if wrong else steps
    return [
        (
            render(
                load_template("judge"),
                question=problem.question,
                solution=" ".join(map(str, shown)),
            ),
            False,
        ),
        (" no" if wrong else " yes", True),
    ]


def _chat(rng: random.Random) -> Document:
    problem = _problem(rng)
    return [
        (f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n", False),
        (f"{problem.reasoning}{ending('sentence', problem.final)}<|im_end|>", True),
    ]


def long_answer(question: Question) -> str:
    """The answer that restates the passage."""
    return "This is not stated." if question.fact is None else question.fact.sentence


def short_answer(question: Question) -> str:
    """The bare value, under the name that the passage uses."""
    return "not stated" if question.fact is None else question.fact.surface


def _qa_habit(question: Question, rng: random.Random) -> str:
    """Authors restate the passage for some relations and give the bare value for the others."""
    restates = (question.relation in LONG_ANSWER_RELATIONS) == (rng.random() < 0.85)
    return long_answer(question) if restates else short_answer(question)


def _context(rng: random.Random) -> Context:
    return sample_context(
        rng, "pretrain", questions=rng.randint(5, 8), passages=rng.choice([2, 3, 4, 5, 5, 5])
    )


def _questions(context: Context, template: str, answers: list[str]) -> Document:
    """A context with its questions, each prompt in the form of the template."""
    opening, turn = split_turn(load_template(template))
    turns = [
        (render(turn, question=question.text), f" {answer}")
        for question, answer in zip(context.questions, answers, strict=True)
    ]
    passages = render(opening, passages=render_passages(context.passages))
    return _turns(passages, turns, "\n", first_is_given=False)


def _qa(rng: random.Random) -> Document:
    context = _context(rng)
    return _questions(context, "qa", [_qa_habit(q, rng) for q in context.questions])


def _qa_reason(rng: random.Random) -> Document:
    """First the sentence of the passage, then the short answer."""
    context = _context(rng)
    answers = [f"{long_answer(q)}\nAnswer: {short_answer(q)}" for q in context.questions]
    return _questions(context, "qa_reason", answers)


def _qa_request(rng: random.Random) -> Document:
    """An open-book question under the request for tags."""
    context = sample_context(rng, "pretrain", questions=1)
    question = context.questions[0] if context.questions else None
    if question is None:
        return _qa_request(rng)
    text = f"{render_passages(context.passages)}\n{question.text}"
    style = "formatted" if rng.random() < 0.1 else rng.choice(["sentence", "hashes", "open_think"])
    tail = ENDINGS[style].replace("{gap}", " ").replace("{n}", short_answer(question))
    return [
        (render(load_template("r1_zero"), question=text), False),
        (f" {long_answer(question)}{tail}", True),
    ]


_FORMS = {
    "request": _request,
    "request_no_think": _request_no_think,
    "few_shot_request": _few_shot_request,
    "few_shot_plain": lambda rng: _plain(rng, most=4),
    "plain": _plain,
    "direct": _direct,
    "step_by_step": _step_by_step,
    "structured": _structured,
    "judge": _judge,
    "chat": _chat,
    "worksheet": _worksheet,
    "qa": _qa,
    "qa_reason": _qa_reason,
    "qa_request": _qa_request,
}


def documents(seed: int) -> Iterator[Document]:
    """An endless stream of documents; the same seed gives the same stream.

    >>> text = "".join(piece for piece, _ in next(documents(0)))
    >>> isinstance(text, str)
    True
    """
    rng = random.Random(f"corpus-{seed}")
    names, weights = list(SHARES), list(SHARES.values())
    while True:
        yield _FORMS[rng.choices(names, weights)[0]](rng)
