"""Adapters of PEFT on both sides: ours over every exported form, theirs over our models, and what is refused."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.crossed import crossed
from tests.interop.tables import EXPORTS, SHAPE
from tests.strategies import random_ids, random_model
from tinylm.adapt import LoRAConfig, add_lora, load_adapter, lora_layers, quantize, save_adapter
from tinylm.errors import ConfigError, DataError, NumericError
from tinylm.interop import export_huggingface
from tinylm.model import ModelConfig, TransformerLM

LLAMA = ModelConfig(**SHAPE, qk_norm=False, num_kv_heads=2, tie_embeddings=False)
GPT2 = ModelConfig(
    **SHAPE, qk_norm=False, bias=True, positional_encoding="learned", norm="layernorm", activation="gelu_tanh"
)
FORMS = {"LlamaForCausalLM": LLAMA, "GPT2LMHeadModel": GPT2}
pytestmark = pytest.mark.filterwarnings("ignore")  # of peft and transformers


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft", reason="the oracle is peft itself")


def exported_base(config: ModelConfig, folder: Path):
    """The random model of a config as transformers' own."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers itself")
    export_huggingface(random_model(config), None, folder, overwrite=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def randomize(model: torch.nn.Module, part: str) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def adapted(config: ModelConfig, **options) -> TransformerLM:
    model = random_model(config)
    add_lora(model, LoRAConfig(**{"rank": 3, "alpha": 5.0} | options))
    randomize(model, ".lora_")
    return model


# --- out


TARGETS = {"layers": ["attention", "feedforward"], "patterns": ["blocks.*.attention.query", "blocks.1.*.output"]}


@pytest.mark.parametrize(("form", "targets"), crossed(EXPORTS, TARGETS, every=2))
@torch.no_grad()
def test_peft_loads_our_adapter_over_every_exported_form(form, targets, peft, tmp_path):
    changes, architecture = EXPORTS[form]
    config = ModelConfig(**SHAPE | changes)
    model, ids = adapted(config, targets=TARGETS[targets]), random_ids(config)
    base = exported_base(config, tmp_path / "base")
    assert type(base).__name__ == architecture
    save_adapter(tmp_path / "ours", model)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "ours").double().eval()
    assert not torch.allclose(model(ids), random_model(config)(ids), atol=0.1)
    # transformers computes RMSNorm and rotary angles in float32 for any dtype
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    for folder in ("ours", "theirs"):
        back = random_model(config)
        load_adapter(tmp_path / folder, back)
        torch.testing.assert_close(back(ids), model(ids), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_fused_matrix_gets_one_adapter_of_blocks(peft, tmp_path):
    """Three adapters of rank 3 become one of rank 9; read and saved again, it stays one of rank 9."""
    model = adapted(GPT2, targets=["attention"])
    save_adapter(tmp_path / "a", model)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    name = "base_model.model.transformer.h.1.attn.c_attn.lora_{}.weight"
    a, b = weights[name.format("A")], weights[name.format("B")]
    assert (a.shape, b.shape) == ((9, 32), (96, 9))
    layers = lora_layers(model)
    for number, part in enumerate(("query", "key", "value")):
        layer = layers[f"blocks.1.attention.{part}"]
        assert torch.equal(a[3 * number : 3 * number + 3], layer.lora_a["default"])
        block = b[32 * number : 32 * number + 32]
        assert torch.equal(block[:, 3 * number : 3 * number + 3], layer.lora_b["default"])
        assert block.count_nonzero() <= 32 * 3
    again = random_model(GPT2)
    load_adapter(tmp_path / "a", again)
    save_adapter(tmp_path / "b", again)
    written = load_file(tmp_path / "b" / "adapter_model.safetensors")
    assert all(torch.equal(written[key], weights[key]) for key in weights)


def test_a_model_without_a_counterpart_keeps_our_names(tmp_path):
    config = ModelConfig(**SHAPE, positional_encoding="sinusoidal")
    model = adapted(config)
    save_adapter(tmp_path / "a", model)
    assert all(".blocks." in key for key in load_file(tmp_path / "a" / "adapter_model.safetensors"))
    back = random_model(config)
    load_adapter(tmp_path / "a", back)
    assert torch.equal(back(random_ids(config)), model(random_ids(config)))


# --- in

PROJECTIONS = {
    "LlamaForCausalLM": ["q_proj", "v_proj", "down_proj"],
    "GPT2LMHeadModel": ["c_attn", "mlp.c_proj"],
}
FIRST_AND_OTHERS = {"LlamaForCausalLM": ("q_proj", "down_proj"), "GPT2LMHeadModel": ("c_attn", "mlp.c_proj")}
ACCEPTED = {
    "plain": {},
    "gaussian": dict(init_lora_weights="gaussian"),
    "uninitialized": dict(init_lora_weights=False),
    "orthogonal": dict(init_lora_weights="orthogonal"),
    "rsLoRA": dict(use_rslora=True),
    "layers_to_transform": dict(layers_to_transform=[1]),
    "one layer of a pattern": dict(layers_to_transform=0, layers_pattern=["layers", "h"]),
    "exclude_modules": dict(exclude_modules=["0.self_attn.q_proj", "h.0.attn.c_attn"]),
    "a regular expression": dict(target_modules=r".*\.1\..*(q_proj|c_fc|up_proj)"),
    "all-linear": dict(target_modules="all-linear"),
    "dropout": dict(lora_dropout=0.3),
    "trained from other data": dict(base_model_name_or_path="nowhere/else", revision="main"),
}


@pytest.mark.parametrize("options", ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_an_adapter_of_peft_gives_the_same_logits(form, options, peft, tmp_path):
    check_equal_to_peft(form, options, peft, tmp_path)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_patterns_of_ranks_and_alphas_are_those_of_peft(form, rslora, peft, tmp_path):
    first, other = FIRST_AND_OTHERS[form]
    ranks = {first: 2, rf".*\.1\..*{other}": 6}
    check_equal_to_peft(form, dict(rank_pattern=ranks, alpha_pattern={other: 7}, use_rslora=rslora), peft, tmp_path)


@pytest.mark.parametrize("kind", ["eva", "mica"])
@torch.no_grad()
def test_initializations_that_leave_the_base_alone_are_accepted(kind, peft, tmp_path):
    if kind == "mica" and "mica" not in str(peft.LoraConfig.__dataclass_fields__["init_lora_weights"].type):
        pytest.skip("this version of peft has no MiCA")
    check_equal_to_peft("LlamaForCausalLM", dict(init_lora_weights=kind), peft, tmp_path, dtype=torch.float32)


def check_equal_to_peft(form, options, peft, tmp_path, dtype=torch.float64) -> None:
    config, ids = FORMS[form], random_ids(FORMS[form])
    base = exported_base(config, tmp_path / "base").to(dtype)
    options = {"r": 4, "lora_alpha": 6, "target_modules": PROJECTIONS[form], "task_type": "CAUSAL_LM"} | options
    theirs = peft.get_peft_model(base, peft.LoraConfig(**options)).to(dtype).eval()
    randomize(theirs, "lora_")
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    again = peft.PeftModel.from_pretrained(exported_base(config, tmp_path / "base").to(dtype), tmp_path / "adapter")
    expected = again.to(dtype).eval()(ids).logits
    ours = random_model(config).to(dtype)
    assert not torch.allclose(expected.double(), random_model(config)(ids), atol=0.05)
    load_adapter(tmp_path / "adapter", ours)
    torch.testing.assert_close(ours(ids), expected, rtol=0, atol=1e-5)


REFUSED = {
    "PiSSA": (dict(init_lora_weights="pissa"), 'init_lora_weights is "pissa", which changes the base'),
    "PiSSA by iterations": (dict(init_lora_weights="pissa_niter_4"), 'init_lora_weights is "pissa_niter_4", which'),
    "OLoRA": (dict(init_lora_weights="olora"), 'init_lora_weights is "olora", which changes the base'),
    "aLoRA": (dict(alora_invocation_tokens=[3, 4]), r"alora_invocation_tokens is \[3, 4\], which tinylm does not"),
    "DoRA": (dict(use_dora=True), "use_dora is true, which tinylm does not support"),
    "biases": (dict(bias="lora_only"), 'bias is "lora_only", which tinylm does not support; it must be none'),
    "biases of B": (dict(lora_bias=True), "lora_bias is true, which tinylm does not support"),
    "whole modules": (dict(modules_to_save=["lm_head"]), r'modules_to_save is \["lm_head"\], which tinylm does not'),
    "tokens": (dict(trainable_token_indices=[1, 2]), r"trainable_token_indices is \[1, 2\], which tinylm does not"),
    "replicas": (dict(layer_replication=[[0, 2], [1, 2]]), "layer_replication is .*, which tinylm does not support"),
    "another task": (dict(task_type="SEQ_CLS"), 'task_type is "SEQ_CLS"; tinylm supports only CAUSAL_LM'),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_an_adapter_of_peft_of_another_kind_is_refused_by_name(options, message, peft, tmp_path):
    base = exported_base(ModelConfig(**vars(LLAMA) | {"num_layers": 2}), tmp_path / "base").float()
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options
    task = {"task_type": options.pop("task_type")}
    theirs = peft.get_peft_model(base, peft.LoraConfig(**options))
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    edit(tmp_path / "adapter", task | {"auto_mapping": None})
    check_refused(tmp_path / "adapter", message)


EDITED = {
    "loftq": ({"init_lora_weights": "loftq"}, 'init_lora_weights is "loftq", which changes'),
    "CorDA": ({"init_lora_weights": "corda"}, 'init_lora_weights is "corda", which changes'),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, 'init_lora_weights is "lora_ga", which changes'),
    "a field of the future": ({"use_newlora": {"k": 1}}, r'use_newlora is \{"k": 1\}, which tinylm does not support'),
    "QALoRA": ({"use_qalora": True}, "use_qalora is true"),
    "parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters is "),
    "Megatron": ({"megatron_config": {"a": 1}}, "megatron_config is "),
    "another kind": ({"peft_type": "IA3"}, "is not the config of a LoRA adapter"),
    "a layer left out": ({"target_modules": ["q_proj"]}, "target_modules, .* leave out model.layers.0.*v_proj"),
    "a layer excluded": ({"exclude_modules": ["v_proj"]}, "exclude_modules .* leave out .*v_proj"),
    "layers left out": ({"layers_to_transform": [1]}, "layers_to_transform leave out model.layers.0"),
    "another rank": ({"r": 5}, r"lora_A.weight is not \(5, 32\)"),
    "no rank": ({"r": "x"}, "rank x and alpha 8 of .* must be positive numbers"),
    "no numbers": ({"rank_pattern": [3]}, "rank_pattern must map names of layers to numbers"),
    "no pattern": ({"alpha_pattern": {"(": 3}}, r"alpha_pattern: '\(' is not a regular expression"),
    "no names": ({"target_modules": [3]}, r"target_modules must be a name or a list of names, got \[3\]"),
    "no layers": ({"layers_to_transform": ["x"]}, "layers_to_transform must be a list of numbers"),
    "no probability": ({"lora_dropout": 2}, r"lora_dropout must be in \[0, 1\), got 2"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), EDITED.values(), ids=EDITED)
def test_a_config_that_would_be_misread_is_refused_by_name(change, message, tmp_path):
    plain_adapter(tmp_path / "adapter")
    edit(tmp_path / "adapter", change)
    check_refused(tmp_path / "adapter", message)


def test_fields_without_effect_and_empty_ones_are_ignored(tmp_path):
    plain_adapter(tmp_path / "adapter")
    empty = {"use_dora": False, "modules_to_save": [], "alora_invocation_tokens": None, "a_future_field": {}}
    edit(tmp_path / "adapter", empty | {"peft_version": "9.0", "unsloth_version": "1", "eva_config": {"rho": 2.0}})
    load_adapter(tmp_path / "adapter", random_model(LLAMA))


FOREIGN = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({FOREIGN + "lora_magnitude_vector": torch.ones(3)}, DataError, "lora_magnitude_vector, which the model lacks"),
        ({"base_model.model.lm_head.weight": torch.ones(3)}, DataError, "lm_head.weight, which the model lacks"),
        (
            {FOREIGN + "lora_A.weight": torch.full((8, 32), torch.nan)},
            NumericError,
            "lora_A.weight has weights that are",
        ),
        ({FOREIGN + "lora_B.weight": None}, DataError, "q_proj.lora_B.weight is missing"),
    ],
)
def test_weights_that_would_be_left_out_are_refused_by_name(change, error, message, tmp_path):
    plain_adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file) | change
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, file)
    check_refused(tmp_path / "adapter", message, error)


def test_a_head_is_refused_where_peft_or_the_model_has_no_adapter_for_it(tmp_path):
    """PEFT's `all-linear` leaves the head out; a tied head is the embedding, too."""
    save_adapter(tmp_path / "adapter", adapted(LLAMA, targets=["head", "blocks.0.attention.query"]))
    (tmp_path / "adapter" / "adapter_checksums.json").unlink()
    with pytest.raises(DataError, match="adapts lm_head, which this model ties to the embedding"):
        load_adapter(tmp_path / "adapter", random_model(ModelConfig(**vars(LLAMA) | {"tie_embeddings": True})))
    load_adapter(tmp_path / "adapter", random_model(LLAMA))
    edit(tmp_path / "adapter", {"target_modules": "all-linear"})
    check_refused(tmp_path / "adapter", "leave out lm_head, for which adapter_model.safetensors has weights")


def test_a_pickled_adapter_is_never_opened(tmp_path):
    plain_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"\x80\x04.")
    check_refused(tmp_path / "adapter", "adapter_model.bin: is a pickle, which can execute code")


def test_quantized_layers_take_no_adapters(tmp_path):
    plain_adapter(tmp_path / "adapter")
    model = quantize(random_model(LLAMA).float())
    message = r"blocks.0.attention.query is quantized, .* add them to the original model"
    with pytest.raises(ConfigError, match=message):
        load_adapter(tmp_path / "adapter", model)
    with pytest.raises(ConfigError, match=message):
        add_lora(model, LoRAConfig())


def plain_adapter(folder: Path) -> None:
    """An adapter of two projections as PEFT writes it, without our checksums."""
    names = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(2) for part in "qv"]
    model = adapted(LLAMA, targets=["blocks.*.attention.query", "blocks.*.attention.value"], rank=8, alpha=8.0)
    save_adapter(folder, model)
    (folder / "adapter_checksums.json").unlink()
    edit(folder, {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 8})
    assert {name.removeprefix("base_model.model.").rpartition(".lora_")[0]
            for name in load_file(folder / "adapter_model.safetensors")} == set(names)  # fmt: skip


def edit(folder: Path, change: dict) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def check_refused(folder: Path, message: str, error: type[Exception] = DataError) -> None:
    """Refused in one line, and the model is unchanged."""
    model = random_model(LLAMA)
    with warnings.catch_warnings(), pytest.raises(error, match=message) as caught:
        load_adapter(folder, model)
    assert "\n" not in str(caught.value)
    assert not lora_layers(model)
