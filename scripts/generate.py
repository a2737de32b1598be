"""Makes a model speak: `python scripts/generate.py --model runs/small --prompt "Once upon a time"`."""

import argparse

from tinylm.console import Parser, exit_code, pick_device, run_as_script


def make_parser() -> Parser:
    """The options; each of several words may be written with `-` or `_`."""
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="a run folder, model folder or checkpoint")
    begins = parser.add_mutually_exclusive_group()
    begins.add_argument("--prompt", default="", help="where the text begins")
    begins.add_argument("--interactive", action="store_true", help="ask for prompts, with these options to begin with")
    parser.add_argument("--max-new-tokens", type=int, default=500, help="the most tokens to generate (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (%(default)s)")
    parser.add_argument("--top-k", type=int, help="keep the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="keep the likeliest tokens of total probability p")
    parser.add_argument("--min-p", type=float, help="keep tokens at least this fraction as likely as the likeliest")
    parser.add_argument("--typical-p", type=float, help="keep the most typical tokens of total probability p")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: say it once (%(default)s)")
    parser.add_argument(
        "--presence-penalty", type=float, default=0.0, help="off the logit of what was said (%(default)s)"
    )
    parser.add_argument("--frequency-penalty", type=float, default=0.0, help="the same, each time (%(default)s)")
    parser.add_argument("--min-new-tokens", type=int, default=0, help="do not end before (%(default)s)")
    parser.add_argument("--stop", nargs="+", default=[], help="end before the first of these strings")
    parser.add_argument("--seed", type=int, help="the same text for the same seed")
    parser.add_argument("--truncate", choices=["left"], help="cut a prompt that is longer than the context")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto takes the fastest (%(default)s)")
    return parser


def run(options: argparse.Namespace) -> None:
    """Prints the prompt, then its continuation as it comes; or asks for prompts."""
    import tinylm
    from tinylm.generation import Generator
    from tinylm.generation.interactive import converse

    model, tokenizer = tinylm.load(options.model, device=pick_device(options.device))
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
             "presence_penalty", "frequency_penalty", "min_new_tokens", "stop", "seed", "truncate")  # fmt: skip
    generator, settings = Generator(model, tokenizer), {name: getattr(options, name) for name in names}
    if options.interactive:
        return converse(generator, settings)
    pieces = generator.stream(options.prompt, **settings)
    print(options.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    return exit_code(lambda words: run(make_parser().parse(words)), arguments)


if __name__ == "__main__":
    run_as_script(main)
