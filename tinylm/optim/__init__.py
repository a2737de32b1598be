"""Optimizers, their parameter groups, and the learning rate of each step; no Lightning."""

from tinylm.optim.muon import Muon
from tinylm.optim.optimizer import OptimizerConfig, make_optimizer
from tinylm.optim.schedule import ScheduleConfig, learning_rate

__all__ = ["Muon", "OptimizerConfig", "ScheduleConfig", "learning_rate", "make_optimizer"]
