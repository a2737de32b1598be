"""Model folders, which both libraries read and write, and archives."""

import numpy as np
import pytest
import torch

import tinylm
from tests.reference.test_against_torch import AXES
from tests.strategies import random_model
from tinylm.adapt import quantize
from tinylm.bundle import TOKENIZER, WEIGHTS, load_bundle, save_bundle
from tinylm.model import ModelConfig
from tinylm.reference import files
from tinylm.tokenizer import CharTokenizer

IDS = np.array([[0, 3, 1, 4, 2], [4, 4, 0, 1, 2]])


FORMS = {
    "tied": dict(bias=True),
    "untied": dict(bias=True, tie_embeddings=False),
    "all axes": dict(AXES["many"], vocab_size=5),
    "normed outputs": dict(norm_placement="output", head_bias=True, rope_scaling=dict(kind="llama3", factor=2.0)),
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def theirs(request, tmp_path):
    """A model in float32 and its folder."""
    config = ModelConfig(**dict(vocab_size=5, d_model=16, num_layers=2, max_seq_len=8) | request.param)
    model = random_model(config, dtype=torch.float32)
    save_bundle(tmp_path / "run" / "model", model, CharTokenizer("abcde"), {"step": 3})
    return model, tmp_path / "run" / "model"


def test_the_twin_reads_a_model_folder(theirs):
    model, folder = theirs
    twin = files.load(folder)
    state = model.state_dict()
    assert {name: p.dtype for name, p in twin.parameters.items()} == dict.fromkeys(twin.parameters, np.float32)
    assert state.keys() - twin.parameters.keys() == ({"head.weight"} if model.config.tie_embeddings else set())
    assert all(np.array_equal(p, state[name].numpy()) for name, p in twin.parameters.items())
    assert np.array_equal(files.load(folder.parent).logits(IDS), twin.logits(IDS))  # a run folder's model/
    exact = model.double()(torch.from_numpy(IDS)).detach().numpy()
    assert np.abs(files.load(folder, np.float64).logits(IDS) - exact).max() < 1e-12


def test_tinylm_reads_the_twins_folder(theirs, tmp_path):
    model, folder = theirs
    twin = files.load(folder)
    twin.parameters["embedding.weight"][2, 3] = 0.5
    target = tmp_path / "by_twin"
    target.mkdir()
    (target / TOKENIZER).write_bytes((folder / TOKENIZER).read_bytes())
    files.save(twin, target, {"step": 7})
    bundle = load_bundle(target)
    assert bundle.info == {"step": 7} and bundle.tokenizer.vocab_size == 5
    assert bundle.model.config == model.config
    for name, tensor in bundle.model.state_dict().items():
        if name in twin.parameters:
            assert np.array_equal(tensor.numpy(), twin.parameters[name])
    assert bundle.model.embedding.weight[2, 3] == 0.5
    logits = bundle.model.double()(torch.from_numpy(IDS)).detach().numpy()
    assert np.abs(files.load(target, np.float64).logits(IDS) - logits).max() < 1e-12


def test_an_archive_gives_the_same_model_back(theirs, tmp_path):
    twin = files.load(theirs[1], np.float64)
    files.save(twin, tmp_path / "a.npz")
    with pytest.raises(FileExistsError, match=r"a\.npz: exists; choose another path, or set overwrite"):
        files.save(twin, tmp_path / "a.npz")
    files.save(twin, tmp_path / "a.npz", overwrite=True)
    (tmp_path / "diary.npz").write_text("today")
    with pytest.raises(FileExistsError, match=r"diary\.npz: exists"):
        files.save(twin, tmp_path / "diary.npz", overwrite=True)
    (tmp_path / "diary.npz").unlink()
    again = files.load(tmp_path / "a.npz")
    assert again.config == twin.config
    assert [*again.parameters] == [*twin.parameters]
    assert all(np.array_equal(p, twin.parameters[name]) and p.dtype == float for name, p in again.parameters.items())
    assert [path.name for path in tmp_path.glob("*.npz")] == ["a.npz"]


def test_files_that_are_no_model_are_refused(theirs, tmp_path):
    _, folder = theirs
    with pytest.raises(FileNotFoundError, match="nowhere: no such model folder"):
        files.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="put the tokenizer there first"):
        files.save(files.load(folder), tmp_path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="has no config"):
        files.load(tmp_path / "other.npz")
    damaged = bytearray((folder / WEIGHTS).read_bytes())
    damaged[-1] ^= 1
    (folder / WEIGHTS).write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged"):
        files.load(folder)


def test_quantized_layers_are_refused(theirs, tmp_path):
    model, _ = theirs
    save_bundle(tmp_path / "int8", quantize(model, bits=8), tinylm.load(theirs[1])[1])
    with pytest.raises(ValueError, match="quantized layers"):
        files.load(tmp_path / "int8")
