"""Measures the excess over the loss floor of n-gram models and trained runs on the built-in stories.

    python scripts/bench/floor.py runs/small runs/small-64 ...

Prints bits per byte on the validation stories of `small.yaml`, the excess over the floor, and the standard error of the
difference, a paired one over stories: the loss of each is compared with its own log probability. Each story is scored
from its start. Bits per byte can be compared across tokenizers.
"""

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F

import tinylm
from tinylm.data import IGNORE, TextDataModule
from tinylm.data.evaluation_rows import document_lengths, document_rows, gather_rows
from tinylm.model import TransformerLM


def ngram_nats(train: np.ndarray, text: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """The loss of each token of a text under an interpolated n-gram model (Witten and Bell 1991), in nats, (tokens,).

    p(w | h) = (count(h w) + kinds(h) p(w | shorter h)) / (count(h) + kinds(h)), down to 1 / vocab_size. The first
    token is preceded by the separator.
    """
    padded = [np.concatenate([np.full(order - 1, train[-1]), ids]).astype(np.int64) for ids in (train, text)]
    probs = np.full(len(text), 1 / vocab_size)
    for n in range(1, order + 1):
        grams, seen = (pack(ids, order, n, vocab_size) for ids in padded)
        kinds, counts = np.unique(grams, return_counts=True)
        contexts, context_of = np.unique(kinds // vocab_size, return_inverse=True)
        totals, types = np.bincount(context_of, counts), np.bincount(context_of)
        count = look_up(kinds, counts, seen)
        total, variety = look_up(contexts, totals, seen // vocab_size), look_up(contexts, types, seen // vocab_size)
        known = total > 0
        probs[known] = (count + variety * probs)[known] / (total + variety)[known]
    return -np.log(probs)


def pack(padded: np.ndarray, order: int, n: int, vocab_size: int) -> np.ndarray:
    """The n-gram that ends at each token, packed into one integer."""
    count = len(padded) - order + 1
    number = np.zeros(count, dtype=np.int64)
    for back in range(n - 1, -1, -1):
        number = number * vocab_size + padded[order - 1 - back : order - 1 - back + count]
    return number


def look_up(keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The value of each query, 0 if it is not among the sorted keys."""
    index = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[index] == queries, values[index], 0)


@torch.inference_mode()
def model_nats(model: TransformerLM, tokens: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The loss of each token in nats, with each document scored from its start, (tokens,)."""
    rows = document_rows(begins, len(tokens), model.config.max_seq_len)
    nats = []
    for first in range(0, len(rows.begins), 16):
        batch = gather_rows(tokens, rows, slice(first, first + 16))
        loss = F.cross_entropy(model(batch.inputs).transpose(1, 2), batch.targets, reduction="none")
        nats.append(loss[batch.targets != IGNORE])
    return torch.cat(nats).double().numpy()


def report(name: str, data: TextDataModule, nats: np.ndarray) -> None:
    """Prints the loss on the validation stories, compared with the floor."""
    floor = data.floors["val"]
    story = np.repeat(np.arange(len(floor.begins)), document_lengths(floor.begins, floor.num_tokens))
    difference = np.bincount(story, nats) + floor.log_probs  # of each story, in nats
    error = math.sqrt(len(difference)) * difference.std(ddof=1)
    bits = 1 / math.log(2) / floor.num_bytes
    print(
        f"{name:42} {nats.sum() * bits:.4f} bits per byte, {difference.sum() / -floor.log_probs.sum():+8.1%}, "
        f"difference {difference.sum() * bits:+.4f} +/- {error * bits:.4f}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="runs, model folders or checkpoints trained on the stories")
    parser.add_argument("--corpus", default="stories", help="stories, stories:N, or a grammar (default: %(default)s)")
    parser.add_argument("--tokenizers", nargs="*", default=["char", "bpe:2048"], help="tokenizers of the n-gram models")
    parser.add_argument("--orders", type=int, nargs="*", default=[1, 3, 5, 7], help="orders of the n-gram models")
    options = parser.parse_args()

    def open_data(tokenizer: str = "char") -> TextDataModule:
        return TextDataModule(options.corpus, tokenizer, split=(0.96, 0.02, 0.02))

    floor = open_data().floors["val"]
    print(
        f"floor {floor.bits_per_byte:.4f} bits per byte, standard error "
        f"{floor.standard_error * floor.bits_per_byte / floor.nats_per_token:.4f} ({len(floor.begins)} texts, "
        f"{floor.num_bytes:,} bytes)"
    )
    for spec in options.tokenizers:
        data = open_data(spec)
        for order in options.orders:
            if data.vocab_size**order < 1 << 62:  # an n-gram is packed into one number
                nats = ngram_nats(data.tokens["train"], data.tokens["val"], order, data.vocab_size)
                report(f"{order}-gram of {spec} tokens", data, nats)
    for run in options.runs:
        model, tokenizer = tinylm.load(run)
        data = open_data()
        data.use_tokenizer(tokenizer)
        nats = model_nats(model.eval(), data.tokens["val"], data.floors["val"].begins)
        report(f"{run} ({tokenizer.kind}, context {model.config.max_seq_len})", data, nats)


if __name__ == "__main__":
    main()
