"""Standard models are recognized, and every change that affects the output is found and named."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.changes import CHANGES
from tests.strategies import model_configs, random_model
from tinylm.adapt import LoRAConfig, add_lora, merge_lora, quantize, remove_lora
from tinylm.errors import ConfigError
from tinylm.known import check_deterministic, check_known, mixed_part, unknown_part
from tinylm.model import Int8KVCache, ModelConfig, TransformerLM
from tinylm.model.attention import Attention, attend_plain
from tinylm.model.positional import PositionTable

SHAPE = dict(vocab_size=10, d_model=32, num_layers=2, num_heads=2, max_seq_len=24)


def network(**fields) -> TransformerLM:
    return random_model(ModelConfig(**SHAPE | fields), dtype=torch.float32)


# --- standard models


@settings(max_examples=60, deadline=None)
@given(model_configs(), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_models_are_standard_when_new_converted_copied_and_used(config, dtype):
    state = torch.get_rng_state()
    model = TransformerLM(config).to(dtype)
    torch.set_rng_state(state)
    assert unknown_part(model) is None and mixed_part(model) is None
    assert torch.equal(torch.get_rng_state(), state)  # the check draws no random numbers
    model(torch.zeros(1, 1, dtype=torch.long)).sum().backward()
    model.eval()(torch.zeros(1, 1, dtype=torch.long))
    assert unknown_part(copy.deepcopy(model)) is None
    check_known(model, "this")


def test_changes_without_effect_on_the_output_are_allowed():
    model = network(dropout=0.1, attention_kernel="fused")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3  # DropoutAnnealing
        elif isinstance(module, Attention):
            module.dropout, module.attend = 0.3, attend_plain  # the same function
    model.cache_type = Int8KVCache
    model.note = "a comment"
    model.blocks[0].register_full_backward_hook(lambda module, *gradients: None)
    model.embedding.weight.requires_grad_(False)
    assert unknown_part(model) is None


@pytest.mark.parametrize("options", [dict(bits=8), dict(bits=4), dict(bits=4, group_size=16)], ids=str)
def test_quantized_layers_are_allowed(options):
    for model in (network(), network(bias=True, tie_embeddings=False)):
        assert unknown_part(quantize(model, **options, skip=())) is None


def test_lora_adapters_are_allowed_on_request():
    model = network()
    add_lora(model, LoRAConfig(rank=2))
    add_lora(model, LoRAConfig(rank=3, dropout=0.1), "second")
    assert unknown_part(model) is None
    check_known(model, "this", adapters=True)
    with pytest.raises(ConfigError, match=r"^this: blocks\.0\.attention\.query has LoRA adapters; merge_lora and"):
        check_known(model, "this")
    merge_lora(model)
    remove_lora(model)
    check_known(model, "this")


# --- changed models


@pytest.mark.parametrize("change", CHANGES)
def test_changed_parts_are_named(change):
    model = network()
    make, message = CHANGES[change]
    make(model)
    assert unknown_part(model) == message
    with pytest.raises(ConfigError) as error:
        check_known(model, "this")
    assert str(error.value) == f"this requires a model that is exactly what its config describes, but {message}"
    assert (unknown_part(model, hooks=False) is None) == ("hook" in change)


def put(path: str, value):
    """Returns a change that sets an attribute, given by its dotted name."""

    def change(model: TransformerLM) -> None:
        module, _, name = path.rpartition(".")
        setattr(model.get_submodule(module), name, value() if isinstance(value, type) else value)

    return change


def share(model: TransformerLM) -> None:
    model.blocks[1].feedforward = model.blocks[0].feedforward


def swap(model: TransformerLM) -> None:
    model.blocks[0], model.blocks[1] = model.blocks[1], model.blocks[0]


def untie(model: TransformerLM) -> None:
    model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())


class MyLinear(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("blocks.1.form", "post"), "blocks.1.form is 'post', not 'pre'"),
        (put("blocks.1.attention.rotates", False), "blocks.1.attention.rotates is False, not True"),
        (put("blocks.1.attention.scale", 1.0), "blocks.1.attention.scale is 1.0, not None"),
        (put("windows", [None, 3]), "windows is [None, 3], not [None, None]"),
        (put("blocks.1.attention.layer", 0), "blocks.1.attention.layer is 0, not 1"),
        (put("blocks.1.attention.head_dim", 8), "blocks.1.attention.head_dim is 8, not 16"),
        (put("blocks.0.attention_norm.eps", 1e-3), "blocks.0.attention_norm.eps is 0.001, not 1e-05"),
        (put("final_norm", nn.Identity), "final_norm is an Identity, not a RMSNorm"),
        (put("final_norm", nn.LayerNorm(32, 1e-5, bias=False)), "final_norm is a LayerNorm, not a RMSNorm"),
        (put("final_norm", nn.RMSNorm(32)), "final_norm is a torch.nn.modules.normalization.RMSNorm, not a RMSNorm"),
        (put("positions", PositionTable(torch.ones(2, 24, 8, dtype=torch.float64))), "positions._exact is a Tensor"),
        (put("positions", nn.Embedding(24, 32)), "positions is an Embedding, not a PositionTable"),
        (put("embedding.max_norm", 1.0), "embedding.max_norm is 1.0, not None"),
        (put("blocks.0.attention.query", MyLinear(32, 32, bias=False)), "query is a MyLinear, not a Linear"),
        (put("blocks.0.attention.query.bias", nn.Parameter(torch.ones(32))), "query.bias is not one of its parameters"),
        (put("blocks.0.attention.query", nn.Linear(32, 16, bias=False)), "query.weight is a Parameter (16, 32), not"),
        (put("blocks.0.extra", nn.Linear(2, 2)), "blocks.0.extra, a Linear, is not one of its modules"),
        (put("scale", nn.Parameter(torch.ones(()))), "scale is not one of its parameters"),
        (put("forward", lambda ids: ids), "forward is not the method of its class"),
        (put("blocks.1.attention.query_norm", None), "blocks.1.attention.query_norm is missing"),
        (lambda model: model.blocks[0].register_buffer("table", torch.ones(2)), "table is not one of its buffers"),
        (lambda model: nn.utils.parametrizations.weight_norm(model.head), "is a ParametrizedLinear, not a Linear"),
        (lambda model: model.blocks.append(copy.copy(model.blocks[1])), "blocks.2, a Block, is not one of its modules"),
        (lambda model: model.blocks.pop(1), "blocks.1 is missing"),
        (lambda model: model.blocks[0].compile(backend="eager"), "blocks.0 was compiled"),
        (swap, "blocks.0.attention.layer is 1, not 0"),
        (share, "blocks.1.feedforward.gate.weight is blocks.0.feedforward.gate.weight"),
        (untie, "head.weight is not embedding.weight"),
    ],
)  # fmt: skip
def test_every_attribute_that_affects_the_output_is_compared(change, message):
    model = network()
    change(model)
    assert message in unknown_part(model)


def test_a_custom_activation_is_found():
    model = network(activation="relu")
    model.blocks[1].feedforward.activation = torch.tanh
    assert unknown_part(model) == "blocks.1.feedforward.activation is tanh, not relu"


def test_a_method_replaced_in_its_class_is_found(monkeypatch):
    model = network()
    monkeypatch.setattr(Attention, "forward", lambda self, x, *rest: x)
    assert unknown_part(model) == "Attention.forward was replaced after tinylm was imported"


def test_weights_of_mixed_types_are_found():
    model = network()
    model.blocks[1].feedforward.input.bfloat16()
    assert unknown_part(model) is None
    assert (
        mixed_part(model) == "blocks.1.feedforward.input.weight is bfloat16 on cpu, embedding.weight is float32 on cpu"
    )


def test_dropout_in_training_mode_is_found():
    check_deterministic(network().train())
    check_deterministic(network(dropout=0.1))
    with pytest.raises(ConfigError, match=r"^dropout applies dropout, because the model is in training mode"):
        check_deterministic(network(dropout=0.1).train())
    model = network()
    add_lora(model, LoRAConfig(dropout=0.1))
    check_deterministic(model)
    with pytest.raises(ConfigError, match=r"^blocks\.0\.attention\.query applies dropout"):
        check_deterministic(model.train())
