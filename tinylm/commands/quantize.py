"""Quantizes a model to 8 or 4 bits: tinylm quantize --model runs/small --bits 8 --out small-8bit

It prints the size of the weights, the loss on a text and the decoding speed of both models. Without --text, a model
trained on the built-in stories is measured on held-out ones.
"""

import itertools
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.console import Mode, Parser, announce_model, table
from tinylm.errors import ConfigError, notice
from tinylm.files import file_size, read_chunks
from tinylm.locate import WEIGHTS, command
from tinylm.targets import MODEL_FOLDER, check_target

if TYPE_CHECKING:
    from tinylm.evaluation import Score
    from tinylm.model import TransformerLM

STORIES, STEPS, TURNS = 50, 20, 9
MODES = (Mode("with 8 bits", ("--group-size",), lambda options: options.bits == 8),)


def run(arguments: list[str]) -> None:
    """Writes the quantized model folder and prints the comparison."""
    parser = Parser("quantize", __doc__, MODES)
    add = parser.add_argument
    add("--model", required=True, help="run folder, model folder or checkpoint")
    parser.add_trust_option()
    add("--out", type=Path, required=True, help="output model folder")
    parser.add_overwrite_option()
    add("--bits", type=int, choices=(8, 4), default=8, help="bits per weight, 8 or 4")
    add("--group-size", type=int, help="with 4 bits: number of weights that share a scale (default: 32)")
    add("--skip", nargs="+", default=["head"], help="layers left unquantized, such as blocks.0.* (default: head)")
    add("--text", type=Path, help="UTF-8 text file to measure the loss on (default: held-out stories of the run)")
    options = parser.parse(arguments)
    text = None if options.text is None else "".join(read_chunks(options.text))
    check_out(Path(options.model), options.out, options.overwrite)
    given, path = announce_model(options.model)

    from tinylm.adapt import quantize
    from tinylm.adapt.quantize import kernels
    from tinylm.analysis.profile import weight_bytes
    from tinylm.bundle import load_bundle, save_bundle
    from tinylm.data.held_out import held_out_stories
    from tinylm.evaluation import score_text
    from tinylm.generation.fast.choice import fastest_threads

    original = load_bundle(path)
    quantized = quantize(original.model, bits=options.bits, group_size=options.group_size, skip=options.skip)
    info = {**original.info, "quantized": options.model}
    save_bundle(options.out, quantized, original.tokenizer, info, options.overwrite)
    models = (original.model, quantized)
    texts = held_out_stories(Path(given), STORIES) if text is None else [text]
    scores = [score_text(model, original.tokenizer, texts) if texts else None for model in models]
    fastest_threads(original.model)
    sizes = [weight_bytes(original.model), file_size(options.out / WEIGHTS)]
    print(comparison(["original", f"int{options.bits}"], sizes, scores, decoding_speeds(*models)))
    used = ", ".join(f"{count} {name}" for name, count in kernels(quantized).items())
    print(f"{options.out}: kernels of the linear layers when decoding: {used}")
    notice(f"to generate with it: {command('generate', '--model', options.out)}")


def check_out(model: Path, out: Path, overwrite: bool) -> None:
    """Refuses to overwrite the input model, its run, or anything that must not be replaced."""
    if out.resolve() in (model.resolve(), *model.resolve().parents, (model / "model").resolve()):
        raise ConfigError(f"--out {out}: is where the model is; give another folder")
    check_target(out, MODEL_FOLDER, overwrite)


def decoding_speeds(*models: "TransformerLM") -> list[float]:
    """Median tokens per second of each model for one text, in the middle of the context, measured in turn."""
    from tinylm.generation.fast.choice import step_seconds
    from tinylm.generation.fast.decoder import Decoder

    sides = [(Decoder(model), model) for model in models]
    turns = [[step_seconds(*side, steps=STEPS) for side in sides] for _ in range(TURNS)]
    return [1 / statistics.median(itertools.chain(*times)) for times in zip(*turns, strict=True)]


def comparison(names: list[str], sizes: list[int], scores: "list[Score | None]", speeds: list[float]) -> str:
    """A table with a row for each model, and the change of the loss."""
    rows = [["", "weights", "loss", "bits/byte", "decoding"]]
    for name, size, score, speed in zip(names, sizes, scores, speeds, strict=True):
        loss = ["-", "-"] if score is None else [f"{score.loss:.4f}", f"{score.bits_per_byte:.4f}"]
        rows.append([name, f"{size / 1e6:.2f} MB", *loss, f"{speed:,.0f} tokens/s"])
    before, after = scores
    change = f"\nloss {after.nats / before.nats - 1:+.2%}, over {before.tokens:,} tokens" if before and after else ""
    return table(rows) + change
