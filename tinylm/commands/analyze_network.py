"""Draws a network: its parts with their shapes, parameters and FLOPs, read from the modules.

tinylm analyze network -c small                              # a config by name or path, with options of `tinylm fit`
tinylm analyze network -c small --model.network.num_kv_heads 2 --vocab-size 1486
tinylm analyze network --model runs/small --out small.pdf    # a run, a model folder or a checkpoint

An SVG follows the reader's choice of a light or dark page.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.commands.fit_check import check_options
from tinylm.commands.train import announced_configs
from tinylm.console import Mode, Parser, announce_model, check_at_least
from tinylm.errors import ConfigError, MissingInputError, notice
from tinylm.targets import PICTURE, check_target

if TYPE_CHECKING:
    from tinylm.model import TransformerLM

FOLDER = Path("analysis")
OF_FIT = ("--model.", "--data.", "--trust")
SUFFIXES = (".svg", ".png", ".pdf")
MODES = [
    Mode("with --model", ("-c", "--config", "--vocab-size"), lambda options: options.model is not None),
    Mode("without --model (fit's --trust NAME does)", ("--trust-code",), lambda options: options.model is None),
    Mode("with an SVG, which has both themes", ("--theme",), lambda options: options.out.suffix == ".svg"),
]


def run(arguments: list[str]) -> None:
    """Writes the drawing and prints the totals."""
    options, words = parse(arguments)
    title, model = described(options, words) if options.model is None else loaded(options.model)

    from tinylm.analysis.network import read_network
    from tinylm.analysis.network_drawing import draw_network

    network = read_network(model)
    draw_network(network, title).save(options.out)
    print(f"{title}: {network.parameters:,} parameters, {network.flops:,} FLOPs per token of training")
    print(options.out)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Reads the options of this command, and returns with them those of `fit`."""
    ours, theirs = split(arguments)
    parser = Parser("analyze network", __doc__, MODES)
    add = parser.add_argument
    add(
        "-c",
        "--config",
        action="append",
        default=[],
        help="config by name or path; later ones override (default: small)",
    )
    add("--vocab-size", type=int, help="number of tokens (default: bpe:SIZE counts in full, others are read)")
    add("--model", help="run folder, model folder or checkpoint, or storyteller (default: the config of -c)")
    parser.add_trust_option()
    add("--out", type=Path, default=FOLDER / "network.svg", help=f"file to write: {', '.join(SUFFIXES)}")
    parser.add_overwrite_option()
    parser.add_theme_option()
    options = parser.parse(ours)
    check_at_least(1, options, "vocab_size")
    if options.out.suffix not in SUFFIXES:
        raise ConfigError(f"--out must end in one of {', '.join(SUFFIXES)}, got {options.out}")
    if options.model is not None and theirs:
        raise ConfigError(f"{theirs[0]}: does not work with --model; leave it out")
    check_target(options.out, PICTURE, options.overwrite or options.out.parent == FOLDER)
    return options, theirs


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Divides a command line into the options of this command and those of `tinylm fit`.

    >>> split(["-c", "tiny", "--model.network.num_layers", "2", "--trust", "mla", "--trust-code"])
    (['-c', 'tiny', '--trust-code'], ['--model.network.num_layers', '2', '--trust', 'mla'])
    """
    ours: list[str] = []
    theirs: list[str] = []
    value = False
    for word in arguments:
        of_fit = value or (word.startswith(OF_FIT) and word != "--trust-code")
        (theirs if of_fit else ours).append(word)
        value = not value and of_fit and "=" not in word
    return ours, theirs


def described(options: argparse.Namespace, words: list[str]) -> tuple[str, "TransformerLM"]:
    """The name and the network of a config, without values."""
    configs = options.config or ["small"]
    words = announced_configs([*(word for each in configs for word in ("-c", each)), *words], default=None)
    check_options("fit", words)

    from tinylm.experiments.workload import read_workload
    from tinylm.model.size import empty_model
    from tinylm.plugins import trust
    from tinylm.training.options import trusted_modules

    trust(trusted_modules(words))
    try:
        workload = read_workload(words, options.vocab_size, read_data=False, devices=1)
    except MissingInputError as error:
        hint = "" if options.vocab_size else "; with --vocab-size no data are read"
        raise MissingInputError(f"{error}{hint}") from error
    for sentence in workload.assumed:
        notice(f"assumed: {sentence.replace(' (--read-data counts them)', ' (--vocab-size takes another)')}")
    return " + ".join(Path(each).stem for each in configs), empty_model(workload.network)


def loaded(given: str) -> tuple[str, "TransformerLM"]:
    """The name and the network of a trained model."""
    path, found = announce_model(given)

    import tinylm

    return Path(path).resolve().name, tinylm.load(found)[0]
