"""The coordinate check of muP (Yang et al. 2022, appendix D.1): does a step change activations equally at every width?

Networks of several widths take the same few steps. For every place in them, the mean absolute change of an activation
is compared over the widths: the slope of its logarithm over that of the width is 0 in the limit of wide networks with
muP. With one rate for all widths and without muP it is up to 1 under Adam, and up to 1/2 under Muon (model/mup.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from tinylm.analysis.activations import PLACES, watching_activations
from tinylm.analysis.watch import blocks_of
from tinylm.data import Batch
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.attention import attend_plain, documents_apart
from tinylm.model.mup import width_ratio
from tinylm.optim import OptimizerConfig, make_optimizer
from tinylm.runs.axes import scale_axis, tidy
from tinylm.runs.plots import MARKERS
from tinylm.runs.style import COLORS, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES, LOGITS = "scores", "logits"  # beside `PLACES`: scaled products of queries and keys
TOLERANCE = 0.2
"""Largest absolute slope that passes. With few widths and steps, slopes are not exactly those of the limit."""


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Mean absolute changes of activations since the first step, by place and width, and the slopes over the widths."""

    widths: tuple[int, ...]
    changes: dict[str, tuple[float, ...]]  # after the last step

    @property
    def slopes(self) -> dict[str, float]:
        """d log(change) / d log(width) of each place, by least squares."""
        logs = np.log(self.widths)
        return {
            place: float(np.polyfit(logs, np.log(np.maximum(values, 1e-30)), 1)[0])
            for place, values in self.changes.items()
        }

    @property
    def passes(self) -> bool:
        """Whether no slope is steeper than `TOLERANCE`."""
        return all(abs(slope) <= TOLERANCE for slope in self.slopes.values())


def at_width(config: ModelConfig, width: int, *, mup: bool) -> ModelConfig:
    """A config at another width: more heads of the same dimension, and a feed-forward layer wider in proportion.

    Args:
        config: the config; its learning rate was chosen at `mup_base_width`, or at its own width
        width: `d_model`
        mup: with muP, or without
    """
    group, ratio = config.num_heads // config.kv_heads, width / config.d_model
    kv_heads = max(1, round(config.kv_heads * ratio))
    return replace(
        config, d_model=width, num_heads=group * kv_heads, num_kv_heads=kv_heads, d_head=config.head_dim,
        d_ff=round(config.ff_width * ratio), mup_base_width=(config.mup_base_width or config.d_model) if mup else None,
    )  # fmt: skip


def check_coordinates(
    configs: Sequence[ModelConfig], optimizer: OptimizerConfig, batches: Sequence[Batch], steps: int, seed: int = 0
) -> Coordinates:
    """Trains a network of each config for some steps at a constant rate, and compares the changes on the first batch.

    Args:
        configs: of different widths
        optimizer: the same for all
        batches: used in turn
        steps: optimizer steps
        seed: of the initial weights
    """
    found = [_changes(config, optimizer, batches, steps, seed) for config in configs]
    changes = {place: tuple(each[place] for each in found) for place in found[0]}
    return Coordinates(widths=tuple(config.d_model for config in configs), changes=changes)


@style()
def draw(found: dict[str, Coordinates]) -> "Figure":
    """Draws the changes of every place against the width, a panel for each parametrization."""
    figure = new_figure(3.5 * len(found), 4.6)
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)
    for axis, (name, each) in zip(axes[0], found.items(), strict=True):
        for place, color, marker in zip(each.changes, cycle(COLORS), cycle(MARKERS), strict=False):
            label = f"{place} ({each.slopes[place]:+.2f})"
            axis.plot(each.widths, each.changes[place], marker=marker, color=color, label=label)
        axis.set(xscale="log", yscale="log", xlabel="width", title=name)
        axis.set_xticks(each.widths, [str(width) for width in each.widths])
        axis.minorticks_off()
        below: dict[str, Any] = dict(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        axis.legend(title="slope", fontsize=8, title_fontsize=8, **below)
        tidy(axis)
    axes[0, 0].set_ylabel("mean change of an activation")
    scale_axis(axes[0, 0].yaxis, 6, logarithmic=True)
    return figure


def _changes(
    config: ModelConfig, settings: OptimizerConfig, batches: Sequence[Batch], steps: int, seed: int
) -> dict[str, float]:
    torch.manual_seed(seed)
    model = TransformerLM(config)
    optimizer = make_optimizer(model, settings)
    before = _activations(model, batches[0])
    for batch in islice(cycle(batches), steps):
        optimizer.zero_grad()
        documents = documents_apart(config, batch.inputs, None, batch.documents)
        (model(batch.inputs, documents=documents, targets=batch.targets) / batch.num_targets).backward()
        optimizer.step()
    after = _activations(model, batches[0])
    return {place: _mean(_changed(before[place], after[place])) for place in before}


@torch.no_grad()
def _activations(model: TransformerLM, batch: Batch) -> dict[str, list[Tensor]]:
    """The activations of each place, a tensor for each block."""
    found: dict[str, list[Tensor]] = {place: [] for place in (*PLACES, SCORES)}
    kernels = [block.attention.attend for block in blocks_of(model)]
    for block in blocks_of(model):
        block.attention.attend = cast(Any, partial(_attend, found[SCORES]))
    model.eval()
    with watching_activations(model, lambda place, _, values: found[place].append(values)):
        documents = documents_apart(model.config, batch.inputs, None, batch.documents)
        found[LOGITS] = [model(batch.inputs, documents=documents)]
    if model.config.norm_placement == "post":  # the last block ends in the norm that muP scales down
        found["stream"][-1] = found["stream"][-1] * width_ratio(model.config)
    model.train()
    for block, kernel in zip(blocks_of(model), kernels, strict=True):
        block.attention.attend = kernel
    return found


def _attend(seen: list[Tensor], query: Tensor, key: Tensor, *others: Any) -> Tensor:
    """`attend_plain` that keeps the scores."""
    scale = others[-1]
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).mT
    seen.append(scores * (query.shape[-1] ** -0.5 if scale is None else scale))
    return attend_plain(query, key, *others)


def _changed(before: Iterable[Tensor], after: Iterable[Tensor]) -> list[float]:
    return [(new - old).abs().mean().item() for old, new in zip(before, after, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
