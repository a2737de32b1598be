"""Pictures: the data drawn equal the data given; files are well-formed and reproducible."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from tests.strategies import random_ids, random_model
from tinylm.analysis.activations import activation_statistics
from tinylm.analysis.attention import attention_maps, head_scores
from tinylm.analysis.gradients import gradient_statistics
from tinylm.analysis.lens import read_layers
from tinylm.analysis.pictures import (
    LABELS,
    draw_activations,
    draw_attention,
    draw_gradients,
    draw_heads,
    draw_lens,
)
from tinylm.model import ModelConfig
from tinylm.runs.plots import save_figure

CONFIG = ModelConfig(vocab_size=9, d_model=16, num_layers=2, num_heads=4, max_seq_len=40)
WORDS = ["$a$", "b_1", "<|endoftext|>", "é", "\\n", "^", "{", "%", "·x"]  # none of them may be typeset as mathematics


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.mark.parametrize("length", [5, LABELS + 1])
def test_attention_maps_are_drawn_unchanged(model, length):
    ids = random_ids(CONFIG, 1, length)
    maps = attention_maps(model, ids)[:, 0]
    notes = [[f"{layer}.{head}" for head in range(4)] for layer in range(2)]
    figure = draw_attention(maps, [WORDS[i] for i in ids[0]], notes, "maps")
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in panels] == [note for row in notes for note in row]
    for axes, weights in zip(panels, maps.flatten(0, 1), strict=True):
        assert torch.equal(torch.tensor(axes.images[0].get_array()), weights.float())
    labels = [label.get_text() for label in panels[4].get_xticklabels()]
    assert (labels == [WORDS[i].replace("$", r"\$") for i in ids[0]]) == (length <= LABELS)


def test_lens_has_the_last_layer_on_top_and_frames_correct_predictions(model):
    ids = random_ids(CONFIG, 1, 6)
    readings = read_layers(model, ids)
    figure = draw_lens(readings, ids[0].tolist(), WORDS, "lens")
    axes = figure.axes[0]
    drawn = torch.tensor(axes.images[0].get_array())
    assert torch.equal(drawn, readings.probability.float().flip(0))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 1", "layer 0", "embedding"]
    right = {
        (position, 2 - layer)
        for layer in range(3)
        for position in range(5)
        if readings.best[layer, position] == ids[0, position + 1]
    }
    frames = {(round(patch.get_x() + 0.46), round(patch.get_y() + 0.43)) for patch in axes.patches}
    assert frames == right and right  # so some predictions are correct


def draw(name: str, model):
    ids = random_ids(CONFIG, 3, 8)
    scores = head_scores(model, ids)
    match name:
        case "attention":
            maps = attention_maps(model, ids[:1])[:1, 0, :2]
            return draw_attention(maps, [WORDS[i] for i in ids[0]], [["head"] * 2], "$")
        case "heads":
            return draw_heads({"entropy": scores.entropy, "previous": scores.previous.mul(float("nan"))}, "$")
        case "activations":
            return draw_activations(activation_statistics(model, ids), "$")
        case "gradients":
            return draw_gradients(gradient_statistics(model, ids, ids.flip(1)), "$")
    return draw_lens(read_layers(model, ids[:1]), ids[0].tolist(), WORDS, "$")


@pytest.mark.parametrize("name", ["attention", "heads", "activations", "gradients", "lens"])
def test_files_are_well_formed_whatever_the_tokens(model, name, tmp_path):
    save_figure(draw(name, model), tmp_path / "picture.svg")
    assert ElementTree.parse(tmp_path / "picture.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_equal_pictures_give_equal_files(model, suffix, tmp_path):
    for name in ("one", "two"):
        save_figure(draw("heads", model), tmp_path / f"{name}.{suffix}")
    first = (tmp_path / f"one.{suffix}").read_bytes()
    assert first == (tmp_path / f"two.{suffix}").read_bytes()
    assert first.startswith(b"\x89PNG\r\n\x1a\n") == (suffix == "png")
