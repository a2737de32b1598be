"""A larger vocabulary for a trained model: new tokens at the end, old ones unchanged."""

import torch

from tinylm.bundle import rebuild_model
from tinylm.errors import ConfigError
from tinylm.known import check_known
from tinylm.model import TransformerLM


@torch.no_grad()
def grow_vocabulary(model: TransformerLM, vocab_size: int) -> TransformerLM:
    """The model with more tokens. The logits of the old tokens do not change.

    A new token is initialized to the mean of all old ones (Hewitt 2021), bias included, so its logit is the mean of
    theirs and never the largest, as that of a random row could be.

    Args:
        model: the model; the new one shares its other weights
        vocab_size: the new number of tokens

    Raises:
        ConfigError: if the number is smaller than before, or the model is not standard.
    """
    check_known(model, "a larger vocabulary")
    old = model.config.vocab_size
    if vocab_size < old:
        raise ConfigError(f"vocab_size must be at least the model's {old}, got {vocab_size}; keep all tokens")
    weights = dict(model.state_dict())
    for name in ("embedding.weight", "head.weight", *(["head.bias"] if model.config.head_bias else [])):
        rows = weights[name]  # (V, D), the bias (V,)
        weights[name] = torch.cat((rows, rows.mean(dim=0).expand(vocab_size - old, *rows.shape[1:])))
    config = model.config.to_dict() | {"vocab_size": vocab_size}
    return rebuild_model(config, weights, source="a larger vocabulary").train(model.training)
