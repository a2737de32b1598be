"""Generation from a changed model follows the model itself, not its config.

The oracle passes the whole text through `model(ids)` for each token. Every change must affect the text.
"""

import math

import pytest
import torch
from torch import nn

from tests.changes import CHANGES, hook, subclass
from tests.strategies import random_model
from tinylm.errors import ConfigError
from tinylm.generation import Generator, SpeculativeGenerator, beam_search
from tinylm.generation.fast.choice import fastest_threads, make_decoder, step_seconds
from tinylm.generation.fast.compiled import CompiledDecoder
from tinylm.generation.fast.decoder import Decoder
from tinylm.generation.uncached import UncachedDecoder
from tinylm.model import ModelConfig, TransformerLM
from tinylm.optim.optimizer import OptimizerConfig, make_optimizer
from tinylm.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghij")
NEW = 14
changes = pytest.mark.parametrize("change", CHANGES)


def network(change: str | None = None, dtype: torch.dtype = torch.float64, **fields) -> TransformerLM:
    shape = dict(vocab_size=10, d_model=16, num_layers=2, num_heads=2, max_seq_len=24, tie_embeddings=False)
    model = random_model(ModelConfig(**shape | fields), dtype=dtype)
    if change is not None:
        CHANGES[change][0](model)
    return model


@torch.no_grad()
def uncached(model: TransformerLM, prompt: str, count: int = NEW) -> str:
    """The oracle: the most likely tokens, sliding like the generator."""
    ids, window = LETTERS.encode(prompt), LETTERS.encode(prompt)
    for _ in range(count):
        if len(window) > model.config.max_seq_len:
            window = ids[-(model.config.max_seq_len // 2) :]
        ids.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window.append(ids[-1])
    return LETTERS.decode(ids)[len(prompt) :]


@changes
def test_texts_follow_the_changed_model(change, capfd):
    model = network(change)
    expected = uncached(model, "abc")
    assert expected != uncached(network(), "abc"), "the change has no effect"
    generator = Generator(model, LETTERS)
    assert generator.generate("abc", max_new_tokens=NEW, temperature=0) == expected
    notices = capfd.readouterr().err.splitlines()
    assert notices == [f"tinylm: decoding without a cache, which is slower: {CHANGES[change][1]}"]
    Generator(model, LETTERS).generate("ab", max_new_tokens=1)
    assert capfd.readouterr().err == ""  # announced only once


@changes
def test_batches_beams_and_speculation_follow_the_changed_model(change):
    model = network(change)
    prompts = ["abc", "jihgf", "a", "bb"]
    expected = [uncached(model, prompt) for prompt in prompts]
    found = Generator(model, LETTERS).complete(prompts, batch_size=3, max_new_tokens=NEW, temperature=0)
    assert [each.text for each in found] == expected
    assert [
        beam_search(Generator(model, LETTERS), p, num_beams=1, max_new_tokens=NEW)[0].text for p in prompts
    ] == expected
    for draft in (None, network(), network(change)):
        generator = SpeculativeGenerator(model, LETTERS, draft)
        found = generator.complete(prompts, max_new_tokens=NEW, temperature=0)
        assert [each.text for each in found] == expected
    draft = SpeculativeGenerator(network(), LETTERS, model)  # a changed draft model affects the speed only
    assert draft.generate("abc", max_new_tokens=NEW, temperature=0) == uncached(network(), "abc")


@changes
@torch.no_grad()
def test_beam_scores_are_those_of_the_changed_model(change):
    model = network(change)
    for each in beam_search(Generator(model, LETTERS), "ab", num_beams=3, num_return=3, max_new_tokens=4):
        ids, expected = LETTERS.encode("ab"), []
        for token in each.ids:
            expected.append(float(model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token]))
            ids.append(token)
        assert each.log_probs == pytest.approx(expected, abs=1e-9)
        assert each.score == pytest.approx(math.fsum(expected) / 4, abs=1e-9)


@changes
def test_sliding_texts_follow_the_changed_model(change):
    model = network(change, max_seq_len=8)
    expected = uncached(model, "abc", 20)
    assert Generator(model, LETTERS).generate("abc", max_new_tokens=20, temperature=0) == expected
    assert SpeculativeGenerator(model, LETTERS).generate("abc", max_new_tokens=20, temperature=0) == expected


@changes
def test_cached_decoders_refuse_a_changed_model(change):
    for kind in (Decoder, CompiledDecoder):
        with pytest.raises(ConfigError, match=f"{kind.__name__} cannot read this model: ") as error:
            kind(network(change))
        assert CHANGES[change][1] in str(error.value)


def test_speed_and_threads_of_a_changed_model_are_measured():
    model = network("gate")
    threads = torch.get_num_threads()
    assert fastest_threads(model) == torch.get_num_threads() <= threads
    torch.set_num_threads(threads)
    assert len(step_seconds(make_decoder(model), model, rows=2, steps=3)) == 3


# --- changes after the generator was created


@torch.no_grad()
def test_later_changes_are_noticed_at_the_next_text(capfd):
    model = network()
    generator = Generator(model, LETTERS)
    fast = generator.decoder
    options = dict(max_new_tokens=NEW, temperature=0)
    before = generator.generate("abc", **options)
    assert generator.decoder is fast and before == uncached(model, "abc")
    handle = model.blocks[0].register_forward_hook(lambda module, inputs, output: output.flip(-1))
    assert generator.generate("abc", **options) == uncached(model, "abc") != before
    assert isinstance(generator.decoder, UncachedDecoder)
    assert "blocks.0 has a forward hook" in capfd.readouterr().err
    (beam,) = beam_search(generator, "abc", num_beams=1, max_new_tokens=NEW)
    assert beam.text == uncached(model, "abc")
    handle.remove()
    assert generator.generate("abc", **options) == before
    assert isinstance(generator.decoder, Decoder)
    model.blocks[1].attention.output.weight.mul_(-1)  # for example by a training step
    assert generator.generate("abc", **options) == uncached(model, "abc") != before


def test_later_changes_of_the_draft_model_are_noticed():
    draft = network()
    generator = SpeculativeGenerator(network(), LETTERS, draft)
    subclass(draft)
    generator.generate("abc", max_new_tokens=NEW, temperature=0)
    assert isinstance(generator.draft_decoder, UncachedDecoder)


@pytest.mark.parametrize("kind", [Decoder, CompiledDecoder])
def test_a_chosen_decoder_refuses_a_model_changed_later(kind):
    model = network()
    generator = Generator(model, LETTERS, kind(model))
    hook(model)
    with pytest.raises(ConfigError, match=rf"^{kind.__name__} cannot read this model: blocks\.0 has a forward hook"):
        generator.generate("abc")
    model = network()
    generator = Generator(model, LETTERS, kind(model))
    with torch.no_grad():
        model.blocks[1].feedforward.gate.weight.mul_(2)
    with pytest.raises(
        ConfigError, match=rf"^{kind.__name__} holds copies of weights that have changed since; make a new"
    ):
        generator.generate("abc")


def test_global_hooks_are_noticed():
    model = network()
    generator = Generator(model, LETTERS)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: 2 * output if module is model.blocks[0].attention else None
    )
    try:
        expected = uncached(model, "abc")
        assert generator.generate("abc", max_new_tokens=NEW, temperature=0) == expected
    finally:
        handle.remove()
    assert expected != uncached(model, "abc")


# --- dropout


def test_a_model_with_active_dropout_is_refused():
    model = network(dropout=0.1)
    generator = Generator(model, LETTERS)
    model.train()
    for use in (
        lambda: generator.generate("abc"),
        lambda: beam_search(generator, "abc", max_new_tokens=3),
        lambda: Generator(model, LETTERS),
    ):
        with pytest.raises(ConfigError, match=r"applies dropout, .* call model\.eval\(\)"):
            use()
    model = network().train()  # without dropout the mode does not matter
    assert Generator(model, LETTERS).generate("abc", max_new_tokens=3)


def test_models_that_return_no_logits_are_refused():
    class Pair(TransformerLM):
        def forward(self, ids, **options):
            return super().forward(ids, **options), 0.0

    model = network()
    model.__class__ = Pair
    with pytest.raises(ConfigError, match="the model returned a tuple; generation needs logits"):
        Generator(model, LETTERS).generate("abc")


def small_generator() -> Generator:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=10, d_model=16, num_layers=1, num_heads=2, max_seq_len=32)
    generator = Generator(TransformerLM(config).eval(), LETTERS)
    generator.generate("abc", max_new_tokens=4, temperature=0)
    return generator


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon"])
@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_steps_are_noticed(name, fused):
    """Fused kernels change weights without incrementing their version."""
    generator = small_generator()
    model = generator.model
    optimizer = make_optimizer(model, OptimizerConfig(name=name, lr=0.3), fused=fused)
    for _ in range(5):
        model(torch.tensor([[0, 1, 2, 3]]))[0, :, 4].sum().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    ids = [0, 1, 2]
    for _ in range(8):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generator.generate("abc", max_new_tokens=8, temperature=0) == LETTERS.decode(ids[3:])


def negate(model: nn.Module) -> None:
    nn.utils.vector_to_parameters(-nn.utils.parameters_to_vector(model.parameters()), model.parameters())


@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.bfloat16, negate])
def test_weights_moved_or_converted_are_noticed(change):
    generator = small_generator()
    change(generator.model)
    expected = Generator(generator.model, LETTERS).generate("abc", max_new_tokens=8, temperature=0)
    assert generator.generate("abc", max_new_tokens=8, temperature=0) == expected
