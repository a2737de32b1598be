"""The decoding loop against a full forward pass for every token, without a cache."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.strategies import model_configs, random_ids, random_model
from tinylm.errors import ConfigError, DataError, NumericError
from tinylm.generation import Generator, SamplingConfig
from tinylm.generation.fast.decoder import Decoder
from tinylm.generation.sampling import Random, choose
from tinylm.generation.text import Completion, StopStrings
from tinylm.model import ModelConfig, RingKVCache, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer

few = settings(max_examples=40, deadline=None)
GREEDY = dict(temperature=0)
LETTERS = CharTokenizer("abcdefghij")


def make(max_seq_len: int = 16, seed: int = 0, tokenizer=LETTERS, **changes) -> Generator:
    shape = dict(d_model=16, num_layers=2, num_heads=2, tie_embeddings=False)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, max_seq_len=max_seq_len, **shape | changes)
    return Generator(random_model(config, seed), tokenizer)


class Scripted(nn.Module):
    """A model and decoder in one that generates a fixed script and records the ids that it reads."""

    fixed_rows = False
    make_cache, cache_type = TransformerLM.make_cache, TransformerLM.cache_type

    def __init__(self, script: list[int], tokenizer, max_seq_len: int = 64) -> None:
        super().__init__()
        shape = dict(d_model=2, num_layers=1, num_heads=1, max_seq_len=max_seq_len)
        self.config = ModelConfig(vocab_size=tokenizer.vocab_size, **shape)
        self.embedding = nn.Embedding(1, 1)
        self.script, self.read = list(script), []

    def prefill(self, parts, cache, row=None):
        self.read += parts[0]
        cache.truncate([len(parts[0])])

    def step(self, ids, cache):
        self.read += ids.tolist()
        cache.advance(1)
        return torch.nn.functional.one_hot(torch.tensor([self.script.pop(0)]), self.config.vocab_size).float()


def generator_of(model: Scripted, tokenizer) -> Generator:
    return Generator(model, tokenizer, decoder=model)


def ids_of(generator: Generator, prompt: list[int], **options) -> list[int]:
    return list(generator.stream_ids(prompt, SamplingConfig(**options)))


@torch.no_grad()
def uncached(model, prompt: list[int], config: SamplingConfig) -> list[int]:
    """The oracle: reads the whole context for each token, and keeps its newest half when it is full."""
    text, window, random = list(prompt), list(prompt), Random(config.seed or 0)
    for position in range(config.max_new_tokens):
        if len(window) > model.config.max_seq_len:
            window = text[-max(model.config.max_seq_len // 2, 1) :]
        logits = model(torch.tensor([window]))[:, -1]
        text.append(int(logits.argmax() if config.temperature == 0 else choose(logits, config, [random], [position])))
        window.append(text[-1])
    return text[len(prompt) :]


# --- against full forward passes


@few
@given(model_configs(max_seq_len=st.integers(1, 9)), st.sampled_from([0.0, 1.0, 3.0]), st.data())
def test_decoding_matches_full_forward_passes_even_beyond_the_context(config, temperature, data):
    model = random_model(config)
    token = st.integers(0, config.vocab_size - 1)
    prompt = data.draw(st.lists(token, min_size=1, max_size=config.max_seq_len))
    tokenizer = CharTokenizer("".join(map(chr, range(97, 97 + config.vocab_size))))
    options = dict(max_new_tokens=2 * config.max_seq_len + 3, temperature=temperature, seed=9)
    assert ids_of(Generator(model, tokenizer), prompt, **options) == uncached(model, prompt, SamplingConfig(**options))


def test_sampling_draws_from_the_logits_of_full_forward_passes():
    generator = make()
    text = [0, 1, 2]
    random = Random(5)
    for position in range(12):
        with torch.no_grad():
            logits = generator.model(torch.tensor([text]))[0, -1].float() / 0.9
        logits[logits < logits.sort().values[-6]] = -torch.inf
        text.append(int((logits.softmax(-1) / random.times(position, len(logits))).argmax()))
    assert ids_of(generator, [0, 1, 2], max_new_tokens=12, seed=5, temperature=0.9, top_k=6) == text[3:]


@few
@given(model_configs(max_seq_len=st.integers(2, 9), sliding_window=st.integers(1, 9)), st.integers(0, 9))
@torch.no_grad()
def test_spare_slots_do_not_widen_the_window(config, spare):
    model, decoder = random_model(config), Decoder(random_model(config))
    cache, ids = RingKVCache(config, 2, spare=spare, dtype=torch.float64), random_ids(config)
    logits = [decoder.step(ids[:, t], cache) for t in range(config.max_seq_len)]
    torch.testing.assert_close(torch.stack(logits, dim=1), model(ids), rtol=1e-9, atol=1e-9)


# --- text


def test_texts_are_equal_exactly_for_equal_seeds():
    generator = make(64, tokenizer=ByteTokenizer())
    first, repeated, other, unseeded, unseeded_again = (
        generator.generate("ab", max_new_tokens=40, seed=seed) for seed in (1, 1, 2, None, None)
    )
    assert first == repeated
    assert len({first, other, unseeded, unseeded_again}) == 4


@pytest.mark.parametrize("seed", range(5))
def test_streamed_pieces_join_to_the_generated_text(seed):
    generator = make(16, tokenizer=ByteTokenizer())  # most random bytes are invalid UTF-8
    pieces = list(generator.stream("é", max_new_tokens=30, seed=seed))
    assert "".join(pieces) == generator.generate("é", max_new_tokens=30, seed=seed)
    assert all(pieces)


def test_pieces_are_whole_characters_streamed_without_delay():
    tokenizer = ByteTokenizer()
    model = Scripted(list("a€😀b".encode()), tokenizer)
    pieces, read = [], []
    for piece in generator_of(model, tokenizer).stream("x", max_new_tokens=9, **GREEDY):
        pieces.append(piece)
        read.append(len(model.read))
        assert not torch.is_inference_mode_enabled()  # the mode of the loop does not leak to the consumer
    assert pieces == ["a", "€", "😀", "b"]
    assert read == [1, 4, 8, 9]  # tokens read up to each piece: prompt and all bytes but the last


def test_the_end_of_text_token_ends_the_text_and_is_left_out():
    tokenizer = CharTokenizer("abc", [END_OF_TEXT])
    model = Scripted([1, 2, tokenizer.end_of_text, 1], tokenizer)
    assert generator_of(model, tokenizer).generate("a", max_new_tokens=9, **GREEDY) == "bc"
    assert model.script == [1]  # nothing is computed after it


@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_text_without_end_has_max_new_tokens(count):
    assert len(make().generate("ab", max_new_tokens=count)) == count


def test_a_text_does_not_end_before_min_new_tokens():
    tokenizer = CharTokenizer("abc", [END_OF_TEXT])
    end = tokenizer.end_of_text
    for least, expected in ((0, ""), (2, "aa"), (3, "aaa")):  # without the end, the first of equal logits is chosen
        model = Scripted([end] * 4, tokenizer)
        options = dict(max_new_tokens=4, min_new_tokens=least, **GREEDY)
        assert generator_of(model, tokenizer).generate("b", **options) == expected


def test_penalties_count_earlier_tokens():
    def text(**options):
        generator = generator_of(Scripted([1, 1, 1, 1], LETTERS), LETTERS)
        return generator.generate("c", max_new_tokens=4, **GREEDY, **options)

    assert text() == "bbbb"
    assert text(presence_penalty=1.5) == "bacd"  # 1 - 1.5 < 0: each time the first token not yet generated
    assert text(frequency_penalty=0.6) == "bbac"  # b has 1, 0.4, then -0.2 against 0 of a; a -0.6 against 0 of c
    assert text(banned_tokens=[1], logit_bias={4: 0.5}) == "eeee"


# --- stop strings


def ends_before(text: str, stops: list[str]) -> str:
    """The definition: the text ends where a stop string is first completed, of which the longest is cut off."""
    for n in range(1, len(text) + 1):
        if complete := [stop for stop in stops if text[:n].endswith(stop)]:
            return text[: n - max(map(len, complete))]
    return text


@few
@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
@example(["ab", "a"], ["b", "aba"])  # "aba" begins first, "b" is completed first
@example(["aba"], ["b", "aba"])
@example(["aab"], ["b", "ab"])  # both are completed at once
def test_texts_end_before_the_first_stop_string_for_any_pieces(pieces, stops):
    expected = ends_before("".join(pieces), stops)
    taken, found, reader = [], [], StopStrings(stops)
    for piece in pieces:
        taken.append(piece)
        found.append(reader.read(piece))
        whole = "".join(found)
        read = "".join(taken)
        assert expected.startswith(whole)
        # only text that may become a stop string is held back
        if not any(stop in read for stop in stops):
            held = read[len(whole) :]
            assert not held or any(stop.startswith(held) for stop in stops)
    assert "".join([*found, reader.held]) == expected


BYTES = ByteTokenizer()
BYTES.token_bytes = [bytes([i]) if i else b"" for i in range(256)]  # 0 stands for no bytes, like an unused id


@few
@given(
    st.lists(st.sampled_from([*"ab\0é".encode(), 0xC3]), min_size=1, max_size=12),
    st.lists(st.text("abé\ufffd", min_size=1, max_size=3), min_size=1, max_size=3),
)
@example([0, *b"ab"], ["ab"])  # completed by the last allowed token
@example([*b"a", 0, 0, *b"ba"], ["ab"])  # a stop string of more tokens than bytes
@example([0xC3, 0xA9, *b"a"], ["\ufffd"])  # half a character does not count as U+FFFD
def test_streams_and_batches_end_at_the_same_token(script, stops):
    options = dict(max_new_tokens=len(script), stop=stops, **GREEDY)
    expected = ends_before(BYTES.decode(script), stops)
    prefixes = [bytes(script[:n]).replace(b"\0", b"") for n in range(1, len(script) + 1)]
    read = [each.removesuffix(b"\xc3").decode(errors="replace") for each in prefixes]  # may be continued
    count = next((n for n, text in enumerate(read, 1) if any(stop in text for stop in stops)), len(script))
    stopped = any(stop in BYTES.decode(script) for stop in stops)
    text, pieces = generator_of(Scripted(script, BYTES), BYTES).begin("a", **options)
    found = Completion("a", "".join(pieces), text.ids, text.log_probs, text.finished)
    assert (found.text, found.ids, found.finished) == (expected, script[:count], "stop" if stopped else "length")
    assert generator_of(Scripted(script, BYTES), BYTES).complete(["a"], **options) == [found]


def test_stop_strings_across_tokens_end_the_text_and_the_computation():
    model = Scripted([LETTERS.encode(letter)[0] for letter in "abcdefgh"], LETTERS)
    generator = generator_of(model, LETTERS)
    assert generator.generate("a", max_new_tokens=8, stop=["xyz", "cde"], **GREEDY) == "ab"
    assert len(model.script) == 3


@pytest.mark.parametrize("least", range(1, 8))
def test_a_stop_string_before_min_new_tokens_is_plain_text(least):
    """ "cd" is completed by the tokens 2 and 6: the text ends at the first of these that is long enough."""
    script = LETTERS.encode("cdcccdaa")
    options = dict(max_new_tokens=8, min_new_tokens=least, stop=["cd"], **GREEDY)
    expected = ("", 2) if least <= 2 else ("cdcc", 6) if least <= 6 else ("cdcccdaa", 8)
    stopped = generator_of(Scripted(script, LETTERS), LETTERS).complete(["a"], **options)[0]
    assert (stopped.text, len(stopped.ids)) == expected
    assert stopped.finished == ("stop" if least <= 6 else "length")
    streamed = generator_of(Scripted(script, LETTERS), LETTERS).generate("a", **options)
    assert streamed == stopped.text
    ids = generator_of(Scripted(script, LETTERS), LETTERS).stream_ids([0], SamplingConfig(**options))
    assert list(ids) == stopped.ids


# --- options that leave no token, and prompts of another type


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(banned_tokens=[0, 1, 2], min_new_tokens=1), "banned_tokens must be fewer than all tokens but the end"),
        (dict(banned_tokens=[0, 1, 2, 3]), "banned_tokens must be fewer than all tokens, got all"),
        (dict(presence_penalty=1.5e308, frequency_penalty=1.5e308, min_new_tokens=9), "leave no token"),
        (dict(presence_penalty=-1.5e308, frequency_penalty=-1.5e308, min_new_tokens=9), "leave no token"),
    ],
)
def test_options_that_exclude_every_token_are_named(options, problem, temperature):
    generator = make(tokenizer=CharTokenizer("abc", [END_OF_TEXT]))
    with pytest.raises(ConfigError, match=problem):
        generator.generate("ab", max_new_tokens=9, temperature=temperature, **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_infinite_logits_are_never_drawn_from(temperature):
    model = Scripted([1], LETTERS)
    model.step = lambda ids, cache: torch.full((1, 10), torch.inf)
    with pytest.raises(NumericError, match="the model's logits are not finite: its weights are corrupt"):
        generator_of(model, LETTERS).generate("a", temperature=temperature)


@pytest.mark.parametrize("options", [{}, dict(max_new_tokens=1), dict(min_new_tokens=1)])
def test_a_stop_string_in_the_first_token_gives_an_empty_text(options):
    def found() -> Generator:
        return generator_of(Scripted([1], LETTERS), LETTERS)

    (each,) = found().complete(["a"], stop=["b"], **options, **GREEDY)
    assert (each.text, each.finished) == ("", "stop")
    assert found().generate("a", stop=["b"], **options, **GREEDY) == ""


def test_the_seeds_of_samples_wrap_around_at_64_bits():
    generator, options = make(), dict(max_new_tokens=9)
    last = 2**64 - 1
    texts = [each.text for each in generator.complete(["ab"], num_samples=3, seed=last, **options)]
    assert texts == [generator.generate("ab", seed=seed, **options) for seed in (last, 0, 1)]
    texts = [each.text for each in generator.complete(["ab"], num_samples=2, seed=-1, **options)]
    assert texts == [generator.generate("ab", seed=seed, **options) for seed in (-1, 0)]


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        ("ab", r"prompts must be a list of strings, got 'ab'; for a single one, \[prompt\]"),
        (None, "prompts must be a list of strings, got None"),
        (7, "prompts must be a list of strings, got 7"),
        (["a", 7], "a prompt must be a string, got 7"),
        ([b"ab"], "a prompt must be a string, got b'ab'"),
        ([["a"]], r"a prompt must be a string, got \['a'\]"),
    ],
)
def test_prompts_that_are_no_list_of_strings_are_refused(prompts, problem):
    with pytest.raises(ConfigError, match=problem):
        make().complete(prompts)


@pytest.mark.parametrize("prompt", [None, 7, b"ab", ["ab"]])
def test_a_prompt_that_is_no_string_is_refused(prompt):
    for call in (make().generate, make().stream, make().begin, make().prompt_ids):
        with pytest.raises(ConfigError, match="a prompt must be a string, got"):
            call(prompt)


@pytest.mark.parametrize("name", ["num_samples", "batch_size"])
@pytest.mark.parametrize("value", [0, 1.5, "2", None])
def test_numbers_of_texts_are_checked(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got {value}"):
        make().complete(["a"], **{name: value})


# --- prompts


def test_the_end_of_text_token_is_inserted_before_a_prompt():
    """It precedes every document in training."""
    tokenizer = CharTokenizer("abc", [END_OF_TEXT])
    model = Scripted([1, 2], tokenizer)
    assert generator_of(model, tokenizer).generate("ca", max_new_tokens=2, **GREEDY) == "bc"
    assert model.read == [tokenizer.end_of_text, 2, 0, 1]
    model = Scripted([1], CharTokenizer("abc"))
    generator_of(model, CharTokenizer("abc")).generate("ca", max_new_tokens=1, **GREEDY)
    assert model.read == [2, 0]


def test_an_empty_prompt_is_the_end_of_text_token_alone():
    tokenizer = CharTokenizer("abc", [END_OF_TEXT])
    model = Scripted([1, 2], tokenizer)
    assert generator_of(model, tokenizer).generate("", max_new_tokens=2, **GREEDY) == "bc"
    assert model.read == [tokenizer.end_of_text, 1]
    with pytest.raises(ConfigError, match="the prompt is empty, and this tokenizer has no end-of-text token"):
        make().stream("")  # by the call, not by the first piece


def test_special_tokens_in_a_prompt_are_plain_text():
    tokenizer = ByteTokenizer([END_OF_TEXT])
    model = Scripted([97], tokenizer)
    generator_of(model, tokenizer).generate(END_OF_TEXT, max_new_tokens=1, **GREEDY)
    assert model.read == [tokenizer.end_of_text, *END_OF_TEXT.encode()]  # inserted before the text, not found in it


def test_a_prompt_that_cannot_be_encoded_is_refused():
    with pytest.raises(DataError, match=r"'z' \(U\+007A\) at position 1"):
        make().stream("az")
    with pytest.raises(DataError, match="lone surrogate"):
        make(tokenizer=ByteTokenizer()).stream("a\ud800")


def test_a_prompt_longer_than_the_context_is_refused_or_truncated(capfd):
    model = Scripted([0, 1], LETTERS, max_seq_len=4)
    generator = generator_of(model, LETTERS)
    with pytest.raises(ConfigError, match="the prompt has 6 tokens, the context holds 4; use --truncate left"):
        generator.stream("abcdef")
    assert capfd.readouterr().err == ""
    assert generator.generate("abcdef", max_new_tokens=1, truncate="left", **GREEDY) == "a"
    assert model.read == [2, 3, 4, 5]
    assert "the prompt has 6 tokens: only the last 4 are read" in capfd.readouterr().err
    assert generator.generate("cdef", max_new_tokens=1, **GREEDY) == "b"  # just fits


@pytest.mark.parametrize(("count", "slides"), [(4, False), (5, False), (6, True)])
def test_sliding_is_announced_only_if_it_happens(count, slides, capfd):
    model = Scripted([0] * count, LETTERS, max_seq_len=8)
    generator_of(model, LETTERS).generate("abcd", max_new_tokens=count, **GREEDY)
    assert (len(model.read) > 4 + count - 1) == slides  # tokens were read twice
    assert ("beyond 8 tokens, generation keeps" in capfd.readouterr().err) == slides


# --- options


def test_unknown_options_are_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"^max_tokens: no such option of generation, did you mean 'max_new_tokens'"):
        make().stream("a", max_tokens=5)
    with pytest.raises(ConfigError, match=r"^temprature: no such option .* did you mean 'temperature'"):
        make().stream("a", temprature=5)


def test_options_are_checked_before_the_first_piece():
    with pytest.raises(ConfigError, match="temperature must be"):
        make().stream("a", temperature=-1)
    with pytest.raises(ConfigError, match="truncate must be"):
        make().stream("a", truncate="right")
