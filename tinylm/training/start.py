"""Where a finetuning run begins: another model's weights, its architecture, and its tokenizer with what is new."""

from functools import cached_property
from typing import Any

from tinylm.adapt import grow_vocabulary
from tinylm.bundle import Bundle, load_bundle
from tinylm.checks import require
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.config import WITHOUT_WEIGHTS
from tinylm.model.quantized import describe_layers
from tinylm.tokenizer import Tokenizer

FREE = (*WITHOUT_WEIGHTS, "document_mask")  # documents may be kept apart where they were not before


class Start:
    """A model to begin with.

    Args:
        path: a run folder, a model folder or a checkpoint
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._known: list[bytes] = []

    @cached_property
    def bundle(self) -> Bundle:
        """The model. Errors as `load_bundle`'s."""
        return load_bundle(self.path)

    def architecture(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The fields of the run's network: the model's own, but for those in `FREE`.

        Args:
            asked: fields of a ModelConfig, of which a default means that nothing is asked for

        Raises:
            ConfigError: where something else is asked for than the model has.
        """
        fields, default = self.bundle.model.config.to_dict(), ModelConfig(vocab_size=1).to_dict()
        for name, value in asked.items():
            if name in FREE:
                fields[name] = (value or fields[name]) if name == "document_mask" else value
            elif name != "vocab_size" and value not in (default[name], fields[name]):
                raise ConfigError(f"model.network.{name}: {self.path} has {fields[name]}, got {value}; leave it out")
        return fields

    def tokenizer(self, special_tokens: tuple[str, ...]) -> Tokenizer:
        """The model's tokenizer, grown by the special tokens that it lacks."""
        return self.bundle.tokenizer.with_special_tokens(special_tokens)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Once there is a network: checks that the ids which the model knows mean in `tokenizer` what they meant.

        Raises:
            ConfigError: if not.
        """
        if tokenizer.token_bytes[: len(self._known)] != self._known:
            raise ConfigError(f"data.tokenizer: {self.path} was trained with another; leave data.tokenizer out")

    def network(self, config: ModelConfig) -> TransformerLM:
        """The network of a config with the model's weights.

        Raises:
            ConfigError: if the config is not the model's but for the vocabulary, which may grow, and `FREE`.
        """
        model = self.bundle.model
        require(
            not describe_layers(model), f"model.init_from: {self.path} is quantized and cannot learn; take the original"
        )
        for name, value in model.config.to_dict().items():
            ours = getattr(config, name)
            require(name in (*FREE, "vocab_size") or ours == value, f"{name}: {self.path} {value}, config {ours}")
        network = TransformerLM(config)
        network.load_state_dict(grow_vocabulary(model, config.vocab_size).state_dict())
        self._known = self.bundle.tokenizer.token_bytes
        del self.bundle  # the weights are in the network now
        return network
