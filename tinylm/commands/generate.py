"""Makes a model speak: `tinylm generate --model runs/small --prompt "Once upon a time"`.

Without --model it takes the newest run in runs/, without a prompt the run's own sample prompt. A .npz archive of
`tinylm train-numpy` is read by NumPy, without PyTorch.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.console import Parser, add_model_option, announce_model, interruptible, pick_device
from tinylm.errors import ConfigError, notice

if TYPE_CHECKING:
    from tinylm.bundle import Bundle
    from tinylm.generation import Completion, Generator


def make_parser() -> Parser:
    """The options; each of several words may be written with `-` or `_`."""
    parser = Parser("generate", __doc__)
    add_model_option(parser, "a run folder, a model folder, a checkpoint or a .npz archive")
    begins = parser.add_mutually_exclusive_group()
    begins.add_argument("--prompt", help="where the text begins (the run's own sample prompt)")
    begins.add_argument("--prompts-file", type=Path, help="a prompt on each line, or .jsonl with a field `prompt`")
    begins.add_argument("--interactive", action="store_true", help="ask for prompts, with these options to begin with")
    parser.add_argument(
        "--chat", action="store_true", help="treat each prompt as a chat user's turn; print only the answer"
    )
    sampling = parser.add_argument_group("how tokens are chosen")
    add = sampling.add_argument
    add("--max-new-tokens", type=int, default=500, help="the most tokens to generate (%(default)s)")
    add("--min-new-tokens", type=int, default=0, help="do not end before (%(default)s)")
    add("--temperature", type=float, default=0.8, help="0 is greedy (%(default)s)")
    add("--top-k", type=int, help="keep the k likeliest tokens")
    add("--top-p", type=float, help="keep the likeliest tokens of total probability p")
    add("--min-p", type=float, help="keep tokens at least this fraction as likely as the likeliest")
    add("--typical-p", type=float, help="keep the most typical tokens of total probability p")
    less = "above 1 makes tokens already present less likely (%(default)s)"
    add("--repetition-penalty", type=float, default=1.0, help=less)
    once = "subtracted once from the logit of every token already generated (%(default)s)"
    add("--presence-penalty", type=float, default=0.0, help=once)
    add("--frequency-penalty", type=float, default=0.0, help="subtracted once per earlier occurrence (%(default)s)")
    add("--banned-tokens", type=int, nargs="+", default=[], metavar="ID", help="token ids that are never generated")
    add("--stop", nargs="+", default=[], help="end before the first of these strings")
    add("--seed", type=int, help="the same text for the same seed; sample i has the seed + i")
    add("--num-beams", type=int, help="beam search with this many beams, without sampling")
    add("--length-penalty", type=float, default=1.0, help="with beams: above 1 favours long texts (%(default)s)")
    add("--truncate", choices=["left"], help="cut a prompt that is longer than the context")
    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--num-samples", type=int, default=1, help="texts per prompt; with beams, how many of the best (%(default)s)")
    add("--stream", action=argparse.BooleanOptionalAction, default=True, help="print one text as it comes (yes)")
    add("--out", type=Path, help="write texts to a file; to .jsonl with tokens and their log probabilities")
    add("--show-probs", action="store_true", help="each token coloured by its probability")
    add("--stats", action="store_true", help="speeds and memory, on stderr")
    speed = parser.add_argument_group("speed")
    add = speed.add_argument
    add("--batch-size", type=int, default=16, help="texts at a time (%(default)s)")
    add("--threads", type=int, help="CPU threads (the fastest number, measured at the start)")
    add("--compile", action="store_true", help="one compiled program for a token: a minute at the start, then faster")
    add("--kv-cache", choices=["plain", "int8"], default="plain", help="int8: a quarter of the memory (%(default)s)")
    add("--draft", help="draft model: a small model of the same tokenizer, for speculative decoding")
    add("--lookup", action="store_true", help="speculative decoding by prompt lookup")
    add("--device", default="auto", help="cpu, cuda, mps; auto takes the fastest (%(default)s)")
    return parser


def run(arguments: list[str]) -> None:
    """Prints prompts and their continuations; or asks for prompts."""
    options = make_parser().parse(arguments)
    if (options.model or "").endswith(".npz"):
        from tinylm.commands import generate_numpy

        return generate_numpy.run(options)
    _, path = announce_model(options.model)

    from tinylm.bundle import load_bundle
    from tinylm.commands import output
    from tinylm.generation import SamplingConfig

    prompts = [options.prompt] if options.prompts_file is None else output.read_prompts(options.prompts_file)
    bundle = load_bundle(path, pick_device(options.device))
    if prompts == [None]:
        prompts = [bundle.info.get("prompt", "")]
        options.chat |= bundle.info.get("template") == "chat"
    batch_size = 1 if options.draft or options.lookup else options.batch_size  # speculative decoding goes text by text
    generator, threads = make_generator(bundle, options, min(batch_size, len(prompts) * options.num_samples))
    generator.conversation = "template" in bundle.info
    if options.chat:
        from tinylm.data.template import CHAT, question_frame

        generator.before, generator.after = question_frame(generator.tokenizer, CHAT)
    names = {"truncate", *(field.name for field in dataclasses.fields(SamplingConfig))}
    settings = {name: value for name, value in vars(options).items() if name in names}
    if options.interactive:
        from tinylm.commands.interactive import converse

        return converse(generator, settings)
    single = len(prompts) * options.num_samples == 1 and options.num_beams is None
    if single and options.stream and not options.show_probs:
        completions = [stream(generator, prompts[0], settings, show_prompt=not options.chat)]
    else:
        completions = complete(generator, prompts, options, settings | {"batch_size": batch_size})
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        if options.show_probs:
            print(output.legend(color))
        for number, each in enumerate(completions):
            shown = output.show_probabilities(each, generator.tokenizer, color) if options.show_probs else each.text
            prompt = "" if options.chat else each.prompt
            print(*([output.BETWEEN] if number else []), prompt + shown, sep="\n")
    if options.out:
        output.write_completions(options.out, completions, generator.tokenizer)
    if options.stats:
        notice(output.show_stats(generator.stats, threads))


def make_generator(bundle: "Bundle", options: argparse.Namespace, rows: int) -> "tuple[Generator, int | None]":
    """What the options ask for, and the number of threads it works on."""
    import torch

    import tinylm
    from tinylm.generation import Generator, SpeculativeGenerator
    from tinylm.generation.fast.compiled import CompiledDecoder
    from tinylm.generation.fast.decoder import fastest_threads
    from tinylm.model import Int8KVCache, RingKVCache

    if options.threads is not None and options.threads < 1:
        raise ConfigError(f"threads must be at least 1, got {options.threads}")
    model, tokenizer = bundle.model, bundle.tokenizer
    device = model.embedding.weight.device
    model.cache_type = {"plain": RingKVCache, "int8": Int8KVCache}[options.kv_cache]
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    threads = None if device.type != "cpu" else options.threads or fastest_threads(model, max(rows, 1))
    if options.draft or options.lookup:
        draft, other = tinylm.load(options.draft, device=device) if options.draft else (None, tokenizer)
        if other != tokenizer:
            raise ConfigError(f"--draft {options.draft}: has another tokenizer than the model; give one that has it")
        return SpeculativeGenerator(model, tokenizer, draft), threads
    if not options.compile:
        return Generator(model, tokenizer), threads
    decoder = CompiledDecoder(model)
    notice("compiling: about a minute")
    return Generator(model, tokenizer, decoder), threads


@interruptible()
def stream(generator: "Generator", prompt: str, settings: dict[str, Any], *, show_prompt: bool) -> "Completion":
    """Prints one text as it comes."""
    text, pieces = generator.begin(prompt, **settings)
    print(prompt if show_prompt else "", end="", flush=True)
    said = []
    for piece in pieces:
        print(piece, end="", flush=True)
        said.append(piece)
    print()
    return text.completion(prompt, "".join(said))


@interruptible()
def complete(
    generator: "Generator", prompts: list[str], options: argparse.Namespace, settings: dict[str, Any]
) -> "list[Completion]":
    """All texts, several at a time."""
    if options.num_beams is None:
        return generator.complete(prompts, num_samples=options.num_samples, **settings)
    from tinylm.generation import BeamConfig, beam_search

    config = BeamConfig(
        num_beams=options.num_beams,
        num_return=options.num_samples,
        max_new_tokens=options.max_new_tokens,
        length_penalty=options.length_penalty,
    )
    return [each for p in prompts for each in beam_search(generator, p, config, truncate=options.truncate)]
