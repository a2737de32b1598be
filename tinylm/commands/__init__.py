"""The command line, `tinylm COMMAND ...`: one file per command.

`scripts/train.py` and its neighbours run the same commands from a clone. The module of a command has a function
`run(arguments)`, which raises its errors. It is imported when the command is called, and imports PyTorch only when
needed, so that help and error messages appear at once.
"""

import gc
import importlib
import sys

from tinylm.console import exit_code, prepare_process
from tinylm.errors import ConfigError, did_you_mean
from tinylm.signals import SIGNALS, raised

GROUPS = {  # name: module, summary
    "Train": {
        "configs": ("configs", "list, print or copy the configs that come with tinylm"),
        "fit": ("train", "train a model; --resume continues an interrupted run"),
        "estimate": ("estimate", "parameters, memory, time and cost of a run before it starts"),
        "validate": ("train", "metrics of a run's best checkpoint on the validation data"),
        "test": ("train", "metrics of a run's best checkpoint on the test data"),
        "predict": ("train", "log probability of every token of a text, as JSON lines"),
    },
    "Use": {
        "generate": ("generate", "continue a prompt; --interactive opens a prompt loop"),
        "play": ("play", "open a page to play with a model and to see inside it"),
        "serve": ("serve", "serve models to OpenAI clients over HTTP"),
        "score": ("score", "perplexity and bits per byte of a text; exact match of answers"),
        "evaluate": ("evaluate", "tasks of lm_eval, the evaluation harness"),
    },
    "Adapt and export": {
        "prepare": ("prepare", "write data sets: questions, summaries, tinystories, token ids"),
        "average": ("average", "average the weights of checkpoints or runs"),
        "quantize": ("quantize", "quantize a model to 8 or 4 bits"),
        "export": ("export", "convert to and from Hugging Face transformers"),
    },
    "Understand": {
        "scaling": ("scaling", "measure and check a scaling law with a known floor"),
        "plot": ("plot", "draw the learning curves of several runs in one picture"),
        "reproduce": ("reproduce", "how to train a run again, and what differs today; --run does it"),
        "ablate": ("ablate", "train variants of a config over seeds; a table with intervals"),
        "compare": ("compare", "compare runs in a table: loss, time, spread over seeds"),
        "analyze": ("analyze", "look inside a model: attention, activations, logit lens, cost"),
        "tokenizer": ("tokenizer", "train, inspect or convert a tokenizer"),
        "train-numpy": ("train_numpy", "train in NumPy, with hand-written gradients"),
        "compare-numpy": ("compare_numpy", "compare PyTorch and the NumPy twin, layer by layer"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def overview() -> str:
    """All commands on one screen, in the order of a project."""
    lines = [
        "tinylm trains small language models, from raw text to generated text.",
        "",
        "    tinylm generate         tell a story with the model that comes with tinylm",
        "    tinylm fit -c tiny      train your own on the built-in stories, in about a minute",
    ]
    for title, group in GROUPS.items():
        lines += ["", title, *(f"    {name:16}{summary}" for name, (_, summary) in group.items())]
    return "\n".join([*lines, "", "tinylm COMMAND --help explains a command; --debug shows where one fails."])


ELSEWHERE = {  # names of commands in other programs
    "train": "fit", "pretrain": "fit", "resume": "fit --resume", "finetune": "fit -c finetune", "sample": "generate",
    "chat": "generate --interactive", "eval": "evaluate", "lm_eval": "evaluate", "convert": "export",
}  # fmt: skip


def run_command(name: str, arguments: list[str]) -> int:
    """Runs one of `COMMANDS` in this process and returns its exit code."""
    module, _ = COMMANDS[name]

    def run(words: list[str]) -> int | None:
        found = importlib.import_module(f"tinylm.commands.{module}")
        return found.run([name, *words] if module == "train" else words)  # it has four commands

    return exit_code(run, arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line, by default the one of this process, and returns its exit code."""
    prepare_process()
    words = sys.argv[1:] if arguments is None else arguments
    with raised(SIGNALS[1:]):  # Ctrl-C raises KeyboardInterrupt anyway
        code = _main(words)
    if arguments is None and words[:1] and words[0] in GROUPS["Use"]:
        gc.freeze()  # otherwise Python searches PyTorch's objects for garbage at exit, which takes half a second
    return code


def _main(words: list[str]) -> int:
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if words and words[0] in COMMANDS:
        return run_command(words[0], words[1:])
    return exit_code(_show, words)


def _show(words: list[str]) -> None:
    """Prints the overview or the version, or refuses an unknown command."""
    from tinylm import __version__

    name = words[0] if words else "--help"
    if name in ("--help", "-h", "help"):
        print(overview())
    elif name in ("--version", "-V"):
        print(f"tinylm {__version__}")
    else:
        hint = f", did you mean '{ELSEWHERE[name]}'?" if name in ELSEWHERE else did_you_mean(name, COMMANDS)
        raise ConfigError(f"{name}: no such command{hint or '; tinylm --help lists them'}")
