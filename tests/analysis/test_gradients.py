"""Norms against one backward pass, signal and noise against NumPy's covariance, histograms against NumPy's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import model_configs, random_ids, random_model
from tinylm.adapt import quantize
from tinylm.analysis.gradients import (
    BINS,
    DECADES,
    Gradients,
    gradient_norms,
    gradient_statistics,
    part_of,
    size_histogram,
)
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig, TransformerLM

few = settings(max_examples=20, deadline=None)


def loss_of(model, ids, targets):
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


@few
@given(model_configs(max_seq_len=st.integers(1, 6)), st.integers(2, 4))
def test_norms_signal_and_noise_match_numpy(config, rows):
    model, ids = random_model(config), random_ids(config, rows)
    targets = random_ids(config, rows, seed=1)
    found = {each.part: each for each in gradient_statistics(model, ids, targets)}
    assert all(weight.grad is None for weight in model.parameters())
    loss_of(model, ids, targets).backward()
    norms = gradient_norms(model)
    each_row: dict[str, list] = {part: [[] for _ in range(rows)] for part in found}
    for row in range(rows):
        gradients = torch.autograd.grad(loss_of(model, ids[row : row + 1], targets[row : row + 1]), model.parameters())
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            each_row[part_of(name)][row].append(gradient.flatten())
    assert norms.keys() == found.keys()
    for part, each in found.items():
        gradients = torch.stack([torch.cat(row) for row in each_row[part]]).numpy()  # (rows, weights)
        size = max(np.square(gradients).sum(), 1e-12)
        noise = gradients.var(axis=0, ddof=1).sum()
        assert each.weights == gradients.shape[1]
        assert each.norm == pytest.approx(norms[part].item(), rel=1e-5, abs=1e-6)
        assert each.noise == pytest.approx(noise, abs=1e-5 * size)
        assert each.signal == pytest.approx(np.square(gradients.mean(axis=0)).sum() - noise / rows, abs=1e-5 * size)


def test_signal_and_noise_of_gradients_by_hand():
    each = Gradients(part="head", weights=2, norm=1.0, signal=0.5, noise=4.0, zeros=0, histogram=())
    assert (each.signal_to_noise, each.noise_scale) == (0.125, 8.0)
    hidden = Gradients(part="head", weights=2, norm=1.0, signal=-0.5, noise=4.0, zeros=0, histogram=())
    assert (hidden.signal_to_noise, hidden.noise_scale) == (0.0, float("inf"))


def test_equal_sequences_are_all_signal():
    config = ModelConfig(vocab_size=7, d_model=8, num_layers=1, num_heads=2, max_seq_len=6)
    model, ids = random_model(config), random_ids(config, 1).repeat(3, 1)
    for each in gradient_statistics(model, ids, ids):
        assert each.noise == pytest.approx(0.0, abs=1e-9)
        assert each.signal == pytest.approx(each.norm**2, rel=1e-5)


def test_histograms_match_numpy_without_zeros():
    sizes = torch.cat([torch.rand(1000, generator=torch.Generator().manual_seed(0)).pow(8), torch.zeros(5)])
    sizes = torch.cat([sizes, torch.tensor([1e-20, 1e9])])  # outside the range at both ends
    logs = np.log10(sizes[sizes > 0].double().numpy()).clip(*DECADES)
    expected, _ = np.histogram(logs, BINS, DECADES)
    assert size_histogram(sizes).tolist() == expected.tolist()


def test_weights_of_unread_tokens_count_as_zeros():
    config = ModelConfig(vocab_size=7, d_model=8, num_layers=1, num_heads=2, max_seq_len=6, tie_embeddings=False)
    ids = torch.tensor([[0, 1, 2], [2, 1, 0]])  # rows 3 to 6 of the embedding are not read
    (embedding,) = [each for each in gradient_statistics(random_model(config), ids, ids) if each.part == "embedding"]
    assert (embedding.zeros, sum(embedding.histogram)) == (4 * 8, 3 * 8)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("embedding.weight", "embedding"),
        ("positions.weight", "positions"),
        ("blocks.0.attention.query.weight", "blocks.0.attention"),
        ("blocks.0.attention_norm.weight", "blocks.0.attention"),
        ("blocks.11.feedforward.output.bias", "blocks.11.feedforward"),
        ("final_norm.weight", "final_norm"),
    ],
)
def test_parts(name, part):
    assert part_of(name) == part


def test_single_sequences_and_quantized_models_are_refused():
    model = TransformerLM(ModelConfig(vocab_size=7, d_model=32, num_layers=1, num_heads=2, max_seq_len=6)).eval()
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ConfigError, match="need at least 2 sequences, got 1; give more rows"):
        gradient_statistics(model, ids, ids)
    with pytest.raises(ConfigError, match="8 and 4 bits have no gradients; analyze the unquantized model"):
        gradient_statistics(quantize(model, bits=8), ids.repeat(2, 1), ids.repeat(2, 1))
