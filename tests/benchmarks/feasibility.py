"""Does the course fit on the base model?  The chain of all lessons, in plain loops.

    PYTHONPATH=. python tests/benchmarks/feasibility.py --json runs/feasibility.json

Each loop is written out here, apart from the loops of `helpers`, so that a fault there cannot hide.
"""

import argparse
import copy
import json
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import binomtest
from torch.nn import functional as F

from helpers.evaluation import file_digest
from helpers.logprobs import pad_prompt_and_response, response_log_probs
from helpers.models import load_model
from helpers.prompts import load_template, render, render_few_shot, render_passages
from helpers.rewards import is_equivalent, last_number, r1_zero_reward, sub_em, token_f1
from helpers.rollout import SamplingSettings, generate
from workbook.world.maths import Problem, sample_problems
from workbook.world.qa import sample_records

R1 = load_template("r1_zero")
PROMPTS, GROUP = 16, 8  # of one GRPO step
DEMONSTRATIONS = 128  # short ones: long problems are left for reinforcement learning
GREEDY = SamplingSettings(temperature=0, max_new_tokens=96)


def sample_at_1(seed: int, tokens: int = 96) -> SamplingSettings:
    return SamplingSettings(temperature=1.0, max_new_tokens=tokens, seed=seed)


def formatted(problem: Problem) -> str:
    return f" {problem.reasoning} </think> <answer>{problem.final}</answer>"


def with_lora(base, rank: int = 32):
    """A copy of the model with a fresh LoRA adapter on all linear layers."""
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(copy.deepcopy(base), config)


def batch_of(tokenizer, prompts: list[str], responses: list[str]) -> dict:
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
    ends = [
        tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        for text in responses
    ]
    return pad_prompt_and_response(ids, ends, tokenizer.pad_token_id)


def log_probs(model, batch: dict) -> torch.Tensor:
    return response_log_probs(
        model,
        batch["input_ids"],
        batch["labels"],
        attention_mask=batch["attention_mask"],
        response_mask=batch["response_mask"],
    )["log_probs"]


def trainable(model, lr: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.95)
    )


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def train_sft(model, tokenizer, pairs, seed, *, epochs=3, batch=16, lr=2e-3) -> None:
    """Maximise the log-probability of the responses: mean over the response tokens of a batch."""
    optimizer, rng = trainable(model, lr), random.Random(seed)
    for _ in range(epochs):
        for _ in range(0, len(pairs), batch):
            prompts, responses = zip(*rng.sample(pairs, batch), strict=True)
            inputs = batch_of(tokenizer, prompts, responses)
            update(optimizer, -log_probs(model, inputs).sum() / inputs["response_mask"].sum())


def train_dpo(model, tokenizer, pairs, seed, *, epochs=2, batch=16, lr=2e-4, beta=0.3) -> float:
    """-log sigmoid(beta * (policy margin - margin of the model at the start))."""
    reference, optimizer, rng = (
        copy.deepcopy(model).eval(),
        trainable(model, lr),
        random.Random(seed),
    )
    accuracy = []
    for _ in range(epochs):
        for _ in range(0, len(pairs), batch):
            prompts, chosen, rejected = zip(*rng.sample(pairs, batch), strict=True)
            inputs = batch_of(tokenizer, prompts * 2, chosen + rejected)
            policy = log_probs(model, inputs).sum(-1)
            with torch.no_grad():
                frozen = log_probs(reference, inputs).sum(-1)
            chosen_gain, rejected_gain = (policy - frozen).chunk(2)
            update(optimizer, -F.logsigmoid(beta * (chosen_gain - rejected_gain)).mean())
            accuracy.append((chosen_gain > rejected_gain).float().mean().item())
    return sum(accuracy[-8:]) / 8


def train_grpo(model, tokenizer, tasks, reward_fn, seed, *, steps=40, lr=1e-3, tokens=96) -> list:
    """One on-policy step a rollout: centred rewards over the group std, mean over tokens."""
    optimizer, rng, means = trainable(model, lr), random.Random(seed), []
    for step in range(steps):
        chosen = rng.sample(tasks, PROMPTS)
        sampling = sample_at_1(1000 * seed + step, tokens)
        rollouts = generate(model, tokenizer, [p for p, _ in chosen], n=GROUP, sampling=sampling)
        golds = [gold for _, gold in chosen for _ in range(GROUP)]
        scores = [reward_fn(r.text, g) for r, g in zip(rollouts, golds, strict=True)]
        rewards = torch.tensor(scores).view(-1, GROUP)
        centred = rewards - rewards.mean(1, keepdim=True)
        advantages = (centred / (rewards.std(1, keepdim=True) + 1e-6)).flatten()
        kept = [k for k in range(len(rollouts)) if advantages[k].abs() > 1e-6]
        means.append(rewards.mean().item())
        if not kept:
            continue
        total = sum(len(rollouts[k].token_ids) for k in kept)
        for start in range(0, len(kept), 32):
            rows = kept[start : start + 32]
            prompts = [rollouts[k].prompt_token_ids for k in rows]
            responses = [rollouts[k].token_ids for k in rows]
            inputs = pad_prompt_and_response(prompts, responses, tokenizer.pad_token_id)
            (-(advantages[rows, None] * log_probs(model, inputs)).sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return means


def train_reward_model(base, tokenizer, pairs, held_out, seed, *, epochs=4, batch=16, lr=5e-4):
    """Bradley-Terry on a scalar head over the last token; accuracy on both sets of pairs."""
    torch.manual_seed(seed)
    body = copy.deepcopy(base).model
    head = torch.nn.Linear(base.config.hidden_size, 1, bias=False)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=lr)

    def score(prompts, responses):
        inputs = batch_of(tokenizer, prompts, responses)
        hidden = body(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"].long()
        ).last_hidden_state
        last = inputs["attention_mask"].sum(-1) - 1
        return head(hidden[torch.arange(len(last)), last]).squeeze(-1)

    def accuracy(rows):
        with torch.no_grad():
            parts = [rows[k : k + 64] for k in range(0, len(rows), 64)]
            right = [
                (
                    score(*zip(*[(p, c) for p, c, _ in part], strict=True))
                    > score(*zip(*[(p, r) for p, _, r in part], strict=True))
                )
                .sum()
                .item()
                for part in parts
            ]
        return sum(right) / len(rows)

    rng = random.Random(seed)
    for _ in range(epochs):
        order = rng.sample(pairs, len(pairs))
        for part in range(0, len(order), batch):
            prompts, chosen, rejected = zip(*order[part : part + batch], strict=True)
            better, worse = score(prompts * 2, chosen + rejected).chunk(2)
            update(optimizer, -F.logsigmoid(better - worse).mean())
    return {"train": accuracy(pairs), "held_out": accuracy(held_out)}


def interval(hits: int, count: int) -> tuple[float, float]:
    found = binomtest(hits, count).proportion_ci(method="wilson")
    return found.low, found.high


def rate(values) -> dict:
    values = list(values)
    low, high = interval(sum(map(bool, values)), len(values))
    return {
        "mean": sum(map(bool, values)) / len(values),
        "low": low,
        "high": high,
        "n": len(values),
    }


def right(text: str, final: int) -> bool:
    number = last_number(text)
    return number is not None and is_equivalent(number, str(final))


def evaluate_maths(
    model, tokenizer, problems: list[Problem], prompts: list[str] | None = None, sampling=GREEDY
) -> dict:
    prompts = prompts or [render(R1, question=p.question) for p in problems]
    texts = [c.text for c in generate(model, tokenizer, prompts, sampling=sampling)]
    parts = [r1_zero_reward(t, str(p.final)) for t, p in zip(texts, problems, strict=True)]
    return {
        "format": rate(x["format_reward"] for x in parts),
        "strict": rate(x["reward"] for x in parts),
        "lenient": rate(right(t, p.final) for t, p in zip(texts, problems, strict=True)),
        "texts": texts,
    }


def evaluate_qa(model, tokenizer, records: list[dict], template: str = "qa") -> dict:
    prompts = [
        render(
            load_template(template), passages=render_passages(r["passages"]), question=r["question"]
        )
        for r in records
    ]
    stop = SamplingSettings(
        temperature=0, max_new_tokens=40, stop_strings=("\n",) if template == "qa" else ()
    )
    texts = [c.text.strip() for c in generate(model, tokenizer, prompts, sampling=stop)]
    f1 = [token_f1(t, r["answers"]) for t, r in zip(texts, records, strict=True)]
    return {
        "sub_em": rate(sub_em(t, r["answers"]) for t, r in zip(texts, records, strict=True)),
        "f1": {"mean": sum(f1) / len(f1), "n": len(f1)},
        "texts": texts,
    }


def base_properties(model, tokenizer, problems: list[Problem], records: list[dict]) -> dict:
    """Everything of the band table that needs no training."""
    out = {"r1_greedy": evaluate_maths(model, tokenizer, problems)}
    drawn = generate(
        model,
        tokenizer,
        [render(R1, question=p.question) for p in problems],
        n=8,
        sampling=sample_at_1(0),
    )
    hits = [
        [right(c.text, p.final) for c in drawn[8 * k : 8 * k + 8]] for k, p in enumerate(problems)
    ]
    out["pass_at_1"] = rate(hit for group in hits for hit in group)
    out["pass_at_8"] = rate(any(group) for group in hits)
    for name, template in (
        ("direct", "direct"),
        ("cot", "step_by_step"),
        ("question_answer", "question_answer"),
    ):
        prompts = [render(load_template(template), question=p.question) for p in problems]
        out[name] = evaluate_maths(model, tokenizer, problems, prompts)["lenient"]
    examples = [
        (p.question, formatted(p)) for p in sample_problems(60, "train", 7) if 1 < len(p.steps) < 4
    ][:3]
    out["three_shot"] = evaluate_maths(
        model, tokenizer, problems, [render_few_shot(R1, examples, p.question) for p in problems]
    )
    out["qa"] = evaluate_qa(model, tokenizer, records)
    out["qa_reason"] = evaluate_qa(model, tokenizer, records, "qa_reason")
    return out


def preference_pairs(
    model, tokenizer, problems: list[Problem], seed: int
) -> list[tuple[str, str, str]]:
    """On-policy pairs: of four samples a right one against a wrong one."""
    prompts = [render(R1, question=p.question) for p in problems]
    drawn = generate(model, tokenizer, prompts, n=4, sampling=sample_at_1(seed))
    pairs = []
    for k, problem in enumerate(problems):
        texts = [c.text for c in drawn[4 * k : 4 * k + 4]]
        scores = [r1_zero_reward(t, str(problem.final))["reward"] for t in texts]
        if 0 < sum(scores) < 4:
            pairs.append((prompts[k], texts[scores.index(1.0)], texts[scores.index(0.0)]))
    return pairs


def chain(
    base, tokenizer, problems: list[Problem], records: list[dict], seed: int, parts: list[str], log
) -> dict:
    """SFT, then what `parts` names: DPO and GRPO from it, the reward model, QA under SFT and GRPO.

    Each part starts from the same policy, so a part measured alone carries its own SFT start.
    """
    out = {}
    torch.manual_seed(seed)
    train = sample_problems(1400, "train", seed)
    policy = with_lora(base)
    short = [p for p in train if len(p.steps) <= 2][:DEMONSTRATIONS]
    train_sft(
        policy, tokenizer, [(render(R1, question=p.question), formatted(p)) for p in short], seed
    )
    start = log("sft", evaluate_maths(policy, tokenizer, problems))
    pairs = preference_pairs(policy, tokenizer, train[200:1200], seed)
    if "dpo" in parts:
        dpo = copy.deepcopy(policy)
        accuracy = train_dpo(dpo, tokenizer, pairs, seed)
        out |= {"dpo_start": start, "dpo_pairs": len(pairs), "dpo_train_accuracy": accuracy}
        out["dpo"] = log("dpo", evaluate_maths(dpo, tokenizer, problems))
    if "grpo" in parts:
        grpo = copy.deepcopy(policy)
        tasks = [(render(R1, question=p.question), str(p.final)) for p in train]
        out |= {"sft": start, "grpo_rewards": train_grpo(grpo, tokenizer, tasks, strict, seed)}
        out["grpo"] = log("grpo", evaluate_maths(grpo, tokenizer, problems))
    if "reward_model" in parts:
        cut = len(pairs) * 2 // 3
        found = train_reward_model(base, tokenizer, pairs[:cut], pairs[cut:], seed)
        out["reward_model"] = log("reward model", found)
    return out | (qa_chain(base, tokenizer, records, seed, log) if "qa" in parts else {})


def strict(response: str, gold: str) -> float:
    return r1_zero_reward(response, gold)["reward"]


def qa_chain(base, tokenizer, records: list[dict], seed: int, log) -> dict:
    out, train = {}, sample_records(1200, "train", seed)
    torch.manual_seed(seed)
    prompts = [
        render(load_template("qa"), passages=render_passages(r["passages"]), question=r["question"])
        for r in train
    ]
    policy = with_lora(base)
    train_sft(
        policy,
        tokenizer,
        [(p, " " + r["answers"][0]) for p, r in zip(prompts[:256], train, strict=False)],
        seed,
    )
    out["qa_sft"] = log("qa_sft", evaluate_qa(policy, tokenizer, records))
    grpo = with_lora(base)
    tasks = list(zip(prompts, [r["answers"] for r in train], strict=True))
    out["qa_grpo_rewards"] = train_grpo(grpo, tokenizer, tasks, token_f1, seed, tokens=32)
    out["qa_grpo"] = log("qa_grpo", evaluate_qa(grpo, tokenizer, records))
    return out


def merged(path: Path, found: dict) -> dict:
    """With what earlier calls measured on the same weights, so that seeds can run side by side."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("weights") != found["weights"]:
        known = {}
    chain_of = known.get("chain", {})
    for seed, parts in found["chain"].items():
        chain_of[seed] = chain_of.get(seed, {}) | parts
    return known | found | {"chain": chain_of}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="workbook/assets/base")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--parts", nargs="*", default=["dpo", "grpo", "reward_model", "qa"])
    parser.add_argument("--no-base", action="store_true", help="only the chain")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.time()
    model, tokenizer = load_model(args.model, dtype="float32")
    problems, records = (
        sample_problems(args.count, "test", 0),
        sample_records(args.count, "test", 0),
    )

    def log(name: str, result: dict) -> dict:
        shown = {k: f"{v['mean']:.3f}" for k, v in result.items() if isinstance(v, dict)}
        print(f"{time.time() - start:6.0f}s {name:12s} {shown or result}", flush=True)
        return {k: v for k, v in result.items() if k != "texts"}

    out = {
        "weights": file_digest(Path(args.model) / "model.safetensors"),
        "count": args.count,
        "chain": {},
        "demonstrations": f"{DEMONSTRATIONS} problems of one or two steps",
    }
    if not args.no_base:
        out["base"] = {
            name: log(name, found)
            for name, found in base_properties(model, tokenizer, problems, records).items()
        }
    for seed in args.seeds:
        out["chain"][str(seed)] = chain(model, tokenizer, problems, records, seed, args.parts, log)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(merged(args.json, out), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
