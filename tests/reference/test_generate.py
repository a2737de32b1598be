"""Generation: greedy text matches PyTorch, the filters match `tinylm.generation`, draws follow the probabilities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.test_against_torch import AXES, AXIS, twin_of
from tests.strategies import random_model
from tinylm.generation import Generator, SamplingConfig
from tinylm.generation.sampling import probabilities as their_probabilities
from tinylm.model import ModelConfig
from tinylm.model.attention import document_numbers
from tinylm.reference import Config, NumpyTransformerLM
from tinylm.reference.generate import choose, generate, probabilities
from tinylm.tokenizer import ByteTokenizer

FORMS = [
    {},
    dict(sliding_window=5, num_kv_heads=1),
    dict(positional_encoding="learned", norm_placement="post"),
    dict(AXES["many"], num_layers=3),
    dict(norm_placement="output", layer_pattern="SL", sliding_window=5),
]


@pytest.mark.parametrize("form", FORMS)
def test_greedy_text_matches_pytorch(form):
    """Also beyond the context of 16 tokens: 40 are generated."""
    config = ModelConfig(**dict(vocab_size=256, d_model=32, num_layers=2, max_seq_len=16) | form)
    model = random_model(config)
    prompts = [b"tell ", b"me a "]
    found = generate(twin_of(model), np.array([[*prompt] for prompt in prompts]), 40, temperature=0)
    generator = Generator(model, ByteTokenizer())
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=40)
    assert found.tolist() == [list(generator.stream_ids([*prompt], greedy)) for prompt in prompts]


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_documents_are_kept_apart_as_in_training(form):
    """Greedy, with separators in the prompt and beyond the context, against PyTorch's forward with documents."""
    config = ModelConfig(**dict(vocab_size=12, d_model=16, num_layers=2, max_seq_len=10, document_mask=True) | form)
    model, end = random_model(config), 11
    text = window = torch.tensor([[11, 3, 4, 11, 7], [11, 5, 6, 7, 8]])
    for _ in range(20):
        if window.shape[1] > 10:
            window = text[:, -5:]
        new = model(window, documents=document_numbers(window, end))[:, -1].argmax(-1, keepdim=True)
        text, window = torch.cat((text, new), dim=1), torch.cat((window, new), dim=1)
    found = generate(twin_of(model), text[:, :5].numpy(), 20, temperature=0, separator=end)
    assert found.tolist() == text[:, 5:].tolist()
    assert found.tolist() != generate(twin_of(model), text[:, :5].numpy(), 20, temperature=0).tolist()


@pytest.mark.parametrize("axis", AXES.values(), ids=AXES)
def test_text_through_the_cache_equals_the_text_without(axis):
    """Nine tokens are read at once; without the cache, once for each."""
    model = twin_of(random_model(ModelConfig(**AXIS | axis)))
    text = np.array([[1, 2, 3], [4, 5, 6]])
    while text.shape[1] < 9:
        text = np.concatenate((text, model.logits(text)[:, -1].argmax(axis=-1)[:, None]), axis=1)
    assert np.array_equal(generate(model, text[:, :3], 6, temperature=0), text[:, 3:])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 12),
    st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    st.none() | st.integers(1, 14),
    st.none() | st.floats(0.05, 1.0),
    st.integers(0, 1000),
)
def test_probabilities_match_tinylm_generation(vocab_size, temperature, top_k, top_p, seed):
    logits = 2 * np.random.default_rng(seed).standard_normal((3, vocab_size))
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = their_probabilities(torch.from_numpy(logits), config).numpy()
    found = probabilities(logits, temperature, top_k, top_p)
    assert ((found == 0) == (expected == 0)).all()
    assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.505, 2), (0.75, 2), (0.76, 3), (1.0, 3)])
def test_top_p_keeps_the_fewest_tokens_that_suffice(top_p, kept):
    """The probabilities are 1/2, 1/4 and 1/4, exact in binary."""
    expected = np.array([0.5, 0.25, 0.25])[:kept] / (0.5, 0.75, 1.0)[kept - 1]
    found = probabilities(np.array([[1.0, 0.0, 0.0]]) * np.log(2), 1.0, None, top_p)[0]
    assert np.abs(found[:kept] - expected).max() < 1e-15 and (found[kept:] == 0).all()


def test_draws_follow_the_probabilities():
    """In 20,000 draws the frequency of every token is within 4 standard deviations of its probability; 0 stays 0."""
    p = np.array([0.1, 0.0, 0.4, 0.2, 0.3])
    with np.errstate(divide="ignore"):
        logits = np.tile(np.log(p), (20_000, 1))
    counts = np.bincount(choose(logits, 1.0, None, None, np.random.default_rng(0)), minlength=5)
    assert (np.abs(counts / 20_000 - p) <= 4 * np.sqrt(p * (1 - p) / 20_000)).all()


def test_the_same_seed_gives_the_same_text():
    model = NumpyTransformerLM(Config(vocab_size=50, d_model=16, num_layers=1, max_seq_len=8))
    ids = np.array([[1, 2], [3, 4], [5, 6]])
    texts = [generate(model, ids, 20, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0].shape == (3, 20)
    assert np.array_equal(texts[0], texts[1]) and not np.array_equal(texts[0], texts[2])


def test_rows_of_a_padded_vocabulary_are_never_chosen():
    model = NumpyTransformerLM(Config(vocab_size=50, d_model=16, num_layers=1, max_seq_len=8))
    ids = np.array([[1, 2], [3, 4]])
    assert generate(model, ids, 40, seed=1).max() >= 7
    assert generate(model, ids, 40, seed=1, tokens=7).max() < 7
    assert generate(model, ids, 40, temperature=0, tokens=7).max() < 7
