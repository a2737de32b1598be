"""The engine against `Generator`, which makes one text at a time; in float64, so that ties do not matter."""

import asyncio
import dataclasses
import gc
import threading
import tracemalloc
from contextlib import aclosing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.changes import CHANGES
from tests.strategies import model_configs, random_model
from tinylm.adapt import LoRAConfig, add_lora, quantize
from tinylm.errors import ConfigError, NumericError
from tinylm.generation import Generator, SamplingConfig
from tinylm.generation.fast.decoder import Decoder
from tinylm.generation.fast.graph import GraphDecoder
from tinylm.generation.text import Text
from tinylm.model import Int8KVCache, ModelConfig
from tinylm.serving import batch, engine
from tinylm.serving.engine import Engine, QueueFull, Request, ServerStopped
from tinylm.serving.queue import FairQueue
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer

LETTERS = CharTokenizer("abcdefghij", [END_OF_TEXT])
END = LETTERS.end_of_text
few = settings(max_examples=30, deadline=None)


def make_model(seed: int = 0, **changes):
    shape = dict(vocab_size=11, d_model=16, num_layers=2, num_heads=2, tie_embeddings=False, max_seq_len=16)
    return random_model(ModelConfig(**shape | changes), seed)


def greedy(prompt, count: int = 8, **fields) -> Request:
    """A text of exactly `count` tokens, without chance."""
    ids = LETTERS.encode(prompt) if isinstance(prompt, str) else prompt
    config = dict(max_new_tokens=count, min_new_tokens=count, temperature=0.0)
    return Request(ids, SamplingConfig(**config | fields))


def serve(model, work, **options):
    """Runs a coroutine beside an engine of a model."""
    running = Engine(model, LETTERS, **options)
    running.start()
    try:
        return asyncio.run(work(running))
    finally:
        running.close()


async def text_of(running: Engine, request: Request, most: int | None = None) -> str:
    """The text of a request; its reader leaves after `most` pieces."""
    text, count = "", 0
    async with aclosing(running.stream(request)) as pieces:
        async for piece in pieces:
            text, count = text + piece.text, count + 1
            if count == most:
                break
    return text


def alone(model, request: Request) -> str:
    """The text that `Generator` makes for a request."""
    generator, text = Generator(model, LETTERS), Text(request.prompt, request.config.seed)
    reader = generator.reader(text, request.config)
    pieces = [reader.read() for _ in generator.decode([text], request.config)]
    return "".join([*pieces, reader.rest()])


def gathered(model, requests: list[Request], **options) -> list[str]:
    """The texts of requests that come at once."""

    async def work(running):
        return await asyncio.gather(*(text_of(running, each) for each in requests))

    return serve(model, work, **options)


# --- the same texts


@st.composite
def sampling(draw):
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


letter_models = model_configs(max_seq_len=st.integers(1, 9), vocab_size=st.just(11))


@few
@given(letter_models, st.integers(1, 4), st.integers(1, 8), st.data())
def test_texts_are_those_of_generate_whatever_else_is_in_the_batch(config, rows, part, data):
    """Texts of random lengths and options come at random moments, and some of their readers leave early."""
    prompts = st.lists(st.integers(0, 10), min_size=1, max_size=config.max_seq_len)
    requests = st.builds(Request, prompts, sampling(), client=st.sampled_from("ab"))
    arrivals = data.draw(st.lists(st.tuples(requests, st.integers(0, 3), st.none() | st.integers(1, 9)), max_size=9))
    model = random_model(config)

    async def one(running, request, pauses, most):
        for _ in range(pauses):
            await running.run(lambda: None)
        return await text_of(running, request, most)

    async def everything(running):
        return await asyncio.gather(*(one(running, *each) for each in arrivals))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "PART", part)
        texts = serve(model, everything, rows=rows)
    for text, (request, _, most) in zip(texts, arrivals, strict=True):
        expected = alone(model, request)
        assert text == expected if most is None else expected.startswith(text)


@few
@given(letter_models, st.integers(0, 29), st.data())
def test_a_text_goes_on_from_its_first_tokens_as_it_did(config, count, data):
    """From any token on, sliding, penalties, stop strings and random numbers are those of the whole text."""
    prompt = data.draw(st.lists(st.integers(0, 10), min_size=1, max_size=config.max_seq_len))
    request = Request(prompt, data.draw(sampling()))

    async def work(running):
        whole = await running.complete(request)
        begun = [piece.token for piece in whole[:-1]][:count]
        rest = await running.complete(dataclasses.replace(request, begun=begun))
        assert [(piece.token, piece.finished) for piece in rest] == [
            (piece.token, piece.finished) for piece in whole[len(begun) :]
        ]
        assert [piece.log_prob for piece in rest] == pytest.approx([piece.log_prob for piece in whole[len(begun) :]])

    serve(random_model(config), work)


def test_rows_of_texts_that_were_left_are_free_although_nothing_follows():
    async def work(running):
        await text_of(running, greedy("a", 100), most=3)
        while running.counts.growing:
            await asyncio.sleep(0.01)

    serve(make_model(), work)


def as_it_is(model):
    return model


def with_int8_cache(model):
    model.cache_type = Int8KVCache
    return model


def with_adapter(model):
    add_lora(model, LoRAConfig())
    for name, weight in model.named_parameters():
        if "lora" in name.lower():
            torch.nn.init.normal_(weight, std=0.3)
    return model


def with_own_attention(model):
    CHANGES[next(iter(CHANGES))][0](model)
    return model


@pytest.mark.parametrize(
    "change", [as_it_is, with_int8_cache, with_adapter, with_own_attention, lambda model: quantize(model, bits=8)]
)
@pytest.mark.parametrize("fields", [{}, dict(sliding_window=5), dict(document_mask=True)], ids=str)
def test_every_kind_of_model_is_served(change, fields, monkeypatch):
    monkeypatch.setattr(batch, "PART", 6)
    model = change(make_model(**fields)).eval()
    prompts = [[0, 1, 2], [3, END, 4, 5], [6] * 16, [1, 2, END, 7, 8, 9, 0, 1, 2, 3, 4], [5], [END, 1]]
    requests = [greedy(prompt, 20) for prompt in prompts] + [greedy(prompts[0], 9, temperature=1.0, seed=3)]
    assert gathered(model, requests, rows=4) == [alone(model, each) for each in requests]


def test_steps_of_a_graph_decoder_are_not_captured():
    model, request = make_model(), greedy("abc", 20)
    rows = batch.Batch(Generator(model, LETTERS, decoder=GraphDecoder(model)), 2)
    rows.join(batch.Row(rows.generator, request))
    made = [piece for each in steps_of(rows, 25) for piece in each.values()]
    assert "".join(piece.text for piece in made) == alone(model, request)


class Fixed(Decoder):
    """Keeps all rows, like a compiled decoder."""

    fixed_rows = True


def test_a_decoder_of_a_fixed_number_of_rows_is_refused():
    model = make_model()
    with pytest.raises(ConfigError, match="Fixed has a fixed number of rows"):
        batch.Batch(Generator(model, LETTERS, decoder=Fixed(model)), 2)


@torch.no_grad()
def test_pieces_have_the_log_probabilities_of_the_model():
    model, request = make_model(), greedy("abc", 6)
    request.alternatives = 3

    async def work(running):
        return await running.complete(request)

    pieces = serve(model, work)
    ids = [*request.prompt, *(piece.token for piece in pieces)]
    log_probs = model(torch.tensor([ids]))[0].log_softmax(dim=-1)
    for position, piece in enumerate(pieces, start=len(request.prompt) - 1):
        values, tokens = log_probs[position].topk(3)
        assert piece.log_prob == pytest.approx(float(log_probs[position, piece.token]))
        assert [token for token, _ in piece.alternatives] == tokens.tolist()
        assert [value for _, value in piece.alternatives] == pytest.approx(values.tolist())
    assert [piece.finished for piece in pieces] == [""] * 5 + ["length"]


def test_the_last_piece_says_why_a_text_ended():
    ended = Request([0], SamplingConfig(logit_bias={END: 1e9}))
    stopped = Request([0], SamplingConfig(logit_bias={1: 1e9}, stop=("bbb",)))
    held = Request([0], SamplingConfig(logit_bias={1: 1e9}, stop=("bbbb",), max_new_tokens=3))

    async def work(running):
        return [await running.complete(each) for each in (ended, stopped, held)]

    (end,), stop, length = serve(make_model(), work)
    assert (end.text, end.token, end.finished) == ("", None, "end")
    assert [(each.text, each.token, each.finished) for each in stop] == [("", 1, ""), ("", 1, ""), ("", 1, "stop")]
    assert [(each.text, each.finished) for each in length] == [("", ""), ("", ""), ("bbb", "length")]


def test_a_whole_text_has_the_pieces_of_a_stream():
    async def work(running):
        async with aclosing(running.stream(greedy("abc"))) as pieces:
            streamed = [piece async for piece in pieces]
        return streamed, await running.complete(greedy("abc"))

    streamed, whole = serve(make_model(), work)
    assert streamed == whole and len(whole) == 8


# --- joining and leaving


def steps_of(rows: batch.Batch, count: int = 1) -> list[dict]:
    """The pieces of some steps, by the first prompt token of their texts."""
    return [{row.request.prompt[0]: piece for row, piece in rows.step()} for _ in range(count)]


def joined(model, size: int, *requests: Request) -> tuple[batch.Batch, list[batch.Row]]:
    rows = batch.Batch(Generator(model, LETTERS), size)
    texts = [batch.Row(rows.generator, each) for each in requests]
    for each in texts:
        rows.join(each)
    return rows, texts


def test_a_text_that_nobody_reads_leaves_before_the_next_step():
    rows, texts = joined(make_model(), 2, greedy("a"), greedy("b"))
    assert steps_of(rows)[0].keys() == {0, 1} and rows.free == 0
    texts[0].left = True
    assert steps_of(rows)[0].keys() == {1} and rows.free == 1


def test_leaving_a_stream_frees_its_row():
    async def work(running):
        await text_of(running, greedy("a", 10**6), most=3)
        await text_of(running, greedy("b", 4))  # needs the only row
        waiting = asyncio.create_task(running.complete(greedy("c", 10**6)))
        await asyncio.sleep(0)
        waiting.cancel()
        await text_of(running, greedy("d", 4))
        return running.counts

    counts = serve(make_model(), work, rows=1)
    assert (counts.growing, counts.waiting, counts.texts) == (0, 0, 2)


def test_a_long_prompt_does_not_hold_up_the_others(monkeypatch):
    monkeypatch.setattr(batch, "PART", 4)
    model = make_model(max_seq_len=32)
    rows, _ = joined(model, 3, greedy("a", 10), greedy([1] * 15), greedy("c"))
    made = steps_of(rows, 7)  # the 14 tokens before the last one are read in 4 parts
    assert [sorted(each) for each in made] == [[0], [0], [0], [0], [0, 1], [0, 1, 2], [0, 1, 2]]


def test_a_text_may_leave_while_its_prompt_is_read(monkeypatch):
    monkeypatch.setattr(batch, "PART", 4)
    model, other = make_model(), greedy("bcdefgh")
    rows, texts = joined(model, 2, greedy("abcdefgh"), other)
    rows.step()
    texts[0].left = True
    made = [piece for each in steps_of(rows, 12) for piece in each.values()]
    assert "".join(piece.text for piece in made) == alone(model, other)


def test_short_prompts_are_read_together():
    rows, _ = joined(make_model(), 8, *(greedy([i, i, i]) for i in range(8)))
    assert steps_of(rows)[0].keys() == set(range(8))


# --- faults


@pytest.mark.parametrize("part", [256, 2])  # prompts are read together, and in parts
def test_logits_that_are_not_finite_end_their_text_alone(part, monkeypatch):
    monkeypatch.setattr(batch, "PART", part)
    model = make_model()
    with torch.no_grad():
        model.embedding.weight[9] = torch.nan  # the prompt "j" makes NaN
    good, bad = [greedy("abc", 20), greedy("defg", 20)], [greedy("jaaaaaaa", 20), greedy("ja", 20)]

    async def work(running):
        texts = []
        for _ in range(2):  # in the second round, texts lie where others left NaN
            requests = [good[0], *bad, good[1]]
            texts += await asyncio.gather(*(text_of(running, each) for each in requests), return_exceptions=True)
        return texts

    texts = serve(model, work, rows=3)
    expected = [alone(model, each) for each in good]
    for first, *failed, last in (texts[:4], texts[4:]):
        assert [first, last] == expected
        assert all(isinstance(error, NumericError) for error in failed)


def test_a_text_without_a_choice_ends_alone():
    """Its penalties rule out every letter that it has used, and the end is ruled out too."""
    nothing = greedy("a", 12, logit_bias=dict.fromkeys(range(11), -1.7e308), frequency_penalty=1.7e308)
    other = greedy("b")

    async def work(running):
        both = (text_of(running, each) for each in (nothing, other))
        return await asyncio.gather(*both, return_exceptions=True)

    error, text = serve(make_model(), work)
    assert isinstance(error, ConfigError) and "leave no token to choose from" in str(error)
    assert text == alone(make_model(), other)


@pytest.mark.parametrize(
    "request_, problem",
    [
        (greedy([]), "the prompt has no tokens"),
        (greedy([0] * 17), "the prompt has 17 tokens, the context holds 16"),
        (greedy([11]), "outside the vocabulary of 11"),
        (dataclasses.replace(greedy("a"), alternatives=12), "alternatives must be from 0 to 11, got 12"),
        (greedy("a", logit_bias={11: 1.0}), "logit_bias must be of ids below 11"),
    ],
)
def test_an_invalid_request_is_refused(request_, problem):
    with pytest.raises(ConfigError, match=problem):
        gathered(make_model(), [request_])


def test_invalid_numbers_of_rows_are_refused():
    with pytest.raises(ConfigError, match="rows must be at least 1, got 0"):
        Engine(make_model(), LETTERS, rows=0)
    with pytest.raises(ConfigError, match="max_waiting must be at least 0, got -1"):
        Engine(make_model(), LETTERS, max_waiting=-1)


def test_a_cache_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"rows: a cache of 1000000000000 contexts does not fit .*; lower rows"):
        Engine(make_model(), LETTERS, rows=10**12)


def test_an_exception_on_the_thread_ends_all_texts_and_the_engine():
    broken = RuntimeError("out of memory")

    async def work(running):
        def step(*_):
            if running.counts.waiting:  # the third text has no row
                raise broken
            return torch.zeros(len(running._batch.growing), 11, dtype=torch.float64)

        running.generator.decoder.step = step
        texts = (running.complete(greedy("a", 1000)) for _ in range(3))
        errors = await asyncio.gather(*texts, return_exceptions=True)
        assert errors == [broken] * 3 and running.failure is broken
        with pytest.raises(ServerStopped, match="the engine has failed: out of memory"):
            await running.complete(greedy("a"))
        with pytest.raises(ServerStopped, match="the engine has failed: out of memory"):
            await running.run(lambda: None)

    serve(make_model(), work, rows=2)


def test_closing_ends_what_grows_and_what_waits():
    async def work(running):
        texts = [asyncio.create_task(text_of(running, greedy("a", 10**6))) for _ in range(3)]
        await text_of(running, greedy("b", 3))
        running.close()
        with pytest.raises(ServerStopped, match="the engine is closed"):
            await running.complete(greedy("a"))
        return await asyncio.gather(*texts, return_exceptions=True)

    errors = serve(make_model(), work, rows=2)
    assert [type(error) for error in errors] == [ServerStopped] * 3


# --- the queue


def test_the_queue_serves_its_clients_in_turn():
    queue = FairQueue()
    for client, item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(client, client + item)
    assert [queue.take() for _ in range(3)] == ["a1", "b1", "c1"]
    queue.put("c", "c2")
    queue.remove("a", "a2")
    queue.remove("a", "a2")  # not there any more
    assert len(queue) == 3
    assert [queue.take() for _ in range(3)] == ["a3", "b2", "c2"] and len(queue) == 0


def test_a_full_queue_refuses_further_texts():
    async def work(running):
        texts = [asyncio.create_task(running.complete(greedy("a", 10**6))) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="3 texts are waiting already"):
            await running.complete(greedy("a"))
        for each in texts:
            each.cancel()
        await asyncio.gather(*texts, return_exceptions=True)
        await running.complete(greedy("a"))

    serve(make_model(), work, rows=2, max_waiting=3)


# --- functions


def test_functions_run_on_the_engines_thread_and_hand_back_results_and_errors():
    async def work(running):
        names = [await running.run(lambda: threading.current_thread().name)]
        with pytest.raises(ZeroDivisionError):
            await running.run(lambda: 1 // 0)
        return [*names, await running.complete(greedy("a"))]

    name, pieces = serve(make_model(), work)
    assert name == "tinylm engine" and len(pieces) == 8


def test_functions_and_texts_each_get_half_of_the_time(monkeypatch):
    """By a clock on which a step takes one second and a function three: after the first, three steps for each."""
    clock, log = [0.0], []
    monkeypatch.setattr(engine.time, "perf_counter", lambda: clock[0])

    async def work(running):
        step = running._batch.step

        def slow_step():
            clock[0] += 1
            log.append("s")
            return step()

        def slow_function():
            clock[0] += 3
            log.append("f")

        running._batch.step = slow_step
        text = asyncio.create_task(running.complete(greedy("a", 24)))
        await asyncio.gather(*(running.run(slow_function) for _ in range(6)))
        await text

    serve(make_model(), work)
    assert "fsssfsssfsssfsssf" in "".join(log)


def test_a_step_wakes_an_event_loop_once(monkeypatch):
    calls = []
    original = engine.call
    monkeypatch.setattr(engine, "call", lambda *arguments: calls.append(arguments[1]) or original(*arguments))

    async def work(running):
        entered, gate = threading.Event(), threading.Event()
        held = asyncio.create_task(running.run(lambda: entered.set() or gate.wait()))  # all texts join at once
        while not entered.is_set():
            await asyncio.sleep(0)
        texts = [asyncio.create_task(text_of(running, greedy("abc", 12))) for _ in range(8)]
        while running.counts.waiting < 8:
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(held, *texts)
        return running.counts

    counts = serve(make_model(), work)
    assert counts.new_tokens == 96 and calls.count(engine.deliver_all) == counts.steps <= 20


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_requests():
    """2,000 more requests, of which most are left early, keep less than 10 bytes each."""

    async def some(running, count):
        for _ in range(count // 20):
            await asyncio.gather(*(text_of(running, greedy("abc", 3), most=i % 5 or None) for i in range(20)))
        await running.run(gc.collect)
        return tracemalloc.get_traced_memory()[0]

    async def work(running):
        await some(running, 200)
        tracemalloc.start()
        before = await some(running, 2500)  # Python's own free lists fill up meanwhile
        return await some(running, 2000) - before

    try:
        assert serve(make_model(), work, rows=8) < 20_000
    finally:
        tracemalloc.stop()
