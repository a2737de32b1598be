"""Random numbers within a step as a function of the step, so that a resumed run draws the same dropout masks."""

import os

import torch

from tinylm.data.loader_batches import seed_of


def seed_micro_batch(step: int, micro_batch: int, rank: int, device: torch.device) -> None:
    """Seeds PyTorch's generators from (seed of the run, step, micro-batch, rank)."""
    seed = seed_of((os.environ.get("PL_GLOBAL_SEED", 0), step, micro_batch, rank))
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():  # a graph is seeded before it
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
