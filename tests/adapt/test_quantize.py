"""Rounding against its bounds, quantized models against plain ones with equal weights, and the loss they cost."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tinylm
from tests import processes
from tests.model.test_quantized import moved
from tests.strategies import model_configs, random_ids, random_model
from tinylm.adapt import quantize
from tinylm.adapt.quantize import kernels, round_groups, round_rows
from tinylm.bundle import save_bundle
from tinylm.data.grammar.stories import story
from tinylm.errors import ConfigError, NumericError
from tinylm.generation import Generator
from tinylm.generation.fast.decoder import Decoder
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.quantized import QuantizedLinear, quantized_layers
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer

few = settings(max_examples=40, deadline=None)
SMALL = dict(vocab_size=11, d_model=32, num_layers=2, num_heads=4, max_seq_len=12)
SIZES = {"int8": dict(bits=8), "int4": dict(bits=4, group_size=16)}

# finite weights of all magnitudes, subnormal ones included
weights = st.lists(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, 1.0, 1e-40]), min_size=8, max_size=8),
    min_size=1,
    max_size=4,
).map(torch.tensor)


# --- rounding


@few
@given(weights)
def test_8_bits_move_no_weight_by_more_than_half_a_step(weight):
    codes, scales = round_rows(weight)
    assert codes.dtype == torch.int8 and codes.min() >= -127
    steps = scales.double()[:, None]
    assert ((codes * steps - weight.double()).abs() <= steps / 2 * (1 + 1e-6)).all()
    largest = weight.abs().amax(dim=1).double()
    assert (scales.double() <= (largest / 127).clamp(min=2**-126) * (1 + 2**-8)).all()  # no coarser than necessary


@few
@given(weights, st.sampled_from([2, 4, 8]))
def test_4_bits_without_a_search_move_no_weight_by_more_than_half_a_step(weight, size):
    codes, scales = round_groups(weight, size, candidates=(7.0,))
    steps = scales.double().abs().repeat_interleave(size, dim=1)
    assert (dequantized(codes, scales).sub(weight.double()).abs() <= steps / 2 * (1 + 1e-6)).all()


def dequantized(codes: Tensor, scales: Tensor) -> Tensor:
    return codes * scales.double().repeat_interleave(codes.shape[1] // scales.shape[1], dim=1)


@few
@given(weights, st.sampled_from([2, 4, 8]))
def test_the_search_never_increases_the_error_of_a_group(weight, size):
    def error(found: tuple[Tensor, Tensor]) -> Tensor:
        return (dequantized(*found) - weight.double()).square().unflatten(1, (-1, size)).sum(dim=2)

    searched, plain = error(round_groups(weight, size)), error(round_groups(weight, size, candidates=(7.0,)))
    assert (searched <= plain * (1 + 1e-5)).all()


def test_rounding_by_hand():
    codes, scales = round_rows(torch.tensor([[127.0, -63.6, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[127, -64, 0, 0], [0, 0, 0, 0]]
    assert scales[0] == 1
    codes, scales = round_groups(torch.tensor([[-8.0, 7.0, 3.0, 1.0, 16.0, -14.0, 6.0, 0.0]]), 4)
    assert dequantized(codes, scales).tolist() == [[-8, 7, 3, 1, 16, -14, 6, 0]]  # exact in 16 steps
    assert scales.tolist() == [[1, -2]]  # the largest weight has the code -8


def test_the_search_reduces_the_error_of_normal_weights_by_a_fifth():
    """The largest of 32 normal weights is about 2.4 deviations from zero. The step is then 2.4 / 7, the mean squared
    error, step² / 12, is about 1% of the variance. Finer steps that clip the largest weight must do clearly better."""
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))

    def error(found: tuple[Tensor, Tensor]) -> float:
        return float((dequantized(*found) - weight).square().mean())

    plain = error(round_groups(weight, 32, candidates=(7.0,)))
    assert 0.009 < plain < 0.011
    assert error(round_groups(weight, 32)) < 0.8 * plain


# --- models


def plain_twin(model: TransformerLM) -> TransformerLM:
    """The model with plain layers that have the quantized weights."""
    twin = copy.deepcopy(model)
    for name, layer in list(quantized_layers(twin)):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight.data = layer.weight.to(twin.embedding.weight.dtype)
        plain.bias = layer.bias
        twin.set_submodule(name, plain)
    return twin


even_widths = dict(d_ff=st.sampled_from([None, 16, 32]), num_heads=st.sampled_from([2, 4]))


@few
@given(model_configs(positional_encoding=st.just("rotary"), **even_widths), st.sampled_from([8, 4]))
@torch.no_grad()
def test_a_quantized_model_matches_the_plain_one_with_quantized_weights(config, bits):
    model, ids = random_model(config), random_ids(config)
    rounded = quantize(model, bits=bits, group_size=2 if bits == 4 else None)
    twin = plain_twin(rounded)
    expected = twin(ids)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(rounded(ids), expected, rtol=0.0, atol=1e-12 * scale)
    assert sum(1 for _ in quantized_layers(rounded)) == config.num_layers * (7 if config.activation == "swiglu" else 6)


@few
@given(model_configs(max_seq_len=st.integers(2, 9)), st.sampled_from([1, 3]))
@torch.no_grad()
def test_decoding_with_a_cache_matches_the_full_forward(config, rows):
    model = quantize(random_model(config))
    ids = random_ids(config, rows)
    full, scale = model(ids), max(1.0, float(model(ids).abs().max()))
    for step in (Decoder(model).step, lambda last, cache: model(last[:, None], cache=cache)[:, -1]):
        cache = model.make_cache(rows)
        for t in range(config.max_seq_len):
            torch.testing.assert_close(step(ids[:, t], cache), full[:, t], rtol=0.0, atol=1e-10 * scale)


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_decoding_by_packed_kernels_matches_the_full_forward_to_bfloat16(bits):
    """Relative rounding errors of 2^-9 of the input and output of each of 14 products."""
    config = ModelConfig(**SMALL | dict(d_model=64, max_seq_len=40))
    model = quantize(random_model(config, dtype=torch.float32), bits=bits)
    ids = random_ids(config, 1)
    full, decoder, cache = model(ids), Decoder(model), model.make_cache(1)
    for t in range(config.max_seq_len):
        found = decoder.step(ids[:, t], cache)
        assert float((found - full[:, t]).norm() / full[:, t].norm()) < 14 * 2**-8


ARCHITECTURES = [
    dict(d_model=96, bias=True),
    dict(d_model=64, positional_encoding="learned", norm="layernorm", activation="gelu_tanh", bias=True),
    dict(d_model=100, d_ff=256, bias=True),
]


def generate_from_a_folder(folder: Path, bits: int) -> None:
    """Generates five texts with a saved model, and with the one loaded from its file. The loaded weights lie 8 bytes
    behind an aligned address, where PyTorch would never put them."""
    read = tinylm.bundle.load_file
    tinylm.bundle.load_file = lambda path: {name: moved(tensor, 8) for name, tensor in read(path).items()}
    for changes in ARCHITECTURES:
        config = ModelConfig(**dict(vocab_size=257, num_layers=2, num_heads=2, max_seq_len=40) | changes)
        saved = quantize(random_model(config, dtype=torch.float32), bits=bits, group_size=None if bits == 8 else 4)
        save_bundle(folder, saved, ByteTokenizer([END_OF_TEXT]), overwrite=True)
        loaded, tokenizer = tinylm.load(folder)
        texts = [Generator(model, tokenizer).complete(["ab"], num_samples=5, seed=0) for model in (saved, loaded)]
        assert texts[0] == texts[1] and len({text.text for text in texts[0]}) == 5
        assert "packed" in str(kernels(saved, rows=5)) or bits == 4


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_a_loaded_model_generates_what_the_saved_one_does(bits, tmp_path):
    """In a process of its own, which a kernel that requires aligned addresses would crash."""
    process = processes.start(generate_from_a_folder, tmp_path / "model", bits)
    process.join(120)
    assert process.exitcode == 0


@pytest.mark.parametrize("kind", SIZES)
def test_quantization_copies_the_model_and_keeps_its_parameter_count(kind):
    model = random_model(ModelConfig(**SMALL, bias=True), dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounded = quantize(model, **SIZES[kind])
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert rounded.num_parameters() == model.num_parameters()
    assert not rounded.training and rounded.head.weight is rounded.embedding.weight
    kinds = {layer.kind for _, layer in quantized_layers(rounded)}
    assert kinds == {kind}
    assert not any("weight" in name and "feedforward." in name for name, _ in rounded.named_parameters())


def test_skipped_layers_stay_plain():
    model = random_model(ModelConfig(**SMALL, tie_embeddings=False), dtype=torch.float32)
    names = {name for name, _ in quantized_layers(quantize(model, skip=("head", "blocks.0.*", "*.feedforward.gate")))}
    assert names == {
        *(f"blocks.1.attention.{name}" for name in ("query", "key", "value", "output")),
        *(f"blocks.1.feedforward.{name}" for name in ("input", "output")),
    }
    assert isinstance(quantize(model, skip=()).head, QuantizedLinear)
    tied = random_model(ModelConfig(**SMALL), dtype=torch.float32)
    assert type(quantize(tied, skip=()).head) is nn.Linear


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(bits=5), "bits must be 8 or 4, got 5"),
        (dict(bits=8, group_size=32), "group_size is for 4 bits, got 32 with 8"),
        (dict(bits=4, group_size=24), r"blocks\.0\.attention\.query: group_size must be even and divide the 32 inputs"),
        (dict(skip=["heads"]), "skip: no linear layer is named heads, did you mean 'head'"),
        (dict(skip=["*"]), r"skip: \* leaves no layer to quantize"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        quantize(random_model(ModelConfig(**SMALL)), **options)


def test_models_that_cannot_be_quantized_are_refused():
    model = random_model(ModelConfig(**SMALL))
    with pytest.raises(ConfigError, match=r"already quantized \(14 layers\)"):
        quantize(quantize(model))
    with pytest.raises(ConfigError, match="a model in training mode cannot be quantized"):
        quantize(model.train())
    model.eval().blocks[1].feedforward.output.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericError, match=r"blocks\.1\.feedforward\.output: has weights that are not finite"):
        quantize(model)


# --- the loss of a trained model


@pytest.fixture(scope="module")
def trained() -> tuple[TransformerLM, Tensor]:
    """A byte model trained on stories for a few seconds, and windows of other stories."""
    text = "\n".join(story(0, number) for number in range(200)).encode()
    windows = torch.frombuffer(bytearray(text[: len(text) // 65 * 65]), dtype=torch.uint8).long().view(-1, 65)
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(vocab_size=128, d_model=64, num_layers=2, num_heads=2, max_seq_len=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for _ in range(150):
        batch = windows[torch.randint(len(windows) - 40, (16,))]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), windows[-40:]


@pytest.mark.slow
@torch.no_grad()
def test_a_trained_model_loses_less_than_half_a_percent_in_8_bits_and_three_in_4(trained):
    model, windows = trained

    def loss(model: TransformerLM) -> float:
        return float(F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()))

    before = loss(model)
    frequencies = windows.flatten().bincount() / windows.numel()
    assert before < 0.8 * float(torch.special.entr(frequencies).sum())  # better than byte frequencies
    assert abs(loss(quantize(model, bits=8)) / before - 1) < 0.005
    assert abs(loss(quantize(model, bits=4)) / before - 1) < 0.03
