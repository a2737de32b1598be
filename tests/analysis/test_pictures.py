"""Pictures: the data drawn equal the data given; files are well-formed and reproducible."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
import torch

from tests.strategies import random_ids, random_model
from tinylm.analysis.activations import activation_statistics
from tinylm.analysis.attention import attention_maps, head_scores
from tinylm.analysis.gradients import gradient_statistics
from tinylm.analysis.lens import read_layers
from tinylm.analysis.pictures import (
    LARGEST,
    LINE,
    PER_TOKEN,
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


@pytest.mark.parametrize(("length", "named"), [(5, True), (40, True), (int(LARGEST / 4 / PER_TOKEN) + 1, False)])
def test_attention_maps_are_drawn_unchanged_and_the_future_is_left_out(model, length, named):
    ids = random_ids(CONFIG, 1, length)
    maps = attention_maps(model, ids)[:, 0] if length <= 40 else torch.ones(2, 4, length, length).tril()
    notes = [[f"{layer}.{head}" for head in range(4)] for layer in range(2)]
    figure = draw_attention(maps, [WORDS[i] for i in ids[0]], notes, "maps")
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in panels] == [note for row in notes for note in row]
    for axes, weights in zip(panels, maps.flatten(0, 1), strict=True):
        drawn = axes.images[0].get_array()
        assert torch.equal(torch.tensor(drawn.data), weights.float())
        assert torch.equal(torch.tensor(drawn.mask), ~torch.ones(length, length, dtype=torch.bool).tril())
    expected = [{"$a$": r"\$a\$", "^": "“^”", "{": "“{”", "%": "“%”"}.get(WORDS[i], WORDS[i]) for i in ids[0]]
    for labels in (panels[4].get_xticklabels(), panels[4].get_yticklabels()):
        assert [label.get_text() for label in labels] == (expected if named else [])
    assert not panels[1].get_xticklabels() and not panels[5].get_yticklabels()  # inside, they would repeat


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


def test_lens_breaks_a_text_into_lines_with_the_token_read_and_the_true_next_one(model):
    ids = random_ids(CONFIG, 1, LINE + 3)[0].tolist()
    readings = read_layers(model, torch.tensor([ids[:-1]]))
    figure = draw_lens(readings, ids, ["token", *"abcdefgh"], "lens")
    lines = [axes for axes in figure.axes if axes.texts]
    words = {0: "token"} | dict(enumerate("abcdefgh", start=1))
    for line, begin in zip(lines, (0, LINE), strict=True):
        count = min(LINE, len(ids) - 1 - begin)
        assert [label.get_text() for label in line.get_xticklabels()] == [words[i] for i in ids[begin : begin + count]]
        (above,) = line.child_axes
        following = [words[i] for i in ids[begin + 1 : begin + 1 + count]]
        assert [label.get_text() for label in above.get_xticklabels()] == following
        assert line.images[0].get_array().shape == (3, count)


def test_head_scores_have_a_scale_each_which_noise_does_not_fill():
    wide, narrow = torch.tensor([[0.0, 2.0], [1.0, float("nan")]]), torch.tensor([[0.01, 0.02], [0.015, 0.01]])
    figure = draw_heads({"wide": wide, "narrow": narrow}, "heads")
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.images[0].get_clim() for axes in panels] == [(0.0, 2.0), pytest.approx((0.01, 0.11))]
    assert len(figure.axes) == 4  # a colour bar each
    assert sorted(text.get_text() for text in panels[0].texts) == ["0.00", "1.00", "2.00"]  # nothing for NaN


def test_only_units_can_be_dead_and_what_is_zero_everywhere_has_no_panel(model):
    found = activation_statistics(model, random_ids(CONFIG, 3, 8))
    none = [replace(each, dead=0.5 * (each.place != "units"), outliers=0.0) for each in found]
    figure = draw_activations(none, "t")
    assert figure.get_suptitle() == "t\nno outliers beyond 6 standard deviations\nno dead units"
    assert [axes.get_title() for axes in figure.axes] == ["standard deviation", "largest distance from the mean"]
    some = [replace(each, dead=0.5) for each in found]
    (dead,) = [axes for axes in draw_activations(some, "t").axes if axes.get_title() == "dead units"]
    assert [list(line.get_ydata()) for line in dead.lines] == [[50.0, 50.0]]
    assert dead.get_ylabel() == "% of the units"


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
