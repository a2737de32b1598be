"""Training, by Lightning. Only this folder and data/datamodule.py know it."""

from tinylm.training.checkpoint import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from tinylm.training.inspection import ActivationStatistics, AttentionEntropy, DropoutAnnealing, GradientNorms
from tinylm.training.module import LitTransformerLM
from tinylm.training.optim import Muon, OptimizerConfig
from tinylm.training.profiling import StepProfile
from tinylm.training.schedule import ScheduleConfig
from tinylm.training.sharding import ShardedStrategy
from tinylm.training.tracking import WandbTracker

__all__ = [
    "ActivationStatistics",
    "AtomicCheckpointIO",
    "AttentionEntropy",
    "BestCheckpoint",
    "DropoutAnnealing",
    "GradientNorms",
    "LastCheckpoint",
    "LitTransformerLM",
    "Muon",
    "OptimizerConfig",
    "ScheduleConfig",
    "ShardedStrategy",
    "StepProfile",
    "WandbTracker",
]
