"""Speculative decoding gives the texts of plain decoding: the acceptance rule, then whole texts."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.crossed import crossed
from tests.strategies import model_configs, random_model
from tinylm.errors import ConfigError
from tinylm.generation import Generator, SamplingConfig, SpeculativeGenerator
from tinylm.generation.fast.speculative import RandomTimes, _DraftModel, verify
from tinylm.generation.sampling import Random, adjusted, draw, filtered
from tinylm.generation.text import Text
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer

few = settings(max_examples=40, deadline=None)
GREEDY = dict(temperature=0)
LETTERS = CharTokenizer("abcdefghij")
V = 10


def chi_square_p(counts: dict, probabilities: dict, draws: int) -> float:
    """p-value of a chi-square test. Outcomes with an expected count below 8 are combined into one class."""
    assert counts.keys() <= probabilities.keys(), "an impossible outcome"
    rare = [key for key, p in probabilities.items() if p * draws < 8]
    classes = [(counts.get(key, 0), p * draws) for key, p in probabilities.items() if p * draws >= 8]
    if rare:
        classes.append((sum(counts.get(key, 0) for key in rare), sum(probabilities[key] for key in rare) * draws))
    distance = torch.tensor(sum((count - mean) ** 2 / mean for count, mean in classes), dtype=torch.float64)
    assert len(classes) > 1
    return float(torch.special.gammaincc(torch.tensor((len(classes) - 1) / 2, dtype=torch.float64), distance / 2))


def counting(length: int = 64) -> TransformerLM:
    """A model that generates the alphabet from a to j, over and over."""
    shape = dict(d_model=V, num_layers=1, num_heads=1, positional_encoding="none", tie_embeddings=False)
    model = TransformerLM(ModelConfig(vocab_size=V, max_seq_len=length, zero_init_output=True, **shape)).eval()
    model.embedding.weight.data = torch.eye(V)
    model.head.weight.data = torch.eye(V).roll(1, dims=0)  # the zeroed blocks add nothing to the embedding
    return model


def letters(vocab_size: int) -> CharTokenizer:
    return CharTokenizer("".join(map(chr, range(97, 97 + vocab_size))))


def ids_of(generator: Generator, prompt: list[int], **options) -> list[int]:
    return list(generator.stream_ids(prompt, SamplingConfig(**options)))


def passes(generator: Generator, monkeypatch) -> list[int]:
    """Records the number of tokens in each pass of the large model."""
    sizes, steps, step = [], generator.decoder.steps, generator.decoder.step

    def counted(ids, *rest):
        sizes.append(len(ids))
        return steps(ids, *rest)

    def counted_step(ids, cache):
        sizes.append(1)
        return step(ids, cache)

    monkeypatch.setattr(generator.decoder, "steps", counted)
    monkeypatch.setattr(generator.decoder, "step", counted_step)
    return sizes


# --- the rule


def test_verified_drafts_are_the_tokens_of_plain_sampling():
    """The oracle draws one token after the other; any draft gives its tokens."""
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.0, 0.5]], dtype=torch.float64)
    accepted = Counter()
    for seed in range(500):
        expected = [int(draw(row, Random(seed).times(i, 4))) for i, row in enumerate(p)]
        draft = [seed % 4, seed // 4 % 4]
        tokens = verify(draft, p, RandomTimes(4, Random(seed)))
        right = [ours == theirs for ours, theirs in zip(draft, expected, strict=False)]
        count = 0 if not right[0] else 1 if not right[1] else 2
        assert tokens == expected[: count + 1]
        accepted[count] += 1
    assert len(accepted) == 3


def test_similar_distributions_draw_the_same_token_as_often_as_the_theory_says():
    """Daliri et al. 2024: both are x with probability 1 / sum over y of max(p(y) / p(x), q(y) / q(x))."""
    p, q = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)
    expected = sum(1 / float(torch.maximum(p / p[x], q / q[x]).sum()) for x in range(3))
    random = Random(0)
    draws = [random.times(position, 3) for position in range(20_000)]
    same = sum(draw(p, times) == draw(q, times) for times in draws)
    assert same / 20_000 == pytest.approx(expected, abs=0.015)
    assert expected > 0.6


# --- whole texts


@torch.no_grad()
def text_probabilities(
    model, prompt: list[int], config: SamplingConfig, end: int, generated: tuple[int, ...] = ()
) -> dict:
    """The probability of every text, by full forward passes."""
    if len(generated) == config.max_new_tokens or end in generated:
        return {generated: 1.0}
    counts = [torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=4)[None] for ids in (prompt, generated)]
    logits = adjusted(model(torch.tensor([[*prompt, *generated]]))[:, -1], *counts, config)
    if len(generated) < config.min_new_tokens:
        logits[0, end] = -torch.inf
    texts = {}
    for token, p in enumerate(filtered(logits, config).softmax(dim=-1)[0].tolist()):
        if p:
            continued = text_probabilities(model, prompt, config, end, (*generated, token))
            texts |= {text: p * following for text, following in continued.items()}
    return texts


OPTIONS = {
    "plain": dict(),
    "filters": dict(temperature=1.5, top_k=3, top_p=0.95, min_p=0.05),
    "typical": dict(temperature=2.0, typical_p=0.9),
    "penalties": dict(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=-0.7, logit_bias={1: 0.5}),
    "bans": dict(min_new_tokens=2, banned_tokens=(2,)),
}


@pytest.mark.parametrize(("by", "sampling"), crossed(("model", "lookup"), OPTIONS, every=2))
def test_texts_have_the_probabilities_of_full_forward_passes(by, sampling):
    tokenizer = CharTokenizer("abc", [END_OF_TEXT])
    shape = dict(vocab_size=4, d_model=8, num_layers=1, num_heads=2, tie_embeddings=False)
    model = random_model(ModelConfig(max_seq_len=8, **shape), 3)
    draft = random_model(ModelConfig(max_seq_len=6, **shape), 4) if by == "model" else None
    config, prompt, draws = SamplingConfig(max_new_tokens=3, **OPTIONS[sampling]), [0, 1, 2, 1, 0], 1000
    generator = SpeculativeGenerator(model, tokenizer, draft, num_draft=3, lookup=1)
    texts = [Text(prompt, seed) for seed in range(draws)]
    assert sum(1 for _ in generator.decode(texts, config)) >= draws
    end = tokenizer.end_of_text
    counts = Counter((*text.ids, end) if text.finished == "end" else tuple(text.ids) for text in texts)
    assert chi_square_p(counts, text_probabilities(model, prompt, config, end), draws) > 1e-6
    assert 0 < generator.accepted < generator.drafted  # drafts were accepted and rejected


@st.composite
def pairs(draw):
    """A model, and a draft model of the same vocabulary or None."""
    config = draw(model_configs(max_seq_len=st.integers(1, 9)))
    vocabulary = st.just(config.vocab_size)
    other = draw(st.none() | st.just(config) | model_configs(max_seq_len=st.integers(1, 12), vocab_size=vocabulary))
    return random_model(config), None if other is None else random_model(other, draw(st.integers(0, 1)))


WAYS = [
    GREEDY,
    dict(frequency_penalty=0.4, **GREEDY),
    dict(seed=1),
    dict(seed=2, temperature=0.7, top_p=0.9, presence_penalty=0.5),
]


@few
@given(pairs(), st.integers(1, 5), st.integers(1, 3), st.sampled_from(WAYS), st.data())
def test_texts_match_plain_decoding_even_beyond_the_context(both, num_draft, lookup, options, data):
    model, draft = both
    size, context = model.config.vocab_size, model.config.max_seq_len
    prompt = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=context))
    options = dict(max_new_tokens=2 * context + 5, **options)
    generator = SpeculativeGenerator(model, letters(size), draft, num_draft=num_draft, lookup=lookup)
    assert ids_of(generator, prompt, **options) == ids_of(Generator(model, letters(size)), prompt, **options)


@pytest.mark.parametrize(("window", "pattern"), crossed((1, 2, 3), (None, "SN"), every=2))
def test_rejected_drafts_leave_no_trace_even_after_a_window_moved(window, pattern, monkeypatch):
    shape = dict(vocab_size=V, d_model=8, num_layers=2, num_heads=2, max_seq_len=64, sliding_window=window)
    shape["layer_pattern"] = pattern
    model, small = (random_model(ModelConfig(**shape), seed) for seed in (1, 2))
    prompt, draft = [0, 1, 2, 3, 4, 5, 6], _DraftModel.draft
    options = dict(max_new_tokens=50, frequency_penalty=0.5, **GREEDY)  # prevents a cycle
    found = []

    def checked(self, text, times, limit, end):
        tokens = draft(self, text, times, limit, end)
        plain = Generator(small, LETTERS).decode([forced := Text(prompt)], SamplingConfig(**options))
        for _ in plain:  # the draft model alone, forced along the text so far
            if len(forced.ids) <= len(text.ids):
                forced.ids[-1] = text.ids[len(forced.ids) - 1]
        found.append((tokens, forced.ids[len(text.ids) :][: len(tokens)]))
        return tokens

    expected = ids_of(Generator(model, LETTERS), prompt, **options)
    generator = SpeculativeGenerator(model, LETTERS, small)
    monkeypatch.setattr(_DraftModel, "draft", checked)
    assert ids_of(generator, prompt, **options) == expected
    assert generator.accepted < generator.drafted
    assert all(tokens == alone for tokens, alone in found)


@few
@given(
    model_configs(max_seq_len=st.integers(1, 9)),
    st.integers(1, 4),
    st.sampled_from([{}, dict(top_k=3), dict(presence_penalty=2.0)]),
)
def test_drafts_of_the_model_itself_are_always_accepted(config, num_draft, options):
    model = random_model(config)
    generator = SpeculativeGenerator(model, letters(config.vocab_size), model, num_draft=num_draft)
    assert len(ids_of(generator, [0], max_new_tokens=20, seed=1, **options)) == 20
    assert generator.accepted == generator.drafted
    assert generator.drafted > 0 or config.max_seq_len == 1  # a context of one token leaves no room for a draft


@pytest.mark.parametrize("draft", [None, counting()], ids=["lookup", "model"])
def test_texts_are_equal_exactly_for_equal_seeds(draft):
    generator = SpeculativeGenerator(counting(), LETTERS, draft, lookup=1)
    first, repeated, other, unseeded = (
        generator.generate("ab", max_new_tokens=40, seed=seed) for seed in (1, 1, 2, None)
    )
    assert first == repeated
    assert len({first, other, unseeded}) == 3


# --- number of passes


@pytest.mark.parametrize("draft", [None, counting()], ids=["lookup", "model"])
def test_a_repetitive_text_takes_one_pass_per_draft_and_next_token(draft, monkeypatch):
    generator = SpeculativeGenerator(counting(), LETTERS, draft, num_draft=4)
    sizes = passes(generator, monkeypatch)
    assert generator.generate("abcdefghijabc", max_new_tokens=40, **GREEDY) == "defghijabc" * 4
    assert sizes == [13 + 4] + [5] * 7
    assert generator.drafted == generator.accepted == 32


def test_a_text_without_repetition_takes_one_pass_per_token(monkeypatch):
    generator = SpeculativeGenerator(counting(), LETTERS, num_draft=4)
    sizes = passes(generator, monkeypatch)
    assert generator.generate("a", max_new_tokens=9, **GREEDY) == "bcdefghij"
    assert sizes == [1] * 9
    assert generator.drafted == 0


def test_drafts_do_not_exceed_max_new_tokens(monkeypatch):
    generator = SpeculativeGenerator(counting(), LETTERS, counting(), num_draft=4)
    sizes = passes(generator, monkeypatch)
    assert generator.generate("a", max_new_tokens=3, **GREEDY) == "bcd"
    assert sizes == [3]


def test_prompt_lookup_continues_the_latest_occurrence(monkeypatch):
    generator = SpeculativeGenerator(counting(), LETTERS, num_draft=2, lookup=2)
    generator.generate("abdabcab", max_new_tokens=3, **GREEDY)  # "ab" was followed by d, later by c: drafts "ca"
    assert (generator.drafted, generator.accepted) == (2, 1)


# --- the interface of `Generator`


def test_stop_strings_log_probs_and_reasons_match_plain_decoding():
    tokenizer = CharTokenizer("abcdefghi", [END_OF_TEXT])  # the tenth token, so it follows i
    prompts, options = ["ab", "f", "fghiabc"], dict(max_new_tokens=6, stop=["xyz", "ef"], num_samples=2, **GREEDY)
    expected = Generator(counting(), tokenizer).complete(prompts, **options)
    assert [each.finished for each in expected] == ["stop", "stop", "end", "end", "stop", "stop"]
    for draft in (None, counting()):
        found = SpeculativeGenerator(counting(), tokenizer, draft, lookup=1).complete(prompts, **options)
        for one, other in zip(found, expected, strict=True):
            assert (one.text, one.ids, one.finished) == (other.text, other.ids, other.finished)
            torch.testing.assert_close(torch.tensor(one.log_probs), torch.tensor(other.log_probs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("draft", [None, counting()], ids=["lookup", "model"])
@pytest.mark.parametrize("least", [0, 4, 6])
def test_a_text_does_not_end_before_min_new_tokens(draft, least):
    tokenizer = CharTokenizer("abcdefghi", [END_OF_TEXT])
    options = dict(max_new_tokens=7, min_new_tokens=least, **GREEDY)
    found = SpeculativeGenerator(counting(), tokenizer, draft, lookup=1).complete(["gh"], **options)[0]
    expected = Generator(counting(), tokenizer).complete(["gh"], **options)[0]
    assert (found.text, found.finished) == (expected.text, expected.finished)
    assert len(found.ids) >= least


def test_a_text_finished_within_a_draft_gets_no_more_tokens():
    generator = SpeculativeGenerator(counting(), LETTERS, counting(), num_draft=4)
    texts = [Text([0]), Text([5])]
    for text in generator.decode(texts, SamplingConfig(**GREEDY)):
        if len(text.ids) == 3:
            text.finished = "enough"
        assert not (text is texts[1] and not texts[0].finished)
    assert [text.ids for text in texts] == [[1, 2, 3], [6, 7, 8]]


@pytest.mark.parametrize(("count", "times"), [(5, 0), (6, 1), (30, 1)])
def test_sliding_is_announced_once_and_only_if_it_happens(count, times, capfd):
    generator = SpeculativeGenerator(counting(8), LETTERS, counting(), num_draft=2)
    assert len(generator.generate("abcd", max_new_tokens=count, **GREEDY)) == count
    assert capfd.readouterr().err.count("beyond 8 tokens, generation keeps") == times


def test_refusals_name_the_value_and_the_remedy():
    model = counting()
    for name in ("num_draft", "lookup"):
        with pytest.raises(ConfigError, match=f"^{name} must be at least 1, got 0"):
            SpeculativeGenerator(model, LETTERS, **{name: 0})
    other = TransformerLM(ModelConfig(vocab_size=7, d_model=4, num_layers=1, num_heads=1, max_seq_len=4))
    with pytest.raises(ConfigError, match=r"got 7 tokens for the model's 10; use one .* the same tokenizer"):
        SpeculativeGenerator(model, LETTERS, other)
    with pytest.raises(ConfigError, match="one text at a time, got batch_size=2; use 1"):
        SpeculativeGenerator(model, LETTERS).complete(["a", "b"], batch_size=2)
