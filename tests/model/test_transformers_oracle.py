"""Logits and gradients match those of the same model in Hugging Face's transformers.

Each `*_weights` function maps their tensors to our names. It is linear, so it maps gradients as well as weights.
"""

import pytest
import torch
import torch.nn.functional as F

from tinylm.model import ModelConfig, RingKVCache, TransformerLM

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
    "attention.query": "self_attn.q_proj",
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


def llama_weights(theirs, num_layers):
    """Maps Llama's names, which Mistral and Qwen3 share."""
    ours = {"embedding.weight": theirs["model.embed_tokens.weight"], "final_norm.weight": theirs["model.norm.weight"]}
    if "lm_head.weight" in theirs:
        ours["head.weight"] = theirs["lm_head.weight"]
    for layer in range(num_layers):
        for our, their in LLAMA_PARTS.items():
            name = f"model.layers.{layer}.{their}.weight"
            if name in theirs:
                ours[f"blocks.{layer}.{our}.weight"] = theirs[name]
    return ours


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


every_family = pytest.mark.parametrize("family", [gpt2, llama, qwen3, mistral])


def both_models(family):
    """Their model with random weights, including norms and biases, and ours with the same weights."""
    theirs, config, mapping = family()
    torch.manual_seed(0)
    for name, weight in theirs.named_parameters():
        is_norm = weight.dim() == 1 and name.endswith("weight")
        torch.nn.init.normal_(weight, mean=1.0 if is_norm else 0.0, std=0.2)
    ours = TransformerLM(config)
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
