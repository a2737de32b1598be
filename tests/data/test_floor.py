"""The loss floor by hand, and its standard error against a bootstrap."""

import numpy as np
import pytest

from tinylm.data.grammar.floor import Floor

END = 9


def documents(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of documents, each followed by a separator, and log probabilities correlated with their lengths."""
    lengths = random.integers(5, 60, count)
    tokens = np.concatenate([[*([1] * n), END] for n in lengths])
    return tokens, -0.4 * lengths + random.normal(0, 2, count)


def test_floor_by_hand():
    tokens = np.array([1, 2, END, 3, END])
    lengths = np.zeros(10, dtype=np.int64)
    lengths[[1, 2, 3]] = [1, 2, 4]
    floor = Floor.of(tokens, END, lengths, np.log([0.5, 0.125]))
    assert floor.begins.tolist() == [-1, 2] and (floor.num_tokens, floor.num_bytes) == (5, 7)
    assert floor.nats_per_token == pytest.approx(4 * np.log(2) / 5)
    assert floor.bits_per_byte == pytest.approx(4 / 7)
    # 0.8 bits per token: the first document has 1 bit where 2.4 are expected, the second 3 where 1.6 are
    assert floor.standard_error == pytest.approx(np.sqrt(2 * 1.4**2) * np.log(2) / 5)


def test_the_standard_error_matches_a_bootstrap():
    """2,000 resamples of the documents."""
    random = np.random.default_rng(0)
    tokens, log_probs = documents(400, random)
    floor = Floor.of(tokens, END, np.ones(10, dtype=np.int64), log_probs)
    counts = np.diff(np.append(floor.begins, len(tokens) - 1))
    picks = random.integers(0, 400, (2000, 400))
    others = -log_probs[picks].sum(1) / counts[picks].sum(1)
    assert floor.standard_error == pytest.approx(others.std(), rel=0.1)
