"""Attention over training: the maps of every head at several checkpoints, as an HTML page with a slider.

The page, film.html, is one file that needs no network. Maps are stored in a byte per weight, as square roots, so that
weights of a few hundredths differ.
"""

import base64
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinylm.analysis.attention import attention_maps, head_scores, induction_scores
from tinylm.analysis.positions import position_losses
from tinylm.model import TransformerLM

TEMPLATE = Path(__file__).with_name("film.html")
PLACE = "/*DATA*/null"


@dataclass(frozen=True)
class Frame:
    """The heads at one checkpoint."""

    step: int
    loss: float  # mean loss over the sequences, in nats per token
    maps: Tensor  # attention weights of the text shown, (layers, H, T, T)
    previous: Tensor  # mean weight on the token before, (layers, H)
    induction: Tensor  # induction scores, (layers, H)


def take_frame(
    step: int, model: TransformerLM, shown: tuple[Tensor, Tensor | None], rows: tuple[Tensor, Tensor, Tensor | None]
) -> Frame:
    """The frame of a checkpoint.

    Args:
        step: optimizer steps of the checkpoint
        model: its model
        shown: token ids of the text in the maps, (1, T), and document numbers
        rows: token ids, the tokens that follow, and document numbers, (N, T) each, for loss and scores
    """
    ids, targets, documents = rows
    return Frame(
        step=step,
        loss=position_losses(model, ids, targets, documents).mean.mean().item(),
        maps=attention_maps(model, *shown)[:, 0].cpu(),
        previous=head_scores(model, ids, documents).previous.cpu(),
        induction=induction_scores(model).cpu(),
    )


def spaced(steps: Iterable[int], most: int) -> list[int]:
    """At most `most` of some steps, first and last among them, spaced evenly on a logarithmic scale.

    >>> spaced(range(10, 1010, 10), 5)
    [10, 30, 100, 320, 1000]
    """
    steps = sorted(steps)
    if len(steps) <= most:
        return steps
    first, last = max(steps[0], 1), steps[-1]
    wanted = [first * (last / first) ** (i / (most - 1)) for i in range(most)]
    return sorted({min(steps, key=lambda step: abs(math.log(max(step, 1) / each))) for each in wanted})


def changed_most(frames: Sequence[Frame]) -> tuple[int, int]:
    """The layer and the head whose map changes most from the first frame to the last."""
    change = (frames[-1].maps - frames[0].maps).abs().sum(dim=(-1, -2))  # (layers, H)
    layer, head = divmod(int(change.argmax()), change.shape[1])
    return layer, head


def page(frames: Sequence[Frame], words: Sequence[str], title: str) -> str:
    """The HTML page; `words` are the tokens of the text shown."""
    layers, heads, *_ = frames[0].maps.shape
    film = {
        "title": title,
        "words": list(words),
        "layers": layers,
        "heads": heads,
        "shown": changed_most(frames),
        "frames": [_plain(frame) for frame in frames],
    }
    # "<" would end the script if a token were "</script>"
    data = json.dumps(film, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, data)


def _plain(frame: Frame) -> dict[str, object]:
    maps = (frame.maps.float().sqrt() * 255).round().to(torch.uint8)
    return {
        "step": frame.step,
        "loss": round(frame.loss, 4),
        "maps": base64.b64encode(maps.contiguous().numpy().tobytes()).decode(),
        "previous": _scores(frame.previous),
        "induction": _scores(frame.induction),
    }


def _scores(scores: Tensor) -> list[float | None]:
    return [round(score, 4) if math.isfinite(score) else None for score in scores.flatten().tolist()]
