"""Trains on the workers of a Ray cluster: `tinylm fit` as anywhere else, with its config, run folder and metrics.

    pip install "ray[train]"
    python scripts/examples/ray_train.py --workers 4 --gpu -c large.yaml --run.name big

All other arguments are passed to `tinylm fit`. The run folder must be on a disk that all nodes share. When a worker or
its node dies, all others end, Ray starts them again, and the run continues from its last checkpoint, to the same bits.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


def fit(settings: dict) -> None:
    """Runs one rank in a process of its own, which can be stopped like one started by torchrun."""
    context = get_context()
    with socket.socket() as free:
        free.bind(("", 0))
        here = {"MASTER_ADDR": ray.util.get_node_ip_address(), "MASTER_PORT": str(free.getsockname()[1])}
    ranks = {
        "RANK": context.get_world_rank(),
        "LOCAL_RANK": context.get_local_rank(),
        "GROUP_RANK": context.get_node_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "TORCHELASTIC_RUN_ID": context.get_experiment_name(),  # Lightning and tinylm take it for torchrun's
    }
    environment = os.environ | broadcast_from_rank_zero(here) | {name: str(value) for name, value in ranks.items()}
    nodes = context.get_world_size() // context.get_local_world_size()
    command = [sys.executable, "-m", "tinylm", "fit", "--trainer.strategy", "ddp", *settings["arguments"]]
    command += ["--trainer.num_nodes", str(nodes), "--trainer.devices", str(context.get_local_world_size())]
    run = settings["run"]
    if list(Path(run, "checkpoints").glob("*.ckpt")) and not Path(run, "model").exists():
        command.append("--resume")
    code = subprocess.run(command, env=environment, cwd=settings["folder"], preexec_fn=die_with_parent).returncode
    if code:
        raise RuntimeError(f"tinylm fit, rank {context.get_world_rank()}: exit code {code}")


def die_with_parent() -> None:
    """Lets the kernel kill this process when Ray's worker dies; otherwise it would keep running on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Starts the workers and waits for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="number of workers, one device each")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    parser.add_argument("--restarts", type=int, default=3, help="how often a dead worker is replaced")
    parser.add_argument("--run.name", dest="name", required=True, help="name of the run, so that a restart finds it")
    parser.add_argument("--run.dir", dest="runs", default="runs", help="folder of all runs")
    options, arguments = parser.parse_known_args()
    run = Path(options.runs, options.name).absolute()
    arguments += ["--run.name", options.name, "--run.dir", str(run.parent)]
    trainer = DataParallelTrainer(
        fit,
        train_loop_config={"arguments": arguments, "run": str(run), "folder": str(Path.cwd())},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(
            name=options.name,
            storage_path=str(run.parent / ".ray"),  # a new run needs a new folder
            failure_config=FailureConfig(max_failures=options.restarts),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
