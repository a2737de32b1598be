"""Beam search against exhaustive search with full forward passes, and against transformers."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.strategies import model_configs, random_model
from tinylm.errors import ConfigError, NumericError
from tinylm.generation import BeamConfig, Generator, beam_search
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer

PENALTIES = [-1.5, 0.0, 0.5, 1.0, 2.0]
penalties = pytest.mark.parametrize("penalty", PENALTIES)


def tokenizer_of(letters: int, end: bool) -> CharTokenizer:
    return CharTokenizer("abcdefghijklmnopqrstuvwxyz"[:letters], [END_OF_TEXT] if end else [])


def make(letters: int = 3, end: bool = True, seed: int = 0, max_seq_len: int = 16, sharpness: float = 1.0) -> Generator:
    tokenizer = tokenizer_of(letters, end)
    shape = dict(d_model=16, num_layers=2, num_heads=2, tie_embeddings=False)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, max_seq_len=max_seq_len, **shape)
    model = random_model(config, seed)
    model.head.weight.data *= sharpness
    return Generator(model, tokenizer)


class Found(NamedTuple):
    ids: list[int]
    finished: str
    score: float


@torch.no_grad()
def log_probs(generator: Generator, prompt: list[int], ids: list[int]) -> list[float]:
    """Log probability of each id after a prompt, by one forward pass without a cache."""
    model, text = generator.model, torch.tensor([[*prompt, *ids]])
    documents = documents_apart(model.config, text, generator.tokenizer.end_of_text)
    logits = model(text, documents=documents)[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(ids)), ids].tolist()


def exhaustive(generator: Generator, prompt: str, count: int, penalty: float) -> list[Found]:
    """Every text that can be generated in `count` tokens, best first."""
    before, end, found = generator.prompt_ids(prompt), generator.tokenizer.end_of_text, []
    letters = [token for token in range(generator.model.config.vocab_size) if token != end]
    for length in range(count + 1):
        for text in itertools.product(letters, repeat=length):
            if length < count and end is None:
                continue
            finished = "length" if length == count else "end"
            ids = list(text) if finished == "length" else [*text, end]
            score = sum(log_probs(generator, before, ids)) / len(ids) ** penalty
            found.append(Found(list(text), finished, score))
    return sorted(found, key=lambda each: -each.score)


def as_found(completions) -> list[Found]:
    return [Found(each.ids, each.finished, each.score) for each in completions]


def assert_same(found: list[Found], expected: list[Found], tolerance: float = 1e-9) -> None:
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=tolerance)


# --- against exhaustive search


@penalties
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_enough_beams_find_the_best_of_all_texts(end, penalty, seed):
    generator = make(3, end, seed)
    expected = exhaustive(generator, "ab", 3, penalty)
    assert len(expected) == (40 if end else 27)
    for num_return in (1, 5, 40):
        options = dict(num_beams=40, num_return=num_return, max_new_tokens=3, length_penalty=penalty)
        assert_same(as_found(beam_search(generator, "ab", **options)), expected[:num_return])


@settings(max_examples=25, deadline=None)
@given(
    model_configs(vocab_size=st.integers(2, 4), max_seq_len=st.integers(5, 7)),
    st.booleans(),
    st.sampled_from(PENALTIES),
)
def test_enough_beams_find_all_texts_of_any_model(config, end, penalty):
    """With sliding windows shorter than the text, and with a vocabulary of one letter and the end-of-text token."""
    generator = Generator(random_model(config), tokenizer_of(config.vocab_size - end, end))
    expected = exhaustive(generator, "a", 3, penalty)
    found = beam_search(generator, "a", num_beams=90, num_return=90, max_new_tokens=3, length_penalty=penalty)
    assert sorted(each[:2] for each in as_found(found)) == sorted(each[:2] for each in expected)
    scores = [each.score for each in found]  # some models give texts equal scores, whose order is undefined
    assert scores == pytest.approx([each.score for each in expected], abs=1e-9)


RESTRICTIONS = {
    "stop": dict(stop=("ba", "a")),
    "stop later": dict(stop=("b",), min_new_tokens=3),
    "end later": dict(min_new_tokens=2),
    "banned": dict(banned_tokens=(1,)),
    "all": dict(banned_tokens=(2,), min_new_tokens=2, stop=("ab", "aa")),
}


def restricted(found: list[Found], letters: str, options: dict) -> list[tuple[str, str, float]]:
    """The texts that are allowed, spelled and without their stop strings; `found` are all texts of all lengths."""
    stops, least = options.get("stop", ()), options.get("min_new_tokens", 0)
    kept = []
    for ids, finished, score in found:
        text = "".join(letters[i] for i in ids)
        ends = [n for n in range(max(least, 1), len(ids) + 1) if any(text[:n].endswith(stop) for stop in stops)]
        if set(ids) & {*options.get("banned_tokens", ())} or (finished == "end" and len(ids) < least):
            continue
        if ends and (ends[0] < len(ids) or finished == "end"):
            continue  # it would have ended before
        if ends:
            cut = max(len(stop) for stop in stops if text.endswith(stop))
            kept.append((text[: len(text) - cut], "stop", score))
        elif finished == "end" or len(ids) == 4:
            kept.append((text, finished, score))
    return kept


@pytest.mark.parametrize("options", RESTRICTIONS.values(), ids=RESTRICTIONS)
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_of_all_texts_that_the_options_allow(options, penalty):
    generator = make(3, seed=1)
    whole = [each for count in range(1, 5) for each in exhaustive(generator, "ab", count, penalty)]
    whole = [each for n, each in enumerate(whole) if each[:2] not in [other[:2] for other in whole[:n]]]
    expected = sorted(restricted(whole, "abc", options), key=lambda each: -each[2])
    found = beam_search(
        generator, "ab", num_beams=300, num_return=300, max_new_tokens=4, length_penalty=penalty, **options
    )
    assert len(found) == len(expected) > 5
    assert [each.score for each in found] == pytest.approx([each[2] for each in expected], abs=1e-9)
    assert sorted((each.text, each.finished) for each in found) == sorted(each[:2] for each in expected)


def test_bans_that_leave_no_text_are_refused():
    with pytest.raises(ConfigError, match="banned_tokens must be fewer than all tokens but the end-of-text token"):
        beam_search(make(), "a", max_new_tokens=3, banned_tokens=[0, 1, 2], min_new_tokens=1)
    with pytest.raises(ConfigError, match="banned_tokens must be of ids below 4, got 9"):
        beam_search(make(), "a", max_new_tokens=3, banned_tokens=[9])
    (empty,) = beam_search(make(), "a", max_new_tokens=3, banned_tokens=[0, 1, 2])
    assert (empty.text, empty.finished) == ("", "end")


def test_the_statistics_count_what_was_read_and_generated():
    generator = make(end=False)
    beam_search(generator, "abc", num_beams=2, max_new_tokens=4)
    assert (generator.stats.prompt_tokens, generator.stats.new_tokens) == (2, 1 + 2 + 2 + 2)
    assert generator.stats.decode_seconds > 0 < generator.stats.cache_bytes


# --- few beams


@pytest.mark.parametrize("seed", range(5))
def test_one_beam_equals_greedy_decoding(seed):
    generator = make(10, end=False, seed=seed)
    (found,) = beam_search(generator, "abc", num_beams=1, max_new_tokens=12)
    (expected,) = generator.complete(["abc"], max_new_tokens=12, temperature=0)
    assert (found.prompt, found.text, found.ids, found.finished) == ("abc", expected.text, expected.ids, "length")
    assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-9)


def test_one_beam_with_early_stop_equals_greedy_decoding_up_to_the_end():
    ends = 0
    for seed in range(12):
        generator = make(3, seed=seed)
        (found,) = beam_search(generator, "abc", num_beams=1, max_new_tokens=8, early_stop=True)
        (expected,) = generator.complete(["abc"], max_new_tokens=8, temperature=0)
        assert (found.ids, found.finished) == (expected.ids, expected.finished)
        ends += found.finished == "end"
    assert 0 < ends < 12


@penalties
def test_scores_and_log_probs_match_full_forward_passes(penalty):
    """The end-of-text token counts in the sum and in the length."""
    generator, reasons = make(6), set()
    end, before = generator.tokenizer.end_of_text, generator.prompt_ids("fab")
    options = dict(num_beams=6, num_return=6, max_new_tokens=9, length_penalty=penalty)
    for found in beam_search(generator, "fab", **options):
        ids = [*found.ids, end] if found.finished == "end" else found.ids
        expected = log_probs(generator, before, ids)
        assert found.log_probs == pytest.approx(expected[: len(found.ids)], abs=1e-9)
        assert found.score == pytest.approx(sum(expected) / len(ids) ** penalty, abs=1e-9)
        assert found.text == generator.tokenizer.decode(found.ids)
        reasons.add((found.finished, len(found.ids) == 9))
    assert reasons <= {("end", False), ("length", True)}


class Scripted(nn.Module):
    """A model and decoder in one whose probabilities depend on the last token alone. Records the rows of each step."""

    make_cache, cache_type = TransformerLM.make_cache, TransformerLM.cache_type

    def __init__(self, probabilities: list[list[float]], max_seq_len: int = 64) -> None:
        super().__init__()
        shape = dict(d_model=2, num_layers=1, num_heads=1, max_seq_len=max_seq_len)
        self.config = ModelConfig(vocab_size=len(probabilities), **shape)
        self.embedding = nn.Embedding(1, 1)
        self.logits, self.rows = torch.tensor(probabilities, dtype=torch.float64).log(), []

    def prefill(self, parts, cache, row=None):
        cache.truncate([len(parts[0])])

    def step(self, ids, cache):
        assert cache.lengths == [cache.lengths[0]] * len(ids)
        cache.advance(1)
        self.rows.append(len(ids))
        return self.logits[ids]


def search(model: Scripted, prompt: str, end: bool = True, **options):
    return beam_search(Generator(model, tokenizer_of(len(model.logits) - end, end), decoder=model), prompt, **options)


def test_two_beams_find_a_text_that_greedy_decoding_misses():
    """The example in beam.py: a is followed by c or d, b by d."""
    model = Scripted([[0, 0, 0.5, 0.5], [0, 0, 0.1, 0.9], [1, 0, 0, 0], [0.6, 0.4, 0, 0]])  # d is followed by a or b
    (greedy,) = search(model, "d", end=False, num_beams=1, max_new_tokens=2)
    (found,) = search(model, "d", end=False, num_beams=2, max_new_tokens=2)
    assert greedy.text in ("ac", "ad") and math.exp(2 * greedy.score) == pytest.approx(0.3)
    assert found.text == "bd" and math.exp(2 * found.score) == pytest.approx(0.36)
    assert model.rows == [1, 1, 1, 2]


HALF = [[0.5, 0.5], [0.6, 0.4]]  # after a: a or the end; at the beginning: a or the end


def test_early_stop_ends_the_search_after_num_beams_texts():
    """Texts of n letters a have probability 0.6 * 0.5^n: in each step one candidate ends and one continues."""
    for num_beams, steps in ((2, 2), (3, 3), (5, 5)):
        model = Scripted(HALF)
        options = dict(num_beams=num_beams, num_return=num_beams, max_new_tokens=30, early_stop=True)
        found = search(model, "", length_penalty=0.0, **options)
        assert len(model.rows) == steps
        expected = [0.4, *(0.6 * 0.5**n for n in range(1, num_beams))]
        assert [math.exp(each.score) for each in found] == pytest.approx(expected)
        assert [each.text for each in found] == ["a" * n for n in range(num_beams)]


@pytest.mark.parametrize(
    ("penalty", "steps"),
    [
        (0.0, 2),  # "" has ended with 0.4; the running "a" has 0.6 > 0.4, then "aa" 0.3 < 0.4
        (-1.0, 1),  # log 0.4 = -0.92; continuations of "a" have at most 2 log 0.6 = -1.02
        (-0.5, 2),  # log 0.4 = -0.92; "a" can still reach 2^0.5 log 0.6 = -0.72, "aa" -2.09
        (0.5, 4),  # "a" ended with -0.85; "aaa" can still reach -1.90 / 8^0.5 = -0.67, "aaaa" -0.92
        (1.0, 8),  # "a" ended with -0.60; "aaaaaaa" can still reach -4.67 / 8 = -0.58
    ],
)
def test_the_search_ends_when_no_running_text_can_win(penalty, steps):
    """At most 8 tokens are generated. After n steps the running text has S = log 0.6 + (n - 1) log 0.5."""
    model = Scripted(HALF)
    options = dict(num_beams=2, max_new_tokens=8, length_penalty=penalty)
    (found,) = search(model, "", **options)
    assert_same([Found(found.ids, found.finished, found.score)], [best_of_half(penalty)])
    ended, running = -math.inf, 0.0
    for n in range(1, 9):  # the rule again: the best ended text against the bound of the running one
        ended = max(ended, (running + math.log(0.5 if n > 1 else 0.4)) / n**penalty)
        running += math.log(0.5 if n > 1 else 0.6)
        if max((running / length**penalty for length in range(n + 1, 9)), default=-math.inf) <= ended:
            break
    assert len(model.rows) == n == steps


def best_of_half(penalty: float) -> Found:
    """The best text of `HALF` with at most 8 tokens."""
    texts = []
    for n in range(9):
        log_prob = math.log(0.4) if n == 0 else math.log(0.6) + (n - 1) * math.log(0.5)
        log_prob += math.log(0.5) if 0 < n < 8 else 0.0
        texts.append(Found([0] * n, "end" if n < 8 else "length", log_prob / min(n + 1, 8) ** penalty))
    return max(texts, key=lambda each: each.score)


@pytest.mark.parametrize("penalty", [-1.5, 0.0, 0.5, 1.0])  # larger penalties hardly ever stop early
@pytest.mark.parametrize("num_return", [1, 3])
def test_stopping_when_no_text_can_win_does_not_change_the_result(penalty, num_return, monkeypatch):
    """Against a search that never stops early, with a sharper model, so that texts end."""
    shorter = 0
    for seed in range(8):
        generator = make(4, seed=seed, sharpness=2.0)
        options = dict(num_beams=3, num_return=num_return, max_new_tokens=12, length_penalty=penalty)
        steps = []
        step = generator.decoder.step
        monkeypatch.setattr(generator.decoder, "step", lambda *a, step=step, steps=steps: steps.append(1) or step(*a))
        found = beam_search(generator, "ab", **options)
        shorter += len(steps) < 12
        with monkeypatch.context() as patch:
            patch.setattr("tinylm.generation.beam._is_over", lambda running, ended, config: not running)
            expected = beam_search(generator, "ab", **options)
        assert found == expected
    assert shorter > 0


# --- against transformers


@pytest.mark.parametrize("early_stop", [True, False])
@penalties
def test_completions_match_transformers(penalty, early_stop):
    pytest.importorskip("transformers", reason="the oracle is transformers itself")
    from tests.model.test_transformers_oracle import V, both_models, llama

    theirs, ours, _ = both_models(llama)
    theirs, ours = theirs.double(), ours.double()
    for head in (theirs.lm_head, ours.head):
        head.weight.data[V - 1] *= 3  # so that some texts end
    generator = Generator(ours, CharTokenizer("".join(map(chr, range(97, 97 + V - 1))), [END_OF_TEXT]))
    end, reasons = generator.tokenizer.end_of_text, set()
    for prompt in ("a", "bc", "xyz", "hello", "fghij", "q"):
        ids = generator.prompt_ids(prompt)
        options = dict(num_beams=4, max_new_tokens=10, length_penalty=penalty)
        found = beam_search(generator, prompt, num_return=3, early_stop=early_stop, **options)
        expected = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, num_return_sequences=3,
            early_stopping=early_stop or "never", eos_token_id=end, pad_token_id=end, return_dict_in_generate=True,
            output_scores=True, **options,
        )  # fmt: skip
        rows = expected.sequences[:, len(ids) :].tolist()
        assert [each.ids for each in found] == [row[: row.index(end)] if end in row else row for row in rows]
        scores = expected.sequences_scores.tolist()
        assert [each.score for each in found] == pytest.approx(scores, rel=1e-6)  # theirs are float32
        reasons |= {each.finished for each in found}
    assert reasons >= ({"end", "length"} if penalty > 1 else {"end"})


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_beams=0), "num_beams must be at least 1, got 0"),
        (dict(num_return=0), "num_return must be at least 1, got 0"),
        (dict(num_return=5), "num_return must be at most num_beams, 4, got 5"),
        (dict(max_new_tokens=0), "max_new_tokens must be at least 1, got 0"),
        (dict(length_penalty=-10.5), "length_penalty must be from -10 to 10, got -10.5"),
        (dict(length_penalty=float("nan")), "length_penalty must be from -10 to 10, got nan"),
        (dict(min_new_tokens=101), "min_new_tokens must be at most max_new_tokens, 100, got 101"),
        (dict(stop=["a", ""]), r"stop must be strings that are not empty, got \['a', ''\]"),
        (dict(num_beams=2.0), "num_beams must be int, got 2.0"),
        (dict(early_stop="never"), "early_stop must be bool, got 'never'"),
    ],
)
def test_invalid_values_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        BeamConfig(**options)


def test_options_override_the_config_and_unknown_ones_are_refused():
    generator, config = make(), BeamConfig(num_beams=3, num_return=2, max_new_tokens=4)
    assert beam_search(generator, "a", config) == beam_search(
        generator, "a", num_beams=3, num_return=2, max_new_tokens=4
    )
    assert len(beam_search(generator, "a", config, num_return=3)) == 3
    with pytest.raises(ConfigError, match=r"^beams: no such option of beam search, did you mean 'num_beams'"):
        beam_search(generator, "a", beams=3)
    with pytest.raises(ConfigError, match=r"^truncate must be left, got 'right'$"):
        beam_search(generator, "a", truncate="right")


def test_a_prompt_without_room_for_new_tokens_is_refused_or_truncated(capfd):
    generator = make(end=False, max_seq_len=8)
    assert len(beam_search(generator, "abc", max_new_tokens=5)[0].ids) == 5  # just fits
    rule = "with beams, the prompt and max_new_tokens together must fit the context of 8 tokens"
    with pytest.raises(ConfigError, match=f"^{rule}, got 4 and 5; lower max_new_tokens or use --truncate left$"):
        beam_search(generator, "cabc", max_new_tokens=5)
    with pytest.raises(ConfigError, match=f"^{rule}, got 1 and 8; lower max_new_tokens$"):
        beam_search(generator, "a", max_new_tokens=8, truncate="left")
    assert capfd.readouterr().err == ""
    (truncated,) = beam_search(generator, "cabc", max_new_tokens=5, truncate="left")
    assert "the prompt has 4 tokens: only the last 3 are read" in capfd.readouterr().err
    (expected,) = beam_search(generator, "abc", max_new_tokens=5)
    assert (truncated.ids, truncated.score) == (expected.ids, expected.score)


def test_nan_weights_raise_a_numeric_error():
    generator = make()
    generator.model.embedding.weight.data.fill_(math.nan)
    with pytest.raises(NumericError, match="the model's logits are not finite: its weights are corrupt"):
        beam_search(Generator(generator.model, generator.tokenizer), "a", max_new_tokens=3)
