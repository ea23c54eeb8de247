"""The learning rate as a function of the optimizer step alone: nothing to save, and nothing that accumulation can disturb."""

import math

from train_config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of the optimizer step that follows `step` others.

    It rises evenly over the first `warmup_steps`, the first of which has a rate above zero already, and then stays, or
    falls to zero at `max_train_steps`: evenly (`linear`) or along half a wave (`cosine`; Loshchilov & Hutter 2017,
    arXiv:1608.03983, equation 5 without restarts).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    passed = (step - config.warmup_steps) / max(1, config.max_train_steps - config.warmup_steps)
    shares = {"constant": 1.0, "linear": 1 - passed, "cosine": (1 + math.cos(math.pi * passed)) / 2}
    return config.learning_rate * shares[config.lr_schedule]
