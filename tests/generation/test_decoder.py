"""Decoders against the model, rows of a cache against single texts, and batches against streams."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.crossed import crossed
from tests.strategies import model_configs, random_ids, random_model
from tinylm.adapt import quantize
from tinylm.errors import ConfigError
from tinylm.generation import Generator, textbook
from tinylm.generation.fast.choice import fastest_threads
from tinylm.generation.fast.compiled import CompiledDecoder
from tinylm.generation.fast.decoder import Decoder
from tinylm.model import ModelConfig, RingKVCache, TransformerLM
from tinylm.model.quantized import Int8Linear
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer

few = settings(max_examples=40, deadline=None)
SMALL = dict(vocab_size=11, d_model=16, num_layers=2, num_heads=4, max_seq_len=12)


@pytest.fixture(params=[1, 2])
def threads(request):
    """Products are split into as many parts as there are threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def prefixes(data, config: ModelConfig, rows: int) -> list[int]:
    """Draws the number of tokens that each row reads first. At least one more token fits the context."""
    return data.draw(st.lists(st.integers(0, config.max_seq_len - 1), min_size=rows, max_size=rows))


# --- single tokens


@few
@given(model_configs(max_seq_len=st.integers(1, 9)), st.integers(1, 3), st.sampled_from([1, 2]), st.data())
@torch.no_grad()
def test_decoder_logits_match_the_model(config, rows, threads, data):
    """Rows of equal length; float32 to 1e-5 with the same argmax unless it is close, float64 to 1e-10."""
    ids = random_ids(config, rows)
    begun = data.draw(st.integers(0, config.max_seq_len - 1))
    torch.set_num_threads(threads)
    for dtype, atol in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model = random_model(config, dtype=dtype)
        decoder, cache, full = Decoder(model), RingKVCache(config, rows, dtype=dtype), model(ids)
        scale = max(1.0, full.abs().max().item())
        if begun:
            model(ids[:, :begun], cache=cache)
        for t in range(begun, config.max_seq_len):
            found = decoder.step(ids[:, t], cache)
            torch.testing.assert_close(found, full[:, t], rtol=0.0, atol=atol * scale)
            first, second = full[:, t].topk(2).values.unbind(dim=-1)
            clear = first - second > 1e-4 * scale
            assert torch.equal(found.argmax(-1)[clear], full[:, t].argmax(-1)[clear])
    torch.set_num_threads(1)


@few
@given(model_configs(max_seq_len=st.integers(3, 12), num_layers=st.just(3)))
@torch.inference_mode()
def test_greedy_tokens_do_not_depend_on_the_cache(config):
    """By the textbook's cache, by the decoder's, and without one; and by both with quantized layers."""
    model, prompt = random_model(config), random_ids(config, 1, 2)[0].tolist()
    expected = list(prompt)
    while len(expected) < config.max_seq_len:
        expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    count = config.max_seq_len - len(prompt)
    assert list(textbook.generate(model, prompt, count)) == expected[len(prompt) :]
    assert greedy(Decoder(model), prompt, count) == expected[len(prompt) :]
    rounded = quantize(model, bits=8)
    logits = rounded(torch.tensor([expected]))
    decoder, cache = Decoder(rounded), rounded.make_cache(1)
    found = torch.stack([decoder.step(torch.tensor([token]), cache) for token in expected], dim=1)
    torch.testing.assert_close(found, logits, rtol=0.0, atol=1e-10 * max(1.0, logits.abs().max().item()))


def greedy(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """The most probable next tokens."""
    cache, tokens = decoder.make_cache(1), list(prompt)
    decoder.prefill([prompt[:-1]], cache)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(decoder.step(torch.tensor(tokens[-1:]), cache).argmax()))
    return tokens[len(prompt) :]


@few
@given(model_configs(max_seq_len=st.integers(2, 9)), st.data())
@torch.no_grad()
def test_rows_of_different_lengths_match_single_texts(config, data):
    """With the model and with the decoder: padded prompts, then single tokens, beyond any sliding window."""
    model, ids, rows = random_model(config), random_ids(config, 3), range(3)
    counts = prefixes(data, config, 3)
    full = model(ids)
    for step in (Decoder(model).step, lambda last, cache: model(last[:, None], cache=cache)[:, -1]):
        cache = RingKVCache(config, 3, dtype=torch.float64)
        if max(counts):
            padded = torch.stack(
                [torch.where(torch.arange(max(counts)) < counts[i], ids[i, : max(counts)], 0) for i in rows]
            )
            cache.expect(counts)
            model(padded, cache=cache)
        for t in range(config.max_seq_len - max(counts)):
            last = torch.stack([ids[i, counts[i] + t] for i in rows])
            expected = torch.stack([full[i, counts[i] + t] for i in rows])
            torch.testing.assert_close(step(last, cache), expected, rtol=0.0, atol=1e-10)
        assert cache.lengths == [count + config.max_seq_len - max(counts) for count in counts]


@torch.no_grad()
def test_rows_can_be_read_separately_and_reordered():
    config = ModelConfig(**SMALL)
    model, ids = random_model(config), random_ids(config, 3)
    full, cache = model(ids), RingKVCache(config, 3, dtype=torch.float64)
    for row, count in enumerate((2, 5, 3)):
        model(ids[row : row + 1, :count], cache=cache.rows(row))
        cache.lengths[row] = count
    cache.select([2, 0, 2])
    found = Decoder(model).step(torch.stack([ids[2, 3], ids[0, 2], ids[2, 3]]), cache)
    torch.testing.assert_close(found, torch.stack([full[2, 3], full[0, 2], full[2, 3]]), rtol=0.0, atol=1e-10)


def test_a_window_needs_no_more_slots_than_its_length():
    config = ModelConfig(**SMALL, sliding_window=5)
    assert RingKVCache(config, 1).num_slots == 5
    assert RingKVCache(config, 1, spare=2).num_slots == 7
    assert RingKVCache(config, 1, max_len=3).num_slots == 3
    whole = RingKVCache(ModelConfig(**SMALL), 2)
    assert whole.num_slots == 12
    mixed = ModelConfig(**SMALL, sliding_window=5, layer_pattern="SL")  # the other layer needs all positions
    assert RingKVCache(mixed, 1).num_slots == 12
    assert whole.num_bytes == 2 * 2 * 2 * 13 * 16 * 4  # keys and values, layers, rows, slots, width, bytes


@pytest.mark.slow  # compiles for half a minute
@pytest.mark.parametrize(
    "changes",
    [
        dict(max_seq_len=70, num_layers=1),  # reads 32 slots, 64, all
        dict(max_seq_len=70, num_layers=1, sliding_window=40, num_kv_heads=2, positional_encoding="learned"),
        dict(max_seq_len=12, sliding_window=5, num_kv_heads=1),  # always reads all slots
        dict(max_seq_len=40, layer_pattern="SLN", num_layers=3, sliding_window=5, d_head=8, rotary_fraction=0.5,
             rope_scaling=dict(kind="yarn", factor=4.0, original_max_seq_len=10), norm_placement="output",
             qk_norm_width="all", qkv_bias=True, head_bias=True, attention_scale=0.5),
        dict(num_layers=1, residual="parallel_one_norm", norm="layernorm", activation="gelu", bias=True, qk_norm=False),
    ],
)  # fmt: skip
@torch.inference_mode()
def test_compiled_decoder_logits_match_the_model(changes):
    config = ModelConfig(**SMALL | changes)
    model = random_model(config, dtype=torch.float32)
    ids = torch.stack(random_ids(config, 2).unbind())  # created in inference mode
    full, decoder, cache = model(ids), CompiledDecoder(model), model.make_cache(2)
    last = config.max_seq_len - 2
    for start in (last - 3, 2):  # compiled when the cache is nearly full
        cache.clear()
        cache.expect([start + 2, start])
        model(ids[:, : start + 2], cache=cache)
        for t in range(start, last):
            found = decoder.step(torch.stack([ids[0, t + 2], ids[1, t]]), cache)
            torch.testing.assert_close(found, torch.stack([full[0, t + 2], full[1, t]]), rtol=0.0, atol=1e-5)


def compiled_error(model: TransformerLM) -> float:
    """Relative error of the logits of a compiled step."""
    expected = model(torch.tensor([[1], [2]]))[:, -1]
    found = CompiledDecoder(model).step(torch.tensor([1, 2]), model.make_cache(2))
    return float((found - expected).norm() / expected.norm())


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_decoder_accepts_weights_that_are_slices():
    model = random_model(ModelConfig(**SMALL), dtype=torch.float32)
    for weight in model.parameters():
        weight.data = torch.cat((torch.full((16,), 7.0), weight.data.flatten()))[16:].view(weight.shape)
    assert compiled_error(model) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised within PyTorch
@torch.inference_mode()
def test_compiled_products_never_use_another_layers_weights():
    """PyTorch caches compiled programs, which contain an int8 layer's codes, by the shape of the layer alone."""
    import torch._inductor.config as inductor  # takes a second to import

    options = CompiledDecoder.OPTIONS | {"max_autotune_gemm_backends": "CPP"}  # these programs contain the codes
    x = torch.randn(5, 64)
    for code in (1, 2):
        layer = Int8Linear(64, 16, bias=False)
        layer.codes.fill_(code)
        layer.scales.fill_(1.0)
        torch.compiler.reset()
        with inductor.patch(options):
            found = torch.compile(layer, dynamic=False)(x)
        torch.testing.assert_close(found, code * x.sum(dim=1, keepdim=True).expand(5, 16), rtol=0.02, atol=0.2)


@pytest.mark.slow
def test_a_missing_compiler_is_named_in_the_error(tmp_path):
    """In a subprocess, because PyTorch remembers the compiler that it found."""
    program = """
import torch
from tinylm.errors import ConfigError
from tinylm.generation.fast.compiled import CompiledDecoder
from tinylm.model import RingKVCache, ModelConfig, TransformerLM
from tinylm.model.quantized import Int8Linear
model = TransformerLM(ModelConfig(vocab_size=5, d_model=4, num_layers=1, num_heads=1, max_seq_len=4)).eval()
with torch.inference_mode():
    try:
        CompiledDecoder(model).step(torch.tensor([1]), RingKVCache(model.config, 1))
    except ConfigError as error:
        print(error)
"""
    env = {
        "CXX": "no-such-compiler",
        "PATH": "/nowhere",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "HOME": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert "a step cannot be compiled" in done.stdout and "install a C++ compiler" in done.stdout, done.stderr
    assert done.stderr == ""


def test_fastest_threads_is_within_the_allowed_number(threads):
    count = fastest_threads(random_model(ModelConfig(**SMALL)))
    assert count == torch.get_num_threads()
    assert 1 <= count <= threads


# --- texts

LETTERS = CharTokenizer("abcdefghij", [END_OF_TEXT])


def make(**changes) -> Generator:
    config = ModelConfig(**SMALL | dict(vocab_size=LETTERS.vocab_size, tie_embeddings=False) | changes)
    return Generator(random_model(config), LETTERS)


class Fixed(Decoder):
    """Keeps all rows, like a compiled decoder."""

    fixed_rows = True


BATCHES = ((1, Decoder), (2, Decoder), (3, Fixed), (16, Decoder), (16, Fixed))
CHANGES = ({}, dict(sliding_window=4), dict(positional_encoding="learned", max_seq_len=8))


@pytest.mark.parametrize(("batches", "changes"), crossed(BATCHES, CHANGES, every=3))
def test_texts_do_not_depend_on_the_rest_of_the_batch(batches, changes):
    """With unequal prompts, texts that end early and texts that slide."""
    generator, (batch_size, decoder) = make(**changes), batches
    generator.decoder = decoder(generator.model)
    options = dict(max_new_tokens=25, temperature=1.5, seed=10, logit_bias={LETTERS.end_of_text: -2.5})
    prompts = ["", "abc", "jihgf", "a", "bb"]
    found = generator.complete(prompts, num_samples=2, batch_size=batch_size, **options)
    streamed = [generator.generate(prompt, **options | {"seed": 10 + i}) for prompt in prompts for i in range(2)]
    assert [each.text for each in found] == streamed
    assert [each.prompt for each in found] == [prompt for prompt in prompts for _ in range(2)]
    assert {each.finished for each in found} == {"end", "length"}
    assert len({each.text for each in found}) > 5


@torch.no_grad()
def test_log_probs_do_not_depend_on_sampling_options():
    generator = make()
    found = generator.complete(["abc", "d"], max_new_tokens=6, seed=0, temperature=0.5, top_k=3, repetition_penalty=1.3)
    for each in found:
        ids = [LETTERS.end_of_text, *LETTERS.encode(each.prompt), *each.ids]
        expected = generator.model(torch.tensor([ids]))[0].log_softmax(-1)[range(-len(each.ids) - 1, -1), each.ids]
        assert each.log_probs == pytest.approx(expected.tolist(), abs=1e-9)


def test_stop_strings_end_texts_of_a_batch_like_streams():
    generator = make()
    options = dict(max_new_tokens=40, temperature=1.5, seed=1, stop=["ab", "c", "hij"])
    found = generator.complete(["a", "b", "ca", "d"], num_samples=3, **options)
    streamed = [generator.generate(p, **options | {"seed": 1 + i}) for p in ("a", "b", "ca", "d") for i in range(3)]
    assert [each.text for each in found] == streamed
    assert "stop" in {each.finished for each in found}


@pytest.mark.parametrize("name", ["num_samples", "batch_size"])
def test_numbers_of_texts_below_one_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        make().complete(["a"], **{name: 0})
