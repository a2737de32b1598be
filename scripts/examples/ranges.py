"""Measures hyperparameters from one end of their range to the other, and draws a picture of each.

    python scripts/examples/ranges.py --out runs/ranges.jsonl                    # 34 runs, ten minutes of one core
    python scripts/examples/ranges.py --out runs/ranges.jsonl --draw docs/ranges

Every run trains the network of `tiny` on the built-in stories, for 400 steps of 8 x 128 tokens with Muon, and differs
from the others in one setting. A run is one line of the output file. Runs that the file has are not repeated, so an
interrupted measurement continues where it stopped.
"""

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tinylm.errors import NumericError
from tinylm.experiments.plain_run import Texts, measure
from tinylm.model import ModelConfig
from tinylm.optim import OptimizerConfig, ScheduleConfig
from tinylm.runs.plots import save_figure
from tinylm.runs.style import new_figure, style

CONTEXT, TOKENS = 128, 400 * 8 * 128  # of a row, and of a whole run


class Setting(NamedTuple):
    """The settings that differ between runs."""

    lr: float = 0.01
    batch: int = 8  # rows of a step
    width: int = 96
    layers: int = 2
    heads: int = 4
    dropout: float = 0.0
    warmup: int = 20  # steps


class Range(NamedTuple):
    """A hyperparameter, the values to measure, and the names of its axis."""

    label: str
    values: tuple[float, ...]
    logarithmic: bool = True


RANGES = {
    "lr": Range("learning rate of Muon", (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)),
    "batch": Range("batch: rows of 128 tokens, of equally many in all", (1, 2, 4, 8, 16, 32, 64)),
    "width": Range("width d_model", (16, 32, 64, 96, 128, 192)),
    "layers": Range("layers", (1, 2, 3, 4, 6)),
    "heads": Range("heads in each layer of width 96", (1, 2, 4, 8, 16)),
    "dropout": Range("dropout", (0.0, 0.05, 0.1, 0.2, 0.4), logarithmic=False),
    "warmup": Range("warmup steps of 400", (0, 5, 20, 80, 200, 399), logarithmic=False),
}


@cache
def texts(batch: int) -> Texts:
    """The stories in steps of `batch` rows."""
    return Texts("stories", "bpe:2048", CONTEXT, batch, val_tokens=1 << 15, seed=0)


def run(setting: Setting, seed: int) -> dict[str, Any]:
    """Trains and evaluates a network; the loss of a run that diverges is None."""
    data = texts(setting.batch)
    network = ModelConfig(
        vocab_size=data.data.vocab_size, d_model=setting.width, num_layers=setting.layers, num_heads=setting.heads,
        max_seq_len=CONTEXT, dropout=setting.dropout,
    )  # fmt: skip
    optimizer = OptimizerConfig(name="muon", lr=setting.lr, weight_decay=0.1, momentum=0.9)
    schedule = ScheduleConfig(name="linear", warmup_steps=setting.warmup, min_lr=0.0)
    try:
        found = measure(data, network, optimizer, schedule, TOKENS // (setting.batch * CONTEXT), seed)
    except NumericError:
        return {**setting._asdict(), "seed": seed, "loss": None}
    return {**setting._asdict(), "seed": seed, **found._asdict()}


def read(path: Path) -> dict[tuple[Setting, int], dict[str, Any]]:
    """The runs of a file."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        values = json.loads(line)
        found[Setting(**{name: values[name] for name in Setting._fields}), values["seed"]] = values
    return found


@style()
def draw(name: str, known: dict[tuple[Setting, int], dict[str, Any]], seeds: int, folder: Path) -> None:
    """Draws the loss against one hyperparameter: a point for each run, a line through the means."""
    figure = new_figure(5, 3.2)
    axis = figure.subplots()
    found = RANGES[name]
    losses = {
        value: [known[Setting()._replace(**{name: value}), seed]["loss"] for seed in range(seeds)]
        for value in found.values
    }
    whole = {value: [each for each in those if each is not None] for value, those in losses.items()}
    axis.plot([*whole], [sum(those) / len(those) if those else float("nan") for those in whole.values()], "-")
    points = [(value, loss) for value, those in whole.items() for loss in those]
    axis.plot(*zip(*points, strict=True), "o", ms=4)
    for value, those in whole.items():
        if len(those) < seeds:
            axis.annotate("diverges", (value, 0.5), xycoords=("data", "axes fraction"), rotation=90, ha="center")
    floor = next(each["floor"] for each in known.values() if each["loss"] is not None)
    axis.axhline(floor, ls="--", color="gray")
    axis.annotate("best possible", (1, floor), xycoords=("axes fraction", "data"), ha="right", va="top", fontsize=8)
    axis.set_ylim(bottom=floor - 0.1 * (axis.get_ylim()[1] - floor))
    axis.axvline(getattr(Setting(), name), ls=":", color="gray")
    axis.set(xlabel=found.label, ylabel="validation loss, nats per token")
    if found.logarithmic:
        axis.set_xscale("log")
        axis.set_xticks(found.values, [f"{value:g}" for value in found.values])
        axis.minorticks_off()
    save_figure(figure, folder / f"{name}.png")


def main() -> None:
    """Measures what the file lacks, prints a table, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file of the runs, JSON lines")
    parser.add_argument("--only", choices=RANGES, nargs="+", default=[*RANGES], help="hyperparameters to measure")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each value (default: %(default)s)")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="folder of the pictures")
    options = parser.parse_args()
    known = read(options.out)
    for seed in range(options.seeds):
        for name in options.only:
            for value in RANGES[name].values:
                setting = Setting()._replace(**{name: value})
                if (setting, seed) in known:
                    continue
                known[setting, seed] = run(setting, seed)
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(known[setting, seed]) + "\n")
                print(f"{name} {value:g}, seed {seed}: {known[setting, seed]['loss']}", flush=True)
    for name in options.only:
        print(name)
        for value in RANGES[name].values:
            each = [known[Setting()._replace(**{name: value}), seed] for seed in range(options.seeds)]
            losses = "  ".join("diverges" if run["loss"] is None else f"{run['loss']:.4f}" for run in each)
            print(f"  {value:<8g} {losses}  {max(run.get('seconds', 0) for run in each):.0f} s")
        if options.draw is not None:
            options.draw.mkdir(parents=True, exist_ok=True)
            draw(name, known, options.seeds, options.draw)


if __name__ == "__main__":
    main()
