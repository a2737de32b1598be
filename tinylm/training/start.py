"""The start of a finetuning run: weights, architecture and tokenizer of a base model."""

from dataclasses import replace
from functools import cached_property
from typing import Any

from tinylm.adapt import grow_vocabulary
from tinylm.bundle import Bundle
from tinylm.checks import require
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.config import WITHOUT_WEIGHTS
from tinylm.model.quantized import describe_layers
from tinylm.plugins import Part
from tinylm.tokenizer import Tokenizer
from tinylm.training.foreign import load_base

ANOTHER = "was trained with another tokenizer; leave data.tokenizer out, as -c finetune does"
FREE = (*WITHOUT_WEIGHTS, "document_mask")  # fields that finetuning may change


class Start:
    """The base model of a finetuning run.

    Args:
        path: run folder, model folder, checkpoint or Hugging Face folder
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._known: list[bytes] = []
        self._tokens: int | None = None  # of the run's tokenizer

    @cached_property
    def bundle(self) -> Bundle:
        """The loaded model; errors are those of `load_base`."""
        return load_base(self.path)

    def architecture(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The fields of the run's ModelConfig: the base model's, except for those in `FREE`.

        Args:
            asked: fields in the config; a default value counts as unset

        Raises:
            ConfigError: if another field differs from the base model's.
        """
        fields, default = self.bundle.model.config.to_dict(), ModelConfig(vocab_size=1).to_dict()
        for name, value in asked.items():
            value = value.to_dict() if isinstance(value, Part) else value
            if name in FREE:
                fields[name] = (value or fields[name]) if name == "document_mask" else value
            elif name != "vocab_size" and value not in (default.get(name), fields.get(name)):  # no plug-in: no field
                problem = f"{self.path} has {fields.get(name, 'the built-in')}, got {value}"
                raise ConfigError(f"model.network.{name}: {problem}; leave it out, as -c finetune does")
        return fields

    def tokenizer(self, special_tokens: tuple[str, ...]) -> Tokenizer:
        """The base model's tokenizer, extended by missing special tokens."""
        own = self.bundle.tokenizer
        return own.with_special_tokens(own.lacking(special_tokens))

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Checks that the ids of the base model have the same meaning in `tokenizer`. Call it after `network`.

        Raises:
            ConfigError: if not.
        """
        if tokenizer.token_bytes[: len(self._known)] != self._known:
            raise ConfigError(f"data.tokenizer: {self.path} {ANOTHER}")

    def with_rows(self, config: ModelConfig) -> ModelConfig:
        """The config with all rows of a base model whose vocabulary is padded. Call it before `network`."""
        tokens, rows = self.bundle.tokenizer.vocab_size, self.bundle.model.config.vocab_size
        self._tokens = config.vocab_size
        return replace(config, vocab_size=max(rows, self._tokens)) if tokens <= min(rows - 1, self._tokens) else config

    def network(self, config: ModelConfig) -> TransformerLM:
        """Builds the network of a config with the base model's weights.

        Raises:
            ConfigError: if the config differs from the base model's in more than a larger vocabulary and `FREE`.
        """
        model = self.bundle.model
        require(
            not describe_layers(model), f"model.init_from: {self.path} is quantized and not trainable; use the original"
        )
        require(config.vocab_size >= model.config.vocab_size, f"data.tokenizer: {self.path} {ANOTHER}")
        fields, theirs = config.to_dict(), model.config.to_dict()
        for name in {**theirs, **fields}:
            value, ours = theirs.get(name), fields.get(name)
            require(name in (*FREE, "vocab_size") or ours == value, f"{name}: {self.path} {value}, config {ours}")
        network = TransformerLM(config)
        known = self.bundle.tokenizer.vocab_size
        network.load_state_dict(grow_vocabulary(model, self._tokens or config.vocab_size, known).state_dict())
        self._known = self.bundle.tokenizer.token_bytes
        del self.bundle  # frees the second copy of the weights
        return network
