"""Quantized linear layers: weights of 8 or 4 bits, with a shared scale for many of them.

    int8   w = scale * code, -127 to 127, one scale per output (Dettmers et al. 2022)
    int4   w = scale * code, -8 to 7, one scale per group of inputs of an output (as in GPTQ, Frantar et al. 2022)

Scales are stored in bfloat16, which PyTorch's kernels require; for groups of 32 they cost half a bit per weight.
`tinylm.adapt.quantize` rounds the weights; this file stores and uses them.

Each layer can compute its product in two ways. `plain` dequantizes the weight to x's type and multiplies: it works
everywhere, and is faster for many rows. `packed` is PyTorch's CPU kernel, which reads the codes directly. Decoding with
a wide model spends most of its time loading weights, and codes take a quarter or an eighth of the bytes. (Below a width
of about 500 quantization saves memory, not time.) The kernel rounds activations to bfloat16, so its results
differ slightly from those of `plain`. `kernels` (adapt/quantize.py) counts both.

Codes and scales are buffers, not parameters, so no optimizer changes them. Gradients pass through to earlier layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.errors import ConfigError, did_you_mean

ALIGNMENT = 64  # bytes


class QuantizedLinear(nn.Module, ABC):
    """`nn.Linear` with a quantized weight: x weightᵀ + bias. A new layer holds zeros.

    Attributes:
        kind: name of this class in a model folder
        most_rows: most rows of x for which the packed kernel is faster
        fits: whether the packed kernel supports a weight of this shape
    """

    kind: ClassVar[str]
    most_rows: ClassVar[int]
    fits: bool
    codes: Tensor
    scales: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `__init__` other than sizes, as plain values for a model folder."""
        return {}

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The dequantized weight, float32 (O, I)."""

    @abstractmethod
    def plain(self, x: Tensor) -> Tensor:
        """x weightᵀ with the dequantized weight: (..., I) -> (..., O)"""

    @abstractmethod
    def packed(self, x: Tensor) -> Tensor:
        """x weightᵀ by PyTorch's kernel, in bfloat16: (rows, I) -> (rows, O)"""

    def kernel(self, x: Tensor) -> str:
        """The method that `forward` uses for x: `packed` or `plain`."""
        few_rows = 0 < x.numel() <= self.most_rows * self.in_features
        usable = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and not x.requires_grad
        return "packed" if few_rows and usable and self.fits else "plain"

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), of x's type"""
        if self.kernel(x) == "plain":
            y = self.plain(x)
        elif x.dim() == 2:  # from the decoder, where microseconds count
            y = self.packed(x.to(torch.bfloat16).contiguous()).to(x.dtype)
        else:
            rows = x.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
            y = self.packed(rows).to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute. Codes and scales are aligned here, since loading and joining layers both assign them."""
        super().__setattr__(name, aligned(value) if name in ("codes", "scales") else value)

    def extra_repr(self) -> str:
        """The fields of `nn.Linear`, and the options."""
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}{options}"


class Int8Linear(QuantizedLinear):
    """8-bit weights with one scale per output.

    Attributes:
        codes: int8 (O, I)
        scales: bfloat16 (O,)
    """

    kind = "int8"
    most_rows = 16

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("codes", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(out_features, dtype=torch.bfloat16))
        self.fits = in_features % 32 == 0  # the kernel reads 32 at a time, even past the end

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, float32 (O, I)."""
        return self.codes * self.scales.float()[:, None]

    def plain(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), scaling the outputs, of which there are fewer than weights."""
        if x.dtype == torch.float16:  # a sum of many codes may overflow
            return F.linear(x, self.weight.to(x.dtype))
        return F.linear(x, self.codes.to(x.dtype)) * self.scales.to(x.dtype)

    def packed(self, x: Tensor) -> Tensor:
        """x weightᵀ by PyTorch's kernel, in bfloat16: (rows, I) -> (rows, O)"""
        codes, scales = self._buffers["codes"], self._buffers["scales"]  # faster than attribute access
        assert codes is not None and scales is not None
        if scales.dtype != torch.bfloat16:  # after `model.float()` or the like
            scales = scales.to(torch.bfloat16)
        if not torch.compiler.is_compiling() and (x.data_ptr() | codes.data_ptr()) % ALIGNMENT:
            x, codes = aligned(x), aligned(codes)
        return torch.ops.aten._weight_int8pack_mm(x, codes, scales)


class Int4Linear(QuantizedLinear):
    """4-bit weights with one scale per group of `group_size` inputs of an output.

    The packed kernel needs the codes in another order. This second copy is made at the first use.

    Attributes:
        codes: uint8 (O, I/2), made by `pack`
        scales: bfloat16 (O, I / group_size); a negative scale mirrors the range of its group
    """

    kind = "int4"
    most_rows = 32  # more than for int8: unpacking is expensive

    def __init__(self, in_features: int, out_features: int, bias: bool, group_size: int) -> None:
        if type(group_size) is not int or group_size < 2 or group_size % 2 or in_features % group_size:
            raise ConfigError(
                f"group_size must be even and divide the {in_features} inputs of a layer, got {group_size!r}"
            )
        super().__init__(in_features, out_features, bias)
        self.group_size = group_size
        self.register_buffer("codes", torch.zeros(out_features, in_features // 2, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(out_features, in_features // group_size, dtype=torch.bfloat16))
        self.fits = group_size in (32, 64, 128, 256) and out_features % 16 == 0
        self._arranged: tuple[Tensor, Tensor] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The group size."""
        return {"group_size": self.group_size}

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, float32 (O, I)."""
        return self._weight(torch.float32)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        groups = unpack(self.codes).to(dtype).unflatten(1, (-1, self.group_size))  # (O, groups, size)
        return groups.mul_(self.scales.to(dtype)[..., None]).flatten(1)

    def plain(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)"""
        return F.linear(x, self._weight(x.dtype))

    def packed(self, x: Tensor) -> Tensor:
        """x weightᵀ by PyTorch's kernel, in bfloat16: (rows, I) -> (rows, O)"""
        if self._arranged is None:
            self._arranged = self._arrange()
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self._arranged[0], self.group_size, self._arranged[1])

    def _arrange(self) -> tuple[Tensor, Tensor]:
        """Codes in the order of this machine's kernel; scales and zero points, (groups, O, 2)."""
        scales = self.scales.T.to(torch.bfloat16)
        codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpack(self.codes).int() + 8, 1)
        return codes, torch.stack((scales, torch.zeros_like(scales)), dim=-1)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute. New codes or scales must be arranged again."""
        super().__setattr__(name, value)
        if name in ("codes", "scales"):
            self._arranged = None

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._arranged = None
        super()._load_from_state_dict(*arguments)


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself if it starts its storage at a multiple of 64 bytes, else a copy that does.

    PyTorch allocates at such addresses; safetensors and NumPy do not, and a slice may start anywhere. With AVX-512,
    `_weight_int8pack_mm` crashes unless the address of x is a multiple of 32 bytes and, for four rows or more, that of
    the codes a multiple of 16; with AVX2, unless that of x is a multiple of 16. Float and int4 kernels take any
    address.
    """
    whole = tensor.data_ptr() % ALIGNMENT == 0 and tensor.storage_offset() == 0  # deepcopy keeps offsets, not addresses
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def pack(codes: Tensor) -> Tensor:
    """Packs two codes from -8 to 7 into a byte, the first into its lower half: int8 (..., I) -> uint8 (..., I/2)

    >>> pack(torch.tensor([-8, 7, 0, 1], dtype=torch.int8))
    tensor([240, 152], dtype=torch.uint8)
    """
    halves = (codes + 8).to(torch.uint8)
    return halves[..., ::2] | halves[..., 1::2] << 4


def unpack(codes: Tensor) -> Tensor:
    """The inverse of `pack`: uint8 (..., I/2) -> int8 (..., I)"""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2).to(torch.int8) - 8


# --- quantized layers in a model

KINDS: dict[str, type[QuantizedLinear]] = {layer.kind: layer for layer in (Int8Linear, Int4Linear)}


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Names and modules of all quantized layers."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear))


def describe_layers(model: nn.Module) -> list[dict[str, Any]]:
    """Lists the quantized layers by kind, as plain values: `[{"kind": "int4", "group_size": 32, "names": [...]}]`."""
    found: dict[str, dict[str, Any]] = {}
    for name, layer in quantized_layers(model):
        kind = {"kind": layer.kind, **layer.options}
        found.setdefault(str(kind), kind | {"names": []})["names"].append(name)
    return list(found.values())


def put_layers(model: nn.Module, layers: Any) -> None:
    """Replaces linear layers by empty quantized ones, given in the form of `describe_layers`.

    Raises:
        ConfigError: for an unknown kind or option, or a name that does not belong to a linear layer.
    """
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    for entry in layers:
        if not isinstance(entry, dict) or not isinstance(entry.get("names"), list) or not entry["names"]:
            raise ConfigError(f"layers: each entry must have a kind and names, got {str(entry)[:80]}")
        options = {key: value for key, value in entry.items() if key not in ("kind", "names")}
        kind = str(entry.get("kind"))
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS) or f", known are {', '.join(KINDS)}"
            raise ConfigError(f"layers: {kind}: no such kind of linear layer{hint}")
        for name in entry["names"]:
            plain = linear.pop(name, None)  # a second mention is refused too
            if plain is None:
                raise ConfigError(f"layers: {name}: is not a plain linear layer of this model")
            model.set_submodule(name, make_layer(kind, plain, name, **options))


def make_layer(kind: str, plain: nn.Linear, name: str, **options: Any) -> QuantizedLinear:
    """An empty quantized layer of the size of a linear one; invalid options raise ConfigError with the layer's name."""
    try:
        return KINDS[kind](plain.in_features, plain.out_features, plain.bias is not None, **options)
    except TypeError as error:
        raise ConfigError(f"{name}: {kind} has other options than {', '.join(options) or 'none'}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def check_layers(model: nn.Module) -> None:
    """Raises ConfigError, naming the layer, unless loaded codes and scales have the right types."""
    for name, layer in quantized_layers(model):
        expected = torch.uint8 if isinstance(layer, Int4Linear) else torch.int8
        if layer.codes.dtype != expected or not layer.scales.is_floating_point():
            types = f"{layer.codes.dtype} and {layer.scales.dtype}"
            raise ConfigError(f"{name}: codes and scales must be {expected} and floating point, got {types}")
