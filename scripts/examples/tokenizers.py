"""Which tokenizer is best for a small model? All kinds and sizes, the same network, equally many operations.

    python scripts/examples/tokenizers.py --out runs/tokenizers.jsonl --corpora stories shakespeare.txt
    python scripts/examples/tokenizers.py --out runs/tokenizers.jsonl --corpora stories shakespeare.txt --draw tok.png

Every run trains the network of `tiny` with Muon until it has spent `--flops` floating-point operations, so that a
larger vocabulary, whose output layer costs more, gets fewer steps. Losses per token of different tokenizers cannot be
compared; bits per byte of the same text can. Every run is a line of the output file; runs that it has are not repeated,
so an interrupted measurement can continue. Tokens per second are those of a core, by its processor time.
"""

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).resolve().parent))  # this file would hide the library tokenizers from others

from tinylm.data import TextDataModule
from tinylm.errors import ConfigError
from tinylm.experiments.plain_run import Texts, evaluate, train
from tinylm.model import ModelConfig, flops_per_token
from tinylm.optim import OptimizerConfig, ScheduleConfig
from tinylm.runs.plots import save_figure
from tinylm.runs.style import new_figure, style

ONE_SIZE = ("char", "byte")  # kinds whose vocabulary has no choice of size
KINDS = ("bpe", "unigram", "wordpiece")
SIZES = (256, 512, 1024, 2048, 4096, 8192)
UNKNOWN = ("[UNK]", "<unk>")
CONTEXT, BATCH = 128, 8  # tokens of a row, rows of a step


@dataclass(frozen=True)
class Split(Texts):
    """A text, known or not, of which a tenth is held out; of the built-in stories, a fiftieth."""

    @cached_property
    def data(self) -> TextDataModule:
        """The data module."""
        split = (0.98, 0.02) if self.corpus == "stories" else (0.9, 0.1)
        return TextDataModule(self.corpus, self.tokenizer, self.context, self.batch_size, split=split, seed=self.seed)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the held-out text; ConfigError if some of it is unknown, and with it the bits per byte."""
        tokenizer, ids = self.data.tokenizer, self.data.tokens["val"][:]
        unknown = sum(int((ids == tokenizer.special_tokens.get(name, -1)).sum()) for name in UNKNOWN)
        if unknown:
            raise ConfigError(f"{unknown:,} words of the held-out text are unknown")
        return int(tokenizer.byte_lengths[ids].sum())


@cache
def texts(corpus: str, tokenizer: str) -> Split:
    """The text of a corpus, encoded by a tokenizer that has learned from it."""
    return Split(corpus, tokenizer, CONTEXT, BATCH, val_tokens=1 << 40, seed=0)


def run(corpus: str, tokenizer: str, flops: float, seed: int) -> dict[str, Any]:
    """Trains and evaluates a network.

    Raises:
        ConfigError: if there is no vocabulary of this size, or some of the text is unknown to it.
    """
    text = texts(corpus, tokenizer)
    size = text.num_bytes
    network = ModelConfig(
        vocab_size=text.data.vocab_size, d_model=96, num_layers=2, num_heads=4, max_seq_len=CONTEXT, dropout=0.0
    )
    steps = round(flops / flops_per_token(network) / (BATCH * CONTEXT))
    optimizer = OptimizerConfig(name="muon", lr=0.01, weight_decay=0.1, momentum=0.9)
    started = time.process_time()
    model, _ = train(text, network, optimizer, ScheduleConfig(name="linear", warmup_steps=20), steps, seed)
    seconds = time.process_time() - started
    loss, floor = evaluate(text, model)
    count = text.data.content.num_tokens("val")
    bits = count / size / math.log(2)  # a byte, of one nat a token
    return {
        "corpus": corpus, "tokenizer": tokenizer, "seed": seed, "vocab_size": network.vocab_size, "steps": steps,
        "loss": loss, "bits_per_byte": loss * bits, "floor": floor * bits, "tokens_per_byte": count / size,
        "tokens_per_second": steps * BATCH * CONTEXT / seconds,
    }  # fmt: skip


def read(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The runs of a file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {(each["corpus"], each["tokenizer"], each["seed"]): each for each in map(json.loads, lines)}


def specs(sizes: list[int]) -> list[str]:
    """The tokenizers to compare, as `data.tokenizer` names them."""
    return [*ONE_SIZE, *(f"{kind}:{size}" for kind in KINDS for size in sizes)]


def report(corpus: str, known: dict[tuple[str, str, int], dict[str, Any]], sizes: list[int], seeds: int) -> None:
    """Prints a table of means over the seeds."""
    print(f"\n{Path(corpus).stem}\n{'tokenizer':16} {'bits/byte':>17} {'tokens/byte':>12} {'steps':>6} {'tokens/s':>9}")
    for spec in specs(sizes):
        found = [known[corpus, spec, seed] for seed in range(seeds) if (corpus, spec, seed) in known]
        if found:
            bits = [each["bits_per_byte"] for each in found]
            spread = f" ± {statistics.stdev(bits):.4f}" if len(bits) > 1 else ""
            speed = statistics.fmean(each["tokens_per_second"] for each in found)
            first, mean = found[0], f"{statistics.fmean(bits):.4f}{spread}"
            print(f"{spec:16} {mean:>17} {first['tokens_per_byte']:12.3f} {first['steps']:6} {speed:9,.0f}")


@style()
def draw(corpora: list[str], known: dict[tuple[str, str, int], dict[str, Any]], path: Path) -> None:
    """Draws bits per byte against the size of the vocabulary: a panel for each corpus, a line for each kind."""
    figure = new_figure(5 * len(corpora), 3.6)
    for axis, corpus in zip(figure.subplots(1, len(corpora), squeeze=False)[0], corpora, strict=True):
        runs = [each for each in known.values() if each["corpus"] == corpus]
        for marker, kind in zip("sDo^v", (*ONE_SIZE, *KINDS), strict=True):
            bits: dict[int, list[float]] = {}
            for each in runs:
                if each["tokenizer"].partition(":")[0] == kind:
                    bits.setdefault(each["vocab_size"], []).append(each["bits_per_byte"])
            order = sorted(bits)
            means = [statistics.fmean(bits[size]) for size in order]
            spread = [statistics.stdev(bits[size]) if len(bits[size]) > 1 else 0.0 for size in order]
            axis.errorbar(order, means, yerr=spread, marker=marker, capsize=2, label=kind)
        if floor := max((each["floor"] for each in runs), default=0.0):
            axis.axhline(floor, ls="--", color="gray")
            axis.annotate("best possible", (1, floor), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        axis.set(xlabel="size of the vocabulary", ylabel="bits per byte", title=Path(corpus).stem)
        axis.set_xscale("log", base=2)
        axis.legend()
    save_figure(figure, path)


def main() -> None:
    """Measures what the file lacks, prints tables, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="file of the runs, JSON lines")
    add("--corpora", nargs="+", default=["stories"], help="as data.corpus (default: stories)")
    add("--sizes", type=int, nargs="+", default=[*SIZES], help="sizes of the vocabularies")
    add("--flops", type=float, default=5e11, help="floating-point operations of a run (default: %(default)g)")
    add("--seeds", type=int, default=3, help="runs of each tokenizer (default: %(default)s)")
    add("--draw", type=Path, metavar="FILE", help="picture of all runs in the file")
    options = parser.parse_args()
    known = read(options.out)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for corpus in options.corpora:
        for spec in specs(options.sizes):
            for seed in range(options.seeds):
                if (corpus, spec, seed) in known:
                    continue
                try:
                    found = known[corpus, spec, seed] = run(corpus, spec, options.flops, seed)
                except ConfigError as error:  # a vocabulary smaller than its alphabet
                    print(f"{corpus}: {spec}: left out ({error})", flush=True)
                    break
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                print(f"{corpus}, {spec}, seed {seed}: {found['bits_per_byte']:.4f} bits per byte", flush=True)
    for corpus in options.corpora:
        report(corpus, known, options.sizes, options.seeds)
    if options.draw is not None:
        draw(options.corpora, known, options.draw)


if __name__ == "__main__":
    main()
