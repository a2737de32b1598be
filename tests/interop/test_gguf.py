"""GGUF files: read back by the package gguf, and run by a real llama.cpp from npm."""

import json
import shutil
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.interop.tables import _changes, _rows
from tests.interop.texts import STORIES, random_texts
from tests.strategies import random_model
from tinylm.adapt import LoRAConfig, add_lora, quantize
from tinylm.bundle import save_bundle
from tinylm.commands import main
from tinylm.errors import CannotCreateError, ConfigError
from tinylm.generation import Generator
from tinylm.interop import export_gguf, read_tokenizer_bin
from tinylm.interop.gguf import choose_architecture
from tinylm.interop.gguf_vocabulary import gguf_vocabulary
from tinylm.model import ModelConfig
from tinylm.model.config import RopeScaling
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer, WordTokenizer, load_tokenizer
from tinylm.tokenizer.characters import BYTE_NAMES
from tinylm.tokenizer.fast.pretokenize import DIGITS, QWEN2
from tinylm.tokenizer.pipeline import PipelineTokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf writes the files, and reads them back")

TOKENIZER = BPETokenizer.train_from_texts([STORIES], vocab_size=320, special_tokens=[END_OF_TEXT])
SHAPE = dict(vocab_size=320, d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=256, d_ff=96)
GPT2 = dict(
    positional_encoding="learned", norm="layernorm", activation="gelu_tanh", qk_norm=False, bias=True, num_kv_heads=None
)
LLAMA = dict(qk_norm=False)
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=64)
FORMS = {
    "llama": LLAMA,
    "llama untied": LLAMA | dict(tie_embeddings=False, norm_eps=1e-3, rope_theta=500.0),
    "llama with biases": LLAMA | dict(bias=True, num_kv_heads=1),
    "llama with wide heads": LLAMA | dict(d_head=24),
    "llama 3": LLAMA | dict(rope_scaling=LLAMA3),
    "llama linear": LLAMA | dict(rope_scaling=RopeScaling(kind="linear", factor=4.0)),
    "llama yarn": LLAMA | dict(rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_max_seq_len=64)),
    "qwen2": LLAMA | dict(qkv_bias=True),
    "qwen3": {},
    "qwen3 with wide heads": dict(d_head=32, rope_theta=1e6, tie_embeddings=False),
    "qwen3 linear": dict(rope_scaling=RopeScaling(kind="linear", factor=2.0)),
    "gpt2": GPT2,
    "gpt2 without biases": GPT2 | dict(bias=False, tie_embeddings=False),
}


def new_model(form="llama", dtype=torch.float32, **changes):
    return random_model(ModelConfig(**SHAPE | FORMS[form] | changes), dtype=dtype)


def read(path):
    """The fields and the tensors of a file."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def interleave(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of each head in llama.cpp's order: 0, E/2, 1, E/2 + 1, ..."""
    E = len(rows) // heads
    order = [head * E + half * (E // 2) + i for head in range(heads) for i in range(E // 2) for half in (0, 1)]
    return rows[order]


# --- read back


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_is_stored_bit_for_bit(form, tmp_path):
    model = new_model(form)
    assert export_gguf(model, TOKENIZER, tmp_path / "m.gguf") == form.split()[0]
    _fields, tensors = read(tmp_path / "m.gguf")
    weights, heads = model.state_dict(), {"query": SHAPE["num_heads"], "key": model.config.kv_heads}
    names = {"token_embd.weight": weights["embedding.weight"], "output_norm.weight": weights["final_norm.weight"]}
    names["blk.1.ffn_down.weight"] = weights["blocks.1.feedforward.output.weight"]
    names["blk.0.ffn_norm.weight"] = weights["blocks.0.feedforward_norm.weight"]
    if "untied" in form:
        names["output.weight"] = weights["head.weight"]
    assert ("output.weight" in tensors) == (not model.config.tie_embeddings)
    parts = {part: weights[f"blocks.1.attention.{part}.weight"] for part in ("query", "key", "value")}
    if form.startswith("gpt2"):
        names["blk.1.attn_qkv.weight"] = torch.cat([*parts.values()])
        biases = [weights.get(f"blocks.1.attention.{part}.bias", torch.zeros(64)) for part in parts]
        names["blk.1.attn_qkv.bias"] = torch.cat(biases)
        names["position_embd.weight"] = weights["positions.weight"]
    else:
        swap = interleave if form.startswith("llama") else lambda rows, heads: rows
        names |= {f"blk.1.attn_{part[0]}.weight": swap(parts[part], heads[part]) for part in heads}
        names["blk.1.attn_v.weight"] = parts["value"]
        if model.config.biased_qkv:
            names["blk.1.attn_k.bias"] = swap(weights["blocks.1.attention.key.bias"], model.config.kv_heads)
    for name, expected in names.items():
        found = tensors[name]
        assert found.tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(found.data.view(np.int32), expected.numpy().view(np.int32)), name
    assert sum(tensor.n_elements for tensor in tensors.values()) >= model.num_parameters()


def test_half_precision_rounds_to_nearest_and_vectors_stay_exact(tmp_path):
    model = new_model("gpt2")
    export_gguf(model, TOKENIZER, tmp_path / "m.gguf", "f16")
    _, tensors = read(tmp_path / "m.gguf")
    expected = model.embedding.weight.detach().half().numpy()
    assert np.array_equal(tensors["token_embd.weight"].data.view(np.int16), expected.view(np.int16))
    exact = {name for name, tensor in tensors.items() if tensor.tensor_type == gguf.GGMLQuantizationType.F32}
    assert exact == {name for name, tensor in tensors.items() if len(tensor.shape) == 1} | {"position_embd.weight"}


def test_quantized_matrices_equal_those_of_the_packages_own_quantizer(tmp_path):
    model = new_model("qwen3", d_ff=72)
    export_gguf(model, TOKENIZER, tmp_path / "m.gguf", "q8_0")
    fields, tensors = read(tmp_path / "m.gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    gate, down = tensors["blk.0.ffn_gate.weight"], tensors["blk.0.ffn_down.weight"]
    values = model.blocks[0].feedforward.gate.weight.detach().numpy()
    assert gate.tensor_type == kind and np.array_equal(gate.data, gguf.quants.quantize(values, kind))
    scales = np.abs(values.reshape(-1, 32)).max(axis=1).repeat(32).reshape(values.shape) / 127
    assert (np.abs(gguf.quants.dequantize(gate.data, kind) - values) <= 0.51 * scales + 1e-3 * np.abs(values)).all()
    assert down.tensor_type == gguf.GGMLQuantizationType.F16  # its rows of 72 are no multiple of 32
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0


def test_bfloat16_weights_are_stored_without_rounding(tmp_path):
    model = new_model(dtype=torch.bfloat16)
    export_gguf(model, TOKENIZER, tmp_path / "m.gguf")
    _, tensors = read(tmp_path / "m.gguf")
    assert np.array_equal(tensors["token_embd.weight"].data, model.embedding.weight.detach().float().numpy())


def test_sizes_and_constants_are_those_of_the_config(tmp_path):
    model = new_model("qwen3 with wide heads", norm_eps=1e-3)
    export_gguf(model, TOKENIZER, tmp_path / "m.gguf", name="mine", chat_template="{{ messages }}")
    fields, _ = read(tmp_path / "m.gguf")
    expected = {
        "general.architecture": "qwen3", "general.name": "mine", "qwen3.context_length": 256,
        "qwen3.embedding_length": 64, "qwen3.block_count": 2, "qwen3.feed_forward_length": 96,
        "qwen3.attention.head_count": 4, "qwen3.attention.head_count_kv": 2, "qwen3.attention.key_length": 32,
        "qwen3.attention.value_length": 32, "qwen3.rope.dimension_count": 32, "qwen3.rope.freq_base": 1e6,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-3), "qwen3.vocab_size": 320,
        "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip
    assert {name: fields[name] for name in expected} == expected


def test_several_chat_templates_are_kept_by_name(tmp_path):
    templates = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    export_gguf(new_model(), TOKENIZER, tmp_path / "m.gguf", chat_template=templates)
    fields, _ = read(tmp_path / "m.gguf")
    found = {name: text for name, text in fields.items() if name.startswith("tokenizer.chat_template")}
    assert found.pop("tokenizer.chat_templates", ["tool_use"]) == ["tool_use"]
    assert found == {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}


def test_the_vocabulary_has_names_types_merges_and_marks(tmp_path):
    export_gguf(new_model(vocab_size=330), TOKENIZER, tmp_path / "m.gguf")
    fields, _ = read(tmp_path / "m.gguf")
    names, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert (
        names[:2] == ["!", '"'] and names[319] == END_OF_TEXT and names[320:] == [f"[PAD{i}]" for i in range(320, 330)]
    )
    assert types == [1] * 319 + [3] + [5] * 10
    left, right = TOKENIZER.merges[0]
    assert fields["tokenizer.ggml.merges"][0] == f"{names[left]} {names[right]}"
    marks = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")}
    assert marks == {"bos": 319, "eos": 319, "padding": 319}
    assert fields["tokenizer.ggml.add_bos_token"] is True and fields["tokenizer.ggml.add_eos_token"] is False


def test_marks_become_the_ids_around_a_text_and_further_stops(tmp_path, capsys):
    tokenizer = TOKENIZER.with_special_tokens(["<s>", "<a>", "<b>", "<c>"]).with_marks(320, 319, [319, 321, 322, 323])
    export_gguf(new_model(vocab_size=324), tokenizer, tmp_path / "m.gguf")
    fields, _ = read(tmp_path / "m.gguf")
    marks = {name: fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "eom")}
    assert marks == {"bos": 320, "eos": 319, "eot": 321, "eom": 322}
    assert "llama.cpp will not stop at <c>" in capsys.readouterr().err
    plain = TOKENIZER.with_marks(None, 319, [319])
    export_gguf(new_model(), plain, tmp_path / "plain.gguf")
    fields, _ = read(tmp_path / "plain.gguf")
    assert fields["tokenizer.ggml.add_bos_token"] is False and fields["tokenizer.ggml.bos_token_id"] == 319


# --- refusals

REFUSED = {
    "activation=gelu": (GPT2 | dict(activation="gelu"), "activation=gelu: .*activation=gelu_tanh would fit gpt2"),
    "rotary layernorm": (dict(norm="layernorm", qk_norm=False), "norm=layernorm: .*norm=rmsnorm would fit"),
    "post": (LLAMA | dict(norm_placement="post"), "norm_placement=post"),
    "window": (LLAMA | dict(sliding_window=5), "sliding_window=5: .*sliding_window=None would fit"),
    "pattern": (LLAMA | dict(layer_pattern="LN"), "layer_pattern=LN"),
    "none": (LLAMA | dict(positional_encoding="none"), "positional_encoding=none"),
    "part": (LLAMA | dict(rotary_fraction=0.5), "rotary_fraction=0.5"),
    "parallel": (LLAMA | dict(residual="parallel"), "residual=parallel"),
    "scale": (LLAMA | dict(attention_scale=1.0), "attention_scale=1.0"),
    "head bias": (LLAMA | dict(head_bias=True), "head_bias=True"),
    "norm of all heads": (dict(qk_norm_width="all"), "qk_norm_width=all"),
    "qk_norm with biases": (dict(bias=True), "bias=True|qk_norm=True"),
    "grouped gpt2": (GPT2 | dict(num_kv_heads=2), "num_kv_heads=2"),
    "yarn in qwen3": (dict(rope_scaling=RopeScaling(kind="yarn", factor=2.0)), "rope_scaling.kind=yarn"),
    "llama3 in qwen3": (dict(rope_scaling=LLAMA3), "rope_scaling.kind=llama3: not computed by llama.cpp's qwen3"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_llamacpp_does_not_compute_is_refused_by_its_field(name):
    changes, problem = REFUSED[name]
    with pytest.raises(ConfigError, match=problem):
        choose_architecture(ModelConfig(**SHAPE | changes))


@pytest.mark.parametrize(
    "changes",
    [
        dict(sliding_window=256), dict(layer_pattern="L"), dict(attention_scale=0.25), dict(d_head=16),
        dict(qkv_bias=False), dict(sliding_window=300, layer_pattern="LS"),
        dict(dropout=0.1, document_mask=True, attention_kernel="plain", activation_checkpointing=True),
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_change_nothing_are_no_obstacle(changes):
    assert choose_architecture(ModelConfig(**SHAPE | LLAMA | changes)) == "llama"


ARCHITECTURES = {kind: _changes(given) for given, kind in _rows("| tinylm | llama.cpp |")}
TOKENIZERS = {
    "characters": (CharTokenizer.train_from_texts([STORIES], special_tokens=[END_OF_TEXT]), "kind char has no counter"),
    "words": (WordTokenizer.train_from_texts([STORIES]), "kind word has no counterpart in llama.cpp"),
    "a pattern": (BPETokenizer([], "words", [END_OF_TEXT]), "pattern 'words' is not one of llama.cpp's pre-tokenizers"),
    "no end": (BPETokenizer([]), "has no end-of-text token, so llama.cpp would stop at token 11"),
    "a name twice": (BPETokenizer([], "gpt2", ["!"]), "'!' is the name of an ordinary token"),
    "a pad": (ByteTokenizer([END_OF_TEXT, "[PAD258]"]), r"rename those like \[PAD7\]"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_llamacpp_does_not_have_is_refused(name, tmp_path):
    tokenizer, problem = TOKENIZERS[name]
    rows = tokenizer.vocab_size + (name == "a pad")
    with pytest.raises(ConfigError, match=problem):
        export_gguf(new_model(vocab_size=rows), tokenizer, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


BYTES = {"kind": "bpe", **BPETokenizer([]).options()}
PIECES = dict.fromkeys([*BYTE_NAMES, "▁", "a", "b", "▁a", "ab"])
VOCAB = {name: token for token, name in enumerate(PIECES)}
CHARACTERS = {"kind": "characters", "vocab": VOCAB, "merges": [[256, 257], [257, 258]]}
END = {"content": "<|endoftext|>", "id": 300}
SPACED = dict(spaces="normalizer", prefix="always")
PIPELINES = {
    "a space before bytes": (dict(core=BYTES, added=[END], prefix="each"), "a space is put before texts"),
    "a token that takes spaces": (
        dict(core=BYTES, added=[END, {"content": "<x>", "id": 301, "lstrip": True}]),
        "added token '<x>' has lstrip, which llama.cpp lacks",
    ),
    "a whole word": (
        dict(core=CHARACTERS, added=[END, {"content": "<x>", "id": 301, "single_word": True}], **SPACED),
        "added token '<x>' has single_word, which llama.cpp lacks",
    ),
    "a space once": (dict(core=CHARACTERS, added=[END], spaces="words", prefix="first"), "handles spaces differently"),
    "words": (dict(core=CHARACTERS | {"words": True}, added=[END], **SPACED), "handles spaces differently"),
    "a missing merge": (
        dict(core=CHARACTERS | {"merges": [[256, 257]]}, added=[END], **SPACED),
        "llama.cpp would join 'a' and 'b', the merges would not",
    ),
    "no end": (dict(core=CHARACTERS, **SPACED), "so llama.cpp would stop at token 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_that_llamacpp_does_not_have_is_refused(name):
    options, problem = PIPELINES[name]
    tokenizer = PipelineTokenizer(**options)
    with pytest.raises(ConfigError, match=problem):
        gguf_vocabulary(tokenizer, tokenizer.vocab_size)


def test_types_of_tokens_are_those_of_llamacpp(capsys):
    added = [END, {"content": "<x>", "id": 301, "special": False}, {"content": "<unk>", "id": 302}]
    found = gguf_vocabulary(PipelineTokenizer(CHARACTERS, added, **SPACED), 304)
    assert found.types == [6] * 256 + [1] * 5 + [5] * 39 + [3, 4, 2, 5]
    assert found.scores[256:261] == [0.0, 0.0, 0.0, -1.0, -2.0] and found.prefix
    found = gguf_vocabulary(PipelineTokenizer(BYTES, added, normalization="nfc"), 303)
    assert found.types[300:] == [3, 4, 3] and "llama.cpp does not normalize text to NFC" in capsys.readouterr().err


@pytest.mark.parametrize("row", ARCHITECTURES)
def test_the_table_of_the_documentation_names_the_architecture(row):
    assert choose_architecture(ModelConfig(**SHAPE | {"num_kv_heads": None} | ARCHITECTURES[row])) == row


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size: tokenizer 320, model 300"):
        export_gguf(new_model(vocab_size=300), TOKENIZER, tmp_path / "m.gguf")


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_weights_too_large_for_half_precision_are_named(dtype, tmp_path):
    model = new_model()
    model.blocks[1].feedforward.gate.weight.data[3, 5] = 70000.0
    with pytest.raises(ConfigError, match=r"blk\.1\.ffn_gate\.weight has weights beyond 65504; use f32"):
        export_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype)


def test_quantized_layers_are_written_as_what_they_stand_for_and_adapters_are_refused(tmp_path):
    model = new_model()
    quantized = quantize(model)
    export_gguf(quantized, TOKENIZER, tmp_path / "q.gguf")
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    expected = quantized.blocks[1].feedforward.gate.weight
    assert torch.equal(torch.tensor(found["blk.1.ffn_gate.weight"]), expected)
    assert not torch.equal(expected, model.blocks[1].feedforward.gate.weight)
    add_lora(model, LoRAConfig(rank=2))
    with pytest.raises(ConfigError, match="has LoRA adapters; merge_lora"):
        export_gguf(model, TOKENIZER, tmp_path / "m.gguf")


def test_only_a_file_of_tinylm_is_replaced(tmp_path):
    path, model = tmp_path / "m.gguf", new_model()
    export_gguf(model, TOKENIZER, path)
    with pytest.raises(CannotCreateError, match=r"m\.gguf: exists; .* --overwrite"):
        export_gguf(model, TOKENIZER, path)
    export_gguf(model, TOKENIZER, path, "f16", overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["m.gguf"]
    path.write_bytes(b"GGUF\3\0\0\0" + struct.pack("<QQ", 0, 0))
    with pytest.raises(CannotCreateError, match=r"m\.gguf: exists and is not a GGUF file of tinylm"):
        export_gguf(model, TOKENIZER, path, overwrite=True)


def test_the_command_writes_a_file_and_says_how_to_run_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_bundle("m", new_model("qwen3"), TOKENIZER, {"run": "stories"})
    line = ["export", "--model", "m", "--to", "gguf", "--out", "m.gguf"]
    assert main([*line, "--dtype", "q8_0"]) == 0
    shown = capsys.readouterr().out
    assert "m.gguf: qwen3, " in shown and "parameters in q8_0" in shown and "llama-cli -m m.gguf" in shown
    fields, _ = read("m.gguf")
    assert fields["general.name"] == "stories"
    assert main(line) == 73
    assert main(["export", "--model", "m", "--to", "hf", "--out", "h", "--dtype", "f16"]) == 2
    assert "--dtype: only works with --to gguf; leave it out" in capsys.readouterr().err


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main(["export", "--model", "m", "--to", "gguf", "--out", str(tmp_path / "m.gguf")]) == 2
    assert "written by the package gguf; install it: pip install gguf" in capsys.readouterr().err


# --- llama.cpp itself

PATTERNS = {
    "gpt2": "gpt2", "gpt4": "gpt4", "smollm": DIGITS, "qwen2": QWEN2,
}  # fmt: skip
NPM = "npm install --ignore-scripts --omit=optional --no-audit --no-fund --prefix ."
VERSION = "3.22.1"


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory):
    """llamacpp(path, prompts, count, texts) runs a file by a llama.cpp that npm installs into a scratch folder."""
    folder = tmp_path_factory.mktemp("llamacpp")
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("llama.cpp comes from npm, which is not installed")
    packages = [f"{name}@{VERSION}" for name in ("node-llama-cpp", "@node-llama-cpp/linux-x64")]
    done = subprocess.run([*NPM.split(), *packages], cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        pytest.skip(f"npm could not install node-llama-cpp: {done.stderr.strip().splitlines()[-1:]}")
    shutil.copy(Path(__file__).with_name("llamacpp.mjs"), folder)

    def run(path, prompts=(), count=0, texts=()):
        request = {"path": str(path), "prompts": list(prompts), "count": count, "texts": list(texts)}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        line = ["node", "llamacpp.mjs", "request.json", "answer.json"]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "answer.json").read_text(encoding="utf-8"))

    return run


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_llamacpp_writes_the_same_greedy_tokens(form, llamacpp, tmp_path):
    model = new_model(form)
    export_gguf(model, TOKENIZER, tmp_path / "m.gguf", chat_template="{{ messages }}")
    prompts = [[319, *TOKENIZER.encode(text)] for text in ("Once upon a time", "On Monday, the cat")]
    answer = llamacpp(tmp_path / "m.gguf", prompts, 50)
    for prompt, found in zip(prompts, answer["completions"], strict=True):
        ids = list(prompt)
        for _ in range(50):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert found == ids[len(prompt) :]
    assert answer["bos"] == answer["eos"] == 319 and answer["begins"] and answer["template"] == "{{ messages }}"


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [*PATTERNS, "bytes"])
def test_llamacpp_gives_the_same_token_ids(pattern, llamacpp, tmp_path):
    if pattern == "bytes":
        tokenizer = ByteTokenizer([END_OF_TEXT])
    else:
        tokenizer = BPETokenizer.train_from_texts(
            [STORIES + " ".join(random_texts(100))],
            vocab_size=500,
            pattern=PATTERNS[pattern],
            special_tokens=[END_OF_TEXT],
        )
    export_gguf(new_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "m.gguf")
    texts = random_texts(200)
    found = llamacpp(tmp_path / "m.gguf", texts=texts)["ids"]
    assert found == [tokenizer.encode(text) for text in texts]


PUBLISHED = Path(__file__).resolve().parents[3] / "shared/cases/models/tokenizers"


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="shared/cases, with published tokenizers, is not beside the project")
@pytest.mark.parametrize("name", ["gpt-neox", "phi-2", "qwen2.5", "smollm/tokenizer.json"])
def test_llamacpp_gives_the_ids_of_published_tokenizers(name, llamacpp, tmp_path):
    tokenizer = load_tokenizer(PUBLISHED / name)
    model = new_model(vocab_size=tokenizer.vocab_size + 7, d_model=32, d_ff=32, num_layers=1)
    export_gguf(model, tokenizer, tmp_path / "m.gguf")
    texts = [unicodedata.normalize("NFC", text) for text in random_texts(200)]
    found = llamacpp(tmp_path / "m.gguf", texts=texts)["ids"]
    assert found == [tokenizer.encode(text) for text in texts]


@pytest.mark.slow
@torch.no_grad()
def test_llamacpp_reads_pieces_with_scores(llamacpp, tmp_path):
    """SentencePiece's BPE with byte fallback, as of Llama 2: ids and greedy tokens."""
    from tests.interop.test_llama2c import write_tokenizer

    write_tokenizer(tmp_path / "tokenizer.bin", 320)
    tokenizer = read_tokenizer_bin(tmp_path / "tokenizer.bin")
    model = new_model("llama", vocab_size=330)
    export_gguf(model, tokenizer, tmp_path / "m.gguf")
    texts = random_texts(200)
    prompt = [1, *tokenizer.encode("Once upon a time")]
    answer = llamacpp(tmp_path / "m.gguf", [prompt], 50, texts)
    assert answer["ids"] == [tokenizer.encode(text) for text in texts]
    ids = list(prompt)
    for _ in range(50):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert answer["completions"] == [ids[len(prompt) :]] and (answer["bos"], answer["begins"]) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_llamacpp_runs_smaller_types(dtype, llamacpp, tmp_path):
    """Rounding may change a later token of random weights; the first ones are equal."""
    model = new_model("qwen3")
    export_gguf(model, TOKENIZER, tmp_path / "m.gguf", dtype)
    prompt = [319, *TOKENIZER.encode("Once upon a time")]
    found = llamacpp(tmp_path / "m.gguf", [prompt], 5)["completions"][0]
    found = found[: found.index(319)] if 319 in found else found
    text = Generator(model, TOKENIZER).generate("Once upon a time", max_new_tokens=5, temperature=0)
    assert TOKENIZER.decode(found) == text
