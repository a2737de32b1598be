"""Parts of a network from a file of the user's: trusted or refused, counted, saved, loaded and generated from.

For runs of `tinylm fit` with them see tests/training/test_plugins.py.
"""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tinylm
from tests.strategies import random_ids, random_model
from tinylm import plugins
from tinylm.adapt import LoRAConfig, add_lora, grow_vocabulary, quantize
from tinylm.analysis.activations import activation_statistics
from tinylm.analysis.profile import profile
from tinylm.bundle import save_bundle
from tinylm.commands import main
from tinylm.errors import ConfigError
from tinylm.files import read_json
from tinylm.generation import Generator, beam_search
from tinylm.generation.fast.modules import ModuleDecoder
from tinylm.generation.uncached import UncachedDecoder
from tinylm.interop import export_huggingface
from tinylm.known import unknown_part
from tinylm.model import Int8KVCache, ModelConfig, TransformerLM, flops_per_token, parameter_count
from tinylm.model.attention import Attention
from tinylm.plugins import Part
from tinylm.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghij")
SHAPE = dict(vocab_size=10, d_model=16, num_layers=2, num_heads=2, max_seq_len=24)
# each plug-in of own_parts.py and one of PyTorch's, and the fields that go with it
NETWORKS = {
    "attention": dict(attention={"class_path": "own_parts.GatedAttention", "init_args": {"power": 2.0}}),
    "narrow": dict(attention="own_parts.NarrowAttention", positional_encoding="learned"),
    "feedforward": dict(feedforward="own_parts.Bilinear"),
    "norm": dict(norm="own_parts.Signed"),
    "torch": dict(norm={"class_path": "torch.nn.RMSNorm", "init_args": {"eps": 0.01}}, activation="torch.nn.Mish"),
    "activation": dict(activation={"class_path": "own_parts.cubed", "init_args": {"factor": 0.5}}),
    "positions": dict(positional_encoding="own_parts.Sines"),
    "all": dict(attention="own_parts.GatedAttention", feedforward="own_parts.Bilinear", norm="own_parts.Signed",
                positional_encoding="own_parts.Sines", residual="parallel"),
}  # fmt: skip


class Halved(Attention):
    """Half of the usual output."""

    def forward(self, x, visible, rotary, cache):
        return super().forward(x, visible, rotary, cache) / 2


every = pytest.mark.parametrize("name", NETWORKS)


def network(**fields) -> TransformerLM:
    return random_model(ModelConfig(**SHAPE | fields), dtype=torch.float32)


@pytest.fixture
def trusted(own_parts) -> Path:
    plugins.trust(["own_parts"])
    return own_parts


# --- names, and trust


def test_a_part_has_one_value_in_all_its_forms(trusted):
    import own_parts

    by_name, by_dict = Part("own_parts.cubed"), Part.of({"class_path": "own_parts.cubed"})
    assert by_name == by_dict == Part.of("own_parts.cubed") == Part.of(own_parts.cubed)
    assert len({by_name, by_dict, Part("own_parts.cubed", {"factor": 2.0})}) == 2
    config = ModelConfig(**SHAPE, activation=by_name)
    assert ModelConfig.from_dict(config.to_dict()) == config == ModelConfig(**SHAPE, activation="own_parts.cubed")
    assert config.to_dict()["activation"] == {"class_path": "own_parts.cubed", "init_args": {}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(norm="rmsnrm"), "norm must be one of rmsnorm, layernorm, got 'rmsnrm', did you mean 'rmsnorm'?"),
        (dict(norm=3), "class_path must be an import path such as my_layers.Gated, got 3"),
        (dict(norm={"class_path": "a.B", "args": {}}), "norm: a plug-in has class_path and init_args, got args"),
        (dict(norm={"init_args": {}}), "norm: class_path is missing"),
        (dict(norm={"class_path": "a.B", "init_args": [1]}), r"norm: init_args must be options, got \[1\]"),
        (dict(norm=lambda x: x), "class_path must be an import path such as my_layers.Gated, got 'tests"),
        (dict(norm="elsewhere.Norm"), "elsewhere.Norm: importing it runs code; if you trust it, add --trust elsewhere"),
        (dict(norm="os.system"), "os.system: importing it runs code"),
        (dict(norm="torch.nn.RMSNrm"), "torch.nn has no class or function RMSNrm, did you mean 'RMSNorm'?"),
        (dict(norm="torch.nn.functional.relu"), "norm: torch.nn.functional.relu: must be a class derived from Module"),
        (dict(norm="own_parts.Path"), "norm: own_parts.Path: must be a class derived from Module"),
        (dict(feedforward="own_parts.Bilinear1"), "own_parts has no class or function Bilinear1, did you mean 'Bilin"),
        (dict(feedforward={"class_path": "own_parts.Bilinear", "init_args": {"widht": 3}}),
         "feedforward: own_parts.Bilinear: init_args: .*'widht', did you mean 'width'?"),
        (dict(attention="own_parts.missing.A"), "no module own_parts.missing; put own_parts.py into the"),
    ],
)  # fmt: skip
def test_mistakes_are_named(trusted, fields, message):
    with pytest.raises(ConfigError, match=message):
        TransformerLM(ModelConfig(**SHAPE | fields))


def test_a_module_with_an_error_of_its_own_is_named(trusted):
    Path("broken.py").write_text("import no_such_package\n")
    Path("wrong.py").write_text("1 / 0\n")
    plugins.trust(["broken", "wrong"])
    with pytest.raises(ConfigError, match=r"^norm: broken\.N: broken needs no_such_package, which is not installed"):
        TransformerLM(ModelConfig(**SHAPE, norm="broken.N"))
    with pytest.raises(ConfigError, match=r"^norm: wrong\.N: wrong cannot be imported \(division by zero\)"):
        TransformerLM(ModelConfig(**SHAPE, norm="wrong.N"))


def test_a_stored_model_runs_no_code_unless_it_is_trusted(trusted, monkeypatch, capfd):
    model = network(**NETWORKS["all"])
    save_bundle("model", model, LETTERS)
    digest = hashlib.sha256(Path("own_parts.py").read_bytes()).hexdigest()
    recorded = read_json(Path("model/tinylm.json"))["plugins"]
    assert {"class_path": "own_parts.Signed", "sha256": digest} in recorded and len(recorded) == 4
    expected = Generator(model, LETTERS).generate("abc", max_new_tokens=5, temperature=0)

    monkeypatch.setattr(plugins, "_trusted", set())
    monkeypatch.delitem(sys.modules, "own_parts")
    Path("imported").unlink()
    with pytest.raises(ConfigError, match=r"^model: needs code that is not tinylm's: own_parts\.GatedA") as error:
        tinylm.load("model")
    assert str(error.value).endswith('add --trust-code (fit: --trust own_parts; in Python: trust=["own_parts"])')
    words = ["generate", "--model", "model", "--prompt", "abc", "--max-new-tokens", "5", "--temperature", "0"]
    assert main(words) == 2
    with pytest.raises(ConfigError, match="needs code"):
        tinylm.load("model", trust=["other"])
    assert not Path("imported").exists() and "own_parts" not in sys.modules

    capfd.readouterr()
    assert main([*words, "--trust-code"]) == 0
    assert capfd.readouterr().out.strip() == f"abc{expected}"
    loaded, _ = tinylm.load("model")  # trusted from now on in this process
    assert torch.equal(loaded(random_ids(model.config)), model(random_ids(model.config)))

    Path("own_parts.py").write_text(Path("own_parts.py").read_text() + "# another version\n")
    capfd.readouterr()
    tinylm.load("model", trust=["own_parts"])
    changed = "warning: model: the code of own_parts.GatedAttention has changed since the model was stored"
    assert changed in capfd.readouterr().err


def test_parts_of_pytorch_need_no_trust(own_parts):
    save_bundle("model", network(**NETWORKS["torch"]), LETTERS)
    assert isinstance(tinylm.load("model")[0].final_norm, nn.RMSNorm)


# --- generation


@every
def test_cached_texts_equal_those_of_the_whole_network(name, trusted, capfd):
    """Without a cache a text follows from `model(ids)` alone."""
    for fields in (dict(), dict(sliding_window=5, document_mask=True)):
        model = network(**NETWORKS[name] | fields)
        cached, plain = Generator(model, LETTERS), Generator(model, LETTERS, UncachedDecoder(model))
        assert type(cached.decoder) is ModuleDecoder
        options = dict(max_new_tokens=30, seed=3)  # beyond the context
        prompts = ["abc", "jihgfe", "a", "bb"]
        expected = [each.text for each in plain.complete(prompts, batch_size=1, **options)]
        assert [each.text for each in cached.complete(prompts, batch_size=3, **options)] == expected
        assert beam_search(cached, "abc", num_beams=1, max_new_tokens=8)[0].text == beam_search(
            plain, "abc", num_beams=1, max_new_tokens=8)[0].text  # fmt: skip
        plainly = TransformerLM(ModelConfig(**SHAPE | fields)).eval()
        assert type(Generator(plainly, LETTERS).decoder) is not ModuleDecoder
    assert capfd.readouterr().err.count("decoding by the modules, which is slower than the tuned decoder: ") == 2


def test_a_part_without_a_promise_or_with_a_false_one_is_read_without_a_cache(trusted, capfd):
    model = network(feedforward="own_parts.Shifted")
    assert type(Generator(model, LETTERS).decoder) is UncachedDecoder
    reason = "feedforward is the plug-in own_parts.Shifted, which does not promise supports_cache"
    assert capfd.readouterr().err == f"tinylm: decoding without a cache, which is slower: {reason}\n"
    model = network(attention="own_parts.ForgetfulAttention")
    assert type(Generator(model, LETTERS).decoder) is UncachedDecoder
    reason = "own_parts.ForgetfulAttention promises supports_cache, but with a cache its logits differ by "
    assert reason in capfd.readouterr().err


def test_a_hook_in_a_network_with_plugins_changes_the_text(trusted):
    model = network(**NETWORKS["attention"])
    before = Generator(model, LETTERS).generate("abc", max_new_tokens=12, temperature=0)
    model.blocks[1].feedforward.register_forward_hook(lambda module, inputs, output: -output)
    after = Generator(model, LETTERS)
    assert type(after.decoder) is UncachedDecoder
    assert after.generate("abc", max_new_tokens=12, temperature=0) != before


def test_the_cache_has_the_shape_that_attention_asks_for(trusted):
    standard, narrow = (TransformerLM(ModelConfig(**SHAPE | fields)) for fields in (dict(), NETWORKS["narrow"]))
    slots = 24 + 1
    assert standard.make_cache(3).num_bytes == 4 * 2 * 3 * slots * (2 * 2 * 8)  # layers, rows, heads, keys and values
    assert narrow.make_cache(3).num_bytes == 4 * 2 * 3 * slots * (3 + 5)
    assert Int8KVCache(narrow.config, 3).num_bytes == 2 * 3 * slots * (3 + 5 + 2 * 4)  # and a scale for each vector


# --- counts, and the other users of a network


@every
def test_parameters_are_counted_as_they_are(name, trusted):
    model = network(**NETWORKS[name])
    assert parameter_count(model.config) == model.num_parameters() == sum(p.numel() for p in model.parameters())


def test_flops_follow_what_a_part_says(trusted):
    narrow, sparse = (ModelConfig(**SHAPE | f) for f in (NETWORKS["narrow"], dict(feedforward="own_parts.Sparse")))
    lookup = 24 * 16  # learned positions
    assert flops_per_token(narrow) == 6 * (parameter_count(narrow) - lookup) + 3 * 2 * (2 * (3 + 5) * 24)
    unused = 2 * ((2 * (16 + 1) * 24 + (24 + 1) * 16) - 7)
    assert flops_per_token(sparse) == 6 * (parameter_count(sparse) - unused) + 3 * 2 * (4 * 16 * 24)


def test_weights_with_an_initialization_of_their_own_are_left_alone(trusted):
    model = TransformerLM(ModelConfig(**SHAPE, feedforward="own_parts.Kept", zero_init_output=True))
    for block in model.blocks:
        assert (block.feedforward.output.weight == 0.25).all() and (block.feedforward.output.bias == 0.5).all()
    assert (model.blocks[0].attention.output.weight == 0).all()


@every
def test_functions_that_know_the_standard_parts_refuse_plugins_by_name(name, trusted):
    model = network(**NETWORKS[name])
    field, part = next(iter(model.config.parts.items()))
    for purpose, use in {
        "quantization": quantize,
        "an export": lambda model: export_huggingface(model, LETTERS, "out"),
        "a profile": profile,
    }.items():
        with pytest.raises(ConfigError) as error:
            use(model)
        reason = f"requires a model that is exactly what its config describes, but {field} is the plug-in {part}"
        assert str(error.value) == f"{purpose} {reason}"
    save_bundle("model", model, LETTERS)
    assert main(["compare-numpy", "--model", "model", "--trust-code"]) == 2


@every
@torch.no_grad()
def test_functions_that_need_the_modules_alone_take_plugins(name, trusted):
    model = network(**NETWORKS[name])
    ids = random_ids(model.config)
    larger = grow_vocabulary(model, 12)
    torch.testing.assert_close(larger(ids)[..., :10], model(ids))
    assert activation_statistics(model, ids)
    assert unknown_part(model, plugins=True) is None
    layers = add_lora(model, LoRAConfig(rank=2, targets=("blocks.*.attention.query",)))
    assert len(layers) == 2
    torch.testing.assert_close(larger(ids)[..., :10], model(ids), rtol=0, atol=1e-6)  # another shape, another kernel


def test_a_changed_plugin_is_found(trusted):
    model = network(**NETWORKS["all"])
    model.blocks[0].feedforward.a = nn.Linear(16, 24, bias=False)
    assert unknown_part(model, plugins=True) == "blocks.0.feedforward.a.bias is missing"
    model = network(**NETWORKS["all"])
    model.blocks[1].feedforward = network().blocks[1].feedforward
    assert unknown_part(model, plugins=True) == "blocks.1.feedforward is a SwiGLU, not a Bilinear"


def test_classes_and_functions_may_be_given_themselves(own_parts):
    model = TransformerLM(ModelConfig(**SHAPE, activation=F.elu, norm=nn.LayerNorm, attention=Halved))
    assert model.config.to_dict()["attention"]["class_path"] == f"{__name__}.Halved"
    save_bundle("model", model.eval(), LETTERS)
    assert torch.equal(tinylm.load("model")[0](random_ids(model.config)), model(random_ids(model.config)))
