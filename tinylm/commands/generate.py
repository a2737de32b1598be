"""Generates text: tinylm generate --model runs/small --prompt "Once upon a time"

Without --model, the newest run in runs/ is used, or the built-in storyteller if there is none; without a prompt, the
sample prompt of the run. A .npz archive written by `tinylm train-numpy` runs in NumPy, without PyTorch.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.commands import output
from tinylm.console import Mode, Parser, announce_model, check_at_least, interruptible, pick_device, use_color
from tinylm.errors import ConfigError, notice
from tinylm.generation import BeamConfig, SamplingConfig
from tinylm.locate import TOKENIZER, find_model, newest_run
from tinylm.targets import TEXT, FileKind, check_target
from tinylm.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from tinylm.bundle import Bundle
    from tinylm.commands.interactive import Model
    from tinylm.generation.generate import Generator
    from tinylm.generation.text import Completion

COMPLETIONS = FileKind("a file of completions", rb'\{"prompt": "[^\n]*", "text": "[^\n]*')
FILTERS = ("--min-p", "--typical-p", "--repetition-penalty", "--presence-penalty", "--frequency-penalty")
SAMPLING = ("--temperature", "--top-k", "--top-p", "--seed", *FILTERS)
NOT_IN_NUMPY = (  # a .npz archive is read by the NumPy twin
    "--prompts-file", "--interactive", "--chat", "--min-new-tokens", *FILTERS, "--banned-tokens", "--stop",
    "--num-beams", "--length-penalty", "--truncate", "--stream", "--out", "--overwrite", "--show-probs", "--stats",
    "--batch-size", "--threads", "--compile", "--kv-cache", "--draft", "--lookup", "--device",
)  # fmt: skip
MODES = (
    Mode("with a .npz archive", NOT_IN_NUMPY, lambda options: (options.model or "").endswith(".npz")),
    Mode("with --interactive", ("--prompt", "--prompts-file", "--num-beams", "--length-penalty", "--num-samples",
                                "--batch-size", "--no-stream", "--out", "--overwrite", "--show-probs")),
    Mode("with --prompts-file", ("--prompt", "--stream")),
    Mode("with --num-beams", (*SAMPLING, "--stream", "--batch-size", "--draft", "--lookup")),
    Mode("without --num-beams", ("--length-penalty",)),
    Mode("without --out", ("--overwrite",)),
    Mode("with --no-stream", ("--stream",)),
    Mode("with --show-probs", ("--stream",)),
    Mode("with several samples", ("--stream",), lambda options: options.num_samples > 1),
    Mode("with --draft", ("--lookup", "--compile", "--batch-size")),  # speculative decoding goes text by text
    Mode("with --lookup", ("--compile", "--batch-size")),
    Mode("with --compile", ("--kv-cache",), lambda options: options.compile and options.kv_cache == "int8"),
)  # fmt: skip


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser("generate", __doc__, MODES)
    parser.add_model_option("run folder, model folder, checkpoint or .npz archive")
    add = parser.add_argument
    add("--prompt", help="text to continue (default: the sample prompt of the run)")
    add("--prompts-file", type=Path, help="prompts, one per line; in a .jsonl file the field `prompt`")
    add("--interactive", action="store_true", help="read prompts from the terminal or a pipe; /help lists commands")
    add("--chat", action="store_true", help="take each prompt as a user's turn; print only the answer")
    add = parser.add_argument_group("sampling").add_argument
    most = "largest number of tokens to generate (default: 500; with --num-beams 100, or as many as the context allows)"
    add("--max-new-tokens", type=int, help=most)
    least = "tokens before which neither the end-of-text token nor a stop string ends a text"
    add("--min-new-tokens", type=int, default=0, help=least)
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
    add("--seed", type=int, help="sample i, from 0, is drawn with the seed + i (default: random)")
    add("--num-beams", type=int, help="beam search with this many beams, without sampling (default: sampling)")
    add("--length-penalty", type=float, default=1.0, help="with --num-beams: above 1 favours long texts")
    add("--truncate", choices=["left"], help="cut the beginning of prompts that exceed the context (default: refuse)")
    add = parser.add_argument_group("output").add_argument
    add("--num-samples", type=int, default=1, help="texts per prompt; with --num-beams, the best ones")
    streaming = "print a single text token by token (default: yes)"
    add("--stream", action=argparse.BooleanOptionalAction, default=True, help=streaming)
    add("--out", type=Path, help="also write the texts to a file; a .jsonl file includes tokens and log probabilities")
    parser.add_overwrite_option()
    add("--show-probs", action="store_true", help="colour each token by its probability")
    add("--stats", action="store_true", help="print speeds and memory to stderr")
    add = parser.add_argument_group("speed").add_argument
    add("--batch-size", type=int, default=16, help="texts generated at once")
    add("--threads", type=int, help="CPU threads (default: the fastest number, measured at the start)")
    add("--compile", action="store_true", help="compile the per-token computation: a minute at the start, then faster")
    add("--kv-cache", choices=["plain", "int8"], default="plain", help="int8: a quarter of the memory, but slower")
    add("--draft", help="speculative decoding with this draft model, a small model with the same tokenizer")
    add("--lookup", action="store_true", help="speculative decoding by prompt lookup; a seed gives the same text")
    parser.add_device_option()
    return parser


def run(arguments: list[str]) -> None:
    """Prints prompts with their completions; or runs the prompt loop."""
    options = make_parser().parse(arguments)
    check_at_least(1, options, "num_samples", "batch_size", "threads")
    settings = read_settings(options)
    if options.out is not None:
        check_target(options.out, COMPLETIONS if output.is_jsonl(options.out) else TEXT, options.overwrite)
    if (options.model or "").endswith(".npz"):
        from tinylm.commands import generate_numpy

        return generate_numpy.run(options)
    prompts = [options.prompt] if options.prompts_file is None else output.read_prompts(options.prompts_file)
    if options.draft is not None:
        find_model(options.draft)
    if options.prompt == "" and not options.chat:
        check_beginning(options.model)
    _, path = announce_model(options.model)

    from tinylm.bundle import load_bundle

    bundle = load_bundle(path, pick_device(options.device))
    asked = argparse.Namespace(**vars(options))
    if prompts == [None]:
        prompts = [bundle.info.get("prompt", "")]
        options.chat |= bundle.info.get("template") == "chat"
    batch_size = 1 if options.draft or options.lookup else options.batch_size
    generator, threads = make_generator(bundle, options, min(batch_size, len(prompts) * options.num_samples))
    if options.interactive:
        from tinylm.commands.interactive import converse

        model = converse(
            describe(bundle, generator, threads, path, options.chat), settings, lambda given: open_model(given, asked)
        )
        generator, threads = model.generator, model.threads
    else:
        print_completions(generator, prompts, options, settings, batch_size)
    if options.stats:
        notice(output.show_stats(generator.stats, threads))


def read_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `Generator.generate` or `beam_search`, checked before PyTorch is imported."""
    config = SamplingConfig if options.num_beams is None else BeamConfig
    names = [field.name for field in dataclasses.fields(config) if hasattr(options, field.name)]
    settings = {name: getattr(options, name) for name in names}
    if options.max_new_tokens is None:
        del settings["max_new_tokens"]
    if options.num_beams is not None:
        if options.num_samples > options.num_beams:
            found = f"{options.num_beams}, got {options.num_samples}"
            raise ConfigError(f"--num-samples must be at most --num-beams, {found}")
        settings["num_return"] = options.num_samples
    config(**settings)
    return settings | {"truncate": options.truncate}


def check_beginning(model: str | None) -> None:
    """Refuses an empty prompt for a model folder whose tokenizer has no end-of-text token, before its weights are read.

    The model of a checkpoint is checked once it is loaded.
    """
    path = find_model(model or newest_run()) / TOKENIZER
    if path.is_file() and load_tokenizer(path).end_of_text is None:
        raise ConfigError("the prompt is empty, and this tokenizer has no end-of-text token; give a prompt")


def print_completions(
    generator: "Generator", prompts: list[str], options: argparse.Namespace, settings: dict[str, Any], batch_size: int
) -> None:
    """Prints all completions, a single one token by token, and writes them to `--out`."""
    single = len(prompts) * options.num_samples == 1 and options.num_beams is None
    if single and options.stream and not options.show_probs:
        completions = [stream(generator, prompts[0], settings, show_prompt=not options.chat)]
    else:
        if options.num_beams is None:
            settings = settings | {"num_samples": options.num_samples, "batch_size": batch_size}
        completions, color = complete(generator, prompts, settings), use_color()
        if options.show_probs:
            print(output.PROBABILITY.legend(color))
        for number, each in enumerate(completions):
            shown = output.show_probabilities(each, generator.tokenizer, color) if options.show_probs else each.text
            prompt = "" if options.chat else each.prompt
            print(*([output.BETWEEN] if number else []), prompt + shown, sep="\n")
    if options.out:
        output.write_completions(options.out, completions, generator.tokenizer)


def make_generator(bundle: "Bundle", options: argparse.Namespace, rows: int) -> "tuple[Generator, int | None]":
    """The generator that the options describe, and its number of CPU threads."""
    import torch

    import tinylm
    from tinylm.generation import Generator, SpeculativeGenerator
    from tinylm.generation.fast.choice import compiled_decoder, fastest_threads
    from tinylm.model import Int8KVCache, RingKVCache

    model, tokenizer, device = bundle.model, bundle.tokenizer, bundle.model.embedding.weight.device
    model.cache_type = {"plain": RingKVCache, "int8": Int8KVCache}[options.kv_cache]
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    threads = None if device.type != "cpu" else options.threads or fastest_threads(model, max(rows, 1))
    if options.draft or options.lookup:
        draft, other = tinylm.load(options.draft, device=device) if options.draft else (None, tokenizer)
        if other != tokenizer:
            raise ConfigError(f"--draft {options.draft}: has another tokenizer than the model; give one with the same")
        if draft is not None:
            draft.cache_type = model.cache_type
        generator = SpeculativeGenerator(model, tokenizer, draft)
    else:
        generator = Generator(model, tokenizer, compiled_decoder(model) if options.compile else None)
    generator.conversation = "template" in bundle.info
    if options.chat:
        from tinylm.data.template import find_template, use_template

        use_template(generator, find_template("chat", tokenizer))
    return generator, threads


def describe(bundle: "Bundle", generator: "Generator", threads: int | None, path: Path, chat: bool) -> "Model":
    """A model for the prompt loop. The validation loss of a checkpoint is read from its run."""
    from tinylm.commands.interactive import Model
    from tinylm.runs.metrics import read_metrics

    info, metrics = dict(bundle.info), path.parent.parent / "metrics.csv"
    if "val/loss" not in info and path.is_file() and metrics.is_file():
        for step, loss in zip(*read_metrics(metrics).get("val/loss", ([], [])), strict=True):
            if step <= info["step"]:
                info["val/loss"] = loss
    if not chat:
        return Model(generator, info, threads=threads)
    from tinylm.data.template import find_template

    return Model(generator, info, find_template("chat", bundle.tokenizer), threads)


def open_model(given: str, options: argparse.Namespace) -> "Model":
    """The model at a path, for the prompt loop, with the other options of the command."""
    from tinylm.bundle import load_bundle

    _, path = announce_model(given)
    bundle = load_bundle(path, pick_device(options.device))
    chat = options.chat or bundle.info.get("template") == "chat"
    generator, threads = make_generator(bundle, argparse.Namespace(**vars(options) | {"chat": chat}), rows=1)
    return describe(bundle, generator, threads, path, chat)


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
def complete(generator: "Generator", prompts: list[str], settings: dict[str, Any]) -> "list[Completion]":
    """All completions, generated in batches, or by beam search if the settings have `num_beams`."""
    if "num_beams" not in settings:
        return generator.complete(prompts, **settings)
    from tinylm.generation import beam_search

    return [
        each
        for prompt in prompts
        for each in beam_search(generator, prompt, **beam_length(generator, prompt) | settings)
    ]


def beam_length(generator: "Generator", prompt: str) -> dict[str, Any]:
    """The default of `max_new_tokens` for beam search, which does not go beyond the context."""
    context = generator.model.config.max_seq_len
    room = context - len(generator.whole_prompt(prompt))
    return {"max_new_tokens": min(BeamConfig.max_new_tokens, room if room >= 1 else max(context // 2, 1))}
