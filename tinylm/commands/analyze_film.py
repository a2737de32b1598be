"""Shows how attention develops over training: an HTML page with a slider over the checkpoints of a run.

tinylm analyze film --model runs/small                       # writes analysis/film.html
tinylm analyze film --model runs/small --frames 6 --text my.txt --out film.html

The run must have kept several checkpoints: docs/analysis-pictures.md has the lines of the config.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tinylm.console import Parser, check_at_least
from tinylm.errors import ConfigError, MissingInputError
from tinylm.files import write_text
from tinylm.targets import FileKind, check_target

FOLDER = Path("analysis")
FILM = FileKind("a film", rb"<!doctype html>\n<!-- tinylm: attention over training -->")


def run(arguments: list[str]) -> None:
    """Writes the page and prints the steps."""
    options = parse(arguments)

    from tinylm.adapt.average import KEEP_ALL, checkpoints_by_step
    from tinylm.analysis.film import page, spaced, take_frame
    from tinylm.bundle import load
    from tinylm.commands.analyze import make_subject

    found = checkpoints_by_step(options.model)
    if len(found) < 2:
        raise MissingInputError(f"{options.model}: has checkpoints of {len(found)} steps, a film needs 2; {KEEP_ALL}")
    subject = make_subject(options)
    device = subject.model.embedding.weight.device
    frames = []
    for step in spaced(found, options.frames):
        model, _ = load(found[step], device=str(device))
        frames.append(take_frame(step, model, subject.beginning(), replace(subject, model=model).sequences()))
        print(f"step {step:,}: loss {frames[-1].loss:.4f}")
    words = [subject.words[token] for token in subject.beginning()[0][0].tolist()]
    write_text(options.out, page(frames, words, subject.name))
    print(options.out)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options and checks them before a model is loaded."""
    parser = Parser("analyze film", __doc__)
    add = parser.add_argument
    add("--model", help="run folder with several checkpoints", required=True)
    parser.add_trust_option()
    add("--frames", type=int, default=12, help="largest number of checkpoints, denser at the beginning of training")
    add("--text", type=Path, help="UTF-8 text file, read as one document (default: held-out stories of the run)")
    add("--tokens", type=int, default=24, help="tokens shown in the maps")
    add("--rows", type=int, default=32, help="largest number of sequences for loss and scores")
    add("--out", type=Path, default=FOLDER / "film.html", help="HTML file to write")
    parser.add_overwrite_option()
    parser.add_device_option()
    options = parser.parse(arguments)
    check_at_least(2, options, "frames")
    check_at_least(1, options, "tokens", "rows")
    if not Path(options.model, "checkpoints").is_dir():
        raise ConfigError(f"--model must be a run folder with checkpoints/, got {options.model}")
    if options.out.suffix != ".html":
        raise ConfigError(f"--out must end in .html, got {options.out}")
    check_target(options.out, FILM, options.overwrite or options.out.parent == FOLDER)
    return argparse.Namespace(**vars(options), command="film", length=None, format=())
