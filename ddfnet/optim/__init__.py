"""Optimizer, learning-rate schedule and gradient clipping, with the sections of the configuration that choose them."""

from ddfnet.optim.optimizer import OptimConfig, build_optimizer, check_optimizer, clip_gradients
from ddfnet.optim.schedule import ScheduleConfig, learning_rate, peak_learning_rate

__all__ = [
    "OptimConfig",
    "ScheduleConfig",
    "build_optimizer",
    "check_optimizer",
    "clip_gradients",
    "learning_rate",
    "peak_learning_rate",
]
