"""Trains the variants of an ablation and compares them: `tinylm ablate positions`.

The file names a base config, variants of it, seeds and a budget (docs/ablations.md). After an interruption,
the same command continues: finished runs are kept, unfinished ones resume. It writes table.md, table.csv and the
picture of the differences, ablation.png and .svg, into the folder of the runs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinylm.commands.fit_check import check_options
from tinylm.console import Mode, Parser, check_at_least
from tinylm.errors import ConfigError, DataError, did_you_mean, notice
from tinylm.experiments.ablation import Ablation, find_ablation, read_ablation, run_name
from tinylm.experiments.check import check_variants
from tinylm.experiments.export import KINDS, WANDB, Task, exported, usage
from tinylm.experiments.lengths import known_lengths, plan_lengths
from tinylm.experiments.results import read_results
from tinylm.experiments.runner import raise_failures, run_trials
from tinylm.experiments.table import as_csv, as_markdown, as_text, summarize
from tinylm.experiments.trials import Trial, state
from tinylm.files import make_folder, write_text
from tinylm.locate import command
from tinylm.targets import FileKind, check_target

TABLE, CSV, PICTURES = "table.md", "table.csv", ("ablation.png", "ablation.svg")
OURS = FileKind("an export", rb".*written by tinylm ablate --export")

OPTIONS: dict[str, dict[str, Any]] = {
    "--out": dict(type=Path, help="folder of the runs and the table (default: runs/ and the file's name)"),
    "-c --config": dict(action="append", default=[], metavar="CONFIG",
                        help="a further config for all variants, such as overlays/bf16.yaml; may be repeated"),
    "--trust": dict(action="append", default=[], metavar="MODULE",
                    help="a module of yours whose classes the configs may name; may be repeated"),
    "--jobs": dict(type=int, default=1, help="runs at a time, each with its share of the GPUs or cores (default: 1)"),
    "--trial --run.name": dict(dest="trial", metavar="TRIAL",
                               help="train this run alone: its number from 0, or its name (default: train all)"),
    "--table": dict(action="store_true", help="train nothing; write the table of the finished runs"),
    "--no-times": dict(action="store_true", help="leave tokens/s and time out of the tables"),
    "--export": dict(choices=KINDS, help="train nothing; write a W&B sweep, a SLURM array or a script for Ray Tune, "
                                         "whose tasks are the runs"),
}  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options."""
    modes = [
        Mode("with --export", ("--jobs", "--trial", "--table", "--no-times", "--theme")),
        Mode("with --table", ("--jobs", "--trial")),
        Mode("with --trial", ("--jobs", "--no-times")),
        Mode("without --export", ("--overwrite",)),
    ]
    parser = Parser("ablate", __doc__, modes)
    parser.add_argument("file", help="the ablation: a YAML file, or a name in configs/ablations")
    for names, settings in OPTIONS.items():
        parser.add_argument(*names.split(), **settings)
    parser.add_overwrite_option()
    parser.add_theme_option()
    options = parser.parse(arguments)
    check_at_least(1, options, "jobs")
    return options


def run(arguments: list[str]) -> None:
    """Runs the ablation, or one of its runs, and writes the results."""
    options = parse(arguments)
    ablation = read_ablation(find_ablation(options.file), options.config)
    folder = options.out or Path("runs") / ablation.path.stem
    if (folder / "config.yaml").is_file():
        raise ConfigError(f"--out {folder}: is the folder of a run; choose another")
    words = [word for module in options.trust for word in ("--trust", module)]
    names = [run_name(each.name, seed) for seed in ablation.seeds for each in ablation.variants]
    if options.export:
        export(options, ablation, folder, names)
        return
    chosen = chosen_trial(options.trial, names) if options.trial is not None else None
    if options.table:
        known = known_lengths(ablation, folder)
        trials = ablation.trials({each.name: known.get(each.name, 1) for each in ablation.variants})
        for trial in trials:
            state(trial, folder)  # refuses runs of another plan
        write_results(ablation, trials, folder, not options.no_times)
        return
    if len(ablation.seeds) == 1:
        notice(f"{ablation.path}: one seed: the table cannot tell a difference from chance")
    check_variants(ablation, lambda each: check_options("fit", each), words)
    trials = ablation.trials(plan_lengths(ablation, folder, options.jobs, words), words)
    if chosen is not None:
        raise_failures(run_trials([trials[names.index(chosen)]], folder, alone=False))
        return
    outcomes = run_trials(trials, folder, options.jobs)
    write_results(ablation, trials, folder, not options.no_times)
    raise_failures(outcomes)


def chosen_trial(given: str, names: Sequence[str]) -> str:
    """The name of a trial that is given by its number or its name."""
    if given in names:
        return given
    if given.isdecimal() and int(given) < len(names):
        return names[int(given)]
    hint = (
        did_you_mean(given, names) or f"; numbers go from 0 to {len(names) - 1}, names are {', '.join(names[:4])}, ..."
    )
    raise ConfigError(f"--trial {given}: no such run{hint}")


def write_results(ablation: Ablation, trials: Sequence[Trial], folder: Path, times: bool) -> None:
    """Prints the table of the finished runs, and writes it with the picture."""
    results = read_results(trials, folder)
    if not results:
        raise DataError(f"{folder}: has no finished run of {ablation.path}; see {folder / 'logs'}")
    summaries = summarize(ablation, results)
    write_text(folder / TABLE, as_markdown(ablation, summaries, times))
    write_text(folder / CSV, as_csv(summaries, times))
    print(as_text(ablation, summaries, times), flush=True)
    from tinylm.experiments.picture import draw_differences  # NumPy

    drawn = draw_differences(ablation, summaries, [folder / name for name in PICTURES])
    pictures = [folder / name for name in PICTURES] if drawn else []
    notice(f"results: {', '.join(map(str, [folder / TABLE, folder / CSV, *pictures]))}")


def export(options: argparse.Namespace, ablation: Ablation, folder: Path, names: Sequence[str]) -> None:
    """Writes the file for W&B, SLURM or Ray."""
    trust = [word for module in options.trust for word in ("--trust", module)]
    check_variants(ablation, lambda each: check_options("fit", each), trust)
    configs = [word for config in options.config for word in ("--config", config)]
    path = folder / KINDS[options.export]
    make_folder(folder)
    check_target(path, OURS, options.overwrite)
    write_text(path, exported(options.export, Task(ablation, folder, [*configs, *trust], names)))
    print(f"{path}: {len(names)} runs\nto start them: {usage(options.export, path)}")
    if options.export == "wandb" and WANDB not in ablation.base:
        notice(f"the runs log to W&B by {WANDB}; {command('configs', 'wandb')} shows it")
