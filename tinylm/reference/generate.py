"""Generation with a KV cache: the prompt is read once, then each new token alone.

When the context is full, its newest half is read again and generation continues, as in `tinylm.generation`.
"""

import numpy as np

from tinylm.reference.cache import KVCache
from tinylm.reference.functions import Array
from tinylm.reference.transformer import NumpyTransformerLM


def generate(
    model: NumpyTransformerLM,
    ids: Array,
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    separator: int | None = None,
    tokens: int | None = None,
) -> Array:
    """Continues several prompts of equal length.

    Args:
        model: the network
        ids: token ids, (B, T), T from 1 to the context
        max_new_tokens: tokens to add to each prompt
        temperature: divides the logits; 0 takes the most likely token
        top_k: keep the k most likely tokens
        top_p: keep the most likely tokens that together have probability p
        seed: of the draws. Default: a different one each time
        separator: the end-of-text token. A network with `document_mask` does not see beyond it, and since the cache
            holds one document, the whole context is then recomputed for each token. Default: a prompt is one document
        tokens: number of ids to choose from, counted from 0; a padded vocabulary has more. Default: all

    Returns:
        the new ids, (B, max_new_tokens)
    """
    random, config = np.random.default_rng(seed), model.config
    text = window = np.array(ids)
    cache = KVCache()
    for _ in range(max_new_tokens):
        if window.shape[1] > config.max_seq_len:
            window, cache = text[:, -max(config.max_seq_len // 2, 1) :], KVCache()
        if config.document_mask and separator is not None:
            ends = window == separator  # a separator belongs to the document that it ends
            x, _ = model.hidden(window, ends.cumsum(axis=1) - ends)
        else:
            x, _ = model.hidden(window[:, cache.length :], cache=cache)  # (B, T, D)
        logits, _ = model.head(x[:, -1])  # (B, V)
        new = choose(logits[:, :tokens], temperature, top_k, top_p, random)[:, None]
        text, window = (np.concatenate((each, new), axis=1) for each in (text, window))
    return text[:, np.shape(ids)[1] :]


def choose(
    logits: Array, temperature: float, top_k: int | None, top_p: float | None, random: np.random.Generator
) -> Array:
    """One token for each row of logits, (B, V) -> (B,). FloatingPointError for NaN or infinity."""
    if not np.isfinite(logits.max(axis=-1)).all():
        raise FloatingPointError("the model's logits are not finite: its weights are corrupt")
    if temperature == 0:
        return logits.argmax(axis=-1)
    p = probabilities(logits, temperature, top_k, top_p)
    # the first token whose cumulative probability exceeds a number drawn from [0, 1)
    return (p.cumsum(axis=-1) <= random.random((len(p), 1)) * p.sum(axis=-1, keepdims=True)).sum(axis=-1)


def probabilities(logits: Array, temperature: float, top_k: int | None, top_p: float | None) -> Array:
    """The probabilities to sample from, after temperature, top-k and top-p; float64, (B, V)."""
    z = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64) / temperature
    if top_k is not None and top_k < z.shape[-1]:
        smallest = np.partition(z, -top_k, axis=-1)[:, -top_k, None]
        z[z < smallest] = -np.inf
    p = np.exp(z)
    p /= p.sum(axis=-1, keepdims=True)
    if top_p is not None:
        order = np.argsort(-p, axis=-1, kind="stable")
        ordered = np.take_along_axis(p, order, axis=-1)
        before = ordered.cumsum(axis=-1) - ordered  # the sum over all likelier tokens; 0 for the first, which is kept
        np.put_along_axis(p, order, np.where(before < top_p, ordered, 0.0), axis=-1)
        p /= p.sum(axis=-1, keepdims=True)
    return p
