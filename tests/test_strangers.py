"""Files of strangers that would take all memory or time: each is refused at once, by name."""

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.commands.conftest import save_model
from tinylm.bundle import load_bundle
from tinylm.errors import ConfigError, DataError
from tinylm.files import read_json, sha256_json
from tinylm.interop import export_huggingface, load_huggingface
from tinylm.reference import files as twin
from tinylm.safe_yaml import read_yaml
from tinylm.tokenizer import BPETokenizer, load_tokenizer, write_gpt2, write_tokenizer_json

SECONDS = 5.0  # a second on an idle machine


@pytest.fixture(autouse=True)
def soon():
    """Fails a test that takes long."""
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < SECONDS


def doubled(first: str, following: str) -> str:
    """Eight anchors, each of ten of the one before: a hundred million values."""
    lines = [f"a: &a {first}"]
    lines += [
        f"{new}: &{new} {following % ','.join([f'*{old}'] * 10)}"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join(lines)


YAML = {
    "aliases": doubled("[x,x,x,x,x,x,x,x,x,x]", "[%s]"),
    "merged keys": doubled("{k: 1}", "{<<: [%s]}"),
    "an alias of itself": "a: &a [*a]",
    "levels": "a: " + "[" * 100_000,
    "levels that close": "a: " + "[" * 60 + "]" * 60,
    "values": "a: [" + "1," * 200_000 + "]",
    "digits": "a: " + "9" * 100_000,
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_a_yaml_file_that_would_explode_is_refused(text, tmp_path):
    (tmp_path / "bomb.yaml").write_text(text)
    with pytest.raises(DataError, match=r"bomb\.yaml: (has more than 100,000 values or 50 levels|is not valid YAML)"):
        read_yaml(tmp_path / "bomb.yaml")


def test_ordinary_aliases_and_merged_keys_are_read(tmp_path):
    (tmp_path / "c.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\nwhen: 2020-01-01\n")
    values = read_yaml(tmp_path / "c.yaml")
    assert values["b"] == {"x": 1, "y": 2} and values["c"] == [{"x": 1}, {"x": 1}]


def test_deep_json_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"deep\.json: is not valid JSON"):
        read_json(tmp_path / "deep.json")


QUERY = "blocks.0.attention.query"
MANIFESTS = {
    "a million layers": ({"num_layers": 10**6}, [], "1,000,000 layers and [0-9,]+ parameters, the file 13 tensors"),
    "layers without end": ({"num_layers": 10**18}, [], "the config has 1,000,000,000,000,000,000 layers"),
    "a wide model": ({"d_model": 2 * 10**12, "positional_encoding": "none"}, [], "the config has 1 layers and"),
    "a long context": ({"max_seq_len": 10**12}, [], "max_seq_len=1000000000000: its positions would need"),
    "a large vocabulary": ({"vocab_size": 10**15}, [], "the config has 1 layers and"),
    "a million names": ({}, [{"kind": "int8", "names": [f"x{n}" for n in range(10**6)]}], "more than any model needs"),
    "one name twice": ({}, [{"kind": "int8", "names": [QUERY] * 10}], f"layers: {QUERY}: is not a plain linear layer"),
    "no names": ({}, [{"kind": "int8", "names": []}] * 1000, "layers: each entry must have a kind and names"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "layers", "message"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_describes_more_than_its_file_is_refused(config, layers, message, model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    manifest = json.loads((folder / "tinylm.json").read_text())
    checksums = manifest.pop("sha256")
    manifest["model"] |= config
    manifest |= {"layers": layers} if layers else {}
    checksums["tinylm.json"] = sha256_json(manifest)
    (folder / "tinylm.json").write_text(json.dumps(manifest | {"sha256": checksums}))
    with pytest.raises(DataError, match=message):
        load_bundle(folder)
    if config:
        with pytest.raises(ValueError, match=r"far more than|differ|vocab_size|shape"):
            twin.load(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model folder."""
    return save_model(tmp_path_factory.mktemp("strangers") / "model")


HUGGINGFACE = {
    "num_hidden_layers": (10**9, "num_hidden_layers is 1,000,000,000; tinylm supports at most 10,000"),
    "max_position_embeddings": (10**12, "max_position_embeddings=1000000000000: its positions would need"),
    "vocab_size": (10**15, "the config has 1 layers and"),
    "hidden_size": (2 * 10**12, "the config has 1 layers and"),
}


@pytest.mark.parametrize(("field", "value", "message"), [(name, *rest) for name, rest in HUGGINGFACE.items()])
def test_absurd_sizes_in_a_config_json_are_refused(field, value, message, model, tmp_path):
    bundle = load_bundle(model)
    export_huggingface(bundle.model, bundle.tokenizer, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["layer_types"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(DataError, match=message):
        load_huggingface(tmp_path / "hf")


PATTERNS = {
    "exponential time": (r"(?:a|a)+b|[\s\S]", r"takes over 0\.5 s for 41 characters; write it without repetitions"),
    "repetitions": (r"(?:(?:(?:a{1000}){1000}){1000}){1000}|[\s\S]", "parts, repetitions written out; shorten it"),
    "open repetitions": (r"(?:a{1000000000,})|[\s\S]", "parts, repetitions written out"),
    "levels": ("(?:" * 5000 + "a" + ")" * 5000, "nor a regular expression"),
    "length": ("a" * 3_000_000, "parts, repetitions written out"),
}  # fmt: skip


@pytest.mark.parametrize(("pattern", "message"), PATTERNS.values(), ids=PATTERNS)
def test_a_regular_expression_that_explodes_is_refused(pattern, message, tmp_path):
    with pytest.raises((ConfigError, DataError), match=message):
        BPETokenizer([], pattern=pattern).encode("a" * 40 + "c")
    write_tokenizer_json(BPETokenizer([]), tmp_path / "t.json")
    values = json.loads((tmp_path / "t.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    steps = [split, values["pre_tokenizer"] | {"use_regex": False}]
    (tmp_path / "t.json").write_text(
        json.dumps(values | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})
    )
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path / "t.json").encode("a" * 40 + "c")


def test_merges_that_double_a_token_seventy_times_are_refused():
    with pytest.raises(ConfigError, match=r"merges: the tokens up to merge 25 have more than 67,108,864 bytes"):
        BPETokenizer([(0, 0), *((256 + n, 256 + n) for n in range(69))])


@pytest.mark.parametrize("number", [10**12, 10**30, -1])
def test_absurd_ids_in_gpt2s_vocabulary_are_refused(number, tmp_path):
    write_gpt2(BPETokenizer([(0, 1)]), tmp_path / "g")
    vocab = json.loads((tmp_path / "g" / "vocab.json").read_text())
    (tmp_path / "g" / "vocab.json").write_text(json.dumps(vocab | {"!": number}))
    with pytest.raises(DataError, match=r"vocab\.json: ids must be"):
        load_tokenizer(tmp_path / "g")
