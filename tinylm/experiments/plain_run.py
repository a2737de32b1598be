"""A training run as one plain loop, for many short runs in one process without starting a Trainer for each.

A test checks that its losses equal those of `tinylm fit` with the same settings. It writes no checkpoints, so it is
meant for runs of seconds to minutes, which are simply repeated after an interruption.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from lightning.pytorch import seed_everything

from tinylm.checks import require
from tinylm.data import IGNORE, TextDataModule
from tinylm.evaluation.log_probs import token_nats
from tinylm.kernels.heap import keep_freed_memory
from tinylm.kernels.rms_norm import tune_for_training
from tinylm.model import ModelConfig, TransformerLM
from tinylm.optim.optimizer import OptimizerConfig, check_finite, make_optimizer
from tinylm.optim.schedule import ScheduleConfig
from tinylm.optim.scheduler import make_scheduler

CLIP = 1.0  # gradient norm
EVALUATION_BATCH = 32  # documents


class Measured(NamedTuple):
    """Result of a run.

    Attributes:
        loss: validation loss, nats per token
        floor: the lowest possible validation loss
        seconds: time of training, evaluation left out
    """

    loss: float
    floor: float
    seconds: float


@dataclass(frozen=True)
class Texts:
    """A text with a known floor, opened once for many runs.

    Args:
        corpus: as `data.corpus`
        tokenizer: as `data.tokenizer`
        context: tokens in a window
        batch_size: windows in a step
        val_tokens: fewest tokens to evaluate on, in evenly spaced documents of the validation split
        seed: of the order of the windows
    """

    corpus: str
    tokenizer: str
    context: int
    batch_size: int
    val_tokens: int
    seed: int = 1

    @property
    def name(self) -> str:
        """Everything that determines the batches, on one line."""
        batches = f"{self.batch_size} x {self.context} tokens, order {self.seed}, validation {self.val_tokens:,} tokens"
        return f"{self.corpus}, {self.tokenizer}, {batches}"

    @cached_property
    def data(self) -> TextDataModule:
        """The data module; ConfigError for a text of unknown entropy."""
        data = TextDataModule(
            self.corpus, self.tokenizer, self.context, self.batch_size, split=(0.96, 0.02, 0.02), seed=self.seed
        )
        require("val" in data.floors, f"{self.corpus}: its entropy is unknown; use stories, or a *.grammar.yaml")
        return data


def train(texts: Texts, network: ModelConfig, optimizer: OptimizerConfig, schedule: ScheduleConfig, steps: int,
          seed: int = 1) -> tuple[TransformerLM, float]:  # fmt: skip
    """Trains a network from random weights.

    Returns:
        the network, and the seconds it took

    Raises:
        NumericError: if a loss or gradient is not finite.
    """
    seed_everything(seed, verbose=False)
    model = TransformerLM(network)
    tune_for_training(model)
    keep_freed_memory()
    optim = make_optimizer(model, optimizer, fused=True)
    scheduler = make_scheduler(optim, schedule, lambda: steps)
    batches = texts.data.content.training(1, 1, 0)
    started = time.perf_counter()
    for step in range(steps):
        batch = batches[step]
        loss = model(batch.inputs, targets=batch.targets) / batch.num_targets
        optim.zero_grad()
        loss.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        values: dict[str, Any] = {"loss": loss.detach(), "gradient norm": norm}
        check_finite(step + 1, **values)
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), CLIP, norm)
        optim.step()
        scheduler.step()
    return model, time.perf_counter() - started


@torch.no_grad()
def evaluate(texts: Texts, model: TransformerLM) -> tuple[float, float]:
    """Loss and floor on the validation documents, in nats per token."""
    nats = best = tokens = 0.0
    data = texts.data.content.evaluation("val", texts.val_tokens, EVALUATION_BATCH, 1, 0)
    for index in range(len(data)):  # pyright: ignore[reportArgumentType]
        batch = data[index]
        nats += token_nats(model(batch.inputs), batch.targets).double().sum().item()
        tokens += (batch.targets != IGNORE).sum().item()
        best -= batch.log_prob or 0.0
    return nats / tokens, best / tokens


def measure(texts: Texts, network: ModelConfig, optimizer: OptimizerConfig, schedule: ScheduleConfig, steps: int,
            seed: int = 1) -> Measured:  # fmt: skip
    """Trains a network and evaluates it; arguments and errors are those of `train`."""
    model, seconds = train(texts, network, optimizer, schedule, steps, seed)
    return Measured(*evaluate(texts, model), seconds)
