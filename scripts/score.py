"""How well a model predicts a text: `python scripts/score.py --model runs/small --text letter.txt`."""

import time
from pathlib import Path

from tinylm.console import Parser, exit_code, pick_device, run_as_script
from tinylm.files import read_chunks


def run(arguments: list[str]) -> None:
    """Prints tokens, bytes, loss, perplexity and bits per byte."""
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="a run folder, model folder or checkpoint")
    parser.add_argument("--text", type=Path, required=True, help="a UTF-8 text file, read as one document")
    parser.add_argument("--stride", type=int, help="tokens from window to window (half the context)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows at once (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto takes the fastest (%(default)s)")
    options = parser.parse(arguments)
    text = "".join(read_chunks(options.text))

    import tinylm
    from tinylm.generation import score_text

    model, tokenizer = tinylm.load(options.model, device=pick_device(options.device))
    started = time.perf_counter()
    score = score_text(model, tokenizer, text, stride=options.stride, batch_size=options.batch_size)
    seconds = time.perf_counter() - started
    print(f"{options.text}: {score.tokens:,} tokens, {score.bytes:,} bytes, {score.tokens / seconds:,.0f} tokens/s")
    print(
        f"loss {score.nats / score.tokens:.4f} nats per token, perplexity {score.perplexity:.2f}, "
        f"{score.bits_per_byte:.4f} bits per byte"
    )


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    return exit_code(run, arguments)


if __name__ == "__main__":
    run_as_script(main)
