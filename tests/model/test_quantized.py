"""Quantized layers against `nn.Linear` with the dequantized weight; PyTorch's kernels to bfloat16 accuracy."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinylm.adapt.quantize import kernels
from tinylm.errors import ConfigError
from tinylm.generation.fast.layers import join_layers
from tinylm.model.quantized import (
    Int4Linear,
    Int8Linear,
    QuantizedLinear,
    aligned,
    describe_layers,
    pack,
    put_layers,
    unpack,
)

few = settings(max_examples=40, deadline=None)
TYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def filled(kind: str, inputs: int, outputs: int, bias: bool = False, group_size: int = 32) -> QuantizedLinear:
    """A layer with random codes over the full range and scales of both signs."""
    generator = torch.Generator().manual_seed(inputs + outputs)
    layer = Int8Linear(inputs, outputs, bias) if kind == "int8" else Int4Linear(inputs, outputs, bias, group_size)
    low, high = (-127, 128) if kind == "int8" else (0, 256)
    layer.codes.random_(low, high, generator=generator)
    layer.scales.copy_(torch.randn(layer.scales.shape, generator=generator) * 0.01)
    if layer.bias is not None:
        layer.bias.data.copy_(torch.randn(outputs, generator=generator))
    return layer


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


# --- codes


def test_bytes_and_pairs_of_codes_correspond_one_to_one():
    every = torch.arange(256).to(torch.uint8)[:, None]
    codes = unpack(every)
    assert codes.shape == (256, 2) and codes.dtype == torch.int8
    assert {tuple(pair) for pair in codes.tolist()} == {(i, j) for i in range(-8, 8) for j in range(-8, 8)}
    assert torch.equal(pack(codes), every)


@few
@given(st.lists(st.tuples(*[st.integers(-8, 7)] * 6), min_size=1, max_size=5))
def test_unpack_inverts_pack(rows):
    codes = torch.tensor(rows, dtype=torch.int8)
    assert pack(codes).shape == (len(rows), 3)
    assert torch.equal(unpack(pack(codes)), codes)


def test_the_first_code_is_in_the_lower_half_of_a_byte():
    assert pack(torch.tensor([-8, 7, 0, 1], dtype=torch.int8)).tolist() == [0xF0, 0x98]  # 0 and 15, 8 and 9


def test_weights_match_hand_calculation():
    layer = Int8Linear(3, 2, bias=False)
    layer.codes.copy_(torch.tensor([[-127, 0, 64], [1, 2, 3]]))
    layer.scales.copy_(torch.tensor([0.5, 2.0]))
    assert layer.weight.tolist() == [[-63.5, 0, 32], [2, 4, 6]]
    layer = Int4Linear(4, 1, bias=False, group_size=2)
    layer.codes.copy_(pack(torch.tensor([[-8, 7, 1, 2]], dtype=torch.int8)))
    layer.scales.copy_(torch.tensor([[0.5, -2.0]]))
    assert layer.weight.tolist() == [[-4, 3.5, -2, -4]]


# --- products


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("kind", "bias"), [("int8", True), ("int8", False), ("int4", True), ("int4", False)])
@torch.no_grad()
def test_plain_products_match_a_linear_layer(kind, bias, dtype):
    layer = filled(kind, 64, 24, bias).to(dtype)
    oracle = nn.Linear(64, 24, bias=bias, dtype=torch.float64)
    oracle.weight.data = layer.weight.double()
    if bias:
        oracle.bias.data = layer.bias.data.double()
    x = random(2, 50, 64, dtype=dtype)  # many rows
    found, expected = layer(x), oracle(x.double())
    assert layer.kernel(x) == "plain" and found.dtype == dtype and found.shape == (2, 50, 24)
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=TYPES[dtype] * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(32, 16), (96, 48), (128, 272), (352, 128)], ids=str)
@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.no_grad()
def test_packed_products_differ_by_bfloat16_rounding_alone(kind, sizes, dtype):
    """Activations, weights and results are rounded to 8 bits, with a relative error of at most 2^-9 each."""
    layer = filled(kind, *sizes)
    for rows in (1, 2, 3, 5, layer.most_rows):
        x = random(rows, sizes[0], dtype=dtype)
        assert layer.kernel(x) == "packed"
        assert_within_bfloat16(layer, x)


def assert_within_bfloat16(layer: QuantizedLinear, x: torch.Tensor) -> None:
    """Checks a product to the accuracy of activations, weights and results rounded to 8 bits."""
    exact, weight = x.double() @ layer.weight.double().T, layer.weight.double()
    bound = 2 * 2**-9 * (x.double().abs() @ weight.abs().T) + 2 * 2**-9 * exact.abs() + 1e-6
    assert ((layer(x).double() - exact).abs() <= bound).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_products_do_not_depend_on_shape_and_strides_of_x(kind):
    layer = filled(kind, 64, 32, bias=True)
    x = random(64, 6).T  # not contiguous
    rows = layer(x.contiguous())
    assert torch.equal(layer(x), rows)
    assert torch.equal(layer(x.reshape(2, 3, 64)), rows.view(2, 3, 32))
    assert layer(x[:0]).shape == (0, 32)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("convert", [nn.Module.float, nn.Module.half, nn.Module.bfloat16])
def test_scales_of_another_type_are_supported(kind, convert):
    layer = convert(filled(kind, 64, 32))
    assert layer.kernel(random(3, 64)) == "packed"
    assert_within_bfloat16(layer, random(3, 64))


# --- addresses


def moved(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """A copy whose address is a multiple of 64 plus `offset`."""
    size = tensor.numel() * tensor.element_size()
    memory = torch.empty(size + 128, dtype=torch.uint8)
    start = -memory.data_ptr() % 64 + offset
    return memory[start : start + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)


@torch.no_grad()
def multiply_at_every_address() -> None:
    """Moves codes and scales to every 8-byte offset, and x to every offset that its type allows."""
    for kind in ("int8", "int4"):
        for offset in range(0, 64, 8):
            for name in ("codes", "scales"):
                assigned, bypassed = filled(kind, 96, 16), filled(kind, 96, 16)
                setattr(assigned, name, moved(getattr(assigned, name), offset))
                bypassed.register_buffer(name, moved(getattr(bypassed, name), offset))
                for layer in (assigned, bypassed):
                    for rows in range(1, 17):
                        assert_within_bfloat16(layer, random(rows, 96))
        layer = filled(kind, 96, 16)
        for rows in range(1, 17):
            for dtype in (torch.float32, torch.bfloat16):
                x = random(rows, 96, dtype=dtype)
                for offset in range(0, 64, x.element_size()):
                    assert_within_bfloat16(layer, moved(x, offset))
    print(torch.backends.cpu.get_cpu_capability())


CAPABILITIES = ["default", "avx2", "avx512"]  # PyTorch trusts the variable: a missing one would crash


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_products_do_not_depend_on_the_addresses_of_codes_scales_and_x(capability):
    """In a subprocess, because a misaligned kernel may crash."""
    most = torch.backends.cpu.get_cpu_capability().lower()
    if capability not in CAPABILITIES[: CAPABILITIES.index(most) + 1 if most in CAPABILITIES else 1]:
        pytest.skip(f"this process has {most} kernels")
    program = "from tests.model.test_quantized import multiply_at_every_address; multiply_at_every_address()"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().lower() == (capability if most in CAPABILITIES else most)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_codes_and_scales_are_aligned_when_assigned_and_in_copies(kind):
    layer, other = filled(kind, 64, 32), filled(kind, 64, 32)
    layer.load_state_dict({name: moved(each, 8) for name, each in other.state_dict().items()}, assign=True)
    for each in (layer, copy.deepcopy(layer), join_layers([layer, other])):
        assert each.codes.data_ptr() % 64 == each.scales.data_ptr() % 64 == 0
        assert each.codes.storage_offset() == each.scales.storage_offset() == 0
    assert torch.equal(layer.codes, other.codes) and torch.equal(layer.scales, other.scales)


def test_an_aligned_tensor_is_not_copied():
    whole = torch.zeros(2, 64)
    assert aligned(whole) is whole
    part = aligned(whole[1])  # aligned, but a copy of the whole storage may not be
    assert part.storage_offset() == 0 and part.untyped_storage().nbytes() == 64 * 4


def test_newly_assigned_codes_are_used():
    layer, other = filled("int4", 64, 32), filled("int4", 64, 32)
    with torch.no_grad():
        layer(random(1, 64))
        layer.codes = other.codes = 255 - other.codes
        assert torch.equal(layer(random(1, 64)), other(random(1, 64)))


def test_the_packed_kernel_is_used_where_it_is_supported():
    x = random(1, 64)
    assert filled("int8", 64, 5).kernel(x) == filled("int4", 64, 16).kernel(x) == "packed"
    for layer in (filled("int8", 64, 16), filled("int4", 64, 16)):
        for other in (x.double(), x.half(), random(layer.most_rows + 1, 64), random(1, 64).requires_grad_()):
            assert layer.kernel(other) == "plain"
    assert filled("int8", 40, 16).kernel(random(1, 40)) == "plain"  # PyTorch's kernel would read past the end
    assert filled("int4", 64, 24).kernel(x) == filled("int4", 64, 16, group_size=16).kernel(x) == "plain"


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_gradients_reach_the_input_but_not_the_codes(kind):
    layer, x = filled(kind, 64, 16, bias=True), random(2, 64).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand(2, -1), rtol=0.0, atol=1e-5)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_newly_loaded_codes_are_used():
    """The packed kernel keeps a rearranged copy, which must be made again."""
    layer, other = filled("int4", 64, 32), filled("int4", 64, 32)
    other.codes.copy_(255 - other.codes)
    with torch.no_grad():
        layer(random(1, 64))
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(random(1, 64)), other(random(1, 64)))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_match_separate_layers(kind, bias):
    layers = [filled(kind, 64, outputs, bias) for outputs in (32, 16, 48)]
    joined = join_layers(layers)
    assert isinstance(joined, QuantizedLinear)
    for x in (random(3, 64), random(40, 64), random(3, 64, dtype=torch.float64)):
        expected = torch.cat([layer(x) for layer in layers], dim=-1)
        torch.testing.assert_close(joined(x), expected, rtol=0.0, atol=2e-5)


def test_layers_of_different_kinds_are_not_joined():
    int8, int4 = filled("int8", 64, 16), filled("int4", 64, 16)
    for other in (int4, filled("int4", 64, 16, group_size=16), nn.Linear(64, 16)):
        assert join_layers([int8, other]) is None
    assert join_layers([int4, filled("int4", 64, 16, group_size=16)]) is None


# --- in a model


@pytest.mark.parametrize("size", [0, 1, 3, 24, 128, 2.0, "32"])
def test_invalid_group_sizes_are_refused(size):
    with pytest.raises(ConfigError, match="group_size must be even and divide the 64 inputs of a layer, got"):
        Int4Linear(64, 16, False, group_size=size)


def three_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 48, bias=False), nn.Linear(48, 3))


LAYERS = [{"kind": "int4", "group_size": 16, "names": ["0", "2"]}, {"kind": "int8", "names": ["1"]}]


def test_put_layers_inverts_describe_layers():
    model = three_layers()
    assert describe_layers(model) == []
    put_layers(model, LAYERS)
    assert describe_layers(model) == LAYERS
    assert [(each.in_features, each.out_features) for each in model] == [(32, 32), (32, 48), (48, 3)]
    assert [each.bias is not None for each in model] == [True, False, True]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([{"kind": "int7", "names": ["0"]}], "int7: no such kind of linear layer, did you mean 'int8'"),
        ([{"kind": ["int8"], "names": ["0"]}], "no such kind of linear layer"),
        ([{"kind": "int8", "names": ["3"]}], "layers: 3: is not a plain linear layer of this model"),
        ([{"kind": "int8", "names": ["0", "0"]}], "layers: 0: is not a plain linear layer of this model"),
        ([{"kind": "int8"}], "each entry must have a kind and names"),
        (["int8"], "each entry must have a kind and names"),
        ([{"kind": "int8", "group_size": 16, "names": ["0"]}], "0: int8 has other options than group_size"),
        ([{"kind": "int4", "names": ["0"]}], "0: int4 has other options than none"),
        ([{"kind": "int4", "group_size": 32, "names": ["2"]}], "2: group_size must be even and divide the 48 inputs"),
    ],
)
def test_invalid_descriptions_are_refused(layers, message):
    with pytest.raises(ConfigError, match=message):
        put_layers(three_layers(), layers)


def test_kernels_depend_on_the_number_of_rows():
    model = three_layers()
    put_layers(model, [{"kind": "int8", "names": ["0", "1"]}])
    assert kernels(model) == {"int8 packed": 2, "float32": 1}
    assert kernels(model, rows=17) == {"int8 plain": 2, "float32": 1}
