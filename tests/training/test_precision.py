"""The precision that is chosen where `trainer.precision` is empty."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from tinylm.errors import ConfigError
from tinylm.runs.metrics import read_metrics
from tinylm.training.precision import SamePrecision, choose_precision, device_kind, warn_of_slow_types

WIDE = ["--model.network.d_model", "192", "--model.network.num_layers", "1", "--trainer.val_check_interval", "3"]


def has(monkeypatch, *instructions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))


@pytest.mark.parametrize(
    ("capabilities", "devices", "precision"),
    [
        ([(7, 5)], "auto", "32-true"),  # Turing multiplies in float16 only
        ([(8, 0)], "auto", "bf16-mixed"),
        ([(9, 0), (7, 0), (9, 0)], 2, "32-true"),  # the weakest decides
        ([(9, 0), (7, 0)], [0], "bf16-mixed"),
        ([(9, 0), (7, 0)], "0,0", "bf16-mixed"),
        ([(9, 0), (7, 0)], "0,1", "32-true"),
    ],
)
def test_gpus_train_in_bfloat16_if_all_of_them_multiply_in_it(monkeypatch, capabilities, devices, precision):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capabilities[number])
    assert choose_precision("cuda", devices, 64)[0] == precision


@pytest.mark.parametrize(
    ("instructions", "d_model", "precision"),
    [
        (["avx512_bf16"], 128, "32-true"),
        (["avx512_bf16"], 192, "bf16-mixed"),
        (["avx512_bf16", "amx_bf16"], 768, "bf16-mixed"),
        (["avx512_f", "avx2"], 768, "32-true"),
    ],
)
def test_a_processor_trains_wide_models_in_bfloat16_if_it_multiplies_in_it(
    monkeypatch, instructions, d_model, precision
):
    has(monkeypatch, *instructions)
    assert choose_precision("cpu", "auto", d_model)[0] == precision


def test_other_devices_train_in_float32(monkeypatch):
    has(monkeypatch, "avx512_bf16")
    assert choose_precision("mps", "auto", 768) == ("32-true", None)


def test_auto_means_the_gpu_if_there_is_one(monkeypatch):
    assert device_kind("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_kind("auto") == device_kind("gpu") == "cuda" and device_kind("cpu") == "cpu"


@pytest.fixture
def high_again():
    yield
    torch.set_float32_matmul_precision("highest")


def test_float32_products_use_tf32_on_cuda_only_and_not_against_a_setting(monkeypatch, tmp_path, high_again):
    from tinylm.training.precision import set_precision

    def setting(accelerator: str, before: str) -> str:
        torch.set_float32_matmul_precision(before)
        trainer = SimpleNamespace(precision="32-true", plugins=None, accelerator=accelerator, devices=1)
        set_precision(SimpleNamespace(trainer=trainer, resume=False), tmp_path)
        return torch.get_float32_matmul_precision()

    assert [setting("cpu", "highest"), setting("cuda", "highest"), setting("cuda", "medium")] == [
        "highest", "high", "medium",
    ]  # fmt: skip


def test_the_choice_is_told_and_recorded_and_a_resumed_run_keeps_it_on_any_machine(
    cli, tiny_yaml, tmp_path, monkeypatch
):
    has(monkeypatch, "avx512_bf16")
    whole = cli("fit", "-c", tiny_yaml, *WIDE, "--run.name", "whole", "--trainer.max_steps", "6")
    assert whole.code == 0, whole.err
    told = "tinylm: precision: bf16-mixed (avx512_bf16, d_model of at least 192); trainer.precision sets another"
    assert whole.err.splitlines().count(told) == 1
    recorded = yaml.safe_load((tmp_path / "runs/whole/config.yaml").read_text())
    assert recorded["trainer"]["precision"] == "bf16-mixed"
    options = ["fit", "-c", tiny_yaml, *WIDE, "--run.name", "half", "--model.schedule.name", "constant"]
    assert cli(*options, "--trainer.max_steps", "3").code == 0
    has(monkeypatch)  # another machine
    resumed = cli(*options, "--resume", "--trainer.max_steps", "6")
    assert resumed.code == 0 and "precision bf16-mixed" in resumed.err, resumed.err
    has(monkeypatch, "avx512_bf16")
    unbroken = cli(*options[:-3], "once", *options[-2:], "--trainer.max_steps", "6")
    assert unbroken.code == 0, unbroken.err
    losses = [read_metrics(tmp_path / f"runs/{name}/metrics.csv")["train/loss"] for name in ("half", "once")]
    assert losses[0] == losses[1]


def test_a_setting_wins_and_small_models_stay_in_float32_without_a_word(cli, tiny_yaml, tmp_path, monkeypatch):
    has(monkeypatch, "avx512_bf16")
    small = cli("fit", "-c", tiny_yaml, "--run.name", "small", "--trainer.max_steps", "1")
    wide = cli("fit", "-c", tiny_yaml, *WIDE, "--trainer.precision", "32-true", "--trainer.max_steps", "1")
    for result in (small, wide):
        assert result.code == 0 and "precision 32-true" in result.err and "precision:" not in result.err, result.err
    assert yaml.safe_load((tmp_path / "runs/small/config.yaml").read_text())["trainer"]["precision"] == "32-true"


@pytest.mark.parametrize(
    ("kind", "precision", "ns_dtype", "times", "told"),
    [
        ("cpu", "bf16-mixed", "auto", 56.0, ["trainer.precision is bf16-mixed", "56 times faster", "set 32-true"]),
        ("cpu", "16-true", "auto", 4.0, ["trainer.precision is 16-true", "4 times faster"]),
        ("cpu", "32-true", "bfloat16", 8.0, ["model.optimizer.ns_dtype is bfloat16", "8 times faster", "set float32"]),
        ("cpu", "bf16-mixed", "bfloat16", 0.6, []),  # it has the instructions
        ("cpu", "64-true", "float32", 9.0, []),
        ("cuda", "bf16-mixed", "bfloat16", 9.0, []),
    ],
)
def test_types_in_which_the_processor_is_slow_are_told(monkeypatch, kind, precision, ns_dtype, times, told):
    monkeypatch.setattr("tinylm.training.precision.time_beside_float32", lambda dtype: times)
    lines = []
    monkeypatch.setattr("tinylm.training.precision.notice", lines.append)
    warn_of_slow_types(kind, precision, ns_dtype)
    assert len(lines) == bool(told) and all(each in lines[0] for each in told)


def test_a_processor_without_bfloat16_is_told_and_its_mfu_is_a_share_of_float32(tiny_yaml, tmp_path):
    command = [sys.executable, "-m", "tinylm", "fit", "-c", str(tiny_yaml), *WIDE, "--trainer.precision", "bf16-mixed"]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    result = subprocess.run(
        [*command, "--trainer.max_steps", "2", "--run.peak_flops", "null"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "trainer.precision is bf16-mixed, but this processor multiplies" in result.stderr
    assert "measured float32 peak" in result.stderr
    _, shares = read_metrics(tmp_path / "runs/mini/metrics.csv")["perf/mfu"]
    assert shares and max(shares) < 1


def test_ranks_that_have_chosen_unlike_precisions_are_refused():
    strategy = SimpleNamespace(broadcast=lambda _: "bf16-mixed")
    trainer = SimpleNamespace(precision="32-true", global_rank=1, strategy=strategy)
    with pytest.raises(ConfigError, match=r"trainer.precision: rank 0 has chosen bf16-mixed, rank 1 32-true: .*; set"):
        SamePrecision().setup(trainer, None, "fit")  # pyright: ignore[reportArgumentType]
    trainer.precision = "bf16-mixed"
    SamePrecision().setup(trainer, None, "fit")  # pyright: ignore[reportArgumentType]
