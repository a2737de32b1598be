"""PredictionWriter: the output of `tinylm predict`."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tinylm.errors import ConfigError, notice
from tinylm.files import make_folder
from tinylm.training.module import LitTransformerLM


class PredictionWriter(Callback):
    """Writes one JSON line per token of the text, with its log probability given the earlier tokens of its window.

    `{"position": 1, "id": 43, "token": "e", "log_prob": -0.53}`, log_prob in nats. The first token has none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_predict_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Opens the file."""
        if trainer.world_size > 1:
            raise ConfigError("predict works on one device; set trainer.devices=1")
        make_folder(self.path.parent)
        self._file = self.path.open("w", encoding="utf-8", newline="")
        self._position = 1
        self._nats = 0.0

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Writes the tokens of a batch."""
        for token, log_prob in zip(outputs[0].tolist(), outputs[1].tolist(), strict=True):
            text = pl_module.tokenizer.token_bytes[token].decode("utf-8", "replace")
            row = {"position": self._position, "id": token, "token": text, "log_prob": round(log_prob, 6)}
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._position += 1
            self._nats -= log_prob

    def on_predict_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Closes the file and prints its path."""
        self._file.close()
        count = self._position - 1
        notice(f"{count:,} tokens, {self._nats / count:.4f} nats per token: {self.path}")
