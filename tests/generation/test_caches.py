"""Every operation of decoding on every kind of cache, against full forward passes without a cache."""

import pytest
import torch

from tests.model.test_cache import with_rounded_keys
from tests.strategies import random_model
from tinylm.generation import Generator, SpeculativeGenerator, beam_search
from tinylm.generation.fast.decoder import Decoder
from tinylm.model import Int8KVCache, ModelConfig, RingKVCache, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer

LETTERS = CharTokenizer("abcdefghij", [END_OF_TEXT])
END = LETTERS.end_of_text
PROMPTS = ["", "abc", "jihgf", "a", "bb", "cdefgh", "ja"]
NEW = 20

caches = pytest.mark.parametrize("cache", [RingKVCache, Int8KVCache])
windows = pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(sliding_window=4),
        dict(sliding_window=3, num_kv_heads=1),
        dict(sliding_window=3, layer_pattern="SL"),
        dict(sliding_window=3, layer_pattern="NS", rotary_fraction=0.5, attention_scale=0.5, d_head=12),
    ],
    ids=str,
)


class Fixed(Decoder):
    """Keeps all rows, like a compiled decoder."""

    fixed_rows = True


def network(cache: type[RingKVCache], max_seq_len: int = 8, **fields) -> TransformerLM:
    shape = dict(vocab_size=LETTERS.vocab_size, d_model=16, num_layers=2, num_heads=2, tie_embeddings=False)
    model = random_model(ModelConfig(max_seq_len=max_seq_len, **shape | fields), seed=2)
    model.cache_type = cache
    return model


@torch.no_grad()
def uncached(model: TransformerLM, prompt: str) -> list[int]:
    """The oracle: slides like the generator, and rounds keys and values if the model's cache does."""
    oracle = random_model(model.config, seed=2)
    if model.cache_type is Int8KVCache:
        oracle = with_rounded_keys(oracle)
    ids = window = [END, *LETTERS.encode(prompt)]
    prompt_length = len(ids)
    for _ in range(NEW):
        if len(window) > model.config.max_seq_len:
            window = ids[-(model.config.max_seq_len // 2) :]
        token = int(oracle(torch.tensor([window]))[0, -1].argmax())
        if token == END:
            break
        ids, window = [*ids, token], [*window, token]
    return ids[prompt_length:]


@caches
@windows
@pytest.mark.parametrize("decoder", [Decoder, Fixed])
def test_texts_slide_and_take_over_the_rows_of_finished_texts(cache, fields, decoder):
    """Seven texts in three rows: some end early, the others outgrow the context."""
    model = network(cache, **fields)
    found = Generator(model, LETTERS, decoder(model)).complete(PROMPTS, batch_size=3, max_new_tokens=NEW, temperature=0)
    assert [each.ids for each in found] == [uncached(model, prompt) for prompt in PROMPTS]
    assert {each.finished for each in found} == {"end", "length"}


@caches
@windows
def test_speculative_decoding_truncates_rejected_drafts(cache, fields):
    model = network(cache, **fields)
    for draft in (None, model, network(cache, max_seq_len=6)):
        generator = SpeculativeGenerator(model, LETTERS, draft)
        found = generator.complete(PROMPTS, max_new_tokens=NEW, temperature=0)
        assert [each.ids for each in found] == [uncached(model, prompt) for prompt in PROMPTS]


@caches
@windows
def test_beam_search_drops_and_copies_rows(cache, fields):
    """Log probabilities of four beams match full forward passes."""
    model = network(cache, max_seq_len=20, **fields)
    oracle = random_model(model.config, seed=2)
    if cache is Int8KVCache:
        oracle = with_rounded_keys(oracle)
    for each in beam_search(Generator(model, LETTERS), "abc", num_beams=4, num_return=4, max_new_tokens=12):
        ids = [END, *LETTERS.encode("abc"), *each.ids]
        with torch.no_grad():
            log_probs = oracle(torch.tensor([ids]))[0].log_softmax(-1)
        expected = log_probs[range(3, len(ids) - 1), each.ids].tolist()
        assert each.log_probs == pytest.approx(expected, abs=1e-9)


@caches
@torch.no_grad()
def test_row_and_select_share_and_copy_the_memory_of_a_cache(cache):
    """Rows written through `row` are read by the whole cache; rows copied by `select` are independent."""
    model = network(cache)
    oracle = with_rounded_keys(random_model(model.config, seed=2)) if cache is Int8KVCache else model
    ids = torch.arange(18).view(3, 6) % 11
    rows = model.make_cache(3)
    for row, count in enumerate((2, 5, 3)):
        single = rows.rows(row)
        assert type(single) is cache
        model(ids[row : row + 1, :count], cache=single)
        rows.lengths[row] = count
    rows.select([2, 0, 2])
    found = Decoder(model).step(torch.tensor([4, 5, 6]), rows)
    texts = ([*ids[2, :3].tolist(), 4], [*ids[0, :2].tolist(), 5], [*ids[2, :3].tolist(), 6])
    for logits, text in zip(found, texts, strict=True):
        torch.testing.assert_close(logits, oracle(torch.tensor([text]))[0, -1], rtol=0, atol=1e-10)
