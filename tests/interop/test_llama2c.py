"""llama2.c's files: read as run.c computes them, written so that run.c reads them.

`LLAMA2C=folder` names a clone of karpathy/llama2.c, for the tests that compile its run.c.
"""

import itertools
import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.interop.texts import STORIES, random_texts
from tests.strategies import random_model
from tinylm.bundle import load, save_bundle
from tinylm.commands import main
from tinylm.errors import CannotCreateError, ConfigError, DataError, MissingInputError, NumericError
from tinylm.generation import Generator
from tinylm.interop import export_llama2c, load_llama2c, read_tokenizer_bin
from tinylm.locate import command
from tinylm.model import ModelConfig
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer
from tinylm.tokenizer.characters import BYTE_NAMES

SIZES = dict(dim=24, hidden=40, layers=2, heads=4, kv_heads=2, vocab=300, context=16)


# --- the format, written independently of tinylm


def pieces(rows: int) -> list[tuple[bytes, float]]:
    """A vocabulary of SentencePiece's kind: bytes, letters, and the beginnings of frequent words."""
    found = dict.fromkeys(["<unk>", "\n<s>\n", "\n</s>\n", *BYTE_NAMES, " ", *sorted(set(STORIES) - {" ", "\n"})])
    for word, _ in Counter(re.findall(r" ?\w+", STORIES)).most_common():
        found |= dict.fromkeys(word[:size] for size in range(2, len(word) + 1))
    names = [*found][:rows]
    names += [f"<extra {i}>" for i in range(rows - len(names))]
    return [(name.encode(), float(259 - i) if i >= 259 else 0.0) for i, name in enumerate(names)]


def write_tokenizer(path, rows=300, entries=None):
    entries = pieces(rows) if entries is None else entries
    data = struct.pack("<i", max(len(name) for name, _ in entries))
    path.write_bytes(data + b"".join(struct.pack("<fi", score, len(name)) + name for name, score in entries))


def shapes(dim, hidden, layers, heads, kv_heads, vocab, context):
    kv = dim // heads * kv_heads
    return {
        "embedding": (vocab, dim), "attention_norm": (layers, dim), "wq": (layers, dim, dim), "wk": (layers, kv, dim),
        "wv": (layers, kv, dim), "wo": (layers, dim, dim), "ffn_norm": (layers, dim), "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden), "w3": (layers, hidden, dim), "norm": (dim,),
    }  # fmt: skip


ORDER_1 = ["attention_norm", "ffn_norm", "norm", "embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3"]


def write_model(path, version=0, tied=True, theta=10000.0, seed=0, **changes):
    """Writes a file of random weights and returns them."""
    sizes = SIZES | changes
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 if "norm" not in name
        else 1 + 0.3 * torch.randn(shape, generator=generator)
        for name, shape in shapes(**sizes).items()
    }  # fmt: skip
    weights["head"] = weights["embedding"] if tied else torch.randn(weights["embedding"].shape, generator=generator)
    E = sizes["dim"] // sizes["heads"]
    angles = np.outer(np.arange(sizes["context"]), theta ** -(np.arange(0, E, 2) / E))
    tables = {"cos": torch.tensor(np.cos(angles)), "sin": torch.tensor(np.sin(angles))}
    values = [*sizes.values()]
    if version == 0:
        values[5] *= 1 if tied else -1
        header, order = struct.pack("<7i", *values), [*shapes(**sizes), "cos", "sin"]
    else:
        header = b"24ka" + struct.pack("<8iB", version, *values, tied)
        header, order = header.ljust(256, b"\0"), ORDER_1
    order = order if tied else [*order, "head"]
    path.write_bytes(header + b"".join((weights | tables)[name].numpy().astype("<f4").tobytes() for name in order))
    return weights | {"angles": torch.tensor(angles)}


def run(weights, ids, heads, kv_heads):
    """The logits of run.c's network, in float64; rotary pairs are complex numbers."""
    w = {name: weight.double() for name, weight in weights.items()}
    norm = lambda x, weight: weight * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    turn = torch.polar(torch.ones_like(w["angles"]), w["angles"])[: len(ids)]
    rotate = lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)
    x = w["embedding"][ids]
    for layer in range(len(w["wq"])):
        h = norm(x, w["attention_norm"][layer])
        q, k, v = (
            (h @ w[name][layer].T).unflatten(-1, (-1, x.shape[-1] // heads)).transpose(0, 1)
            for name in ("wq", "wk", "wv")
        )
        k, v = (each.repeat_interleave(heads // kv_heads, dim=0) for each in (rotate(k), v))
        attended = F.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
        x = x + attended.transpose(0, 1).flatten(1) @ w["wo"][layer].T
        h = norm(x, w["ffn_norm"][layer])
        x = x + (F.silu(h @ w["w1"][layer].T) * (h @ w["w3"][layer].T)) @ w["w2"][layer].T
    return norm(x, w["norm"]) @ w["head"].T


# --- in


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("changes", [{}, dict(tied=False), dict(kv_heads=4), dict(kv_heads=1, heads=6)])
@torch.no_grad()
def test_logits_are_those_of_llama2c(version, changes, tmp_path):
    weights = write_model(tmp_path / "m.bin", version, **changes)
    model = load_llama2c(tmp_path / "m.bin")
    ids = torch.randint(300, (16,), generator=torch.Generator().manual_seed(1))
    sizes = SIZES | changes
    expected = run(weights, ids, sizes["heads"], sizes["kv_heads"])
    assert expected.std() > 0.3 and model.config.tie_embeddings == changes.get("tied", True)
    torch.testing.assert_close(model.double()(ids[None])[0], expected, rtol=0.0, atol=1e-6)
    assert torch.equal(model.blocks[1].attention.value.weight.float(), weights["wv"][1])


def broken(name):
    def change(path):
        write_model(path, 1 if name.startswith("version") else 0)
        data = bytearray(path.read_bytes())
        match name:
            case "version 2":
                data[4:8] = struct.pack("<i", 2)
            case "version 9":
                data[4:8] = struct.pack("<i", 9)
            case "a cut":
                data = data[:-4]
            case "more":
                data += b"\0\0\0\0"
            case "huge":
                data[8:12] = struct.pack("<i", 4000)
            case "an odd head":
                data[0:4], data[12:16] = struct.pack("<i", 24), struct.pack("<i", 8)
            case "nan":
                data[28:32] = struct.pack("<f", float("nan"))
        path.write_bytes(data)

    return change


BROKEN = {
    "version 2": r"is quantized \(version 2\); export it with llama2\.c's export\.py --version 0",
    "version 9": "has version 9; tinylm reads 0 and 1",
    "a cut": r"has [\d,]+ bytes, its header describes [\d,]+",
    "more": r"has [\d,]+ bytes, its header describes [\d,]+",
    "huge": "its header describes",
    "an odd head": "rotary positions need an even head_dim",
    "nan": "has weights that are not finite",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_or_quantized_file_is_refused(name, tmp_path):
    broken(name)(tmp_path / "m.bin")
    with pytest.raises((DataError, NumericError), match=BROKEN[name]) as raised:
        load_llama2c(tmp_path / "m.bin")
    assert "m.bin" in str(raised.value) and "\n" not in str(raised.value)


def test_rotary_tables_of_another_base_are_refused(tmp_path):
    write_model(tmp_path / "m.bin", theta=1e6)
    with pytest.raises(DataError, match="its rotary table has another base than 10000"):
        load_llama2c(tmp_path / "m.bin")
    data = bytearray((tmp_path / "m.bin").read_bytes())
    data[-16 * 6 * 4 :] = bytes(16 * 6 * 4)  # writers that know run.c leave the tables empty
    (tmp_path / "m.bin").write_bytes(data)
    assert load_llama2c(tmp_path / "m.bin").config.rope_theta == 10000.0


def test_other_commands_name_the_one_that_converts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for version in (0, 1):
        write_model(tmp_path / "m.bin", version)
        line = command("export", "--model", "m.bin", "--to", "tinylm", "--out", "m-tinylm")
        with pytest.raises(DataError, match=re.escape(f"m.bin: is a model of llama2.c; convert it first: {line}")):
            load("m.bin")


# --- the tokenizer


def test_a_tokenizer_has_the_ids_of_sentencepiece(tmp_path):
    """Pairs are joined by the highest score first, and the leftmost of equals, over the whole text."""
    write_tokenizer(tmp_path / "tokenizer.bin")
    tokenizer = read_tokenizer_bin(tmp_path / "tokenizer.bin")
    names = [name.decode() for name, _ in pieces(300)]
    ids = {name: token for token, name in enumerate(names)}
    for text in random_texts(50):
        tokens = [" "]
        for character in text:
            tokens += [character] if character in ids else [f"<0x{byte:02X}>" for byte in character.encode()]
        while joined := [(ids[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(tokens)) if a + b in ids]:
            token, place = min(joined)
            tokens[place : place + 2] = [names[token]]
        assert tokenizer.encode(text) == [ids[token] for token in tokens]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.marks == (1, 1, (1, 2))


@pytest.mark.parametrize("rows", [300, 310])
def test_a_tokenizer_survives_import_and_export(rows, tmp_path):
    write_tokenizer(tmp_path / "tokenizer.bin")
    tokenizer = read_tokenizer_bin(tmp_path / "tokenizer.bin")
    model = random_model(ModelConfig(vocab_size=rows, d_model=24, num_layers=1, qk_norm=False), dtype=torch.float32)
    export_llama2c(model, tokenizer, tmp_path / "out")
    found = read_tokenizer_bin(tmp_path / "out/tokenizer.bin")
    assert found.vocab_size == rows
    assert [found.encode(text) for text in random_texts(50)] == [tokenizer.encode(text) for text in random_texts(50)]


ENTRIES = pieces(300)
TOKENIZERS = {
    "a cut": (lambda data: data[:-1], "ends within a token"),
    "two of one name": (lambda data: data + struct.pack("<fi", 0.0, 3) + b"<s>", "has two tokens of one name"),
    "no bytes": (lambda data: data.replace(b"<0x41>", b"<0x4z>"), "token 68 is '<0x4z>', not '<0x41>'"),
    "no begin": (lambda data: data.replace(b"\n<s>\n", b"\n<t>\n"), r"token 1 is '\\n<t>\\n'"),
    "no UTF-8": (lambda data: data.replace(b"<unk>", b"<un\xff>"), "UnicodeDecodeError"),
    "nothing": (lambda data: b"", "is not a tokenizer of llama2.c"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_damaged_tokenizer_is_refused(name, tmp_path):
    change, problem = TOKENIZERS[name]
    write_tokenizer(tmp_path / "tokenizer.bin")
    (tmp_path / "tokenizer.bin").write_bytes(change((tmp_path / "tokenizer.bin").read_bytes()))
    with pytest.raises(DataError, match=problem) as raised:
        read_tokenizer_bin(tmp_path / "tokenizer.bin")
    assert "tokenizer.bin" in str(raised.value) and "\n" not in str(raised.value)


# --- the command, in and out


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """A model folder made by the command of a model.bin with its tokenizer.bin."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "stories.bin", context=64)
    write_tokenizer(tmp_path / "tokenizer.bin")
    assert main(["export", "--model", "stories.bin", "--to", "tinylm", "--out", "m"]) == 0
    return tmp_path


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_survives_import_and_export_bit_for_bit(tied, imported, capsys):
    write_model(imported / "stories.bin", tied=tied)
    assert main(["export", "--model", "stories.bin", "--to", "tinylm", "--out", "m", "--overwrite"]) == 0
    assert main(["export", "--model", "m", "--to", "llama2c", "--out", "c"]) == 0
    assert "run c/model.bin -z c/tokenizer.bin" in capsys.readouterr().out.replace(os.sep, "/")
    tables = 2 * 16 * 3 * 4  # bytes of cosines and sines, which may differ in the last bit
    end = (300 * 24 * 4) * (not tied)
    read = [path.read_bytes() for path in (imported / "stories.bin", imported / "c/model.bin")]
    weights = [data[: len(data) - end - tables] + data[len(data) - end :] for data in read]
    assert weights[0] == weights[1] and len(read[0]) == len(read[1])


def test_a_missing_tokenizer_is_asked_for(imported, capsys):
    (imported / "tokenizer.bin").unlink()
    assert main(["export", "--model", "stories.bin", "--to", "tinylm", "--out", "x"]) == 66
    assert "stories.bin: found no tokenizer.bin beside it; give it with --tokenizer" in capsys.readouterr().err
    write_tokenizer(imported / "large.bin", 400)
    assert main(["export", "--model", "stories.bin", "--to", "tinylm", "--out", "x", "--tokenizer", "large.bin"]) == 65
    assert "stories.bin: has 300 embeddings, the tokenizer 400 tokens" in capsys.readouterr().err
    with pytest.raises(MissingInputError, match=r"none\.bin: no such file"):
        read_tokenizer_bin("none.bin")


@pytest.mark.slow
def test_a_converted_model_is_scored_generated_from_and_finetuned(imported):
    (imported / "t.txt").write_text(STORIES[:500])
    for name in ("train.jsonl", "val.jsonl"):
        (imported / name).write_text('{"prompt": "Once", "response": " upon a time"}\n' * 20)
    assert main(["generate", "--model", "m", "--prompt", "Once", "--max-new-tokens", "5"]) == 0
    assert main(["score", "--model", "m", "--text", "t.txt"]) == 0
    line = [
        "fit",
        "-c",
        "finetune",
        "--model.init_from",
        "m",
        "--data.pairs",
        "train.jsonl",
        "--trainer.max_steps",
        "2",
    ]
    assert main(line) == 0


def test_only_models_and_tokenizers_that_run_c_computes_are_written(imported):
    model, tokenizer = load("m")
    refused = {
        "qk_norm=True: llama2.c computes only qk_norm=False": dict(qk_norm=True),
        "rope_theta=500.0: llama2.c computes only rope_theta=10000.0": dict(qk_norm=False, rope_theta=500.0),
        "norm_eps=1e-06: llama2.c computes only norm_eps=1e-05": dict(qk_norm=False, norm_eps=1e-6),
        "d_head=8: llama2.c computes only d_head=None": dict(qk_norm=False, d_head=8),
        "bias=True": dict(qk_norm=False, bias=True),
        "activation=gelu": dict(qk_norm=False, activation="gelu"),
    }
    for problem, changes in refused.items():
        other = random_model(ModelConfig(vocab_size=300, d_model=24, num_layers=1, **changes), dtype=torch.float32)
        with pytest.raises(ConfigError, match=re.escape(problem)):
            export_llama2c(other, tokenizer, imported / "c")
    plain = BPETokenizer.train_from_texts([STORIES], vocab_size=300, special_tokens=[END_OF_TEXT])
    with pytest.raises(ConfigError, match=r"tokenizer: kind bpe has no pieces with scores, which llama2\.c needs"):
        export_llama2c(model, plain, imported / "c")
    with pytest.raises(ConfigError, match=r"tokenizer: llama2\.c needs Llama 2's: <s> is 1"):
        export_llama2c(model, tokenizer.with_marks(2, 2, [2]), imported / "c")
    assert not (imported / "c").exists()


def test_only_a_folder_of_tinylm_is_replaced(imported):
    model, tokenizer = load("m")
    export_llama2c(model, tokenizer, "c")
    with pytest.raises(CannotCreateError, match="c: exists"):
        export_llama2c(model, tokenizer, "c")
    export_llama2c(model, tokenizer, "c", overwrite=True)
    Path("c/README.md").write_text("mine")
    with pytest.raises(CannotCreateError, match=r"c: exists and is not a folder of llama2\.c of tinylm"):
        export_llama2c(model, tokenizer, "c", overwrite=True)


# --- run.c itself

PROGRAM = r"""
#define TESTING
#include "run.c"
int main(int argc, char** argv) {  // model tokenizer count: greedy ids after each line of stdin, prompt included
    Transformer t; build_transformer(&t, argv[1]);
    Tokenizer k; build_tokenizer(&k, argv[2], t.config.vocab_size);
    static char text[1 << 16]; int ids[1 << 16];
    for (int n, i; fgets(text, sizeof text, stdin); printf("\n")) {
        text[strcspn(text, "\n")] = 0;
        encode(&k, text, 1, 0, ids, &n);
        for (i = 0; atoi(argv[3]) && i < n + atoi(argv[3]) - 1 && i < t.config.seq_len; i++) {
            float* logits = forward(&t, ids[i], i);
            if (i >= n - 1) ids[i + 1] = sample_argmax(logits, t.config.vocab_size);
        }
        for (int j = 0; j < n + atoi(argv[3]); j++) printf("%d ", ids[j]);
    }
}
"""


@pytest.fixture(scope="module")
def run_c(tmp_path_factory):
    """run_c(folder, count, texts) gives ids by llama2.c's own program, compiled here."""
    source = os.environ.get("LLAMA2C")
    if source is None or shutil.which("gcc") is None:
        pytest.skip("needs gcc, and LLAMA2C=folder with a clone of karpathy/llama2.c")
    folder = tmp_path_factory.mktemp("llama2c")
    (folder / "main.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O2", "-w", f"-I{source}", "main.c", "-o", "main", "-lm"], cwd=folder, check=True)

    def run_c(model, count, texts):
        line = [folder / "main", model / "model.bin", model / "tokenizer.bin", str(count)]
        done = subprocess.run(line, input="\n".join(texts), capture_output=True, text=True, check=True)
        return [[int(token) for token in answer.split()] for answer in done.stdout.splitlines()]

    return run_c


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, dict(num_kv_heads=2, tie_embeddings=False)], ids=str)
def test_run_c_speaks_the_same_hundred_tokens(changes, run_c, tmp_path):
    """In the shape of stories15M, with Llama 2's own tokenizer.bin."""
    tokenizer = read_tokenizer_bin(Path(os.environ["LLAMA2C"]) / "tokenizer.bin")
    shape = dict(vocab_size=32000, d_model=288, d_ff=768, num_layers=6, num_heads=6, max_seq_len=256, qk_norm=False)
    model = random_model(ModelConfig(**shape | changes), dtype=torch.float32)
    export_llama2c(model, tokenizer, tmp_path / "c")
    prompts = ["Once upon a time", "On Monday, the naïve cat"]
    texts = [text.replace("\n", " ") for text in random_texts(200) if "\0" not in text]
    for prompt, found in zip(prompts, run_c(tmp_path / "c", 100, prompts), strict=True):
        ours = Generator(model, tokenizer.with_marks(1, 1, [])).complete([prompt], max_new_tokens=100, temperature=0)[0]
        assert found == [1, *tokenizer.encode(prompt), *ours.ids] and len(ours.ids) == 100
    assert run_c(tmp_path / "c", 0, texts) == [[1, *tokenizer.encode(text)] for text in texts]


@pytest.mark.slow
def test_run_c_and_tinylm_agree_on_an_imported_model(run_c, tmp_path):
    write_model(tmp_path / "model.bin", context=64)
    write_tokenizer(tmp_path / "tokenizer.bin")
    model, tokenizer = load_llama2c(tmp_path / "model.bin"), read_tokenizer_bin(tmp_path / "tokenizer.bin")
    save_bundle(tmp_path / "m", model, tokenizer)
    found = run_c(tmp_path, 40, ["Once"])[0]
    ours = Generator(*load(tmp_path / "m")).complete(["Once"], max_new_tokens=40, temperature=0)[0]
    expected = [1, *tokenizer.encode("Once"), *ours.ids]
    assert found[: len(expected)] == expected and len(ours.ids) > 3
