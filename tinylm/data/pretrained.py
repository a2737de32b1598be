"""Published vocabularies by name: OpenAI's, from tiktoken's files of ranks."""

from dataclasses import dataclass
from pathlib import Path

from tinylm.data.download import Download, download
from tinylm.errors import ConfigError, did_you_mean
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, read_tiktoken

_HOST = "https://openaipublic.blob.core.windows.net/encodings"


@dataclass(frozen=True)
class Vocabulary:
    """A file of ranks, with what the file does not contain.

    Attributes:
        ranks: the file
        pattern: name of the pre-tokenizer's pattern
        special_tokens: name -> id
    """

    ranks: Download
    pattern: str
    special_tokens: dict[str, int]


VOCABULARIES = {
    "gpt2": Vocabulary(
        Download(f"{_HOST}/r50k_base.tiktoken", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
        "gpt2",
        {END_OF_TEXT: 50256},
    ),
    "cl100k": Vocabulary(
        Download(f"{_HOST}/cl100k_base.tiktoken", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
        "gpt4",
        {END_OF_TEXT: 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
        | {"<|endofprompt|>": 100276},
    ),
}
OTHER_NAMES = {"r50k_base": "gpt2", "cl100k_base": "cl100k", "gpt4": "cl100k"}


def pretrained_tokenizer(name: str, cache_dir: Path) -> BPETokenizer:
    """The tokenizer `gpt2` or `cl100k` (GPT-4's).

    Raises:
        ConfigError: for any other name.
        MissingInputError: if its file is neither in the cache nor can be downloaded.
    """
    if name not in VOCABULARIES:
        hint = did_you_mean(name, VOCABULARIES, OTHER_NAMES) or f", known are {', '.join(VOCABULARIES)}"
        raise ConfigError(f"data.tokenizer: tiktoken:{name}: no such vocabulary{hint}")
    vocabulary = VOCABULARIES[name]
    return read_tiktoken(download(vocabulary.ranks, cache_dir), vocabulary.pattern, vocabulary.special_tokens)
