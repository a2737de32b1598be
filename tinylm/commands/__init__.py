"""The command line: `tinylm COMMAND ...`, one file a command.

`scripts/train.py` and its neighbours are the same commands, for who works in a clone. A command's file has
`run(arguments)`, which raises what goes wrong; it is imported when the command is called, and imports PyTorch when it
needs it, so that help and mistakes are answered at once.
"""

import importlib
import sys
from typing import NamedTuple

from tinylm.console import exit_code, prepare_process
from tinylm.errors import ConfigError, did_you_mean


class Command(NamedTuple):
    """A command: the module that has it, and one line on what it does."""

    module: str
    summary: str


GROUPS = {
    "Train": {
        "configs": Command("configs", "list the configs that come with tinylm; show or copy one"),
        "fit": Command("train", "train a model; --resume goes on after a stop"),
        "validate": Command("train", "loss of a run's best checkpoint on the validation part"),
        "test": Command("train", "the same on the test part"),
        "predict": Command("train", "log probability of every token of a text, as JSON lines"),
    },
    "Use": {
        "generate": Command("generate", "continue a prompt, or --interactive: ask for prompts"),
        "score": Command("score", "perplexity and bits per byte of a text; exact match of answers"),
    },
    "Adapt and export": {
        "prepare": Command("prepare", "write data sets: questions, summaries, tinystories"),
        "quantize": Command("quantize", "write a model in 8 or 4 bits"),
        "export": Command("export", "convert to and from Hugging Face transformers"),
    },
    "Understand": {
        "plot": Command("plot", "learning curves of runs, drawn over each other"),
        "compare": Command("compare", "runs in one table: loss, time, spread over seeds"),
        "analyze": Command("analyze", "inside a model: attention, activations, logit lens, cost"),
        "tokenizer": Command("tokenizer", "train a tokenizer, see how it splits a text, convert it"),
        "train-numpy": Command("train_numpy", "fit without PyTorch's autograd: every gradient by hand"),
        "compare-numpy": Command("compare_numpy", "PyTorch and the NumPy twin, layer by layer"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def overview() -> str:
    """One screen: all commands, in the order in which one needs them."""
    lines = [
        "tinylm trains small language models, from raw text to a model that speaks.",
        "",
        "    tinylm fit -c tiny      train a small model on the built-in stories, in about a minute",
        "    tinylm generate         hear what it has learned",
    ]
    for title, group in GROUPS.items():
        lines += ["", title]
        lines += [f"    {name:16}{command.summary}" for name, command in group.items()]
    return "\n".join([*lines, "", "tinylm COMMAND --help explains a command; --debug shows where one fails."])


def run_command(name: str, arguments: list[str]) -> int:
    """Runs one command in this process.

    Args:
        name: of `COMMANDS`
        arguments: what follows it

    Returns:
        the exit code
    """
    module = COMMANDS[name].module

    def run(words: list[str]) -> int | None:
        found = importlib.import_module(f"tinylm.commands.{module}")
        return found.run([name, *words] if module == "train" else words)  # which has four commands

    return exit_code(run, arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs what the command line says.

    Args:
        arguments: the words behind `tinylm`; None: this process's

    Returns:
        the exit code
    """
    prepare_process()
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if words and words[0] in COMMANDS:
        return run_command(words[0], words[1:])
    return exit_code(_show, words)


def _show(words: list[str]) -> None:
    """What stands for itself: the overview, the version, or that there is no such command."""
    from tinylm import __version__

    name = words[0] if words else "--help"
    if name in ("--help", "-h", "help"):
        print(overview())
    elif name in ("--version", "-V"):
        print(f"tinylm {__version__}")
    else:
        raise ConfigError(f"{name}: no such command{did_you_mean(name, COMMANDS) or '; tinylm --help lists them'}")
