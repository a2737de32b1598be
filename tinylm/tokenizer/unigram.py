"""The unigram model (Kudo 2018): the most likely segmentation, by probabilities of pieces.

    hug  -1.2    h  -3.0    u  -3.5    g  -3.2    gs  -4.0    s  -2.8        log probabilities
    "hugs"   >   hug s (-4.0), not h u gs (-10.5)

`textbook_unigram.py` does this for one word. Here a text is cut wherever no piece can span the cut, in most models
between words, and each distinct part is segmented once: `segmentation.py` segments one part, `fast/segmenting.py` all
new parts of a block.

A model trained by tinylm encodes any text without loss: spaces and line ends are ordinary characters, and a character
without a piece becomes its bytes. Models of other programs may normalize the text first, write spaces as ▁, put a space
before the text, and encode unknown characters as `<unk>`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from tinylm.errors import ConfigError
from tinylm.tokenizer.base import END_OF_TEXT, Tokenizer
from tinylm.tokenizer.characters import BYTE_NAMES, SPACE
from tinylm.tokenizer.fast.blocks import SEPARATOR, Block, blocks, file_blocks, utf8
from tinylm.tokenizer.fast.counting import count_words
from tinylm.tokenizer.fast.cutting import LONGEST, too_long
from tinylm.tokenizer.fast.unigram_learning import learn_unigram
from tinylm.tokenizer.learned import VOCAB_SIZE, LearnedTokenizer
from tinylm.tokenizer.normalizers.base import Normalizer, through
from tinylm.tokenizer.normalizers.charsmap_rules import named_charsmap
from tinylm.tokenizer.normalizers.metaspace import Spacing
from tinylm.tokenizer.normalizers.sentencepiece import SentencePieceNormalizer
from tinylm.tokenizer.unigram_model import MOST_CUTS, UnigramModel

WORDS_PER_MEGABYTE = 500  # distinct words per megabyte of memory, in training
UNKNOWN_PIECE = "<unk>"
UNKNOWN_PENALTY = 10.0  # nats by which an unknown character is less likely than the rarest piece, as in sentencepiece
MOST_SCORE = 1e9  # beyond which sums could overflow
LONG = 1 << 16  # characters; longer texts are encoded in blocks
LOOK = 64  # characters that are normalized on each side of a possible cut, or at the beginning of a text
VISIBLE = [*map(chr, range(0x21, 0x7F))]


class UnigramTokenizer(LearnedTokenizer):
    """Pieces with log probabilities, in the order of their ids.

    Args:
        pieces: the name of each id, distinct. With `byte_fallback`, the bytes are named `<0x00>` to `<0xFF>`.
        scores: log probability of each piece, in nats; None for a piece that no text contains, such as a byte
        unknown: the id for characters without a piece, or None
        byte_fallback: whether a character without a piece becomes its bytes
        unknown_score: log probability of a character without a piece. Default: 10 nats below the smallest score
        marker: whether ▁ stands for a space, in pieces and in the text to be segmented
        normalizer: options of the normalizer that is applied to a text first (`Normalizer.to_dict`), or None
        spacing: options of the normalizer that is then applied to each part between added tokens, or None
        split: "pieces" if pieces may span the space before a word, "spaces" if none does
        sums: "parts" to compare the probabilities of segmentations part by part. "text" to compare float32 sums from
            the beginning of the text, as SentencePiece does; rounding may decide between nearly equal segmentations.
        strip: whether decoding drops the first space of a text
        surface: the text that `unknown` decodes to. Default: its name
        special_tokens: names. A name that is a piece keeps its id, and no text contains it. The other ids follow.

    Raises:
        ConfigError: if pieces repeat, a score is not a number, or unknown characters cannot be encoded.
    """

    kind = "unigram"
    ends = (END_OF_TEXT, "</s>")

    def __init__(
        self,
        pieces: Sequence[str],
        scores: Sequence[float | None],
        unknown: int | None = None,
        byte_fallback: bool = False,
        unknown_score: float | None = None,
        marker: bool = False,
        normalizer: dict[str, Any] | None = None,
        spacing: dict[str, Any] | None = None,
        split: Literal["pieces", "spaces"] = "pieces",
        sums: Literal["parts", "text"] = "parts",
        strip: bool = False,
        surface: str | None = None,
        special_tokens: Sequence[str] = (),
    ) -> None:
        self.pieces, self.scores, self.unknown, self.byte_fallback = list(pieces), list(scores), unknown, byte_fallback
        self.unknown_score, self.marker, self.split, self.strip = unknown_score, marker, split, strip
        self.sums, self.surface = sums, surface
        numbers = {piece: token for token, piece in enumerate(self.pieces)}
        _check(self, numbers)
        names = [piece.replace(SPACE, " ") if marker else piece for piece in self.pieces]
        byte_ids = [numbers[name] for name in BYTE_NAMES] if byte_fallback else []
        token_bytes = [utf8(name) for name in names]
        for byte, token in enumerate(byte_ids):
            token_bytes[token] = bytes([byte])
        if unknown is not None and surface is not None:
            token_bytes[unknown] = utf8(surface)
        super().__init__(token_bytes, special_tokens, numbers)
        self.normalizer = None if normalizer is None else Normalizer.from_dict(normalizer)
        self.spacing = None if spacing is None else Normalizer.from_dict(spacing)
        never = {
            token for token, piece in enumerate(self.pieces) if piece in special_tokens or (marker and " " in piece)
        }
        found = {names[i]: score for i, score in enumerate(self.scores) if score is not None and i not in never}
        least = min(found.values(), default=0.0) - UNKNOWN_PENALTY if unknown_score is None else unknown_score
        least = float(np.float32(least)) if sums == "text" else least
        ids = {name: token for token, name in enumerate(names) if name in found and token not in never}
        way = byte_ids if unknown is None or byte_fallback else unknown
        self.model = UnigramModel(ids, found, least, way, split == "spaces", self.dtype, sums == "text")
        self._changes = self.normalizer is not None or self.spacing is not None or marker
        self.most_per_byte = 3 if self._changes else 1
        if self.normalizer is not None:
            self.most_per_byte = max(3, self.normalizer.most_per_byte)
            self.lone_space = numbers.get(SPACE) if strip and self.normalizer.drops_first_spaces else None

    # --- training

    @classmethod
    def train_from_blocks(
        cls,
        found: Iterable[Block],
        *,
        vocab_size: int = VOCAB_SIZE,
        pattern: str = "gpt2",
        byte_fallback: bool = True,
        normalization: str = "identity",
        character_coverage: float = 0.9995,
        special_tokens: Sequence[str] = (),
        processes: int | None = 1,
        memory_limit: int | None = None,
        progress: Callable[[str, int], object] = lambda stage, done: None,
    ) -> Self:
        """Learns pieces and their probabilities. No piece spans two words; a word may begin with a space.

        Args:
            found: the text
            vocab_size: number of bytes (or `<unk>`), pieces and special tokens; smaller if the text has fewer pieces
            pattern: how text is split into words, as in `WordSplitter`
            byte_fallback: whether characters without a piece become bytes or `<unk>`
            normalization: SentencePiece's rules, applied to a text first. `nfkc` composes letters and replaces
                compatibility characters. `nmt_nfkc` also replaces line ends and tabs by spaces and removes control
                characters. `nfkc_cf` and `nmt_nfkc_cf` also fold case. `identity` changes nothing.
            character_coverage: share of the text whose characters get pieces; the rarest characters get none
            special_tokens: as in the class
            processes: processes that count words; None for one per core
            memory_limit: megabytes for distinct words, besides about 200 for the program. Beyond it the rarest words
                are dropped, with a notice.
            progress: called with ("counting", bytes read so far), then with ("pruning", pieces left)

        Raises:
            ConfigError: if vocab_size has no room for the characters, or the normalization is unknown.
            DataError: if the text is empty or has a lone surrogate.
        """
        first = BYTE_NAMES if byte_fallback else [UNKNOWN_PIECE]
        others = len(first) + len(special_tokens)
        charsmap = named_charsmap(normalization)
        normalizer = SentencePieceNormalizer(charsmap, False, False, escape_whitespaces=False) if charsmap else None
        if normalizer is not None:
            found = (Block([*map(normalizer.normalize, block.texts)], block.start) for block in found)
        counted = count_words(found, pattern, processes, memory_limit, progress, WORDS_PER_MEGABYTE)
        pieces, scores = learn_unigram(
            *counted,
            vocab_size - others,
            coverage=character_coverage,
            others=others,
            progress=lambda left: progress("pruning", left),
        )
        nothing: list[float | None] = [None] * len(first)
        unknown = None if byte_fallback else 0
        options: dict[str, Any] = dict(normalizer=normalizer and normalizer.to_dict(), special_tokens=special_tokens)
        return cls([*first, *pieces], [*nothing, *scores], unknown, byte_fallback, **options)

    # --- text -> ids

    def _inner(self, text: str, continues: bool = False) -> str:
        """A text as the model reads it. `continues`: whether it continues an earlier part."""
        normal = self.normalizer.normalize(text, continues=continues) if self.normalizer else text
        return self.spaced(normal, continues or self._begins_later(text))

    def _begins_later(self, text: str) -> bool:
        """Whether normalization drops the beginning of a text, so that no space is put before the rest."""
        if not (self.opens_once and self.normalizer):
            return False
        return bool(self.normalizer.offsets(text[:LOOK])[0][:1].any())

    def spaced(self, text: str, continues: bool = False) -> str:
        """A normalized text as the model reads it, with spaces for ▁. `continues` as in `Normalizer.normalize`."""
        text = self.spacing.normalize(text, continues=continues) if self.spacing else text
        return text.replace(SPACE, " ") if self.marker else text

    @property
    def opens_once(self) -> bool:
        """Whether a space is put before the text only, not before its parts after added tokens."""
        return isinstance(self.spacing, Spacing) and self.spacing.prefix == "first"

    def normalized(self, text: str) -> str:
        """The text that decoding returns if every character has a piece or becomes bytes."""
        inner = self._inner(text)
        return self.without_first_spaces(inner) if self.strip else inner

    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """The ids of a text, int64 (n,).

        Raises:
            DataError: for a lone surrogate, or a part that is too long and cannot be cut.
        """
        continues = self.opens_once and start > 0
        if len(text) > LONG:
            found = blocks([[text]], self.safe_cut)
            return np.concatenate([self._encode_block(block, continues or block.start > 0) for block in found])
        return np.array(self.model.encode(self._inner(text, continues)), dtype=np.int64)

    def encode_with_offsets(self, text: str, *, allow_special: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text and the characters that each id covers, as in `Tokenizer.encode_with_offsets`.

        A space that was put before the text covers no character. Characters normalized from one cover all of it.
        """
        ids, offsets = [np.empty(0, dtype=np.int64)], [np.empty((0, 2), dtype=np.int64)]
        for part, special, start in self._split_special(text) if allow_special else [(text, None, 0)]:
            if special is not None:
                found = np.array([special]), np.array([[start, start + len(part)]])
            else:
                found = self._offsets_of_part(part, start, self.opens_once and start > 0)
            ids.append(found[0])
            offsets.append(found[1])
        return np.concatenate(ids), np.concatenate(offsets)

    def _offsets_of_part(self, text: str, start: int, continues: bool) -> tuple[np.ndarray, np.ndarray]:
        begins, ends = np.arange(len(text)), np.arange(1, len(text) + 1)
        if self.normalizer:
            begins, ends = self.normalizer.offsets(text)
            text = self.normalizer.normalize(text)
        continues = continues or (self.opens_once and bool(begins[:1].any()))
        ids, offsets = self.offsets_of_normal(text, begins, ends, continues)
        return ids, start + offsets

    def offsets_of_normal(
        self, text: str, begins: np.ndarray, ends: np.ndarray, continues: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a normalized text, int64 (n,), and the original characters that each covers, int64 (n, 2).

        Args:
            text: the normalized text
            begins: the offset in the original text where each normalized character begins, int64 (characters,)
            ends: the offset where it ends
            continues: as in `Normalizer.normalize`
        """
        inner = self.spaced(text, continues)
        if self.spacing:
            more_begins, more_ends = self.spacing.offsets(text)
            put = len(more_begins) - len(inner)  # at the beginning of a text only
            begins, ends = through(begins, ends, more_begins[put:], more_ends[put:])
        tokens = self.model.tokens(inner)
        places = np.array([(token.begin, token.end - 1) for token in tokens], dtype=np.int64).reshape(-1, 2)
        ids = np.array([token.id for token in tokens], dtype=np.int64)
        return ids, np.stack([begins[places[:, 0]], ends[places[:, 1]]], axis=1)

    def spans(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The byte range of each id, as in `Tokenizer.spans`."""
        offsets = self._offsets_of_part(text, 0, False)[1]
        size = np.cumsum([0, *(len(utf8(character)) for character in text)])
        return size[offsets]

    def bytes_from(self, text: str, ids: np.ndarray, first: int) -> int:
        """The number of bytes that the ids from index `first` on cover, as in `Tokenizer.bytes_from`."""
        if not self._changes and self.unknown is None:
            return super().bytes_from(text, ids, first)
        begin = self._offsets_of_part(text, 0, False)[1][first, 0] if 0 < first < len(ids) else 0
        return len(utf8(text[begin:])) if first < len(ids) else 0

    # --- blocks

    def encode_packed(self, block: Block) -> np.ndarray:
        """The ids of a block in `dtype` (n,). All new parts are segmented at once."""
        return self._encode_block(block, block.start > 0)

    def _encode_block(self, block: Block, continues: bool) -> np.ndarray:
        if not self._changes and self.sums == "parts":
            return self.model.encode_data(block.data, self.end_of_text)
        texts = [self._inner(text, continues and not number) for number, text in enumerate(block.texts)]
        if self.sums == "text":
            end = [] if self.end_of_text is None else [self.end_of_text]
            found = [np.array([*end * bool(number), *self.model.encode(text)]) for number, text in enumerate(texts)]
            return np.concatenate(found).astype(self.dtype)
        return self.model.encode_data(SEPARATOR.join(map(utf8, texts)), self.end_of_text)

    def _file_blocks(self, path: Path) -> Iterator[Block]:
        if not self._changes and all(self.model.splits(character, " ") for character in VISIBLE):
            return file_blocks(path, self.safe_cut)
        return super()._file_blocks(path)

    def safe_cut(self, text: str) -> int:
        """A late position at which a text can be cut and its parts encoded independently; 0 if there is none.

        Raises:
            DataError: if there is none and the text is too long to be segmented as a whole.
        """
        cut = self._spaced_cut(text)
        if not cut and not self._changes:
            begin = max(len(text) - LONG, 0)
            cut = self.model.last_cut(text[begin:])
            cut += begin if cut else 0
        if not cut and len(text) > LONGEST:
            raise too_long(np.frombuffer(utf8(text), dtype=np.uint8), 0, len(utf8(text)))
        return cut

    def _spaced_cut(self, text: str) -> int:
        """The last safe cut before a space or line end; 0 if there is none near the end."""
        cut = len(text)
        for _ in range(MOST_CUTS):
            cut = max(text.rfind(" ", 0, cut), text.rfind("\n", 0, cut))
            cut -= text[max(cut - 1, 0) : cut + 1] == "\r\n"
            if cut <= 0:
                return 0
            if self._may_cut(text, cut):
                return cut
        return 0

    def _may_cut(self, text: str, cut: int) -> bool:
        if text[cut - 1].isspace() or (self.normalizer and not self.normalizer.may_cut(text, cut)):
            return False
        before = self._inner(text[max(cut - LOOK, 0) : cut], continues=True)[-1:]
        after = self._inner(text[cut : cut + LOOK], continues=True)[:1]
        return before not in ("", " ") and after != "" and self.model.splits(before, after)

    # --- other segmentations

    def sample(self, text: str, alpha: float, random: "np.random.Generator") -> np.ndarray:
        """The ids of a text in a segmentation drawn at random, as in `Tokenizer.sample`, int64 (n,).

        Segmentations are drawn in proportion to their probability to the power alpha. With 0 all are equally likely;
        with a large alpha the most likely one is drawn almost always.

        Raises:
            ConfigError: for an alpha below 0, or so large that sums would overflow.
        """
        return self.model.sample(self._inner(text), alpha, random)

    def resample(self, ids: np.ndarray, alpha: float, random: "np.random.Generator") -> np.ndarray:
        """Segments the text of ids anew, at random; it is normalized already."""
        return self.model.sample(b"".join(self.token_bytes[token] for token in ids).decode(), alpha, random)

    @cached_property
    def fixed_ids(self) -> np.ndarray:
        """Whether each id stays unchanged in `resample`, bool (V,): also `unknown`."""
        fixed = self.byte_lengths == 0
        if self.unknown is not None:
            fixed[self.unknown] = True
        return fixed

    def n_best(self, text: str, n: int) -> list[tuple[list[int], float]]:
        """The n most likely segmentations of a text, the best first: (ids, log probability in nats).

        Names of special tokens are plain text. The list is shorter if the text has fewer segmentations.
        """
        if n < 1:
            raise ConfigError(f"n must be at least 1, got {n}")
        return self.model.n_best(self._inner(text), n)

    def log_probability(self, text: str) -> float:
        """The log probability of a text, in nats: the sum over all of its segmentations."""
        return self.model.log_total(self._inner(text))

    # --- ids -> text

    def _strips(self, first: list[int]) -> bool:
        """Whether decoding drops a space before these first ids; an unknown character keeps its space."""
        return self.strip and (self.unknown is None or first != [self.unknown])

    # --- files

    def with_special_tokens(self, names: Iterable[str]) -> "Tokenizer":
        """A copy with more special tokens, whose ids follow the existing ones. Existing names are skipped.

        Raises:
            ConfigError: if a name is an ordinary piece.
        """
        names = list(names)
        if taken := {*names} & ({*self.pieces} - self.special_tokens.keys()):
            raise ConfigError(f"special_tokens: {min(taken)!r} is an ordinary piece; use another name")
        return super().with_special_tokens(names)

    def options(self) -> dict[str, Any]:
        """The arguments of `__init__`, as plain values."""
        return {
            "pieces": self.pieces,
            "scores": self.scores,
            "unknown": self.unknown,
            "byte_fallback": self.byte_fallback,
            "unknown_score": self.unknown_score,
            "marker": self.marker,
            "normalizer": self.normalizer and self.normalizer.to_dict(),
            "spacing": self.spacing and self.spacing.to_dict(),
            "split": self.split,
            "sums": self.sums,
            "strip": self.strip,
            "surface": self.surface,
            "special_tokens": list(self.special_tokens),
        }


def _check(tokenizer: UnigramTokenizer, numbers: dict[str, int]) -> None:
    """Checks the arguments of a tokenizer; `numbers`: piece -> id."""
    pieces, scores, unknown = tokenizer.pieces, tokenizer.scores, tokenizer.unknown
    if len(numbers) < len(pieces) or len(scores) != len(pieces) or "" in numbers:
        raise ConfigError(f"pieces must be distinct and not empty, with a score each, got {len(pieces)}, {len(scores)}")
    for score in [*scores, tokenizer.unknown_score]:
        if score is not None and not (isinstance(score, int | float) and -MOST_SCORE <= score <= MOST_SCORE):
            raise ConfigError(f"scores must be numbers of at most {MOST_SCORE:g}, or None for no text, got {score}")
    if tokenizer.byte_fallback and (missing := [name for name in BYTE_NAMES if name not in numbers]):
        raise ConfigError(f"pieces: lacks the byte {missing[0]}, which byte_fallback needs")
    if (unknown is None and not tokenizer.byte_fallback) or (unknown is not None and not 0 <= unknown < len(pieces)):
        raise ConfigError(f"unknown must be the id of a piece, or byte_fallback be true, got {unknown}")
    if tokenizer.split not in ("pieces", "spaces") or tokenizer.sums not in ("parts", "text"):
        raise ConfigError(
            f"split must be pieces or spaces, sums parts or text, got {tokenizer.split}, {tokenizer.sums}"
        )
