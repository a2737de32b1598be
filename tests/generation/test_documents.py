"""With `document_mask`, generation, scores and pictures mask documents as training does.

The oracle is training's forward pass over the whole text: `model(ids, documents=document_numbers(ids, end))`.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.changes import gate
from tests.crossed import crossed
from tests.model.test_cache import with_rounded_keys
from tests.strategies import model_configs, random_model
from tinylm.data.batches import Batch
from tinylm.evaluation import exact_match, score_text
from tinylm.evaluation.tokens import token_losses
from tinylm.generation import Generator, SamplingConfig, SpeculativeGenerator, beam_search
from tinylm.generation.fast.compiled import CompiledDecoder
from tinylm.generation.fast.decoder import Decoder
from tinylm.generation.text import Text
from tinylm.model import Int8KVCache, ModelConfig, RingKVCache, TransformerLM
from tinylm.model.attention import document_numbers
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer
from tinylm.training import LitTransformerLM

LETTERS = CharTokenizer("abcdefghij", [END_OF_TEXT])
END = LETTERS.end_of_text
NEW = 14
GREEDY = SamplingConfig(max_new_tokens=NEW, temperature=0.0)
PROMPTS = [[END], [END, 0, 1, 2], [END, 3, END, 4, 5], [6, 7, END], [END, END, 8, 9, 1, 2], [3]]
POSITIONS = ("rotary", "learned", "sinusoidal", "none")
positions = pytest.mark.parametrize("positions", POSITIONS)
WINDOWS = (
    {},
    dict(max_seq_len=8),
    dict(sliding_window=3, max_seq_len=10),
    dict(sliding_window=3, layer_pattern="LS", max_seq_len=10),
)


class Fixed(Decoder):
    """Keeps all rows, like a compiled decoder."""

    fixed_rows = True


def network(**fields) -> TransformerLM:
    shape = dict(vocab_size=11, d_model=16, num_layers=2, num_heads=2, tie_embeddings=False, max_seq_len=32)
    return random_model(ModelConfig(**shape | dict(document_mask=True) | fields), seed=6)


@torch.no_grad()
def uncached(model: TransformerLM, prompt: list[int], count: int = NEW, end: int | None = END) -> list[int]:
    """The oracle: slides like the generator."""
    ids = window = list(prompt)
    for _ in range(count):
        if len(window) > model.config.max_seq_len:
            window = ids[-(model.config.max_seq_len // 2) :]
        rows = torch.tensor([window])
        token = int(model(rows, documents=document_numbers(rows, end))[0, -1].argmax())
        if token == END:
            break
        ids, window = [*ids, token], [*window, token]
    return ids[len(prompt) :]


def texts_of(generator: Generator, batch_size: int = 1, config: SamplingConfig = GREEDY) -> list[list[int]]:
    texts = [Text(list(prompt)) for prompt in PROMPTS]
    for _ in generator.decode(texts, config, batch_size):
        pass
    return [text.ids for text in texts]


@pytest.mark.parametrize(
    ("cache", "fields", "positions"), crossed((RingKVCache, Int8KVCache), WINDOWS, POSITIONS, every=4)
)
def test_texts_match_trainings_forward_pass(positions, fields, cache):
    """With prompts of one and of several documents, single texts and batches, within the context and sliding."""
    model = network(positional_encoding=positions, **fields)
    model.cache_type = cache
    oracle = network(positional_encoding=positions, **fields)
    if cache is Int8KVCache:
        oracle = with_rounded_keys(oracle)
    expected = [uncached(oracle, prompt) for prompt in PROMPTS]
    for batch_size in (1, 2, 6):
        assert texts_of(Generator(model, LETTERS), batch_size) == expected
        assert texts_of(Generator(model, LETTERS, Fixed(model)), batch_size) == expected
    together = [uncached(oracle, prompt, end=None) for prompt in PROMPTS]
    assert expected != together, "the mask has no effect"


@positions
def test_speculative_texts_match_trainings_forward_pass(positions):
    """Drafts may end a document, and may be rejected."""
    model = network(positional_encoding=positions, max_seq_len=12)
    expected = [uncached(model, prompt) for prompt in PROMPTS]
    for draft in (None, model, network(positional_encoding=positions, max_seq_len=7), network(document_mask=False)):
        assert texts_of(SpeculativeGenerator(model, LETTERS, draft)) == expected


def test_texts_of_a_changed_model_match_trainings_forward_pass():
    model = network()
    gate(model)
    assert texts_of(Generator(model, LETTERS), 3) == [uncached(model, prompt) for prompt in PROMPTS]
    assert texts_of(SpeculativeGenerator(model, LETTERS)) == [uncached(model, prompt) for prompt in PROMPTS]


@positions
@torch.no_grad()
def test_beams_match_trainings_forward_pass(positions):
    model = network(positional_encoding=positions)
    found = beam_search(Generator(model, LETTERS), "abc", num_beams=4, num_return=4, max_new_tokens=8)
    for each in found:
        ids = torch.tensor([[END, 0, 1, 2, *each.ids]])
        log_probs = model(ids, documents=document_numbers(ids, END))[0].log_softmax(-1)
        expected = log_probs[range(3, ids.shape[1] - 1), each.ids].tolist()
        assert each.log_probs == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    model_configs(document_mask=st.just(True), vocab_size=st.just(4), max_seq_len=st.integers(3, 10)),
    st.lists(st.integers(0, 3), min_size=3, max_size=10),
    st.integers(0, 9),
    st.booleans(),
)
@torch.no_grad()
def test_logits_match_trainings_forward_pass_after_any_prefix(config, ids, prefix, one_by_one):
    """With separators anywhere, read together or one by one, truncated and read again."""
    model, ids = random_model(config), ids[: config.max_seq_len]
    decoder, prefix = Decoder(model), min(prefix, len(ids) - 1)
    decoder.end = 3
    rows = torch.tensor([ids])
    full = model(rows, documents=document_numbers(rows, 3))[0]
    cache = decoder.make_cache(1, spare=len(ids))
    decoder.prefill([ids[:prefix]], cache)
    for _ in range(2):
        if one_by_one:
            found = torch.cat([decoder.step(torch.tensor([token]), cache) for token in ids[prefix:]])
        else:
            found = decoder.steps(ids[prefix:], cache, len(ids) - prefix)
        torch.testing.assert_close(found, full[prefix:], rtol=0, atol=1e-9)
        cache.truncate([prefix])


@pytest.mark.slow  # compiles for half a minute
def test_compiled_texts_match_trainings_forward_pass():
    model = network().float()
    generator = Generator(model, LETTERS, CompiledDecoder(model))
    assert texts_of(generator, 6) == [uncached(model, prompt) for prompt in PROMPTS]


# --- conversations


def test_a_conversation_is_one_document():
    """A record of pairs has one document number in training (data/pair_batches.py), separators included."""
    model = network()
    whole = [uncached(model, prompt, end=None) for prompt in PROMPTS]
    assert whole != [uncached(model, prompt) for prompt in PROMPTS]
    found = exact_match(Generator(model, LETTERS), PROMPTS, [""] * len(PROMPTS), max_new_tokens=NEW, batch_size=3)
    assert found.answers == [LETTERS.decode(ids) for ids in whole]
    framed = Generator(model, LETTERS)
    framed.before, framed.after = [9], [8]  # roles
    for prompt, text in itertools.product(["", "ab"], ["ca"]):
        ids = [END, 9, *LETTERS.encode(prompt + text), 8]
        (found,) = framed.complete([prompt + text], max_new_tokens=NEW, temperature=0)
        assert found.ids == uncached(model, ids, end=None)
    pairs = Generator(model, LETTERS)  # with a template that adds nothing to the prompt
    pairs.conversation = True
    (found,) = pairs.complete(["abc"], max_new_tokens=NEW, temperature=0)
    assert found.ids == uncached(model, [END, 0, 1, 2], end=None) != uncached(model, [END, 0, 1, 2])


# --- scores


@pytest.mark.parametrize("text", ["a", "abcdefg", "hgfedcbaabcdefghijjihgfedcba"])
@positions
@torch.no_grad()
def test_scores_pictures_and_validation_agree(text, positions):
    """For a text of one window. The oracle is the sum of a validation step."""
    model = network(positional_encoding=positions)
    ids = torch.tensor([[END, *LETTERS.encode(text)]])
    module = LitTransformerLM(model.config)
    module.net = model
    module.__class__ = type("Module", (LitTransformerLM,), {"tokenizer": LETTERS})
    module.on_validation_epoch_start()
    module.validation_step(Batch(ids[:, :-1], ids[:, 1:], len(text)), 0)
    nats = float(module._metrics[0].nats)
    assert score_text(model, LETTERS, text).nats == pytest.approx(nats, abs=1e-9)
    assert sum(each.nats for each in token_losses(model, LETTERS, text)) == pytest.approx(nats, abs=1e-9)
    if len(text) > 1:
        together = model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])
        assert abs(float(together.sum()) + nats) > 1e-3


@torch.no_grad()
def test_scores_and_pictures_agree_beyond_the_context():
    model, text = network(max_seq_len=8), "hgfedcbaabcdefghijjihgfedcba"
    losses = [each.nats for each in token_losses(model, LETTERS, text)]
    assert score_text(model, LETTERS, text).nats == pytest.approx(sum(losses), abs=1e-9)
