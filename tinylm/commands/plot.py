"""Plots runs together: `tinylm plot runs/*`.

Runs that differ only in their seed are drawn as their mean, with a band of one standard deviation.
"""

import argparse
from pathlib import Path

from tinylm.console import Parser
from tinylm.errors import ConfigError, DataError, did_you_mean
from tinylm.runs.compare import find_runs
from tinylm.runs.curves import AXES, read_curves
from tinylm.runs.plots import PANELS, draw
from tinylm.targets import PICTURE, check_target

PLOT = Path("curves.png")
USUAL = ("loss", "lr", "grad_norm", "throughput")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser, names = Parser("plot", __doc__), ", ".join(PANELS)
    parser.add_argument("runs", nargs="*", default=["runs"], help="run folders, or folders of runs (default: runs)")
    parser.add_argument(
        "--out",
        nargs="+",
        type=Path,
        default=[PLOT],
        help="files to write, .png or .svg (default: curves.png)",
    )
    parser.add_overwrite_option()
    parser.add_argument("--x", choices=AXES, default="steps", help="x axis (default: %(default)s)")
    parser.add_argument("--panels", nargs="+", metavar="PANEL", default=[],
                        help=f"panels to draw, the first one large: {names} (default: {' '.join(USUAL)})")  # fmt: skip
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        help="exponential smoothing of training curves, from 0 (none) to below 1 (default: %(default)s)",
    )
    parser.add_argument("--log", nargs="+", choices=["x", "y"], default=[], help="logarithmic axes")
    parser.add_argument("--each-seed", action="store_true", help="draw runs that differ only in their seed one by one")
    parser.add_argument("--title", default="", help="title of the plot")
    options = parser.parse(arguments)
    for path in options.out:
        if path.suffix not in (".png", ".svg"):
            raise ConfigError(f"--out {path}: must end in .png or .svg (runs come before the options)")
        check_target(path, PICTURE, options.overwrite or options.out == [PLOT])
    for name in options.panels:
        if name not in PANELS:
            raise ConfigError(f"--panels {name}: no such panel{did_you_mean(name, PANELS) or f'; choose from {names}'}")
    if not 0 <= options.smooth < 1:
        raise ConfigError(f"--smooth must be in [0, 1), got {options.smooth}")
    return options


def run(arguments: list[str]) -> None:
    """Writes the plots."""
    options = parse(arguments)
    folders = find_runs(options.runs)
    curves = read_curves(folders, options.x, join_seeds=not options.each_seed, smooth=options.smooth)
    panels = check_panels(options.panels, {column for each in curves for column in each.columns})
    draw(curves, options.out, title=options.title, axis=AXES[options.x], panels=panels, log=options.log)
    print(f"{len(folders)} run{'s' * (len(folders) > 1)}: {', '.join(map(str, options.out))}")


def check_panels(asked: list[str], measured: set[str]) -> list[str]:
    """The panels to draw: those requested, or the usual ones for which there are metrics."""
    shown = [name for name in PANELS if measured & {*PANELS[name][1:]}]
    for name in asked:
        if name not in shown:
            raise DataError(f"--panels {name}: no run has this metric; available: {', '.join(shown) or 'none'}")
    usual = [name for name in USUAL if name in shown]
    if not asked and not usual:
        raise DataError(f"no run has {', '.join(USUAL)}; choose --panels from {', '.join(shown) or 'none'}")
    return asked or usual
