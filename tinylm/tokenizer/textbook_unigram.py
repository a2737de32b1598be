"""The unigram model of Kudo (2018) in its simplest form: short and slow. Read textbook.py first.

Byte pair encoding grows a vocabulary. The unigram model starts from a large one and removes the pieces that the text
needs least. Every piece has a probability, and pieces are drawn independently, so the probability of a segmentation is
the product of the probabilities of its pieces.

    hug  =  hug  or  hu g  or  h ug  or  h u g        p(hug) = .3    p(hu) p(g) = .2 * .1 = .02    ...

Encoding takes the most likely segmentation (the Viterbi algorithm), or draws one (subword regularization).

Training alternates two steps until the vocabulary is small enough:

- expectation maximization: each piece gets its share of all expected counts as its new probability. Expected counts
  average over all segmentations of all words, by their probabilities. The likelihood of the text never falls.
- pruning: each piece has a loss, the increase of the text's loss if other pieces had to spell its occurrences. Pieces
  with the smallest loss are removed. Single characters stay, so that every word can be spelled.

Left out: normalization, the splitting of texts into words, and SentencePiece's suffix array and digamma function.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random

LONGEST = 16  # characters of a piece

Scores = Mapping[str, float]  # piece -> log probability


def seed_pieces(counts: Mapping[str, int], num_pieces: int) -> dict[str, float]:
    """All characters, and the most promising longer substrings: those with the highest count times length.

    Args:
        counts: word -> number of occurrences
        num_pieces: number of longer substrings; each occurs at least twice

    Returns:
        log probabilities in proportion to the counts
    """
    found = Counter[str]()
    for word, count in counts.items():
        for piece, *_ in pieces_in(word):
            found[piece] += count
    longer = [piece for piece, count in found.items() if len(piece) > 1 and count > 1]
    longer.sort(key=lambda piece: (-found[piece] * len(piece), piece))
    characters = [piece for piece in found if len(piece) == 1]
    return normalized({piece: found[piece] for piece in characters + longer[:num_pieces]})


def pieces_in(word: str, longest: int = LONGEST) -> Iterator[tuple[str, int, int]]:
    """Every substring of a word up to a length, with its begin and end, ordered by its end.

    >>> [piece for piece, _, _ in pieces_in("hug")]
    ['h', 'u', 'hu', 'g', 'ug', 'hug']
    """
    for end in range(1, len(word) + 1):
        for begin in range(end - 1, max(end - longest, 0) - 1, -1):
            yield word[begin:end], begin, end


def normalized(counts: Mapping[str, float]) -> dict[str, float]:
    """The logarithm of each count's share of the sum."""
    total = math.log(math.fsum(counts.values()))
    return {piece: math.log(count) - total for piece, count in counts.items()}


# --- encoding


def encode_word(word: str, scores: Scores) -> list[str]:
    """The most likely segmentation of a word, by the Viterbi algorithm.

    The best segmentation up to `end` is the best one up to some `begin`, followed by the piece from `begin` to `end`.

    Raises:
        KeyError: if the pieces cannot spell the word.
    """
    best: list[tuple[float, int]] = [(0.0, 0), *[(-math.inf, 0)] * len(word)]  # log probability, begin of last piece
    for piece, begin, end in pieces_in(word):
        if piece in scores:
            best[end] = max(best[end], (best[begin][0] + scores[piece], begin))
    if best[-1][0] == -math.inf:
        raise KeyError(f"{word!r} cannot be spelled by these pieces")
    pieces: list[str] = []
    end = len(word)
    while end:
        begin = best[end][1]
        pieces.append(word[begin:end])
        end = begin
    return pieces[::-1]


def sample_word(word: str, scores: Scores, random: Random, alpha: float = 1.0) -> list[str]:
    """A segmentation drawn in proportion to its probability to the power alpha (subword regularization).

    Args:
        word: the word
        scores: log probabilities of the pieces
        random: source of random numbers
        alpha: with 0 all segmentations are equally likely; the larger alpha, the more often the best one is drawn
    """
    sharpened = {piece: alpha * score for piece, score in scores.items()}
    before, pieces, end = forward(word, sharpened), [], len(word)
    while end:  # backwards: the last piece first, given all that may come before it
        options = [(piece, begin) for piece, begin, last in pieces_in(word) if last == end and piece in scores]
        weights = [math.exp(before[begin] + sharpened[piece] - before[end]) for piece, begin in options]
        [(piece, end)] = random.choices(options, weights)
        pieces.append(piece)
    return pieces[::-1]


# --- training


def forward(word: str, scores: Scores) -> list[float]:
    """The log probability of the first k characters, summed over their segmentations, for k from 0."""
    found = [0.0, *[-math.inf] * len(word)]
    for piece, begin, end in pieces_in(word):
        if piece in scores:
            found[end] = log_add(found[end], found[begin] + scores[piece])
    return found


def backward(word: str, scores: Scores) -> list[float]:
    """The log probability of the characters from k on, summed over their segmentations, for k up to the length."""
    found = [*[-math.inf] * len(word), 0.0]
    for piece, begin, end in sorted(pieces_in(word), key=lambda each: -each[1]):
        if piece in scores:
            found[begin] = log_add(found[begin], scores[piece] + found[end])
    return found


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def expected_counts(counts: Mapping[str, int], scores: Scores) -> tuple[dict[str, float], float]:
    """The expected number of occurrences of each piece, and the log probability of the text.

    The probability of a piece from `begin` to `end` is the product of three factors, divided by the probability of the
    word: the total probability of the text before it, its own, and the total probability of the text after it.
    """
    found, log_prob = dict.fromkeys(scores, 0.0), 0.0
    for word, count in counts.items():
        before, after = forward(word, scores), backward(word, scores)
        log_prob += count * before[-1]
        for piece, begin, end in pieces_in(word):
            if piece in scores:
                found[piece] += count * math.exp(before[begin] + scores[piece] + after[end] - before[-1])
    return found, log_prob


def losses(expected: Mapping[str, float], scores: Scores) -> dict[str, float]:
    """The increase of the text's loss, in nats, if a piece of several characters is removed.

    The best segmentation by other pieces replaces its expected occurrences. The other probabilities stay unchanged.
    """
    found = {}
    for piece in scores:
        if len(piece) > 1:
            others = {each: score for each, score in scores.items() if each != piece}
            instead = math.fsum(scores[each] for each in encode_word(piece, others))
            found[piece] = expected[piece] * (scores[piece] - instead)
    return found


def train(
    counts: Mapping[str, int], num_pieces: int, num_seeds: int = 10_000, rounds: int = 2, keep: float = 0.75
) -> dict[str, float]:
    """Learns pieces and their log probabilities.

    Args:
        counts: word -> number of occurrences
        num_pieces: size of the vocabulary, characters included
        num_seeds: longer substrings to start from
        rounds: of expectation maximization before each pruning, and at the end
        keep: share of the longer pieces that a pruning keeps
    """
    scores = seed_pieces(counts, num_seeds)
    while True:
        expected = {}
        for _ in range(rounds):
            expected, _ = expected_counts(counts, scores)
            scores = normalized({piece: max(count, 1e-9) for piece, count in expected.items()})
        longer = [piece for piece in scores if len(piece) > 1]
        characters = len(scores) - len(longer)
        wanted = max(num_pieces - characters, 0)
        if len(longer) <= wanted:
            return scores
        lost = losses(expected, scores)
        longer.sort(key=lambda piece: (-lost[piece], piece))
        kept = {*longer[: max(wanted, math.floor(keep * len(longer)))]}
        left = {piece: score for piece, score in scores.items() if len(piece) == 1 or piece in kept}
        scores = normalized({piece: math.exp(score) for piece, score in left.items()})
