"""Small random models with the characters of the built-in stories, for the tests of the page."""

from contextlib import contextmanager

from tests.strategies import random_model
from tinylm.bundle import Bundle
from tinylm.data.grammar.stories import stories
from tinylm.model import ModelConfig
from tinylm.serving.play import Player
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer

STORY = next(iter(stories(1, 1)))
LETTERS = CharTokenizer("".join(sorted(set("".join(stories(0, 200))))), [END_OF_TEXT])
BYTES = ByteTokenizer([END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>"])


def make_bundle(tokenizer=LETTERS, seed: int = 0, **info: str) -> Bundle:
    shape = dict(d_model=16, num_layers=2, num_heads=2, max_seq_len=32, tie_embeddings=False)
    return Bundle(random_model(ModelConfig(vocab_size=tokenizer.vocab_size, **shape), seed), tokenizer, info)


@contextmanager
def playing(**bundles: Bundle):
    """Players of the bundles by name, with running engines."""
    players = {name: Player.of(name, bundle) for name, bundle in bundles.items()}
    for player in players.values():
        player.engine.start()
    try:
        yield players
    finally:
        for player in players.values():
            player.engine.close()
