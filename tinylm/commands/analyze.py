"""Looks inside a model.

tinylm analyze --model runs/small                          # all of it into a folder, and a summary
tinylm analyze profile --model runs/small                  # parameters, operations, memory
tinylm analyze attention --model runs/small --text my.txt  # where every head looks
tinylm analyze activations|gradients|lens|tokens ...

Without a text it is validation stories where the model was trained on the built-in ones.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.console import Parser, add_model_option, announce_model, pick_device
from tinylm.errors import ConfigError, did_you_mean, notice
from tinylm.files import read_chunks, write_text

if TYPE_CHECKING:
    from tinylm.analysis.report import Subject

COMMANDS = ("profile", "attention", "activations", "gradients", "lens", "tokens")


def make_parser() -> Parser:
    """The options."""
    parser = Parser("analyze", __doc__)
    parser.add_argument("command", nargs="?", help=f"one of {', '.join(COMMANDS)}; without it all of them")
    add_model_option(parser)
    parser.add_argument("--text", type=Path, help="a UTF-8 text file, read as one document")
    parser.add_argument("--out", type=Path, default=Path("analysis"), help="folder of the pictures (%(default)s)")
    parser.add_argument("--length", type=int, help="tokens of a sequence (the context)")
    parser.add_argument("--rows", type=int, default=32, help="sequences to take figures from, at most (%(default)s)")
    parser.add_argument("--tokens", type=int, default=24, help="shown in attention and lens pictures (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto takes the fastest (%(default)s)")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuses what cannot be meant, before the model is loaded."""
    if options.command is not None and options.command not in COMMANDS:
        hint = did_you_mean(options.command, COMMANDS) or f"; it is one of {', '.join(COMMANDS)}"
        raise ConfigError(f"{options.command}: no such subcommand{hint}")
    for name in ("length", "rows", "tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")


def run(arguments: list[str]) -> None:
    """Prints what one subcommand finds; or writes what all of them find, and prints a summary."""
    options = make_parser().parse(arguments)
    check(options)
    subject = make_subject(options)

    from tinylm.analysis.report import REPORTS

    if options.command is not None:
        found = REPORTS[options.command](subject)
        print(found.text)
        for path in found.files:
            print(path)
        return
    for name in COMMANDS:
        try:
            found = REPORTS[name](subject)
        except ConfigError as error:  # a model without gradients still has the rest
            print(f"{name}: left out: {error}")
            continue
        write_text(options.out / f"{name}.txt", found.text + "\n")
        print("\n".join(f"{name}: {line}" for line in found.summary.splitlines()))
    print(f"{options.out}: tables (.txt), pictures (.png, .svg), tokens.html")


def make_subject(options: argparse.Namespace) -> "Subject":
    """Loads model and text.

    Raises:
        ConfigError: without a text, where none is known and one is needed; and for a length beyond the context.
    """
    texts = [] if options.text is None else ["".join(read_chunks(options.text))]
    options.model, found = announce_model(options.model)

    import tinylm
    from tinylm.analysis.report import Subject
    from tinylm.data.held_out import held_out_stories

    model, tokenizer = tinylm.load(found, device=pick_device(options.device))
    context = model.config.max_seq_len
    if options.length is not None and options.length > context:
        raise ConfigError(f"--length must be at most the context, {context}, got {options.length}")
    if options.command != "profile" and not texts:
        # a row from the start of each, and enough behind the last for it to be whole
        texts = held_out_stories(Path(options.model), options.rows + context // 32 + 1)
        if not texts:
            raise ConfigError("--text: missing; give a UTF-8 text file (profile alone needs none)")
        notice(f"text: {len(texts)} validation stories of the run")
    return Subject(
        name=Path(options.model).resolve().name,
        model=model,
        tokenizer=tokenizer,
        texts=texts,
        length=options.length or context,
        rows=options.rows,
        drawn=options.tokens,
        out=options.out,
        color=options.command is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ,
    )
