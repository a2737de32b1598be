"""The content that `data.corpus` and `data.val` name or are."""

import os
from dataclasses import fields
from typing import Any

from tinylm.data.content import DEFAULT_SPLIT, WHOLE, Content, Settings
from tinylm.data.corpora import Reading
from tinylm.data.corpora.memory import own_corpus
from tinylm.data.text_content import Text, TextContent, lacks_validation
from tinylm.data.token_content import TokenContent, TokenSource, split_ids, token_source, tokenizer_of_ids
from tinylm.errors import ConfigError
from tinylm.tokenizer import Tokenizer


def open_content(corpus: Any, val: Any, settings: Settings, tokenizer: Tokenizer | None) -> Content:
    """The content of a corpus and, if that is not taken from it, of a validation text.

    Args:
        corpus: a name or path; texts or records; token ids; or an object of a subclass of `Corpus`
        val: another of these; None: it is taken from the corpus, by `settings.split`
        settings: options of the data module
        tokenizer: the tokenizer of token ids; None: the one that `settings.tokenizer` names

    Raises:
        ConfigError: for an object that is no corpus, and for an option that does nothing with this one.
        DataError: if a token id is not in the vocabulary.
    """
    if val is not None and settings.split != DEFAULT_SPLIT:
        problem = f"data.val: with it data.corpus is not split, and data.split is {list(settings.split)}"
        raise ConfigError(f"{problem}; leave out one of the two")
    given = _recognized(corpus, settings, "data.corpus")
    other = None if val is None else _recognized(val, settings, "data.val")
    if isinstance(given, TokenSource):
        if other is not None and not isinstance(other, TokenSource):
            raise ConfigError("data.val: is a text, and data.corpus holds token ids; give token ids")
        tokenizer = tokenizer or tokenizer_of_ids(settings.tokenizer, settings.cache_dir)
        return _token_content(given, other, settings, tokenizer)
    if isinstance(other, TokenSource):
        raise ConfigError("data.val: holds token ids, and data.corpus is a text; give a text")
    return TextContent(given, settings, other)


def _recognized(given: Any, settings: Settings, option: str) -> Text | TokenSource:
    """A name, texts or token ids of a Python object, or a corpus of the user's own class."""
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    corpus = own_corpus(given, option)
    if corpus is not None:
        if settings.split not in (DEFAULT_SPLIT, WHOLE):
            raise ConfigError(f"data.split: {corpus.name} has parts of its own; leave it out, or give [1.0]")
        refuse_options(settings.reading, corpus.name)
        return corpus
    ids = token_source(given, settings.reading.field, option)
    if not isinstance(ids, TokenSource):
        return ids
    refuse_options(settings.reading, ids.name, ("field",) if ids.uses_field else ())
    return ids


def refuse_options(reading: Reading, name: str, used: tuple[str, ...] = ()) -> None:
    """Raises ConfigError for an option that does nothing with a corpus."""
    for field in fields(reading):
        if field.name not in used and getattr(reading, field.name) != field.default:
            raise ConfigError(f"data.{field.name}: does not work with {name}; leave it out")


def _token_content(
    given: TokenSource, other: TokenSource | None, settings: Settings, tokenizer: Tokenizer
) -> TokenContent:
    end, ids = tokenizer.end_of_text, given.read(tokenizer)
    if other is None:
        tokens = split_ids(ids, settings.split, end)
        if lacks_validation(tokens, settings.split, given.name):
            tokens = split_ids(ids, WHOLE, end)
    else:
        tokens = split_ids(ids, WHOLE, end) | {"val": split_ids(other.read(tokenizer), WHOLE, end)["train"]}
    return TokenContent(tokens, tokenizer, given.name, settings)
