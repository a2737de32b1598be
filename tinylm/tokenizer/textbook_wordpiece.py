"""WordPiece in its simplest form: short and slow. Read textbook.py, on byte pair encoding, first.

WordPiece (Schuster and Nakajima 2012; used by BERT, Devlin et al. 2019) also builds a vocabulary by merging neighbours,
but chooses pairs by another score, and encodes without the merges, by the longest match.

Training: each word is a list of pieces, initially its characters; all but the first carry the mark ##. The pair (a, b)
with the highest score

    count(ab) / (count(a) count(b))

is merged: it need not be frequent, but its parts must seldom occur apart. If pieces are drawn independently, merging
this pair raises the likelihood of the text most per occurrence of the pair.

    hug 10   pug 5   hugs 5       h ##u 15   p ##u 5   ##u ##g 20   ##g ##s 5       ##g ##s: 5 / (20 * 5) = 1/20
                                                                                    h ##u:  15 / (15 * 20) = 1/20

Encoding: a word is spelled from its beginning, each time by the longest piece that fits. A word that cannot be spelled
in this way is unknown as a whole.

Left out: normalization and the splitting of texts into words.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import pairwise

from tinylm.tokenizer.textbook import merge_pair

MARK = "##"  # of pieces within a word
UNKNOWN = "[UNK]"

Word = tuple[str, ...]


def split(word: str) -> Word:
    """The characters of a word as pieces.

    >>> split("hug")
    ('h', '##u', '##g')
    """
    return (word[0], *(MARK + character for character in word[1:]))


def join(left: str, right: str) -> str:
    """The piece that two neighbours form.

    >>> join("h", "##u"), join("##u", "##g")
    ('hu', '##ug')
    """
    return left + right.removeprefix(MARK)


def learn_pieces(counts: Mapping[str, int], num_pieces: int) -> list[str]:
    """Learns a vocabulary from word counts.

    Of pairs with equal scores the most frequent is merged, and of equally frequent ones the first in the order of
    their code points.

    Args:
        counts: word -> number of occurrences
        num_pieces: size of the vocabulary, characters included; fewer if every word becomes one piece first

    Returns:
        the characters in the order of their code points, then the merged pieces in the order in which they were learned
    """
    words = {split(word): count for word, count in counts.items() if word}
    pieces = sorted({piece for word in words for piece in word})
    while len(pieces) < num_pieces:
        singles, pairs = count_pieces(words)
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair] / (singles[pair[0]] * singles[pair[1]]), -pairs[pair], pair))
        if join(*best) not in pieces:  # another pair may have formed it before
            pieces.append(join(*best))
        merged = Counter[Word]()
        for word, count in words.items():
            merged[tuple(merge_pair(word, best, join(*best)))] += count
        words = merged
    return pieces


def count_pieces(words: Mapping[Word, int]) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """The number of occurrences of each piece and of each pair of neighbours."""
    singles, pairs = Counter[str](), Counter[tuple[str, str]]()
    for word, count in words.items():
        for piece in word:
            singles[piece] += count
        for pair in pairwise(word):
            pairs[pair] += count
    return singles, pairs


def encode_word(word: str, vocabulary: Collection[str]) -> list[str]:
    """The pieces of a word, by the longest match.

    >>> encode_word("hugs", {"hug", "h", "##s", "##u"})
    ['hug', '##s']
    """
    pieces: list[str] = []
    start = 0
    while start < len(word):
        mark = MARK if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if mark + word[start:end] in vocabulary), None)
        if end is None:
            return [UNKNOWN]
        pieces.append(mark + word[start:end])
        start = end
    return pieces
