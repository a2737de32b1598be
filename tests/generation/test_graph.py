"""Steps that run entirely on the device: the tokens of the other decoders, the host ahead of them.

Without a GPU the function that would be captured runs again on its static tensors, which is what a replay does.
"""

import contextlib
import math
from collections import deque

import pytest
import torch

import tinylm.kernels.cuda_graph
from tests.crossed import crossed
from tests.generation.test_interrupt import Interrupted
from tests.strategies import random_model
from tinylm.adapt import LoRAConfig, add_lora, quantize
from tinylm.console import interruptible
from tinylm.errors import ConfigError, NumericError
from tinylm.generation import Generator, SamplingConfig, beam_search, textbook
from tinylm.generation.ahead import AHEAD
from tinylm.generation.fast import choice
from tinylm.generation.fast.choice import compiled_decoder, make_decoder
from tinylm.generation.fast.decoder import Decoder
from tinylm.generation.fast.graph import GraphDecoder, StaticRows, uncapturable_part
from tinylm.generation.text import Text
from tinylm.kernels.cuda_graph import capture, read_later
from tinylm.model import Int8KVCache, ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer

LETTERS = CharTokenizer("abcdefghij", [END_OF_TEXT])
SMALL = dict(vocab_size=LETTERS.vocab_size + 2, d_model=16, num_layers=2, num_heads=4, max_seq_len=12)
PROMPTS = ["", "abc", "jihgf", "a", "bb"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a CUDA graph, which needs a GPU")
ARCHITECTURES = {
    "plain": {},
    "window": dict(sliding_window=4),
    "learned": dict(positional_encoding="learned", max_seq_len=8, norm="layernorm", bias=True, qk_norm=False),
    "documents": dict(document_mask=True),
    "long": dict(max_seq_len=300, layer_pattern="SLN", num_layers=3, sliding_window=5, num_kv_heads=2),
}
OPTIONS = {
    "greedy": dict(temperature=0, min_new_tokens=25),
    "sampled": dict(temperature=1.5, logit_bias={LETTERS.end_of_text: -2.5}),
    "filters": dict(temperature=1.2, top_k=5, top_p=0.9, min_p=0.01, typical_p=0.95, min_new_tokens=4),
    "penalties": dict(repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1, banned_tokens=(2,)),
    "stops": dict(temperature=1.5, stop=("ab", "c", "hij"), min_new_tokens=3),
}


def network(**changes) -> TransformerLM:
    return random_model(ModelConfig(**SMALL | dict(tie_embeddings=False) | changes))


def completions(model: TransformerLM, decoder: Decoder, batch_size: int, **options) -> tuple[list, list[float]]:
    """Ids and ends of ten texts, and their log probabilities."""
    options = dict(max_new_tokens=25, seed=10) | options
    found = Generator(model, LETTERS, decoder).complete(PROMPTS, num_samples=2, batch_size=batch_size, **options)
    return [(each.ids, each.finished) for each in found], [p for each in found for p in each.log_probs]


@pytest.mark.parametrize(("architecture", "sampling"), crossed(ARCHITECTURES, OPTIONS, every=3))
def test_texts_are_those_of_the_other_decoder(architecture, sampling):
    """Prompts of several lengths, rows that end, wait and slide; one decoder for all, as its rows are used again."""
    model, options = network(**ARCHITECTURES[architecture]), OPTIONS[sampling]
    expected = completions(model, Decoder(model), 3, **options)
    decoder = GraphDecoder(model)
    for batch_size in (1, 3, 16):
        texts, log_probs = completions(model, decoder, batch_size, **options)
        assert texts == expected[0] and log_probs == pytest.approx(expected[1], abs=1e-9)


def test_greedy_tokens_are_those_of_the_textbook():
    model, prompt = network(max_seq_len=200), [3, 1, 4]
    found = list(Generator(model, LETTERS, GraphDecoder(model)).stream_ids(
        prompt, SamplingConfig(temperature=0, max_new_tokens=150, min_new_tokens=150)))  # fmt: skip

    def best(logits: torch.Tensor) -> int:
        return int(logits[: LETTERS.end_of_text].argmax())

    assert found == list(textbook.generate(model, prompt, 150, best))
    assert len(found) == 150  # beyond the smallest length class


def test_one_program_serves_a_length_class(monkeypatch):
    model, counts, captured = network(max_seq_len=300), [], []
    program = StaticRows._program
    monkeypatch.setattr(StaticRows, "_program", lambda self, count: (counts.append(count), program(self, count))[1])
    monkeypatch.setattr(
        "tinylm.generation.fast.graph.capture", lambda function, *_: captured.append(function) or function
    )
    decoder = GraphDecoder(model)
    for temperature in (0, 0, 1.0):
        Generator(model, LETTERS, decoder).generate(
            "abc", max_new_tokens=280, min_new_tokens=280, temperature=temperature, seed=0
        )
    assert counts == [128, 256, 300] * 2  # the second text has the graphs of the first
    assert len(captured) == 6


def test_the_host_is_ahead_but_never_launches_more_than_the_texts_need(monkeypatch):
    model, launches, reads = network(max_seq_len=64), [], []
    launch = StaticRows.launch
    monkeypatch.setattr(StaticRows, "launch", lambda self, live: (launches.append(len(live)), launch(self, live))[1])
    generator = Generator(model, LETTERS, GraphDecoder(model))
    texts = [Text(LETTERS.encode(prompt), 0) for prompt in ("abc", "d")]
    for _ in generator.decode(texts, SamplingConfig(max_new_tokens=10, min_new_tokens=10), 2):
        reads.append(len(launches))
    assert launches == [2] * 10 and reads[:4] == [AHEAD, AHEAD, AHEAD + 1, AHEAD + 1]
    assert generator.stats.new_tokens == 20 and generator.stats.prompt_tokens == 2


def test_two_streams_of_one_decoder_do_not_disturb_each_other():
    model = network(max_seq_len=64)
    generator, plain = Generator(model, LETTERS, GraphDecoder(model)), Generator(model, LETTERS, Decoder(model))
    options = dict(max_new_tokens=20, min_new_tokens=20)
    streams = [generator.stream(prompt, seed=seed, **options) for seed, prompt in enumerate(("abc", "j"))]
    pieces = list(zip(*streams, strict=True))
    for seed, prompt in enumerate(("abc", "j")):
        assert "".join(each[seed] for each in pieces) == plain.generate(prompt, seed=seed, **options)
    stream = generator.stream("abc", seed=0, **options)
    next(stream)
    stream.close()  # the consumer stops while steps are in flight
    assert generator.generate("j", seed=1, **options) == plain.generate("j", seed=1, **options)


def test_changed_weights_make_a_new_decoder():
    model = network()
    decoder = GraphDecoder(model)
    generator = Generator(model, LETTERS, decoder)
    generator.generate("a", max_new_tokens=3)
    assert decoder.is_current
    with torch.no_grad():
        model.head.weight.mul_(-1)
    with pytest.raises(ConfigError, match="GraphDecoder holds copies of weights that have changed since"):
        generator.generate("a", max_new_tokens=3)
    assert isinstance(make_decoder(model, decoder), Decoder) and make_decoder(model, decoder) is not decoder


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_raise_when_they_are_read(temperature):
    """Token 4 breaks the model; the steps before it give their tokens, and a later text is right."""
    model = network(max_seq_len=64)
    with torch.no_grad():
        model.embedding.weight[4] = math.nan
    decoder, plain = GraphDecoder(model), Decoder(model)
    options = dict(max_new_tokens=40, min_new_tokens=40, temperature=temperature, seed=1)
    taken = {}
    for each in (plain, decoder):
        text, pieces = Generator(model, LETTERS, each).begin("abc", logit_bias={4: 2.0}, **options)
        with pytest.raises(NumericError, match="logits are not finite"):
            deque(pieces, 0)
        taken[each] = text.ids
    assert taken[plain] == taken[decoder] and taken[plain][-1] == 4
    options["banned_tokens"] = (4,)
    expected = Generator(model, LETTERS, plain).generate("abc", **options)
    assert Generator(model, LETTERS, decoder).generate("abc", **options) == expected


def test_bans_that_leave_no_token_raise_as_in_the_other_loop():
    model = network()
    with torch.no_grad():
        model.head.weight.zero_()
    every = tuple(range(LETTERS.vocab_size - 1))
    bias = {LETTERS.end_of_text: -1e39}  # -inf in float32
    model.float()
    for decoder in (Decoder(model), GraphDecoder(model)):
        with pytest.raises(ConfigError, match="leave no token to choose from"):
            Generator(model, LETTERS, decoder).generate("a", banned_tokens=every, logit_bias=bias)


def test_an_interrupt_stops_within_the_steps_in_flight(monkeypatch):
    model, launches, launch = network(max_seq_len=64), [0], StaticRows.launch

    def count(self, live):
        launches[0] += 1
        if launches[0] == 3:
            Interrupted()
        return launch(self, live)

    monkeypatch.setattr(StaticRows, "launch", count)
    generator = Generator(model, LETTERS, GraphDecoder(model))
    with pytest.raises(KeyboardInterrupt), interruptible():
        generator.generate("abc", max_new_tokens=40)
    assert launches[0] == 3
    monkeypatch.undo()
    expected = Generator(model, LETTERS, Decoder(model)).generate("abc", seed=2)
    assert generator.generate("abc", seed=2) == expected


def test_beams_take_the_ordinary_steps():
    model = network(max_seq_len=40)
    found, expected = (
        beam_search(Generator(model, LETTERS, decoder), "abc", num_beams=3, max_new_tokens=20)[0].ids
        for decoder in (GraphDecoder(model), Decoder(model))
    )
    assert found == expected


# --- where it applies


def test_on_a_gpu_it_is_the_decoder_of_what_it_supports(monkeypatch):
    monkeypatch.setattr(choice, "on_cuda", lambda model: True)
    small, adapted, model = network(), network(), network()
    small.cache_type = Int8KVCache
    add_lora(adapted, LoRAConfig())
    rounded = quantize(model, bits=8)
    assert uncapturable_part(model) is None and type(make_decoder(model)) is GraphDecoder
    parts = {
        small: "its cache is Int8KVCache",
        adapted: "it has layers of LoRALinear",
        rounded: "it has layers of Int8Linear",
    }
    for model, part in parts.items():
        assert uncapturable_part(model) == part
        with pytest.raises(ConfigError, match=f"GraphDecoder cannot read this model: {part}; use a Decoder"):
            GraphDecoder(model)
        assert type(make_decoder(model)) is Decoder


def test_the_compiled_decoder_of_a_gpu_is_the_captured_one(monkeypatch, capfd):
    made = []
    monkeypatch.setattr(GraphDecoder, "__init__", lambda self, model, compiled=False: made.append(compiled))
    monkeypatch.setattr(choice, "on_cuda", lambda model: True)
    model = network()
    assert type(compiled_decoder(model)) is GraphDecoder and made == [True]
    assert capfd.readouterr().err == "tinylm: compiling: about a minute\n"
    assert type(compiled_decoder(quantize(model, bits=8))) is Decoder
    notice = "decoding without compilation, which is slower on a GPU: it has layers of Int8Linear"
    assert capfd.readouterr().err == f"tinylm: {notice}\n"


@pytest.mark.slow  # compiles for half a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised within PyTorch
@torch.inference_mode()
def test_a_compiled_step_draws_the_same_tokens():
    model = network(max_seq_len=300).float()
    plain, decoder = Decoder(model), GraphDecoder(model, compiled=True)
    options = dict(max_new_tokens=250, min_new_tokens=250, seed=3, top_k=5, temperature=0.9)
    expected = Generator(model, LETTERS, plain).generate("abc", **options)
    assert Generator(model, LETTERS, decoder).generate("abc", **options) == expected
    assert decoder.compiled


def test_a_compiler_that_fails_is_named_and_the_step_runs_as_it_is(monkeypatch, capfd):
    def broken(function, **_):
        def call(*arguments):
            raise RuntimeError("no compiler\nmore")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    model = network()
    decoder, options = GraphDecoder(model, compiled=True), dict(seed=1, max_new_tokens=9)
    found = Generator(model, LETTERS, decoder).generate("abc", **options)
    assert capfd.readouterr().err == "tinylm: a step cannot be compiled, which makes it slower: no compiler\n"
    assert found == Generator(model, LETTERS, Decoder(model)).generate("abc", **options)


# --- graphs


def test_off_a_gpu_a_captured_function_is_the_function_itself():
    x = torch.zeros(2)
    step = capture(lambda: x.add_(1), x.device, lambda: pytest.fail("there is no warm-up"))
    later = []
    for _ in range(3):
        step()
        later.append(read_later(x))
    assert [each() for each in later] == [[1, 1], [2, 2], [3, 3]]  # as of the moment it was asked for
    assert tinylm.kernels.cuda_graph.first_line(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_follows_undone_warm_ups_and_may_fail(fails, monkeypatch, capfd):
    """Of a pretended GPU: within a capture kernels are recorded, not run, and a replay runs them."""
    x, events = torch.zeros(1), []

    class Stream:
        def wait_stream(self, other):
            events.append("wait")

    class Graph:
        def replay(self):
            x.add_(1)

    @contextlib.contextmanager
    def recording(graph, pool, stream, capture_error_mode):
        before = x.clone()
        yield
        x.copy_(before)
        events.append("captured")
        if fails:
            raise RuntimeError("operation not permitted\nmore")

    for name, value in {
        "Stream": lambda device: Stream(), "current_stream": lambda device: Stream(), "CUDAGraph": Graph,
        "stream": contextlib.nullcontext, "graph": recording,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    tinylm.kernels.cuda_graph._capture_stream.cache_clear()
    step = capture(lambda: x.add_(1), torch.device("cuda"), lambda: (events.append(x.item()), x.zero_()), pool="pool")
    tinylm.kernels.cuda_graph._capture_stream.cache_clear()
    assert events == ["wait", 1, 1, 1, "captured", "wait"] and x.item() == 0
    step()
    step()
    assert x.item() == 2
    notice = "a step cannot be captured as a CUDA graph, which makes it slower: operation not permitted"
    assert capfd.readouterr().err == (f"tinylm: {notice}\n" if fails else "")


@needs_cuda
def test_a_replay_continues_where_the_warm_up_was_undone():
    x = torch.zeros(2, device="cuda")
    step = capture(lambda: x.add_(1), x.device, lambda: x.zero_())
    for _ in range(3):
        step()
    assert read_later(x)() == [3, 3]


@needs_cuda
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_texts_on_a_gpu_are_those_of_the_cpu(compiled):
    model = network(max_seq_len=200)
    expected = completions(model, Decoder(model), 16, max_new_tokens=150, temperature=1.2)
    model = model.cuda()
    assert isinstance(make_decoder(model), GraphDecoder)
    texts, log_probs = completions(model, GraphDecoder(model, compiled), 16, max_new_tokens=150, temperature=1.2)
    assert texts == expected[0] and log_probs == pytest.approx(expected[1], abs=1e-9)
