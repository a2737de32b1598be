"""Costs of a run against what PyTorch counts, against hand calculation, and against each other."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tinylm.adapt import LoRAConfig
from tinylm.commands import run_command
from tinylm.errors import ConfigError
from tinylm.experiments.devices import DEVICES, find_device
from tinylm.experiments.estimate import (
    FILLED,
    by_part,
    estimate,
    largest_rows,
    muon_flops,
    recomputed_flops,
    simulate,
    training_flops,
)
from tinylm.experiments.measure import step_seconds
from tinylm.experiments.workload import Workload, count_by_part
from tinylm.kernels.rms_norm import tune_for_training
from tinylm.model import ModelConfig, TransformerLM
from tinylm.optim.muon import orthogonalize
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.training.memory import fake_copy, step_memory

SHAPE = dict(vocab_size=300, d_model=64, num_layers=3, num_heads=4, max_seq_len=48)


def workload(rows: int = 4, **options) -> Workload:
    own = {name: options.pop(name) for name in list(options) if name in Workload.__dataclass_fields__}
    settings = dict(optimizer=OptimizerConfig(), batch_size=rows, rows=rows, context=48, steps=100)
    return Workload(**(settings | dict(network=ModelConfig(**(SHAPE | options))) | own))


# --- parameters and operations

NETWORKS = {
    "presets": {},
    "GPT-2": dict(positional_encoding="learned", norm="layernorm", activation="gelu", qk_norm=False, bias=True),
    "untied, few key heads": dict(tie_embeddings=False, num_kv_heads=1, norm_placement="post"),
    "recomputed": dict(activation_checkpointing=True),
    "adapters": dict(lora=LoRAConfig(rank=4), num_layers=8),  # the first layer needs no gradient of its input
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_parameters_are_those_of_the_model_and_operations_those_that_pytorch_counts(options):
    run = workload(attention_kernel="plain", **options)
    net = run.make_net().train()
    tune_for_training(net)
    counts, trained = count_by_part(run)
    total = sum(parameter.numel() for parameter in net.parameters())
    assert sum(counts.values()) == total
    assert trained == sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    ids = torch.zeros(2, 48, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        net(ids, targets=ids).backward()
    flops = training_flops(run, total, trained)
    flops += recomputed_flops(run, flops)
    assert flops == pytest.approx(counter.get_total_flops() / ids.numel(), rel=0.02)


def test_operations_of_muon_are_those_that_pytorch_counts():
    run = workload(optimizer=OptimizerConfig(name="muon"))
    found = 0
    for name, each in run.make_net().named_parameters():
        if each.ndim == 2 and "blocks." in name:
            with FlopCounterMode(display=False) as counter:
                orthogonalize(each.detach()[None])
            found += counter.get_total_flops()
    assert muon_flops(run) == found
    assert muon_flops(workload()) == 0


# --- memory


def memory(**options):
    run = workload(**options)
    return step_memory(run.make_net, run.optimizer, rows=run.rows, context=48, accumulates=True)


def test_weights_gradients_and_states_have_the_sizes_of_the_parameters():
    net = TransformerLM(ModelConfig(**SHAPE))
    size, count = 4 * net.num_parameters(), len([*net.parameters()])
    found = memory()
    assert (found.weights, found.gradients) == (size, size)
    assert found.optimizer == 2 * size + 4 * count  # two moments; the steps of each parameter
    assert memory(optimizer=OptimizerConfig(name="sgd")).optimizer == size
    matrices = 4 * sum(each.numel() for name, each in net.named_parameters() if each.ndim == 2 and "blocks." in name)
    others = 4 * len([name for name, each in net.named_parameters() if each.ndim < 2 or "blocks." not in name])
    assert memory(optimizer=OptimizerConfig(name="muon")).optimizer == 2 * size - matrices + others
    adapted = memory(lora=LoRAConfig(rank=2))
    assert adapted.gradients == 4 * count_by_part(workload(lora=LoRAConfig(rank=2)))[1]


def test_activations_grow_with_the_batch_and_logits_are_cut_by_rows():
    one, two = memory(rows=4), memory(rows=8)
    assert two.activations == pytest.approx(2 * one.activations, rel=0.02)
    assert one.logits % (4 * 4 * 48 * 300) == 0 and two.logits == 2 * one.logits > 0
    assert memory(rows=8, loss_rows=48).logits < two.logits / 4
    assert memory(rows=8, activation_checkpointing=True).activations < two.activations / 2
    assert memory(rows=8, document_mask=True).total > two.total


@pytest.mark.parametrize(("precision", "size"), [("32-true", 4), ("bf16-mixed", 4), ("bf16-true", 2), ("64-true", 8)])
def test_weights_have_the_type_of_the_precision(precision, size):
    run = workload()
    assert simulate(run, precision).weights == size * run.make_net().num_parameters()


def test_a_real_network_is_copied_and_left_as_it_is():
    net = TransformerLM(ModelConfig(**SHAPE))
    weights = {name: each.detach().clone() for name, each in net.named_parameters()}
    found = step_memory(lambda: fake_copy(net), OptimizerConfig(), rows=4, context=48)
    assert replace(found, buffers=0) == replace(simulate(workload(), "32-true"), buffers=0)
    assert all(torch.equal(weights[name], each) and each.grad is None for name, each in net.named_parameters())


def test_fsdp_shares_what_ddp_repeats():
    run, device = workload(devices=4, batch_size=16), DEVICES["h100"]
    step = simulate(run, "32-true")
    ddp, fsdp = (by_part(step, name, run, device, 0) for name in ("ddp", "fsdp"))
    assert fsdp["weights"] == -(-ddp["weights"] // 4) and fsdp["optimizer"] == -(-ddp["optimizer"] // 4)
    assert ddp["buffers"] - step.buffers == step.weights  # the buckets
    adapted = workload(devices=4, batch_size=16, lora=LoRAConfig(rank=2))
    step = simulate(adapted, "32-true")
    buckets = by_part(step, "ddp", adapted, device, 0)["buffers"] - step.buffers
    assert buckets == 4 * count_by_part(adapted)[1]  # of the adapters alone
    assert fsdp["activations"] == ddp["activations"]


def test_the_largest_micro_batch_is_the_largest_that_fits():
    device = replace(DEVICES["h100"], memory=40_000_000)
    run = workload(rows=2)
    rows = largest_rows(run, device, "32-true", simulate(run, "32-true"), 0)["one device"]
    peaks = [
        sum(by_part(simulate(run, "32-true", count), "one device", run, device, 0).values())
        for count in (rows, rows + max(1, rows // 20))
    ]
    assert rows > 2 and peaks[0] <= 1.005 * FILLED * 40e6 < peaks[1]


# --- time


def test_the_time_on_a_known_device_follows_from_its_peak():
    run = workload(d_model=512, vocab_size=30000, batch_size=512, rows=64, devices=8)
    found = estimate(run, replace(DEVICES["h100"], memory=None), mfu=0.5, price=2.0)
    assert found.bound.startswith("arithmetic") or found.bound.startswith("kernel")
    slow = estimate(run, replace(DEVICES["h100"], low=1e12, memory=None), mfu=0.5, price=2.0)
    assert slow.bound == "arithmetic at an MFU of 50%"
    assert slow.seconds == pytest.approx(slow.step_flops / 0.5e12 / 8)
    assert slow.hours == pytest.approx(100 * slow.seconds / 3600) and slow.cost == pytest.approx(16 * slow.hours)
    assert slow.tokens == 100 * 512 * 48 and slow.mfu == pytest.approx(0.5)


def test_more_steps_of_measurement_are_the_same_step():
    run = workload(rows=2, batch_size=4)
    assert run.micro_steps == 2
    assert 0 < step_seconds(run, "cpu", "32-true", 0.01) < 5


# --- devices


def test_devices_are_found_by_name_and_others_get_an_answer():
    assert find_device("H100").low == 989e12 and find_device("a100_80").memory == 80 * 10**9
    assert find_device("h100", peak_flops=1e15).peak("bf16-mixed") == 1e15
    assert find_device(None, peak_flops=1e15, memory=32).memory == 32 * 10**9
    assert find_device("cpu").on_cpu
    with pytest.raises(ConfigError, match="no a100 in the table, did you mean 'a100-80' or 'a100-40'"):
        find_device("a100")
    with pytest.raises(ConfigError, match="no h1000 in the table, did you mean 'h100'"):
        find_device("h1000")
    with pytest.raises(ConfigError, match="--memory must be positive, got -1"):
        find_device("h100", memory=-1)


# --- the command


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tinylm"])

    def call(*words: str) -> tuple[int, str, str]:
        code = run_command("estimate", [*words])
        return code, *capfd.readouterr()

    return call


def test_the_command_reads_the_options_of_fit_and_its_own(call):
    line = "-c large --devices 8 --device h100 --price 2.5 --data.micro_batch_size 8 --trainer.max_steps 1000"
    words = line.split()
    code, out, err = call(*words, "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["parameters"]["embedding"] == 16384 * 768 and set(found["memory"]) == {"ddp", "fsdp"}
    assert found["tokens"] == 1000 * 128 * 1024 and found["cost"] == pytest.approx(2.5 * 8 * found["hours"])
    assert found["assumed"][0].startswith("a vocabulary of 16,384 tokens")
    code, out, _ = call("-c", "large", "--device", "h100", "--vocab-size", "1000", "--data.micro_batch_size", "1")
    assert code == 0 and "parameters: 85,723,392: embedding 768,000" in out and "assumed" not in out
    assert "largest micro-batch" in out and "kernel launches" in out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("-c large --device h10", "no h10 in the table, did you mean 'h100'"),
        ("-c large --model.network.n_layer 3", "model.network.n_layer: no such option, did you mean"),
        ("-c large --device h100 --devices 7", "data.batch_size must be divisible by the devices, got 128 and 7"),
        ("-c large --device h100 --data.micro_batch_size 3", "data.micro_batch_size must divide the share"),
        ("-c large --device h100 --mfu 2", "--mfu must be at most 1, got 2.0"),
        ("-c large --device h100 --price free", "--price: must be a number, such as 0.8, got 'free'"),
        ("-c large --resume", "--resume: an estimate covers a whole run; leave it out"),
        ("-c large --device", "--device: needs a value"),
    ],
)
def test_a_mistake_is_one_line(call, words, problem):
    code, out, err = call(*words.split())
    assert code == 2 and out == ""
    assert problem in err.splitlines()[-1], err
