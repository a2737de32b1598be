"""Generates text: tinylm generate --model runs/small --prompt "Once upon a time"

Without --model the newest run in runs/ is used, without a prompt the sample prompt of its run. A .npz archive
written by `tinylm train-numpy` runs in NumPy, without PyTorch.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.console import Parser, announce_model, check_at_least, interruptible, pick_device, use_color
from tinylm.errors import ConfigError, notice
from tinylm.targets import TEXT, FileKind, check_target

if TYPE_CHECKING:
    from tinylm.bundle import Bundle
    from tinylm.generation import Completion, Generator

COMPLETIONS = FileKind("a file of completions", rb'\{"prompt": "[^\n]*", "text": "[^\n]*')


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser("generate", __doc__)
    parser.add_model_option("run folder, model folder, checkpoint or .npz archive")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", help="text to continue (default: the sample prompt of the run)")
    prompts.add_argument("--prompts-file", type=Path, help="prompts, one per line; in a .jsonl file the field `prompt`")
    prompts.add_argument("--interactive", action="store_true", help="read prompts from the terminal or a pipe")
    parser.add_argument("--chat", action="store_true", help="take each prompt as a user's turn; print only the answer")
    add = parser.add_argument_group("sampling").add_argument
    add("--max-new-tokens", type=int, default=500, help="largest number of tokens to generate")
    add("--min-new-tokens", type=int, default=0, help="smallest number of tokens to generate")
    add("--temperature", type=float, default=0.8, help="below 1 favours likely tokens; 0 is greedy")
    add("--top-k", type=int, help="keep the k most likely tokens (default: all)")
    add("--top-p", type=float, help="keep the most likely tokens of total probability p (default: all)")
    add("--min-p", type=float, help="keep tokens at least this fraction as probable as the top one (default: all)")
    add("--typical-p", type=float, help="keep the most typical tokens of total probability p (default: all)")
    add("--repetition-penalty", type=float, default=1.0, help="above 1 makes tokens already present less likely")
    once = "subtracted once from the logit of every token already generated"
    add("--presence-penalty", type=float, default=0.0, help=once)
    add("--frequency-penalty", type=float, default=0.0, help="subtracted from the logit once per earlier occurrence")
    add("--banned-tokens", type=int, nargs="+", default=[], metavar="ID", help="token ids that are never generated")
    add("--stop", nargs="+", default=[], help="strings that end a text; they are not part of it")
    add("--seed", type=int, help="sample i is drawn with the seed + i (default: random)")
    add("--num-beams", type=int, help="beam search with this many beams (default: sampling)")
    add("--length-penalty", type=float, default=1.0, help="with --num-beams: above 1 favours long texts")
    add("--truncate", choices=["left"], help="cut the beginning of prompts that exceed the context (default: refuse)")
    add = parser.add_argument_group("output").add_argument
    add("--num-samples", type=int, default=1, help="texts per prompt; with --num-beams, the best ones")
    streaming = "print a single text token by token (default: yes)"
    add("--stream", action=argparse.BooleanOptionalAction, default=True, help=streaming)
    add("--out", type=Path, help="also write the texts to a file; a .jsonl file gets tokens and log probabilities")
    parser.add_overwrite_option()
    add("--show-probs", action="store_true", help="colour each token by its probability")
    add("--stats", action="store_true", help="print speeds and memory to stderr")
    add = parser.add_argument_group("speed").add_argument
    add("--batch-size", type=int, default=16, help="texts generated at once")
    add("--threads", type=int, help="CPU threads (default: the fastest number, measured at the start)")
    add("--compile", action="store_true", help="compile the per-token computation: a minute at the start, then faster")
    add("--kv-cache", choices=["plain", "int8"], default="plain", help="int8 takes a quarter of the memory")
    add("--draft", help="speculative decoding with this draft model, a small model with the same tokenizer")
    add("--lookup", action="store_true", help="speculative decoding by prompt lookup")
    parser.add_device_option()
    return parser


def run(arguments: list[str]) -> None:
    """Prints prompts with their completions; or runs the prompt loop."""
    parser = make_parser()
    options = parser.parse(arguments)
    if options.out is not None:
        check_target(options.out, COMPLETIONS if options.out.suffix == ".jsonl" else TEXT, options.overwrite)
    if (options.model or "").endswith(".npz"):
        from tinylm.commands import generate_numpy

        return generate_numpy.run(options, vars(parser.parse([])))
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
        color = use_color()
        if options.show_probs:
            print(output.PROBABILITY.legend(color))
        for number, each in enumerate(completions):
            shown = output.show_probabilities(each, generator.tokenizer, color) if options.show_probs else each.text
            prompt = "" if options.chat else each.prompt
            print(*([output.BETWEEN] if number else []), prompt + shown, sep="\n")
    if options.out:
        output.write_completions(options.out, completions, generator.tokenizer)
    if options.stats:
        notice(output.show_stats(generator.stats, threads))


def make_generator(bundle: "Bundle", options: argparse.Namespace, rows: int) -> "tuple[Generator, int | None]":
    """The generator that the options describe, and its number of CPU threads."""
    import torch

    import tinylm
    from tinylm.data.template import CHAT, question_frame
    from tinylm.generation import Generator, SpeculativeGenerator
    from tinylm.generation.fast.compiled import CompiledDecoder
    from tinylm.generation.fast.decoder import fastest_threads
    from tinylm.model import Int8KVCache, RingKVCache

    check_at_least(1, options, "threads")
    model, tokenizer, device = bundle.model, bundle.tokenizer, bundle.model.embedding.weight.device
    model.cache_type = {"plain": RingKVCache, "int8": Int8KVCache}[options.kv_cache]
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    threads = None if device.type != "cpu" else options.threads or fastest_threads(model, max(rows, 1))
    if options.draft or options.lookup:
        draft, other = tinylm.load(options.draft, device=device) if options.draft else (None, tokenizer)
        if other != tokenizer:
            raise ConfigError(f"--draft {options.draft}: has another tokenizer than the model; give one that has it")
        generator = SpeculativeGenerator(model, tokenizer, draft)
    else:
        generator = Generator(model, tokenizer, CompiledDecoder(model) if options.compile else None)
        if options.compile:
            notice("compiling: about a minute")
    generator.conversation = "template" in bundle.info
    if options.chat:
        generator.before, generator.after = question_frame(tokenizer, CHAT)
    return generator, threads


@interruptible()
def stream(generator: "Generator", prompt: str, settings: dict[str, Any], *, show_prompt: bool) -> "Completion":
    """Prints one completion as it is generated."""
    text, pieces = generator.begin(prompt, **settings)
    print(prompt if show_prompt else "", end="", flush=True)
    printed = []
    for piece in pieces:
        print(piece, end="", flush=True)
        printed.append(piece)
    print()
    return text.completion(prompt, "".join(printed))


@interruptible()
def complete(
    generator: "Generator", prompts: list[str], options: argparse.Namespace, settings: dict[str, Any]
) -> "list[Completion]":
    """All completions, generated in batches or by beam search."""
    if options.num_beams is None:
        return generator.complete(prompts, num_samples=options.num_samples, **settings)
    from tinylm.generation import beam_search

    names = ("num_beams", "max_new_tokens", "length_penalty", "truncate")
    beams = {name: getattr(options, name) for name in names} | {"num_return": options.num_samples}
    return [each for prompt in prompts for each in beam_search(generator, prompt, **beams)]
