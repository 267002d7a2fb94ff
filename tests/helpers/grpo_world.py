"""What the tests of GRPO and PPO share: a small random model, prompts, a reward that varies."""

import torch

from helpers.models import LoraSettings, load_model
from helpers.training import GRPOSettings, PPOSettings, train_grpo, train_ppo
from helpers.training.engines import TransformersEngine
from helpers.training.grpo import FUNCTIONS, GRPO
from helpers.training.rollout_loop import RolloutLoop
from helpers.training.rollouts import Tasks

PROMPTS = ["Nora has 12 apples", "Where did Luben study?", "x", "How many apples does she",
           "<think> 12 + 30", "Ein Preis von"]
DATA = [{"prompt": prompt, "gold_answer": str(place)} for place, prompt in enumerate(PROMPTS)]
LORA = LoraSettings(rank=4)


def parts(reward, form=0.0):
    return {"format_reward": form, "answer_reward": reward, "reward": reward}


def vowels(response, gold):
    """A reward that differs between most samples of a random model."""
    return parts(sum(response.count(letter) for letter in "aeiou") / 4)


def settings(**changes):
    return GRPOSettings(**{"max_steps": 3, "prompts_per_step": 4, "samples_per_prompt": 4,
                           "max_new_tokens": 8, "lr": 1e-2, "progress": False} | changes)


def fresh(folder, lora=LORA, dtype=torch.float32):
    """(model, tokenizer) whose new adapter is not zero any more."""
    model, tokenizer = load_model(folder, lora=lora, device="cpu")
    model.to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model, tokenizer


def train(folder, out=None, *, reward_fn=vowels, data=DATA, callbacks=(), lora=LORA, resume=True,
          functions=None, eval_data=None, engine="auto", dtype=torch.float32, **changes):
    model, tokenizer = fresh(folder, lora, dtype)
    return train_grpo(model, data, settings(**changes), tokenizer=tokenizer, reward_fn=reward_fn,
                      functions=functions, callbacks=callbacks, out_dir=out, resume=resume,
                      eval_data=eval_data, engine=engine)


def ppo_settings(**changes):
    return PPOSettings(**{"max_steps": 3, "prompts_per_step": 4, "samples_per_prompt": 4,
                          "max_new_tokens": 8, "lr": 1e-2, "progress": False} | changes)


def train_by_ppo(folder, out=None, *, reward_fn=vowels, callbacks=(), functions=None,
                 dtype=torch.float32, **changes):
    model, tokenizer = fresh(folder, dtype=dtype)
    return train_ppo(model, DATA, ppo_settings(**changes), tokenizer=tokenizer, reward_fn=reward_fn,
                     functions=functions, callbacks=callbacks, out_dir=out)


def make_loop(folder, reward_fn=vowels, functions=None, **changes):
    """A loop at its first step, to look into; float64, so that two ways to a gradient are told
    apart by the method and not by the rounding of one processor's kernels. What was sampled is
    rounded to float32 (6e-8 of log-probabilities near -6): hence bounds of 1e-6, not of 1e-12."""
    model, tokenizer = fresh(folder, dtype=torch.float64)
    chosen = settings(**changes)
    tasks = Tasks(DATA, tokenizer, chosen.max_new_tokens, 256)
    method = GRPO(tasks, chosen, FUNCTIONS | (functions or {}), reward_fn)
    return RolloutLoop(model.train(), method, chosen, TransformersEngine(model, tokenizer))


def gradients(loop, places=None, rollouts=None):
    """(gradients by name, rollouts, sums) of one update of a loop."""
    if rollouts is None:
        rollouts, _ = loop.collect()
        loop.method.finish(loop, rollouts)
    places = list(range(len(rollouts.samples))) if places is None else places
    sums, gap = loop.gradients(rollouts, places)
    found = {name: p.grad.clone() for name, p in loop.parameters.items()}
    loop.optimizer.zero_grad(set_to_none=True)
    return found, rollouts, sums | {"gap": gap}


def largest_difference(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)
