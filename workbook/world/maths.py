"""Word problems of one to four steps, in the GSM8K schema, from structures and patterns.

A *structure* is a chain of operations ("start_mul sub": x * y, then minus z).  A *wording* is the
tuple of sentence patterns of `maths.yaml` that tells it.  Five structures, and every wording with
a pattern marked "~", stand in test problems only.
"""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from workbook.world.splits import Split, digest, split_of

STRUCTURES = tuple(
    """
    start_mul | start_sum | start_unit
    start_value add | start_value sub | start_value times | start_value div
    start_mul add | start_mul sub | start_mul div | start_sum sub | start_sum times | start_sum div
    start_value add sub | start_value sub sub | start_value times add | start_value sub div
    start_value times sub | start_value addmul | start_value submul | start_unit add
    start_value sub times | start_unit sub | start_mul addmul | start_mul submul
    start_mul add sub | start_mul sub div | start_sum sub times
    start_value add sub times | start_value times add sub | start_sum addmul | start_unit submul
    start_value submul add | start_sum add div | start_value addmul sub | start_mul add div
    start_mul addmul sub | start_mul addmul div | start_mul submul add | start_mul add sub times
    start_sum sub times sub | start_mul sub sub times | start_value addmul submul
    start_mul submul times | start_sum addmul times
    """.replace("\n", "|").split("|")
)
STRUCTURES = tuple(s.strip() for s in STRUCTURES if s.strip())
TEST_ONLY_STRUCTURES = frozenset(
    {
        "start_value sub times",
        "start_unit sub",
        "start_value addmul sub",
        "start_mul add div",
        "start_mul submul times",
    }
)
STEP_SHARES = {1: 0.15, 2: 0.33, 3: 0.30, 4: 0.22}
TEST_STEP_SHARES = {1: 0.10, 2: 0.26, 3: 0.34, 4: 0.30}  # the test has more long problems
UNIT_SIZE = {"items": 12, "days": 7}  # a dozen, a week
LARGEST = 250


@dataclass(frozen=True)
class Pattern:
    """A sentence pattern: text, labels of its steps, a question that must follow, unit after it."""

    text: str
    labels: tuple[str, ...] = ()
    ask: str = ""
    unit: str = ""
    test_only: bool = False


@dataclass(frozen=True)
class Step:
    """One step of a worked solution: `label: left op right = value`, without blanks."""

    label: str
    left: int
    op: str
    right: int

    @property
    def value(self) -> int:
        return {
            "+": self.left + self.right,
            "-": self.left - self.right,
            "*": self.left * self.right,
            "/": self.left // self.right,
        }[self.op]

    def __str__(self) -> str:
        return f"{self.label}: {self.left}{self.op}{self.right}={self.value}."


@dataclass(frozen=True)
class Problem:
    """A word problem with its solution; `numbers` are its operands in order, distractors apart."""

    question: str
    steps: tuple[Step, ...]
    structure: str
    numbers: tuple[int, ...]
    patterns: tuple[str, ...]
    topic: str
    has_distractor: bool
    seen: bool  # neither a test-only structure nor a test-only sentence pattern

    @property
    def final(self) -> int:
        return self.steps[-1].value

    @property
    def reasoning(self) -> str:
        return " ".join(map(str, self.steps))

    @property
    def wording(self) -> str:
        return digest(self.patterns)[:10]

    @property
    def key(self) -> list:
        return [self.structure, list(self.numbers)]

    def record(self) -> dict:
        """The GSM8K schema (`question`, `answer` with `#### n`) and what the splits are made of."""
        return {
            "id": "m-" + digest([self.question, self.key])[:12],
            "question": self.question,
            "answer": f"{self.reasoning}\n#### {self.final}",
            "structure": self.structure,
            "numbers": list(self.numbers),
            "wording": self.wording,
            "steps": len(self.steps),
            "distractor": self.has_distractor,
            "topic": self.topic,
            "seen": self.seen,
        }


@cache
def bank() -> dict:
    """`maths.yaml` with its pattern lines parsed."""
    raw = yaml.safe_load((Path(__file__).parent / "maths.yaml").read_text(encoding="utf-8"))
    raw["banks"] = {
        unit: {op: tuple(_parse(line, op) for line in lines) for op, lines in ops.items()}
        for unit, ops in raw["banks"].items()
    }
    raw["distractors"] = tuple(_parse(line, "distractor") for line in raw["distractors"])
    return raw


def _parse(line: str, op: str) -> Pattern:
    test_only, line = line.startswith("~"), line.removeprefix("~ ")
    text, *rest = (part.strip() for part in line.split("|"))
    labels = {"start_value": 0, "ask": 0, "distractor": 0, "addmul": 2, "submul": 2}.get(op, 1)
    if len(rest) < labels:
        raise ValueError(f"maths.yaml: {line!r} needs {labels} labels")
    ask, unit = (*rest[labels:], "", "")[:2]
    return Pattern(text, tuple(rest[:labels]), ask, unit, test_only)


def step_count(structure: str) -> int:
    """Steps of a structure: a start value takes none, `addmul` and `submul` take two.

    >>> step_count("start_value addmul sub")
    3
    """
    cost = {"start_value": 0, "addmul": 2, "submul": 2}
    return sum(cost.get(op, 1) for op in structure.split())


def _choose_patterns(
    structure: str, unit: str, rng: random.Random, allow_test_only: bool
) -> list[Pattern] | None:
    """A pattern for each operation, and a question; None where the unit has none that fits."""
    chosen, current = [], unit
    ops = structure.split()
    for place, op in enumerate(ops):
        last = place == len(ops) - 1
        fitting = [
            p
            for p in bank()["banks"][current].get(op, ())
            if (allow_test_only or not p.test_only)
            and (last or not p.ask or p.unit)
            and (not last or not p.unit or p.ask)
        ]
        # A pattern with a question of its own ends the story, unless it goes on in a new unit.
        if not fitting:
            return None
        chosen.append(rng.choice(fitting))
        current = chosen[-1].unit or current
    if chosen[-1].ask:
        return [*chosen, Pattern(chosen[-1].ask)]
    asks = [p for p in bank()["banks"][current]["ask"] if allow_test_only or not p.test_only]
    return [*chosen, rng.choice(asks)]


def _operands(op: str, total: int, rng: random.Random, following: str) -> tuple[int, ...] | None:
    """Operands for one operation on a running total; None where there are none."""
    if op == "start_value":
        return (rng.randint(2, 25) if following == "times" else rng.randint(5, 90),)
    if op == "start_mul":
        return rng.randint(2, 12), rng.randint(2, 9)
    if op == "start_sum":
        return rng.randint(3, 60), rng.randint(3, 60)
    if op == "start_unit":
        return (rng.randint(2, 15),)
    if op == "add":
        return (rng.randint(2, 60),)
    if op == "sub":
        return (rng.randint(2, min(total - 1, 90)),) if total > 3 else None
    if op == "times":
        return (rng.randint(2, 6),)
    if op == "div":
        divisors = [d for d in range(2, 10) if total % d == 0 and total // d > 1]
        return (rng.choice(divisors),) if divisors else None
    return rng.randint(2, 7), rng.randint(2, 9)  # addmul, submul


def _steps_of(
    op: str, total: int, x: tuple[int, ...], labels: tuple[str, ...], unit: str
) -> list[Step]:
    if op == "start_value":
        return []
    if op in ("addmul", "submul"):
        product = Step(labels[0], x[0], "*", x[1])
        return [product, Step(labels[1], total, "+" if op == "addmul" else "-", product.value)]
    if op == "start_unit":
        return [Step(labels[0], x[0], "*", UNIT_SIZE[unit])]
    sign = {"start_mul": "*", "start_sum": "+", "add": "+", "sub": "-", "times": "*", "div": "/"}[
        op
    ]
    return [
        Step(labels[0], x[0], sign, x[1])
        if op.startswith("start")
        else Step(labels[0], total, sign, x[0])
    ]


def _people(rng: random.Random, count: int) -> list[str]:
    return rng.sample(bank()["names"], count)


def _tell(
    structure: str,
    unit: str,
    topic: str,
    patterns: list[Pattern],
    rng: random.Random,
    distractor: Pattern | None,
) -> Problem | None:
    """Fill the patterns with numbers, people and things; None where the numbers do not work out."""
    thing, things = rng.choice(bank()["items"][topic]).split() if unit == "items" else ("", "")
    hero, *others = _people(rng, 8)
    total, steps, numbers, sentences, friend = 0, [], [], [], others[0]
    ops = structure.split()
    for place, (op, pattern) in enumerate(zip(ops, patterns, strict=False)):
        x = _operands(op, total, rng, ops[place + 1] if place + 1 < len(ops) else "")
        if x is None:
            return None
        friend = others[place]
        fields = {"N": hero, "M": friend, "i": things, "s": thing, "x": x[0], "y": x[-1]}
        labels = tuple(label.format(**fields) for label in pattern.labels)
        new = _steps_of(op, total, x, labels, unit)
        total = new[-1].value if new else x[0]
        if not all(1 <= s.value <= LARGEST for s in new):
            return None
        steps += new
        numbers += x
        sentences.append(pattern.text.format(**fields))
    if distractor:
        sentences.insert(
            rng.randint(1, len(sentences)),
            distractor.text.format(N=hero, M=friend, x=rng.randint(2, 60)),
        )
    sentences.append(patterns[-1].text.format(N=hero, M=friend, i=things, s=thing))
    used = [*patterns, distractor] if distractor else patterns
    seen = structure not in TEST_ONLY_STRUCTURES and not any(p.test_only for p in used)
    return Problem(
        " ".join(sentences),
        tuple(steps),
        structure,
        tuple(numbers),
        tuple(p.text for p in used),
        topic,
        distractor is not None,
        seen,
    )


def _draw_structure(rng: random.Random, split: Split, steps: int | None) -> str:
    shares = TEST_STEP_SHARES if split == "test" else STEP_SHARES
    steps = steps or rng.choices(list(shares), list(shares.values()))[0]
    allowed = [
        s
        for s in STRUCTURES
        if step_count(s) == steps and (split == "test" or s not in TEST_ONLY_STRUCTURES)
    ]
    return rng.choice(allowed)


def sample_problem(rng: random.Random, split: Split, *, steps: int | None = None) -> Problem:
    """One problem that may stand in `split`.

    Test problems draw from all structures and patterns, the other splits from those that are not
    test-only.  The split is decided by the key (structure and numbers): a draw whose key belongs
    elsewhere is thrown away.

    >>> sample_problem(random.Random(1), "train").structure in STRUCTURES
    True
    """
    world = bank()
    structure = _draw_structure(
        rng, split, steps
    )  # drawn once: easy structures must not crowd out hard ones
    while True:
        unit = rng.choices(list(world["units"]), list(world["units"].values()))[0]
        topic = rng.choice(list(world["items"])) if unit == "items" else unit
        patterns = _choose_patterns(structure, unit, rng, split == "test" and rng.random() < 0.5)
        if patterns is None:
            continue
        noise = [
            p
            for p in world["distractors"]
            if (split == "test" or not p.test_only) and not (unit == "years" and "years" in p.text)
        ]
        problem = _tell(
            structure,
            unit,
            topic,
            patterns,
            rng,
            rng.choice(noise) if rng.random() < 0.25 else None,
        )
        if problem is not None and split_of(problem.key) == split:
            return problem


def sample_problems(count: int, split: Split, seed: int) -> list[Problem]:
    """`count` problems of one split with distinct questions.

    >>> len({p.question for p in sample_problems(20, "train", seed=0)})
    20
    """
    rng, found = random.Random(f"maths-{split}-{seed}"), {}
    while len(found) < count:
        problem = sample_problem(rng, split)
        found.setdefault(problem.question, problem)
    return list(found.values())
