"""The plug-ins in scripts/examples: equal to transformers' modules in float64, trained, stored and generated from."""

import contextlib
import shutil
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

import tinylm
from scripts.bench.huggingface import everything_in_float64
from tests.model.test_transformers_oracle import LLAMA_PARTS, llama_weights
from tests.strategies import random_model
from tests.training.conftest import cli, corpus  # noqa: F401 (fixtures)
from tinylm import plugins
from tinylm.bundle import save_bundle
from tinylm.errors import ConfigError
from tinylm.generation import Generator
from tinylm.generation.fast.modules import ModuleDecoder
from tinylm.generation.uncached import UncachedDecoder
from tinylm.model import Int8KVCache, ModelConfig, RingKVCache, TransformerLM, flops_per_token, parameter_count
from tinylm.runs.metrics import read_metrics
from tinylm.tokenizer import CharTokenizer

transformers = pytest.importorskip("transformers", reason="the oracle is transformers itself")
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe  # noqa: E402
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "examples"
sys.path.append(str(EXAMPLES))
plugins.trust(["moe", "mla"])

V, T, D = 37, 12, 16
LETTERS = CharTokenizer("abcdefghij")
exactly = partial(torch.testing.assert_close, rtol=0.0, atol=1e-10)


def moe(**init_args) -> dict:
    return {"class_path": "moe.MixtureOfExperts", "init_args": {"experts": 6, "width": 10, **init_args}}


def mla(**init_args) -> dict:
    return {"class_path": "mla.LatentAttention", "init_args": {"latent": 6, **init_args}}


def config(**fields) -> ModelConfig:
    shape = dict(vocab_size=V, d_model=D, num_layers=2, num_heads=4, max_seq_len=T, d_head=8, rotary_fraction=0.5)
    return ModelConfig.from_dict({**shape, **fields})


def randomized(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for weight in model.parameters():
        nn.init.normal_(weight, mean=1.0 if weight.dim() == 1 else 0.0, std=0.3)
    return model.double().eval()


def filled(model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys()
    model.double().load_state_dict({name: weight.detach() for name, weight in weights.items()})
    return model.eval()


@pytest.fixture
def float64():
    """A function that lets a model of transformers compute norms, angles and probabilities in float64."""
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double), contextlib.ExitStack() as stack:

        def enter(model: nn.Module) -> nn.Module:
            stack.enter_context(everything_in_float64(model))
            return model

        yield enter


def ids(rows: int = 3) -> torch.Tensor:
    return torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(1))


# --- mixture of experts


def expert_weights(theirs, their: str, our: str) -> dict[str, torch.Tensor]:
    """Their experts are two tensors, (N, 2F, D) and (N, D, F)."""
    gates, inputs = theirs[f"{their}.experts.gate_up_proj"].chunk(2, dim=1)
    parts = {"gate": gates, "input": inputs, "output": theirs[f"{their}.experts.down_proj"]}
    found = {f"{our}.router.weight": theirs[f"{their}.gate.weight"]}
    for part, experts in parts.items():
        found |= {f"{our}.experts.{index}.{part}.weight": weight for index, weight in enumerate(experts)}
    return found


def sparse_weights(theirs, num_layers: int) -> dict[str, torch.Tensor]:
    parts = {our: their for our, their in LLAMA_PARTS.items() if "mlp" not in their}
    found = llama_weights(theirs, num_layers, parts)
    for layer in range(num_layers):
        found |= expert_weights(theirs, f"model.layers.{layer}.mlp", f"blocks.{layer}.feedforward")
    return found


THEIRS = dict(vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              num_experts_per_tok=2, max_position_embeddings=T, rms_norm_eps=1e-5, attn_implementation="sdpa",
              tie_word_embeddings=False, head_dim=8, experts_implementation="eager")  # fmt: skip


def mixtral():
    theirs = transformers.MixtralConfig(**THEIRS, num_local_experts=6, intermediate_size=10)
    return transformers.MixtralForCausalLM(theirs), dict(qk_norm=False, rope_theta=1e6, feedforward=moe())


def qwen3_moe():
    theirs = transformers.Qwen3MoeConfig(**THEIRS, num_experts=6, moe_intermediate_size=10, norm_topk_prob=True)
    return transformers.Qwen3MoeForCausalLM(theirs), dict(feedforward=moe())


def qwen3_moe_not_normalized():
    theirs = transformers.Qwen3MoeConfig(**THEIRS, num_experts=6, moe_intermediate_size=10, norm_topk_prob=False)
    return transformers.Qwen3MoeForCausalLM(theirs), dict(feedforward=moe(normalize=False))


@pytest.mark.parametrize("family", [mixtral, qwen3_moe, qwen3_moe_not_normalized])
def test_sparse_models_match_transformers(family, float64):
    """Logits, with and without a cache, and the gradients of all weights, router and experts included."""
    theirs, fields = family()
    theirs = float64(randomized(theirs))
    fields |= dict(num_kv_heads=2, tie_embeddings=False, rotary_fraction=1.0)
    ours = filled(TransformerLM(config(**fields)), sparse_weights(dict(theirs.named_parameters()), 2))
    tokens, block = ids(), theirs.model.layers[1].mlp
    expected = theirs(input_ids=tokens, use_cache=False).logits
    exactly(ours(tokens), expected)
    assert expected.std() > 0.5
    x = torch.randn(2, 5, D, dtype=torch.float64)
    exactly(ours.blocks[1].feedforward(x), block(x))
    with torch.no_grad():
        cache = RingKVCache(ours.config, 3, dtype=torch.float64)
        exactly(torch.cat([ours(part, cache=cache) for part in tokens.split([7, 1, 4], 1)], 1), expected)
    probe = torch.randn_like(expected)
    (expected * probe).sum().backward()
    (ours(tokens) * probe).sum().backward()
    gradients = sparse_weights({name: weight.grad for name, weight in theirs.named_parameters()}, 2)
    found = {name: weight.grad for name, weight in ours.named_parameters()}
    torch.testing.assert_close(found, gradients, rtol=1e-9, atol=1e-9)
    assert all(found[f"blocks.0.feedforward.{name}.weight"].abs().sum() > 0 for name in ("router", "experts.0.gate"))


def test_a_shared_expert_matches_deepseek_v2(float64):
    theirs = transformers.DeepseekV2Config(
        hidden_size=D, moe_intermediate_size=10, num_experts_per_tok=3, n_routed_experts=6, n_shared_experts=2,
        num_attention_heads=4, topk_method="greedy", routed_scaling_factor=1.0, experts_implementation="eager",
    )  # fmt: skip
    theirs = float64(randomized(DeepseekV2Moe(theirs)))
    weights = dict(theirs.named_parameters())
    mapped = expert_weights({f"mlp.{name}": weight for name, weight in weights.items()}, "mlp", "")
    names = {"gate": "gate_proj", "input": "up_proj", "output": "down_proj"}
    mapped |= {f".shared.{our}.weight": weights[f"shared_experts.{their}.weight"] for our, their in names.items()}
    part = plugins.Part.of(moe(top_k=3, shared=20, normalize=False))
    ours = filled(part.make(config()), {name[1:]: weight for name, weight in mapped.items()})
    x = torch.randn(2, 5, D, dtype=torch.float64)
    exactly(ours(x), theirs(x))


def test_the_auxiliary_loss_matches_transformers_and_is_top_k_if_balanced(float64):
    layer = randomized(plugins.Part.of(moe(balance=0.5)).make(config())).train()
    x = torch.randn(2, 50, D, dtype=torch.float64)
    layer(x)
    expected = load_balancing_loss_func((layer.router(x.flatten(0, 1)),), num_experts=6, top_k=2)
    torch.testing.assert_close(layer.auxiliary_loss / 0.5, expected.double(), rtol=0.0, atol=1e-6)  # counts in float32
    assert layer.auxiliary_loss / 0.5 > 2
    (gradient,) = torch.autograd.grad(layer.auxiliary_loss, layer.router.weight)
    (other,) = torch.autograd.grad(0.5 * expected, layer.router.weight)
    torch.testing.assert_close(gradient, other.double(), rtol=0.0, atol=1e-6)
    nn.init.zeros_(layer.router.weight)  # P_e = 1/N, whatever is chosen
    layer(x)
    exactly(layer.auxiliary_loss.detach() / 0.5, torch.tensor(2.0, dtype=torch.float64))
    layer.eval()(x)
    assert layer.auxiliary_loss is None


def test_experts_without_tokens_have_a_gradient_of_zero():
    """A weight without a gradient would stop training on several devices."""
    layer = plugins.Part.of(moe(experts=40)).make(config()).train()
    layer(torch.randn(1, 3, D)).sum().backward()
    assert all(weight.grad is not None for weight in layer.parameters())
    assert sum(bool((expert.gate.weight.grad == 0).all()) for expert in layer.experts) >= 40 - 2 * 3


def test_recomputed_blocks_have_the_same_gradients_and_auxiliary_loss():
    gradients = []
    for again in (False, True):
        fields = dict(feedforward=moe(balance=1.0), attention=mla(), activation_checkpointing=again)
        model = random_model(config(**fields)).double().train()
        loss = model(ids(), targets=ids())
        (loss + sum(block.feedforward.auxiliary_loss for block in model.blocks)).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    exactly(*gradients)


def test_a_sparse_model_costs_its_active_parameters():
    sparse, dense = config(feedforward=moe(width=10, shared=4)), config(d_ff=2 * 10 + 4)
    router = 2 * 6 * D  # in two layers
    assert parameter_count(sparse) == parameter_count(dense) + router + 2 * 4 * 3 * 10 * D
    assert flops_per_token(sparse) == flops_per_token(dense) + 6 * router


# --- latent attention


def latent_weights(theirs, their: str, our: str, interleaved: bool) -> dict[str, torch.Tensor]:
    """Their last 4 of 8 dimensions rotate, in pairs of neighbours if interleaved; ours in halves."""
    order = torch.tensor([0, 2, 1, 3] if interleaved else [0, 1, 2, 3])
    queries = "q_proj" if f"{their}.q_proj.weight" in theirs else "q_b_proj"
    down = theirs[f"{their}.kv_a_proj_with_mqa.weight"]
    query = theirs[f"{their}.{queries}.weight"].unflatten(0, (4, 8))
    up = theirs[f"{their}.kv_b_proj.weight"].unflatten(0, (4, -1))
    found = {
        "query": torch.cat((query[:, :4], query[:, 4:][:, order]), dim=1).flatten(0, 1),
        "latent": down[:-4],
        "rotary_key": down[-4:][order],
        "latent_norm": theirs[f"{their}.kv_a_layernorm.weight"],
        "key": up[:, :4].flatten(0, 1),
        "value": up[:, 4:].flatten(0, 1),
        "output": theirs[f"{their}.o_proj.weight"],
    }
    if queries == "q_b_proj":
        found["query_down"] = theirs[f"{their}.q_a_proj.weight"]
        found["query_norm"] = theirs[f"{their}.q_a_layernorm.weight"]
    return {f"{our}.{name}.weight": weight for name, weight in found.items()}


@pytest.mark.parametrize("kernel", ["plain", "fused"])
@pytest.mark.parametrize(("query_latent", "interleaved"), [(None, True), (5, True), (5, False)])
def test_latent_attention_matches_deepseek_v3(query_latent, interleaved, kernel, float64):
    """The attention, and the logits of a whole model with and without a cache."""
    theirs = transformers.DeepseekV3Config(
        vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=20, first_k_dense_replace=2, max_position_embeddings=T, rms_norm_eps=1e-6,
        kv_lora_rank=6, q_lora_rank=query_latent, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=3,
        rope_interleave=interleaved, attn_implementation="sdpa", num_mtp_layers=0,
    )  # fmt: skip
    theirs = float64(randomized(transformers.DeepseekV3ForCausalLM(theirs)))
    fields = dict(attention=mla(query_latent=query_latent, value_dim=3), attention_kernel=kernel)
    ours = TransformerLM(config(**fields, norm_eps=1e-6, d_ff=20, tie_embeddings=False))
    their_weights = dict(theirs.named_parameters())
    weights = llama_weights(their_weights, 2, {our: their for our, their in LLAMA_PARTS.items() if "attn" not in their})
    for layer in range(2):
        weights |= latent_weights(
            their_weights, f"model.layers.{layer}.self_attn", f"blocks.{layer}.attention", interleaved
        )
    ours, tokens = filled(ours, weights), ids()
    x = torch.randn(2, T, D, dtype=torch.float64)
    angles = theirs.model.rotary_emb(x, torch.arange(T)[None])
    expected, _ = theirs.model.layers[0].self_attn(x, angles, None)
    exactly(ours.blocks[0].attention(x, None, ours.positions(x), None), expected)
    expected = theirs(input_ids=tokens, use_cache=False).logits
    assert expected.std() > 0.3
    exactly(ours(tokens), expected)
    with torch.no_grad():
        cache = RingKVCache(ours.config, 3, dtype=torch.float64)
        exactly(torch.cat([ours(part, cache=cache) for part in tokens.split([7, 1, 4], 1)], 1), expected)


@pytest.mark.parametrize("kind", [RingKVCache, Int8KVCache])
def test_the_cache_is_smaller_by_the_documented_factor(kind):
    """2 H E numbers per token against L + R; in 8 bits each of the two vectors has a scale in float32 besides."""
    shape = dict(d_model=96, num_heads=4, max_seq_len=128, vocab_size=V, num_layers=2)
    usual = kind(ModelConfig(**shape), 1)
    latent = kind(
        ModelConfig.from_dict({**shape, "d_head": 32, "rotary_fraction": 0.25, "attention": mla(latent=32)}), 1
    )
    numbers = 2 * 4 * 24, 32 + 8
    if kind is RingKVCache:
        assert usual.num_bytes / latent.num_bytes == numbers[0] / numbers[1] == 4.8
    else:
        assert usual.num_bytes / latent.num_bytes == (numbers[0] + 8 * 4) / (numbers[1] + 2 * 4)


def test_an_8_bit_cache_of_latents_is_close():
    model = random_model(config(attention=mla())).float()
    model.cache_type = Int8KVCache
    cache = model.make_cache(3)
    with torch.inference_mode():
        found = torch.cat([model(part, cache=cache) for part in ids().split([5, *[1] * 7], 1)], 1)
        expected = model(ids())
    assert (found - expected).abs().max() < 0.05 * expected.std()
    assert not torch.equal(found, expected)


REFUSED = {
    "experts": (dict(feedforward=moe(top_k=7)), "top_k must be from 1 to experts, got top_k=7 and experts=6"),
    "width": (dict(feedforward=moe(width=0)), "width must be at least 1, got 0"),
    "positions": (dict(attention=mla(), positional_encoding="learned", rotary_fraction=1.0), "rotary_fraction below 1"),
    "heads": (dict(attention=mla(), num_kv_heads=2), "leave out num_kv_heads"),
    "latent": (dict(attention=mla(latent=0)), "latent must be at least 1, got 0"),
    "name": (dict(attention=mla(query_latents=3)), "did you mean 'query_latent'?"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_sizes_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TransformerLM(config(**fields))


# --- both, used as any network

NETWORKS = {
    "both": {},
    "window": dict(sliding_window=4),
    "pattern": dict(sliding_window=3, layer_pattern="SN"),
    "documents": dict(document_mask=True),
}


@pytest.mark.parametrize("fields", NETWORKS.values(), ids=NETWORKS)
def test_texts_with_a_cache_are_those_without(fields):
    """Prompts of different lengths in one batch, beyond the context, by the modules with a cache; greedy."""
    network = dict(vocab_size=10, num_layers=2, feedforward=moe(), attention=mla(query_latent=5), **fields)
    model = random_model(config(**network)).double().eval()
    generator = Generator(model, LETTERS)
    assert isinstance(generator.decoder, ModuleDecoder)
    options = dict(max_new_tokens=14, temperature=0.0, batch_size=3)
    prompts = ["a", "bcdefg", "hi", "abcabcabc", "jj"]
    found = generator.complete(prompts, **options)
    plain = Generator(model, LETTERS, UncachedDecoder(model)).complete(prompts, **options)
    assert [each.text for each in found] == [each.text for each in plain]
    for each, other in zip(found, plain, strict=True):
        torch.testing.assert_close(torch.tensor(each.log_probs), torch.tensor(other.log_probs), rtol=0, atol=1e-6)


def test_a_stored_model_is_the_same(tmp_path):
    model = random_model(config(vocab_size=10, feedforward=moe(shared=4), attention=mla())).float().eval()
    save_bundle(tmp_path / "model", model, LETTERS)
    found, _ = tinylm.load(tmp_path / "model", trust=["moe", "mla"])
    torch.testing.assert_close(found(ids() % 10), model(ids() % 10), rtol=0, atol=1e-6)  # memory is aligned otherwise


@pytest.mark.slow
def test_the_configs_train_and_a_trained_model_is_adapted(cli, corpus):  # noqa: F811
    """From copies of the files in the working folder, as the configs say; LoRA adapts the experts too."""
    few = {"trainer.max_steps": 3, "trainer.val_check_interval": 3, "run.sample_tokens": 2, "data.batch_size": 2}
    few |= {"data.corpus": corpus, "data.tokenizer": "char", "data.cache_dir": "cache"}
    words = [f"--{name}={value}" for name, value in few.items()]
    for name in ("moe", "mla"):
        shutil.copy(EXAMPLES / f"{name}.py", ".")
        result = cli("fit", "-c", f"examples/{name}.yaml", "--trust", name, *words)
        assert result.code == 0, result.err
    assert read_metrics("runs/moe/metrics.csv")["train/auxiliary_loss"][1][0] > 0.02 * 2  # balance 0.01, two layers
    start = ["--model.init_from", "runs/moe", "--model.lora.rank", 2, "--run.name", "adapted"]
    result = cli("fit", "-c", "examples/moe.yaml", "--trust", "moe", *words, *start)
    assert result.code == 0, result.err
    adapted, trained = (tinylm.load(f"runs/{name}", trust=["moe"])[0].state_dict() for name in ("adapted", "moe"))
    changed = {name for name in trained if not torch.equal(trained[name], adapted[name])}
    assert "blocks.0.feedforward.experts.0.gate.weight" in changed and "embedding.weight" not in changed
    result = cli("fit", "-c", "examples/mla.yaml", "--trust", "moe", "--trust", "mla", *words, *start[:2])
    assert result.code == 2 and "model.network.d_head: runs/moe/model has None, got 32" in result.error
