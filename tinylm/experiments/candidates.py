"""The runs to choose from for a budget: text, network, optimizer and config of each width.

Sizes, learning rate and batch are those of the law's own runs (grid.py). Options that the user sets are kept.
"""

import math
from functools import cached_property
from typing import Any

import torch

from tinylm.data import TextDataModule
from tinylm.experiments.budget import Budget
from tinylm.experiments.devices import Device
from tinylm.experiments.estimate import default_precision
from tinylm.experiments.grid import HEADS, LAYERS, WARMUP, learning_rate
from tinylm.experiments.law import Law
from tinylm.experiments.workload import Workload
from tinylm.model import ModelConfig, flops_per_token, parameter_count
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.training.precision import device_kind
from tinylm.training.throughput import measure_peak_flops

BATCH = 4  # sequences of a step in the law's runs
LARGER = (8, 16)  # with which enough steps are no worse per token
STORY = 103  # tokens, on average
EPOCHS = 2.0  # most passes over the stories
USED = 0.4  # share of the peak that training uses
ENCODING = 0.0007  # seconds a story
FOR_DATA = 0.04  # share of the time that encoding may take
VAL_STORIES = 160  # as in small.yaml
WIDEST = 128  # largest width for which the learning rate was searched; wider networks transfer it by muP
WIDTHS = (*range(16, WIDEST, 8), *range(WIDEST, 2049, 32))


class Candidates:
    """The runs to choose from.

    Args:
        budget: the budget
        given: options that the user sets, by dotted name
        law: the scaling law
        device: the device that trains

    Attributes:
        kind: cpu, cuda or mps
        batch: sequences of a step
    """

    def __init__(self, budget: Budget, given: dict[str, Any], law: Law, device: Device) -> None:
        self.budget, self.given, self.law, self.device = budget, given, law, device
        self.kind = "cpu" if device.on_cpu else device_kind("auto")
        self.batch: int = given.get("data.batch_size", BATCH)

    # --- data

    @cached_property
    def corpus(self) -> str:
        """The text: the user's, or as many stories as suit the budget."""
        if "data.corpus" in self.given:
            return self.given["data.corpus"]
        stories = self._rough_tokens() / EPOCHS / STORY
        if self.budget.seconds is not None:
            stories = min(stories, FOR_DATA * self.budget.seconds / ENCODING)
        size = 10 ** math.floor(math.log10(max(stories, 1)))
        return f"stories:{min(max(round(stories / size) * size, 8000), 200_000)}"

    def _rough_tokens(self) -> float:
        """Tokens that the budget allows for training, at a speed guessed from the device's peak."""
        if self.budget.parameters is not None:
            return self.law.tokens_of_size(self.budget.parameters)
        if self.budget.flops is not None:
            return self.law.best(self.budget.flops).tokens
        peak = self.device.peak("32-true") or measure_peak_flops(torch.device(self.kind), torch.float32)
        return self.law.best(USED * peak * (self.budget.seconds or 0.0)).tokens

    @property
    def data_options(self) -> dict[str, Any]:
        """The options below `data`."""
        options: dict[str, Any] = {"corpus": self.corpus, "tokenizer": "bpe:2048", "batch_size": self.batch}
        if "data.corpus" not in self.given:
            share = round(VAL_STORIES / int(self.corpus.partition(":")[2]), 4)
            options["split"] = [round(1 - 2 * share, 4), share, share]
        return options | self._below("data")

    @cached_property
    def data(self) -> TextDataModule:
        """The data, encoded."""
        options = {name: value for name, value in self.data_options.items() if name != "num_workers"}
        module = TextDataModule(**{**options, "max_seq_len": self.context})
        module.content.num_tokens("train")
        return module

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        return self.given.get("model.network.max_seq_len", self.law.context)

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.batch * self.context

    @property
    def larger_batches(self) -> list[int]:
        """Batches that could be larger than `BATCH`, unless the user sets one."""
        micro_batch = self.given.get("data.micro_batch_size") or 1
        return [] if "data.batch_size" in self.given else [each for each in LARGER if each % micro_batch == 0]

    # --- sizes

    def network(self, width: int) -> ModelConfig:
        """The network of a width, with the options that the user sets."""
        own = self._below("model.network")
        return ModelConfig.from_dict({**self.shape(width), **own, "vocab_size": self.data.vocab_size})

    def parameters(self, width: int) -> int:
        """Parameters of the network of a width."""
        return parameter_count(self.network(width))

    def flops(self, width: int) -> int:
        """Operations of training a network of a width on one token."""
        return flops_per_token(self.network(width))

    def shape(self, width: int) -> dict[str, Any]:
        """The options of the network of a width: those of the law up to `WIDEST`, beyond it those that muP requires."""
        shape = {"d_model": width, "num_layers": LAYERS, "num_heads": HEADS, "max_seq_len": self.context}
        if width <= WIDEST:
            return shape
        return shape | {"num_heads": HEADS * width // WIDEST, "mup_base_width": WIDEST}

    @property
    def widths(self) -> list[int]:
        """The widths to choose from."""
        fixed = self.given.get("model.network.d_model")
        heads = self.given.get("model.network.num_heads")
        return [fixed] if fixed else [width for width in WIDTHS if heads is None or width % (2 * heads) == 0]

    def workload(self, width: int) -> Workload:
        """A run of a width, for measurements."""
        batch = self.batch
        return Workload(
            network=self.network(width),
            optimizer=self.optimizer(width),
            loss_rows=self.given.get("model.loss_rows"),
            compiled=bool(self.given.get("model.compile", False)),
            batch_size=batch,
            rows=min(self.data_options.get("micro_batch_size") or batch, batch),
            context=self.context,
            steps=1,
            precision=self.given.get("trainer.precision"),
        )

    def optimizer(self, width: int, steps: int = 1000) -> OptimizerConfig:
        """The optimizer of a run, the same as in the law's runs; a larger batch has a higher learning rate."""
        lr = learning_rate(min(width, WIDEST), steps) * math.sqrt(self.batch / BATCH)
        options: dict[str, Any] = {"name": "muon", "lr": lr, "weight_decay": 0.1, "momentum": 0.9}
        return OptimizerConfig(**(options | self._below("model.optimizer")))

    def precision(self, width: int) -> str:
        """The precision of a width, as `fit` chooses it."""
        return self.given.get("trainer.precision") or default_precision(self.device, self.workload(width))

    # --- the config

    @property
    def validations(self) -> int:
        """Number of validations."""
        return 2 if (self.budget.seconds or 0) < 1200 else 5

    def why_unpredicted(self) -> str:
        """The reason why the law does not predict the loss; empty if it does."""
        if not str(self.corpus).startswith("stories"):
            return "the law holds for the built-in stories"
        of_law = ("data.corpus", "model.network.d_model", "data.micro_batch_size", "data.num_workers", "data.cache_dir")
        names = [name for name in self.given if name.startswith(("model.", "data.")) and name not in of_law]
        return f"the law does not cover {names[0]}={self.given[names[0]]}" if names else ""

    def values(self, width: int, steps: int) -> dict[str, Any]:
        """The config of a width, for a number of steps."""
        optimizer = self.optimizer(width, steps)
        values: dict[str, Any] = {
            "model": {
                "network": self.shape(width),
                "optimizer": {
                    "name": optimizer.name,
                    "lr": optimizer.lr,
                    "weight_decay": optimizer.weight_decay,
                    "momentum": optimizer.momentum,
                },
                "schedule": {"name": "linear", "warmup_steps": min(WARMUP, steps // 2), "min_lr": 0.0},
            },
            "data": self.data_options,
            "run": {"sample_tokens": 120},
            "trainer": {
                "max_steps": steps,
                "gradient_clip_val": 1.0,
                "val_check_interval": max(1, math.ceil(steps / self.validations)),
                "check_val_every_n_epoch": None,
                "log_every_n_steps": max(1, min(50, steps // 10)),
            },
        }
        if self.budget.seconds is not None:
            values["run"]["seconds"] = self.budget.seconds
        if not self.device.on_cpu:
            values["trainer"]["devices"] = 1  # whose speed was measured
        for name, value in self.given.items():
            *groups, last = name.split(".")
            place = values
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = value
        return values

    def _below(self, group: str) -> dict[str, Any]:
        """The options that the user sets in a group."""
        prefix = f"{group}."
        return {name.removeprefix(prefix): value for name, value in self.given.items() if name.startswith(prefix)}
