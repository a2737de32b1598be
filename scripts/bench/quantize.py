"""Measures decoding with weights in 32, 8 and 4 bits: `python scripts/bench/quantize.py`.

The models are random, in the presets' architecture, and decoded by `Decoder`: a step reads one token per row, in the
middle of the context. All models run in turn, several times over, on the number of threads that is fastest for float32;
ratios are of medians. Sizes are those of all weights in memory.
"""

import argparse
import statistics

import torch

from tinylm.adapt import quantize
from tinylm.adapt.quantize import kernels
from tinylm.analysis.profile import weight_bytes
from tinylm.generation.fast.choice import fastest_threads, step_seconds
from tinylm.generation.fast.decoder import Decoder
from tinylm.model import ModelConfig, TransformerLM

STEPS, CONTEXT, V = 20, 256, 1024


def sides(width: int, layers: int) -> dict[str, TransformerLM]:
    """A model with random weights, and its 8-bit and 4-bit versions."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=V, d_model=width, num_layers=layers, num_heads=max(width // 64, 1), max_seq_len=CONTEXT
    )
    model = TransformerLM(config).eval()
    return {"float32": model, "int8": quantize(model, bits=8), "int4": quantize(model, bits=4)}


def bench(width: int, layers: int, rows: int, turns: int, most: int) -> None:
    """Prints the table of one width and batch size, with at most `most` threads."""
    models = sides(width, layers)
    torch.set_num_threads(most)
    threads = fastest_threads(models["float32"], rows)
    decoders = {side: Decoder(model) for side, model in models.items()}
    times: dict[str, list[float]] = {side: [] for side in models}
    for _ in range(turns):
        for side, model in models.items():
            times[side] += step_seconds(decoders[side], model, rows, STEPS)
    medians = {side: statistics.median(found) for side, found in times.items()}
    print(f"\nwidth {width}, {layers} layers, {rows} rows, {threads} of {most} threads")
    for side, model in models.items():
        used = ", ".join(f"{count} {name}" for name, count in kernels(model, rows).items())
        speed, ratio = rows / medians[side], medians["float32"] / medians[side]
        print(f"  {side:8} {weight_bytes(model) / 1e6:7.1f} MB {speed:8.0f} tokens/s  {ratio:5.2f} x float32   {used}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="runs of each model (default: %(default)s)")
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256, 768])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, help="maximum number of threads (default: all)")
    options = parser.parse_args()
    most = options.threads or torch.get_num_threads()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    for width in options.widths:
        for rows in options.batches:
            bench(width, options.layers, rows, options.turns, most)


if __name__ == "__main__":
    main()
