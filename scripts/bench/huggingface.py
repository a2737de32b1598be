"""Compares tinylm with transformers on models of every supported family; prints the table of docs/interop.md.

    python scripts/bench/huggingface.py

Each model has the proportions of a published one in a small width, and random weights, norms and biases included.
transformers makes and saves it, with a config.json in the spelling of the published file; tinylm loads the folder. The
columns are the largest difference of the logits over random texts that fill the context, in float32, in float64, and
in float64 after all that transformers computes in float32 even then (RMSNorm, rotary angles, GPT-Neo's scores) was made
to compute in it; whether 30 greedy tokens are the same, each through its own cache; and whether the folder that tinylm
exports is of the same class, with the same weights and logits, bit for bit.

--tokenizers DIR adds a published tokenizer to the families of TOKENIZERS, and compares ids on random texts and where a
text ends.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported

import torch
import transformers
from safetensors.torch import load_file, save_file

from tinylm.errors import TinyLMError
from tinylm.generation import Generator
from tinylm.interop import export_huggingface, load_huggingface, load_huggingface_model
from tinylm.model import TransformerLM

CONTEXT, VOCABULARY, GREEDY, TEXTS = 96, 211, 30, 2000
IDS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
LLAMA = dict(
    model_type="llama", attention_bias=False, hidden_act="silu", initializer_range=0.02, pretraining_tp=1,
    rms_norm_eps=1e-5, rope_scaling=None, tie_word_embeddings=False, max_position_embeddings=CONTEXT,
    num_hidden_layers=3,
)  # fmt: skip
GPT2 = dict(
    model_type="gpt2", architectures=["GPT2LMHeadModel"], n_ctx=CONTEXT, n_positions=CONTEXT, n_embd=96, n_head=12,
    n_layer=3, initializer_range=0.02, layer_norm_epsilon=1e-5, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1,
)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(type="yarn", factor=4.0, original_max_position_embeddings=CONTEXT // 4)
QWEN = LLAMA | dict(rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True)
QWEN2 = QWEN | dict(
    model_type="qwen2", hidden_size=56, intermediate_size=304, num_attention_heads=14, num_key_value_heads=2,
    use_sliding_window=False, sliding_window=CONTEXT, max_window_layers=21,
)  # fmt: skip
NEOX = dict(
    model_type="gpt_neox", hidden_act="gelu", hidden_size=64, intermediate_size=256, num_attention_heads=4,
    num_hidden_layers=3, max_position_embeddings=CONTEXT, layer_norm_eps=1e-5, rotary_emb_base=10000, rotary_pct=0.25,
    tie_word_embeddings=False, use_parallel_residual=True,
)  # fmt: skip
OPT = dict(
    model_type="opt", hidden_size=96, ffn_dim=384, num_attention_heads=12, num_hidden_layers=3,
    max_position_embeddings=CONTEXT, word_embed_proj_dim=96, activation_function="relu", do_layer_norm_before=True,
    dropout=0.1, attention_dropout=0.0, activation_dropout=0.0, layerdrop=0.0, _remove_final_layer_norm=False,
)  # fmt: skip

MODELS: dict[str, dict[str, Any]] = {  # the fields of config.json, in the spelling of the published files
    "GPT-2": GPT2 | dict(summary_type="cls_index", summary_use_proj=True),
    "distilgpt2, as first published": {k: v for k, v in GPT2.items() if k != "model_type"}
    | dict(pruned_heads={}, torchscript=False, use_bfloat16=False, finetuning_task=None, num_labels=1, n_layer=2),
    "Llama 2": LLAMA | dict(hidden_size=64, intermediate_size=172, num_attention_heads=8, num_key_value_heads=8),
    "Llama 3": LLAMA | dict(
        hidden_size=64, intermediate_size=224, num_attention_heads=8, num_key_value_heads=2, rope_theta=500000.0
    ),
    "Llama 3.2": LLAMA | dict(
        hidden_size=72, intermediate_size=192, num_attention_heads=6, num_key_value_heads=2, rope_theta=500000.0,
        rope_scaling=LLAMA3 | dict(original_max_position_embeddings=CONTEXT // 4), tie_word_embeddings=True,
    ),
    "TinyLlama": LLAMA | dict(hidden_size=64, intermediate_size=176, num_attention_heads=16, num_key_value_heads=2),
    "Mistral": LLAMA | dict(
        model_type="mistral", hidden_size=64, intermediate_size=224, num_attention_heads=8, num_key_value_heads=2,
        rope_theta=10000.0, sliding_window=CONTEXT // 4,
    ),
    "SmolLM2": LLAMA | dict(
        hidden_size=72, intermediate_size=192, num_attention_heads=9, num_key_value_heads=3, head_dim=8,
        rope_theta=100000, tie_word_embeddings=True, is_llama_config=True, rope_interleaved=False,
    ),
    "SmolLM3": LLAMA | dict(
        model_type="smollm3", hidden_size=64, intermediate_size=344, num_attention_heads=16, num_key_value_heads=4,
        num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0], no_rope_layer_interval=4, rope_theta=5000000.0,
        tie_word_embeddings=True, use_sliding_window=False, sliding_window=None, max_window_layers=4,
    ),
    "Qwen2.5": QWEN2,
    "Qwen2.5 with YaRN": QWEN2 | dict(rope_scaling=YARN),
    "Qwen3-0.6B": QWEN | dict(
        model_type="qwen3", hidden_size=64, intermediate_size=192, num_attention_heads=8, num_key_value_heads=4,
        head_dim=16, use_sliding_window=False, sliding_window=None, max_window_layers=28,
    ),
    "Pythia": NEOX,
    "GPT-NeoX, sequential": NEOX | dict(use_parallel_residual=False),
    "TinyStories": dict(
        model_type="gpt_neo", hidden_size=64, num_heads=16, num_layers=4, max_position_embeddings=CONTEXT,
        attention_types=[[["global", "local"], 2]], attention_layers=["global", "local"] * 2, window_size=CONTEXT // 4,
        intermediate_size=None, activation_function="gelu_new", layer_norm_epsilon=1e-5, attention_dropout=0,
        embed_dropout=0, resid_dropout=0,
    ),
    "OLMo 2": LLAMA | dict(
        model_type="olmo2", hidden_size=64, intermediate_size=256, num_attention_heads=8, num_key_value_heads=8,
        rms_norm_eps=1e-6, rope_theta=500000,
    ),
    "StarCoder2": dict(
        model_type="starcoder2", hidden_act="gelu_pytorch_tanh", hidden_size=96, intermediate_size=384,
        num_attention_heads=24, num_key_value_heads=2, num_hidden_layers=3, max_position_embeddings=CONTEXT,
        norm_epsilon=1e-5, norm_type="layer_norm", mlp_type="default", rope_theta=999999.4420358813, use_bias=True,
        sliding_window=CONTEXT // 4, attention_dropout=0.1, embedding_dropout=0.1, residual_dropout=0.1,
    ),
    "phi-1.5": dict(
        model_type="phi", hidden_act="gelu_new", hidden_size=64, intermediate_size=256, num_attention_heads=8,
        num_key_value_heads=8, num_hidden_layers=3, max_position_embeddings=CONTEXT, layer_norm_eps=1e-5,
        partial_rotary_factor=0.5, qk_layernorm=False, rope_scaling=None, rope_theta=10000.0,
        tie_word_embeddings=False, attention_dropout=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    ),
    "OPT-125M": OPT,
    "OPT, norms after": OPT | dict(do_layer_norm_before=False),
    "Arcee": LLAMA | dict(
        model_type="arcee", hidden_act="relu2", hidden_size=80, intermediate_size=576, num_attention_heads=10,
        num_key_value_heads=2, rope_theta=10000.0,
        rope_scaling=YARN | dict(factor=20.0, beta_fast=32.0, beta_slow=1.0, mscale=1.0),
    ),
}  # fmt: skip
TOKENIZERS = {  # model -> what to copy from the folder of tokenizers
    "Qwen2.5": "qwen2.5", "Pythia": "gpt-neox", "phi-1.5": "phi-2", "SmolLM2": "smollm",
    "Llama 2": "llama-sentencepiece.json",
}  # fmt: skip


# --- transformers' models


def make_folder(name: str, folder: Path, vocabulary: int = VOCABULARY) -> torch.nn.Module:
    """Saves a random model of transformers, with a published config.json, and returns it as loaded from the folder."""
    fields = {"vocab_size": vocabulary, **IDS, **MODELS[name]}
    kind = fields.get("model_type", "gpt2")
    folder.mkdir(parents=True)
    config = transformers.AutoConfig.for_model(**{"model_type": kind} | json.loads(json.dumps(fields)))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            one = weight.dim() == 1 and parameter.endswith("weight")  # of norms
            weight.normal_(1.0 if one else 0.0, 0.2 if weight.dim() == 1 else 1.4 * weight.shape[-1] ** -0.5)
        model.get_input_embeddings().weight.mul_(0.5)
        if kind == "opt":
            model.model.decoder.embed_positions.weight[:2] = 0.0  # rows of no position; the export writes zeros
    model.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
    if "model_type" not in MODELS[name]:
        _make_old(folder)
    return model


def _make_old(folder: Path) -> None:
    """Rewrites GPT-2's weights as old versions saved them: names without a prefix, and the causal masks."""
    weights = load_file(folder / "model.safetensors")
    old = {key.removeprefix("transformer."): weight for key, weight in weights.items()}
    layers = {key.split(".")[1] for key in old if key.startswith("h.")}
    old |= {f"h.{layer}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT).tril() for layer in layers}
    old |= {f"h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in layers}
    save_file(old, folder / "model.safetensors")


@contextlib.contextmanager
def everything_in_float64(model: torch.nn.Module) -> Iterator[None]:
    """Gives the name torch.float32 to float64, for norms, rotary angles and scores, and recomputes the frequencies."""
    with mock.patch.multiple(torch, float=torch.float64, float32=torch.float64):
        for module in model.modules():
            if type(module).__name__.endswith("RotaryEmbedding"):
                functions = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS
                function = functions.get(module.rope_type) or module.compute_default_rope_parameters
                module.inv_freq, module.attention_scaling = function(module.config, device=None)
        yield


# --- comparisons


@torch.no_grad()
def differences(model: torch.nn.Module, folder: Path, vocabulary: int) -> tuple[float, float, float]:
    """The largest difference of the logits in float32, in float64, and with everything in float64."""
    ids = torch.randint(vocabulary, (4, CONTEXT), generator=torch.Generator().manual_seed(1))
    ours = load_huggingface_model(folder)

    def difference() -> float:
        return (ours(ids) - model(input_ids=ids).logits).abs().max().item()

    single = difference()
    ours, model = ours.double(), model.double()
    double = difference()
    with everything_in_float64(model):
        return single, double, difference()


@torch.no_grad()
def greedy(ours: TransformerLM, prompt: torch.Tensor) -> list[int]:
    """The most likely continuation through tinylm's cache."""
    cache, ids = ours.make_cache(1), prompt
    found: list[int] = []
    for _ in range(GREEDY):
        ids = ours(ids, cache=cache)[:, -1:].argmax(-1)
        found.append(int(ids))
    return found


def same_text(model: torch.nn.Module, folder: Path, vocabulary: int) -> bool:
    """Whether both continue three prompts with the same tokens."""
    ours = load_huggingface_model(folder)
    for seed in range(3):
        prompt = torch.randint(vocabulary, (1, 10 + 20 * seed), generator=torch.Generator().manual_seed(seed))
        options = dict(do_sample=False, max_new_tokens=GREEDY, pad_token_id=0, eos_token_id=-1)
        theirs = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        if greedy(ours, prompt) != theirs[0, prompt.shape[1] :].tolist():
            return False
    return True


@torch.no_grad()
def same_export(model: torch.nn.Module, folder: Path, out: Path) -> bool:
    """Whether tinylm's export is of the same class, with the same weights, logits and config as what it imported."""
    ours = load_huggingface_model(folder)
    export_huggingface(ours, None, out)
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    expected, found = model.state_dict(), again.state_dict()
    equal = expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    ids = torch.arange(CONTEXT)[None]
    equal = equal and torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    return equal and type(again) is type(model) and load_huggingface_model(out).config == ours.config


def random_texts(count: int) -> Iterator[str]:
    """Texts of letters of many scripts, digits, spaces and punctuation."""
    source = random.Random(0)
    parts = ["the", "Once", " upon", "  ", "\n", "\r\n", "\t", "'ll", "'S", "123", "45678", "...", "<|", "|>", "naïve"]
    parts += [
        "日本語",
        "한국",
        "👩\u200d👧",
        "e\u0301",
        "ß",
        "²",
        "\u3000",
        "Ωμέγα",
        "مرحبا",
        "नमस्ते",
        "def f(x):",
        "{}",
    ]
    for _ in range(count):
        yield "".join(source.choice(parts) + source.choice(["", " ", ""]) for _ in range(source.randrange(12)))


def their_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, as tokenizer.json says: some classes of transformers 5 replace its pre_tokenizer."""
    if (folder / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return transformers.AutoTokenizer.from_pretrained(folder)


def compare_ids(folder: Path) -> str:
    """The share of random texts that both tokenizers cut into the same ids; every second one has an added token."""
    try:
        theirs, ours = their_tokenizer(folder), load_huggingface(folder)[1]
    except TinyLMError as error:
        return str(error).removeprefix(f"{folder}/")
    texts, names, source = [*random_texts(TEXTS)], [*theirs.get_added_vocab()], random.Random(1)
    for i in range(0, len(texts), 2):
        cut = source.randrange(len(texts[i]) + 1)
        texts[i] = texts[i][:cut] + source.choice(names) + texts[i][cut:]
    expected = [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]
    equal = sum(ours.encode(text, allow_special=True) == ids for text, ids in zip(texts, expected, strict=True))
    return f"{equal}/{len(texts)}"


def same_end(model: torch.nn.Module, folder: Path) -> bool:
    """Whether both end a greedy text at the second of two ids in `eos_token_id`, tinylm without printing it."""
    theirs, prompt = their_tokenizer(folder), "Once upon a time"
    inputs = theirs(prompt, return_tensors="pt", return_token_type_ids=False)
    options = dict(do_sample=False, max_new_tokens=GREEDY, pad_token_id=0)
    length = inputs["input_ids"].shape[1]
    endless = model.generate(**inputs, **options, eos_token_id=-1)[0, length:].tolist()
    ends = [next(i for i in range(len(theirs)) if i not in endless), endless[GREEDY // 2]]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": ends}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    found = model.generate(**inputs, **options, eos_token_id=ends)[0, length:].tolist()
    ours = Generator(*load_huggingface(folder))
    text = ours.generate(prompt, temperature=0, max_new_tokens=GREEDY)
    return found[-1] == ends[1] and text == ours.tokenizer.decode(found[:-1], continues=True)


def compare(name: str, work: Path, tokenizers: Path | None = None) -> dict[str, Any]:
    """A row of the table; `work` is an empty folder."""
    vocabulary, source = VOCABULARY, None
    if tokenizers is not None and name in TOKENIZERS:
        source = tokenizers / TOKENIZERS[name]
        shutil.copytree(source, work / "tokenizer") if source.is_dir() else _copy_file(source, work / "tokenizer")
        vocabulary = len(transformers.AutoTokenizer.from_pretrained(work / "tokenizer"))
    folder = work / "in"
    model = make_folder(name, folder, vocabulary)
    row: dict[str, Any] = {
        "text": same_text(model, folder, vocabulary), "export": same_export(model, folder, work / "out"),
    }  # fmt: skip
    row["float32"], row["float64"], row["all float64"] = differences(model, folder, vocabulary)
    if source is not None:
        shutil.copytree(work / "tokenizer", folder, dirs_exist_ok=True)
        row |= {"ids": compare_ids(folder), "end": same_end(model.float(), folder)}
    return row | {"kind": MODELS[name].get("model_type", "gpt2")}


def _copy_file(source: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copy(source, folder / "tokenizer.json")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", type=Path, help="folder of published tokenizers")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="rows to compare (default: all)")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("| model | model_type | float32 | float64 | all in float64 | greedy text | exported again | ids | end |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.models:
        with tempfile.TemporaryDirectory() as work:
            row = compare(name, Path(work), options.tokenizers)
        numbers = " | ".join(f"{row[column]:.0e}" for column in ("float32", "float64", "all float64"))
        answers = " | ".join("equal" if row[column] else "DIFFERENT" for column in ("text", "export"))
        end = {None: "", True: "equal", False: "DIFFERENT"}[row.get("end")]
        print(f"| {name} | `{row['kind']}` | {numbers} | {answers} | {row.get('ids', '')} | {end} |", flush=True)


if __name__ == "__main__":
    main()
