"""Opens the content that `data.corpus` and `data.val` name, or the objects that they are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinylm.data.content import DEFAULT_SPLIT, WHOLE, Content, Settings
from tinylm.data.corpora.base import refuse_options
from tinylm.data.corpora.memory import own_corpus
from tinylm.data.mixture_content import MixtureContent
from tinylm.data.pretokenized import Pretokenized, find_pretokenized
from tinylm.data.shard_content import ShardContent
from tinylm.data.stream_content import StreamContent
from tinylm.data.text_content import Text, TextContent, lacks_validation
from tinylm.data.token_content import TokenContent, TokenSource, split_ids, token_source, tokenizer_of_ids
from tinylm.errors import ConfigError
from tinylm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Streaming:
    """Options of `data.streaming`.

    Attributes:
        timeout: seconds without any new shard after which a run ends
        max_cache_gb: size of the cache of shards from a URL; None: the default
    """

    timeout: float = 600.0
    max_cache_gb: float | None = None

    @classmethod
    def of(cls, streaming: bool, timeout: float | None, max_cache_gb: float | None) -> "Streaming | None":
        """The options, or None without streaming; ConfigError for an option without effect."""
        if streaming:
            return cls(cls.timeout if timeout is None else timeout, max_cache_gb)
        for name, value in (("shard_timeout", timeout), ("max_cache_gb", max_cache_gb)):
            if value is not None:
                raise ConfigError(f"data.{name}: is for data.streaming; leave it out")
        return None


def open_content(
    corpus: Any,
    val: Any,
    settings: Settings,
    tokenizer: Tokenizer | None,
    weights: Mapping[str, float] | None = None,
    streaming: Streaming | None = None,
) -> Content:
    """The content of a corpus and of a validation text, if that is separate.

    Args:
        corpus: a name or path; texts or records; token ids; an object of a subclass of `Corpus`; or a mixture, the
            names of its sources with a name or path of each
        val: another of these, but not a mixture; None: taken from the corpus by `settings.split`
        settings: options of the data module
        tokenizer: the tokenizer of token ids; None: the one that `settings.tokenizer` names
        weights: shares of the sources of a mixture
        streaming: train on token shards one after the other

    Raises:
        ConfigError: for an object that is not a corpus, and for an option that does nothing with this one.
        DataError: if a token id is not in the vocabulary.
    """
    if val is not None and settings.split != DEFAULT_SPLIT:
        problem = f"data.val: with it data.corpus is not split, and data.split is {list(settings.split)}"
        raise ConfigError(f"{problem}; leave out one of the two")
    mixture = isinstance(corpus, Mapping) and (not corpus or any(isinstance(each, str) for each in corpus.values()))
    if weights is not None and not mixture:
        raise ConfigError(f"data.weights: are for a mixture, not for {corpus}; leave them out (null)")
    if val is not None and (mixture or streaming):
        kind = "data.streaming" if streaming else "a mixture, which validates on a part of each source"
        raise ConfigError(f"data.val: does not work with {kind}; leave it out")
    if streaming is not None:
        return _stream(corpus, settings, streaming)
    if mixture:
        return MixtureContent(corpus, weights, settings)
    given = _recognized(corpus, settings, "data.corpus")
    other = None if val is None else _recognized(val, settings, "data.val")
    if isinstance(other, Pretokenized):
        raise ConfigError(f"data.val: {val} holds token ids; name its files val beside those of data.corpus")
    if isinstance(given, Pretokenized):
        if other is not None:
            raise ConfigError(f"data.val: does not work with {corpus}, which holds token ids; leave it out")
        return ShardContent(given, settings)
    if isinstance(given, TokenSource):
        if other is not None and not isinstance(other, TokenSource):
            raise ConfigError("data.val: is a text, and data.corpus holds token ids; give token ids")
        tokenizer = tokenizer or tokenizer_of_ids(settings.tokenizer, settings.cache_dir)
        return _token_content(given, other, settings, tokenizer)
    if isinstance(other, TokenSource):
        raise ConfigError("data.val: holds token ids, and data.corpus is a text; give a text")
    return TextContent(given, settings, other)


def _stream(corpus: Any, settings: Settings, streaming: Streaming) -> StreamContent:
    if not isinstance(corpus, str):
        given = "a mixture" if isinstance(corpus, Mapping) else "an object"
        raise ConfigError(f"data.streaming: is for one folder of token shards, not for {given}")
    refuse_options(settings.reading, "data.streaming")
    cache = streaming.max_cache_gb
    if cache is not None and "://" not in corpus:
        raise ConfigError(f"data.max_cache_gb: is for shards at a URL, not for {corpus}; leave it out")
    if cache is not None and cache <= 0:
        raise ConfigError(f"data.max_cache_gb must be above 0, got {cache:g}")
    return StreamContent(corpus, settings, streaming.timeout, int((50.0 if cache is None else cache) * 1e9))


def _recognized(given: Any, settings: Settings, option: str) -> Text | TokenSource | Pretokenized:
    """A name, texts or token ids of a Python object, or a corpus of the user's own class."""
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        found = find_pretokenized(path)
        if found is not None:
            refuse_options(settings.reading, path)
        return found or path
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
