"""Evaluation: the steps of a LightningModule that measure a split exactly, every token once."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from tinylm.data import IGNORE, Batch
from tinylm.data.run_data import RunData
from tinylm.errors import ConfigError
from tinylm.evaluation.log_probs import token_nats
from tinylm.tokenizer import Tokenizer
from tinylm.training.metrics import TextMetrics


class EvaluationSteps(pl.LightningModule):
    """The validation, test and prediction steps of `LitTransformerLM`, and the data that all of its steps read.

    Attributes:
        objective: the objective of training, which may evaluate too; None: the next token
    """

    objective: Any
    _metrics: list[TextMetrics]  # a list, so that it is not a submodule
    _values: dict[str, MeanMetric]  # of the objective

    @property
    def tokenizer(self) -> Tokenizer:
        """The data module's tokenizer."""
        return self._datamodule.tokenizer

    @property
    def _datamodule(self) -> RunData:
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, RunData):
            raise ConfigError(
                "the trainer needs datamodule=, a TextDataModule; wrap one of your own, such as that of "
                "LightningDataModule.from_datasets: tinylm.training.OwnData(module)"
            )
        return datamodule

    def on_validation_epoch_start(self) -> None:
        """Resets the metrics."""
        # on the CPU where the device has no float64
        device = "cpu" if self.device.type == "mps" else self.device
        self._metrics = [self.new_metrics().to(device)]
        self._values = {}

    def new_metrics(self, **options: Any) -> TextMetrics:
        """The metrics of an evaluation, in which nothing has been counted yet."""
        data = self._datamodule if self._trainer is not None else None
        sources = {} if data is None else data.fingerprints
        return TextMetrics(torch.from_numpy(self.tokenizer.byte_lengths), sources, **options)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the metrics."""
        self._metrics[0].update(self(batch.inputs, batch.documents), batch.targets, batch.log_prob, batch.source)
        for name, values in self.objective.evaluate(self, batch).items() if hasattr(self.objective, "evaluate") else ():
            device = self._metrics[0].nats.device
            mean: Any = self._values.setdefault(name, MeanMetric()).set_dtype(torch.float64).to(device)
            mean.update(values.to(device))

    def on_validation_epoch_end(self) -> None:
        """Logs loss, perplexity, bits per byte, accuracy and, where it is known, the floor."""
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Resets the metrics."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the metrics."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Logs loss, perplexity, bits per byte, accuracy and, where it is known, the floor."""
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        found = self._metrics[0].compute() | {name: float(mean.compute()) for name, mean in self._values.items()}
        metrics = {f"{split}/{name}": value for name, value in found.items()}
        self.log_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in metrics.items()})

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The targets of a batch in order, (n,), and their log probabilities in nats, (n,)."""
        nats = token_nats(self(batch.inputs, batch.documents), batch.targets)
        counts = batch.targets != IGNORE
        return batch.targets[counts], -nats[counts]
