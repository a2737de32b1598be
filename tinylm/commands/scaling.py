"""Measures a scaling law: tinylm scaling --out runs/scaling

It trains networks of several widths with several budgets of computation, fits the loss as a function of parameters and
tokens, and checks the law on budgets that were not fitted. The entropy of the text must be known, so that
the floor of the law need not be fitted. Without options it repeats the study of the documentation, in about an hour on
one core. After an interruption, the same command continues.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.console import Parser, check_at_least, plural
from tinylm.errors import ConfigError, notice
from tinylm.targets import FolderKind, check_target

if TYPE_CHECKING:
    from tinylm.experiments.grid import Result

FOLDER = FolderKind(
    "a scaling study",
    frozenset((".lock", ".writer", "results.jsonl", "predictions.json", "law.json", "scaling.json",
               "scaling.md", "isoflops.png", "frontier.png", "law.png")),
    "results.jsonl",
)  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = Parser("scaling", __doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the results; an existing study is continued")
    add("--corpus", default="stories:100000", help="stories:N or a *.grammar.yaml:N (default: %(default)s)")
    add("--tokenizer", default="bpe:2048", help="as data.tokenizer (default: %(default)s)")
    add("--context", type=int, default=128, help="tokens in a window (default: %(default)s)")
    add("--batch-size", type=int, default=4, help="windows in a step (default: %(default)s)")
    add("--widths", type=int, nargs="+", default=[32, 48, 64, 96, 128, 192], metavar="D",
        help="widths of the networks (default: 32 to 192)")  # fmt: skip
    add("--layers", type=int, default=2, help="blocks of the networks (default: %(default)s)")
    add("--budgets", type=float, nargs="+", default=[2.5e11, 4.5e11, 8e11, 1.5e12, 5e12], metavar="C",
        help="FLOPs of the runs that are fitted (default: 2.5e11 4.5e11 8e11 1.5e12 5e12)")  # fmt: skip
    add("--held-out", type=float, nargs="+", default=[6e11, 2.4e12], metavar="C",
        help="FLOPs of runs that are not fitted, to check the recommended size (default: 6e11 2.4e12)")  # fmt: skip
    add("--largest", type=float, nargs="+", default=[1.2e13], metavar="C",
        help="FLOPs of single, larger runs, whose loss is predicted (default: 1.2e13)")  # fmt: skip
    add("--steps", type=int, nargs=2, default=(250, 4000), metavar=("LEAST", "MOST"),
        help="least and most steps of a run of the grid (default: 250 4000)")  # fmt: skip
    add("--plateau", type=float, default=0.3, metavar="NATS",
        help="do not fit runs that end this far above the floor (default: %(default)s)")  # fmt: skip
    add("--val-tokens", type=int, default=1 << 16, help="validation tokens (default: %(default)s)")
    add("--seed", type=int, default=1, help="seed of weights and order (default: %(default)s)")
    add("--seeds", type=int, default=3,
        help="runs of each size and budget, from --seed on (default: %(default)s)")  # fmt: skip
    add("--held-out-seeds", type=int, nargs="+", metavar="SEEDS",
        help="the same for --held-out: one number, or one for each budget (default: as --seeds)")  # fmt: skip
    parser.add_theme_option()
    options = parser.parse(arguments)
    check(options)
    return options


def check(options: argparse.Namespace) -> None:
    """Refuses invalid options."""
    check_at_least(1, options, "seeds", "layers", "context", "batch_size", "val_tokens")
    check_at_least(0, options, "seed")
    options.held_out_seeds = options.held_out_seeds or [options.seeds]
    for name, values in (
        ("widths", options.widths),
        ("steps", options.steps),
        ("held-out-seeds", options.held_out_seeds),
    ):
        if min(values) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {min(values)}")
    if len(options.held_out_seeds) == 1:
        options.held_out_seeds *= len(options.held_out)
    if len(options.held_out_seeds) != len(options.held_out):
        numbers = f"{len(options.held_out_seeds)} numbers for {plural(len(options.held_out), 'budget')}"
        raise ConfigError(f"--held-out-seeds takes one number, or one for each budget of --held-out, got {numbers}")
    budgets = [*options.budgets, *options.held_out, *options.largest]
    if not 0 < min(budgets) <= max(budgets) < float("inf"):
        raise ConfigError(f"--budgets must be positive numbers of FLOPs, got {min(budgets):g}")
    if twice := sorted({each for each in budgets if budgets.count(each) > 1}):
        raise ConfigError(f"--held-out {twice[0]:g}: is given twice; a budget is either fitted or held out")


def run(arguments: list[str]) -> None:
    """Measures, fits, predicts and reports."""
    options = parse(arguments)
    check_target(options.out, FOLDER, overwrite=True)

    from tinylm.experiments.plain_run import Texts
    from tinylm.experiments.scaling import Study, measure
    from tinylm.experiments.scaling_report import short_table, write_report

    texts = Texts(
        options.corpus, options.tokenizer, options.context, options.batch_size, options.val_tokens, options.seed
    )
    study = Study(
        texts, options.widths, options.budgets, options.held_out, options.held_out_seeds, options.largest,
        options.seed, options.seeds, tuple(options.steps), options.plateau, options.layers,
    )  # fmt: skip
    measured = measure(study, options.out, announce)
    print(short_table(write_report(study, *measured, options.out)))
    notice(f"report: {options.out / 'scaling.md'}")


def announce(result: "Result") -> None:
    """Prints a line for a run that has ended."""
    size = f"{result.budget:g} FLOPs, {result.params:,} parameters, {result.tokens:,} tokens"
    notice(
        f"{size}: loss {result.loss:.4f}, {result.loss / result.floor - 1:.1%} above the floor, {result.seconds:g} s"
    )
