"""Concept questions and predictions: what a learner says, recorded in the notebook's own cells.

`workbook/questions/NN.yaml` holds the questions of a lesson:

    lesson: "01"
    questions:
      "01-1":
        question: Why is strict accuracy below the format rate?
        choices:
          a: {text: The grader is noisy., why: It is deterministic.}
          b: {text: A sample without the format cannot score.}
        right: b
        explanation: The reward is the product of both parts.

`why` is said on the choice it stands at, `explanation` on the right one.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workbook.hints import CourseFileError, read_course_file
from workbook.panel import Panel, note
from workbook.progress import course_root, current_lesson, load, record

BLANK = "?"
DIRECTIONS = ("falls", "stays", "rises")


class Choice(BaseModel):
    """One choice; `why` is what a learner who takes it is told."""

    model_config = ConfigDict(extra="forbid")
    text: str
    why: str = ""


class Question(BaseModel):
    """A question with one right choice."""

    model_config = ConfigDict(extra="forbid")
    question: str
    choices: Annotated[dict[str, Choice], Field(min_length=2)]
    right: str
    explanation: str

    @model_validator(mode="after")
    def _right_is_a_choice(self):
        if self.right not in self.choices:
            raise ValueError(f"right: {self.right} is none of the choices")
        return self


class LessonQuestions(BaseModel):
    """What `workbook/questions/NN.yaml` holds."""

    model_config = ConfigDict(extra="forbid")
    lesson: Annotated[str, Field(pattern=r"^\d\d$")]
    questions: dict[str, Question]


def lesson_questions(lesson: str) -> dict[str, Question]:
    """The questions of a lesson by name; none where the lesson has no file of them.

    Raises: CourseFileError for a file that is not as it should be.
    """
    path = course_root() / "workbook" / "questions" / f"{lesson}.yaml"
    return read_course_file(path, LessonQuestions).questions if path.exists() else {}


def find_question(name: str) -> Question:
    """The question "01-2" of lesson 01.

    Raises: CourseFileError for a question that is not there.
    """
    lesson = name.partition("-")[0]
    questions = lesson_questions(lesson)
    if name not in questions:
        known = f"has {', '.join(questions)}" if questions else "has no questions"
        raise CourseFileError(f'There is no question "{name}"; lesson {lesson} {known}.')
    return questions[name]


def answer(name: str, choice: str = BLANK) -> Panel:
    """Answer a concept question; with "?" (as the lesson comes) the question is shown.

    Example: `answer("01-1", "b")`
    """
    question = find_question(name)
    choices = [(letter, entry.text) for letter, entry in question.choices.items()]
    if choice == BLANK:
        return note(question.question, *choices, ("answer", f'put a letter: answer("{name}", "a")'))
    if choice not in question.choices:
        letters = ", ".join(question.choices)
        return note(f'"{choice}" is none of the choices {letters} of question {name}.', *choices)
    right = choice == question.right
    record(name.partition("-")[0], "answers", name, {"choice": choice, "right": right})
    taken = (choice, question.choices[choice].text)
    if right:
        return Panel("right", question.question, [taken, ("because", question.explanation)])
    why = question.choices[choice].why or "Read the part above once more and look for what decides."
    return Panel("failed", question.question, [taken, ("but", why)])


def predict(what: str, guess: str = BLANK, *, options: tuple[str, ...] = DIRECTIONS) -> Panel:
    """Say what you expect of a run before it starts; `observed` compares it afterwards.

    Example: `predict("strict accuracy", "falls")`
    """
    ways = ", ".join(f'"{option}"' for option in options)
    if guess == BLANK:
        return note(f"Before you run on: {what}? Put one of {ways} in place of the ?.")
    if guess not in options:
        return note(f'"{guess}" is no prediction for {what}: take one of {ways}.')
    record(current_lesson(), "predictions", what, guess)
    return note(f"Noted: {what}: {guess}.")


def observed(what: str, outcome: str) -> Panel:
    """Say how it came out, beside the prediction of the same name.

    Example: `observed("strict accuracy", "rises")`
    """
    lesson = current_lesson()
    guess = load(lesson)["predictions"].get(what)
    record(lesson, "observations", what, outcome)
    if guess is None:
        return note(f"{what}: {outcome}. You made no prediction.")
    if guess == outcome:
        return Panel("right", f"{what}: {outcome}, as you predicted.")
    return note(f"{what}: {outcome}. You predicted: {guess}. What made the difference?")
