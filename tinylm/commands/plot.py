"""Plots runs together: `tinylm plot runs/*`.

Curves against steps, tokens, FLOPs or time; or, if --x names a config entry, a metric of each run against it, with
error bars: `tinylm plot runs/* --x model.optimizer.lr --y val/loss`; two entries give a heat map. Runs that differ
only in seeds, names, devices or logging are drawn as mean and standard deviation.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinylm.console import Mode, Parser
from tinylm.errors import ConfigError, DataError, did_you_mean, notice
from tinylm.runs.compare import find_runs
from tinylm.runs.curves import AXES, COUNTERS, read_curves
from tinylm.runs.lineage import unknown_parents
from tinylm.runs.plots import PANELS, SUFFIXES, Curves, draw, find_panel, save_figure
from tinylm.runs.sweep import TAKE, read_sweep
from tinylm.targets import PICTURE, check_target

PLOT = Path("curves.png")
USUAL = ("loss", "lr", "grad_norm", "throughput")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options."""
    names = ", ".join(PANELS)
    modes = [
        Mode("with a config entry as --x", ("--panels", "--smooth"), lambda options: not is_axis(options.x)),
        Mode("with an axis of curves as --x", ("--y", "--take"), lambda options: is_axis(options.x)),
        Mode("with two entries as --x", ("--log", "--each-seed"), lambda options: len(options.x) == 2),
    ]
    parser = Parser("plot", __doc__, modes)
    parser.add_argument("runs", nargs="*", default=["runs"], help="run folders, or folders of runs (default: runs)")
    parser.add_argument("--out", nargs="+", type=Path, default=[PLOT],
                        help="files to write, .png, .svg or .pdf (default: curves.png)")  # fmt: skip
    parser.add_overwrite_option()
    parser.add_argument("--x", nargs="+", metavar="X", default=["steps"],
                        help=f"x axis of curves: {', '.join(AXES)}; or a config entry, such as model.optimizer.lr or "
                             "lr; or two, for a heat map (default: steps)")  # fmt: skip
    parser.add_argument("--y", metavar="METRIC", default="val/loss",
                        help="with a config entry as --x: a column of metrics.csv (default: %(default)s)")  # fmt: skip
    parser.add_argument("--take", choices=TAKE,
                        help="with a config entry as --x: which value of each run to take "
                             "(default: the lowest of losses, the highest of accuracies, else the last)")  # fmt: skip
    parser.add_argument("--panels", nargs="+", metavar="PANEL", default=[],
                        help=f"panels of curves, the first one large: {names}; a column of metrics.csv; or several "
                             "columns in one panel, such as gradients or 'activations/*.std' "
                             f"(default: {' '.join(USUAL)})")  # fmt: skip
    parser.add_argument("--smooth", type=float, default=0.0,
                        help="exponential smoothing of training curves, from 0 (none) to below 1 "
                             "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--log", nargs="+", choices=["x", "y", "none"],
                        help="logarithmic axes (default: none; with a config entry as --x: x if its values are spaced "
                             "by ratio)")  # fmt: skip
    parser.add_argument("--each-seed", action="store_true", help="draw runs that differ only in their seed one by one")
    parser.add_argument("--title", default="", help="title of the plot")
    parser.add_theme_option()
    options = parser.parse(arguments)
    check(options)
    return options


def is_axis(names: Sequence[str]) -> bool:
    """Whether --x is an axis of curves."""
    return len(names) == 1 and names[0] in AXES


def check(options: argparse.Namespace) -> None:
    """Refuses invalid options."""
    for path in options.out:
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"--out {path}: must end in .png, .svg or .pdf (runs come before the options)")
        check_target(path, PICTURE, options.overwrite or options.out == [PLOT])
    if len(options.x) > 2 or (len(options.x) == 2 and ({*options.x} & {*AXES} or len({*options.x}) == 1)):
        raise ConfigError(f"--x {' '.join(options.x)}: must be one of {', '.join(AXES)}, or one or two config entries "
                          "(runs come before the options)")  # fmt: skip
    if options.log is not None and "none" in options.log and len(options.log) > 1:
        raise ConfigError("--log none: means that no axis is logarithmic; leave out the others")
    if not 0 <= options.smooth < 1:
        raise ConfigError(f"--smooth must be in [0, 1), got {options.smooth}")


def run(arguments: list[str]) -> None:
    """Writes the plots."""
    options = parse(arguments)
    folders = find_runs(options.runs)
    (draw_curves if is_axis(options.x) else draw_sweep)(folders, options)
    print(f"{len(folders)} run{'s' * (len(folders) > 1)}: {', '.join(map(str, options.out))}")


def draw_curves(folders: Sequence[Path], options: argparse.Namespace) -> None:
    """Draws the curves of runs."""
    (axis,) = options.x
    curves, remarks = read_curves(folders, axis, join_seeds=not options.each_seed, smooth=options.smooth)
    panels = check_panels(options.panels, curves)
    empty = [each for each in curves if not any(find_panel(name, each.columns) for name in panels)]
    remarks += [f"{each.label}: has no metric of these panels; left out" for each in empty]
    for remark in [*remarks, *(unknown_parents(folders) if axis in COUNTERS else [])]:
        notice(remark)
    draw(curves, options.out, title=options.title, axis=AXES[axis], panels=panels, log=options.log or ())


def draw_sweep(folders: Sequence[Path], options: argparse.Namespace) -> None:
    """Draws a metric against one or two config entries."""
    from tinylm.runs.sweep_plots import draw_lines, draw_maps

    sweep = read_sweep(folders, options.x, options.y, options.take, join=not options.each_seed)
    for remark in sweep.left_out:
        notice(remark)
    if len(options.x) == 2:
        figure = draw_maps(sweep, title=options.title)
    else:
        figure = draw_lines(sweep, title=options.title, log=options.log)
    for path in options.out:
        save_figure(figure, path)


def check_panels(asked: list[str], curves: Sequence[Curves]) -> list[str]:
    """The panels to draw: those requested, or the usual ones for which there are metrics."""
    measured = list(dict.fromkeys(column for each in curves for column in each.columns))
    partial = {column for each in curves for column in each.partial}
    shown = [name for name in PANELS if find_panel(name, measured)]
    kinds = [name.partition("/")[0] for name in measured if not name.startswith(("train/", "val/", "perf/", "lr"))]
    available = ", ".join([*shown, *dict.fromkeys(kinds)]) or "none"
    for name in asked:
        if not find_panel(name, measured):
            if find_panel(name, partial):
                raise DataError(f"--panels {name}: not all averaged runs have this metric; use --each-seed")
            hint = did_you_mean(name, [*PANELS, *measured])
            if hint and name not in PANELS:
                raise ConfigError(f"--panels {name}: no such panel{hint}")
            raise DataError(f"--panels {name}: no run has this metric; available: {available}")
    usual = [name for name in USUAL if name in shown]
    if not asked and not usual:
        raise DataError(f"no run has {', '.join(USUAL)}; choose --panels from {available}")
    return asked or usual
