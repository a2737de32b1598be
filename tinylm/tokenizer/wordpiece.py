"""WordPiece (Schuster and Nakajima 2012; BERT, Devlin et al. 2019): words spelled by the longest pieces that fit.

    vocabulary     un  ##aff  ##able  the  ...        ## marks pieces that continue a word
    "unaffable"    un ##aff ##able

`textbook_wordpiece.py` does this in forty lines. Text is split in one of two ways. Our own tokenizers use GPT-2's
pattern, whose words contain their spaces, so decoding gives back the text. BERT's are lossy: text is normalized
(normalizers/bert.py), white space only separates words, and decoding puts single spaces between them.

A word that cannot be spelled, usually because the training text lacked a character, is unknown as a whole. It becomes
`[UNK]` if there is such a token; otherwise encoding raises an error. Encoding is fast because every distinct word is
spelled only once (words.py).

Not supported: byte fallback.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer.fast.blocks import Block, utf8
from tinylm.tokenizer.fast.chunks import PATTERNS, SpacedWords, WholeWords
from tinylm.tokenizer.fast.spelling import Score, count_words, learn_pieces
from tinylm.tokenizer.fast.words import WordTable, looked_up
from tinylm.tokenizer.learned import VOCAB_SIZE, WordwiseTokenizer
from tinylm.tokenizer.normalizers.base import Normalizer
from tinylm.tokenizer.normalizers.bert import BertNormalizer

UNKNOWN_PIECE = "[UNK]"
MARK, LONGEST = "##", 100
CLEANED = [  # replacements that other programs make in decoding, in this order
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
]  # fmt: skip


class WordPieceTokenizer(WordwiseTokenizer):
    """Pieces, numbered in order, followed by the special tokens that are not pieces.

    Args:
        pieces: the vocabulary; pieces that continue a word begin with the mark
        pattern: how text is split. `bert`, `whitespace` or `spaces`, as in `SpacedWords`: white space separates words.
            Any other pattern is one of `WordSplitter`, whose words contain white space.
        normalizer: the kind and options of a `Normalizer`; only if white space separates words
        unknown: the token for unknown words
        mark: the prefix of continuing pieces
        longest: the most characters of a word. Longer words are unknown if white space separates words; otherwise they
            are cut.
        cleanup: whether decoding drops the space before punctuation, as in `transformers`
        special_tokens: names; a name that is a piece keeps its id

    Attributes:
        unknown: the id for unknown words, or None

    Raises:
        ConfigError: if a piece repeats or is empty, or options contradict each other.
        DataError: if a piece has a lone surrogate.
    """

    kind = "wordpiece"
    most_per_byte = 2  # decomposed letters

    def __init__(
        self,
        pieces: Sequence[str],
        pattern: str = "gpt2",
        normalizer: dict[str, Any] | None = None,
        unknown: str = UNKNOWN_PIECE,
        mark: str = MARK,
        longest: int = LONGEST,
        cleanup: bool = False,
        special_tokens: Sequence[str] = (),
    ) -> None:
        self.pieces, self.pattern, self.mark, self.longest, self.cleanup = list(pieces), pattern, mark, longest, cleanup
        self._unknown_name = unknown
        self.normalizer = None if normalizer is None else Normalizer.from_dict(normalizer)
        self._check()
        self._splitter = _make_splitter(pattern, self.normalizer, mark, longest)
        self.separator = self._splitter.separator
        known = {piece: token for token, piece in enumerate(self.pieces)}
        super().__init__([self._piece_bytes(piece) for piece in self.pieces], special_tokens, known)
        for name, token in self.special_tokens.items():
            self.token_bytes[token] = utf8(name)
        self.unknown = self.special_tokens.get(unknown, known.get(unknown))
        self._begins = {piece: token for piece, token in known.items() if piece not in self.special_tokens}
        self._insides = {piece[len(mark) :]: token for piece, token in self._begins.items() if piece.startswith(mark)}
        self._insides.pop("", None)
        self._most = max(map(len, self._begins), default=0)
        self._remembered: dict[str, list[int]] = {}  # chunk -> ids, for short texts
        self._words = WordTable(self.dtype)  # for blocks

    def _check(self) -> None:
        if self.normalizer is not None and self.pattern not in PATTERNS:
            raise ConfigError(f"normalizer: needs a pattern of {', '.join(PATTERNS)}, got {self.pattern!r}")
        if self.cleanup and self.pattern not in PATTERNS:
            raise ConfigError(f"cleanup: needs a pattern of {', '.join(PATTERNS)}, got {self.pattern!r}")
        if not all(isinstance(piece, str) and piece for piece in self.pieces) or not self.mark or self.longest < 1:
            raise ConfigError("pieces and mark must be strings that are not empty, and longest at least 1")
        if len({*self.pieces}) < len(self.pieces):
            twice = next(piece for piece, count in Counter(self.pieces).items() if count > 1)
            raise ConfigError(f"pieces must be distinct, got {twice[:40]!r} twice")

    def _piece_bytes(self, piece: str) -> bytes:
        """The bytes that a piece adds to the decoded text."""
        if piece.startswith(self.mark):
            return utf8(self._clean(piece[len(self.mark) :]))
        return utf8(self._clean(self.separator + piece))

    def _clean(self, text: str) -> str:
        for found, instead in CLEANED if self.cleanup else ():
            text = text.replace(found, instead)
        return text

    def options(self) -> dict[str, Any]:
        """The arguments of `__init__`."""
        return {
            "pieces": self.pieces,
            "pattern": self.pattern,
            "normalizer": self.normalizer and self.normalizer.to_dict(),
            "unknown": self._unknown_name,
            "mark": self.mark,
            "longest": self.longest,
            "cleanup": self.cleanup,
            "special_tokens": list(self.special_tokens),
        }

    # --- training

    @classmethod
    def training_cut(cls, pattern: str) -> Callable[[str], int]:
        """The `safe_cut` of the words that white space or the pattern separates."""
        return _for_training(pattern, None).safe_cut

    @classmethod
    def train_from_blocks(
        cls,
        found: Iterable[Block],
        *,
        vocab_size: int = VOCAB_SIZE,
        pattern: str = "gpt2",
        normalizer: dict[str, Any] | None = None,
        score: Score = "likelihood",
        min_frequency: int | None = None,
        special_tokens: Sequence[str] = (UNKNOWN_PIECE,),
        processes: int | None = 1,
        progress: Callable[[str, int], object] = lambda stage, done: None,
    ) -> Self:
        """Learns pieces: every character, at the beginning of a word and inside, then merged neighbours.

        Args:
            found: the text
            vocab_size: number of pieces and special tokens; smaller if every word becomes one piece first. At most half
                of the pieces are characters; rarer ones are left out, with a notice.
            pattern: as in the class
            normalizer: as in the class. Default: none, and with the pattern `bert` the one of BERT's uncased models
            score: the score by which pairs are chosen. `likelihood`: count(ab) / (count(a) count(b)), as in
                textbook_wordpiece.py; `count`: count(ab), as in byte pair encoding and Hugging Face's WordPieceTrainer
            min_frequency: with `likelihood`: the least number of occurrences of a merged pair. The score alone favours
                the rarest pairs, and with 1 the vocabulary fills with names and misprints (0.97 tokens per byte with
                8,000 pieces on 14.6 MB of English). By default the limit falls: it starts at half the count of the most
                frequent pair, and is halved whenever no pair is left (0.29 tokens per byte, as with `count`).
            special_tokens: as in the class
            processes: processes that count words; None for one per core
            progress: called with ("counting", bytes read so far), then with ("merging", pieces so far)

        Raises:
            ConfigError: if options contradict each other, or vocab_size is too small for four pieces.
            DataError: if the text is empty or has a lone surrogate.
        """
        _check_training(score, min_frequency)
        if pattern == "bert" and normalizer is None:
            normalizer = BertNormalizer().to_dict()
        chunks = _for_training(pattern, normalizer)
        pieces = learn_pieces(
            count_words(found, chunks, processes, MARK, LONGEST, lambda done: progress("counting", done)),
            vocab_size - len(special_tokens),
            MARK,
            score,
            min_frequency,
            lambda done: progress("merging", done),
        )
        return cls(pieces, pattern, normalizer, special_tokens=special_tokens)

    # --- encoding

    def _spell(self, word: str) -> list[int] | None:
        """The ids of a word's pieces, by the longest match; None if it cannot be spelled."""
        if len(word) > self.longest:
            return None
        if (whole := self._begins.get(word)) is not None:
            return [whole]
        found, start, known, most = [], 0, self._begins, self._most
        while start < len(word):
            for end in range(min(start + most, len(word)), start, -1):
                if (token := known.get(word[start:end])) is not None:
                    break
            else:
                return None
            found.append(token)
            start, known = end, self._insides
        return found

    def _ids_of(self, chunk: str) -> list[int] | None:
        """The ids of a chunk; None if it has an unknown word and there is no unknown token."""
        found: list[int] = []
        for word in self._splitter.words(chunk):
            ids = self._spell(word)
            if ids is None:
                utf8(chunk)  # raises for a lone surrogate, which is not an unknown word
                if self.unknown is None:
                    return None
                ids = [self.unknown]
            found += ids
        return found

    def _encode_short(self, text: str, start: int = 0) -> list[int]:
        def encode(chunk: str) -> list[int]:
            if (ids := self._ids_of(chunk)) is None:
                raise self._unknown_word(text, start)
            return ids

        return looked_up(self._splitter.chunks(text), self._remembered, encode)

    def _unknown_word(self, text: str, start: int) -> DataError:
        """The error for the first unknown word of a text that begins at `start`."""
        place, chunk = 0, text
        for chunk in self._splitter.chunks(text):
            place = text.index(chunk, place)
            if self._ids_of(chunk) is None:
                break
            place += len(chunk)
        return DataError(
            f"word {chunk[:40]!a} at position {start + place} cannot be spelled by the vocabulary of "
            f"{len(self.pieces)} pieces; add it to the corpus, or train the tokenizer with the special token "
            f"{self._unknown_name}"
        )

    def _spell_new(
        self, block: Block, data: np.ndarray, starts: np.ndarray, sizes: np.ndarray, numbers: np.ndarray
    ) -> None:
        """Spells each new word of a block and stores its ids in `_words`."""
        found = []
        for begin, end in zip(starts.tolist(), (starts + sizes).tolist(), strict=True):
            if (ids := self._ids_of(data[begin:end].tobytes().decode())) is None:
                raise self._unknown_in(block)
            found.append(ids)
        counts = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
        self._words.lists.put(numbers, np.array([*chain.from_iterable(found)], dtype=np.int64), counts)

    def _unknown_in(self, block: Block) -> DataError:
        """The error for the first unknown word of a block."""
        start = block.start
        for text in block.texts:
            if any(self._ids_of(chunk) is None for chunk in self._splitter.chunks(text)):
                return self._unknown_word(text, start)
            start = 0
        raise AssertionError("the block has no unknown word")

    def spans(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The bytes of a text that each of its ids covers, as in `Tokenizer.spans`; white space may lie between."""
        found: list[tuple[int, int]] = []
        if isinstance(self._splitter, WholeWords):
            place = 0
            for chunk in self._splitter.chunks(text):
                found += self._parts(chunk, place)
                place += len(chunk)
        else:
            words, begins, ends = self._splitter.places(text)
            for begin, _, word in words:
                found += [(int(begins[first]), int(ends[last - 1])) for first, last in self._parts(word, begin)]
        offsets = np.cumsum([0, *(len(utf8(character)) for character in text)])
        return offsets[np.array(found, dtype=np.int64).reshape(-1, 2)]

    def _parts(self, word: str, place: int) -> Iterator[tuple[int, int]]:
        """The ranges of the pieces of a word that begins at `place`."""
        ids = self._spell(word)
        if ids is None:
            yield place, place + len(word)
            return
        for number, token in enumerate(ids):
            size = len(self.pieces[token]) - (len(self.mark) if number else 0)
            yield place, place + size
            place += size

    def bytes_from(self, text: str, ids: np.ndarray, first: int) -> int:
        """The number of bytes that the ids from index `first` on cover, as in `Tokenizer.bytes_from`."""
        if isinstance(self._splitter, WholeWords) and self.unknown not in ids:
            return super().bytes_from(text, ids, first)
        if first >= len(ids):
            return 0
        return len(utf8(text)) - (int(self.spans(text, ids)[first, 0]) if first else 0)

    # --- decoding

    def normalized(self, text: str) -> str:
        """The text that decoding returns if every character has a piece."""
        if isinstance(self._splitter, WholeWords):
            return text
        words = chain.from_iterable(map(self._splitter.words, self._splitter.chunks(text)))
        return "".join(self._clean(" " + word) for word in words).removeprefix(" ")

    def _bytes(self, token: int) -> bytes:
        found = super()._bytes(token)
        return utf8(self.separator) + found if int(token) in self._special_ids else found

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    def _strips(self, first: list[int]) -> bool:
        """Whether decoding drops the space before the first word."""
        return bool(self.separator)


def _make_splitter(pattern: str, normalizer: Normalizer | None, mark: str, longest: int) -> WholeWords | SpacedWords:
    return SpacedWords(pattern, normalizer) if pattern in PATTERNS else WholeWords(pattern, mark, longest)


def _for_training(pattern: str, normalizer: dict[str, Any] | None) -> WholeWords | SpacedWords:
    return _make_splitter(pattern, None if normalizer is None else Normalizer.from_dict(normalizer), MARK, LONGEST)


def _check_training(score: str, min_frequency: int | None) -> None:
    if score not in ("likelihood", "count"):
        raise ConfigError(f"score must be likelihood or count, got {score!r}")
    if min_frequency is not None and (score == "count" or min_frequency < 1):
        raise ConfigError(
            f"min_frequency must be at least 1, and needs score likelihood, got {min_frequency} and {score}"
        )
