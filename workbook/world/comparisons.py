"""The comparisons that lesson 02 learns a reward from: pairs of sampled responses with a label.

    python3 -m workbook world comparisons

Every response is a sample at temperature 1 of a shipped policy; the annotator of
`workbook.world.preferences` labels each pair. Three files, on problems of their own each:

    reward_train.jsonl   two policies a pair, problems of the train split
    reward_test.jsonl    the same of the test split
    reward_sets.jsonl    both responses of one policy; three policies on the same test problems
"""

import random
from collections.abc import Sequence
from pathlib import Path

from helpers.models import load_model
from helpers.rollout import SamplingSettings, generate
from workbook.world.data import write_jsonl
from workbook.world.maths import Problem, sample_problems
from workbook.world.policies import prompt_of
from workbook.world.preferences import Annotator, label_pairs

POLICIES = ("base", "sft_short", "sft", "verbose")
SET_POLICIES = ("base", "sft_short", "verbose")
TRAIN_PROBLEMS = 1075
TEST_PROBLEMS = (1050, 160)  # a second draw: equal responses give no pair, and 1,000 are wanted
SET_PROBLEMS = 190
RESERVED = 280  # test problems that the mixed pairs leave alone
SEED = 0
MAX_NEW_TOKENS = 192


def sample_policies(
    assets: Path, wanted: dict[str, list[Problem]], seed: int, n: int = 1
) -> dict[str, dict[str, list[str]]]:
    """`n` responses of each policy to its problems: {policy: {problem key: responses}}."""
    found = {}
    for name, problems in wanted.items():
        adapter = None if name == "base" else assets / "adapters" / name
        model, tokenizer = load_model(assets / "base", adapter=adapter, trainable_adapter=False)
        sampling = SamplingSettings(temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
        prompts = [prompt_of(p) for p in problems]
        texts = [c.text for c in generate(model, tokenizer, prompts, n=n, sampling=sampling)]
        found[name] = {p.question: texts[n * k : n * k + n] for k, p in enumerate(problems)}
    return found


def mixed_pairs(assets: Path, problems: Sequence[Problem], seed: int) -> list[dict]:
    """Labelled pairs, the two responses of each from two policies drawn by chance."""
    rng = random.Random(f"comparisons-{seed}")
    drawn = [(p, rng.sample(POLICIES, 2)) for p in problems]
    wanted = {name: [p for p, two in drawn if name in two] for name in POLICIES}
    texts = sample_policies(assets, wanted, seed)
    samples = [(p, {name: texts[name][p.question][0] for name in two}) for p, two in drawn]
    return labelled(samples, seed)


def own_pairs(assets: Path, problems: Sequence[Problem], seed: int) -> list[dict]:
    """Labelled pairs a policy, both responses its own, from the same problems for all.

    A policy that gives a problem twice the same response has one pair fewer.
    """
    texts = sample_policies(assets, {name: list(problems) for name in SET_POLICIES}, seed, n=2)
    records = []
    for name in SET_POLICIES:
        samples = [(p, texts[name][p.question]) for p in problems]
        records += labelled([(p, dict(enumerate(two))) for p, two in samples], seed, author=name)
    return records


def labelled(
    samples: Sequence[tuple[Problem, dict]], seed: int, author: str | None = None
) -> list[dict]:
    """Records of the pairs: the label, both gold rewards, the gold answer, who wrote what.

    samples: a problem with {policy: response}; two equal responses give no pair. author: the one
    policy that wrote both.
    """
    triples = [(prompt_of(p), str(p.final), list(texts.values())) for p, texts in samples]
    by_prompt = {prompt_of(p): (p, texts) for p, texts in samples}
    records = []
    for pair in label_pairs(triples, Annotator(), seed):
        problem, texts = by_prompt[pair.prompt]
        wrote = {text: author or name for name, text in texts.items()}
        records.append(pair.as_better_id() | {
            "gold_reward_0": pair.gold_reward_0, "gold_reward_1": pair.gold_reward_1,
            "gold_answer": str(problem.final),
            "policy_0": wrote[pair.response_0], "policy_1": wrote[pair.response_1]})
    return records


def write_comparisons(assets: Path, folder: Path) -> list[Path]:
    """Write the three files to `folder`; returns them."""
    train = sample_problems(TRAIN_PROBLEMS, "train", SEED + 20)
    test = sample_problems(RESERVED + sum(TEST_PROBLEMS), "test", SEED + 21)
    middle = RESERVED + TEST_PROBLEMS[0]
    found = {
        "reward_train": mixed_pairs(assets, train, SEED),
        "reward_test": [*mixed_pairs(assets, test[RESERVED:middle], SEED + 1),
                        *mixed_pairs(assets, test[middle:], SEED + 3)],
        "reward_sets": own_pairs(assets, test[:SET_PROBLEMS], SEED + 2),
    }
    for name, records in found.items():
        write_jsonl(records, folder / f"{name}.jsonl")
    return [folder / f"{name}.jsonl" for name in found]
