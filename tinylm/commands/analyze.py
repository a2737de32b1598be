"""Analyzes the inside of a model.

tinylm analyze --model runs/small                          # all analyses into one folder, and a summary
tinylm analyze profile --model runs/small                  # parameters, operations, memory
tinylm analyze attention --model runs/small --text my.txt  # attention maps of every head
tinylm analyze activations|gradients|lens|tokens ...
tinylm analyze embeddings|weights|positions|choices ...
tinylm analyze network -c small --out network.svg          # a drawing of the network
tinylm analyze film --model runs/small                     # attention over the checkpoints of a run, in a browser
tinylm analyze coordinates -c tiny --widths 64 128 256     # the coordinate check of muP: no model, but a config

Without --text, a model trained on the built-in stories is analyzed on held-out ones.
"""

import argparse
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.console import Mode, Parser, announce_model, check_at_least, pick_device, use_color
from tinylm.errors import ConfigError, did_you_mean, notice
from tinylm.files import read_chunks, write_text
from tinylm.targets import PICTURE, FileKind, check_target

if TYPE_CHECKING:
    from tinylm.commands.analyze_report import Subject

PICTURES = {
    "profile": (), "attention": ("attention", "heads"), "activations": ("activations",), "gradients": ("gradients",),
    "lens": ("lens",), "tokens": (), "embeddings": ("embeddings",), "weights": ("weights",),
    "positions": ("positions",), "choices": ("choices",),
}  # fmt: skip
COMMANDS = tuple(PICTURES)
FORMATS = ("png", "svg", "pdf")
OWN_OPTIONS = ("network", "film", "coordinates")  # subcommands of other options
UNUSED = {
    "profile": ("--text", "--rows", "--tokens", "--out", "--overwrite", "--format", "--theme"),
    "activations": ("--tokens",), "gradients": ("--tokens",),
    "embeddings": ("--length", "--tokens"), "weights": ("--text", "--length", "--rows", "--tokens"),
    "positions": ("--tokens",), "choices": ("--length", "--rows", "--tokens"),
    "tokens": ("--length", "--rows", "--tokens", "--out", "--overwrite", "--format", "--theme"),
}  # fmt: skip
MODES = [
    Mode(f"with {name}", unused, lambda options, name=name: options.command == name) for name, unused in UNUSED.items()
]
WITHOUT_TEXT = ("profile", "weights")
FOLDER = Path("analysis")
TABLE = FileKind(
    "an analysis",
    rb" *(?:parameters  |head |layer |part |after |token |matrix |position |(?:colour|in brackets).*token)",
)


def run(arguments: list[str]) -> None:
    """Prints one analysis; or writes all of them to a folder and prints a summary."""
    if arguments and arguments[0] in OWN_OPTIONS:
        return importlib.import_module(f"tinylm.commands.analyze_{arguments[0]}").run(arguments[1:])
    options = parse(arguments)
    subject = make_subject(options)

    from tinylm.commands.analyze_charts import CHARTS
    from tinylm.commands.analyze_report import REPORTS

    reports = REPORTS | CHARTS

    if options.command is not None:
        found = reports[options.command](subject)
        print(found.text, *found.files, sep="\n")
        return
    for name in COMMANDS:
        try:
            found = reports[name](subject)
        except ConfigError as error:  # for example gradients of a quantized model; the other analyses still work
            print(f"{name}: left out: {error}")
            continue
        write_text(options.out / f"{name}.txt", found.text + "\n")
        print("\n".join(f"{name}: {line}" for line in found.summary.splitlines()))
    print(f"{options.out}: tables (.txt), pictures ({', '.join(f'.{each}' for each in options.format)})")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options and checks them before the model is loaded."""
    parser = Parser("analyze", __doc__, MODES)
    add = parser.add_argument
    add("command", nargs="?", help=f"one of {', '.join(COMMANDS)} (default: all)")
    parser.add_model_option()
    add("--text", type=Path, help="UTF-8 text file, read as one document (default: held-out stories of the run)")
    add("--out", type=Path, default=FOLDER, help="output folder")
    add("--format", nargs="+", choices=FORMATS, default=["png", "svg"],
        help="formats of the pictures, png, svg or pdf (default: png svg)")  # fmt: skip
    parser.add_overwrite_option()
    add("--length", type=int, help="tokens per sequence (default: the context)")
    add("--rows", type=int, default=32, help="largest number of sequences for the statistics")
    add("--tokens", type=int, default=24, help="tokens shown in the attention and lens pictures")
    parser.add_theme_option()
    parser.add_device_option()
    options = parser.parse(arguments)
    if options.command not in (None, *COMMANDS):
        hint = did_you_mean(options.command, (*COMMANDS, *OWN_OPTIONS)) or f"; it is one of {', '.join(COMMANDS)}"
        raise ConfigError(f"{options.command}: no such subcommand{hint}")
    check_at_least(1, options, "length", "rows", "tokens")
    for path, kind in targets(options.command, options.out, options.format):
        check_target(path, kind, options.overwrite or options.out == FOLDER)
    return options


def targets(chosen: str | None, out: Path, formats: Sequence[str]) -> Iterator[tuple[Path, FileKind]]:
    """The files that a command writes."""
    for name in COMMANDS if chosen is None else (chosen,):
        yield from ((out / f"{picture}.{suffix}", PICTURE) for picture in PICTURES[name] for suffix in formats)
        if chosen is None:
            yield out / f"{name}.txt", TABLE


def make_subject(options: argparse.Namespace) -> "Subject":
    """Loads the model and the texts."""
    texts = [] if options.text is None else ["".join(read_chunks(options.text))]
    given, found = announce_model(options.model)

    import tinylm
    from tinylm.commands.analyze_report import Subject
    from tinylm.data.held_out import corpus_of, held_out_stories

    model, tokenizer = tinylm.load(found, device=pick_device(options.device))
    context = model.config.max_seq_len
    if options.length is not None and options.length > context:
        raise ConfigError(f"--length must be at most the context, {context}, got {options.length}")
    if options.command not in WITHOUT_TEXT and not texts:
        # one story begins each row; the others, of 32 tokens and more, fill up the last row
        texts = held_out_stories(Path(given), options.rows + context // 32 + 1)
        if not texts and options.command == "choices":
            corpus = corpus_of(Path(given)) or "a corpus that is not known here"
            raise ConfigError(
                f"choices: {given} was trained on {corpus}, whose true probabilities are unknown; give a run on stories"
            )
        if not texts:
            raise ConfigError("--text: missing; give a UTF-8 text file (profile and weights need none)")
        notice(f"text: {len(texts)} validation stories of the run")
    return Subject(
        name=Path(given).resolve().name,
        model=model,
        tokenizer=tokenizer,
        texts=texts,
        length=options.length or context,
        rows=options.rows,
        shown=options.tokens,
        out=options.out,
        formats=options.format,
        color=options.command is not None and use_color(),
    )
