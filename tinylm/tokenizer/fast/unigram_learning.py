"""Training of the unigram model with NumPy: learns the pieces and their probabilities.

`textbook_unigram` looks up every substring of every word in a dictionary, in each round. Three observations bring the
training on 15 MB of text down to about two seconds:

1. **Equal words have equal segmentations.** All work is done on distinct words, weighted by their counts.
2. **Only maximal substrings can become pieces** (`suffixes.py`): if "q" is always followed by "u", a piece that ends
   between them is useless. The suffix array also gives the place of every occurrence, so that no substring is
   ever looked up.
3. **All words take the same step together** (`lattice.py`). Removing a piece removes its arcs; what remains is never
   searched again.

The schedule follows SentencePiece (unigram_model_trainer.cc). So does the step from expected counts to probabilities,
which takes exp(digamma(count)) instead of the count and so makes rare pieces rarer (a variational estimate with a
sparse prior; Liang and Klein 2007). Training differs from SentencePiece's in three ways:

- Words end where the pre-tokenizer says. SentencePiece finds its seeds in whole lines, where a word that is always
  followed by a space is not maximal without the space, and is lost.
- The loss of a piece is its expected count times the difference of log probabilities, as in `textbook_unigram`.
- The last pruning, from 1.1 times the vocabulary, is by loss too, and the probabilities are estimated once more.
  SentencePiece takes the most probable pieces; the probability of the others is left unused.
"""

from collections.abc import Callable

import numpy as np

from tinylm.errors import ConfigError
from tinylm.tokenizer.fast.arrays import slices
from tinylm.tokenizer.fast.counting import beginnings
from tinylm.tokenizer.fast.lattice import LONGEST, Lattice, Occurrences
from tinylm.tokenizer.fast.suffixes import END, Suffixes

STEP = 1024  # scores are multiples of 1/1024: sums of them are exact, so that ties are ties in any program
RARE = 0.499  # expected count below which a piece is dropped; just below 0.5, so that rounding does not decide on 0.5
LONG = 1 << 14  # bytes; only the beginning of longer words is used, so that a word of 200 MB does not fill the memory
MORE = 1.1  # the last pruning starts at this multiple of the vocabulary


def learn_unigram(
    words: np.ndarray,
    sizes: np.ndarray,
    counts: np.ndarray,
    num_pieces: int,
    *,
    coverage: float = 0.9995,
    longest: int = 16,
    seeds: int = 1_000_000,
    shrink: float = 0.75,
    rounds: int = 2,
    others: int = 0,
    progress: Callable[[int], object] = lambda pieces: None,
) -> tuple[list[str], list[float]]:
    """Learns pieces from counted words. A space is a character like any other.

    Args:
        words: the UTF-8 of the distinct words, concatenated, uint8 (bytes,)
        sizes: length of each word in bytes, (words,)
        counts: occurrences of each word, (words,)
        num_pieces: size of the vocabulary, characters included; smaller if the words have fewer useful substrings
        coverage: share of the text that characters with a piece must cover; the rarest characters get none
        longest: the most characters of a piece, at most 127
        seeds: number of longer pieces to start from
        shrink: share of the pieces that each pruning keeps, less than 1
        rounds: expectation maximization steps before each pruning, and at the end
        others: number of tokens beside the pieces, such as bytes, for the error message
        progress: called with the number of pieces left, before each pruning and at the end

    Returns:
        the pieces, the most probable first, and their log probabilities, which are multiples of 1/1024

    Raises:
        ConfigError: if num_pieces is smaller than the number of characters.
    """
    corpus = Corpus(words, sizes, counts, coverage)
    least = len(corpus.characters)
    if num_pieces < least:
        what = f"{least} characters" + (f" and {others} other tokens" if others else "")
        raise ConfigError(f"vocab_size must be at least {least + others}, {what}, got {num_pieces + others}")
    if not least:
        return [], []
    learner = UnigramLearner(corpus, longest, seeds)
    learner.learn(num_pieces, shrink, rounds, progress)
    return learner.pieces()


class Corpus:
    """Counted words, with characters as numbers.

    Arguments as in `learn_unigram`.

    Attributes:
        characters: the characters that get a piece, in the order of their code points
        symbols: all words, each followed by `END`, int32 (n,). A character is its index in `characters` plus one, or
            `END` if it gets no piece.
        weights: the count of the word that each symbol belongs to, (n,)
        starts: the offset in `symbols` of each stretch of characters with a piece, longest first, (stretches,). A
            stretch longer than `LONGEST` is cut.
        sizes: characters of each stretch, (stretches,)
        counts: occurrences of each stretch, (stretches,)
    """

    def __init__(self, words: np.ndarray, sizes: np.ndarray, counts: np.ndarray, coverage: float) -> None:
        words, sizes = beginnings(words, sizes, LONG)
        points = np.frombuffer(words.tobytes().decode().encode("utf-32-le"), dtype="<u4")
        characters_before = np.append(0, np.cumsum((words & 0xC0) != 0x80))  # continuation bytes do not count
        lengths = np.diff(characters_before[np.append(0, np.cumsum(sizes))])
        alphabet, indices = np.unique(points, return_inverse=True)
        kept = _covering(np.bincount(indices, np.repeat(counts, lengths), len(alphabet)), coverage)
        self.characters = [chr(point) for point in alphabet[kept]]
        numbers = np.full(len(alphabet), END, dtype=np.int32)
        numbers[kept] = np.arange(1, len(kept) + 1)
        self.symbols = np.full(len(points) + len(lengths), END, dtype=np.int32)
        self.symbols[np.arange(len(points)) + np.repeat(np.arange(len(lengths)), lengths)] = numbers[indices]
        self.weights = np.repeat(counts, lengths + 1)
        self.starts, self.sizes = _stretches(self.symbols)
        self.counts = self.weights[self.starts].astype(np.float64)


def _covering(counts: np.ndarray, coverage: float) -> np.ndarray:
    """The fewest characters, as indices in ascending order, whose share of all counts is at least the coverage."""
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    return np.sort(order[before < coverage * counts.sum()])


def _stretches(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begins and sizes of the longest stretches without `END`, cut at `LONGEST`; the longest ones first."""
    edges = np.flatnonzero(np.diff(symbols != END, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2]
    parts = -(-(ends - begins) // LONGEST)  # rounded up
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = np.repeat(begins, parts) + LONGEST * part
    sizes = np.minimum(np.repeat(ends, parts) - starts, LONGEST)
    order = np.argsort(-sizes, kind="stable")
    return starts[order], sizes[order]


class UnigramLearner:
    """A vocabulary that shrinks. Pieces are numbered from the longest to the single characters.

    Args:
        corpus: the words
        longest: characters of a piece
        seeds: pieces of several characters to start from: those with the highest count times length

    Attributes:
        scores: the log probability of each piece, (pieces,)
        expected: the expected count of each piece by the scores before the last step, (pieces,)
    """

    def __init__(self, corpus: Corpus, longest: int = 16, seeds: int = 1_000_000) -> None:
        self._corpus = corpus
        suffixes = Suffixes(corpus.symbols, corpus.weights, longest)
        found = suffixes.substrings()
        worth = np.where(found.lengths > 1, found.counts * found.lengths, np.iinfo(np.int64).max)
        kept = np.sort(np.argsort(-worth, kind="stable")[: len(corpus.characters) + seeds])
        self._lengths, begins, ends, counts = (each[kept] for each in found)
        self._places = suffixes.order[begins]  # of one occurrence of each piece
        self.scores = np.log(counts / counts.sum())
        self.expected = counts.astype(np.float64)
        occurrences = self._occurrences(suffixes.order, begins, ends)
        self._words = Lattice(corpus.starts, corpus.sizes, occurrences)
        self._inner = Lattice(self._places, self._lengths, occurrences, whole=False)  # pieces, as words of other pieces
        self._seeds = len(counts)
        self._alive = np.arange(self._seeds)  # the words of `_inner` that are still pieces

    def _occurrences(self, order: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> Occurrences:
        """All occurrences of the pieces, which are runs of the sorted suffixes."""
        found = []
        for length in np.unique(self._lengths).tolist():
            pieces = np.flatnonzero(self._lengths == length)
            sizes = ends[pieces] - begins[pieces]
            found.append((length, slices(order, begins[pieces], sizes), np.repeat(pieces, sizes)))
        return found

    def learn(self, num_pieces: int, shrink: float, rounds: int, progress: Callable[[int], object]) -> None:
        """Estimates and prunes in turn until the vocabulary is small enough. Arguments as in `learn_unigram`."""
        enough = int(MORE * num_pieces)
        while True:
            for _ in range(rounds):
                self.estimate()
            progress(len(self.scores))
            if len(self.scores) <= enough:
                break
            self.prune(max(enough, int(shrink * len(self.scores))))
        if len(self.scores) > num_pieces:
            self.prune(num_pieces)
        for _ in range(rounds):
            self.settle()
        progress(len(self.scores))

    def estimate(self) -> None:
        """One step of expectation maximization; drops pieces whose expected count is less than `RARE`."""
        self.expected, _ = self._words.expected(self.scores, self._corpus.counts)
        self.expected[self._lengths == 1] = np.maximum(self.expected[self._lengths == 1], RARE)
        self._keep(self.expected >= RARE)
        self.scores = digamma(self.expected) - digamma(self.expected.sum())

    def settle(self) -> None:
        """A step without the sparse prior: the probability of each piece is its share of all expected counts."""
        self.expected, _ = self._words.expected(self.scores, self._corpus.counts)
        counts = np.maximum(self.expected, RARE)
        self.scores = np.log(counts / counts.sum())

    def losses(self) -> np.ndarray:
        """The loss if each piece is removed, as in `textbook_unigram.losses`; infinite for characters, (pieces,)."""
        found, longer = np.full(len(self.scores), np.inf), self._lengths > 1
        instead = self._inner.best(self.scores)[self._alive[longer]]
        found[longer] = self.expected[longer] * (self.scores[longer] - instead)
        return found

    def prune(self, size: int) -> None:
        """Removes the pieces with the smallest loss until `size` are left."""
        kept = np.zeros(len(self.scores), dtype=bool)
        losses = self.losses().astype(np.float32)  # equal losses stay equal if sums are rounded in another order
        kept[np.argsort(-losses, kind="stable")[:size]] = True
        self._keep(kept)

    def _keep(self, kept: np.ndarray) -> None:
        self._alive = self._alive[kept]
        self._words.keep(kept)
        self._inner.keep(kept, np.isin(np.arange(self._seeds), self._alive))
        self._places, self._lengths = self._places[kept], self._lengths[kept]
        self.expected, self.scores = self.expected[kept], self.scores[kept]

    def pieces(self) -> tuple[list[str], list[float]]:
        """Pieces and rounded scores, the most probable first; equal ones in the order of their characters."""
        characters, symbols = self._corpus.characters, self._corpus.symbols.tolist()
        names = [
            "".join([characters[symbol - 1] for symbol in symbols[place : place + length]])
            for place, length in zip(self._places.tolist(), self._lengths.tolist(), strict=True)
        ]
        found = sorted(zip((-np.round(self.scores * STEP) / STEP).tolist(), names, strict=True))
        return [name for _, name in found], [-score for score, _ in found]


def digamma(values: np.ndarray) -> np.ndarray:
    """The derivative of log gamma, about log(x - 1/2), for positive values (Abramowitz and Stegun 6.3.5, 6.3.18)."""
    found, x = np.zeros_like(values), np.array(values)
    for _ in range(10):  # digamma(x) = digamma(x + 1) - 1 / x
        found -= 1 / x
        x += 1
    square = 1 / (x * x)
    return found + np.log(x) - 0.5 / x - square * (1 / 12 - square * (1 / 120 - square / 252))
