"""Makes a model speak: `python scripts/generate.py --model runs/small --prompt "Once upon a time"`."""

import argparse
import os
import sys

from tinylm.errors import ConfigError, TinyLMError, did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str):
        """Raises instead of printing the usage."""
        raise ConfigError(message)


def make_parser() -> Parser:
    """The options; each of several words may be written with `-` or `_`."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="a run folder, model folder or checkpoint")
    parser.add_argument("--prompt", default="", help="where the text begins")
    parser.add_argument("--max-new-tokens", type=int, default=500, help="the most tokens to generate (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (%(default)s)")
    parser.add_argument("--top-k", type=int, help="keep the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="keep the likeliest tokens of total probability p")
    parser.add_argument("--min-p", type=float, help="keep tokens at least this fraction as likely as the likeliest")
    parser.add_argument("--seed", type=int, help="the same text for the same seed")
    parser.add_argument("--truncate", choices=["left"], help="cut a prompt that is longer than the context")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto takes the fastest (%(default)s)")
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = make_parser()
    dashed = [
        word.split("=")[0].replace("_", "-") + word[len(word.split("=")[0]) :] if word.startswith("--") else word
        for word in arguments
    ]
    options, unknown = parser.parse_known_args(dashed)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        raise ConfigError(f"{unknown[0]}: no such option{did_you_mean(unknown[0], known) or '; --help lists all'}")
    return options


def fastest_device() -> str:
    """cuda, else mps, else cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raises ConfigError for a device that is unknown or not there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {device}: cannot be used ({reason}); try --device cpu") from error


def run(options: argparse.Namespace) -> None:
    """Prints the prompt, then its continuation as it comes."""
    import tinylm
    from tinylm.generation import Generator

    device = fastest_device() if options.device == "auto" else options.device
    check_device(device)
    model, tokenizer = tinylm.load(options.model, device=device)
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "truncate")
    pieces = Generator(model, tokenizer).stream(options.prompt, **{name: getattr(options, name) for name in names})
    print(options.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    debug = "--debug" in arguments
    try:
        run(parse([word for word in arguments if word != "--debug"]))
        return 0
    except TinyLMError as error:
        if debug:
            raise
        print(f"tinylm: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print()
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # Windows consoles
    sys.exit(main(sys.argv[1:]))
