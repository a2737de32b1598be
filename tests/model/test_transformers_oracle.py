"""Logits and gradients match those of the same model in Hugging Face's transformers.

Each `*_weights` function maps their tensors to our names. It is linear, so it maps gradients as well as weights.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from tinylm.model import ModelConfig, RingKVCache, RopeScaling, TransformerLM
from tinylm.model.positional import rotary_table

transformers = pytest.importorskip("transformers", reason="the oracle is transformers itself")

V, T = 37, 24
ATOL = 1e-5  # logits and gradients are of the order of one
SHAPE = dict(vocab_size=V, d_model=32, num_layers=2, max_seq_len=T)
THEIR_SHAPE = dict(vocab_size=V, hidden_size=32, num_hidden_layers=2, max_position_embeddings=T)
THEIR_SHAPE |= dict(num_attention_heads=4, intermediate_size=44, attn_implementation="eager")


def gpt2_weights(theirs, num_layers):
    def transposed(name):  # their Conv1D stores (inputs, outputs)
        return theirs[name].mT if name.endswith("weight") else theirs[name]

    ours = {"embedding.weight": theirs["transformer.wte.weight"], "positions.weight": theirs["transformer.wpe.weight"]}
    for kind in ("weight", "bias"):
        ours[f"final_norm.{kind}"] = theirs[f"transformer.ln_f.{kind}"]
        for layer in range(num_layers):
            our, their = f"blocks.{layer}", f"transformer.h.{layer}"
            projections = transposed(f"{their}.attn.c_attn.{kind}").chunk(3)
            for part, projection in zip(("query", "key", "value"), projections, strict=True):
                ours[f"{our}.attention.{part}.{kind}"] = projection
            ours[f"{our}.attention.output.{kind}"] = transposed(f"{their}.attn.c_proj.{kind}")
            ours[f"{our}.feedforward.input.{kind}"] = transposed(f"{their}.mlp.c_fc.{kind}")
            ours[f"{our}.feedforward.output.{kind}"] = transposed(f"{their}.mlp.c_proj.{kind}")
            ours[f"{our}.attention_norm.{kind}"] = theirs[f"{their}.ln_1.{kind}"]
            ours[f"{our}.feedforward_norm.{kind}"] = theirs[f"{their}.ln_2.{kind}"]
    return ours


LLAMA_PARTS = {
    "attention.query": "self_attn.q_proj",  # with biases in Qwen2
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",  # Qwen3 has these two
    "attention.key_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "feedforward_norm": "post_attention_layernorm",
    "feedforward.gate": "mlp.gate_proj",
    "feedforward.input": "mlp.up_proj",
    "feedforward.output": "mlp.down_proj",
}


def llama_weights(theirs, num_layers, parts=LLAMA_PARTS):
    """Maps Llama's names, which Mistral, Qwen, SmolLM3 and OLMo 2 share."""
    ours = {"embedding.weight": theirs["model.embed_tokens.weight"], "final_norm.weight": theirs["model.norm.weight"]}
    if "lm_head.weight" in theirs:
        ours["head.weight"] = theirs["lm_head.weight"]
    for layer in range(num_layers):
        for our, their in parts.items():
            for kind in ("weight", "bias"):
                name = f"model.layers.{layer}.{their}.{kind}"
                if name in theirs:
                    ours[f"blocks.{layer}.{our}.{kind}"] = theirs[name]
    return ours


KINDS = ("weight", "bias")
OLMO2_NORMS = {"attention_norm": "post_attention_layernorm", "feedforward_norm": "post_feedforward_layernorm"}
PHI_PARTS = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.dense",
    "attention_norm": "input_layernorm",
    "feedforward.input": "mlp.fc1",
    "feedforward.output": "mlp.fc2",
}
NEOX_PARTS = {
    "attention.output": "attention.dense",
    "attention_norm": "input_layernorm",
    "feedforward_norm": "post_attention_layernorm",
    "feedforward.input": "mlp.dense_h_to_4h",
    "feedforward.output": "mlp.dense_4h_to_h",
}
GPT_NEO_PARTS = {
    "attention.query": "attn.attention.q_proj",
    "attention.key": "attn.attention.k_proj",
    "attention.value": "attn.attention.v_proj",
    "attention.output": "attn.attention.out_proj",
    "attention_norm": "ln_1",
    "feedforward_norm": "ln_2",
    "feedforward.input": "mlp.c_fc",
    "feedforward.output": "mlp.c_proj",
}


def weights_of(theirs, num_layers, parts, layers, places):
    """Maps weights and biases: `parts` of each layer, whose names begin with `layers`, and single `places`."""
    pairs = dict(places)
    for layer in range(num_layers):
        pairs |= {f"blocks.{layer}.{our}": f"{layers}.{layer}.{their}" for our, their in parts.items()}
    found = {f"{our}.{kind}": theirs.get(f"{their}.{kind}") for our, their in pairs.items() for kind in KINDS}
    return {name: weight for name, weight in found.items() if weight is not None}


def phi_weights(theirs, num_layers):
    places = {"embedding": "model.embed_tokens", "final_norm": "model.final_layernorm", "head": "lm_head"}
    return weights_of(theirs, num_layers, PHI_PARTS, "model.layers", places)


def neox_weights(theirs, num_layers):
    """Their queries, keys and values are one matrix, (heads, 3, E, D)."""
    places = {"embedding": "gpt_neox.embed_in", "final_norm": "gpt_neox.final_layer_norm", "head": "lm_head"}
    ours = weights_of(theirs, num_layers, NEOX_PARTS, "gpt_neox.layers", places)
    for layer in range(num_layers):
        for kind in KINDS:
            joined = theirs[f"gpt_neox.layers.{layer}.attention.query_key_value.{kind}"]
            joined = joined.view(4, 3, 8, *joined.shape[1:])
            for number, name in enumerate(("query", "key", "value")):
                ours[f"blocks.{layer}.attention.{name}.{kind}"] = joined[:, number].flatten(0, 1)
    return ours


def gpt_neo_weights(theirs, num_layers):
    places = {"embedding": "transformer.wte", "positions": "transformer.wpe", "final_norm": "transformer.ln_f"}
    return weights_of(theirs, num_layers, GPT_NEO_PARTS, "transformer.h", places)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=T, attn_implementation="eager",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    ours = dict(positional_encoding="learned", norm="layernorm", activation="gelu_tanh", qk_norm=False, bias=True)
    return transformers.GPT2LMHeadModel(config), ModelConfig(**SHAPE, **ours), gpt2_weights


def llama():
    theta = {"rope_type": "default", "rope_theta": 500.0}
    config = transformers.LlamaConfig(
        **THEIR_SHAPE, num_key_value_heads=2, rms_norm_eps=1e-3, rope_parameters=theta, tie_word_embeddings=False
    )
    ours = dict(num_kv_heads=2, norm_eps=1e-3, rope_theta=500.0, qk_norm=False, tie_embeddings=False, d_ff=44)
    return transformers.LlamaForCausalLM(config), ModelConfig(**SHAPE, **ours), llama_weights


def qwen3():
    config = transformers.Qwen3Config(
        **THEIR_SHAPE, num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-5, tie_word_embeddings=True
    )
    return transformers.Qwen3ForCausalLM(config), ModelConfig(**SHAPE, num_kv_heads=1, d_ff=44), llama_weights


def mistral():
    config = transformers.MistralConfig(
        **THEIR_SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=5, rms_norm_eps=1e-5, tie_word_embeddings=False
    )
    ours = dict(num_kv_heads=2, sliding_window=5, qk_norm=False, tie_embeddings=False, d_ff=44)
    return transformers.MistralForCausalLM(config), ModelConfig(**SHAPE, **ours), llama_weights


def qwen3_of_another_head_width():
    """Qwen3-0.6B has heads of 128 in a width of 1024 with 16 of them."""
    config = transformers.Qwen3Config(
        **THEIR_SHAPE, num_key_value_heads=2, head_dim=12, rms_norm_eps=1e-5, tie_word_embeddings=True
    )
    ours = ModelConfig(**SHAPE, num_kv_heads=2, d_head=12, d_ff=44)
    return transformers.Qwen3ForCausalLM(config), ours, llama_weights


def qwen2():
    config = transformers.Qwen2Config(**THEIR_SHAPE, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True)
    ours = ModelConfig(**SHAPE, num_kv_heads=2, d_ff=44, qk_norm=False, qkv_bias=True)
    return transformers.Qwen2ForCausalLM(config), ours, llama_weights


def scaled_llama(kind, their_fields=(), **our_fields):
    """Llama with rotary positions that are scaled by 4, from a context of 6."""
    rope = {"rope_type": kind, "rope_theta": 50.0, "factor": 4.0, **dict(their_fields)}
    config = transformers.LlamaConfig(
        **THEIR_SHAPE, num_key_value_heads=4, rms_norm_eps=1e-5, rope_parameters=rope, tie_word_embeddings=True
    )
    scaling = RopeScaling(kind=kind, factor=4.0, **our_fields)
    ours = ModelConfig(**SHAPE, d_ff=44, qk_norm=False, rope_theta=50.0, rope_scaling=scaling)
    return transformers.LlamaForCausalLM(config), ours, llama_weights


def llama_linear():
    return scaled_llama("linear")


def llama3():
    theirs = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 12}
    return scaled_llama("llama3", theirs, original_max_seq_len=12)


def llama_yarn():
    return scaled_llama("yarn", {"original_max_position_embeddings": 6}, original_max_seq_len=6)


def llama_yarn_of_other_bounds():
    ours = dict(original_max_seq_len=12, beta_fast=4.0, beta_slow=0.5, attention_factor=0.8, truncate=False)
    theirs = {("original_max_position_embeddings" if k == "original_max_seq_len" else k): v for k, v in ours.items()}
    return scaled_llama("yarn", theirs, **ours)


def smollm3():
    config = transformers.SmolLM3Config(
        **THEIR_SHAPE | dict(num_hidden_layers=5), num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True,
        no_rope_layer_interval=4, pad_token_id=None,
    )  # fmt: skip
    ours = ModelConfig(**SHAPE | dict(num_layers=5), num_kv_heads=2, d_ff=44, qk_norm=False, rope_theta=2e6,
                       layer_pattern="LLLN")  # fmt: skip
    return transformers.SmolLM3ForCausalLM(config), ours, llama_weights


def olmo2():
    config = transformers.Olmo2Config(
        **THEIR_SHAPE, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False, pad_token_id=None
    )
    ours = dict(num_kv_heads=2, d_ff=44, norm_placement="output", qk_norm_width="all", tie_embeddings=False)
    parts = LLAMA_PARTS | OLMO2_NORMS
    return transformers.Olmo2ForCausalLM(config), ModelConfig(**SHAPE, **ours), partial(llama_weights, parts=parts)


def phi(attention="eager"):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    config = transformers.PhiConfig(
        **THEIR_SHAPE | dict(attn_implementation=attention), rope_parameters=rope, tie_word_embeddings=False
    )
    ours = dict(rotary_fraction=0.5, residual="parallel_one_norm", norm="layernorm", activation="gelu_tanh", bias=True,
                head_bias=True, qk_norm=False, tie_embeddings=False, d_ff=44)  # fmt: skip
    return transformers.PhiForCausalLM(config), ModelConfig(**SHAPE, **ours), phi_weights


def gpt_neox(attention="eager"):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    config = transformers.GPTNeoXConfig(
        **THEIR_SHAPE | dict(attn_implementation=attention), rope_parameters=rope, tie_word_embeddings=False
    )
    ours = dict(rotary_fraction=0.25, residual="parallel", norm="layernorm", activation="gelu", bias=True,
                qk_norm=False, tie_embeddings=False, d_ff=44)  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config), ModelConfig(**SHAPE, **ours), neox_weights


def gpt_neo():
    config = transformers.GPTNeoConfig(
        vocab_size=V, hidden_size=32, num_layers=4, num_heads=4, max_position_embeddings=T, intermediate_size=44,
        attention_types=[[["global", "local"], 2]], window_size=5, attn_implementation="eager",
        resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    ours = dict(positional_encoding="learned", norm="layernorm", activation="gelu_tanh", bias=True, qkv_bias=False,
                qk_norm=False, d_ff=44, layer_pattern="LS", sliding_window=5, attention_scale=1.0)  # fmt: skip
    return transformers.GPTNeoForCausalLM(config), ModelConfig(**SHAPE | dict(num_layers=4), **ours), gpt_neo_weights


FAMILIES = [gpt2, llama, qwen3, mistral, qwen3_of_another_head_width, qwen2, llama_linear, llama3, llama_yarn,
            llama_yarn_of_other_bounds, smollm3, olmo2, phi, gpt_neox, gpt_neo]  # fmt: skip
every_family = pytest.mark.parametrize("family", FAMILIES)


def both_models(family):
    """Their model with random weights, including norms and biases, and ours with the same weights."""
    theirs, config, mapping = family()
    torch.manual_seed(0)
    for name, weight in theirs.named_parameters():
        is_norm = weight.dim() == 1 and name.endswith("weight")
        torch.nn.init.normal_(weight, mean=1.0 if is_norm else 0.0, std=0.2)
    ours = TransformerLM(config).to(next(theirs.parameters()).dtype)
    weights = mapping(dict(theirs.named_parameters()), config.num_layers)
    parameters = dict(ours.named_parameters())
    assert weights.keys() == parameters.keys()
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
    return theirs.eval(), ours.eval(), mapping


def token_ids():
    return torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))


@every_family
@torch.no_grad()
def test_logits_match_transformers(family):
    theirs, ours, _ = both_models(family)
    ids = token_ids()
    expected = theirs(input_ids=ids, use_cache=False).logits
    assert expected.std() > 0.5  # large enough for a mistake to show
    torch.testing.assert_close(ours(ids), expected, rtol=0.0, atol=ATOL)


@every_family
def test_gradients_match_transformers(family):
    """Gradients of the next-token loss for every weight."""
    theirs, ours, mapping = both_models(family)
    ids = token_ids()
    theirs(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    F.cross_entropy(ours(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = mapping({name: weight.grad for name, weight in theirs.named_parameters()}, ours.config.num_layers)
    found = {name: weight.grad for name, weight in ours.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=0.0, atol=ATOL)


@every_family
@torch.no_grad()
def test_cached_decode_matches_transformers(family):
    """Reads seven tokens at once and the rest one by one, against their full forward pass."""
    theirs, ours, _ = both_models(family)
    ids, cache = token_ids(), RingKVCache(ours.config, batch_size=3)
    logits = torch.cat([ours(part, cache=cache) for part in ids.split([7, *[1] * (T - 7)], dim=1)], dim=1)
    torch.testing.assert_close(logits, theirs(input_ids=ids, use_cache=False).logits, rtol=0.0, atol=ATOL)


@pytest.mark.parametrize("family", [phi, gpt_neox])
@torch.no_grad()
def test_logits_match_transformers_in_float64(family):
    """These two compute in the model's type, except for the angles, which they are given in float64 here."""
    theirs, config, mapping = family("sdpa")
    theirs, ours, _ = both_models(lambda: (theirs.double(), config, mapping))
    width = config.rotary_dim
    angles = torch.outer(torch.arange(T).double(), 10000.0 ** -(torch.arange(0, width, 2).double() / width))
    table = torch.cat((angles, angles), dim=-1)[None]
    theirs.base_model.rotary_emb.forward = lambda *_, **more: (table.cos(), table.sin())
    ids = token_ids()
    torch.testing.assert_close(ours(ids), theirs(input_ids=ids, use_cache=False).logits, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("width", [8, 12, 64])
@pytest.mark.parametrize("theta", [50.0, 10000.0, 5e5])
@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(kind="linear", factor=3.0),
        RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=64),
        RopeScaling(kind="llama3", factor=32.0, original_max_seq_len=128, low_freq_factor=1.5, high_freq_factor=2.0),
        RopeScaling(kind="llama3", factor=2.0),
        RopeScaling(kind="yarn", factor=4.0, original_max_seq_len=64),
        RopeScaling(kind="yarn", factor=16.0, original_max_seq_len=32, truncate=False),
        RopeScaling(kind="yarn", factor=1.0),
        RopeScaling(kind="yarn", factor=4.0, original_max_seq_len=4),  # too short for a single turn
        RopeScaling(
            kind="yarn", factor=4.0, original_max_seq_len=64, beta_fast=8.0, beta_slow=2.0, attention_factor=2.0
        ),
    ],
    ids=str,
)
def test_scaled_frequencies_match_transformers(scaling, theta, width):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = dict(low_freq_factor=scaling.low_freq_factor, high_freq_factor=scaling.high_freq_factor)
    if scaling.kind == "yarn":
        names = ("beta_fast", "beta_slow", "attention_factor", "truncate")
        fields = {name: getattr(scaling, name) for name in names}
    if scaling.original_max_seq_len is not None:
        fields["original_max_position_embeddings"] = scaling.original_max_seq_len
    rope = {"rope_type": scaling.kind, "rope_theta": theta, "factor": scaling.factor, **fields}
    config = transformers.LlamaConfig(
        hidden_size=width, num_attention_heads=1, max_position_embeddings=256, rope_parameters=rope
    )
    frequencies, size = ROPE_INIT_FUNCTIONS[scaling.kind](config, "cpu")
    angles = frequencies.double()  # of position 1
    found = rotary_table(256, width, theta, scaling)[:, 1]
    torch.testing.assert_close(found, size * torch.stack((angles.cos(), angles.sin())), rtol=0.0, atol=1e-6)
    assert not torch.allclose(found, rotary_table(2, width, theta)[:, 1]) or scaling.factor == 1
