"""Exact match with scripted answers, and the loss of answers against one forward pass per token."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.strategies import random_model
from tinylm.errors import ConfigError, DataError
from tinylm.evaluation import exact_match, score_answers
from tinylm.generation import Generator
from tinylm.generation.uncached import UncachedDecoder
from tinylm.model import ModelConfig
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer

few = settings(max_examples=40, deadline=None)
TOKENIZER = CharTokenizer("abc ", [END_OF_TEXT])  # a=0 b=1 c=2 blank=3, end of text 4
SHAPE = dict(vocab_size=5, num_layers=1, num_heads=1, max_seq_len=8, tie_embeddings=False)


class Scripted(UncachedDecoder):
    """A decoder with a fixed next token: b after a, c after b, the end of text after c, a after a blank."""

    following = torch.tensor([1, 2, 4, 0, 3])

    def step(self, last: torch.Tensor, cache) -> torch.Tensor:
        for row, token in enumerate(last):
            cache.append(row, token[None])  # never read
        return nn.functional.one_hot(self.following[last], 5).float()


@pytest.fixture
def generator() -> Generator:
    model = random_model(ModelConfig(d_model=8, **SHAPE), dtype=torch.float32)
    return Generator(model, TOKENIZER, Scripted(model))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_right_answers_are_counted_character_by_character(generator, batch_size):
    """The script after the end of text is " ", "a", "b", "c", end of text."""
    prompts = [[4], [4, 0], [4, 1], [4, 3], [4, 2]]
    expected = ["abc", "bc", "cc", " abc\n", ""]
    found = exact_match(generator, prompts, expected, batch_size=batch_size)
    assert found.answers == ["abc", "bc", "c", "abc", ""]
    assert found.right == [True, True, False, True, True]
    assert found.fraction == 4 / 5


def test_long_answers_are_cut(generator):
    found = exact_match(generator, [[4], [4, 0]], ["abc", "b"], max_new_tokens=2)
    assert found.answers == ["a", "bc"]
    assert found.fraction == 0


def test_prompts_and_numbers_out_of_range_are_refused(generator):
    with pytest.raises(ConfigError, match=r"prompt 2 has 9 tokens, must have 1 to the context's 8"):
        exact_match(generator, [[4], [0] * 9], ["a", "b"])
    with pytest.raises(ConfigError, match="prompt 1 has 0 tokens"):
        exact_match(generator, [[]], ["a"])
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        exact_match(generator, [[4]], ["a"], batch_size=0)


# --- loss


@st.composite
def answered(draw) -> tuple[np.ndarray, np.ndarray]:
    ids = draw(st.lists(st.integers(0, 4), min_size=2, max_size=9))
    counts = draw(st.lists(st.booleans(), min_size=len(ids) - 2, max_size=len(ids) - 2))
    return np.array(ids), np.array([False, *counts, True])


@few
@given(st.lists(answered(), min_size=1, max_size=6), st.integers(1, 4))
def test_loss_of_answers_matches_one_forward_pass_per_token(examples, batch_size):
    model, nats, tokens = random_model(ModelConfig(d_model=8, **SHAPE)), 0.0, 0
    for ids, counts in examples:
        for place in counts.nonzero()[0]:
            with torch.no_grad():
                logits = model(torch.from_numpy(ids[None, :place]))[0, -1]
            nats -= float(logits.log_softmax(-1)[ids[place]])
            tokens += 1
    score = score_answers(model, TOKENIZER, examples, batch_size=batch_size)
    assert score.nats == pytest.approx(nats, abs=1e-9)
    assert score.tokens == tokens
    assert score.bytes == sum(int((ids[counts] != 4).sum()) for ids, counts in examples)  # the end of text has no bytes


def test_zero_weights_give_uniform_perplexity():
    tokenizer = ByteTokenizer([END_OF_TEXT])
    model = random_model(ModelConfig(d_model=8, **SHAPE | {"vocab_size": 257}))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    example = (np.array([256, 97, 98, 256]), np.array([False, False, True, True]))
    assert score_answers(model, tokenizer, [example]).perplexity == pytest.approx(257)


def test_nothing_to_predict_is_refused():
    model = random_model(ModelConfig(d_model=8, **SHAPE))
    with pytest.raises(DataError, match="no answer has a token to predict"):
        score_answers(model, TOKENIZER, [(np.array([4, 1]), np.array([True, False]))])
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        score_answers(model, TOKENIZER, [], batch_size=0)
