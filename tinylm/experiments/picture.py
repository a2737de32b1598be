"""The picture of an ablation: differences to the reference with their intervals."""

from collections.abc import Sequence
from pathlib import Path

from tinylm.experiments.ablation import Ablation
from tinylm.experiments.table import Summary
from tinylm.runs.plots import plain, save_figure, tidy
from tinylm.runs.style import BLUE, GREY, new_figure, style


@style()
def draw_differences(ablation: Ablation, summaries: Sequence[Summary], pictures: Sequence[Path]) -> bool:
    """Draws mean differences with 95% intervals, and those of each seed as faint points.

    Returns:
        whether there was a difference to draw
    """
    found = [(each, each.difference) for each in summaries if each.difference is not None]
    if not found:
        return False
    figure = new_figure(7.5, 1.4 + 0.45 * len(found))
    axes = figure.add_subplot()
    axes.axvline(0.0, color=GREY, linewidth=1.0)
    for place, (_, difference) in enumerate(found):
        axes.plot(difference.pairs, [place + 0.18] * len(difference.pairs), "o", color=BLUE, alpha=0.35, markersize=3)
        bar = None if difference.half is None else [difference.half]
        axes.errorbar([difference.value], [place], xerr=bar, fmt="o", color=BLUE, markersize=5, capsize=3)
    axes.set_yticks(range(len(found)), [plain(each.name) for each, _ in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    over = f"mean and 95% interval over {len(ablation.seeds)} seeds" if len(ablation.seeds) > 1 else "one seed"
    axes.set_xlabel(f"difference of validation loss (nats per token): {over}")
    axes.set_title(plain(f"{ablation.path.stem}, {ablation.budget}: against {ablation.reference}"))
    tidy(axes)
    for picture in pictures:
        save_figure(figure, picture)
    return True
