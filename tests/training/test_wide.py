"""Training wider than one device equals training on one: in float64, by real processes, which communicate over gloo."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import processes
from tests.training import ranks
from tinylm.adapt import FreezeConfig

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


@pytest.mark.parametrize(
    ("world_size", "layout", "options"),
    [
        (2, "ddp", {}),
        (2, "fsdp", {}),
        (3, "fsdp", {"network": NARROW, "data": {"batch_size": 6, "micro_batch_size": 1}}),
        (2, "fsdp", {"model": {"freeze": FreezeConfig(layers=(0,))}, "network": {"tie_embeddings": True}}),
    ],
    ids=["ddp", "fsdp", "fsdp of three", "fsdp with frozen parameters"],
)
def test_muon_on_several_processes_is_muon_on_one(corpus, tmp_path, world_size, layout, options):
    compare(corpus, tmp_path, world_size, layout, options)
