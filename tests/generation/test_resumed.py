"""A text that has tokens already goes on as if it had never stopped, whatever decodes it."""

import pytest

from tests.strategies import random_model
from tinylm.generation import Generator, SamplingConfig, SpeculativeGenerator
from tinylm.generation.fast.graph import GraphDecoder
from tinylm.generation.text import Text
from tinylm.generation.uncached import UncachedDecoder
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghij")
LENGTH = 40  # tokens, of a context of 12
GENERATORS = {
    "cached": Generator,
    "uncached": lambda model, tokenizer: Generator(model, tokenizer, UncachedDecoder(model)),
    "graph": lambda model, tokenizer: Generator(model, tokenizer, GraphDecoder(model)),
    "lookup": SpeculativeGenerator,
}


def network() -> TransformerLM:
    shape = dict(d_model=16, num_layers=2, num_heads=2, max_seq_len=12, tie_embeddings=False)
    return random_model(ModelConfig(vocab_size=LETTERS.vocab_size, **shape))


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_resumed_text_is_the_uninterrupted_one(kind):
    options = dict(seed=3, presence_penalty=0.3, repetition_penalty=1.2)
    generator = GENERATORS[kind](network(), LETTERS)
    whole = Text([1, 2, 3], 3)
    list(generator.decode([whole], SamplingConfig(max_new_tokens=LENGTH, **options)))
    assert len(whole.ids) == LENGTH
    for done in (1, 8, 9, 10, 11, 25, LENGTH - 1):  # 9 fills the context
        text = Text([1, 2, 3], 3, whole.ids[:done])
        list(generator.decode([text], SamplingConfig(max_new_tokens=LENGTH, **options)))
        assert text.ids == whole.ids, done


def test_the_window_of_a_text_is_its_newest_half_once_it_exceeds_the_context():
    def length(count: int, context: int) -> int:
        window = Text([0], ids=[*range(1, count)]).window(context)
        assert window == [*range(count)][-len(window) :]
        return len(window)

    assert [length(count, 4) for count in range(1, 12)] == [1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 2]
    assert [length(count, 5) for count in range(1, 12)] == [1, 2, 3, 4, 5, 2, 3, 4, 5, 2, 3]
    assert [length(count, 1) for count in range(1, 4)] == [1, 1, 1]
