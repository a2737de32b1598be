"""A vocabulary that grows: new tokens at the end, every old one as it was."""

import dataclasses

import torch

from tinylm.errors import ConfigError
from tinylm.model import TransformerLM
from tinylm.model.empty import without_weights
from tinylm.model.known import check_known


@torch.no_grad()
def grow_vocabulary(model: TransformerLM, vocab_size: int) -> TransformerLM:
    """The same network with more tokens; the logits of the old ones are what they were.

    A new token begins as the mean of all old ones (Hewitt 2021). So its logit is the mean of theirs and never the
    largest, which a random row's can be.

    Args:
        model: the network; its other weights are shared with the new one
        vocab_size: how many tokens from now on

    Raises:
        ConfigError: if that is fewer than there are, or the network has a part that its config does not describe.
    """
    check_known(model, "a larger vocabulary")
    old = model.config.vocab_size
    if vocab_size < old:
        raise ConfigError(f"vocab_size: the model has {old} tokens, which cannot become {vocab_size}; keep them")
    with without_weights():
        grown = TransformerLM(dataclasses.replace(model.config, vocab_size=vocab_size))
    weights = dict(model.state_dict())
    for name in ("embedding.weight", "head.weight"):
        rows = weights[name]  # (V, D)
        weights[name] = torch.cat((rows, rows.mean(dim=0, keepdim=True).expand(vocab_size - old, -1)))
    grown.load_state_dict(weights, assign=True)
    if model.config.tie_embeddings:
        grown.head.weight = grown.embedding.weight
    return grown.train(model.training)
