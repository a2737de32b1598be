"""Embeddings, weights and losses by position: against NumPy and values by hand; their figures."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.strategies import random_ids, random_model
from tinylm.adapt import quantize
from tinylm.analysis.charts import draw_embeddings, draw_positions, draw_weights
from tinylm.analysis.embeddings import embedding_map
from tinylm.analysis.positions import position_losses, summary
from tinylm.analysis.weights import describe, matrices
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig, TransformerLM

CONFIG = ModelConfig(vocab_size=20, d_model=16, num_layers=2, num_heads=4, max_seq_len=12)
double = dict(dtype=torch.float64)


# --- embeddings


def test_components_by_hand():
    """Four points of a cross, longer along the first axis: variances 2 x 9 and 2 x 1 around the mean (5, 7, 1)."""
    points = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]], **double) + torch.tensor([5.0, 7, 1])
    weight = torch.zeros(9, 3, **double)
    ids = torch.tensor([8, 2, 5, 1])
    weight[ids] = points
    found = embedding_map(weight, ids, neighbours=1)
    torch.testing.assert_close(found.points.abs(), torch.tensor([[3.0, 0], [3, 0], [0, 1], [0, 1]], **double))
    torch.testing.assert_close(found.shares, torch.tensor([0.9, 0.1], **double))
    assert found.points.gather(0, found.points.abs().argmax(dim=0, keepdim=True)).min() > 0
    assert found.cosines.flatten().tolist() == pytest.approx([0.0] * 4)  # at right angles; the others are opposite


def test_components_against_numpy():
    torch.manual_seed(0)
    weight, ids = torch.randn(30, 7, **double), torch.arange(3, 25)
    found = embedding_map(weight, ids)
    rows = weight[ids].numpy()
    centred = rows - rows.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.points.abs().numpy(), np.abs(centred @ directions[:2].T), atol=1e-12)
    np.testing.assert_allclose(found.shares, sizes[:2] ** 2 / (sizes**2).sum(), atol=1e-12)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = unit @ unit.T - 3 * np.eye(len(ids))
    np.testing.assert_array_equal(found.neighbours, ids.numpy()[np.argsort(-cosines, axis=1)[:, :3]])
    np.testing.assert_allclose(found.cosines, -np.sort(-cosines, axis=1)[:, :3], atol=1e-12)


def test_a_map_needs_three_tokens():
    with pytest.raises(ConfigError, match="needs three different tokens at least, got 2"):
        embedding_map(torch.eye(4), torch.tensor([0, 1]))


# --- weights


def test_singular_values_and_stable_rank_by_hand():
    """diag(3, 2, 1) with a column of zeros: stable rank (9 + 4 + 1) / 9."""
    found = describe("kind", 0, F.pad(torch.diag(torch.tensor([1.0, 3, 2])), (0, 1)))
    torch.testing.assert_close(found.singular, torch.tensor([3.0, 2, 1], **double))
    assert found.stable_rank == pytest.approx(14 / 9)
    assert (found.shape, found.largest) == ((3, 4), 3.0)
    assert (found.density * found.edges.diff()).sum().item() == pytest.approx(1)


def test_each_matrix_is_found_once_with_numpys_singular_values():
    model = random_model(CONFIG)
    found = {(each.layer, each.kind): each for each in matrices(model)}
    assert next(iter(found)) == (-1, "embedding") and (-1, "head") not in found  # tied
    assert len(found) == 1 + 2 * 7
    for (layer, kind), each in found.items():
        weight = model.get_submodule(kind if layer < 0 else f"blocks.{layer}.{kind}").weight.detach().numpy()
        np.testing.assert_allclose(each.singular, np.linalg.svd(weight, compute_uv=False), atol=1e-7)
    untied = matrices(TransformerLM(ModelConfig(**{**CONFIG.to_dict(), "tie_embeddings": False})))
    assert (-1, "head") in {(each.layer, each.kind) for each in untied}
    assert len(matrices(quantize(TransformerLM(CONFIG).eval(), bits=8))) == len(found)


# --- positions


def test_losses_by_position_are_means_over_the_rows():
    model, ids, targets = random_model(CONFIG), random_ids(CONFIG, 5), random_ids(CONFIG, 5, seed=1)
    found = position_losses(model, ids, targets, rows=2)
    logs = model(ids).log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(found.mean, -logs.mean(dim=0).detach())
    torch.testing.assert_close(found.error, logs.std(dim=0).detach() / math.sqrt(5))
    assert summary(torch.ones(1, 3)).error.isnan().all()


# --- figures


def test_labels_of_embeddings_do_not_overlap():
    torch.manual_seed(1)
    weight = torch.randn(40, 6)
    weight[30:] = weight[3]  # ten tokens in one place, of which one can be labelled
    found = embedding_map(weight, torch.arange(40))
    figure = draw_embeddings(found, [f"$token{number}$" for number in range(40)], "embeddings")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert 10 < len(boxes) <= 30
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])


def test_figures_show_the_data():
    found = matrices(random_model(CONFIG))
    axes = draw_weights(found, "weights").axes
    assert len(axes) == 2 * 8
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), found[0].singular)
    assert len(axes[2].lines) == 2  # layers
    losses, truth = summary(torch.tensor([[1.0, 2, 3], [2, 2, 1]])), summary(torch.tensor([[1.0, 1, 3], [1, 1, 3]]))
    upper, lower = draw_positions(losses, truth, "positions").axes
    assert [*upper.lines[0].get_ydata()] == [1.5, 2.0, 2.0] and [*upper.lines[1].get_ydata()] == [1.0, 1.0, 3.0]
    assert [bar.get_height() for bar in lower.patches] == [0.5, 1.0, -1.0]
    assert len({bar.get_facecolor() for bar in lower.patches}) == 2  # one colour for each sign
    assert len(draw_positions(losses, None, "positions").axes) == 1
