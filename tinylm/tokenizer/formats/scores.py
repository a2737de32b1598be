"""BPE by scores of pieces instead of merges, as in SentencePiece, llama.cpp and llama2.c.

Of all neighbours that join to a piece, the pair whose piece has the highest score is joined first. A `CharacterBPE`
with merges is equivalent if its merges are all such pairs, ordered by the score of the joined piece.
"""

from typing import NamedTuple

from tinylm.errors import ConfigError
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.characters import CharacterBPE, all_merges
from tinylm.tokenizer.pipeline import PipelineTokenizer

UNKNOWN = "<unk>"  # never occurs in encoded text, since unknown characters become bytes


class Pieces(NamedTuple):
    """The pieces of a tokenizer.

    Attributes:
        names: id -> piece; a space is written ▁, and a byte <0x0A>
        scores: id -> score
        special: ids of special tokens
        plain: ids of added tokens that are found in every text
        prefix: whether a space is put before every text
    """

    names: dict[int, str]
    scores: dict[int, float]
    special: set[int]
    plain: set[int]
    prefix: bool


def to_pieces(tokenizer: Tokenizer, program: str) -> Pieces:
    """The pieces of a tokenizer with a core of characters.

    Raises:
        ConfigError: if its ids would differ from those of `program`.
    """
    if not isinstance(tokenizer, PipelineTokenizer) or not isinstance(tokenizer.core, CharacterBPE):
        raise ConfigError(f"tokenizer: kind {tokenizer.kind} has no pieces with scores, which {program} needs")
    if tokenizer.prefix not in ("always", "none") or tokenizer.core.words or tokenizer.normalization:
        raise ConfigError(f"tokenizer: handles spaces differently from {program}, or normalizes text")
    if tokenizer.core.unknown is not None or tokenizer.core.unused:
        raise ConfigError(f"tokenizer: has no bytes for unknown characters, or unused pieces, unlike {program}")
    check_added(tokenizer, program)
    core = tokenizer.core
    names = {token: name for name, token in core.vocab.items()} | {each.id: each.content for each in tokenizer.added}
    added = {token.id for token in tokenizer.added}
    scores = scores_of(core, added, program)
    special = {token.id for token in tokenizer.added if token.special}
    return Pieces(names, scores, special, added - special, tokenizer.prefix == "always")


def check_added(tokenizer: PipelineTokenizer, program: str) -> None:
    """Refuses added tokens that include white space or must be single words, which the program does not support."""
    for token in tokenizer.added:
        for flag in ("lstrip", "rstrip", "single_word"):
            if getattr(token, flag):
                raise ConfigError(f"tokenizer: added token {token.content!r} has {flag}, which {program} lacks")


def scores_of(core: CharacterBPE, added: set[int], program: str) -> dict[int, float]:
    """Id -> score of each piece. If the core has merges, the score is minus the rank, or 0 for a piece without merges.

    Args:
        core: the pieces
        added: ids of added tokens, which no merge makes
        program: the program that needs scores, for error messages

    Raises:
        ConfigError: if no scores give the same ids as the merges.
    """
    if core.scores is not None:
        return {core.vocab[name]: score for name, score in core.scores.items()}
    joined = {name: token for name, token in core.vocab.items() if token not in added}
    names = {token: name for name, token in core.vocab.items()}
    ranks: dict[int, int] = {}
    last = None
    for left, right in core.merges:
        token = core.vocab[names[left] + names[right]]
        if token != last:
            if token in ranks:
                raise ConfigError(f"tokenizer: merges of one token are not neighbours, as {program} needs them")
            ranks[token], last = len(ranks) + 1, token
    for left, right in {*core.merges} ^ {*all_merges(joined)}:
        other = f"{program} would join {names[left]!r} and {names[right]!r}, the merges would not, or the reverse"
        raise ConfigError(f"tokenizer: {other}")
    return {token: -float(ranks.get(token, 0)) for token in core.vocab.values()}


def from_pieces(names: list[str], scores: list[float], special: set[int]) -> PipelineTokenizer:
    """A tokenizer from pieces with scores. It puts a space before every text.

    Args:
        names: the piece of each id, with spaces written ▁
        scores: score of each id
        special: ids of special tokens

    Raises:
        ConfigError: if a byte is missing.
    """
    added = [{"content": names[token], "id": token} for token in sorted(special)]
    vocab = {name: token for token, name in enumerate(names) if token not in special}
    core = {"kind": CharacterBPE.kind, "vocab": vocab, "scores": [scores[token] for token in vocab.values()]}
    return PipelineTokenizer(core, added, spaces="normalizer", prefix="always", strip=True)
