"""Model folders and checkpoints load bit by bit or raise an error, and never execute code."""

import hashlib
import io
import json
import math
import pickle
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tinylm
from tests.strategies import model_configs, random_model
from tinylm.adapt import quantize
from tinylm.bundle import checkpoint_entry, load, load_bundle, rebuild_model, save_bundle
from tinylm.errors import CannotCreateError, ConfigError, DataError, MissingInputError, NumericError
from tinylm.files import seal_zip, sha256_json
from tinylm.locate import command
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.quantized import describe_layers
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer

TOKENIZER = CharTokenizer("abcdé\n😀", [END_OF_TEXT])
SHAPE = dict(vocab_size=TOKENIZER.vocab_size, d_model=16, num_layers=2, num_heads=2, max_seq_len=8)
FILES = ("tinylm.json", "model.safetensors", "tokenizer.tinylm.json")
ENTRY = checkpoint_entry(ModelConfig(**SHAPE), TOKENIZER)
IDS = torch.arange(TOKENIZER.vocab_size)[None]


def make_model(seed: int = 0, **changes) -> TransformerLM:
    torch.manual_seed(seed)
    return TransformerLM(ModelConfig(**SHAPE | changes)).eval()


def same_bits(one: TransformerLM, other: TransformerLM) -> bool:
    with torch.no_grad():
        return one.config == other.config and torch.equal(one(IDS), other(IDS))


def seal(data: bytes) -> bytes:
    """`seal_zip` for any bytes, a zip archive or not."""
    data = data[:-2] + (71).to_bytes(2, "little") if data[-22:-18] == b"PK\5\6" else data + (71).to_bytes(2, "little")
    return data + b"sha256:" + hashlib.sha256(data[:-2]).hexdigest().encode()


def torch_bytes(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def save_checkpoint(path, model, **changes):
    weights = {"net." + name: tensor for name, tensor in model.state_dict().items()}
    content = {"tinylm": checkpoint_entry(model.config, TOKENIZER), "state_dict": weights, "global_step": 3} | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w+b") as file:
        torch.save(content, file)
        seal_zip(file)


@pytest.fixture
def folder(tmp_path):
    save_bundle(tmp_path / "model", make_model(), TOKENIZER, {"step": 7, "val/loss": 1.5})
    return tmp_path / "model"


# --- saved and loaded


@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
@settings(max_examples=20, deadline=None)
@given(model_configs(vocab_size=st.just(TOKENIZER.vocab_size), max_seq_len=st.just(8)))
def test_a_loaded_model_of_any_config_computes_the_same_bits(kind, tmp_path_factory, config):
    model, path = random_model(config, dtype=torch.float32), tmp_path_factory.mktemp("model") / "saved"
    save_bundle(path, model.train(), TOKENIZER, {"step": 3}) if kind == "folder" else save_checkpoint(path, model)
    bundle = load_bundle(path)
    assert same_bits(model.eval(), bundle.model)
    assert not bundle.model.training
    assert (bundle.tokenizer, bundle.info["step"]) == (TOKENIZER, 3)
    assert (bundle.model.head.weight is bundle.model.embedding.weight) == config.tie_embeddings
    assert all(parameter.requires_grad for parameter in bundle.model.parameters())


def test_weights_keep_their_dtype(tmp_path):
    save_bundle(tmp_path / "b", make_model().to(torch.bfloat16), TOKENIZER)
    assert {weight.dtype for weight in load(tmp_path / "b")[0].parameters()} == {torch.bfloat16}


def test_a_model_folder_replaces_an_earlier_one_completely(folder):
    with pytest.raises(CannotCreateError, match=r"model: exists; choose another path, or replace it with --overwrite"):
        save_bundle(folder, make_model(1), TOKENIZER)
    (folder / "diary.txt").write_text("today")
    with pytest.raises(CannotCreateError, match=r"model: exists and is not a model folder of tinylm"):
        save_bundle(folder, make_model(1), TOKENIZER, overwrite=True)
    (folder / "diary.txt").rename(folder.parent / "diary.txt")
    assert same_bits(load(folder)[0], make_model())
    save_bundle(folder, make_model(1), TOKENIZER, overwrite=True)
    assert same_bits(load(folder)[0], make_model(1))
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["diary.txt", "model"]


def test_the_package_loads_a_folder_or_its_manifest(folder, capfd):
    for path in (folder, str(folder), folder / "tinylm.json"):
        model, tokenizer = tinylm.load(path)
        assert same_bits(model, make_model()) and tokenizer == TOKENIZER
    assert capfd.readouterr().err == f"tinylm: loading {folder}\n"  # reported if it is not the given path


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=f"vocab_size: tokenizer 256, model {TOKENIZER.vocab_size}"):
        save_bundle(tmp_path / "b", make_model(), ByteTokenizer())
    assert not (tmp_path / "b").exists()


def test_a_run_folder_loads_model_then_best_then_last_and_reports_which(tmp_path, capfd):
    run = tmp_path / "run"
    save_bundle(run / "model", make_model(1), TOKENIZER)
    save_checkpoint(run / "checkpoints" / "best.ckpt", make_model(2))
    save_checkpoint(run / "checkpoints" / "last.ckpt", make_model(3))
    for seed, found in [(1, run / "model"), (2, run / "checkpoints/best.ckpt"), (3, run / "checkpoints/last.ckpt")]:
        assert same_bits(load(run)[0], make_model(seed))
        assert capfd.readouterr().err == f"tinylm: loading {found}\n"
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    with pytest.raises(MissingInputError, match="run: has no model/ and no checkpoint"):
        load(run)


# --- damage


def flips(size: int, count: int) -> list[int]:
    """Offsets spread over a file, including its first and last bytes."""
    inner = torch.randint(size, (count,), generator=torch.Generator().manual_seed(size)).tolist()
    return sorted({0, 7, 8, 9, size // 2, size - 1, *inner})


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_byte_of_a_model_folder_goes_unnoticed(name, folder):
    data, whole = (folder / name).read_bytes(), load_bundle(folder)
    offsets = flips(len(data), 40) if name == "model.safetensors" else range(len(data))
    silent = []
    for offset in offsets:
        (folder / name).write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])
        try:
            found = load_bundle(folder)
            if not (same_bits(found.model, whole.model) and (found.tokenizer, found.info) == (TOKENIZER, whole.info)):
                silent.append(data[max(offset - 20, 0) : offset + 20])
        except DataError as error:
            assert "\n" not in str(error)
    assert silent == []


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(name, folder):
    (folder / name).write_bytes((folder / name).read_bytes()[:-5])
    with pytest.raises(DataError, match=re.escape(str(folder / name))):
        load(folder)


def test_a_missing_file_is_named(folder):
    for name, problem in {FILES[1]: "is missing from the model folder", FILES[2]: "is missing from the model"}.items():
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(MissingInputError, match=rf"{re.escape(name)}: {problem}"):
            load(folder)
        (folder / name).write_bytes(data)
    (folder / FILES[0]).unlink()
    with pytest.raises(MissingInputError, match="has no model/ and no checkpoint"):
        load(folder)


MANIFESTS = {
    "a list": ([], r"tinylm\.json: is not a tinylm model folder"),
    "another program's": ({"model_type": "gpt2"}, r"tinylm\.json: is not a tinylm model folder"),
    "a newer format": ({"format": 99}, "has format 99, this tinylm reads format 1"),
    "no checksums": ({"sha256": {}}, r"tinylm\.json: is damaged"),
    "checksums of another shape": ({"sha256": [1]}, r"tinylm\.json: is damaged"),
    "changed by hand": ({"info": {"step": 8}}, r"tinylm\.json: is damaged"),
    "another width": ({"model": SHAPE | {"d_model": 32}}, "weights and its config do not match"),
    "an unknown field": ({"model": SHAPE | {"n_layer": 2}}, "did you mean 'num_layers'"),
    "a field of another type": ({"model": SHAPE | {"num_layers": "two"}}, "num_layers must be int"),
    "a config of another shape": ({"model": 3}, r"tinylm\.json: is damaged"),
}


@pytest.mark.parametrize(("change", "problem"), MANIFESTS.values(), ids=MANIFESTS)
def test_an_inconsistent_manifest_is_refused(change, problem, folder):
    path = folder / "tinylm.json"
    ours = isinstance(change, dict) and "model_type" not in change
    manifest = json.loads(path.read_text()) | change if ours else change
    if "model" in change:  # with a valid checksum
        checksums = manifest.pop("sha256")
        manifest["sha256"] = checksums | {"tinylm.json": sha256_json(manifest)}
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=problem) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "as written by Lightning"])
def test_no_flipped_byte_or_cut_of_a_checkpoint_goes_unnoticed(sealed, tmp_path):
    path, model = tmp_path / "last.ckpt", make_model()
    save_checkpoint(path, model)
    data = path.read_bytes() if sealed else path.read_bytes()[:-73] + b"\0\0"
    path.write_bytes(data)
    assert same_bits(load(path)[0], model)
    damaged = [(i, data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]) for i in [*flips(len(data), 40), len(data) - 70]]
    damaged += [(i, data[:i]) for i in (0, 1, 73, 74, len(data) // 2, len(data) - 74, len(data) - 1)]
    silent = []
    for offset, content in damaged:
        path.write_bytes(content)
        try:
            assert same_bits(load(path)[0], model)
            silent.append(offset)  # padding between the archive's members, or a damaged seal
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    assert len(silent) < 0.4 * len(damaged)
    assert not sealed or all(offset >= len(data) - 73 for offset in silent)


CHECKPOINTS = {
    "of something else": (
        dict(state_dict={}),
        "is not a checkpoint of tinylm, but of another program; models of other",
    ),
    "of nanoGPT": (
        dict(model={}, model_args={}, iter_num=5),
        "of nanoGPT; convert it first: .* --to tinylm --out last-",
    ),
    "of no names": ([1, 2], "is not a checkpoint of tinylm, but of another program"),
    "without weights": (dict(tinylm=ENTRY, state_dict={}, global_step=3), "weights and its config do not match"),
    "without a state": (dict(tinylm=ENTRY), r"last\.ckpt"),
    "with half an entry": (dict(tinylm={"format": 1}, state_dict={}, global_step=3), r"last\.ckpt"),
    "of a newer format": (dict(tinylm=ENTRY | {"format": 99}, state_dict={}, global_step=3), "format 99"),
}


@pytest.mark.parametrize(("content", "problem"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_an_intact_checkpoint_with_wrong_contents_is_refused(content, problem, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(seal(torch_bytes(content)))
    with pytest.raises(DataError, match=problem):
        load(tmp_path / "last.ckpt")


def test_a_checkpoint_whose_config_does_not_fit_its_weights_is_refused(tmp_path):
    save_checkpoint(
        tmp_path / "last.ckpt", make_model(), tinylm=checkpoint_entry(make_model(d_ff=20).config, TOKENIZER)
    )
    with pytest.raises(DataError, match="weights and its config do not match"):
        load(tmp_path / "last.ckpt")


def test_a_hugging_face_folder_names_the_command_that_converts_it(tmp_path):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/config.json").write_text("{}")
    line = command("export", "--model", tmp_path / "llama", "--to", "tinylm", "--out", "llama-tinylm")
    with pytest.raises(MissingInputError, match=re.escape(f"is a Hugging Face folder; convert it first: {line}")):
        load(tmp_path / "llama")


FILES_OF_OTHERS = {
    "a.gguf": (b"GGUF\3\0\0\0", "is a GGUF file; models of other programs are read from Hugging Face folders"),
    "m.safetensors": (b"\x02\0\0\0\0\0\0\0{}", "is weights without a config; models of other programs"),
    "it.npz": (b"PK\5\6" + bytes(18), "is an archive of train-numpy, which only generate reads"),
    "t.txt": (b"Once upon a time", "is not a checkpoint; give a run folder, a model folder or a .ckpt file"),
    "config.json": (b"{}", "is not a checkpoint; give a run folder"),
    "empty.ckpt": (b"", "is not a checkpoint; give a run folder"),
}


@pytest.mark.parametrize("name", FILES_OF_OTHERS)
def test_a_file_that_is_no_checkpoint_is_named_for_what_it_is(name, tmp_path):
    content, problem = FILES_OF_OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(name)}: {problem}"):
        load(tmp_path / name)


def test_the_weights_of_a_model_folder_name_the_folder(folder):
    with pytest.raises(DataError, match=f"holds the weights alone; give the model folder, {re.escape(str(folder))}"):
        load(folder / "model.safetensors")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_a_weight_that_is_not_finite_is_named_when_the_model_is_loaded(kind, value, tmp_path):
    model = make_model()
    model.blocks[1].attention.query.weight.data[3, 2] = value
    if kind == "folder":
        save_bundle(tmp_path / "model", model, TOKENIZER)
    else:
        save_checkpoint(tmp_path / "model", model)
    with pytest.raises(NumericError, match=r"blocks\.1\.attention\.query\.weight has weights that are not finite"):
        load(tmp_path / "model")


# --- quantized layers

INT4 = [{"kind": "int4", "group_size": 8, "names": ["blocks.0.attention.query"]}]


@pytest.mark.parametrize("options", [dict(bits=8), dict(bits=4, group_size=8)], ids=str)
def test_a_quantized_model_loads_bit_by_bit(options, tmp_path):
    model = quantize(make_model(bias=True), **options)
    save_bundle(tmp_path / "b", model, TOKENIZER)
    found = load(tmp_path / "b")[0]
    assert same_bits(model, found)
    assert describe_layers(found) == describe_layers(model)
    assert len(describe_layers(found)[0]["names"]) == 14
    before, after = model.state_dict(), found.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype and torch.equal(before[name], after[name])
    save_bundle(tmp_path / "again", found, TOKENIZER)
    for name in FILES:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_manifest_of_plain_layers_has_no_entry_for_layers(folder):
    assert json.loads((folder / "tinylm.json").read_text()).keys() == {"format", "model", "info", "sha256"}


def damaged_bundle(folder, layers=None, change=lambda weights: None):
    """A folder of a quantized model with another manifest or weights, and valid checksums."""
    save_bundle(folder, quantize(make_model(), bits=4, group_size=8), TOKENIZER)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    manifest = json.loads((folder / "tinylm.json").read_text())
    checksums = manifest.pop("sha256")
    if layers is not None:
        manifest["layers"] = layers
    checksums["tinylm.json"] = sha256_json(manifest)
    checksums["model.safetensors"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "tinylm.json").write_text(json.dumps({**manifest, "sha256": checksums}))
    return folder


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ([{**INT4[0], "kind": "int3"}], "int3: no such kind of linear layer, did you mean"),
        ([{**INT4[0], "names": ["blocks.9.attention.query"]}], "is not a plain linear layer of this model"),
        ([{**INT4[0], "group_size": 5}], "group_size must be even and divide"),
        ([{**INT4[0], "size": 5}], "int4 has other options than"),
        (INT4, r"Missing key.*blocks\.0\.attention\.key\.weight"),  # the other layers are quantized too
        ([], r"Missing key.*blocks\.0\.attention\.query\.weight"),
        (["int4"], "each entry must have a kind and names"),
        (4, "weights and its config do not match"),
    ],
)
def test_wrong_entries_for_layers_are_refused(layers, problem, tmp_path):
    with pytest.raises(DataError, match=problem) as raised:
        load(damaged_bundle(tmp_path / "b", layers))
    assert str(tmp_path / "b") in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda weights: weights.pop("blocks.0.attention.query.scales"), r"Missing key.*query\.scales"),
        (lambda weights: weights.pop("blocks.1.feedforward.gate.codes"), r"Missing key.*gate\.codes"),
        (
            lambda weights: weights.update(
                {"blocks.0.attention.query.codes": weights["blocks.0.attention.query.codes"].to(torch.int8)}
            ),
            r"query: codes and scales must be torch\.uint8 and floating point",
        ),
        (
            lambda weights: weights.update(
                {"blocks.0.attention.query.scales": weights["blocks.0.attention.query.scales"].to(torch.int32)}
            ),
            r"query: codes and scales must be torch\.uint8 and floating point",
        ),
        (
            lambda weights: weights.update({"blocks.0.attention.query.scales": torch.zeros(16, 4).bfloat16()}),
            "size mismatch",
        ),
    ],
)
def test_wrong_codes_and_scales_are_refused(change, problem, tmp_path):
    with pytest.raises(DataError, match=problem) as raised:
        load(damaged_bundle(tmp_path / "b", change=change))
    assert str(tmp_path / "b") in str(raised.value) and "\n" not in str(raised.value)


def test_a_reader_that_ignores_layers_refuses_the_folder(tmp_path):
    """An older tinylm does not read `layers`."""
    with pytest.raises(DataError, match="weights and its config do not match"):
        rebuild_model(SHAPE, quantize(make_model()).state_dict(), source="model")


# --- missing models


@pytest.mark.parametrize("url", ["https://example.com/model", "http://127.0.0.1:9/a.ckpt", "file:///tmp/a", "s3://b/m"])
def test_urls_are_refused(url):
    with pytest.raises(ConfigError, match="models are loaded from files only; download it first"):
        load(url)


def test_a_missing_path_lists_the_runs(tmp_path):
    for name in ("small", "tiny-2"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "notes.txt").write_text("no run")
    with pytest.raises(MissingInputError, match=r"smal: no such model; .*runs has small, tiny-2$") as raised:
        load(tmp_path / "runs" / "smal")
    assert raised.value.exit_code == 66
    for name, config in (("mine", "tiny"), ("small", "small")):
        train = re.escape(command("fit", "-c", config))
        with pytest.raises(MissingInputError, match=f"no such model; train one with {train}$"):
            load(tmp_path / "nowhere" / name)
    with pytest.raises(MissingInputError, match="small: has no model/ and no checkpoint"):
        load(tmp_path / "runs" / "small")


# --- malicious files


class Malice:
    """Creates a file when it is unpickled without protection."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "x")


PICKLES = {
    "pickle": pickle.dumps,
    "sealed pickle": lambda content: seal(pickle.dumps(content)),
    "archive": torch_bytes,
    "sealed archive": lambda content: seal(torch_bytes(content)),
    "sealed legacy format": lambda content: seal(torch_bytes(content, _use_new_zipfile_serialization=False)),
}


@pytest.mark.parametrize("make", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("found_by", ["own path", "run folder"])
def test_a_malicious_checkpoint_is_refused_and_never_executed(make, found_by, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(make({"tinylm": ENTRY, "state_dict": {"net.x": Malice(canary)}, "global_step": 3}))
    with pytest.raises(DataError, match=r"last\.ckpt: "):
        load(path if found_by == "own path" else tmp_path / "run")
    assert not canary.exists()


def test_the_malicious_pickle_of_these_tests_works(tmp_path):
    pickle.loads(pickle.dumps(Malice(tmp_path / "canary"))).close()
    assert (tmp_path / "canary").exists()
    torch.load(io.BytesIO(torch_bytes(Malice(tmp_path / "canary 2"))), weights_only=False).close()
    assert (tmp_path / "canary 2").exists()


def test_the_seal_of_these_tests_is_the_real_one(tmp_path):
    with (tmp_path / "a.ckpt").open("w+b") as file:
        torch.save({"a": 1}, file)
        seal_zip(file)
    content = (tmp_path / "a.ckpt").read_bytes()
    assert content == seal(content[:-73] + b"\0\0")


def test_a_pickle_in_place_of_the_weights_is_refused_and_never_executed(folder):
    evil = pickle.dumps(Malice(folder / "canary"))
    (folder / "model.safetensors").write_bytes(evil)
    manifest = json.loads((folder / "tinylm.json").read_text())
    manifest["sha256"]["model.safetensors"] = hashlib.sha256(evil).hexdigest()
    (folder / "tinylm.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=re.escape(str(folder))):
        load(folder)
    assert not (folder / "canary").exists()
