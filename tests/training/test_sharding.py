"""Sharded checkpoints: every process saves its own rows; read whole by anything, resumed by any number of processes."""

import pytest
import torch
from torch.distributed.tensor import DTensor

import tinylm
from tests import processes
from tinylm.bundle import read_checkpoint
from tinylm.errors import DataError
from tinylm.files import seal_zip
from tinylm.runs.metrics import read_metrics
from tinylm.training.checkpoint import AtomicCheckpointIO

SHARDED = ["-c", "fsdp", "--trainer.strategy.init_args.sharded_checkpoints", "true"]


@pytest.mark.slow
def test_shards_of_two_processes_are_resumed_by_three_and_by_one_without_fsdp(tiny_yaml, tmp_path):
    """Muon, which has AdamW for a part of the parameters."""
    common = ["-c", str(tiny_yaml), "--model.optimizer.name", "muon", "--model.network.dropout", "0"]
    common += ["--model.network.mup_base_width", "8", "--model.optimizer.neuron_beta", "0.9"]
    common += ["--data.batch_size", "12", "--data.micro_batch_size", "2"]
    common += ["--model.schedule.min_lr", "0.01", "--model.optimizer.lr", "0.01"]  # alike for any number of steps

    def fit(name: str, steps: int, *more: str, ranks: int = 1) -> None:
        words = ["fit", *common, "--trainer.max_steps", steps, *more, "--run.name", name]
        for rank in processes.torchrun(tmp_path, *words, tasks=ranks):
            _, err = rank.communicate()
            assert rank.returncode == 0, err

    fit("whole", 12)
    fit("shards", 6, *SHARDED, "--trainer.devices", "2")  # the other process is Lightning's
    folder = tmp_path / "runs/shards/checkpoints"
    assert sorted(path.name for path in folder.glob("last.ckpt.shards-*/*")) == ["0.pt", "1.pt"]
    weights = read_checkpoint(folder / "last.ckpt")["state_dict"]
    sizes = [sum(each.numel() for each in torch.load(path).values()) for path in folder.glob("last*/*.pt")]
    number = sum(each.numel() for each in weights.values())
    assert max(sizes) < 1.6 * number  # of three times as much with the two moments
    fit("shards", 9, *SHARDED, "--trainer.devices", "3", "--resume", ranks=3)
    fit("shards", 12, "--resume")
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]  # whole files again
    ours, theirs = (dict(zip(*read_metrics(tmp_path / "runs" / name / "metrics.csv")["train/loss"], strict=True))
                    for name in ("shards", "whole"))  # fmt: skip
    assert ours == pytest.approx(theirs, abs=2e-6) and len(ours) == 12
    models = [
        tinylm.load(tmp_path / "runs" / name / "checkpoints/last.ckpt")[0].state_dict() for name in ("shards", "whole")
    ]
    torch.testing.assert_close(*models, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_tensor_parallel_run_is_resumed_by_fsdp_and_by_one_process_and_generates(tiny_yaml, tmp_path):
    """Muon in float32; each layout goes on where the other stopped, with the losses of a run on one process."""
    common = ["-c", str(tiny_yaml), "--model.optimizer.name", "muon", "--model.network.dropout", "0"]
    common += ["--model.network.mup_base_width", "8", "--model.optimizer.neuron_beta", "0.9"]
    common += ["--model.network.num_kv_heads", "2"]
    common += ["--model.schedule.min_lr", "0.01", "--model.optimizer.lr", "0.01"]  # alike for any number of steps

    def fit(name: str, steps: int, *more: str, ranks: int = 1) -> None:
        words = ["fit", *common, "--trainer.max_steps", steps, *more, "--run.name", name]
        for rank in processes.torchrun(tmp_path, *words, tasks=ranks):
            _, err = rank.communicate()
            assert rank.returncode == 0, err
            assert "Warning" not in err and "torch/distributed" not in err

    fit("whole", 12)
    fit("wide", 4, "-c", "tensor_parallel", "--trainer.devices", "2")  # the other process is Lightning's
    model = tinylm.load(tmp_path / "runs/wide/checkpoints/last.ckpt")[0]
    assert not any(isinstance(each, DTensor) for each in model.parameters())
    words = ["generate", "--model", "runs/wide", "--max-new-tokens", "5", "--prompt", "the "]
    assert processes.tinylm(tmp_path, *words).wait() == 0
    fit("wide", 8, *SHARDED, "--trainer.devices", "2", "--resume", ranks=2)
    fit("wide", 10, "-c", "tensor_parallel", "--trainer.devices", "2", "--resume", ranks=2)  # from shards
    fit("wide", 12, "--resume")
    for name, tolerance in (("train/loss", 2e-6), ("train/grad_norm", 1e-5), ("val/loss", 2e-6)):
        ours, theirs = (dict(zip(*read_metrics(tmp_path / "runs" / run / "metrics.csv")[name], strict=True))
                        for run in ("wide", "whole"))  # fmt: skip
        shared = ours.keys() & theirs.keys()
        assert [ours[step] for step in shared] == pytest.approx([theirs[step] for step in shared], abs=tolerance)
        assert shared >= ({12} if name == "val/loss" else set(range(1, 13)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trainer.devices", "3"], "tensor_parallel_size: must divide the number of devices, got 2 and 3"),
        (["--trainer.strategy.init_args.sharded_checkpoints", "true"],
         "sharded_checkpoints: not with tensor_parallel_size above 1; set it to false"),
        (["--model.network.dropout", "0.1"],
         "tensor_parallel_size: not with dropout; set model.network.dropout=0"),
        (["-c", "lora"], "tensor_parallel_size: not with model.lora; leave one of them out"),
        (["-c", "compile"], "tensor_parallel_size: not with model.compile; leave one of them out"),
    ],
)  # fmt: skip
def test_what_tensor_parallelism_cannot_do_is_refused_in_one_line(tiny_yaml, tmp_path, more, message):
    words = ["fit", "-c", tiny_yaml, "-c", "tensor_parallel", "--trainer.devices", "2"]
    words += ["--model.network.dropout", "0", "--model.network.num_kv_heads", "2", *more]
    _, err = (process := processes.tinylm(tmp_path, *words)).communicate()
    assert process.returncode == 2, err
    assert [line for line in err.splitlines() if "error" in line] == [f"tinylm: error: {message}"]


@pytest.fixture
def sharded(finished_run, tmp_path):
    """A finished run's checkpoint and the same one with its weights in two files."""
    whole = read_checkpoint(finished_run / "checkpoints/last.ckpt")
    folder = tmp_path / "last.ckpt.shards-0123abcd"
    folder.mkdir()
    names = {name: f"state_dict/{name}" for name in whole["state_dict"]}
    for number in range(2):
        rows = {names[name]: torch.chunk(each, 2)[number] for name, each in whole["state_dict"].items()}
        with (folder / f"{number}.pt").open("w+b") as file:
            torch.save({name: each.clone() for name, each in rows.items()}, file)
            seal_zip(file)
    stand_in = {
        name: {"sharded tensor": names[name], "shape": list(each.shape)} for name, each in whole["state_dict"].items()
    }
    entry = {"folder": folder.name, "files": 2}
    AtomicCheckpointIO().save_checkpoint({**whole, "state_dict": stand_in, "shards": entry}, tmp_path / "last.ckpt")
    return whole, tmp_path / "last.ckpt", folder


def test_a_sharded_checkpoint_is_read_as_the_whole_one(sharded):
    whole, path, _ = sharded
    found = read_checkpoint(path)
    assert found.keys() == whole.keys()
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(found["state_dict"][name], tensor)
    model, _ = tinylm.load(path)
    assert torch.equal(model.embedding.weight, whole["state_dict"]["net.embedding.weight"])


@pytest.mark.parametrize("damage", ["a file is missing", "a byte is changed", "the folder is missing"])
def test_a_damaged_shard_is_named(sharded, damage):
    _, path, folder = sharded
    part = folder / "1.pt"
    if damage == "a byte is changed":
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    elif damage == "a file is missing":
        part.unlink()
    else:
        folder.rename(folder.with_name("away"))
        part = folder / "0.pt"
    with pytest.raises(DataError, match=str(part)):
        read_checkpoint(path)


def test_shards_are_removed_with_their_checkpoint_and_nothing_else_is(sharded, tmp_path):
    whole, path, _ = sharded
    for name in ("last.ckpt.shards-mine", "best.ckpt.shards-0123abcd"):
        (tmp_path / name).mkdir()
    AtomicCheckpointIO().save_checkpoint(whole, path)
    names = {"last.ckpt", "last.ckpt.shards-mine", "best.ckpt.shards-0123abcd"}
    assert {each.name for each in tmp_path.iterdir() if each.name.startswith(("last", "best"))} == names
    AtomicCheckpointIO().remove_checkpoint(tmp_path / "best.ckpt")
    assert not (tmp_path / "best.ckpt.shards-0123abcd").exists()
