"""Hugging Face's names of the fields and modules of each family."""

from tinylm.interop.forms import modules

# --- names of fields: ours -> theirs; several names are fields that must be equal

NAMES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings", "norm_eps": "rms_norm_eps", "tie_embeddings": "tie_word_embeddings",
    "activation": "hidden_act", "dropout": "attention_dropout",
}  # fmt: skip
BIASES = {"bias": ("attention_bias", "mlp_bias")}
STARCODER2_NAMES = {
    "norm_eps": "norm_epsilon", "dropout": ("attention_dropout", "residual_dropout", "embedding_dropout"),
    "bias": "use_bias",
}  # fmt: skip
GPT2_NAMES = {
    "vocab_size": "vocab_size", "d_model": "n_embd", "num_layers": "n_layer", "num_heads": "n_head", "d_ff": "n_inner",
    "max_seq_len": "n_positions", "norm_eps": "layer_norm_epsilon", "tie_embeddings": "tie_word_embeddings",
    "activation": "activation_function", "dropout": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
}  # fmt: skip
OPT_NAMES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "d_ff": "ffn_dim", "max_seq_len": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings", "activation": "activation_function",
    "dropout": ("dropout", "attention_dropout"), "bias": "enable_bias",
}  # fmt: skip

NEOX_NAMES = {name: theirs for name, theirs in NAMES.items() if name != "num_kv_heads"} | {
    "norm_eps": "layer_norm_eps", "dropout": ("attention_dropout", "hidden_dropout"),
}  # fmt: skip
PHI_NAMES = NAMES | {"norm_eps": "layer_norm_eps", "dropout": ("attention_dropout", "resid_pdrop", "embd_pdrop")}
NEO_NAMES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_layers": "num_layers", "num_heads": "num_heads",
    "d_ff": "intermediate_size", "max_seq_len": "max_position_embeddings", "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings", "activation": "activation_function",
    "dropout": ("attention_dropout", "resid_dropout", "embed_dropout"),
}  # fmt: skip

# --- names of modules: ours -> theirs; several of ours with one name are concatenated, in our order


LLAMA_BLOCK = {
    "attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm",
    "feedforward.gate": "mlp.gate_proj", "feedforward.input": "mlp.up_proj", "feedforward.output": "mlp.down_proj",
}  # fmt: skip
STARCODER2_BLOCK = LLAMA_BLOCK | {"feedforward.input": "mlp.c_fc", "feedforward.output": "mlp.c_proj"}
GPT2_BLOCK = {
    "attention_norm": "ln_1", "feedforward_norm": "ln_2",
    "attention.query": "attn.c_attn", "attention.key": "attn.c_attn", "attention.value": "attn.c_attn",
    "attention.output": "attn.c_proj", "feedforward.input": "mlp.c_fc", "feedforward.output": "mlp.c_proj",
}  # fmt: skip
OPT_BLOCK = {
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj", "attention_norm": "self_attn_layer_norm",
    "feedforward.input": "fc1", "feedforward.output": "fc2", "feedforward_norm": "final_layer_norm",
}  # fmt: skip
NEOX_BLOCK = {
    "attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm",
    "attention.query": "attention.query_key_value", "attention.key": "attention.query_key_value",
    "attention.value": "attention.query_key_value", "attention.output": "attention.dense",
    "feedforward.input": "mlp.dense_h_to_4h", "feedforward.output": "mlp.dense_4h_to_h",
}  # fmt: skip
NEO_BLOCK = {
    "attention_norm": "ln_1", "feedforward_norm": "ln_2",
    "attention.query": "attn.attention.q_proj", "attention.key": "attn.attention.k_proj",
    "attention.value": "attn.attention.v_proj", "attention.output": "attn.attention.out_proj",
    "feedforward.input": "mlp.c_fc", "feedforward.output": "mlp.c_proj",
}  # fmt: skip
PHI_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.dense", "feedforward.input": "mlp.fc1", "feedforward.output": "mlp.fc2",
}  # fmt: skip
OLMO2_BLOCK = LLAMA_BLOCK | {
    "attention_norm": "post_attention_layernorm", "feedforward_norm": "post_feedforward_layernorm",
}  # fmt: skip
OUTER = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
LLAMA_MODULES = modules("model.layers", LLAMA_BLOCK, **OUTER)
STARCODER2_MODULES = modules("model.layers", STARCODER2_BLOCK, **OUTER)
OLMO2_MODULES = modules("model.layers", OLMO2_BLOCK, **OUTER)
PHI_MODULES = modules("model.layers", PHI_BLOCK, **OUTER | {"final_norm": "model.final_layernorm"})
GPT2_OUTER = {
    "embedding": "transformer.wte", "positions": "transformer.wpe", "final_norm": "transformer.ln_f", "head": "lm_head",
}  # fmt: skip
GPT2_MODULES = modules("transformer.h", GPT2_BLOCK, **GPT2_OUTER)
NEO_MODULES = modules("transformer.h", NEO_BLOCK, **GPT2_OUTER)
NEOX_MODULES = modules(
    "gpt_neox.layers", NEOX_BLOCK, embedding="gpt_neox.embed_in", final_norm="gpt_neox.final_layer_norm",
    head="embed_out",
)  # fmt: skip
OPT_MODULES = modules(
    "model.decoder.layers", OPT_BLOCK, embedding="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions", final_norm="model.decoder.final_layer_norm", head="lm_head",
)  # fmt: skip
