"""Published vocabularies: downloaded once, checked, and equal to tiktoken's."""

import hashlib

import pytest
import tiktoken
import tiktoken_ext.openai_public as openai

from tinylm.data import pretrained, resolve_tokenizer
from tinylm.data.download import Download
from tinylm.data.pretrained import VOCABULARIES, Vocabulary
from tinylm.errors import ConfigError, MissingInputError
from tinylm.tokenizer import BPETokenizer, write_tiktoken
from tinylm.tokenizer.fast.pretokenize import PATTERNS

TEXT = "Once upon a time, it's 2024! " * 20


@pytest.fixture
def ranks(tmp_path) -> bytes:
    write_tiktoken(BPETokenizer.train_from_texts([TEXT], vocab_size=280), tmp_path / "r.tiktoken")
    return (tmp_path / "r.tiktoken").read_bytes()


def offer(monkeypatch, url: str, sha256: str | None) -> None:
    vocabulary = Vocabulary(Download(url, sha256), "gpt2", {"<|endoftext|>": 300})
    monkeypatch.setitem(pretrained.VOCABULARIES, "gpt2", vocabulary)
    monkeypatch.setenv("no_proxy", "*")


def test_a_vocabulary_is_downloaded_once_and_has_tiktokens_ids(server, ranks, tmp_path, monkeypatch, capfd):
    offer(monkeypatch, server.serve("/r.tiktoken", ranks), hashlib.sha256(ranks).hexdigest())
    for _ in range(2):
        tokenizer = resolve_tokenizer("tiktoken:gpt2", None, tmp_path / "cache")
    assert server.requests == ["/r.tiktoken"]
    pieces = {piece: token for token, piece in enumerate(tokenizer.token_bytes[:280])}
    other = tiktoken.Encoding(
        "r", pat_str=PATTERNS["gpt2"], mergeable_ranks=pieces, special_tokens=tokenizer.special_tokens
    )
    text = TEXT + "<|endoftext|>"
    assert tokenizer.encode(text) == other.encode(text, disallowed_special=())
    assert tokenizer.encode(text, allow_special=True) == other.encode(text, allowed_special="all")
    assert tokenizer.end_of_text == 300


def test_without_a_network_the_path_for_the_file_is_named(tmp_path, monkeypatch):
    offer(monkeypatch, "http://127.0.0.1:9/r.tiktoken", None)
    with pytest.raises(MissingInputError, match=r"cannot download .*put the file at .*r\.tiktoken by hand"):
        resolve_tokenizer("tiktoken:gpt2", None, tmp_path)


def test_a_file_put_at_that_path_is_used(ranks, tmp_path, monkeypatch):
    offer(monkeypatch, "http://127.0.0.1:9/r.tiktoken", None)
    path = VOCABULARIES["gpt2"].ranks.path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(ranks)
    assert resolve_tokenizer("tiktoken:gpt2", None, tmp_path).vocab_size == 301


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tiktoken:gpt3: no such vocabulary, did you mean 'gpt2'"):
        resolve_tokenizer("tiktoken:gpt3", None, tmp_path)
    with pytest.raises(ConfigError, match=r"tiktoken:cl100k_base: no such vocabulary, did you mean 'cl100k'"):
        resolve_tokenizer("tiktoken:cl100k_base", None, tmp_path)


@pytest.mark.parametrize(("name", "theirs"), [("gpt2", "r50k_base"), ("cl100k", "cl100k_base")])
def test_urls_checksums_and_special_tokens_equal_tiktokens(name, theirs, monkeypatch):
    requested = {}
    monkeypatch.setattr(
        openai, "load_tiktoken_bpe", lambda url, expected_hash: requested.update({url: expected_hash}) or {}
    )
    special = getattr(openai, theirs)()["special_tokens"]
    vocabulary = VOCABULARIES[name]
    assert requested == {vocabulary.ranks.url: vocabulary.ranks.sha256}
    assert vocabulary.special_tokens == special
