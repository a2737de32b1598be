"""LoRA against its formula and against `peft`, saved and loaded."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.strategies import model_configs, random_ids, random_model
from tinylm.adapt import (
    LoRAConfig,
    add_lora,
    load_adapter,
    lora_layers,
    merge_lora,
    remove_lora,
    save_adapter,
    trainable_share,
    unmerge_lora,
    use_adapters,
)
from tinylm.errors import CannotCreateError, ConfigError, DataError, MissingInputError
from tinylm.interop import export_huggingface
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.lora import merged_weights

CONFIG = ModelConfig(vocab_size=13, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=24, max_seq_len=12)
LORA = LoRAConfig(rank=3, alpha=5.0)


def with_adapter(config: ModelConfig = CONFIG, name: str = "default", **changes) -> TransformerLM:
    """A random model with a random adapter (B would be zero)."""
    model = random_model(config)
    add_lora(model, LoRAConfig(**{"rank": 3, "alpha": 5.0} | changes), name)
    randomize(model, name)
    return model


def randomize(model: TransformerLM, name: str, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        noise = torch.randn(layer.lora_b[name].shape, generator=generator, dtype=torch.float64)
        layer.lora_b[name].data.copy_(0.1 * noise)


@settings(max_examples=30, deadline=None)
@given(model_configs())
def test_a_new_adapter_changes_nothing(config):
    model, ids = random_model(config), random_ids(config)
    before = model(ids)
    add_lora(model, LoRAConfig(rank=2, dropout=0.5))
    assert torch.equal(model(ids), before)


@settings(max_examples=30, deadline=None)
@given(model_configs(), st.sampled_from([torch.float32, torch.float64]))
@torch.no_grad()
def test_merging_changes_no_logits_and_unmerging_restores_the_base(config, dtype):
    model, ids = with_adapter(config).to(dtype), random_ids(config)
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    unmerged = model(ids)
    merge_lora(model)
    # a norm of a sublayer's output divides small outputs by as little as √eps, their rounding errors with them
    torch.testing.assert_close(model(ids), unmerged, rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-4)
    merge_lora(model)  # has no further effect
    unmerge_lora(model)
    assert all(torch.equal(weight, base[name]) for name, weight in model.state_dict().items())
    assert torch.equal(model(ids), unmerged)


@torch.no_grad()
def test_a_layer_adds_scaled_b_a_x():
    model = with_adapter(targets=["blocks.1.attention.query"])
    ((path, layer),) = lora_layers(model).items()
    assert path == "blocks.1.attention.query"
    x = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    a, b = layer.lora_a["default"], layer.lora_b["default"]
    assert (a.shape, b.shape) == ((3, 16), (16, 3))
    expected = x @ layer.weight.T + 5.0 / 3 * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_only_the_adapter_trains():
    model, ids = with_adapter(), random_ids(CONFIG)
    model(ids).square().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}
    # rank 3 times, per block: query and output 16+16, key and value 16+8, gate, input and output 16+24
    assert trainable_share(model)[0] == 2 * 3 * (2 * 32 + 2 * 24 + 3 * 40)
    assert trainable_share(model)[1] == trainable_share(model)[0] + model.num_parameters()


@torch.no_grad()
def test_several_adapters_add_up():
    ids = random_ids(CONFIG)
    model = with_adapter(name="first", targets=["attention"])
    first = model(ids)
    add_lora(model, LORA, "second")
    randomize(model, "second", seed=7)
    both = model(ids)
    use_adapters(model, "first")
    torch.testing.assert_close(model(ids), first, rtol=0, atol=0)
    use_adapters(model)
    torch.testing.assert_close(model(ids), random_model(CONFIG)(ids), rtol=0, atol=0)
    use_adapters(model, "first", "second")
    assert torch.equal(model(ids), both)
    assert not torch.allclose(both, first)
    weights = merged_weights(model.state_dict(), {"first": 5 / 3, "second": 5 / 3})
    plain = TransformerLM(CONFIG).double().eval()
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(ids), both, rtol=0, atol=1e-10)


@torch.no_grad()
def test_removing_merged_adapters_leaves_plain_layers():
    model, ids = with_adapter(), random_ids(CONFIG)
    adapted = model(ids)
    merge_lora(model)
    remove_lora(model)
    assert {type(module) for module in model.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    assert model.state_dict().keys() == random_model(CONFIG).state_dict().keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(ids), adapted, rtol=0, atol=1e-10)


def test_dropout_acts_in_training_only():
    model = with_adapter(dropout=0.9)
    ids = random_ids(CONFIG)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


@torch.no_grad()
def test_a_saved_adapter_loads_exactly(tmp_path):
    model, ids = with_adapter(), random_ids(CONFIG)
    save_adapter(tmp_path / "adapter", model, base="runs/small")
    other = random_model(CONFIG)
    load_adapter(tmp_path / "adapter", other, "again")
    assert torch.equal(other(ids), model(ids))
    save_adapter(tmp_path / "again", other, "again", base="runs/small")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "adapter" / file).read_bytes()


@pytest.mark.parametrize(
    "changes", [{}, {"targets": ["blocks.1.*", "head"], "rank": 2}, {"targets": ["feedforward"], "dropout": 0.1}]
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's use of transformers
@torch.no_grad()
def test_peft_loads_our_adapter_onto_the_exported_llama(changes, tmp_path):
    """The base is exported without the adapter."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = ModelConfig(
        vocab_size=13, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=24, max_seq_len=12, qk_norm=False,
        tie_embeddings=False,
    )  # fmt: skip
    model, ids = with_adapter(config, **changes), random_ids(config)
    export_huggingface(random_model(config), None, tmp_path / "base")
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    assert type(llama) is transformers.LlamaForCausalLM
    save_adapter(tmp_path / "ours", model)
    theirs = peft.PeftModel.from_pretrained(llama, tmp_path / "ours").double().eval()
    # transformers computes RMSNorm and rotary angles in float32 for any dtype
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-5)
    back = random_model(config)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    load_adapter(tmp_path / "theirs", back)
    assert torch.equal(back(ids), model(ids))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(targets=["attn"]), r"lora.targets: no linear layer is named attn, did you mean 'attention'\?"),
        (dict(targets=["head"]), "lora.targets: the head is tied to the embedding"),
        (dict(rank=0), "lora.rank must be at least 1, got 0"),
        (dict(alpha=-1.0), "lora.alpha must be positive"),
        (dict(dropout=1.0), r"lora.dropout must be in \[0, 1\)"),
        (dict(targets=[]), "lora.targets must name"),
    ],
)
def test_invalid_configs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        add_lora(random_model(CONFIG), LoRAConfig(**changes))


def test_adapter_names_are_checked():
    model = with_adapter()
    with pytest.raises(ConfigError, match="adapter default: the model already has an adapter of this name"):
        add_lora(model, LORA)
    with pytest.raises(ConfigError, match="adapter other: the model has no such adapter; known are default"):
        use_adapters(model, "other")
    merge_lora(model)
    with pytest.raises(ConfigError, match="unmerge them first"):
        use_adapters(model)


def test_no_flipped_byte_or_cut_of_an_adapter_is_loaded(tmp_path):
    """The thirty-six damages of each file, of which LoRA's files by themselves show eight in thirty-six."""
    save_adapter(tmp_path / "a", with_adapter())
    for file in (tmp_path / "a").iterdir():
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 24)):
            for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]):
                file.write_bytes(damaged)
                with pytest.raises(DataError):
                    load_adapter(tmp_path / "a", random_model(CONFIG))
        file.write_bytes(whole)
    load_adapter(tmp_path / "a", random_model(CONFIG))


def test_an_adapter_is_replaced_only_when_asked(tmp_path):
    save_adapter(tmp_path / "a", with_adapter())
    with pytest.raises(CannotCreateError, match="a: exists; choose another path"):
        save_adapter(tmp_path / "a", with_adapter())
    save_adapter(tmp_path / "a", with_adapter(), overwrite=True)
    (tmp_path / "a" / "adapter_checksums.json").unlink()  # an adapter of PEFT, which nobody can replace by mistake
    with pytest.raises(CannotCreateError, match="a: exists and is not an adapter of tinylm"):
        save_adapter(tmp_path / "a", with_adapter(), overwrite=True)


def test_damaged_and_foreign_adapters_are_refused(tmp_path):
    model = with_adapter()
    save_adapter(tmp_path / "a", model)
    with pytest.raises(MissingInputError, match=r"nowhere.*adapter_config.json"):
        load_adapter(tmp_path / "nowhere", random_model(CONFIG))
    with pytest.raises(DataError, match="which the model lacks"):
        load_adapter(tmp_path / "a", random_model(ModelConfig(**vars(CONFIG) | {"num_layers": 1})))
    with pytest.raises(DataError, match=r"is not \(32, 3\)"):
        load_adapter(tmp_path / "a", random_model(ModelConfig(**vars(CONFIG) | {"d_model": 32})))
    (tmp_path / "a" / "adapter_checksums.json").unlink()  # as in adapters of PEFT
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    for change, message in (
        ({"use_dora": True}, "use_dora is true"),
        ({"peft_type": "IA3"}, "is not the config of a LoRA adapter"),
    ):
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(DataError, match=message):
            load_adapter(tmp_path / "a", random_model(CONFIG))
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(DataError, match="not a safetensors file"):
        load_adapter(tmp_path / "a", random_model(CONFIG))
