"""Training wider than one device equals training on one: in float64, by real processes, which communicate over gloo."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import processes
from tests.training import ranks
from tinylm.adapt import FreezeConfig
from tinylm.data.division import data_ranks
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig
from tinylm.optim.sharded_muon import ShardedMuon
from tinylm.training.tensor_parallel import check_sizes

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forked processes")


def trained(
    corpus: Path, folder: Path, world_size: int, layout: str, options: dict[str, Any]
) -> tuple[list[float], dict[str, Any]]:
    """Losses of the steps, and the whole parameters after them."""
    out = folder / f"{world_size}-{layout}"
    out.mkdir()
    found = processes.run_ranks(
        world_size, ranks.train, str(corpus), str(folder / "cache"), world_size, layout, options, out=out
    )
    assert all(each["losses"] == found[0]["losses"] for each in found)
    return found[0]["losses"], torch.load(out / "rank-0.pt")


def compare(corpus: Path, folder: Path, world_size: int, layout: str, options: dict[str, Any]) -> None:
    """Asserts that several processes have the losses and the parameters of one."""
    ours, theirs = (trained(corpus, folder, size, layout, options) for size in (world_size, 1))
    assert len(theirs[0]) == 50 and theirs[0][-1] < 0.8 * theirs[0][0]
    torch.testing.assert_close(torch.tensor(ours[0]).double(), torch.tensor(theirs[0]).double(), atol=1e-12, rtol=0)
    assert ours[1].keys() == theirs[1].keys()
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-12, rtol=0)


# rows of the matrices that three processes cannot share evenly, and keys of fewer rows (2) than processes
NARROW = {"d_model": 8, "num_heads": 4, "num_kv_heads": 1, "bias": True}
NORMUON = {"neuron_beta": 0.9}
FREEZE = {"freeze": FreezeConfig(layers=(0,))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "layout", "options"),
    [
        pytest.param(2, "ddp", {}, id="ddp"),
        pytest.param(2, "fsdp", {"model": FREEZE, "network": {"tie_embeddings": True}}, id="fsdp, frozen parameters"),
        pytest.param(
            3,
            "fsdp",
            {"network": NARROW, "data": {"batch_size": 6, "micro_batch_size": 1}, "optimizer": NORMUON},
            id="fsdp of three, NorMuon",
        ),
        pytest.param(
            4, "2", {"network": {"num_kv_heads": 2}, "optimizer": NORMUON}, id="tensor parallel and fsdp, NorMuon"
        ),
    ],
)
def test_muon_on_several_processes_is_muon_on_one(corpus, tmp_path, world_size, layout, options):
    compare(corpus, tmp_path, world_size, layout, options)


ADAMW = {"optimizer": {"name": "adamw"}}
GPT2 = {"positional_encoding": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True}
GPT2 |= {"qk_norm": False, "head_bias": True}
OTHER = {"qk_norm_width": "all", "num_kv_heads": 2, "tie_embeddings": False, "document_mask": True}
OTHER |= {"norm_placement": "post", "activation_checkpointing": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "size", "network"),
    [
        pytest.param(2, "2", GPT2, id="two: biases and learned positions"),
        pytest.param(2, "2", OTHER, id="two: document mask, norms over all heads, untied head"),
        pytest.param(4, "4", {}, id="four"),
        pytest.param(4, "2", {"num_kv_heads": 2}, id="two groups of two, sharded"),
    ],
)
def test_tensor_parallel_training_is_that_of_one_process(corpus, tmp_path, world_size, size, network):
    assert len(set(corpus.read_text())) == 39  # tokens, which two and four processes share unevenly
    compare(corpus, tmp_path, world_size, size, ADAMW | {"network": network, "data": {"micro_batch_size": 4}})


def test_matrices_are_shared_out_by_their_work():
    """12 matrices of 64 x 64 and 4 of 64 x 192, three times the work each, over four processes: 6 units for each."""
    optimizer = ShardedMuon([{"params": [torch.zeros(1)], "name": "muon"}], lr=1.0, momentum=0.9, betas=(0, 0), eps=0)
    optimizer._load.clear()
    small = optimizer._divided(12, torch.Size([64, 64]), 4)
    large = optimizer._divided(4, torch.Size([64, 192]), 4)
    assert [len(each) for each in small] == [3] * 4 and [len(each) for each in large] == [1] * 4
    assert sorted(number for each in small for number in each) == list(range(12))


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        ({"num_heads": 3, "d_model": 24}, 2, "tensor_parallel_size: must divide model.network.num_heads, got 2 and 3"),
        ({"num_kv_heads": 1}, 2, "tensor_parallel_size: must divide model.network.num_kv_heads, got 2 and 1"),
        ({"d_ff": 65}, 2, "tensor_parallel_size: must divide model.network.d_ff, got 2 and 65"),
        ({"dropout": 0.1}, 2, "tensor_parallel_size: not with dropout; set model.network.dropout=0"),
    ],
)
def test_a_network_that_cannot_be_divided_is_refused(network, size, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        check_sizes(ModelConfig(**{"vocab_size": 9, "d_model": 16, "num_heads": 4} | network), size)


class Devices:
    """A trainer on four devices, of which this is number 3."""

    world_size, global_rank = 4, 3

    def __init__(self, size: int | None) -> None:
        if size is not None:
            self.distributed_sampler_kwargs = {"num_replicas": 4 // size, "rank": 3 // size}


@pytest.mark.parametrize(("size", "expected"), [(None, (4, 3)), (1, (4, 3)), (2, (2, 1)), (4, (1, 0))])
def test_devices_of_a_tensor_parallel_group_read_the_same_data(size, expected):
    assert data_ranks(Devices(size)) == expected
