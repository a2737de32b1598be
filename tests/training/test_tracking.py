"""W&B, offline: the records of a run are read from its .wandb file by wandb's own protocol buffers."""

import http.server
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
import yaml

from tests import processes
from tests.training import wandb_server
from tinylm.errors import ConfigError
from tinylm.files import read_json
from tinylm.model import ModelConfig, flops_per_token
from tinylm.runs.folder import RUN_FOLDER
from tinylm.runs.metrics import read_metrics
from tinylm.training.wandb_files import histogram, model_metadata
from tinylm.training.wandb_log import cut_incomplete_records
from tinylm.training.wandb_start import check_sweep, choose_mode, group_name, job_type

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / "configs/overlays/wandb.yaml"
KEY = "0123456789" * 4  # has the form of an API key


def without_account(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """No key, and no file of the user's is read or written."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)
    patch.setenv("NETRC", str(folder / "netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        patch.setenv(name, str(folder / "wandb-home"))
    patch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture(autouse=True)
def _without_account(monkeypatch, tmp_path) -> Iterator[None]:
    without_account(monkeypatch, tmp_path)
    yield
    wandb.teardown()  # waits for wandb's service process


@pytest.fixture(scope="module")
def tracked(tiny_yaml, tmp_path_factory) -> Iterator[Path]:
    """The folder of a finished run, tracked with all histograms, which tests must not change."""
    from tinylm.training.cli import main

    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        without_account(patch, folder)
        patch.setenv("WANDB_SILENT", "")  # crashes wandb where it is left as it is
        patch.delenv(RUN_FOLDER, raising=False)
        arguments = ["fit", "-c", str(tiny_yaml), "-c", str(OVERLAY), "--run.dir", str(folder)]
        arguments += ["--trainer.logger.watch", "all", "--trainer.logger.watch_every", "4"]
        arguments += ["--trainer.logger.log_model", "all"]
        patch.setenv("WANDB_X_STATS_SAMPLING_INTERVAL", "0.1")
        patch.setattr(sys, "argv", ["train.py", *arguments])
        assert main() == 0
        os.environ.pop(RUN_FOLDER, None)
        assert "WANDB_DATA_DIR" not in os.environ
        wandb.teardown()
    return folder / "mini"


def segments(run: Path) -> list[Path]:
    return sorted(run.glob("wandb/offline-run-*"))


def records(segment: Path) -> list:
    """Reads a segment: protocol buffers in a LevelDB log (blocks of 32 KiB; CRC, length and kind before each)."""
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # waits for the service, which writes on for a moment after a run is finished
    (path,) = segment.glob("*.wandb")
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    found, parts, place = [], b"", 7
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if place + 7 + size > len(data):  # cut off
            break
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def values(items) -> dict:
    """Items of a config or a row, nested as they were logged."""
    found: dict = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = found
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def changes() -> bytes:
    """The uncommitted changes of the repository, which W&B keeps."""
    return subprocess.run(["git", "diff", "HEAD"], cwd=ROOT, capture_output=True).stdout


def history(found: list) -> list[dict]:
    return [values(record.history.item) for record in found if record.WhichOneof("record_type") == "history"]


def column(rows: list[dict], name: str) -> tuple[list[int], list[float]]:
    pairs = [(row["trainer/global_step"], row[name]) for row in rows if name in row]
    return [step for step, _ in pairs], [value for _, value in pairs]


def only(found: list, kind: str) -> list:
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def test_a_run_is_named_as_its_folder_and_has_the_id_that_the_folder_keeps(tracked):
    (segment,) = segments(tracked)
    (run,) = only(records(segment), "run")
    assert (run.display_name, run.project, run.resume) == ("mini", "tinylm", True)
    assert run.run_id == read_json(tracked / "wandb.json")["id"]
    assert segment.name.endswith(run.run_id)


def test_the_whole_config_is_recorded(tracked):
    recorded: dict = {}
    for config in only(records(segments(tracked)[0]), "config"):
        recorded |= values(config.update)
    recorded.pop("_wandb", None)
    weights = torch.load(tracked / "checkpoints/last.ckpt")["state_dict"]
    shared = weights["net.head.weight"].numel()  # tied to the embedding
    assert recorded.pop("parameters") == sum(tensor.numel() for tensor in weights.values()) - shared
    assert recorded.pop("vocab_size") == weights["net.embedding.weight"].shape[0]
    assert recorded == yaml.safe_load((tracked / "config.yaml").read_text())


def test_metrics_are_those_of_metrics_csv_at_the_same_steps(tracked):
    rows = history(records(segments(tracked)[0]))
    expected = read_metrics(tracked / "metrics.csv")
    assert {"train/loss", "val/loss", "lr", "perf/tokens_per_sec"} <= expected.keys()
    for name, (steps, numbers) in expected.items():
        assert column(rows, name) == (steps, pytest.approx(numbers, rel=1e-7)), name


def test_axes_summary_group_and_job_type_are_those_that_wandb_users_expect(tracked):
    found = records(segments(tracked)[0])
    metrics = {metric.glob_name or metric.name: metric for metric in only(found, "metric")}
    assert {each.step_metric for name, each in metrics.items() if name != "trainer/global_step"} == {
        "trainer/global_step"  # the default axis
    }
    assert metrics["*"].glob_name and metrics["val/loss"].summary.min and metrics["val/accuracy"].summary.max
    tokens, flops = (column(history(found), f"trainer/{name}") for name in ("tokens", "flops"))
    assert tokens[1] == [step * 8 * 32 for step in tokens[0]]  # batch_size x max_seq_len
    each = read_json(tracked / "model" / "tinylm.json")["model"]
    assert flops[1] == [number * flops_per_token(ModelConfig(**each)) for number in tokens[1]]
    assert set(tokens[0]) == set(range(1, 13))
    (run,) = only(found, "run")
    config = yaml.safe_load((tracked / "config.yaml").read_text())
    seeds = {**config, "seed_everything": 7, "data": {**config["data"], "seed": 7}, "run": {"name": "another"}}
    other = {**config, "trainer": {**config["trainer"], "max_steps": 7}}
    assert run.run_group == group_name(config) == group_name(seeds) != group_name(other)
    assert run.run_group.startswith("fox-2x32-muon-lr0.01-") and run.job_type == "train"
    adapted = {"model": {"init_from": "x", "lora": {"rank": 2}}}, {"model": {"init_from": "x", "lora": None}}
    assert [job_type(each) for each in adapted] == ["lora", "finetune"]


def test_console_system_metrics_and_code_are_recorded(tracked):
    found = records(segments(tracked)[0])
    said = "".join(each.line for each in only(found, "output_raw"))
    assert "tinylm: W&B: offline" in said and "tinylm: to try it: " in said
    assert "cpu" in {item.key for each in only(found, "stats") for item in each.item}
    (environment, *_) = only(found, "environment")
    words = ["git", "-C", str(processes.ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True).stdout.strip()  # none in an archive of the sources
    assert environment.git.commit == commit and environment.args
    assert (segments(tracked)[0] / "files/diff.patch").is_file() == bool(changes())


def test_versions_of_artifacts_are_links_and_have_the_aliases_best_and_last(tracked):
    artifacts = only(records(segments(tracked)[0]), "artifact")
    aliases = {kind: [{*each.aliases} for each in artifacts if each.type == kind] for kind in ("checkpoint", "model")}
    assert aliases["model"] == [{"latest", "best", "last"}]
    saved = [[name for name in ("best", "last") if name in each] for each in aliases["checkpoint"]]
    assert saved.count(["best"]) == 3 and saved[-1] == ["last"] and {"step-12"} <= aliases["checkpoint"][-1]
    places = [
        Path(entry.local_path) for each in artifacts for entry in each.manifest.contents if each.type != "run_table"
    ]
    inodes = {path.stat().st_ino: path for path in places}
    for path in (*(tracked / "model").iterdir(), *(tracked / "checkpoints").glob("*.ckpt")):
        assert path.stat().st_ino in inodes, path


def test_histograms_are_of_the_weights_and_gradients_at_their_steps(tracked):
    rows = [row for row in history(records(segments(tracked)[0])) if any(name.startswith("gradients/") for name in row)]
    assert [row["trainer/global_step"] for row in rows] == [4, 8, 12]
    weights = torch.load(tracked / "checkpoints/last.ckpt")["state_dict"]
    name = "net.blocks.1.attention.query.weight"
    counts, edges = np.histogram(weights[name].numpy(), 64)
    recorded = rows[-1][f"parameters/{name}"]
    assert recorded["_type"] == "histogram"
    np.testing.assert_allclose(recorded["bins"], edges, atol=1e-6)
    assert np.abs(np.array(recorded["values"]) - counts).sum() <= 4  # values at an edge may fall to either side
    for name, tensor in weights.items():
        if name != "net.head.weight":
            assert sum(rows[0][f"gradients/{name}"]["values"]) == tensor.numel()


def test_samples_are_one_table_of_step_prompt_and_text(tracked):
    rows = [row for row in history(records(segments(tracked)[0])) if "samples" in row]
    assert [row["trainer/global_step"] for row in rows] == [4, 8, 12]
    table = json.loads((segments(tracked)[0] / "files" / rows[-1]["samples"]["path"]).read_text())
    written = [part.split("\n", 1) for part in (tracked / "samples.txt").read_text().split("=== step ")[1:]]
    assert table["columns"] == ["step", "prompt", "text"]
    assert table["data"] == [[int(step), "the ", text.removesuffix("\n\n")] for step, text in written]


def test_curves_and_model_folder_are_kept_with_the_models_figures(tracked):
    found = records(segments(tracked)[0])
    (row,) = [row for row in history(found) if "curves" in row]
    picture = segments(tracked)[0] / "files" / row["curves"]["path"]
    assert picture.read_bytes() == (tracked / "curves.png").read_bytes()
    (model,) = [artifact for artifact in only(found, "artifact") if artifact.type == "model"]
    files = {entry.path: Path(entry.local_path).read_bytes() for entry in model.manifest.contents}
    assert files == {path.name: path.read_bytes() for path in (tracked / "model").iterdir()}
    metadata = json.loads(model.metadata)
    assert (metadata["step"], metadata["run"], metadata["model"]["d_model"]) == (12, "mini", 32)
    assert metadata["val/loss"] == read_metrics(tracked / "metrics.csv")["val/loss"][1][-1]
    assert metadata == model_metadata(tracked)
    assert all(Path(entry.local_path).is_relative_to(tracked) for entry in model.manifest.contents)


@pytest.mark.parametrize(
    ("kind", "code", "title"), [("NumericError", 70, "Not finite"), ("Preempted", 75, "Preempted")]
)
def test_a_run_that_fails_is_ended_with_an_alert_and_told_how_to_upload(
    cli, tiny_yaml, tmp_path, monkeypatch, kind, code, title
):
    """Under the id of a sweep's agent, and with an empty project variable, which must not count."""
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    monkeypatch.setenv("WANDB_PROJECT", "")
    (tmp_path / "tracking_failer.py").write_text(
        f"import lightning.pytorch as pl\nfrom tinylm.errors import {kind}\n\nclass Fail(pl.Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        f"        if trainer.global_step == 2:\n            raise {kind}('pulled the plug')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tracking_failer", raising=False)
    result = cli("fit", "-c", tiny_yaml, "-c", "wandb", "--trainer.callbacks+=tracking_failer.Fail")
    assert result.code == code and "pulled the plug" in result.err.splitlines()[-1]
    (segment,) = segments(tmp_path / "runs/mini")
    assert segment.name.endswith("-fromagent")
    found = records(segment)
    assert [exit.exit_code for exit in only(found, "exit")] == [1]
    assert [(each.title, each.text) for each in only(found, "alert")] == [(title, "pulled the plug")]
    lines = [line for line in result.err.splitlines() if "W&B" in line]
    assert lines == [
        "tinylm: W&B: offline, without an API key (set WANDB_API_KEY, or wandb login)",
        f"tinylm: to upload to W&B: wandb sync {segment.relative_to(tmp_path)}",
    ]
    assert "wandb:" not in result.err + result.out  # wandb itself prints nothing


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
def test_a_killed_run_goes_on_as_the_same_run_in_a_second_segment(cli, tiny_yaml, tmp_path):
    command = [sys.executable, str(ROOT / "scripts/train.py"), "fit", "-c", str(tiny_yaml), "-c", str(OVERLAY)]
    constant = ["--model.schedule.name", "constant"]  # the same rates, however many steps are planned
    command += ["--trainer.max_steps", "100000", *constant]
    environment = {name: value for name, value in os.environ.items() if name != RUN_FOLDER}
    environment["PYTHONPATH"] = str(ROOT)
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    run, deadline = tmp_path / "runs/mini", time.monotonic() + 120
    while not (run / "samples.txt").exists() or sum(map(size_of_log, segments(run))) < 10_000:  # and on the disk
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    step = max(torch.load(path)["global_step"] for path in run.glob("checkpoints/*.ckpt"))  # best may be the newer

    stop = 4 * (step // 4 + 1)  # the next validation
    result = cli("fit", "-c", tiny_yaml, "-c", OVERLAY, "--resume", "--trainer.max_steps", stop, *constant)
    assert result.code == 0, result.err
    first, second = segments(run)
    assert f"to upload to W&B: wandb sync {first.relative_to(tmp_path)} {second.relative_to(tmp_path)}" in result.err
    (one,), (two,) = (only(records(segment), "run") for segment in (first, second))
    assert one.run_id == two.run_id == read_json(run / "wandb.json")["id"]
    whole, rows = [], history(records(second))
    for name, every in (("train/loss", 1), ("val/loss", 4)):  # W&B has each step once, whatever the kill has cost it
        values = dict(zip(*read_metrics(run / "metrics.csv")[name], strict=True))
        for segment in (history(records(first)), rows):
            whole += [(name, *row) for row in zip(*column(segment, name), strict=True) if row[0] <= stop]
        found = sorted((step, value) for each, step, value in whole if each == name)
        assert [step for step, _ in found] == list(range(every, stop + 1, every))
        assert [value for _, value in found] == pytest.approx([values[step] for step, _ in found], rel=1e-7)
    table = [row["samples"] for row in rows if "samples" in row][-1]
    samples = json.loads((second / "files" / table["path"]).read_text())["data"]
    steps = [row[0] for row in samples]  # a kill before the last one was made leaves it out
    assert steps[0] == 4 and steps[-1] == stop and set(range(4, stop + 1, 4)) - set(steps) <= {4 * (step // 4)}
    assert not any(name.startswith(("gradients/", "parameters/")) for row in rows for name in row)


def kill_at(command: list[str], folder: Path, file: Path, size: int) -> None:
    """Starts a run, and kills all its processes when a file has grown by a number of bytes."""
    grown = (file.stat().st_size if file.exists() else 0) + size
    process = processes.tinylm(folder, *command)
    deadline = time.monotonic() + 120
    while not file.exists() or file.stat().st_size < grown:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def once(rows: list[dict], run: Path) -> None:
    """Asserts that each metric of metrics.csv, table and histogram has each of its steps once, in rows by number."""
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    for name, (steps, numbers) in read_metrics(run / "metrics.csv").items():
        found, logged = column(rows, name)
        assert found == steps, name
        if not name.startswith("perf/"):
            assert logged == pytest.approx(numbers, rel=1e-7), name
    assert column(rows, "samples")[0] == read_metrics(run / "metrics.csv")["val/loss"][0]
    for name in {name for row in rows for name in row if name.startswith(("gradients/", "parameters/"))}:
        steps = column(rows, name)[0]  # of rows that a kill has cost it there are none
        assert steps == sorted(set(steps)) and all(step % 8 == 0 for step in steps)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_after_three_kills_the_server_has_each_step_once(cli, tiny_yaml, tmp_path, monkeypatch, mode):
    with wandb_server.serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_MODE", mode)
        run = tmp_path / "runs/mini"
        command = ["fit", "-c", str(tiny_yaml), "-c", str(OVERLAY), "--model.schedule.name", "constant"]
        command += ["--trainer.logger.watch", "all", "--trainer.logger.watch_every", "8", "--trainer.max_steps"]
        for number, size in enumerate(random.Random(0).sample(range(500, 5000), 3)):
            kill_at([*command, "100000", *["--resume"][:number]], tmp_path, run / "metrics.csv", size)
        step = max(torch.load(path)["global_step"] for path in run.glob("checkpoints/*.ckpt"))
        result = cli(*command, 4 * (step // 4 + 3), "--resume")
        assert result.code == 0 and "wandb:" not in result.err, result.err
        wandb.teardown()
        if mode == "offline":
            (sync,) = [line for line in result.err.splitlines() if "to upload to W&B" in line]
            arguments = shlex.split(sync.split(": ", 2)[2])[1:]
            program = [sys.executable, "-m", "wandb", *arguments]
            assert arguments[0] == "sync"
            synced = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=100)
            assert synced.returncode == 0 and "ERROR" not in synced.stderr, synced.stderr
        once(server.rows(read_json(run / "wandb.json")["id"])[:-1], run)  # the last one has the curves


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
def test_of_two_ranks_that_are_killed_and_resumed_one_logs_each_step_once(tiny_yaml, tmp_path):
    run = tmp_path / "runs/mini"
    command = ["fit", "-c", str(tiny_yaml), "-c", str(OVERLAY), "-c", "ddp", "--model.schedule.name", "constant"]
    command += ["--trainer.devices", "2", "--trainer.max_steps"]
    kill_at([*command, "100000"], tmp_path, run / "metrics.csv", 3000)
    step = max(torch.load(path)["global_step"] for path in run.glob("checkpoints/*.ckpt"))
    _, err = (resumed := processes.tinylm(tmp_path, *command, 4 * (step // 4 + 3), "--resume")).communicate()
    assert resumed.returncode == 0, err
    assert len(segments(run)) == 2
    once([row for segment in segments(run) for row in history(records(segment))][:-1], run)


def test_of_a_killed_log_the_incomplete_record_is_cut_off_and_nothing_else(tracked, tmp_path):
    """At every place of the last 300 bytes, by wandb's own protocol buffers; a whole log stays as it is."""
    (whole,) = segments(tracked)[0].glob("*.wandb")
    name = segments(tracked)[0].name
    log = tmp_path / "wandb" / name / whole.name
    log.parent.mkdir(parents=True)
    data = whole.read_bytes()
    for size in [0, 3, 7, *range(len(data) - 300, len(data) + 1)]:
        log.write_bytes(data[:size])
        expected = records(log.parent) if size > 7 else []
        cut_incomplete_records(tmp_path, read_json(tracked / "wandb.json")["id"])
        assert data.startswith(log.read_bytes())
        assert log.stat().st_size >= min(size, 7)
        if expected:
            assert records(log.parent) == expected
            ends = log.stat().st_size
            log.write_bytes(data[: ends - 1])
            assert len(records(log.parent)) == len(expected) - 1  # it ended with a record
    assert ends == len(data)


def size_of_log(segment: Path) -> int:
    return sum(path.stat().st_size for path in segment.glob("*.wandb"))


def test_disabled_leaves_nothing_and_says_nothing(cli, tiny_yaml, tmp_path):
    options = [
        "--trainer.logger.mode",
        "disabled",
        "--trainer.logger.watch",
        "all",
        "--trainer.logger.watch_every",
        "1",
    ]
    result = cli("fit", "-c", tiny_yaml, "-c", OVERLAY, *options, "--trainer.max_steps", "4")
    assert result.code == 0, result.err
    assert "W&B" not in result.err and not (tmp_path / "runs/mini/wandb.json").exists()
    assert not list(tmp_path.rglob("*.wandb"))


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """A W&B server that knows no key of ours."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"errors": [{"message": "user is not logged in"}]}')

        do_GET = do_POST  # noqa: N815

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_refused_key_is_one_line(cli, tiny_yaml, tmp_path, monkeypatch, refusing_server):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", refusing_server)
    result = cli("fit", "-c", tiny_yaml, "-c", OVERLAY)
    assert result.code == 2
    assert "wandb.yaml: trainer.logger: W&B refuses the run (" in result.error
    assert result.error.endswith("; wandb login with a valid key, or add --trainer.logger.mode offline")
    assert not list(tmp_path.glob("runs/*"))


def test_a_network_that_is_not_there_is_one_line_after_a_short_time(cli, tiny_yaml, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    started = time.monotonic()
    result = cli("fit", "-c", tiny_yaml, "-c", OVERLAY)
    assert time.monotonic() - started < 20
    assert result.code == 74
    assert result.error.startswith("trainer.logger: W&B cannot be reached (")
    assert result.error.endswith("; try again when the network is back, or add --trainer.logger.mode offline")
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--trainer.logger.watch", "foo"], {}, "watch must be one of none, gradients, weights, all, got foo"),
        (["--trainer.logger.watch_every", "0"], {}, "watch_every must be at least 1, got 0"),
        ([], {"WANDB_API_KEY": "abc"}, "W&B refuses the run (WANDB_API_KEY invalid: "),
        ([], {"WANDB_FORK_FROM": "x?_step=1"}, "WANDB_FORK_FROM: a run resumes from a checkpoint"),
        ([], {"WANDB_MODE": "foo"}, "WANDB_MODE: Input should be 'online', 'offline', "),
        (["--trainer.logger.projekt", "x"], {}, "projekt"),
    ],
)
def test_mistakes_are_one_line(cli, tiny_yaml, tmp_path, monkeypatch, arguments, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = cli("fit", "-c", tiny_yaml, "-c", OVERLAY, *arguments)
    assert result.code == 2
    assert message in result.error
    assert not list(tmp_path.glob("runs/*"))


def test_a_logger_that_is_not_installed_is_one_line(cli, tiny_yaml, monkeypatch):
    monkeypatch.setattr("tinylm.training.preflight.find_spec", lambda name: None)
    result = cli("fit", "-c", tiny_yaml, "-c", OVERLAY)
    assert result.code == 2
    assert result.error.endswith("wandb.yaml: trainer.logger: W&B is not installed; pip install wandb")
    for option in ("MLFlowLogger", "lightning.pytorch.loggers.MLFlowLogger"):
        result = cli("fit", "-c", tiny_yaml, f"--trainer.logger+={option}")
        assert (result.code, result.error) == (2, "trainer.logger: MLflow is not installed; pip install mlflow")


@pytest.mark.parametrize(
    ("argument", "environment", "expected"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_API_KEY": KEY}, "online"),
        (None, {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        ("online", {"WANDB_MODE": "offline"}, "online"),
        ("offline", {"WANDB_API_KEY": KEY}, "offline"),
        (None, {"NETRC": "with a key"}, "online"),
    ],
)
def test_mode_is_online_only_where_there_is_a_key_and_nothing_else_is_asked(
    tmp_path, monkeypatch, argument, environment, expected
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "NETRC" in environment:
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    wandb.setup(wandb.Settings(silent=True))
    assert choose_mode(argument)[0] == expected


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ({"model.optimizer.lr": "1e-3", "seed_everything": 1, "model": {"optimizer": {"name": "adamw"}}}, None),
        (
            {"model.optimizer.lr": 0.002},
            "sweep parameter model.optimizer.lr: the sweep chose 0.002, the run has 0.001; ",
        ),
        ({"lr": 0.002}, "sweep parameter lr: no such option; give its dotted name"),
    ],
)
def test_a_sweep_varies_what_it_says(tmp_path, monkeypatch, chosen, problem):
    path = tmp_path / "parameters.yaml"
    path.write_text(yaml.safe_dump({"wandb_version": 1, **{name: {"value": value} for name, value in chosen.items()}}))
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
    config = {"seed_everything": 1, "model": {"optimizer": {"name": "adamw", "lr": 0.001}}}
    if problem is None:
        check_sweep(config)
    else:
        with pytest.raises(ConfigError, match=re.escape(problem)):
            check_sweep(config)


def test_histogram_is_numpys_and_leaves_out_what_is_not_finite():
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    counts, edges = np.histogram(numbers.numpy(), 64)
    ours = histogram(torch.cat([numbers, torch.tensor([torch.nan, torch.inf])]).reshape(2, -1))
    assert list(ours.histogram) == counts.tolist()
    np.testing.assert_allclose(ours.bins, edges, atol=1e-6)
    constant = histogram(torch.full((7,), 3.0))
    assert sum(constant.histogram) == 7 and (constant.bins[0], constant.bins[-1]) == (2.5, 3.5)


@pytest.mark.slow
def test_wandb_is_imported_only_when_it_is_asked_for():
    code = "import sys, tinylm.training.cli; sys.exit('wandb' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
