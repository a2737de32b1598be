"""The drawing of a network: its parts sum to the totals that the library states, and no words overlap."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.analysis.drawn import faults
from tests.strategies import model_configs
from tinylm import plugins
from tinylm.adapt import LoRAConfig, add_lora, quantize
from tinylm.analysis.boxes import Box
from tinylm.analysis.drawing import Drawing, Line, Words
from tinylm.analysis.network import read_network
from tinylm.analysis.network_drawing import draw_network
from tinylm.errors import ConfigError
from tinylm.model import PRESETS, ModelConfig, TransformerLM, flops_per_token, parameter_count, preset
from tinylm.model.size import empty_model
from tinylm.targets import PICTURE

few = settings(max_examples=20, deadline=None)
SHAPE = dict(vocab_size=11, d_model=16, num_layers=2, num_heads=4, max_seq_len=8)
EXAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "examples"


@pytest.fixture
def examples(monkeypatch):
    """The plug-ins of scripts/examples, trusted."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(plugins, "_trusted", {"mla", "moe"})
    yield
    empty_model.cache_clear()
    for name in ("mla", "moe"):
        sys.modules.pop(name, None)


def titles(boxes) -> list[str]:
    return [box.title for box in boxes]


@few
@given(model_configs())
def test_parts_sum_to_the_stated_totals_and_are_drawn_without_faults(config):
    network = read_network(empty_model(config))
    assert network.parameters == parameter_count(config)
    assert network.flops == flops_per_token(config)
    assert sorted(layer for stage in network.stages for layer in stage.layers) == list(range(config.num_layers))
    assert faults(draw_network(network, "a name")) == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_sum_to_the_stated_totals_and_are_drawn_without_faults(name):
    config = preset(name, vocab_size=50257)
    network = read_network(empty_model(config))
    assert (network.parameters, network.flops) == (parameter_count(config), flops_per_token(config))
    (stage,) = network.stages
    assert len(stage.layers) == config.num_layers
    assert faults(draw_network(network, name)) == []


@pytest.mark.parametrize(
    "parts",
    [
        dict(attention="own_parts.NarrowAttention"),
        dict(attention="own_parts.GatedAttention", feedforward="own_parts.Sparse"),
        dict(norm="own_parts.Signed", positional_encoding="own_parts.Sines", norm_placement="post"),
        dict(activation="own_parts.cubed"),
    ],
    ids=str,
)
def test_plug_ins_are_counted_and_named(parts, own_parts):
    plugins.trust(["own_parts"])
    config = ModelConfig(**SHAPE, **parts)
    network = read_network(empty_model(config))
    assert (network.parameters, network.flops) == (parameter_count(config), flops_per_token(config))
    drawing = draw_network(network, "own")
    assert faults(drawing) == []
    shown = {shape.text for shape in drawing.shapes if isinstance(shape, Words)}
    assert {path.removeprefix("own_parts.") for path in parts.values() if "." in path} <= shown


def test_latent_attention_and_experts_show_their_insides(examples):
    """A token uses the router, 16 x 8, and two of eight experts of three matrices, 16 x 10."""
    config = ModelConfig.from_dict({
        **SHAPE, "d_head": 8, "rotary_fraction": 0.5,
        "attention": {"class_path": "mla.LatentAttention", "init_args": {"latent": 6}},
        "feedforward": {"class_path": "moe.MixtureOfExperts", "init_args": {"experts": 8, "top_k": 2, "width": 10}},
    })  # fmt: skip
    network = read_network(empty_model(config))
    assert (network.parameters, network.flops) == (parameter_count(config), flops_per_token(config))
    (attention,), (experts,) = network.stages[0].attention.boxes, network.stages[0].feedforward.boxes
    assert (
        "latent: Linear 16 → 6",
        "96",
    ) in attention.lines and "its cache holds 10 numbers per token" in attention.lines
    assert ("experts: 8 \u00d7 SwiGLU", f"{8 * 3 * 16 * 10:,}") in experts.lines
    assert (f"a token uses {16 * 8 + 2 * 3 * 16 * 10:,} of", f"{16 * 8 + 8 * 3 * 16 * 10:,}") in experts.lines


def test_adapters_and_quantized_weights_are_named_and_not_counted_twice():
    config = ModelConfig(**SHAPE)
    adapted = TransformerLM(config)
    add_lora(adapted, LoRAConfig(rank=2, targets=("*.attention.query",)))
    small = quantize(TransformerLM(config).eval(), bits=8)
    for model, note in ((adapted, "+ LoRA, rank 2"), (small, "int8")):
        network = read_network(model)
        assert (network.parameters, network.flops) == (parameter_count(config), flops_per_token(config))
        assert note in next(network.stages[0].attention.boxes).lines


def test_the_drawing_shows_what_the_modules_are():
    """Shared keys and values, a window in some layers, rotation in others, norms of the outputs, a head of its own."""
    config = ModelConfig(
        **SHAPE | {"num_layers": 3}, num_kv_heads=2, norm_placement="output", tie_embeddings=False, sliding_window=4,
        layer_pattern="SN", activation="relu2",
    )  # fmt: skip
    network = read_network(empty_model(config))
    first, second = network.stages
    assert (first.layers, second.layers, first.form) == ((0, 2), (1,), "output")
    attention = titles(first.attention.boxes)
    assert attention == [
        "query", "key", "value", "RMSNorm", "RMSNorm", "rotate", "rotate", "softmax(q kᵀ / √4) v", "output"
    ]  # fmt: skip
    assert titles(second.attention.boxes) == [title for title in attention if title != "rotate"]
    assert "4 heads of 4; 2 of keys and values, each for 2" in [*first.attention.boxes][7].lines
    assert "at most 4 tokens: a sliding window" in [*first.attention.boxes][7].lines
    assert titles(first.feedforward.boxes) == ["input", "relu2", "output"]
    assert network.head.parameters == 11 * 16 and network.positions is None
    tied = read_network(empty_model(ModelConfig(**SHAPE, positional_encoding="learned")))
    assert tied.head.parameters == 0 and "its weights are the embedding's" in tied.head.lines
    assert tied.positions == Box(title="Learned positions", lines=("added: a row of D for each of 8",), parameters=128)


def test_files_are_well_formed_recognized_and_reproducible(tmp_path, monkeypatch):
    monkeypatch.setattr("tinylm.runs.plots.DOTS_PER_INCH", 20)  # saves time
    drawing = draw_network(read_network(empty_model(ModelConfig(**SHAPE))), "<a> & b")
    for name in ("one.svg", "two.svg", "one.png", "one.pdf"):
        drawing.save(tmp_path / name)
        assert PICTURE.recognizes(tmp_path / name)  # and so may be replaced
    content = (tmp_path / "one.svg").read_bytes()
    assert content == (tmp_path / "two.svg").read_bytes()
    root = ElementTree.fromstring(content)
    texts = ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [shape.text for shape in drawing.shapes if isinstance(shape, Words)] and "<a> & b" in texts
    assert b"prefers-color-scheme: dark" in content
    with pytest.raises(ConfigError, match=r"a drawing ends in \.svg, \.png or \.pdf"):
        drawing.save(tmp_path / "one.jpg")


def test_faults_of_a_drawing_are_found():
    drawing = Drawing(100, 40, "bad")
    drawing.add(Words(10, 20, "one"), Words(15, 22, "two"), Words(80, 20, "too wide"), Line(((0, 17), (30, 17))))
    found = " ".join(faults(drawing))
    assert "'one' and 'two' overlap" in found and "'too wide' leaves the canvas" in found and "crosses 'one'" in found
