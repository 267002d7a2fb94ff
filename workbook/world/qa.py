"""Open-book questions: five short passages, a paraphrased question, gold answers with aliases.

Distractor passages share the person or the relation with the question.  Of the questions 17 % have
no answer in their passages, and the gold answer says so.
"""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from workbook.world.maths import bank
from workbook.world.splits import Split, digest, split_of

UNANSWERABLE_SHARE = 0.17


@dataclass(frozen=True)
class Fact:
    """`person` has `value` in `relation`; `surface` is the alias that the passage uses."""

    person: str
    relation: str
    value: str
    surface: str
    sentence: str
    test_only: bool

    @property
    def key(self) -> list:
        return [self.person, self.relation, self.value]


@dataclass(frozen=True)
class Question:
    """One question on a set of passages; `fact` is None where the passages hold no answer."""

    text: str
    person: str
    relation: str
    fact: Fact | None
    test_only: bool

    @property
    def answers(self) -> list[str]:
        return (
            list(world()["unanswerable"])
            if self.fact is None
            else aliases(self.relation, self.fact.value)
        )


@dataclass(frozen=True)
class Context:
    """Five passages of two facts each, and questions on them."""

    passages: tuple[str, ...]
    facts: tuple[Fact, ...]
    questions: tuple[Question, ...]

    def record(self, number: int = 0) -> dict:
        question = self.questions[number]
        evidence = "" if question.fact is None else question.fact.sentence
        seen = not question.test_only and not any(f.test_only for f in self.facts)
        return {
            "id": "q-" + digest([self.passages, question.text])[:12],
            "question": question.text,
            "passages": list(self.passages),
            "answers": question.answers,
            "answerable": question.fact is not None,
            "evidence": evidence,
            "relation": question.relation,
            "seen": seen,
        }


@cache
def world() -> dict:
    """`qa.yaml`, with every pool as {value: [aliases, the value first]}."""
    raw = yaml.safe_load((Path(__file__).parent / "qa.yaml").read_text(encoding="utf-8"))
    raw["pools"] = {
        name: dict(_aliases(entry) for entry in entries) for name, entries in raw["pools"].items()
    }
    return raw


def _aliases(entry: str) -> tuple[str, list[str]]:
    value, _, rest = entry.partition(" (")
    return value, [value, *(a for a in rest.rstrip(")").split(", ") if a)]


def aliases(relation: str, value: str) -> list[str]:
    """All names under which a value counts as right.

    >>> aliases("school", "Nelgar")
    ['Nelgar', 'Nelgar Town']
    """
    return world()["pools"][world()["relations"][relation]["pool"]][value]


def _pattern(lines: list[str], rng: random.Random, allow_test_only: bool) -> tuple[str, bool]:
    line = rng.choice([p for p in lines if allow_test_only or not p.startswith("~")])
    return line.removeprefix("~ "), line.startswith("~")


def _fact(
    person: str, relation: str, rng: random.Random, split: Split, allow_test_only: bool
) -> Fact:
    """A fact that may stand in this split: what test asks is stated nowhere in training."""
    spec = world()["relations"][relation]
    pool = world()["pools"][spec["pool"]]
    values = [v for v in pool if split_of([person, relation, v]) == split]
    value = rng.choice(values or list(pool))
    surface = rng.choice(pool[value])
    text, test_only = _pattern(spec["tell"], rng, allow_test_only)
    return Fact(person, relation, value, surface, text.format(N=person, v=surface), test_only)


def _fact_keys(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """(person, relation) pairs of four people and five relations: each has its distractors."""
    people = rng.sample(bank()["names"], 4)
    relations = rng.sample(list(world()["relations"]), 5)
    return rng.sample([(p, r) for p in people for r in relations], count)


def sample_context(
    rng: random.Random, split: Split, questions: int = 1, passages: int = 5
) -> Context:
    """Passages and questions that may stand in `split`.

    >>> context = sample_context(random.Random(0), "train")
    >>> len(context.passages), len(context.questions)
    (5, 1)
    """
    unusual = split == "test" and rng.random() < 0.5
    pairs = _fact_keys(rng, 2 * passages)
    facts = [_fact(p, r, rng, split, unusual) for p, r in pairs]
    order = sorted(
        range(len(pairs)), key=lambda k: (pairs[k][0] if rng.random() < 0.7 else "", rng.random())
    )
    facts = [facts[k] for k in order]
    texts = tuple(f"{facts[k].sentence} {facts[k + 1].sentence}" for k in range(0, len(facts), 2))
    absent = [
        (p, r) for p in {p for p, _ in pairs} for r in {r for _, r in pairs} if (p, r) not in pairs
    ]
    absent.sort()
    asked = []
    eligible = [f for f in facts if split_of(f.key) == split]
    for fact in rng.sample(eligible, min(questions, len(eligible))):
        missing = bool(absent) and rng.random() < UNANSWERABLE_SHARE
        person, relation = rng.choice(absent) if missing else (fact.person, fact.relation)
        text, test_only = _pattern(world()["relations"][relation]["ask"], rng, unusual)
        asked.append(
            Question(text.format(N=person), person, relation, None if missing else fact, test_only)
        )
    return Context(texts, tuple(facts), tuple(asked))


def sample_records(count: int, split: Split, seed: int) -> list[dict]:
    """`count` records of one split: question, passages, answers."""
    rng, found = random.Random(f"qa-{split}-{seed}"), {}
    while len(found) < count:
        context = sample_context(rng, split)
        if context.questions:
            record = context.record()
            found.setdefault(record["id"], record)
    return list(found.values())
