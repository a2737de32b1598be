"""Tokenizers of other programs that normalize text, or cut it at added tokens, before they encode it.

    text > added tokens > normalization > normalized added tokens > prefix > BPE on bytes or characters > ids

    "Hello <sep>you"   >   "Hello ", 32000, "you"   >   "▁Hello▁", 32000, "▁you"   >   [15043, 29871, 32000, 366]

The steps, their order and their effect on the parts between added tokens are those of Hugging Face's `tokenizers`. For
bulk encoding a text is cut only where no step looks across the cut (`safe_cut`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from tinylm.errors import ConfigError
from tinylm.tokenizer.added import AddedToken, AddedTokens
from tinylm.tokenizer.base import END_OF_TEXT, Tokenizer
from tinylm.tokenizer.bpe import BPETokenizer, check_ids
from tinylm.tokenizer.characters import SPACE, CharacterBPE
from tinylm.tokenizer.fast.blocks import utf8
from tinylm.tokenizer.normalizers.base import NFC, Normalizer
from tinylm.tokenizer.unigram import UnigramTokenizer
from tinylm.tokenizer.wordpiece import WordPieceTokenizer

Prefix = Literal["none", "always", "each", "first"]
CORES = {each.kind: each for each in (CharacterBPE, BPETokenizer, UnigramTokenizer, WordPieceTokenizer)}
MOST_CUTS = 100  # positions tried for a cut


class Part(NamedTuple):
    """A part of a text: an added token, or text for the core.

    Attributes:
        token: the added token's id, or None
        text: as the core reads it
        begins: the offset in the original text where each of its characters begins, int64 (n,)
        ends: the offset where it ends, int64 (n,)
        opens: whether it is at the beginning of the text
    """

    token: int | None
    text: str
    begins: np.ndarray
    ends: np.ndarray
    opens: bool = False


class PipelineTokenizer(Tokenizer):
    """A core tokenizer with added tokens, normalization and a space before the text.

    Args:
        core: `kind` and options of a `BPETokenizer`, `CharacterBPE`, `UnigramTokenizer` or `WordPieceTokenizer`
        added: the options of each `AddedToken`
        normalization: "nfc", `Normalizer.to_dict` of another normalizer, or "" for none
        spaces: the step that writes spaces as ▁ for `CharacterBPE`: "normalizer", or "words", after added tokens are
            found
        prefix: where a space is put before a part between added tokens. "always": before every part. "each": before
            every part that does not begin with one. "first": as "each", at the beginning of the text only. "none":
            nowhere.
        strip: whether decoding drops the first space of a text

    Raises:
        ConfigError: if options contradict each other, or ids repeat.
    """

    kind = "pipeline"
    ends = (END_OF_TEXT, "</s>")
    most_per_byte = 4  # NFC gives at most three bytes for one, and a space may come before each part

    def __init__(
        self,
        core: dict[str, Any],
        added: Sequence[dict[str, Any]] = (),
        normalization: str | dict[str, Any] = "",
        spaces: str = "",
        prefix: Prefix = "none",
        strip: bool = False,
    ) -> None:
        options = dict(core)
        core_class = CORES[options.pop("kind")]
        self.core: BPETokenizer | CharacterBPE | UnigramTokenizer | WordPieceTokenizer = core_class(**options)
        self.added = [AddedToken(**each) for each in added]
        self.normalization, self.spaces, self.prefix, self.strip = normalization, spaces, prefix, strip
        self._check()
        self._normalizer: Normalizer | None = getattr(self.core, "normalizer", None)
        if normalization:
            self._normalizer = Normalizer.from_dict(normalization) if isinstance(normalization, dict) else NFC()
        if self._normalizer is not None:
            self.most_per_byte = max(self.most_per_byte, self._normalizer.most_per_byte)
        if not isinstance(self.core, CharacterBPE):
            self.lone_space = self.core.lone_space
        elif strip and self._normalizer is not None and self._normalizer.drops_first_spaces:
            self.lone_space = self.core.vocab.get(SPACE)
        self._space = SPACE if isinstance(self.core, CharacterBPE) else " "
        self.special_tokens = {token.content: token.id for token in self.added if token.special}
        self.token_bytes = self._all_bytes()
        self._plain = AddedTokens(token for token in self.added if not token.normalized)
        self._normalized = AddedTokens((token for token in self.added if token.normalized), self._name)
        names = [*self._plain.tokens, *self._normalized.tokens]
        self._longest = 2 + max(map(len, names), default=0)

    def _check(self) -> None:
        given = self.normalization, self.spaces, self.prefix
        if isinstance(self.core, UnigramTokenizer) and given != ("", "", "none"):
            raise ConfigError("normalization, spaces and prefix are options of the core of kind 'unigram'")
        characters = isinstance(self.core, CharacterBPE)
        allowed = {"none", "each"} if not characters else {"none", "always", "each", "first"}
        plain = isinstance(self.normalization, dict) or self.normalization in ("", "nfc")
        if not plain or self.prefix not in allowed or bool(self.spaces) != characters:
            raise ConfigError(f"normalization, spaces or prefix do not fit the core {self.core.kind!r}")
        ids, names = [token.id for token in self.added], [token.content for token in self.added]
        if len({*names}) < len(names):
            raise ConfigError("added_tokens must have distinct names")
        if ids:
            check_ids(ids, len(ids))

    def _all_bytes(self) -> list[bytes]:
        """The bytes of all ids. Those of a normalized token are its normalized string, with spaces for ▁."""
        found = list(self.core.token_bytes)
        found += [b""] * (max((token.id for token in self.added), default=-1) + 1 - len(found))
        before = getattr(self.core, "separator", "")  # of WordPiece: stands between words
        for token in self.added:
            if not before and token.id == getattr(self.core, "unknown", None):
                continue
            name = self._name(token.content) if token.normalized else token.content
            found[token.id] = utf8(before + (name.replace(SPACE, " ") if self.spaces else name))
        return found

    def options(self) -> dict[str, Any]:
        """The arguments of `__init__`."""
        return {
            "core": {"kind": self.core.kind, **self.core.options()},
            "added": [asdict(token) for token in self.added],
            "normalization": self.normalization,
            "spaces": self.spaces,
            "prefix": self.prefix,
            "strip": self.strip,
        }

    def with_special_tokens(self, names: Iterable[str]) -> "Tokenizer":
        """A copy with more special tokens, whose ids follow the existing ones. Existing names are skipped."""
        new = [name for name in dict.fromkeys(names) if name not in self.special_tokens]
        if taken := {token.content for token in self.added} & {*new}:
            raise ConfigError(f"special_tokens: {min(taken)!r} is an ordinary added token; use another name")
        added = [asdict(AddedToken(name, self.vocab_size + place)) for place, name in enumerate(new)]
        options = self.options()
        return self._with(options | {"added": [*options["added"], *added]}, self._marks_with(new), self._origin)

    @classmethod
    def train_from_streams(cls, streams: Iterable[Iterable[str]], **options: Any) -> Self:
        """Raises ConfigError: a pipeline is only read from other programs' files."""
        raise ConfigError(f"tokenizer: kind {cls.kind} is not trained, but read from other programs' files; use bpe")

    # --- text -> ids

    def _name(self, content: str) -> str:
        """The string of an added token in normalized text."""
        other = isinstance(self.normalization, dict) and self._normalizer
        return other.name_of(content) if other else self._normal(content)

    def normalized(self, text: str) -> str:
        """The text that decoding returns if every character is known."""
        found = []
        for part in self._parts(text, special=False):
            piece = part.text if part.token is None else self.token_bytes[part.token].decode()
            if part.token is None and isinstance(self.core, UnigramTokenizer):
                piece = self.core.spaced(piece, self._core_continues(part.opens, continues=False))
            found.append(piece.replace(SPACE, " ") if self.spaces and part.token is None else piece)
        whole = "".join(found)
        return self.without_first_spaces(whole) if self.strip else whole

    def _normal(self, text: str, continues: bool = False) -> str:
        """A part between added tokens, normalized. `continues`: whether it continues an earlier part."""
        text = self._normalizer.normalize(text, continues=continues) if self._normalizer else text
        if self.spaces == "normalizer":
            text = text.replace(" ", SPACE)
        return self._space + text if self.prefix == "always" and text else text

    def _encode(
        self, text: str, special: bool, continues: bool = False, ids_of: Callable[[str, bool], np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """The ids of a text, in parts.

        Args:
            text: any text
            special: whether special tokens are found
            continues: whether the text continues an earlier part, so that no space is put before it
            ids_of: encodes a part. Default: `_core_ids`
        """
        ids_of = ids_of or self._core_ids
        found = [np.empty(0, dtype=np.int64)]
        for begin, end, token in self._plain.split(text, special):
            if token is not None:
                found.append(np.array([token.id]))
                continue
            normal = self._normal(text[begin:end], continues and not begin)
            if self.prefix == "always" and continues and not begin:
                normal = normal[1:]
            for first, last, inner in self._normalized.split(normal, special):
                if inner is not None:
                    found.append(np.array([inner.id]))
                else:
                    opens = begin + first == 0
                    piece = self._prefixed(normal[first:last], opens, continues)
                    found.append(ids_of(piece, self._core_continues(opens, continues)))
        return found

    def sample(self, text: str, alpha: float, random: "np.random.Generator") -> np.ndarray:
        """The ids of a text in a segmentation of the core drawn at random, as in `Tokenizer.sample`, int64 (n,)."""

        def drawn(piece: str, continued: bool) -> np.ndarray:
            if isinstance(self.core, UnigramTokenizer):
                return self.core.model.sample(self.core.spaced(piece, continued), alpha, random)
            return self.core.sample(piece, alpha, random)

        return np.concatenate(self._encode(text, False, ids_of=drawn))

    def resample(self, ids: np.ndarray, alpha: float, random: "np.random.Generator") -> np.ndarray:
        """Segments the text of ids anew, at random, by the core; it is normalized already."""
        text = b"".join(self.token_bytes[token] for token in ids).decode().replace(" ", self._space)
        core = self.core.model if isinstance(self.core, UnigramTokenizer) else self.core
        return core.sample(text, alpha, random)

    @cached_property
    def fixed_ids(self) -> np.ndarray:
        """Whether each id stays unchanged in `resample`, bool (V,): also added tokens and the core's unknown token."""
        fixed = self.byte_lengths == 0
        fixed[[token.id for token in self.added]] = True
        if (unknown := getattr(self.core, "unknown", None)) is not None:
            fixed[unknown] = True
        return fixed

    def _prefixed(self, piece: str, opens: bool, continues: bool) -> str:
        """A part as the core reads it. `opens`: whether it is at the beginning of the text."""
        piece = piece.replace(" ", SPACE) if self.spaces == "words" else piece
        wanted = self.prefix == "each" or (self.prefix == "first" and opens)
        if wanted and not (opens and continues) and not piece.startswith(self._space):
            return self._space + piece
        return piece

    def _core_continues(self, opens: bool, continues: bool) -> bool:
        """Whether the core puts no space of its own before this part of a text."""
        return (opens and continues) or (not opens and isinstance(self.core, UnigramTokenizer) and self.core.opens_once)

    def _core_ids(self, piece: str, continued: bool) -> np.ndarray:
        if isinstance(self.core, UnigramTokenizer):
            return np.array(self.core.model.encode(self.core.spaced(piece, continued)), dtype=np.int64)
        if isinstance(self.core, CharacterBPE):
            return np.array(self.core.encode(piece), dtype=np.int64)
        return self.core.encode_ordinary(piece)

    def encode_ordinary(self, text: str, start: int = 0) -> np.ndarray:
        """The ids of a text, int64 (n,). Names of special tokens are plain text; other added tokens are found.

        Raises:
            DataError: for a lone surrogate.
        """
        return np.concatenate(self._encode(text, special=False, continues=start > 0))

    def encode_array(self, text: str, *, allow_special: bool = False) -> np.ndarray:
        """The ids of a text, int64 (n,). Arguments and errors as in `Tokenizer.encode_array`."""
        return np.concatenate(self._encode(text, special=allow_special))

    def encode_with_offsets(self, text: str, *, allow_special: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text and the characters that each id covers, as in `Tokenizer.encode_with_offsets`.

        A space that was put before a part covers no character. A composed letter covers all of its parts.
        """
        ids, offsets = [np.empty(0, dtype=np.int64)], [np.empty((0, 2), dtype=np.int64)]
        for part in self._parts(text, allow_special):
            if part.token is not None:
                ids.append(np.array([part.token]))
                offsets.append(np.stack([part.begins[:1], part.ends[-1:]], axis=1))
            elif isinstance(self.core, UnigramTokenizer):
                continued = self._core_continues(part.opens, continues=False)
                found = self.core.offsets_of_normal(part.text, part.begins, part.ends, continued)
                ids.append(found[0])
                offsets.append(found[1])
            else:
                ids.append(self._core_ids(part.text, continued=False))
                offsets.append(self._offsets(part, ids[-1]))
        return np.concatenate(ids), np.concatenate(offsets)

    def bytes_from(self, text: str, ids: np.ndarray, first: int) -> int:
        """The number of bytes that the ids from index `first` on cover; spaces that encoding adds do not count."""
        begin = self.encode_with_offsets(text)[1][first, 0] if 0 < first < len(ids) else 0
        return len(utf8(text[begin:])) if first < len(ids) else 0

    def _parts(self, text: str, special: bool) -> Iterator[Part]:
        """The parts that `_encode` encodes, with offsets."""
        for begin, end, token in self._plain.split(text, special):
            begins, ends = np.arange(begin, end), np.arange(begin + 1, end + 1)
            if token is not None:
                yield Part(token.id, "", begins, ends)
                continue
            if self._normalizer:
                begins, ends = (begin + each for each in self._normalizer.offsets(text[begin:end]))
            normal = self._normal(text[begin:end])
            if self.prefix == "always":
                begins, ends = _with_prefix(begins, ends, len(normal))
            for first, last, inner in self._normalized.split(normal, special):
                where = begins[first:last], ends[first:last]
                if inner is not None:
                    yield Part(inner.id, "", *where)
                    continue
                opens = begin + first == 0
                piece = self._prefixed(normal[first:last], opens, continues=False)
                yield Part(None, piece, *_with_prefix(*where, len(piece)), opens)

    def _offsets(self, part: Part, ids: np.ndarray) -> np.ndarray:
        """The characters of the original text that each id of a part covers, int64 (n, 2)."""
        data = np.frombuffer(utf8(part.text), dtype=np.uint8)
        character = np.cumsum((data & 0xC0) != 0x80) - 1
        begins, ends = self.core.spans(part.text, ids).T
        return np.stack([part.begins[character[begins]], part.ends[character[ends - 1]]], axis=1)

    def safe_cut(self, text: str) -> int:
        """A late position at which a text can be cut and its parts encoded independently; 0 if there is none."""
        cut = self.core.safe_cut(text[: max(len(text) - self._longest, 0)])  # a string may continue beyond the text
        for _ in range(MOST_CUTS):
            if cut <= 0 or self._may_cut(text, cut):
                return max(cut, 0)
            cut = self.core.safe_cut(text[:cut])
        return 0

    def _may_cut(self, text: str, cut: int) -> bool:
        """Whether normalization and added tokens do not look across a cut."""
        if self._normalizer and not self._normalizer.may_cut(text, cut):
            return False
        begin = max(cut - self._longest, 0)
        window = text[begin : cut + self._longest]
        if self.spaces:
            window = window.replace(" ", SPACE)
        names = [(window, self._normalized), (text[begin : cut + self._longest], self._plain)]
        return all(found.may_cut(each, cut - begin) for each, found in names)

    # --- ids -> text

    def _strips(self, first: list[int]) -> bool:
        """Whether decoding drops a space before these first ids; an unknown character keeps its space."""
        unknown = None if isinstance(self.core, WordPieceTokenizer) else getattr(self.core, "unknown", None)
        return self.strip and first != [unknown]


def _with_prefix(begins: np.ndarray, ends: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The offsets of a part of `count` characters. If it has one character more than offsets, a space was put first."""
    if count == len(begins):
        return begins, ends
    first = begins[:1]
    return np.concatenate([first, begins]), np.concatenate([first, ends])
