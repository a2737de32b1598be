"""PredictionWriter: the output of `tinylm predict`."""

import contextlib
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from tinylm.errors import ConfigError, notice
from tinylm.files import atomic_write
from tinylm.targets import FileKind, check_target
from tinylm.training.module import LitTransformerLM

PREDICTIONS = FileKind("a file of predictions", rb'\{"position": 1, "id": \d+, "token": ')


class PredictionWriter(Callback):
    """Writes one JSON line per token of the text, with its log probability given the earlier tokens of its window.

    `{"position": 1, "id": 43, "token": "e", "log_prob": -0.53}`, log_prob in nats. The first token has none.

    Args:
        path: the file
        overwrite: replace earlier predictions
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path, self.overwrite = path, overwrite
        self._writing = contextlib.ExitStack()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Opens the file."""
        if trainer.world_size > 1:
            raise ConfigError("predict works on one device; set trainer.devices=1")
        check_target(self.path, PREDICTIONS, self.overwrite)
        self._writing = contextlib.ExitStack()
        self._file = self._writing.enter_context(atomic_write(self.path))
        self._position = 1
        self._nats = 0.0

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Writes the tokens of a batch."""
        for token, log_prob in zip(outputs[0].tolist(), outputs[1].tolist(), strict=True):
            text = pl_module.tokenizer.token_bytes[token].decode("utf-8", "replace")
            row = {"position": self._position, "id": token, "token": text, "log_prob": round(log_prob, 6)}
            self._file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            self._position += 1
            self._nats -= log_prob

    def on_exception(self, trainer: pl.Trainer, pl_module: LitTransformerLM, exception: BaseException) -> None:
        """Removes the unfinished file."""
        self._writing.__exit__(type(exception), exception, exception.__traceback__)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Closes the file and prints its path."""
        self._writing.close()
        count = self._position - 1
        notice(f"{count:,} tokens, {self._nats / count:.4f} nats per token: {self.path}")
