"""A server in a thread of the tests, with random models of two kinds."""

import contextlib
import threading
from collections.abc import Iterator

import openai

from tests.strategies import random_model
from tinylm.model import ModelConfig, TransformerLM
from tinylm.serving.engine import Engine
from tinylm.serving.openai import OpenAIServer, Served
from tinylm.serving.openai_fields import Limits
from tinylm.serving.server import Server, listen, url
from tinylm.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

CHATTY = ByteTokenizer(["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"])
LETTERS = CharTokenizer("abcdefghij ")


def make_model(tokenizer: Tokenizer, max_seq_len: int = 64) -> TransformerLM:
    """A random model; in float64, so that no tie is decided by rounding."""
    shape = dict(d_model=16, num_layers=2, num_heads=2, tie_embeddings=False)
    return random_model(ModelConfig(vocab_size=tokenizer.vocab_size, max_seq_len=max_seq_len, **shape)).double()


def serve(name: str, tokenizer: Tokenizer, model: TransformerLM | None = None, **options: int) -> Served:
    """A model, by default a random one, with its engine."""
    engine = Engine(model or make_model(tokenizer), tokenizer, **options)
    engine.start()
    return Served(name, engine)


@contextlib.contextmanager
def running(models: list[Served], limits: Limits | None = None, **options) -> Iterator[str]:
    """The URL of a server that runs in a thread for a `with` block."""
    application = OpenAIServer(models, limits or Limits(), **options)
    listener = listen("127.0.0.1", 0)
    server = Server(application.guard, 1.0, lambda: None)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield url(listener)
    finally:
        server.should_exit = True
        thread.join()


def client(address: str, key: str = "any") -> openai.OpenAI:
    """The client of a server."""
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
