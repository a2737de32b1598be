"""The textbook loop against full forward passes, and `Generator` against the textbook loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import model_configs, random_ids, random_model
from tinylm.errors import ConfigError
from tinylm.generation import Generator, SamplingConfig
from tinylm.generation.textbook import generate, greedy, sample
from tinylm.model import ModelConfig
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer

LETTERS = CharTokenizer("abcdefghij", [END_OF_TEXT])


@settings(max_examples=60, deadline=None)
@given(model_configs(max_seq_len=st.integers(3, 12)), st.data())
@torch.no_grad()
def test_each_token_is_the_most_likely_given_the_whole_text(config, data):
    model = random_model(config)
    ids = random_ids(config, 1)[0].tolist()[: data.draw(st.integers(1, config.max_seq_len - 1))]
    new = list(generate(model, ids, config.max_seq_len - len(ids)))
    assert len(new) == config.max_seq_len - len(ids)
    for i, token in enumerate(new):
        assert token == int(model(torch.tensor([ids + new[:i]]))[0, -1].argmax())


@settings(max_examples=40, deadline=None)
@given(model_configs(vocab_size=st.just(LETTERS.vocab_size), max_seq_len=st.just(16), document_mask=st.just(False)))
def test_generator_matches_the_textbook_loop(config):
    model = random_model(config)
    expected = list(generate(model, [3, 1, 4], 12, end=LETTERS.end_of_text))
    options = SamplingConfig(max_new_tokens=12, temperature=0)
    assert list(Generator(model, LETTERS).stream_ids([3, 1, 4], options)) == expected


def test_sampled_tokens_have_their_probabilities():
    """40,000 draws; 0.01 is more than four standard errors."""
    torch.manual_seed(0)
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    draws = torch.tensor([sample(logits) for _ in range(40_000)])
    torch.testing.assert_close(draws.bincount() / len(draws), logits.exp(), rtol=0, atol=0.01)
    cold = torch.tensor([sample(logits, temperature=0.5) for _ in range(40_000)])
    squares = torch.tensor([0.36, 0.09, 0.01])  # p^(1/0.5), normalized
    torch.testing.assert_close(cold.bincount(minlength=3) / len(cold), squares / squares.sum(), rtol=0, atol=0.01)
    assert greedy(logits) == 0


def test_a_text_ends_at_the_end_token_and_must_fit_the_context():
    model = random_model(ModelConfig(vocab_size=9, d_model=8, num_layers=1, num_heads=2, max_seq_len=6))
    tokens = list(generate(model, [1, 2], 4))
    assert list(generate(model, [1, 2], 4, end=tokens[1])) == tokens[: tokens.index(tokens[1])]
    with pytest.raises(ConfigError, match="the context holds 6 tokens, got 7"):
        list(generate(model, [1, 2], 6))
