"""TextDataModule: a text, token ids, or pairs of prompts and responses, as Lightning's data loaders.

This file reads and checks the options; `RunData`, its base, has the batches and steps of a run.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from tinylm.data.content import Content, Settings
from tinylm.data.corpora import REPAIR, Corpus, Reading, check_split
from tinylm.data.corpora.base import refuse_options
from tinylm.data.evaluation_rows import EvaluationBatches, window_rows
from tinylm.data.open_content import Streaming, open_content
from tinylm.data.pair_content import PairContent
from tinylm.data.run_data import RunData
from tinylm.data.template import TooLong
from tinylm.data.text_content import TextContent, WindowContent
from tinylm.data.token_array import TokenArray, Tokens
from tinylm.data.tokens import is_tokenizer_file, own_tokenizer
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.files import default_cache_dir, read_chunks, why_unreadable
from tinylm.plugins import DataPart, Part
from tinylm.stages import Stages
from tinylm.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    # From Python: a name or path, texts, records or token ids, or an object of a subclass of Corpus.
    CorpusLike = str | dict[str, Any] | Part | os.PathLike | Iterable[Any] | Dataset[Any] | Corpus | TokenArray
    Text = Any  # as `corpus`, but not a mixture
    TokenizerLike = str | Part | dict[str, Any] | Tokenizer
else:  # on a command line and in YAML; the parser reads this
    CorpusLike, Text, TokenizerLike = DataPart | dict[str, str] | str, DataPart | str, DataPart | str


class TextDataModule(RunData):
    """Batches of tokens from a text, or from prompts and responses.

    From Python, `corpus` and `val` may also be

    - texts: a list, any iterable or a generator of strings, a column of pandas or polars;
    - records with a text in `field`: an iterable of dicts, a table, a `Dataset` of the package datasets;
    - an object of a subclass of `tinylm.data.Corpus`;
    - token ids of `tokenizer`: an array, or a PyTorch `Dataset` or an iterable whose items are the ids of a document;

    and `tokenizer` may be a `Tokenizer`. Each of the three may be a plug-in, as in the config.
    """

    def __init__(
        self,
        corpus: CorpusLike = "stories",
        tokenizer: TokenizerLike = "char",
        max_seq_len: int = 256,
        batch_size: int = 32,
        micro_batch_size: int | None = None,
        batch_schedule: dict[int, int] | None = None,
        context_schedule: dict[int, int] | None = None,
        split: tuple[float, ...] = (0.9, 0.1),
        val: Text | None = None,
        weights: dict[str, float] | None = None,
        field: str = "text",
        separator: str | None = None,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        deduplicate: bool = False,
        seed: int | None = None,
        text_seed: int = 0,
        errors: str = "strict",
        num_workers: int = 0,
        train_tokens: int | None = None,
        cache_dir: str | None = None,
        max_val_tokens: int | None = None,
        text: str | None = None,
        pairs: str | None = None,
        pairs_val: str | None = None,
        template: str = "pairs",
        fields: tuple[str, str] | None = None,
        packing: bool = False,
        too_long: TooLong = "error",
        streaming: bool = False,
        shard_timeout: float | None = None,
        max_cache_gb: float | None = None,
        subword_alpha: float | None = None,
    ) -> None:
        """Creates the data module.

        Args:
            corpus: stories (stories:20000 for more), names, tinyshakespeare, tinystories, a file, folder, glob or URL,
                lines:FILE, *.grammar.yaml, {a: FILE, ...}, or a plug-in
            tokenizer: char, byte, word, bpe:SIZE, unigram:SIZE, wordpiece:SIZE, learned; a file, folder, or plug-in
            max_seq_len: Tokens per sequence; in a training run, the model's context
            batch_size: Sequences per optimizer step, over all devices
            micro_batch_size: Sequences per device at once. Default: all of its share
            batch_schedule: Smaller batches at first: {200: 8}: 8 before step 200
            context_schedule: Shorter sequences at first: {200: 32}: 32 tokens before step 200
            split: Fractions of train, val, test; [1.0]: no val
            val: Validation text, given as a corpus is
            weights: Shares of a mixture: {a: 0.7, b: 0.3}. Default: by size
            field: Field or column of a record that is its text; a.b for nested ones
            separator: Text between the documents of a file. Default: <|endoftext|> if it is there
            include: Files to take from a folder, as ['*.md']
            exclude: Files to leave out, as ['drafts/*']
            deduplicate: Keep only the first of equal documents
            seed: Seed of the order of the data. Default: seed_everything
            text_seed: Seed of generated texts and of the split of pairs
            errors: Invalid UTF-8: strict (an error) or replace
            num_workers: Processes that load batches; 0 = this one
            train_tokens: Train on the first N tokens only
            cache_dir: Cache folder. Default: $TINYLM_CACHE or ~/.cache/tinylm
            max_val_tokens: Most tokens read in a validation during training
            text: predict: the text file
            pairs: Pairs or preferences: a .jsonl, .json or .csv file
            pairs_val: Validation pairs. Default: val.* beside train.*, or split
            template: Format of a pair: pairs (prompt, response) or chat (with roles; the model's own if it has one)
            fields: Names of prompt and response, as [question,answer]
            packing: Pack several pairs into a sequence; needs document_mask
            too_long: Pairs beyond the context: error, drop, truncate
            streaming: Train on shards one by one, as they appear, or from a URL
            shard_timeout: Seconds to wait for a shard. Default: 600
            max_cache_gb: Size of the cache of a URL. Default: 50
            subword_alpha: Draw the tokens anew each time: the dropout probability of BPE, or the alpha of unigram
        """
        numbers = dict(max_seq_len=max_seq_len, batch_size=batch_size, micro_batch_size=micro_batch_size)
        _check_at_least(1, numbers | dict(train_tokens=train_tokens, max_val_tokens=max_val_tokens))
        seed = seed_of_run() if seed is None else seed
        _check_at_least(0, dict(seed=seed, text_seed=text_seed, num_workers=num_workers))
        given = dict(corpus=plug_in(corpus), val=plug_in(val), tokenizer=plug_in(tokenizer))
        saved, tokenizer = _loaded(given["tokenizer"])
        settings = Settings(
            tokenizer=tokenizer,
            context=max_seq_len,
            batch_size=Stages.of("data.batch_schedule", batch_schedule, batch_size),
            split=check_split(split),
            seed=seed,
            text_seed=text_seed,
            errors=_byte_errors(errors, takes_bytes="byte" in (tokenizer, saved and saved.kind)),
            train_tokens=train_tokens,
            cache_dir=Path(cache_dir).expanduser() if cache_dir else default_cache_dir(),
            reading=Reading(field, separator, tuple(include), tuple(exclude), deduplicate),
        )
        contexts = Stages.of("data.context_schedule", context_schedule, max_seq_len)
        stream = Streaming.of(streaming, shard_timeout, max_cache_gb)
        if pairs is not None:
            own = dict(weights=weights, streaming=stream, context_schedule=context_schedule)
            _check_options_of_pairs(settings, given["val"], own | dict(subword_alpha=subword_alpha))
            content = PairContent(pairs, pairs_val, template, fields, packing, too_long, settings)
        else:
            _check_options_of_texts(fields, stream, num_workers)
            text_or_ids, other = (_own_text(given[name], f"data.{name}") for name in ("corpus", "val"))
            content = open_content(text_or_ids, other, settings, saved, weights, stream)
        _check_effects(content, errors=errors if pairs is None and text is None else "strict", text_seed=text_seed)
        super().__init__(
            content,
            settings.batch_size,
            contexts,
            plugins=[each for each in given.values() if isinstance(each, Part)],
            micro_batch_size=micro_batch_size,
            num_workers=num_workers,
            max_val_tokens=max_val_tokens,
            subword_alpha=subword_alpha,
        )
        self.text = text
        if saved is not None:
            self.use_tokenizer(saved)

    @property
    def corpus(self) -> Corpus:
        """The corpus; raises ConfigError for pairs and token ids."""
        if not isinstance(self.content, TextContent):
            raise ConfigError(f"{self.source} has no corpus of text")
        return self.content.corpus

    @property
    def tokens(self) -> dict[str, Tokens]:
        """Token ids of each split."""
        assert isinstance(self.content, WindowContent | PairContent)
        return dict(self.content.tokens)

    def predict_dataloader(self) -> DataLoader:
        """The text of `data.text`, in order."""
        if self.text is None:
            raise ConfigError("data.text: missing; set the text file, --data.text FILE")
        path, settings = Path(self.text).expanduser(), self.content.settings
        if problem := why_unreadable(path):
            raise MissingInputError(f"data.text: {self.text}: {problem}")
        chunks = read_chunks(path, settings.errors, remedy=REPAIR)
        ids = np.concatenate(list(self.tokenizer.encode_stream(chunks)) or [[]])
        if len(ids) < 2:
            raise DataError(f"data.text: {self.text}: has {len(ids)} tokens, needs at least 2")
        return self._loader(EvaluationBatches(ids, window_rows(len(ids), settings.context), *self._share()))


# --- the options


def seed_of_run() -> int:
    """The seed of Lightning's `seed_everything`; 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def plug_in(value: Any) -> Any:
    """The `Part` for a plug-in that the config describes by `class_path`; any other value unchanged."""
    return Part.of(value) if isinstance(value, dict) and "class_path" in value else value


def _check_at_least(least: int, options: Mapping[str, int | None]) -> None:
    rule = "not be negative" if least == 0 else f"be at least {least}"
    for name, value in options.items():
        if value is not None and value < least:
            raise ConfigError(f"data.{name} must {rule}, got {value}")


def _loaded(tokenizer: str | Part | Tokenizer) -> tuple[Tokenizer | None, str | Part]:
    """The tokenizer if it is an object, a file or a plug-in that is not trained, and what `data.tokenizer` names."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer, tokenizer.kind
    if isinstance(tokenizer, Part):
        return own_tokenizer(tokenizer), tokenizer
    tokenizer = os.path.expanduser(tokenizer)  # noqa: PTH111 (a kind is not a path)
    return load_tokenizer(tokenizer) if is_tokenizer_file(tokenizer) else None, tokenizer


def _byte_errors(errors: str, takes_bytes: bool) -> str:
    """The treatment of bytes that are not UTF-8, as `bytes.decode` names it.

    The byte tokenizer accepts any bytes: invalid UTF-8 is represented by lone surrogates.
    """
    if errors not in ("strict", "replace"):
        raise ConfigError(f"data.errors must be strict or replace, got {errors!r}")
    return "surrogateescape" if takes_bytes and errors == "strict" else errors


def _own_text(value: Any, option: str) -> Any:
    """The corpus of a plug-in; any other value unchanged."""
    if not isinstance(value, Part):
        return value
    made = value.make(field=option)
    if not isinstance(made, Corpus):
        raise ConfigError(
            f"{option}: {value} gives {type(made).__name__}, which is not a subclass of tinylm.data.Corpus"
        )
    return made


# --- options without effect, which are refused


def _check_options_of_pairs(settings: Settings, val: Any, others: Mapping[str, Any]) -> None:
    refuse_options(settings.reading, "data.pairs")
    for name, value in others.items():
        if value is not None:
            raise ConfigError(f"data.{name}: does not work with data.pairs; leave it out")
    if val is not None:
        raise ConfigError("data.val: is for data.corpus; give the validation pairs as data.pairs_val")


def _check_options_of_texts(fields: Any, stream: Streaming | None, num_workers: int) -> None:
    if fields is not None:
        raise ConfigError("data.fields: is for data.pairs; leave it out")
    if stream is not None and num_workers:
        raise ConfigError("data.num_workers: with data.streaming, the training process reads the batches; leave it out")


def _check_effects(content: Content, errors: str, text_seed: int) -> None:
    if errors != "strict" and not content.reads_files:
        raise ConfigError(f"data.errors: is for files of text, not for {content.source}; leave it out")
    if text_seed and not content.draws_text:
        raise ConfigError(f"data.text_seed: is for generated texts and pairs, not for {content.source}; leave it out")
