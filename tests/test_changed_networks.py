"""Functions that rely on a model's internals either handle a changed model correctly or refuse it by name.

For generation see tests/generation/test_changed_networks.py; for what counts as changed, tests/test_known.py.
"""

import pytest
import torch
from torch import nn

from tests.changes import CHANGES, SignedSwiGLU, gate, hook, parameter, subclass
from tests.strategies import random_ids, random_model
from tinylm.adapt import FreezeConfig, LoRAConfig, add_lora, freeze, grow_vocabulary, quantize
from tinylm.analysis.activations import activation_statistics
from tinylm.analysis.attention import attention_maps, attention_weights, head_scores, induction_scores
from tinylm.analysis.gradients import gradient_statistics
from tinylm.analysis.lens import layer_views, read_layers
from tinylm.analysis.profile import profile
from tinylm.bundle import save_bundle
from tinylm.errors import ConfigError
from tinylm.evaluation import score_text
from tinylm.evaluation.tokens import token_losses
from tinylm.interop import export_huggingface
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.attention import Attention
from tinylm.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghij")
CONFIG = ModelConfig(vocab_size=10, d_model=16, num_layers=2, num_heads=2, max_seq_len=12, tie_embeddings=False)
changes = pytest.mark.parametrize("change", CHANGES)


def network(change=None) -> TransformerLM:
    model = random_model(CONFIG, dtype=torch.float32)
    if change is not None:
        change(model)
    return model


# --- refused


@changes
def test_functions_that_would_change_the_model_refuse_it(change, tmp_path):
    make, message = CHANGES[change]
    for purpose, use in {
        "quantization": lambda model: quantize(model),
        "an export": lambda model: export_huggingface(model, LETTERS, tmp_path / "out"),
        "a model folder": lambda model: save_bundle(tmp_path / "out", model, LETTERS),
        "a larger vocabulary": lambda model: grow_vocabulary(model, 12),
    }.items():
        with pytest.raises(ConfigError) as error:
            use(network(make))
        assert (
            str(error.value) == f"{purpose} requires a model that is exactly what its config describes, but {message}"
        )
    assert not [*tmp_path.iterdir()]


@changes
def test_a_profile_refuses_all_changes_but_hooks(change):
    make, message = CHANGES[change]
    if "hook" in change:  # hooks have no weights and no matrix products
        assert profile(network(make)) == profile(network())
        return
    with pytest.raises(
        ConfigError, match=r"^a profile requires a model that is exactly what its config describes"
    ) as error:
        profile(network(make))
    assert message in str(error.value)


def test_unmerged_adapters_are_refused(tmp_path):
    for purpose, use in {
        "a profile": profile,
        "quantization": quantize,
        "a model folder": lambda model: save_bundle(tmp_path / "out", model, LETTERS),
        "a larger vocabulary": lambda model: grow_vocabulary(model, 12),
    }.items():
        model = network()
        add_lora(model, LoRAConfig())
        with pytest.raises(
            ConfigError, match=rf"^{purpose}: blocks\.0\.attention\.query has LoRA adapters; merge_lora"
        ):
            use(model)


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_adapters_replace_plain_linear_layers_only():
    """Replacing any other kind of layer by a LoRALinear would change the result."""
    model = network()
    model.blocks[1].attention.value.__class__ = Doubled
    with pytest.raises(
        ConfigError, match=r"^lora\.targets: blocks\.1\.attention\.value must be a plain nn\.Linear, got Doub"
    ):
        add_lora(model, LoRAConfig())
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert all(weight.requires_grad for weight in model.parameters())  # nothing is frozen before the refusal
    model = network()
    model.blocks[0].feedforward.input.register_forward_hook(lambda module, inputs, output: -output)
    with pytest.raises(ConfigError, match=r"^lora\.targets: blocks\.0\.feedforward\.input has hooks"):
        add_lora(model, LoRAConfig())


@changes
@torch.no_grad()
def test_new_adapters_do_not_change_a_changed_model(change):
    """Only the adapted layers must be standard."""
    model, ids = network(CHANGES[change][0]), random_ids(CONFIG)
    expected = model(ids)
    layers = add_lora(model, LoRAConfig(targets=("blocks.*.attention.key",)))
    assert torch.equal(model(ids), expected) and len(layers) == 2


def test_freezing_all_but_the_last_blocks_refuses_a_weight_of_unknown_position():
    model = network()
    model.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ConfigError, match=r"^freeze\.all_but_last does not know whether to freeze scale"):
        freeze(model, FreezeConfig(all_but_last=1))
    assert freeze(model, FreezeConfig(patterns=("scale",))) == ["scale"]
    gate(model)
    del model.scale
    assert "blocks.0.attention.gate.weight" in freeze(model, FreezeConfig(all_but_last=1))


# --- handled correctly


def test_all_parameters_are_counted():
    """`gate` adds two gates of 16 x 16 weights and 16 biases, `parameter` a vector of 16."""
    standard = network().num_parameters()
    assert standard == sum(weight.numel() for weight in network().parameters())
    assert network(gate).num_parameters() == standard + 2 * (16 * 16 + 16)
    assert network(parameter).num_parameters() == standard + 16
    assert network(subclass).num_parameters() == network(hook).num_parameters() == standard
    model = network()
    model.blocks[0].feedforward = model.blocks[1].feedforward
    assert model.num_parameters() == standard - 3 * 16 * CONFIG.ff_width


@changes
@torch.no_grad()
def test_scores_and_losses_are_those_of_the_changed_model(change):
    model, text = network(CHANGES[change][0]), "abcdefghij"
    ids = torch.tensor([LETTERS.encode(text)])
    log_probs = model(ids[:, :-1]).double().log_softmax(-1)
    expected = -log_probs.gather(2, ids[:, 1:, None])[0, :, 0]
    assert score_text(model, LETTERS, text).nats == pytest.approx(float(expected.sum()), rel=1e-6)
    found = [each.nats for each in token_losses(model, LETTERS, text)][1:]
    assert found == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("change", [gate, parameter, hook])
def test_gradients_are_those_of_the_changed_model(change):
    model, ids = network(change), random_ids(CONFIG, 2)
    found = gradient_statistics(model, ids[:, :-1], ids[:, 1:])
    assert sum(each.weights for each in found) == sum(weight.numel() for weight in model.parameters())
    loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert sum(each.norm**2 for each in found) == pytest.approx(
        sum(float(g.square().sum()) for g in gradients), rel=1e-4
    )


# --- analysis


@pytest.mark.parametrize("change", [gate, subclass, hook])
@torch.no_grad()
def test_attention_weights_are_those_of_the_changed_model(change):
    """Checks the second layer, whose queries and keys depend on the change in the first."""
    model, ids = network(change), random_ids(CONFIG, 1)
    inputs = []
    kernel = model.blocks[1].attention.attend
    model.blocks[1].attention.attend = lambda q, k, *rest: inputs.append((q, k)) or kernel(q, k, *rest)
    model(ids)
    model.blocks[1].attention.attend = kernel
    expected = attention_weights(*inputs[0], None)
    assert torch.equal(attention_maps(model, ids)[1], expected)
    assert not torch.allclose(attention_maps(network(), ids)[1], expected, atol=1e-3)


class Averaging(Attention):
    """Computes a running mean instead of calling an attention kernel."""

    def forward(self, x, visible, rotary, cache):
        values = self.value(x).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return self.output(values)


class Unnamed(nn.Module):
    """A feed-forward layer without an `output` layer, whose input the analysis reads."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(16, 16)

    def forward(self, x):
        return self.all(x).relu()


class Whole(nn.Module):
    """A custom block."""

    def forward(self, x, visible, rotary, cache):
        return x


def averaging(model: TransformerLM) -> None:
    model.blocks[1].attention.__class__ = Averaging


def own_kernel(model: TransformerLM) -> None:
    kernel = model.blocks[0].attention.attend
    model.blocks[0].attention.attend = lambda query, *rest: kernel(2 * query, *rest)


def whole(model: TransformerLM) -> None:
    model.blocks[1] = Whole()


def unnamed(model: TransformerLM) -> None:
    model.blocks[0].feedforward = Unnamed()


def bypassing(model: TransformerLM) -> None:
    model.blocks[0].feedforward.__class__ = Bypassing


class Bypassing(SignedSwiGLU):
    """Uses the weights of its output layer without calling the layer."""

    def forward(self, x):
        return self.gate(x) @ self.output.weight.T


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (averaging, r"blocks\.1\.attention was not computed where tinylm.s networks compute it"),
        (
            own_kernel,
            r"blocks\.0\.attention \(Attention\) does not use an attention kernel of tinylm, so its weights are",
        ),
        (whole, r"blocks\.1 is a Whole and not a Block"),
    ],
)
def test_attention_that_cannot_be_shown_is_named(change, message):
    model, ids = network(change), random_ids(CONFIG, 1)
    for use in (lambda: attention_maps(model, ids), lambda: head_scores(model, ids), lambda: induction_scores(model)):
        with pytest.raises(ConfigError, match=f"^{message}"):
            use()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unnamed, r"blocks\.0\.feedforward has no layer `output`, so its units are unknown"),
        (bypassing, r"blocks\.0\.units was not computed where tinylm.s networks compute it"),
        (whole, r"blocks\.1 is a Whole and not a Block"),
    ],
)
def test_activations_that_cannot_be_shown_are_named(change, message):
    model = network(change)
    with pytest.raises(ConfigError, match=f"^{message}"):
        activation_statistics(model, random_ids(CONFIG))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@changes
@torch.no_grad()
def test_the_lens_ends_with_the_models_output_or_is_refused(change):
    model, ids = network(CHANGES[change][0]), random_ids(CONFIG, 1)
    if change in ("hook on the network", "forward of a subclass", "logits of a subclass"):  # after the last block
        for use in (lambda: layer_views(model, ids[:, :-1], ids[:, 1:]), lambda: read_layers(model, ids)):
            with pytest.raises(ConfigError, match="does more after its last block than final_norm and head"):
                use()
        return
    last = layer_views(model, ids[:, :-1], ids[:, 1:])[-1]
    expected = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()
    assert last.loss == pytest.approx(expected, rel=1e-5) and last.agreement == 1
    assert torch.equal(read_layers(model, ids).best[-1], model(ids)[0].argmax(-1))
