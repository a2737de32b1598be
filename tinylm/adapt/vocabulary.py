"""A larger vocabulary for a trained model: new tokens at the end, old ones unchanged."""

import torch

from tinylm.bundle import rebuild_model
from tinylm.errors import ConfigError
from tinylm.known import check_known
from tinylm.model import TransformerLM


@torch.no_grad()
def grow_vocabulary(model: TransformerLM, vocab_size: int, tokens: int | None = None) -> TransformerLM:
    """The model with more tokens. The logits of the old tokens do not change.

    A new token is initialized to the mean of all old ones (Hewitt 2021), so its logit is the mean of theirs and never
    the largest, whereas the logit of a random row could be.

    Args:
        model: the model; the new one shares its other weights
        vocab_size: the new number of tokens
        tokens: the old number of tokens. New ones first take the spare rows of a padded vocabulary. Default: all rows

    Raises:
        ConfigError: if the number is smaller than before, or the model is not standard.
    """
    check_known(model, "a larger vocabulary", plugins=True)
    rows = model.config.vocab_size
    old = rows if tokens is None else tokens
    if vocab_size < old:
        raise ConfigError(f"vocab_size must be at least the model's {old}, got {vocab_size}; keep all tokens")
    weights = dict(model.state_dict())
    for name in {"embedding.weight", "head.weight", "head.bias"} & weights.keys():
        table = weights[name]  # (V, D) or (V,)
        new = table[:old].mean(dim=0, keepdim=True).expand(vocab_size - old, *table.shape[1:])
        weights[name] = torch.cat((table[:old], new, table[vocab_size:]))
    config = model.config.to_dict() | {"vocab_size": max(vocab_size, rows)}
    return rebuild_model(config, weights, source="a larger vocabulary").train(model.training)
