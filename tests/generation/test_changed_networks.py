"""Networks that somebody has changed: a text is what the network itself says, never what its config describes.

The oracle is the plain loop: the whole text through `model(ids)` for each token. Every change must show in the text.
"""

import math

import pytest
import torch
from torch import nn

from tests.changes import CHANGES, hook, subclass
from tests.strategies import random_model
from tinylm.errors import ConfigError
from tinylm.generation import Generator, SpeculativeGenerator, beam_search
from tinylm.generation.fast.compiled import CompiledDecoder
from tinylm.generation.fast.decoder import Decoder, fastest_threads, make_decoder, step_seconds
from tinylm.generation.uncached import UncachedDecoder
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import CharTokenizer
from tinylm.training.optim import OptimizerConfig, make_optimizer

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
def plainly(model: TransformerLM, prompt: str, count: int = NEW) -> str:
    """The likeliest next token of the whole text, again and again; beyond the context its newer half goes on."""
    ids, window = LETTERS.encode(prompt), LETTERS.encode(prompt)
    for _ in range(count):
        if len(window) > model.config.max_seq_len:
            window = ids[-(model.config.max_seq_len // 2) :]
        ids.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window.append(ids[-1])
    return LETTERS.decode(ids)[len(prompt) :]


@changes
def test_a_text_is_what_the_changed_network_says(change, capfd):
    model = network(change)
    expected = plainly(model, "abc")
    assert expected != plainly(network(), "abc"), "the change does not show"
    generator = Generator(model, LETTERS)
    assert generator.generate("abc", max_new_tokens=NEW, temperature=0) == expected
    said = capfd.readouterr().err.splitlines()
    assert said == [f"tinylm: decoding without a cache, which is slower: {CHANGES[change][1]}"]
    Generator(model, LETTERS).generate("ab", max_new_tokens=1)
    assert capfd.readouterr().err == ""  # once is enough


@changes
def test_batches_beams_and_speculation_say_the_same(change):
    model = network(change)
    prompts = ["abc", "jihgf", "a", "bb"]
    expected = [plainly(model, prompt) for prompt in prompts]
    found = Generator(model, LETTERS).complete(prompts, batch_size=3, max_new_tokens=NEW, temperature=0)
    assert [each.text for each in found] == expected
    assert [
        beam_search(Generator(model, LETTERS), p, num_beams=1, max_new_tokens=NEW)[0].text for p in prompts
    ] == expected
    for draft in (None, network(), network(change)):
        generator = SpeculativeGenerator(model, LETTERS, draft)
        found = generator.complete(prompts, max_new_tokens=NEW, temperature=0)
        assert [each.text for each in found] == expected
    draft = SpeculativeGenerator(network(), LETTERS, model)  # a changed draft decides the speed, never the text
    assert draft.generate("abc", max_new_tokens=NEW, temperature=0) == plainly(network(), "abc")


@changes
@torch.no_grad()
def test_beams_rank_texts_by_the_changed_networks_probabilities(change):
    model = network(change)
    for each in beam_search(Generator(model, LETTERS), "ab", num_beams=3, num_return=3, max_new_tokens=4):
        ids, expected = LETTERS.encode("ab"), []
        for token in each.ids:
            expected.append(float(model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token]))
            ids.append(token)
        assert each.log_probs == pytest.approx(expected, abs=1e-9)
        assert each.score == pytest.approx(math.fsum(expected) / 4, abs=1e-9)


@changes
def test_beyond_the_context_too(change):
    model = network(change, max_seq_len=8)
    expected = plainly(model, "abc", 20)
    assert Generator(model, LETTERS).generate("abc", max_new_tokens=20, temperature=0) == expected
    assert SpeculativeGenerator(model, LETTERS).generate("abc", max_new_tokens=20, temperature=0) == expected


@changes
def test_what_reads_through_a_cache_refuses_the_network_by_name(change):
    for kind in (Decoder, CompiledDecoder):
        with pytest.raises(ConfigError, match=f"{kind.__name__} cannot read this model: ") as error:
            kind(network(change))
        assert CHANGES[change][1] in str(error.value)


def test_the_threads_and_the_speed_of_a_changed_network_are_measured_too():
    model = network("gate")
    threads = torch.get_num_threads()
    assert fastest_threads(model) == torch.get_num_threads() <= threads
    torch.set_num_threads(threads)
    assert len(step_seconds(make_decoder(model), model, rows=2, steps=3)) == 3


# --- changes after the generator was made


@torch.no_grad()
def test_what_is_changed_after_the_generator_was_made_is_noticed_at_the_next_text(capfd):
    model = network()
    generator = Generator(model, LETTERS)
    fast = generator.decoder
    options = dict(max_new_tokens=NEW, temperature=0)
    before = generator.generate("abc", **options)
    assert generator.decoder is fast and before == plainly(model, "abc")
    handle = model.blocks[0].register_forward_hook(lambda module, inputs, output: output.flip(-1))
    assert generator.generate("abc", **options) == plainly(model, "abc") != before
    assert isinstance(generator.decoder, UncachedDecoder)
    assert "blocks.0 has a forward hook" in capfd.readouterr().err
    (beam,) = beam_search(generator, "abc", num_beams=1, max_new_tokens=NEW)
    assert beam.text == plainly(model, "abc")
    handle.remove()
    assert generator.generate("abc", **options) == before
    assert isinstance(generator.decoder, Decoder)
    model.blocks[1].attention.output.weight.mul_(-1)  # a training step, say
    assert generator.generate("abc", **options) == plainly(model, "abc") != before


def test_a_draft_that_is_changed_later_is_noticed_too():
    draft = network()
    generator = SpeculativeGenerator(network(), LETTERS, draft)
    subclass(draft)
    generator.generate("abc", max_new_tokens=NEW, temperature=0)
    assert isinstance(generator.draft_decoder, UncachedDecoder)


@pytest.mark.parametrize("kind", [Decoder, CompiledDecoder])
def test_a_decoder_that_was_chosen_refuses_the_network_once_it_is_changed(kind):
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


def test_hooks_of_all_modules_count():
    model = network()
    generator = Generator(model, LETTERS)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: 2 * output if module is model.blocks[0].attention else None
    )
    try:
        expected = plainly(model, "abc")
        assert generator.generate("abc", max_new_tokens=NEW, temperature=0) == expected
    finally:
        handle.remove()
    assert expected != plainly(model, "abc")


# --- dropout


def test_a_network_in_training_mode_with_dropout_is_refused():
    model = network(dropout=0.1)
    generator = Generator(model, LETTERS)
    model.train()
    for write in (
        lambda: generator.generate("abc"),
        lambda: beam_search(generator, "abc", max_new_tokens=3),
        lambda: Generator(model, LETTERS),
    ):
        with pytest.raises(ConfigError, match=r"applies dropout, .* call model\.eval\(\)"):
            write()
    assert Generator(network().train(), LETTERS).generate("abc", max_new_tokens=3)  # without dropout modes are alike


def test_networks_that_give_no_logits_are_refused():
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
def test_steps_of_an_optimizer_are_noticed(name, fused):
    """The fused kernels write weights without raising their version."""
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
def test_weights_that_lie_elsewhere_or_are_of_another_type_are_noticed(change):
    generator = small_generator()
    change(generator.model)
    expected = Generator(generator.model, LETTERS).generate("abc", max_new_tokens=8, temperature=0)
    assert generator.generate("abc", max_new_tokens=8, temperature=0) == expected
