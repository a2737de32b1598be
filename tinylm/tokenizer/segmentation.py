"""Segmentations of one word by the unigram model: the most likely one, the n most likely, and their probabilities.

textbook_unigram.py explains the algorithm. Here a character that is not a piece has a score too, so that every word has
a segmentation. Ties are resolved as in sentencepiece and `tokenizers`: a later piece replaces an earlier one only if it
is better.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Mapping

Arc = tuple[int, int]  # begin and end of a piece in a word


class Pieces:
    """Pieces with scores, and the segmentations of a word by them.

    Args:
        scores: piece -> log probability
        unknown_score: log probability of a character that is not a piece
    """

    def __init__(self, scores: Mapping[str, float], unknown_score: float) -> None:
        self.scores, self.unknown_score = scores, unknown_score
        self._longest: dict[str, int] = {}  # first character -> characters of the longest such piece
        for piece in scores:
            self._longest[piece[0]] = max(self._longest.get(piece[0], 1), len(piece))
        self._most = max(self._longest.values(), default=1)

    def best_path(self, word: str, round_to: Callable[[float], float] = float, largest: float = math.inf) -> list[Arc]:
        """The most likely segmentation, in time linear in the length of the word.

        Args:
            word: any text
            round_to: rounds each sum of scores, for programs that store sums in fewer bits
            largest: if the magnitude of a sum exceeds this, it is subtracted from all sums in use, as in such programs
        """
        scores, longest, size = self.scores, self._longest, len(word)
        best, begins = [0.0, *[-math.inf] * size], [0] * (size + 1)
        for begin, character in enumerate(word):
            here = best[begin]
            if abs(here) > largest:
                used = slice(begin, begin + self._most + 1)
                best[used] = [round_to(total - here) for total in best[used]]
                here = 0.0
            for end in range(begin + 1, min(begin + longest.get(character, 0), size) + 1):
                score = scores.get(word[begin:end])
                if score is not None and (total := round_to(here + score)) > best[end]:
                    best[end], begins[end] = total, begin
            if character not in scores and (total := round_to(here + self.unknown_score)) > best[begin + 1]:
                best[begin + 1], begins[begin + 1] = total, begin
        return _traced(begins, size)

    def n_best(self, word: str, n: int) -> list[tuple[float, list[Arc]]]:
        """The n most likely segmentations, the best first: (log probability, arcs). Fewer if the word has fewer."""
        best: list[list[tuple[float, tuple]]] = [[(0.0, ())], *[[] for _ in word]]
        for end in range(1, len(word) + 1):
            found = [
                (before + score, (path, (begin, end)))
                for begin, score in self._ending(word, end)
                for before, path in best[begin]
            ]
            best[end] = heapq.nlargest(n, found, key=lambda each: each[0])
        return [(score, _unfolded(path)) for score, path in best[-1]]

    def log_total(self, word: str, alpha: float = 1.0) -> float:
        """The log of the sum, over all segmentations, of their probability to the power alpha."""
        total = [0.0]
        for end in range(1, len(word) + 1):
            terms = [total[begin] + alpha * score for begin, score in self._ending(word, end)]
            highest = max(terms)
            total.append(highest + math.log(math.fsum(math.exp(term - highest) for term in terms)))
        return total[-1]

    def score(self, piece: str) -> float:
        """The log probability of a piece, or of an unknown character."""
        return self.scores.get(piece, self.unknown_score)

    def _ending(self, word: str, end: int) -> Iterable[tuple[int, float]]:
        """The pieces that end at a position: (begin, score)."""
        for begin in range(max(end - self._most, 0), end):
            score = self.scores.get(word[begin:end])
            if score is not None:
                yield begin, score
            elif begin == end - 1:
                yield begin, self.unknown_score


def _traced(begins: list[int], size: int) -> list[Arc]:
    """The arcs of a segmentation. `begins`: where the last piece up to each position begins."""
    arcs, end = [], size
    while end:
        arcs.append((begins[end], end))
        end = begins[end]
    return arcs[::-1]


def _unfolded(path: tuple) -> list[Arc]:
    arcs = []
    while path:
        path, arc = path
        arcs.append(arc)
    return arcs[::-1]
