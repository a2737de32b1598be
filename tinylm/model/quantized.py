"""Linear layers whose weights are small integers, 8 bits or 4 each, with one scale for many.

    int8   w = scale * code, -127 to 127, one scale for all weights of an output (Dettmers et al. 2022)
    int4   w = scale * code, -8 to 7, one scale for each group of inputs of an output (as in GPTQ, Frantar et al. 2022)

Scales are in bfloat16, which is what PyTorch's kernels take: they are half a bit for each weight in groups of 32.
Rounding the weights is `tinylm.adapt.quantize`'s affair; here they are stored and used.

Each layer has two ways to its product. `plain` turns the codes back into numbers of x's type and multiplies: right
everywhere, and with many rows the faster one. `packed` is PyTorch's kernel for CPUs, which reads the codes themselves:
with few rows, as in decoding, most of the time of a wide network goes into bringing weights from memory, and these are
a quarter or an eighth of them. (Below a width of about 500 the gain is memory, not time.) It takes activations in
bfloat16, so it differs from `plain` by their rounding. `kernels` says which way is taken.

Codes and scales are no parameters: an optimizer does not see them. Gradients pass through such a layer to what lies
before it, by the plain way.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.errors import ConfigError, did_you_mean

ALIGNMENT = 64  # bytes


class QuantizedLinear(nn.Module, ABC):
    """x weightᵀ + bias, as `nn.Linear`, of a weight that is stored in few bits.

    A new layer has room for codes and scales, and nothing in it.

    Attributes:
        kind: what a model folder calls this class
        most_rows: up to so many rows of x the packed kernel is the faster one
        fits: whether that kernel takes a weight of this shape
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
        """What `__init__` was given beyond sizes: plain values, for a model folder."""
        return {}

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """What codes and scales stand for, float32 (O, I)."""

    @abstractmethod
    def plain(self, x: Tensor) -> Tensor:
        """x weightᵀ by numbers of x's type: (..., I) -> (..., O)"""

    @abstractmethod
    def packed(self, x: Tensor) -> Tensor:
        """The same by PyTorch's kernel, in bfloat16: (rows, I) -> (rows, O)"""

    def kernel(self, x: Tensor) -> str:
        """Which way `forward` takes for x: `packed` or `plain`."""
        few = 0 < x.numel() <= self.most_rows * self.in_features
        usable = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and not x.requires_grad
        return "packed" if few and usable and self.fits else "plain"

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), of x's type"""
        if self.kernel(x) == "plain":
            y = self.plain(x)
        elif x.dim() == 2:  # the decoder's, where microseconds count
            y = self.packed(x.to(torch.bfloat16).contiguous()).to(x.dtype)
        else:
            rows = x.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
            y = self.packed(rows).to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; codes and scales are aligned here, once: whatever loads or joins layers assigns them."""
        super().__setattr__(name, aligned(value) if name in ("codes", "scales") else value)

    def extra_repr(self) -> str:
        """As `nn.Linear` shows itself."""
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}{options}"


class Int8Linear(QuantizedLinear):
    """Eight bits for a weight, and a scale for each output.

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
        self.fits = in_features % 32 == 0  # the kernel reads so many at a time, past the end if it must

    @property
    def weight(self) -> Tensor:
        """What codes and scales stand for, float32 (O, I)."""
        return self.codes * self.scales.float()[:, None]

    def plain(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O); scales last: there are fewer outputs than weights."""
        if x.dtype == torch.float16:  # whose range the sum of many codes may leave
            return F.linear(x, self.weight.to(x.dtype))
        return F.linear(x, self.codes.to(x.dtype)) * self.scales.to(x.dtype)

    def packed(self, x: Tensor) -> Tensor:
        """The same by PyTorch's kernel, in bfloat16: (rows, I) -> (rows, O)"""
        codes, scales = self._buffers["codes"], self._buffers["scales"]  # half a microsecond less for each than by name
        assert codes is not None and scales is not None
        if scales.dtype != torch.bfloat16:  # after `model.float()` or the like
            scales = scales.to(torch.bfloat16)
        if not torch.compiler.is_compiling() and (x.data_ptr() | codes.data_ptr()) % ALIGNMENT:
            x, codes = aligned(x), aligned(codes)
        return torch.ops.aten._weight_int8pack_mm(x, codes, scales)


class Int4Linear(QuantizedLinear):
    """Four bits for a weight, and a scale for each group of `group_size` inputs of an output.

    For the packed kernel the codes are arranged anew when it is first used, which takes the memory of a second copy.

    Attributes:
        codes: uint8 (O, I/2), as `pack` makes them
        scales: bfloat16 (O, I / group_size); a negative one turns the range of its group round
    """

    kind = "int4"
    most_rows = 32  # unpacking is much work

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
        """The size of groups."""
        return {"group_size": self.group_size}

    @property
    def weight(self) -> Tensor:
        """What codes and scales stand for, float32 (O, I)."""
        return self._weight(torch.float32)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        groups = unpack(self.codes).to(dtype).unflatten(1, (-1, self.group_size))  # (O, groups, size)
        return groups.mul_(self.scales.to(dtype)[..., None]).flatten(1)

    def plain(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)"""
        return F.linear(x, self._weight(x.dtype))

    def packed(self, x: Tensor) -> Tensor:
        """The same by PyTorch's kernel, in bfloat16: (rows, I) -> (rows, O)"""
        if self._arranged is None:
            self._arranged = self._arrange()
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self._arranged[0], self.group_size, self._arranged[1])

    def _arrange(self) -> tuple[Tensor, Tensor]:
        """The codes as this machine's kernel wants them, and scales and zero points, (groups, O, 2)."""
        scales = self.scales.T.to(torch.bfloat16)
        codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unpack(self.codes).int() + 8, 1)
        return codes, torch.stack((scales, torch.zeros_like(scales)), dim=-1)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; other codes or scales must be arranged anew."""
        super().__setattr__(name, value)
        if name in ("codes", "scales"):
            self._arranged = None

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._arranged = None
        super()._load_from_state_dict(*arguments)


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it if it does not start its storage, or starts at an address that 64 does not divide.

    PyTorch allocates at such addresses, safetensors and NumPy do not, and a slice starts anywhere. With AVX-512
    `_weight_int8pack_mm` crashes unless 32 divides the address of x and, with four rows or more, 16 that of the codes;
    with AVX2 unless 16 divides that of x. Our other kernels, those of floats and of int4, take any address.
    """
    whole = tensor.data_ptr() % ALIGNMENT == 0 and tensor.storage_offset() == 0  # deepcopy keeps offsets, not addresses
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def pack(codes: Tensor) -> Tensor:
    """Two codes from -8 to 7 in a byte, the first in its lower half: int8 (..., I) -> uint8 (..., I/2)

    >>> pack(torch.tensor([-8, 7, 0, 1], dtype=torch.int8))
    tensor([240, 152], dtype=torch.uint8)
    """
    halves = (codes + 8).to(torch.uint8)
    return halves[..., ::2] | halves[..., 1::2] << 4


def unpack(codes: Tensor) -> Tensor:
    """What `pack` packed: uint8 (..., I/2) -> int8 (..., I)"""
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2).to(torch.int8) - 8


# --- such layers in a network

KINDS: dict[str, type[QuantizedLinear]] = {layer.kind: layer for layer in (Int8Linear, Int4Linear)}


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Names and layers of all that are not plain."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear))


def join_layers(layers: Sequence[nn.Module]) -> QuantizedLinear | None:
    """One layer that computes what some of the same input do, their outputs one after the other; None: they differ."""
    first = layers[0]
    if not isinstance(first, QuantizedLinear):
        return None
    alike = [each for each in layers if isinstance(each, QuantizedLinear) and type(each) is type(first)]
    if len(alike) < len(layers) or any(each.options != first.options for each in alike):
        return None
    biases = [each.bias.detach() for each in alike if each.bias is not None]
    both = type(first)(first.in_features, sum(each.out_features for each in alike), bool(biases), **first.options)
    both.codes = torch.cat([each.codes for each in alike])
    both.scales = torch.cat([each.scales for each in alike])
    both.bias = nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
    return both


def describe_layers(model: nn.Module) -> list[dict[str, Any]]:
    """Which layers are of which kind, as plain values: `[{"kind": "int4", "group_size": 32, "names": [...]}]`."""
    found: list[dict[str, Any]] = []
    for name, layer in quantized_layers(model):
        what = {"kind": layer.kind, **layer.options}
        same = [entry for entry in found if {**entry, "names": None} == {**what, "names": None}]
        if not same:
            found.append({**what, "names": []})
        (same or found[-1:])[0]["names"].append(name)
    return found


def put_layers(model: nn.Module, layers: Any) -> None:
    """Puts empty layers in the places of plain ones, as `describe_layers` describes them.

    Raises:
        ConfigError: for an unknown kind, options that it does not have, and names that are not of plain linear layers.
    """
    for entry in layers:
        if not isinstance(entry, dict) or not isinstance(entry.get("names"), list):
            raise ConfigError(f"layers: each entry must have a kind and names, got {entry!r}")
        options = {key: value for key, value in entry.items() if key not in ("kind", "names")}
        kind = str(entry.get("kind"))
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS) or f", known are {', '.join(KINDS)}"
            raise ConfigError(f"layers: {kind}: no such kind of linear layer{hint}")
        for name in entry["names"]:
            plain = dict(model.named_modules()).get(name)
            if type(plain) is not nn.Linear:
                raise ConfigError(f"layers: {name}: is not a plain linear layer of this model")
            model.set_submodule(name, make_layer(kind, plain, name, **options))


def make_layer(kind: str, plain: nn.Linear, name: str, **options: Any) -> QuantizedLinear:
    """An empty layer of a kind, of the sizes of a plain one.

    Raises:
        ConfigError: for options that do not fit; `name` is named.
    """
    try:
        return KINDS[kind](plain.in_features, plain.out_features, plain.bias is not None, **options)
    except TypeError as error:
        raise ConfigError(f"{name}: {kind} has other options than {', '.join(options) or 'none'}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def check_layers(model: nn.Module) -> None:
    """Checks the types of what was loaded into such layers.

    Raises:
        ConfigError: naming the layer.
    """
    for name, layer in quantized_layers(model):
        wanted = torch.uint8 if isinstance(layer, Int4Linear) else torch.int8
        if layer.codes.dtype != wanted or not layer.scales.is_floating_point():
            types = f"{layer.codes.dtype} and {layer.scales.dtype}"
            raise ConfigError(f"{name}: codes and scales must be {wanted} and floating point, got {types}")


def kernels(model: nn.Module, rows: int = 1) -> dict[str, int]:
    """How many linear layers compute which way when each reads some rows, as decoding does: `{"int8 packed": 21}`."""
    found: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            dtype = next(model.parameters()).dtype  # of the embedding, and so of what goes through the network
            x = torch.empty(rows, module.in_features, dtype=dtype, device=module.codes.device)
            found[f"{module.kind} {module.kernel(x)}"] += 1
        elif type(module) is nn.Linear:
            found[str(module.weight.dtype).removeprefix("torch.")] += 1
    return dict(found.most_common())
