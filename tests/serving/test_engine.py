"""The engine against `Generator.generate`, one text at a time."""

import asyncio
import dataclasses
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import model_configs, random_model
from tinylm.generation import Generator, SamplingConfig
from tinylm.model import ModelConfig
from tinylm.serving import batch
from tinylm.serving.engine import Engine, Request
from tinylm.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghij")
few = settings(max_examples=40, deadline=None)


def make_model(max_seq_len: int = 16, seed: int = 0, **changes):
    shape = dict(vocab_size=10, d_model=16, num_layers=2, num_heads=2, tie_embeddings=False)
    return random_model(ModelConfig(max_seq_len=max_seq_len, **shape | changes), seed).double()


def serve(engine: Engine, work):
    """Runs a coroutine beside an engine."""
    engine.start()
    try:
        return asyncio.run(work(engine))
    finally:
        engine.close()


@st.composite
def options(draw):
    return SamplingConfig(
        max_new_tokens=draw(st.integers(1, 30)),
        temperature=draw(st.sampled_from([0.0, 0.7, 1.0])),
        top_k=draw(st.sampled_from([None, 1, 3])),
        top_p=draw(st.sampled_from([None, 0.5, 0.9])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.4])),
        logit_bias=draw(st.sampled_from([None, {3: 2.0}])),
        banned_tokens=draw(st.sampled_from([(), (1, 2)])),
        stop=draw(st.sampled_from([(), ("ab",), ("c", "dd")])),
        seed=draw(st.integers(0, 5)),
    )


@few
@given(st.text("abcdefghij", min_size=1, max_size=16), options(), st.integers(0, 29))
def test_a_text_goes_on_from_its_first_tokens_as_it_did(prompt, config, begun):
    """From any token on, sliding, penalties, stop strings and random numbers are those of the whole text."""
    engine = Engine(make_model(), LETTERS, rows=2)

    async def work(engine):
        ids = engine.generator.prompt_ids(prompt)
        whole = await engine.complete(Request(ids, config))
        first = [piece.token for piece in whole[:-1]][:begun]
        rest = await engine.complete(Request(ids, config, begun=first))
        assert [piece[1:] for piece in rest] == [
            (token, pytest.approx(log_prob), (), finished) for _, token, log_prob, _, finished in whole[len(first) :]
        ]

    serve(engine, work)


@st.composite
def arrivals(draw, context: int = 16):
    """Requests with the number of pieces of another text that precede them, and after how many they are cancelled."""
    prompt = st.text("abcdefghij", min_size=1, max_size=context)
    return draw(
        st.lists(st.tuples(prompt, options(), st.integers(0, 3), st.none() | st.integers(0, 9)), min_size=1, max_size=9)
    )


@few
@given(
    model_configs(max_seq_len=st.integers(1, 9), vocab_size=st.just(10)),
    st.integers(1, 4),
    st.integers(1, 8),
    st.data(),
)
def test_texts_are_those_of_generate_whatever_else_is_in_the_batch(config, rows, part, data):
    model = random_model(config).double()
    requests = data.draw(arrivals(config.max_seq_len))
    alone = Generator(model, LETTERS)

    async def one(engine, prompt, options, pauses, leaves):
        for _ in range(pauses):
            await engine.run(lambda: None)
        text, request = "", Request(LETTERS.encode(prompt), options, client=prompt[0])
        async with aclosing(engine.stream(request)) as pieces:
            if leaves == 0:
                return None
            async for number, piece in enumerated(pieces):
                text += piece.text
                if number == leaves:
                    return None
        return text

    async def everything(engine):
        return await asyncio.gather(*(one(engine, *each) for each in requests))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "PART", part)
        texts = serve(Engine(model, LETTERS, rows=rows), everything)
    for text, (prompt, config, _, _) in zip(texts, requests, strict=True):
        if text is not None:
            assert text == alone.generate(prompt, **dataclasses.asdict(config))


async def enumerated(iterator):
    number = 0
    async for each in iterator:
        number += 1
        yield number, each
