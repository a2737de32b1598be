"""Weight-only quantization: the matrices of a finished model in 8 or 4 bits, without any data.

int8 takes for each output the scale that its largest weight needs. At 4 bits the scale of each group is chosen among
some, that which loses least: where most weights are small it is better to cut the largest one off than to round all
the others coarsely. Embeddings, norms and, by default, the head stay as they are.

What it costs `small` (configs/small.yaml, width 128, 0.88 nats), in validation loss: int8 +0.001%; int4 in groups of 32
+0.02%, of 64 +0.03%, of 128 +0.04%, and without the search +0.10% in groups of 32: the search takes the squared error
of the weights from 1.00% to 0.72%.

Left out: rounding that looks at activations (GPTQ, AWQ); training with rounded weights; and zero points, which lose
more (0.78%) than the same bits put into smaller groups. The tied embedding in int8 would cost nothing measurable
either, but a lookup wants numbers, and so does everything that asks the embedding for the model's type.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinylm.adapt.freeze import matching
from tinylm.errors import ConfigError, NumericError
from tinylm.model import TransformerLM
from tinylm.model.known import check_known
from tinylm.model.quantized import QuantizedLinear, make_layer, pack, quantized_layers

GROUP_SIZE = 32

# Where the largest weight of a group may come to stand, in steps from zero. At 7 nothing is cut off; beyond 7 or -8
# the largest is, and the steps are finer. The sign decides at which end of -8 ... 7 it stands.
STANDS = (7.0, -7.5, -8.0, 7.5, -8.5, 8.0, -9.0, 8.5, -9.5, 9.0, -10.0, 10.0, -11.0, 11.0)


def quantize(
    model: TransformerLM, *, bits: int = 8, group_size: int | None = None, skip: Sequence[str] = ("head",)
) -> TransformerLM:
    """A copy of a model with linear layers in few bits.

    Args:
        model: the network, in evaluation mode; it stays as it is
        bits: 8 or 4
        group_size: with 4 bits: how many inputs share a scale; it must divide all widths. None: 32
        skip: names of linear layers that stay as they are; `*` stands for anything, as in `blocks.0.*`. A head that
            is tied to the embedding always stays.

    Raises:
        ConfigError: for a value out of range, a model in training, one that is quantized already or has adapters, and
            one with a part that its config does not describe.
        NumericError: for weights that are not finite.
    """
    kind, options = _choose(bits, group_size)
    _check(model)
    model = copy.deepcopy(model)
    for name, plain in _chosen(model, skip):
        if not plain.weight.isfinite().all():
            raise NumericError(f"{name}: has weights that are not finite numbers; they cannot be rounded")
        layer = make_layer(kind, plain, name, **options)
        _fill(layer, plain)
        model.set_submodule(name, layer)
    return model.eval()


def _choose(bits: int, group_size: int | None) -> tuple[str, dict[str, int]]:
    if bits == 4:
        return "int4", {"group_size": GROUP_SIZE if group_size is None else group_size}
    if bits != 8:
        raise ConfigError(f"bits must be 8 or 4, got {bits}")
    if group_size is not None:
        raise ConfigError(f"group_size is for 4 bits, got {group_size} with 8; leave it out")
    return "int8", {}


def _check(model: TransformerLM) -> None:
    done = sum(1 for _ in quantized_layers(model))
    if done:
        raise ConfigError(f"the model is quantized already ({done} layers); take the one that it was made from")
    if model.training:
        raise ConfigError("a model in training cannot be quantized; finish it and call model.eval()")
    check_known(model, "quantization")  # else layers of one's own would be passed over, and hooks lost


def _chosen(model: TransformerLM, skip: Sequence[str]) -> list[tuple[str, nn.Linear]]:
    """The linear layers that are to be replaced."""
    layers = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    names = list(layers)
    skipped = {name for each in skip for name in matching(each, names, f"skip: no linear layer is named {each}")}
    if model.config.tie_embeddings:
        skipped.add("head")
    kept = [(name, layer) for name, layer in layers.items() if name not in skipped]
    if not kept:
        raise ConfigError(f"skip: {', '.join(skip)} leaves no layer to quantize; skip fewer")
    return kept


@torch.no_grad()
def _fill(layer: QuantizedLinear, plain: nn.Linear) -> None:
    """Puts the rounded weight of a plain layer, and its bias, into an empty one."""
    if layer.kind == "int8":
        layer.codes, layer.scales = round_rows(plain.weight)
    else:
        codes, layer.scales = round_groups(plain.weight, layer.options["group_size"])
        layer.codes = pack(codes)
    layer.bias = plain.bias


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Each row to the nearest of 255 values: no weight moves by more than half its row's scale.

    The scale's own rounding moves the largest weight by at most 127 / 512 of a step: it is still the code 127.

    Args:
        weight: (O, I)

    Returns:
        codes, int8 (O, I), and scales, bfloat16 (O,)
    """
    weight = weight.float()
    steps = _steps(weight.abs().amax(dim=1) / 127)
    return (weight / steps[:, None]).round().to(torch.int8), steps.bfloat16()


def round_groups(weight: Tensor, group_size: int, stands: Sequence[float] = STANDS) -> tuple[Tensor, Tensor]:
    """Each group of a row to the nearest of 16 values, by that scale out of some that has the least squared error.

    Args:
        weight: (O, I)
        group_size: how many of a row share a scale
        stands: which code, or beyond it, the largest weight of a group may become; with 7 alone no weight moves by
            more than half its group's scale

    Returns:
        codes, int8 (O, I), and scales, bfloat16 (O, I / group_size)
    """
    groups = weight.float().unflatten(1, (-1, group_size))  # (O, groups, size)
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))  # with its sign
    codes, scales, least = torch.zeros_like(groups), torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    unit = _steps(largest / stands[0])  # of errors: the squares of all too large weights would be infinite
    for stand in stands:
        steps = _steps(largest / stand)
        tried = (groups / steps).round().clamp(-8, 7)
        error = ((tried - groups / steps) * (steps / unit)).square().sum(dim=2, keepdim=True)
        better = error < least
        codes, scales = torch.where(better, tried, codes), torch.where(better, steps, scales)
        least = torch.where(better, error, least)
    return codes.flatten(1).to(torch.int8), scales[..., 0].bfloat16()


def _steps(steps: Tensor) -> Tensor:
    """Steps as they will be stored, in bfloat16. Of a group of zeros, or nearly, the smallest that there is."""
    steps, tiny = steps.bfloat16().float(), torch.finfo(torch.float32).tiny
    return torch.where(steps.abs() < tiny, tiny, steps)
