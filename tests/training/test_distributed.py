"""Several processes compute the same as one: real processes, which communicate over gloo."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment

import tinylm
from tests import processes
from tests.training import ranks
from tinylm.errors import ConfigError
from tinylm.runs.lineage import read_config
from tinylm.runs.metrics import read_metrics
from tinylm.tokenizer import BPETokenizer
from tinylm.training.cli import quiet_lightning
from tinylm.training.preflight import follow_launcher

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="forked processes")


@pytest.mark.parametrize(("shard", "tolerance"), [(False, 1e-12), pytest.param(True, 1e-5, marks=pytest.mark.slow)])
def test_two_compiled_ranks_that_compute_the_loss_by_rows_have_the_losses_of_one(corpus, tmp_path, shard, tolerance):
    arguments = (str(corpus), str(tmp_path / "cache"))
    [alone] = processes.run_ranks(1, ranks.fit_compiled, *arguments, 1, False, None, out=tmp_path)
    first, second = processes.run_ranks(2, ranks.fit_compiled, *arguments, 2, shard, 10, out=tmp_path)
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], abs=tolerance)
    assert first["programs"] > 0


@pytest.mark.parametrize(
    ("precision", "tolerance", "shard"),
    [
        pytest.param("32-true", 1e-5, False, marks=pytest.mark.slow),
        ("64-true", 1e-12, False),
        pytest.param("32-true", 1e-5, True, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_have_the_losses_of_one_with_the_same_global_batch(corpus, tmp_path, precision, tolerance, shard):
    """Weights on both (DDP), or in halves (FSDP)."""
    arguments = (str(corpus), str(tmp_path / "cache"))
    [alone] = processes.run_ranks(1, ranks.fit, *arguments, 1, precision, False, out=tmp_path)
    first, second = processes.run_ranks(2, ranks.fit, *arguments, 2, precision, shard, out=tmp_path)
    assert len(alone["losses"]) == 100 and alone["losses"][-1] < 0.5 * alone["losses"][0]
    assert first["losses"] == second["losses"]  # each has the whole step's loss
    torch.testing.assert_close(torch.tensor(first["losses"]).double(), torch.tensor(alone["losses"]).double(),
                               atol=tolerance, rtol=0)  # fmt: skip
    # two micro-batches of two windows each and step here, four there: in the same global order
    for step in range(100):
        whole = [window for batch in alone["windows"][4 * step : 4 * step + 4] for window in batch]
        parts = [
            window for rank in (first, second) for batch in rank["windows"][2 * step : 2 * step + 2] for window in batch
        ]
        assert parts == whole
    assert first["windows"] != second["windows"]


def test_two_ranks_average_the_gradients_of_layers_that_a_callback_unfreezes(corpus, tmp_path):
    """DDP averages those of the parameters that were trainable when it was set up; the others would drift apart."""
    arguments = (str(corpus), str(tmp_path / "cache"))
    [alone] = processes.run_ranks(1, ranks.fit_thawed, *arguments, 1, out=tmp_path)
    first, second = processes.run_ranks(2, ranks.fit_thawed, *arguments, 2, out=tmp_path)
    assert alone["epochs"] >= 1 and alone["moved"] > 0.01
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], abs=1e-12)


def test_a_callback_that_cannot_unfreeze_sharded_weights_is_refused(cli, tiny_yaml):
    thaw = ["--trainer.callbacks+", "tests.training.ranks.Thaw", "--trust", "tests.training.ranks"]
    words = ["-c", "overlays/fsdp.yaml", "--trainer.devices", "1", *thaw]
    result = cli("fit", "-c", tiny_yaml, *words)
    assert (result.code, result.error) == (
        2,
        "trainer.callbacks: Thaw does not find sharded weights in the optimizer; take ddp",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overlay", "ranks_of_parts", "corpus_of"),
    [
        ("ddp", [2, 1, 2], "FOX"),
        ("fsdp", [2, 1, 2], "FOX"),
        ("ddp", [4, 1, 2], "{fox: FOX, tales: 'stories:60'}"),
    ],
    ids=["ddp", "fsdp", "mixture"],
)
def test_a_run_resumed_on_other_numbers_of_ranks_reads_the_windows_of_one_rank(
    tiny_yaml, corpus, tmp_path, overlay, ranks_of_parts, corpus_of
):
    """In the same global order, with the same losses: whole weights (DDP), or sharded ones (FSDP)."""
    common = ["fit", "-c", str(tiny_yaml), "--model.network.dropout", "0", "--model.schedule.name", "constant"]
    common += ["--model.optimizer.name", "adamw", "--data.micro_batch_size", "2"]
    common += ["--data.corpus", corpus_of.replace("FOX", str(corpus))]
    windows, losses = {}, {}
    for name, sizes in {"alone": [1], "changing": ranks_of_parts}.items():
        windows[name], losses[name] = [], []
        for start, size in enumerate(sizes, start=1):
            arguments = [*common, "--run.name", name, "--trainer.max_steps", str(12 * start // len(sizes))]
            arguments += ["-c", overlay, "--trainer.devices", str(size)] if size > 1 else []
            arguments += ["--resume"] if start > 1 else []
            found = processes.run_ranks(size, ranks.record, arguments, str(tmp_path), out=tmp_path)
            assert all(each["losses"] == found[0]["losses"] for each in found)
            steps = range(len(found[0]["losses"]))
            parts = len(found[0]["windows"]) // len(steps)  # micro-batches of a rank in a step
            windows[name] += [
                [window for rank in found for batch in rank["windows"][parts * n : parts * (n + 1)] for window in batch]
                for n in steps
            ]
            losses[name] += found[0]["losses"]
    assert [len(step) for step in windows["alone"]] == [8] * 12
    assert len({str(window) for step in windows["alone"] for window in step}) > 48  # they can be told apart
    assert windows["changing"] == windows["alone"]
    assert losses["changing"] == pytest.approx(losses["alone"], abs=1e-4)
    assert (tmp_path / "runs/changing/model/tinylm.json").is_file()


def test_validation_over_eleven_windows_has_the_same_sums_on_any_number_of_ranks(tmp_path):
    text = "".join(f"{n * 7919 % 1000:03d} " for n in range(500))[: 10 * 176]  # the last tenth: 11 windows of 16
    (tmp_path / "t.txt").write_text(text)
    results = {}
    for world_size in (1, 2, 3, 4):
        found = processes.run_ranks(
            world_size, ranks.validate, str(tmp_path / "t.txt"), str(tmp_path / "cache"), world_size, out=tmp_path
        )
        assert all(each == found[0] for each in found)
        results[world_size] = found[0]
    nats, tokens, correct, num_bytes, _ = results[1]["totals"]
    assert tokens == 175 and num_bytes == 175  # every token of 176 but the first, once
    for world_size in (2, 3, 4):
        others = results[world_size]["totals"]
        assert others[1:4] == [tokens, correct, num_bytes]
        assert others[0] == pytest.approx(nats, abs=1e-6)
        assert results[world_size]["metrics"]["val/loss"] == pytest.approx(nats / tokens, rel=1e-6)


# --- the command line, as people start it


def nodes(arguments: list[str], folder: Path, count: int = 2) -> list[subprocess.Popen]:
    """torchrun on as many "nodes" of one process each, all of them this machine."""
    port = str(processes.free_port())
    common = ["--nnodes", str(count), "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *common, "--node-rank", str(rank),
             "-m", "tinylm", *arguments],
            cwd=folder, env=processes.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )
        for rank in range(count)
    ]  # fmt: skip


def finish(started: list[subprocess.Popen], timeout: float = 100) -> list[str]:
    """The output of each process, after all have ended."""
    try:
        return [process.communicate(timeout=timeout)[1] for process in started]
    finally:
        for process in started:  # and what it started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_torchrun_on_two_nodes_trains_and_resumes(tiny_yaml, finished_run, tmp_path):
    arguments = ["fit", "-c", str(tiny_yaml), "-c", "ddp", "--trainer.num_nodes", "2", "--trainer.devices", "1"]
    arguments += ["--model.network.dropout", "0", "--data.micro_batch_size", "2", "--data.max_val_tokens", "200"]
    said = finish(started := nodes([*arguments, "--trainer.max_steps", "6"], tmp_path))
    assert [process.returncode for process in started] == [0, 0], said
    assert said[0].count("tinylm: run:") == 1 and "2 x CPU" in said[0]
    assert "tinylm: run:" not in said[1]  # only rank 0 prints
    assert not (tmp_path / "runs/mini-2").exists()

    said = finish(started := nodes(arguments, tmp_path))
    assert all(process.returncode for process in started)
    assert "runs/mini: exists; resume it with --resume, or choose another --run.name" in said[0]

    said = finish(started := nodes([*arguments, "--resume"], tmp_path))
    assert [process.returncode for process in started] == [0, 0], said
    assert "resuming runs/mini from step 6" in said[0]
    assert "trainer.max_steps 6 -> 12" in said[0]
    assert "on all 604 validation tokens: validation loss" in said[0]  # by rank 0, when the other has gone
    columns = read_metrics(tmp_path / "runs/mini/metrics.csv")
    assert columns["train/loss"][0] == list(range(1, 13))
    assert (tmp_path / "runs/mini/model/tinylm.json").is_file()


@pytest.mark.slow
def test_sharded_training_saves_whole_checkpoints_and_resumes(tiny_yaml, tmp_path, cli):
    arguments = ["fit", "-c", str(tiny_yaml), "-c", "fsdp", "--trainer.num_nodes", "2", "--trainer.devices", "1"]
    arguments += ["--model.network.dropout", "0"]
    for more in (["--trainer.max_steps", "6"], ["--resume"]):
        started = processes.torchrun(tmp_path, *arguments, *more, nodes=2)
        said = [process.communicate()[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], said
    assert "resuming runs/mini from step 6" in said[0]
    words = ["fit", "-c", tiny_yaml, "--model.network.dropout", "0", "--run.name", "alone"]
    alone = cli(*words, "--trainer.max_steps", "6")
    assert alone.code == 0, alone.err
    assert cli(*words, "--resume").code == 0
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        ours, theirs = (read_metrics(tmp_path / "runs" / run / "metrics.csv")[name] for run in ("mini", "alone"))
        assert ours[0] == theirs[0]
        assert ours[1] == pytest.approx(theirs[1], abs=1e-5)
    model, _ = tinylm.load(tmp_path / "runs/mini")
    other, _ = tinylm.load(tmp_path / "runs/alone")
    torch.testing.assert_close(model.state_dict(), other.state_dict(), atol=1e-4, rtol=0)


def by_torchrun(total: int, here: int) -> dict[str, str]:
    return {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": str(total), "LOCAL_WORLD_SIZE": str(here)}


def test_torchrun_decides_on_the_number_of_processes(tiny_yaml, tmp_path):
    """The config stays open, so that a resumed run may have others."""
    words = ["fit", "-c", tiny_yaml, "--trainer.max_steps", "2"]
    started = processes.torchrun(tmp_path, *words, tasks=2)
    assert [process.wait() for process in started] == [0, 0]
    assert "2 x CPU" in started[0].communicate()[1]
    trainer = read_config(tmp_path / "runs/mini")["trainer"]
    assert (trainer["devices"], trainer["num_nodes"]) == ("auto", 1)


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({}, {}, {}),
        (by_torchrun(8, 4), {}, {"devices": 4, "num_nodes": 2}),
        (by_torchrun(1, 1), {}, {"devices": 1, "num_nodes": 1}),
        (by_torchrun(2, 2), {"devices": [0, 3]}, {"num_nodes": 1}),
        (by_torchrun(2, 2), {"devices": 3},
         "trainer.devices: torchrun has started 2 processes on this machine, got 3; leave it out"),
        (by_torchrun(4, 1), {"num_nodes": 3},
         "trainer.num_nodes: torchrun has started 1 process on each of 4 machines, got 3; leave it out"),
        (by_torchrun(3, 2), {},
         "torchrun: must start as many processes on each machine, got 3 on 1"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "2"}, {}, {"devices": 3, "num_nodes": 2}),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"}, {}, {}),
    ],
)  # fmt: skip
def test_devices_and_machines_are_those_of_the_launcher(monkeypatch, variables, options, expected):
    for name in [each for each in os.environ if each.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    trainer = SimpleNamespace(**{"devices": "auto", "num_nodes": 1} | options)
    if isinstance(expected, dict):
        assert follow_launcher(trainer) == expected
        return
    with pytest.raises(ConfigError, match=re.escape(expected)):
        follow_launcher(trainer)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_after_the_same_step(tiny_yaml, tmp_path):
    """Lightning starts the second process; only that one gets the signal."""
    command = [sys.executable, str(ROOT / "scripts/train.py"), "fit", "-c", str(tiny_yaml), "-c", "ddp"]
    command += ["--trainer.devices", "2", "--trainer.max_steps", "100000", "--trainer.val_check_interval", "50000"]
    process = subprocess.Popen(command, cwd=tmp_path, env=processes.environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert processes.wait_for((tmp_path / "runs/mini/checkpoints/last.ckpt").exists)
        [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGUSR1)
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 75, err
    assert err.count("tinylm: stopped") == 1 and "error:" not in err
    step = int(err.rsplit("stopped after step ", 1)[1].split(", which")[0].replace(",", ""))
    assert torch.load(tmp_path / "runs/mini/checkpoints/last.ckpt")["global_step"] == step


# --- SLURM, as far as one machine can play it

SRUN = """#!{python}
import itertools, os, signal, subprocess, sys
from pathlib import Path
count = int(os.environ["SLURM_NTASKS"])
tasks = []
signal.signal(signal.SIGUSR1, lambda number, _: [task.send_signal(number) for task in tasks])
command = list(itertools.dropwhile(lambda word: word.startswith("--"), sys.argv[1:]))
Path("command").write_text(" ".join(command))
places = [{{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_NODEID": "0"}} for i in range(count)]
tasks += [subprocess.Popen(command, env=os.environ | place) for place in places]
Path("tasks").write_text(" ".join(str(task.pid) for task in tasks))
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def slurm(tmp_path, tiny_yaml):
    """slurm(*arguments) is a job of two tasks, with srun and scontrol played by scripts."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "srun").write_text(SRUN.format(python=sys.executable))
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.txt\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    port = str(processes.free_port())
    variables = dict(
        SLURM_JOB_ID="4711", SLURM_JOB_NAME="tinylm", SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE="2",
        SLURM_JOB_NUM_NODES="1", SLURM_NNODES="1", SLURM_NODELIST="127.0.0.1", SLURM_SUBMIT_DIR=str(tmp_path),
        SLURM_CPUS_PER_TASK="1", MASTER_PORT=port, PYTHON=sys.executable, PATH=f"{tools}:{os.environ['PATH']}",
    )  # fmt: skip
    started = []

    def submit(*arguments: str, **more: str) -> subprocess.Popen:
        command = ["bash", str(ROOT / "scripts/slurm.sh"), "-c", str(tiny_yaml), *arguments]
        env = processes.environment(**variables | more)
        started.append(subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield submit
    for process in started:
        with process:  # and closes its pipe
            process.kill()


@pytest.mark.slow
def test_slurm_saves_before_the_time_is_up_requeues_and_resumes(slurm, tmp_path):
    long = ["--trainer.max_steps", "100000", "--trainer.val_check_interval", "50000"]
    job = slurm("--run.name", "mine", *long)
    last = tmp_path / "runs/mine/checkpoints/last.ckpt"
    assert processes.wait_for(last.exists)
    os.kill(job.pid, signal.SIGUSR1)  # as --signal=B:USR1@90 does: to the script, which passes it on
    _, err = job.communicate(timeout=240)
    assert job.returncode == 75, err
    assert err.count("tinylm: stopped after step") == 1 and "error:" not in err
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"
    step = torch.load(last)["global_step"]

    _, err = (again := slurm("--run.name=mine", "--trainer.max_steps", str(step + 2))).communicate(timeout=100)
    assert again.returncode == 0, err
    assert f"resuming runs/mine from step {step:,} (last.ckpt)" in err
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711\n"  # the script finished
    assert not list(tmp_path.rglob("hpc_ckpt*"))


def test_slurm_needs_a_name(slurm):
    _, err = (job := slurm()).communicate(timeout=240)
    assert (job.returncode, err.count("\n")) == (2, 1)
    assert "tinylm: error: --run.name: missing" in err


def test_the_slurm_script_asks_for_what_it_relies_on():
    lines = (ROOT / "scripts/slurm.sh").read_text().splitlines()
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert asked["signal"] == "B:USR1@90" and "requeue" in asked
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]


@pytest.mark.parametrize(
    ("code", "told", "requeued"),
    [(75, "", True), (75, "USR1", True), (138, "USR1", True), (143, "USR1", True), (70, "USR1", False),
     (0, "USR1", False), (138, "", False), (70, "", False), (75, "TERM", False)],
)  # fmt: skip
def test_slurm_requeues_what_can_go_on_and_nothing_else(slurm, tmp_path, code, told, requeued):
    """An announced limit also requeues tasks that died of it; scancel's TERM leaves the decision to SLURM."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntrap '' USR1; touch started; sleep 0.5; exit {code}\n")
    program.chmod(0o755)
    job = slurm("--run.name", "mine", PYTHON=str(program), SLURM_NTASKS="1", SLURM_NTASKS_PER_NODE="1")
    assert processes.wait_for((tmp_path / "started").exists)
    if told:
        job.send_signal(getattr(signal, f"SIG{told}"))
    job.communicate(timeout=20)
    assert job.returncode == code
    assert (tmp_path / "scontrol.txt").exists() == requeued


def test_slurm_gives_the_tasks_of_an_array_their_names_and_seeds_and_heeds_the_configs_strategy(slurm, tmp_path):
    (program := tmp_path / "program").write_text("#!/bin/sh\nexit 75\n")
    program.chmod(0o755)
    array = dict(SLURM_ARRAY_JOB_ID="4711", SLURM_ARRAY_TASK_ID="3")
    job = slurm("-c", "overlays/fsdp.yaml", "--run.name", "mine", PYTHON=str(program), **array)
    assert job.wait(20) == 75
    words = (tmp_path / "command").read_text()
    assert words.index("--trainer.strategy ddp") < words.index("-c overlays/fsdp.yaml")
    assert words.endswith("--run.name mine-3 --seed_everything 3")
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 4711_3\n"  # 4711 would be all tasks


def test_lightnings_advice_on_srun_is_silent(monkeypatch, tmp_path, recwarn):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    quiet_lightning()
    SLURMEnvironment.detect()
    assert not [warning for warning in recwarn if "srun" in str(warning.message)]


# --- what is resolved before the processes talk


def test_a_tokenizer_is_learned_once_by_two_ranks_and_the_same_on_both(corpus, tmp_path):
    found = processes.run_ranks(2, learn, str(corpus), str(tmp_path), out=tmp_path)
    assert found[0]["sha256"] == found[1]["sha256"]
    assert sorted(each["learned"] for each in found) == [0, 1]
    text = corpus.read_text()
    assert found[0]["sha256"] == BPETokenizer.train_from_texts([text[: int(0.9 * len(text))]], vocab_size=300).sha256


def learn(corpus: str, cache: str, path: Path) -> None:
    """Resolves a BPE tokenizer slowly, so that the other process arrives meanwhile."""
    from tinylm.data import TextDataModule

    calls, slow = [], BPETokenizer.train_from_streams.__func__

    def train(cls, *args, **options):
        calls.append(1)
        time.sleep(1)
        return slow(cls, *args, **options)

    BPETokenizer.train_from_streams = classmethod(train)
    tokenizer = TextDataModule(corpus, "bpe:300", cache_dir=cache).tokenizer
    path.write_text(json.dumps({"sha256": tokenizer.sha256, "learned": len(calls)}))
