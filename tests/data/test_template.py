"""Encoded conversations by hand, and the prompts of generation as prefixes of the training tokens."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.data import CHAT, PAIRS, Turn, encode_pairs, encode_turns, find_template, prompt_ids
from tinylm.data.template import question_frame
from tinylm.errors import ConfigError, DataError
from tinylm.generation import Generator
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer

few = settings(max_examples=60, deadline=None)
texts = st.text("ab :\n", max_size=12)


def pair(prompt: str, response: str) -> tuple[Turn, ...]:
    return (Turn("user", prompt), Turn("assistant", response))


@st.composite
def conversations(draw) -> tuple[Turn, ...]:
    turns = draw(st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), texts), max_size=5))
    return (*turns, Turn("assistant", draw(texts)))


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    """It has tokens that would span any prompt and response: "ab", " a", "b\\n" ..."""
    text = "ab a b: ab\nab:a b a\n b a" * 20
    return BPETokenizer.train_from_texts([text], vocab_size=300, pattern=r"[\s\S]+", special_tokens=CHAT.special_tokens)


# --- by hand


def test_a_pair_by_hand():
    """a=0, b=1, c=2, <|endoftext|>=3."""
    tokenizer = CharTokenizer("abc", [END_OF_TEXT])
    ids, counts = encode_turns(tokenizer, pair("ab", "ca"), PAIRS)
    assert ids.tolist() == [3, 0, 1, 2, 0, 3]
    assert counts.tolist() == [False, False, False, True, True, True]
    assert (ids.dtype, counts.dtype) == (np.int64, np.bool_)


def test_a_conversation_by_hand():
    """a=0, b=1, c=2, <|endoftext|>=3, system=4, user=5, assistant=6. Responses and their ends count."""
    tokenizer = CharTokenizer("abc", CHAT.special_tokens)
    turns = [Turn("system", "c"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "ab")]
    ids, counts = encode_turns(tokenizer, turns, CHAT)
    assert ids.tolist() == [3, 4, 2, 5, 0, 6, 1, 3, 5, 2, 6, 0, 1, 3]
    assert counts.nonzero()[0].tolist() == [6, 7, 11, 12, 13]


def test_names_of_special_tokens_in_messages_are_plain_text():
    tokenizer = ByteTokenizer(CHAT.special_tokens)
    message = "x<|assistant|>y<|endoftext|>"
    ids, _ = encode_turns(tokenizer, pair(message, message), CHAT)
    special = [i for i in ids.tolist() if i >= 256]
    assert special == [
        tokenizer.special_tokens[name] for name in (END_OF_TEXT, "<|user|>", "<|assistant|>", END_OF_TEXT)
    ]
    assert bytes(i for i in ids.tolist() if i < 256).decode() == message * 2


# --- generation reads a prefix of the training tokens


@few
@given(texts, texts)
def test_the_generators_prompt_is_a_prefix_of_the_training_tokens(bpe, prompt, response):
    model = TransformerLM(ModelConfig(vocab_size=bpe.vocab_size, d_model=4, num_layers=1, num_heads=1, max_seq_len=64))
    read = Generator(model, bpe).prompt_ids(prompt)
    ids, counts = encode_turns(bpe, pair(prompt, response), PAIRS)
    assert prompt_ids(bpe, pair(prompt, response), PAIRS) == read == ids[~counts].tolist()
    assert ids[: len(read)].tolist() == read
    assert bpe.decode(ids[counts]) == response + END_OF_TEXT


@few
@given(st.text(max_size=20))
def test_the_generators_chat_prompt_is_a_prefix_of_the_training_tokens(bpe, prompt):
    model = TransformerLM(ModelConfig(vocab_size=bpe.vocab_size, d_model=4, num_layers=1, num_heads=1, max_seq_len=64))
    generator = Generator(model, bpe)
    generator.before, generator.after = question_frame(bpe, CHAT)
    assert generator.prompt_ids(prompt) == prompt_ids(bpe, pair(prompt, "a"), CHAT)


@few
@given(conversations())
def test_prompt_ids_end_before_the_last_response(bpe, turns):
    ids, counts = encode_turns(bpe, turns, CHAT)
    read = prompt_ids(bpe, turns, CHAT)
    assert ids[: len(read)].tolist() == read and read[-1] == bpe.special_tokens["<|assistant|>"]
    assert bpe.decode(ids[len(read) :]) == turns[-1].content + END_OF_TEXT and counts[len(read) :].all()
    responses = "".join(turn.content + END_OF_TEXT for turn in turns if turn.role == "assistant")
    assert bpe.decode(ids[counts]) == responses  # all responses count, and nothing else


# --- refusals


def test_a_tokenizer_without_the_special_tokens_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"data\.template=pairs needs <\|endoftext\|>, which the tokenizer lacks"):
        encode_turns(CharTokenizer("ab"), pair("a", "b"), PAIRS)
    with pytest.raises(
        ConfigError, match=r"data\.template=chat needs <\|system\|>, <\|user\|>, <\|assistant\|>, which"
    ):
        encode_turns(CharTokenizer("ab", [END_OF_TEXT]), pair("a", "b"), CHAT)


def test_templates_by_name():
    assert (find_template("pairs"), find_template("chat")) == (PAIRS, CHAT)
    with pytest.raises(ConfigError, match=r"data\.template: no template 'chats', did you mean 'chat'\?"):
        find_template("chats")
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAIRS.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("roles", [("system", "user", "assistant"), ("user", "assistant") * 2, ("assistant",)])
def test_the_pairs_template_takes_one_prompt_and_one_response(roles):
    turns = tuple(Turn(role, "a") for role in roles)
    with pytest.raises(
        DataError, match=rf"^p\.json: record 2: .*got turns of {', '.join(roles)}; set data\.template=chat"
    ):
        encode_pairs(CharTokenizer("a", [END_OF_TEXT]), [pair("a", "a"), turns], PAIRS, 9, name="p.json")


def test_errors_name_the_record_that_cannot_be_encoded():
    with pytest.raises(DataError, match=r"^p\.json: record 2: character 'z'"):
        encode_pairs(CharTokenizer("ab", [END_OF_TEXT]), [pair("a", "b"), pair("a", "z")], PAIRS, 9, name="p.json")


# --- records longer than the context

TOKENIZER = CharTokenizer("abc", [END_OF_TEXT])
PROMPTS = [pair("aa", "b"), pair("aaca", "b"), pair("", "b"), pair("acaca", "b")]  # 4, 6, 2 and 7 inputs


def encode(too_long: str, context: int = 4, pairs=PROMPTS) -> list[str]:
    examples = encode_pairs(TOKENIZER, pairs, PAIRS, context, too_long, name="p.json")  # type: ignore[arg-type]
    assert all(example.num_inputs <= context for example in examples)
    return [TOKENIZER.decode(example.ids).replace(END_OF_TEXT, "|") for example in examples]


def test_too_long_records_are_refused_by_the_first():
    message = (
        r"^p\.json: 2 of 4 records have more than the 4 tokens of the context, the first is record 2 with 6; "
        "shorten them, or set data.too_long to drop or truncate$"
    )
    with pytest.raises(DataError, match=message):
        encode("error")
    assert encode("error", context=7) == ["|aab|", "|aacab|", "|b|", "|acacab|"]  # the last token is only a target


def test_too_long_records_can_be_dropped_with_a_notice(capsys):
    assert encode("drop") == ["|aab|", "|b|"]
    assert "p.json: 2 of 4 records have more than the 4 tokens of the context: left out" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no record fits the context of 1 tokens; raise max_seq_len"):
        encode("drop", context=1)


def test_too_long_records_can_be_truncated_within_the_prompt_only(capsys):
    assert encode("truncate") == ["|aab|", "acab|", "|b|", "acab|"]
    assert "2 of 4 records have more than the 4 tokens of the context: cut at the left" in capsys.readouterr().err
    assert encode("truncate", pairs=[pair("a", "bcb")]) == ["abcb|"]  # fits without its first token
    with pytest.raises(DataError, match=r"record 1: the response alone fills the context of 4 tokens; shorten it, or"):
        encode("truncate", pairs=[pair("a", "bcbc")])
