"""Field numbers and piece types of SentencePiece's `.model` files, as far as tinylm reads them.

The names follow sentencepiece_model.proto.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from tinylm.errors import ConfigError
from tinylm.tokenizer.characters import BYTE_NAMES
from tinylm.tokenizer.normalizers.sentencepiece import SentencePieceNormalizer

ORIGIN = "tokenizer.model"  # key in `Tokenizer.origin` for the fields that only training reads
LONGEST = 512  # characters of a piece


class ModelField(IntEnum):
    """Fields of a model."""

    PIECES, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5


class PieceField(IntEnum):
    """Fields of a piece."""

    PIECE, SCORE, TYPE = 1, 2, 3


class TrainerField(IntEnum):
    """Fields of trainer_spec."""

    MODEL_TYPE, VOCAB_SIZE, SUFFIX, BYTE_FALLBACK = 3, 4, 24, 35
    UNK_ID, BOS_ID, EOS_ID, PAD_ID, UNK_SURFACE, UNK_PIECE, EOS_PIECE = 40, 41, 42, 43, 44, 45, 47


class SpecField(IntEnum):
    """Fields of normalizer_spec and denormalizer_spec."""

    CHARSMAP, DUMMY_PREFIX, REMOVE_EXTRA, ESCAPE = 2, 3, 4, 5


class ModelType(IntEnum):
    """The algorithm that segments text."""

    UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4


class PieceType(IntEnum):
    """Whether and how a piece is found in a text."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class Piece(NamedTuple):
    """A piece of the vocabulary. Its id is its index.

    Attributes:
        name: the piece, with spaces written ▁
        score: log probability, or for BPE the priority of a merge
        type: a `PieceType`
    """

    name: str
    score: float
    type: int


def check_pieces(pieces: Sequence[Piece], byte_fallback: bool) -> None:
    """Makes SentencePiece's own checks, and checks that all names are distinct.

    Raises:
        ConfigError: if a piece lacks a name, a finite score or a known type; if there is not exactly one `<unk>`; if
            only some bytes are pieces.
    """
    types = [piece.type for piece in pieces]
    for token, piece in enumerate(pieces):
        known = PieceType.NORMAL <= piece.type <= PieceType.BYTE
        if not (0 < len(piece.name) <= LONGEST and math.isfinite(piece.score) and known):
            shown = (piece.name[:40], piece.score, piece.type)
            raise ConfigError(f"piece {token}: needs a name, a finite score and a known type, got {shown}")
    if len({piece.name for piece in pieces}) < len(pieces):
        raise ConfigError("pieces must have distinct names")
    if types.count(PieceType.UNKNOWN) != 1:
        raise ConfigError(f"exactly one piece must have the type unknown, got {types.count(PieceType.UNKNOWN)}")
    names = {piece.name for piece in pieces if piece.type == PieceType.BYTE}
    if names != ({*BYTE_NAMES} if byte_fallback else set()):
        raise ConfigError(f"byte_fallback is {str(byte_fallback).lower()}, but {len(names)} pieces are bytes")


def plain_normalizer(prefix: bool) -> SentencePieceNormalizer:
    """The normalizer that changes nothing but may put a space before a text."""
    return SentencePieceNormalizer(add_dummy_prefix=prefix, remove_extra_whitespaces=False)
