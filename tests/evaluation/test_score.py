"""Scores against one forward pass per token, with the context that the windows give it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import random_model
from tinylm.errors import ConfigError, DataError
from tinylm.evaluation import score_text
from tinylm.model import ModelConfig
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer

few = settings(max_examples=60, deadline=None)


def make(tokenizer, context: int = 6):
    shape = dict(d_model=16, num_layers=2, num_heads=2, tie_embeddings=False)
    return random_model(ModelConfig(vocab_size=tokenizer.vocab_size, max_seq_len=context, **shape)).double()


@torch.no_grad()
def token_by_token(model, ids: list[int], stride: int) -> float:
    """One forward pass per token: each target is predicted in the first window that contains it."""
    context, nats = model.config.max_seq_len, 0.0
    last = max(len(ids) - 1 - context, 0)
    for target in range(1, len(ids)):
        begins = [*range(0, last, stride), last]
        begin = next(begin for begin in begins if target <= begin + context)
        logits = model(torch.tensor([ids[begin:target]]))[0, -1]
        nats -= float(logits.double().log_softmax(-1)[ids[target]])
    return nats


@few
@given(st.text("abc", min_size=1, max_size=30), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_scores_match_one_forward_pass_per_token(text, stride, batch_size, end):
    tokenizer = CharTokenizer("abc", [END_OF_TEXT] if end else [])
    model = make(tokenizer)
    ids = [*([tokenizer.end_of_text] if end else []), *tokenizer.encode(text)]
    if len(ids) < 2:
        with pytest.raises(DataError, match="the text has no token to predict"):
            score_text(model, tokenizer, text)
        return
    score = score_text(model, tokenizer, text, stride=stride, batch_size=batch_size)
    assert score.nats == pytest.approx(token_by_token(model, ids, stride), abs=1e-9)
    assert (score.tokens, score.bytes) == (len(ids) - 1, len(ids) - 1)


@few
@given(st.lists(st.text("abc", min_size=1, max_size=20), min_size=1, max_size=4), st.integers(1, 5))
def test_the_score_of_several_texts_is_the_sum_of_their_scores(texts, batch_size):
    tokenizer = CharTokenizer("abc", [END_OF_TEXT])
    model = make(tokenizer)
    together = score_text(model, tokenizer, texts, batch_size=batch_size)
    alone = [score_text(model, tokenizer, text) for text in texts]
    assert together.nats == pytest.approx(sum(score.nats for score in alone), abs=1e-9)
    assert (together.tokens, together.bytes) == (sum(s.tokens for s in alone), sum(s.bytes for s in alone))


def test_statistics_by_hand():
    """A network whose weights are zero predicts every token with equal probability."""
    tokenizer = ByteTokenizer([END_OF_TEXT])
    model = make(tokenizer)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    score = score_text(model, tokenizer, "naïve")
    assert (score.tokens, score.bytes) == (6, 6)
    assert score.perplexity == pytest.approx(257)
    assert score.bits_per_byte == pytest.approx(math.log2(257))


def test_bytes_are_those_of_the_text_for_any_tokenizer():
    tokenizer = BPETokenizer.train_from_texts(["the cat the cat"], vocab_size=262, special_tokens=[END_OF_TEXT])
    score = score_text(make(tokenizer), tokenizer, "the cat the cat")
    assert score.bytes == 15 and score.tokens < 15


def test_stride_sets_the_context_and_defaults_to_half_of_it():
    tokenizer = CharTokenizer("ab", [END_OF_TEXT])
    model, text = make(tokenizer), "abba" * 10
    nats = {stride: score_text(model, tokenizer, text, stride=stride).nats for stride in (1, 3, 6)}
    assert len(set(nats.values())) == 3
    assert score_text(model, tokenizer, text).nats == nats[3]


def test_strides_and_batches_out_of_range_are_refused():
    tokenizer = CharTokenizer("ab", [END_OF_TEXT])
    for options, message in (
        (dict(stride=0), "stride must be from 1 to the context, 6, got 0"),
        (dict(stride=7), "stride must be from 1 to the context, 6, got 7"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            score_text(make(tokenizer), tokenizer, "ab", **options)
