"""Byte pair encoding of a Hugging Face tokenizer.json: on bytes (GPT-2), or on characters (Llama 2).

    normalizer > pre_tokenizer > model: vocab {name: id}, merges [[left, right], ...]

Bytes are named by the characters of GPT-2's alphabet. Added tokens are written to the vocabulary too; otherwise Hugging
Face renumbers them.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tinylm.errors import ConfigError
from tinylm.tokenizer.added import AddedToken
from tinylm.tokenizer.alphabet import ALPHABET, BYTE_IDS
from tinylm.tokenizer.base import Tokenizer
from tinylm.tokenizer.bpe import BPETokenizer
from tinylm.tokenizer.byte import ByteTokenizer
from tinylm.tokenizer.characters import CharacterBPE
from tinylm.tokenizer.formats.merges import NamedMerges, vocabulary
from tinylm.tokenizer.formats.steps import (
    ALL,
    read_added,
    read_decoder,
    read_metaspace,
    read_normalizer,
    read_pattern,
    spelling,
    type_of,
    unknown,
    without_idle_split,
)
from tinylm.tokenizer.pipeline import PipelineTokenizer

# --- writing

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
NO_OPTIONS = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
NO_OPTIONS |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}


def bytes_steps(tokenizer: BPETokenizer | ByteTokenizer) -> dict[str, Any]:
    """The fields of a tokenizer.json for BPE on bytes, or for bytes alone.

    Raises:
        ConfigError: for a pattern or a special token that Hugging Face might read differently.
    """
    if isinstance(tokenizer, ByteTokenizer):
        names = [ALPHABET[token] for token in BYTE_IDS]
        return _byte_level(names, tokenizer.special_tokens, range(tokenizer.vocab_size), [], ALL)
    names, ids = tokenizer.names_and_ids()
    return _byte_level(names, tokenizer.special_tokens, ids, _merges(tokenizer, names), tokenizer.pattern)


def _merges(core: BPETokenizer, names: list[str]) -> list[list[str]]:
    return [[names[left], names[right]] for left, right in core.merges]


def bytes_pipeline_steps(tokenizer: PipelineTokenizer) -> dict[str, Any]:
    """The fields of a tokenizer.json for a pipeline whose core is BPE on bytes. Errors as in `bytes_steps`."""
    core = tokenizer.core
    assert isinstance(core, BPETokenizer)
    names, ids = core.names_and_ids()
    added = {token.content: token.id for token in tokenizer.added}
    spaced = tokenizer.prefix == "each"
    steps = _byte_level(names, added, [*ids, *added.values()], _merges(core, names), core.pattern, spaced)
    return {"normalizer": {"type": "NFC"} if tokenizer.normalization else None, **steps}


def characters_steps(tokenizer: PipelineTokenizer) -> dict[str, Any]:
    """The fields of a tokenizer.json for a pipeline whose core is BPE on characters.

    Raises:
        ConfigError: for features of SentencePiece that Hugging Face lacks.
    """
    core = tokenizer.core
    assert isinstance(core, CharacterBPE)
    if tokenizer.normalization or core.unknown is not None or core.unused:
        raise ConfigError("tokenizer.json lacks SentencePiece's normalization, <unk> and unused pieces; write a .model")
    replace: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = pre_tokenizer = None
    if tokenizer.spaces == "normalizer":
        prepend = [{"type": "Prepend", "prepend": "▁"}] if tokenizer.prefix == "always" else []
        normalizer = {"type": "Sequence", "normalizers": [*prepend, replace]}
    else:
        scheme = {"each": "always", "first": "first", "none": "never"}[tokenizer.prefix]
        pre_tokenizer = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": core.words}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tokenizer.strip else []
    names = {token: name for name, token in core.vocab.items()}
    merges = [[names[left], names[right]] for left, right in core.merges]
    model = {
        "type": "BPE",
        **NO_OPTIONS,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": core.vocab,
        "merges": merges,
    }
    decoder = {"type": "Sequence", "decoders": decoders}
    return {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model}


def _byte_level(
    names: list[str], added: dict[str, int], ids: Sequence[int], merges: list, pattern: str, spaced: bool = False
) -> dict[str, Any]:
    """The steps of byte-level BPE. Added tokens are in the vocabulary too; otherwise Hugging Face renumbers them."""
    _check_special(added)
    byte_level = BYTE_LEVEL | {"add_prefix_space": spaced, "use_regex": pattern == "gpt2"}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    if pattern not in ("gpt2", ALL):
        split["pattern"] = {"Regex": spelling(pattern)}
        byte_level = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    vocab = {name: token for name, token in vocabulary(names, list(added), ids).items() if token >= 0}
    model = {"type": "BPE", **NO_OPTIONS, "vocab": vocab, "merges": merges}
    return {"pre_tokenizer": byte_level, "decoder": BYTE_LEVEL, "model": model}


def _check_special(names: Sequence[str] | dict[str, int]) -> None:
    for name in names:
        if set(name) <= set(ALPHABET) and not name.isascii():
            raise ConfigError(f"special_tokens: {name!r} would be decoded as the bytes its characters name; rename it")


# --- reading


def read_bytes(values: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a tokenizer.json with BPE on bytes, without its post_processor.

    Raises:
        ConfigError: for an unsupported field that would change ids, with its name.
    """
    model, table = values["model"], NamedMerges()
    (pattern, spaced), steps = read_pattern(values.get("pre_tokenizer")), read_normalizer(values.get("normalizer"))
    if "replace" in steps:
        raise unknown("normalizer", values["normalizer"])
    if type_of(values.get("decoder")) not in (None, "ByteLevel"):
        raise unknown("decoder", values["decoder"])
    for left, right in map(_pair, model["merges"]):
        table.add(left, right)
    table.finish()
    added = read_added(values.get("added_tokens") or [], model["vocab"])
    _check_special([token.content for token in added])
    names = {token.content: token.id for token in added}
    for name in model["vocab"] | names:
        if (name in table and name in model["vocab"]) == (name in names):
            problem = "an added token and an ordinary one" if name in names else "neither merged nor an added token"
            raise ConfigError(f"model.vocab: {name!r} is {problem}")
    for name in table.names if model.get("ignore_merges") else ():
        if name in model["vocab"] and not table.is_whole(name):
            raise ConfigError(f"model.ignore_merges is true, but the merges do not make {name!r} from its bytes")
    arguments: dict[str, Any] = table.arguments(model["vocab"] | names, [], may_miss=True)
    arguments["pattern"] = pattern
    if model.get("unk_token") is not None and -1 in arguments["ids"]:
        raise ConfigError(f"model.unk_token is {model['unk_token']!r}, but bytes are missing; tinylm leaves these out")
    alike = {(token.special, token.normalized, token.lstrip, token.rstrip, token.single_word) for token in added}
    if steps or spaced or not alike <= {(True, False, False, False, False), (True, True, False, False, False)}:
        return _pipeline("bpe", arguments, added, normalization="".join(steps), prefix="each" if spaced else "none")
    if len(alike) > 1:
        return _pipeline("bpe", arguments, added)
    arguments |= {"special_tokens": [*names], "ids": [*arguments["ids"], *names.values()]}
    tokenizer, plain = BPETokenizer(**arguments), ByteTokenizer([*names])
    found = (pattern, tokenizer.token_bytes, tokenizer.special_tokens)
    return plain if found == (ALL, plain.token_bytes, plain.special_tokens) else tokenizer


def read_characters(values: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a tokenizer.json with BPE on characters and byte fallback, as SentencePiece writes it.

    Errors as in `read_bytes`.
    """
    model, steps = values["model"], read_normalizer(values.get("normalizer"))
    metaspace = read_metaspace(without_idle_split(values.get("pre_tokenizer"), values.get("normalizer")))
    if "nfc" in steps or bool(steps) == bool(metaspace):
        raise unknown("normalizer", values.get("normalizer"))
    if model.get("ignore_merges"):
        raise unknown("model.ignore_merges", True)
    prefix, words = metaspace or ("always" if "prepend" in steps else "none", False)
    vocab = model["vocab"]
    merges = []
    for pair in map(_pair, model["merges"]):
        if not {*pair} <= vocab.keys():
            raise ConfigError(f"merges: {' '.join(pair)[:60]!r} uses a token that the vocabulary lacks")
        merges.append([vocab[name] for name in pair])
    added = read_added(values.get("added_tokens") or [], vocab)
    core = {"vocab": vocab, "merges": merges, "words": words}
    spaces, strip = "words" if metaspace else "normalizer", read_decoder(values.get("decoder"))
    return _pipeline("characters", core, added, spaces=spaces, prefix=prefix, strip=strip)


def _pipeline(kind: str, core: dict[str, Any], added: Sequence[AddedToken], **options: Any) -> PipelineTokenizer:
    return PipelineTokenizer({"kind": kind, **core}, [asdict(token) for token in added], **options)


def _pair(merge: Any) -> Sequence[str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
