"""Puts a model into 8 or 4 bits: `tinylm quantize --model runs/small --bits 8 --out small-8bit`.

Prints what became of it beside the original: bytes of the weights, how well both predict a text, how fast both decode.
Without a text it is validation stories where the model was trained on the built-in ones.
"""

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.console import Parser, announce_model, table
from tinylm.errors import CannotCreateError, ConfigError, notice
from tinylm.files import file_size, read_chunks
from tinylm.locate import MANIFEST, TOKENIZER, WEIGHTS, command

if TYPE_CHECKING:
    from tinylm.evaluation import Score
    from tinylm.model import TransformerLM
    from tinylm.tokenizer import Tokenizer

STORIES, STEPS, TURNS = 50, 20, 9


def make_parser() -> Parser:
    """The options."""
    parser = Parser("quantize", __doc__)
    parser.add_argument("--model", required=True, help="a run folder, model folder or checkpoint")
    parser.add_argument("--bits", type=int, default=8, help="of a weight, 8 or 4 (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the new model folder")
    parser.add_argument("--group-size", type=int, help="with 4 bits: how many weights share a scale (32)")
    parser.add_argument("--skip", nargs="+", default=["head"], help="layers left unquantized, as in blocks.0.* (head)")
    parser.add_argument("--text", type=Path, help="a UTF-8 text file to measure with")
    return parser


def run(arguments: list[str]) -> None:
    """Writes the folder and prints the table."""
    options = make_parser().parse(arguments)
    text = None if options.text is None else "".join(read_chunks(options.text))
    check_out(Path(options.model), options.out)
    _, path = announce_model(options.model)

    from tinylm.adapt import quantize
    from tinylm.analysis.profile import weight_bytes
    from tinylm.bundle import load_bundle, save_bundle
    from tinylm.data.held_out import held_out_stories
    from tinylm.generation.fast.decoder import fastest_threads
    from tinylm.model.quantized import kernels

    found = load_bundle(path)
    rounded = quantize(found.model, bits=options.bits, group_size=options.group_size, skip=options.skip)
    save_bundle(options.out, rounded, found.tokenizer, {**found.info, "quantized": options.model})
    texts = held_out_stories(Path(options.model), STORIES) if text is None else [text]
    scores = [score(model, found.tokenizer, texts) for model in (found.model, rounded)]
    fastest_threads(found.model)
    speeds = decoding_speeds(found.model, rounded)
    sizes = [weight_bytes(found.model), file_size(options.out / WEIGHTS)]
    print_table(["original", f"int{options.bits}"], sizes, scores, speeds)
    used = ", ".join(f"{count} {name}" for name, count in kernels(rounded).items())
    print(f"{options.out}: linear layers, reading one token: {used}")
    notice(f"to hear it: {command('generate', '--model', options.out)}")


def check_out(model: Path, out: Path) -> None:
    """Refuses to write over the model that is read or its run, and over anything but a model folder.

    Raises:
        ConfigError: if it is the model that is read.
        CannotCreateError: if something else is there.
    """
    if out.resolve() in (model.resolve(), *model.resolve().parents, (model / "model").resolve()):
        raise ConfigError(f"--out {out}: is where the model is; give another folder")
    files = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_file() or (files and files != {MANIFEST, WEIGHTS, TOKENIZER}):
        raise CannotCreateError(f"{out}: exists and is no model folder; give another --out, or remove it")


def score(model: "TransformerLM", tokenizer: "Tokenizer", texts: list[str]) -> "Score | None":
    """Of all texts together; none, where there are none."""
    from tinylm.evaluation import Score, score_text

    scores = [score_text(model, tokenizer, text) for text in texts]
    if not scores:
        return None
    return Score(
        math.fsum(each.nats for each in scores),
        sum(each.tokens for each in scores),
        sum(each.bytes for each in scores),
    )


def decoding_speeds(*models: "TransformerLM") -> list[float]:
    """Tokens per second of each, one text, in turn in the middle of the context: medians."""
    from tinylm.generation.fast.decoder import Decoder, step_seconds

    decoders = [Decoder(model) for model in models]
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(TURNS):
        for model, decoder, found in zip(models, decoders, seconds, strict=True):
            found += step_seconds(decoder, model, steps=STEPS)
    return [1 / statistics.median(found) for found in seconds]


def print_table(names: list[str], sizes: list[int], scores: "list[Score | None]", speeds: list[float]) -> None:
    """One line for each model."""
    lines = [["", "weights", "loss", "bits/byte", "decoding"]]
    for name, size, found, speed in zip(names, sizes, scores, speeds, strict=True):
        loss = ["-", "-"] if found is None else [f"{found.nats / found.tokens:.4f}", f"{found.bits_per_byte:.4f}"]
        lines.append([name, f"{size / 1e6:.2f} MB", *loss, f"{speed:,.0f} tokens/s"])
    print(table(lines))
    before, after = scores
    if before is not None and after is not None:
        print(f"loss {after.nats / before.nats - 1:+.2%}, over {before.tokens:,} tokens")
