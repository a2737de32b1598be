"""Training with Lightning, which is imported here and in data/run_data.py only."""

from tinylm.optim.muon import Muon
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.optim.schedule import ScheduleConfig
from tinylm.training.checkpoint import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from tinylm.training.grpo import GRPO
from tinylm.training.inspection import ActivationStatistics, AttentionEntropy, DropoutAnnealing, GradientNorms
from tinylm.training.metrics import TextMetrics, TokenMetrics
from tinylm.training.module import LitTransformerLM
from tinylm.training.own_data import OwnData
from tinylm.training.preferences import DPO
from tinylm.training.profiling import StepProfile
from tinylm.training.sharding import ShardedStrategy
from tinylm.training.spikes import LossSpikes
from tinylm.training.tracking import WandbTracker

__all__ = [
    "DPO",
    "GRPO",
    "ActivationStatistics",
    "AtomicCheckpointIO",
    "AttentionEntropy",
    "BestCheckpoint",
    "DropoutAnnealing",
    "GradientNorms",
    "LastCheckpoint",
    "LitTransformerLM",
    "LossSpikes",
    "Muon",
    "OptimizerConfig",
    "OwnData",
    "ScheduleConfig",
    "ShardedStrategy",
    "StepProfile",
    "TextMetrics",
    "TokenMetrics",
    "WandbTracker",
]
