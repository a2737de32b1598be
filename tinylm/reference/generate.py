"""Continuing token ids: read them once into a cache, then one token after the other from the logits of the last.

When the context is full, the newer half is read again as a fresh start, as `tinylm.generation` does.
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
) -> Array:
    """Continues several texts of equal length at a time.

    Args:
        model: the network
        ids: token ids, (B, T), T from 1 to the context
        max_new_tokens: how many to add to each
        temperature: divides the logits; 0 takes the likeliest token
        top_k: keep the k likeliest
        top_p: keep the likeliest that together have probability p
        seed: of the draws; None: another one each time
        separator: the token that ends a document, which a network with `document_mask` does not see behind it; then
            the whole text is read for each token, for the cache holds one document. None: a text is one document

    Returns:
        the new ids, (B, max_new_tokens)
    """
    random, config = np.random.default_rng(seed), model.config
    apart = config.document_mask and separator is not None
    text = window = np.array(ids)
    cache = KVCache(config, len(text), model.dtype)
    for _ in range(max_new_tokens):
        if window.shape[1] > config.max_seq_len:
            window, cache.length = text[:, -max(config.max_seq_len // 2, 1) :], 0
        if apart:
            ends = window == separator  # each in the document that it ends
            logits = model.logits(window, ends.cumsum(axis=1) - ends)[:, -1]
        else:
            x, _ = model.hidden(window[:, cache.length :], cache=cache)  # (B, T, D)
            logits = x[:, -1] @ model.head.T
        new = choose(logits, temperature, top_k, top_p, random)[:, None]
        text, window = (np.concatenate((each, new), axis=1) for each in (text, window))
    return text[:, np.shape(ids)[1] :]


def choose(
    logits: Array, temperature: float, top_k: int | None, top_p: float | None, random: np.random.Generator
) -> Array:
    """One token for each row of logits, (B, V) -> (B,)."""
    if temperature == 0:
        return logits.argmax(axis=-1)
    p = probabilities(logits, temperature, top_k, top_p)
    # the first token at which the sum of all probabilities so far exceeds a number drawn from [0, 1)
    return (p.cumsum(axis=-1) <= random.random((len(p), 1)) * p.sum(axis=-1, keepdims=True)).sum(axis=-1)


def probabilities(logits: Array, temperature: float, top_k: int | None, top_p: float | None) -> Array:
    """How likely each token is to be drawn: temperature, then top-k, then top-p; float64, (B, V)."""
    z = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64) / temperature
    if top_k is not None and top_k < z.shape[-1]:
        smallest = np.partition(z, -top_k, axis=-1)[:, -top_k, None]
        z[z < smallest] = -np.inf
    p = np.exp(z)
    p /= p.sum(axis=-1, keepdims=True)
    if top_p is not None:
        order = np.argsort(-p, axis=-1, kind="stable")
        ordered = np.take_along_axis(p, order, axis=-1)
        before = ordered.cumsum(axis=-1) - ordered  # of all likelier tokens; 0 for the first, which stays
        np.put_along_axis(p, order, np.where(before < top_p, ordered, 0.0), axis=-1)
        p /= p.sum(axis=-1, keepdims=True)
    return p
