"""Compares how much a training step changes a network's activations at several widths, with and without muP.

tinylm analyze coordinates -c tiny                                      # the width of the config, and 2 and 4 times it
tinylm analyze coordinates -c tiny --widths 64 128 256 512 --steps 8
tinylm analyze coordinates -c tiny --model.optimizer.name adamw         # options of `tinylm fit`: --model.*, --data.*

With muP (model.network.mup_base_width) the changes do not depend on the width, nor does the best learning rate.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tinylm.commands.fit_check import check_options
from tinylm.commands.train import announced_configs
from tinylm.console import Parser, check_at_least, table
from tinylm.errors import ConfigError
from tinylm.targets import PICTURE, check_target

if TYPE_CHECKING:
    from tinylm.experiments.coordinates import Coordinates

OF_FIT = ("--model.", "--data.")
FOLDER = Path("analysis")
Found = dict[str, "Coordinates"]


def run(arguments: list[str]) -> None:
    """Prints the slopes and draws the changes."""
    ours, theirs = split(arguments)
    parser = Parser("analyze coordinates", __doc__)
    add = parser.add_argument
    add("-c", "--config", action="append", default=[], help="config by name or path; later ones override (tiny)")
    add("--widths", type=int, nargs="+", help="at least two (default: the d_model of the config, and 2 and 4 times it)")
    add("--steps", type=int, default=4, help="optimizer steps, at the config's lr")
    add("--out", type=Path, default=FOLDER, help="output folder")
    parser.add_overwrite_option()
    parser.add_theme_option()
    options = parser.parse(ours)
    check_at_least(1, options, "steps")
    for path in pictures(options.out):
        check_target(path, PICTURE, options.overwrite or options.out == FOLDER)
    words = [word for config in options.config or ["tiny"] for word in ("-c", config)] + theirs
    words = announced_configs(words, default=None)
    check_options("fit", words)
    found = measure(words, options.widths, options.steps)

    from tinylm.experiments.coordinates import draw
    from tinylm.runs.plots import save_figure

    print(report(found))
    for path in pictures(options.out):
        save_figure(draw(found), path)
        print(path)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Divides a command line into the options of this command and those of `tinylm fit`.

    >>> split(["-c", "tiny", "--model.network.num_layers", "2", "--steps", "3", "--data.batch_size=4"])
    (['-c', 'tiny', '--steps', '3'], ['--model.network.num_layers', '2', '--data.batch_size=4'])
    """
    ours: list[str] = []
    theirs: list[str] = []
    value = False
    for word in arguments:
        of_fit = value or word.startswith(OF_FIT)
        (theirs if of_fit else ours).append(word)
        value = not value and of_fit and "=" not in word
    return ours, theirs


def pictures(out: Path) -> list[Path]:
    """The files to write."""
    return [out / f"coordinates{suffix}" for suffix in (".png", ".svg")]


def measure(words: list[str], widths: list[int] | None, steps: int) -> Found:
    """The changes with and without muP, for a network and data by the options of `tinylm fit`."""
    from tinylm.data import TextDataModule
    from tinylm.experiments.coordinates import at_width, check_coordinates
    from tinylm.model import ModelConfig
    from tinylm.optim import OptimizerConfig
    from tinylm.training.options import located_errors
    from tinylm.training.parser import build, make_parser

    config = make_parser("").parse_args(words)
    with located_errors():
        for name in ("init_from", "lora", "freeze", "objective"):
            if config.model[name]:
                raise ConfigError(f"model.{name}: has no effect on the coordinate check; leave it out")
        optimizer = build(OptimizerConfig, config.model.optimizer)
        data = build(TextDataModule, config.data)
        config.model.network.pop("vocab_size", None)
        network = build(ModelConfig, config.model.network, vocab_size=data.vocab_size)
        widths = widths or [network.d_model * factor for factor in (1, 2, 4)]
        if len({*widths}) < 2:
            raise ConfigError(f"--widths: needs at least two different widths, got {' '.join(map(str, widths))}")
        batches = first_batches(data, steps)
        configs = {
            name: [at_width(network, width, mup=mup) for width in sorted({*widths})]
            for name, mup in (("muP", True), ("standard", False))
        }
        return {name: check_coordinates(each, optimizer, batches, steps) for name, each in configs.items()}


def first_batches(data: Any, count: int) -> list[Any]:
    """The first batches of a training run on one device."""
    data.trainer = SimpleNamespace(  # the attributes of a Trainer that the data module reads
        world_size=1, global_rank=0, global_step=0, accumulate_grad_batches=1, val_check_interval=1.0,
        limit_train_batches=1.0, limit_val_batches=1.0, max_steps=count, max_epochs=-1, check_val_every_n_epoch=None,
        state=SimpleNamespace(fn="fit"),
    )  # fmt: skip
    data.setup("fit")
    return [batch for _, batch in zip(range(count), data.train_dataloader(), strict=False)]


def report(found: Found) -> str:
    """A table of changes and slopes for each parametrization, and the verdict."""
    from tinylm.experiments.coordinates import TOLERANCE

    texts = []
    for name, each in found.items():
        rows = [[f"mean change, {name}", *(f"width {width}" for width in each.widths), "slope"]]
        for place, values in each.changes.items():
            rows.append([place, *(f"{value:.3g}" for value in values), f"{each.slopes[place]:+.2f}"])
        place, slope = max(each.slopes.items(), key=lambda pair: abs(pair[1]))
        verdict = f"no slope is steeper than {TOLERANCE}" if each.passes else f"{place} has a slope of {slope:+.2f}"
        texts.append(f"{table(rows)}\n{name}: {'passes' if each.passes else 'fails'}: {verdict}")
    return "\n\n".join(texts)
