"""Training in NumPy and in PyTorch on the same batches of stories; checkpoints; exact resuming."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.reference.test_against_torch import AXES
from tinylm.data import TextDataModule
from tinylm.model import ModelConfig, TransformerLM
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.optim.optimizer import make_optimizer as make_torch_optimizer
from tinylm.optim.schedule import ScheduleConfig
from tinylm.optim.schedule import learning_rate as learning_rate_of_training
from tinylm.reference import Config, NumpyTransformerLM, files
from tinylm.reference.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint
from tinylm.reference.fast import FastTransformerLM
from tinylm.reference.optim import Optimizer, learning_rate
from tinylm.reference.train import Batch, evaluate, train

STEPS = 200
SHAPE = dict(d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=32)
SCHEDULE = dict(name="cosine", warmup_steps=20, min_lr=1e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TextDataModule:
    """Stories, tokenized by character."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return TextDataModule("stories:300", max_seq_len=32, batch_size=4, cache_dir=cache)


def training_batches(data: TextDataModule, first: int = 0) -> Iterator:
    """The batch of each step in Lightning's order, from step `first` on."""
    data.trainer = SimpleNamespace(  # type: ignore[assignment]  # the attributes that the loaders read
        world_size=1, global_rank=0, global_step=first, accumulate_grad_batches=1, val_check_interval=1.0,
        limit_train_batches=1.0, max_steps=100, max_epochs=-1, state=SimpleNamespace(fn="fit"),
    )  # fmt: skip
    data.setup("fit")
    while True:
        for batch in data.train_dataloader():
            yield batch
            data.trainer.global_step += 1


def numpy_batches(data: TextDataModule, count: int, first: int = 0) -> list[list[Batch]]:
    steps = training_batches(data, first)
    batches = [next(steps) for _ in range(count)]
    return [[Batch(batch.inputs.numpy(), batch.targets.numpy(), batch.num_targets)] for batch in batches]


def torch_losses(model: TransformerLM, data: TextDataModule, config: OptimizerConfig, clip: float) -> list[float]:
    """The losses of `LitTransformerLM`'s steps on one device."""
    optimizer, schedule, losses = make_torch_optimizer(model, config), ScheduleConfig(**SCHEDULE), []
    for step, batch in zip(range(STEPS), training_batches(data), strict=False):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_of_training(step, STEPS, config.lr, schedule)
        optimizer.step()
        losses.append(loss.item())
    return losses


def twin(model: TransformerLM) -> NumpyTransformerLM:
    """Twin with equal weights in NumPy."""
    state = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    return NumpyTransformerLM(Config.from_dict(model.config.to_dict()), state)


def rate(step: int) -> float:
    return learning_rate(step, STEPS, lr=3e-3, **SCHEDULE)


@pytest.mark.parametrize(
    ("name", "form"),
    [("adamw", {}), *(pytest.param("muon", form, marks=pytest.mark.slow) for form in ({}, AXES["many"]))],
)
def test_200_steps_on_stories_beside_pytorch(data, name, form):
    """Every loss, in float64 without dropout, from the same weights, with a schedule and with clipping in effect."""
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(vocab_size=data.vocab_size, **SHAPE | form)).double()
    ours = twin(model)
    theirs = torch_losses(model, data, OptimizerConfig(name=name, lr=3e-3), clip=0.5)
    optimizer = Optimizer(ours.parameters, name=name)
    steps = list(train(ours, optimizer, numpy_batches(data, STEPS), rate, max_norm=0.5))
    assert [step.number for step in steps] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([step.loss for step in steps], theirs, rtol=0, atol=1e-8)
    assert theirs[-1] < theirs[0] - 1.0  # the weights have moved far
    assert sum(step.grad_norm > 0.5 for step in steps) > 20


# --- a step


def small(dtype=np.float64, **options) -> NumpyTransformerLM:
    shape = dict(vocab_size=13, d_model=8, num_layers=2, num_heads=2, max_seq_len=6) | options
    return NumpyTransformerLM(Config.from_dict(shape), seed=1, dtype=dtype)


def random_batches(count: int, rows: int = 4) -> list[list[Batch]]:
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 13, (count, rows, 7))
    return [[Batch(each[:, :-1], each[:, 1:].copy(), rows * 6)] for each in ids]


def take_steps(model: NumpyTransformerLM, batches: list[list[Batch]], **options) -> list:
    return list(train(model, Optimizer(model.parameters), batches, lambda step: 0.01, **options))


def assert_equal_arrays(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_a_batch_in_parts_is_the_same_step():
    """The parts have different numbers of targets; every target counts the same."""
    whole, cut = small(), small()
    batches = random_batches(5)
    for [batch] in batches:
        batch.targets[0, 2:] = -100
    batches = [[batch._replace(num_targets=4 * 6 - 4)] for [batch] in batches]
    parts = [
        [batch._replace(inputs=batch.inputs[rows], targets=batch.targets[rows]) for rows in (slice(1), slice(1, 4))]
        for [batch] in batches
    ]
    ours, theirs = take_steps(cut, parts, max_norm=0.3), take_steps(whole, batches, max_norm=0.3)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)
    for name, parameter in whole.parameters.items():
        np.testing.assert_allclose(cut.parameters[name], parameter, rtol=0, atol=1e-10, err_msg=name)


def test_a_step_that_is_not_finite_is_refused_before_the_weights_move():
    model = small()
    model.parameters["blocks.1.feedforward.output.weight"][0, 0] = np.nan
    before = {name: array.copy() for name, array in model.parameters.items()}
    with pytest.raises(FloatingPointError, match="step 8: the loss is nan; the weights are as before this step"):
        take_steps(model, random_batches(1), first=7)
    assert_equal_arrays(model.parameters, before)


def test_dropout_is_a_function_of_seed_and_step():
    batch = random_batches(1)
    losses = [
        take_steps(small(dropout=0.5), batch, seed=seed, first=first)[0].loss
        for seed, first in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3
    assert losses[0] != take_steps(small(), batch)[0].loss
    [whole] = batch[0]
    halves = [[whole._replace(num_targets=2 * whole.num_targets)] * 2]  # the same rows twice, with different masks
    assert take_steps(small(dropout=0.5), halves)[0].loss != losses[0]


@pytest.mark.parametrize("threads", [1, 3])
def test_evaluation_counts_every_target_once_and_matches_pytorch(data, threads):
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(vocab_size=data.vocab_size, **SHAPE)).double()
    next(training_batches(data))  # sets the data module's trainer
    batches = list(data.val_dataloader())
    nats = tokens = right = 0
    for batch in batches:
        logits = model(batch.inputs).flatten(0, 1)
        nats += F.cross_entropy(logits, batch.targets.flatten(), reduction="sum").item()
        tokens += batch.num_targets
        right += int((logits.argmax(-1) == batch.targets.flatten()).sum())
    ours = FastTransformerLM((plain := twin(model)).config, plain.parameters, threads=threads)
    score = evaluate(ours, [Batch(batch.inputs.numpy(), batch.targets.numpy(), 0) for batch in batches])
    assert (score.tokens, score.right) == (tokens, right)
    assert score.loss == pytest.approx(nats / tokens, rel=1e-12)
    assert score.perplexity == pytest.approx(np.exp(nats / tokens), rel=1e-12)
    assert score.accuracy == right / tokens


# --- checkpoints


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(name, tmp_path):
    """In float32, with dropout, clipping and a schedule."""
    batches, options = random_batches(9), dict(max_norm=0.5, seed=3)
    rates = [0.01, 0.03, *[0.02] * 7]
    whole = small(np.float32, dropout=0.2)
    optimizer = Optimizer(whole.parameters, name=name)
    steps = list(train(whole, optimizer, batches, rates.__getitem__, **options))

    stopped = small(np.float32, dropout=0.2)
    first = Optimizer(stopped.parameters, name=name)
    losses = list(train(stopped, first, batches[:4], rates.__getitem__, **options))
    save_checkpoint(tmp_path / "last.npz", stopped, first, 4, {"best": 1.5, "text": "é"})
    found = read_checkpoint(tmp_path / "last.npz")
    assert (found.step, found.notes) == (4, {"best": 1.5, "text": "é"})
    second = Optimizer(found.model.parameters, name=name)
    second.load_state(found.state)
    losses += train(found.model, second, batches[4:], rates.__getitem__, first=found.step, **options)

    assert losses == steps
    assert_equal_arrays(found.model.parameters, whole.parameters)
    assert_equal_arrays(second.state(), optimizer.state())
    assert {array.dtype for array in found.model.parameters.values()} == {np.dtype(np.float32)}


def test_a_checkpoint_is_a_model(tmp_path):
    model = small(norm_placement="post", tie_embeddings=False)
    save_checkpoint(tmp_path / "last.npz", model, Optimizer(model.parameters), 1)
    found = files.load(tmp_path / "last.npz")
    assert found.config == model.config
    assert_equal_arrays(found.parameters, model.parameters)
    assert [path.name for path in tmp_path.iterdir()] == ["last.npz"]


def test_a_save_that_fails_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    model = small()
    optimizer = Optimizer(model.parameters)
    save_checkpoint(tmp_path / "last.npz", model, optimizer, 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "last.npz", model, optimizer, 2)
    assert read_checkpoint(tmp_path / "last.npz").step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.npz"]


@pytest.mark.parametrize("offset", [6, 8, 10])
def test_an_entry_that_python_cannot_unpack_is_damage(tmp_path, offset):
    """In the directory of the archive: the version that unpacking needs, the bit of encryption, the method."""
    path = tmp_path / "last.npz"
    save_checkpoint(path, small(), Optimizer(small().parameters), 1)
    bad = bytearray(path.read_bytes())
    bad[bad.index(b"PK\x01\x02") + offset] |= 0x61
    path.write_bytes(bad)
    with pytest.raises(ValueError, match=r"last\.npz: is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_checkpoint_is_refused(tmp_path, place):
    model, path = small(), tmp_path / "last.npz"
    save_checkpoint(path, model, Optimizer(model.parameters), 1)
    good = path.read_bytes()
    path.write_bytes(good[: int(place * len(good))])
    with pytest.raises(ValueError, match=r"last\.npz: is damaged"):
        read_checkpoint(path)
    bad = bytearray(good)
    for offset in range(64):  # inside an array, between the archive's records
        bad[int(place * len(good)) + offset] ^= 1
    path.write_bytes(bad)
    with pytest.raises(ValueError, match=r"last\.npz: is damaged"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.npz")
    files.save(model, tmp_path / "model.npz")
    (tmp_path / "model.npz").replace(path)
    with pytest.raises(ValueError, match=r"last\.npz: is not a training checkpoint"):
        read_checkpoint(path)


def test_the_newest_undamaged_checkpoint_is_resumed(tmp_path):
    model = small()
    paths = [tmp_path / "last.npz", tmp_path / "best.npz", tmp_path / "none.npz"]
    assert newest_checkpoint(paths) == (None, [])
    for path, step in zip(paths[:2], (7, 4), strict=True):
        save_checkpoint(path, model, Optimizer(model.parameters), step)
    found, problems = newest_checkpoint(paths)
    assert found is not None and (found.step, problems) == (7, [])
    paths[0].write_bytes(paths[0].read_bytes()[:-9])
    found, problems = newest_checkpoint(paths)
    assert found is not None and found.step == 4
    assert len(problems) == 1 and "last.npz: is damaged" in problems[0]
