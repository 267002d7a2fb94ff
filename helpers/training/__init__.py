"""Training: one loop on `accelerate`, one checkpoint mechanism, and a module for each method.

settings.py    typed settings of each method
batches.py     which examples make a step, and their micro-batches
loop.py        the optimiser step, over micro-batches and processes
checkpoint.py  write, find and load checkpoints
run.py         the run and its folder
method.py      what a method adds to the loop
cached_reference.py  log-probabilities under the reference policy
sft.py, reward.py, preference.py (pairwise.py, kto.py)

Two responses in one row, behind one prompt: helpers/shared_rows.py.

Reinforcement learning, whose examples are sampled at each step:

rl_settings.py    its settings
engines.py        who samples
rollouts.py       the responses of a step, graded
shared_prompt.py  several responses in one row, behind one prompt
rollout_loop.py   sample, grade, update
rollout_method.py what a method adds to that
rl_run.py         the folder, the start
grpo.py (grpo_step.py), ppo.py
"""

from helpers.training.grpo import train_grpo
from helpers.training.ppo import train_ppo
from helpers.training.preference import train_preference
from helpers.training.reward import train_reward_model
from helpers.training.rl_settings import GRPOSettings, PPOSettings
from helpers.training.run import Run
from helpers.training.settings import (
    PreferenceSettings,
    RewardSettings,
    SFTSettings,
    TrainSettings,
)
from helpers.training.sft import train_sft

__all__ = [
    "GRPOSettings",
    "PPOSettings",
    "PreferenceSettings",
    "RewardSettings",
    "Run",
    "SFTSettings",
    "TrainSettings",
    "train_grpo",
    "train_ppo",
    "train_preference",
    "train_reward_model",
    "train_sft",
]
