"""Preferences: a gold reward written in code, and annotators who see it through noise and length.

The gold reward is the truth behind every learned reward here: lessons measure how far a reward
model has drifted from it.  Annotators are not perfect, in two known ways: of two responses they
like the longer one more (`length_bias`), and some labels are flipped at random (`label_noise`).
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from helpers.rewards import extract_answer, is_equivalent, last_number, sub_em

CORRECT, ABSTAINS, WRONG = 1.0, 0.4, 0.0
COURTESY, MOST_COURTESY = 0.05, 0.1
_ABSTENTION = re.compile(r"\b(not stated|not in the text|do not know|cannot tell)\b", re.IGNORECASE)
_COURTEOUS = re.compile(
    r"\b(I hope this helps|please|thank you|happy to help|good luck)\b", re.IGNORECASE
)

Gold = str | Sequence[str]  # the number of a maths problem, or the accepted answers of a question


def is_correct(response: str, gold: Gold) -> bool:
    """Whether the response ends in the gold number, or holds one of the gold answers."""
    if not isinstance(gold, str):
        return sub_em(response, gold) > 0
    found = extract_answer(response) or last_number(response)
    return found is not None and is_equivalent(found, gold)


def gold_reward(response: str, gold: Gold) -> float:
    """Correct (1) over abstaining (0.4) over wrong (0); then up to 0.1 for courtesy.

    Courtesy never outweighs being right, and length counts for nothing.

    >>> gold_reward("4*6=24. The answer is 24.", "24")
    1.0
    >>> gold_reward("I do not know. I hope this helps.", "24")
    0.45
    """
    courtesy = min(MOST_COURTESY, COURTESY * len(_COURTEOUS.findall(response)))
    if is_correct(response, gold):
        return CORRECT + courtesy
    return (ABSTAINS if _ABSTENTION.search(response) else WRONG) + courtesy


@dataclass(frozen=True)
class Annotator:
    """Who labels the pairs.

    label_noise: share of labels flipped at random (0.10 to 0.15 in this world).
    length_bias: what ten more words are worth, in units of the gold reward.
    """

    label_noise: float = 0.12
    length_bias: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.label_noise <= 0.5:
            raise ValueError(f"label_noise must be between 0 and 0.5, and is {self.label_noise}.")

    def perceived(self, response: str, gold: Gold) -> float:
        """The gold reward as this annotator feels it: longer seems better."""
        return self.felt(response, gold_reward(response, gold))

    def felt(self, response: str, reward: float) -> float:
        """The same of a response whose gold reward is known."""
        return reward + self.length_bias * len(response.split()) / 10

    def better(self, first: str, second: str, gold: Gold, rng: random.Random) -> int:
        """0 or 1: which response the label calls better; equal ones are decided by a coin.

        >>> fair = Annotator(label_noise=0, length_bias=0)
        >>> fair.better("The answer is 3.", "No.", "3", random.Random(0))
        0
        """
        difference = self.perceived(second, gold) - self.perceived(first, gold)
        choice = rng.randrange(2) if difference == 0 else int(difference > 0)
        return 1 - choice if rng.random() < self.label_noise else choice


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt with the annotator's label, and the truth beside it."""

    prompt: str
    response_0: str
    response_1: str
    better_response_id: int
    gold_reward_0: float
    gold_reward_1: float

    def as_better_id(self) -> dict:
        return {
            "prompt": self.prompt,
            "response_0": self.response_0,
            "response_1": self.response_1,
            "better_response_id": self.better_response_id,
        }

    def as_chosen_rejected(self) -> dict:
        responses = (self.response_0, self.response_1)
        return {
            "prompt": self.prompt,
            "chosen": responses[self.better_response_id],
            "rejected": responses[1 - self.better_response_id],
        }

    def as_unpaired(self) -> list[dict]:
        """Two records with a label each, as KTO takes them."""
        return [
            {"prompt": self.prompt, "completion": text, "label": number == self.better_response_id}
            for number, text in enumerate((self.response_0, self.response_1))
        ]


def label_pairs(
    samples: Iterable[tuple[str, Gold, Sequence[str]]], annotator: Annotator, seed: int
) -> list[Pair]:
    """Label each prompt's first two responses that differ.

    Args:
        samples: (prompt, gold, responses) triples; the responses come from different policies.
        annotator: who labels.
        seed: of the order within a pair and of the noise.

    Returns:
        One pair a prompt; a prompt whose responses are all equal gives none.
    """
    rng, pairs = random.Random(f"preferences-{seed}"), []
    for prompt, gold, responses in samples:
        distinct = list(dict.fromkeys(responses))
        if len(distinct) < 2:
            continue
        first, second = rng.sample(distinct[:2], 2)
        pairs.append(
            Pair(
                prompt,
                first,
                second,
                annotator.better(first, second, gold, rng),
                gold_reward(first, gold),
                gold_reward(second, gold),
            )
        )
    return pairs
