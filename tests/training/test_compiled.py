"""The compiled network: its programs, hooks, what cannot be compiled, and its cache."""

import functools
import math
import re

import pytest
import torch
import torch.nn.functional as F

from tinylm.kernels.compiled import CompiledNetwork
from tinylm.model import ModelConfig, TransformerLM
from tinylm.runs.metrics import read_metrics

V = 101
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own


def network(**fields) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(ModelConfig(vocab_size=V, d_model=16, num_layers=1, num_heads=2, max_seq_len=32, **fields))


def batch(rows: int = 3, length: int = 17) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(rows * 100 + length)
    ids, targets = torch.randint(V, (2, rows, length), generator=random)
    return {"ids": ids, "targets": targets}


@pytest.fixture
def programs(monkeypatch):
    """The number of nodes of each program that is compiled, by a compiler that does nothing."""
    found = []

    def backend(graph, _):
        found.append(len(graph.graph.nodes))
        return graph

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield found
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"positional_encoding": "learned"}, marks=pytest.mark.slow),
        {"document_mask": True},
    ],
)
def test_batches_of_all_sizes_share_a_few_programs(programs, fields):
    """One for the first batch, one with a symbolic length, one with symbolic rows too, one for a single row."""
    net = network(**fields)
    compiled = CompiledNetwork(net)
    counts = []
    for rows, length in [(3, 17), (3, 17), *((3, n) for n in range(18, 30)), (2, 9), (5, 12), (4, 30), (1, 5), (1, 8)]:
        given = batch(rows, length)
        given |= {"documents": torch.zeros_like(given["ids"])} if "document_mask" in fields else {}
        torch.testing.assert_close(compiled(**given), net(**given))
        counts.append(len(programs))
    assert counts[1] == 1 and counts[13] == 2 and counts[-1] <= 5


def test_hooks_act_and_one_that_is_added_later_too(programs):
    net = network()
    compiled = CompiledNetwork(net)
    compiled(**batch())
    for module in (net, net.blocks[0]):
        seen = []
        hook = module.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.shape))
        compiled(**batch())
        compiled(**batch())
        assert len(seen) == 2
        hook.remove()
    hook = net.register_forward_hook(lambda module, args, output: 2 * output)
    twice = compiled(**batch())
    hook.remove()
    torch.testing.assert_close(twice, 2 * net(**batch()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the compiler itself
def test_a_hook_that_splits_the_program_is_told_once(programs, capfd):
    net, seen = network(), []
    compiled = CompiledNetwork(net)
    net.blocks[0].register_forward_hook(lambda module, args, output: seen.append(float(output.detach().sum())))
    losses = [compiled(**batch()) for _ in range(3)]
    assert len(seen) == 3 and losses[0] == losses[2]
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("tinylm: model.compile: a hook or module splits the program, which makes it slower (")


def test_what_cannot_be_compiled_is_told_once_and_runs_eagerly(monkeypatch, capfd):
    def backend(graph, _):
        raise RuntimeError("no such instruction\nand more lines")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    net = network()
    compiled = CompiledNetwork(net)
    assert [compiled(**batch()) for _ in range(2)] == [net(**batch())] * 2
    [line] = capfd.readouterr().err.splitlines()
    assert line == (
        "tinylm: model.compile: not possible here (no such instruction); training continues uncompiled, more slowly"
    )


def test_a_machine_without_a_compiler_trains_eagerly(capfd, monkeypatch, tmp_path):
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    net = network()
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        loss = CompiledNetwork(net)(**batch())
    loss.backward()
    assert loss == net(**batch())
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("tinylm: model.compile: not possible here (")


@pytest.fixture
def without_kernels(monkeypatch):
    """Generates programs whose kernels are not compiled and compute nothing."""
    from torch._inductor.async_compile import AsyncCompile

    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None)


def allocated(run, ids: torch.Tensor) -> set[tuple[int, str]]:
    """The number of elements and the type of each buffer in the programs of a step in bf16-mixed."""
    from torch._inductor.utils import fresh_cache, run_and_get_code

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(ids, ids)
        loss.backward()

    torch._dynamo.reset()
    with fresh_cache():
        _, programs = run_and_get_code(step)
    assert len(programs) == 2  # forward and backward
    made = re.findall(r"empty_strided_cpu\(\(([\d, ]+)\), .*, torch\.(\w+)\)", "".join(programs))
    return {(math.prod(int(size) for size in sizes.split(",") if size.strip()), kind) for sizes, kind in made}


@pytest.mark.slow
def test_the_program_of_a_step_stores_no_logits_in_float32_and_by_rows_none_whole(without_kernels):
    """That of logits alone, whose loss is computed outside, does: the search finds what it looks for."""
    net = network()
    ids = torch.randint(V, (3, 17), generator=torch.Generator().manual_seed(0))
    logits_only = torch.compile(lambda ids: net(ids))

    def outside(ids, targets):
        return F.cross_entropy(logits_only(ids).flatten(0, 1), targets.flatten(), reduction="sum")

    assert (51 * V, "float32") in allocated(outside, ids)
    inside = torch.compile(lambda ids, targets: net(ids, targets=targets))
    found = allocated(inside, ids)
    assert (51 * V, "bfloat16") in found and (51 * V, "float32") not in found
    net.loss_rows = 17
    found = allocated(inside, ids)
    sizes = {size for size, _ in found}
    assert 17 * V in sizes and 51 * V not in sizes


@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)],
)
def test_a_compiled_run_with_dropout_goes_on_bit_for_bit(cli, tiny_yaml, tmp_path, monkeypatch, backend):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    options = ["fit", "-c", tiny_yaml, "-c", "compile", "--model.schedule.name", "constant", "--model.loss_rows", "50"]
    options += ["--model.network.num_layers", "1"]
    for name, steps, more in [("whole", 5, []), ("half", 2, []), ("half", 5, ["--resume"])]:
        result = cli(*options, "--run.name", name, "--trainer.max_steps", steps, *more)
        assert result.code == 0 and "model.compile" not in result.err, result.err
    whole, half = (read_metrics(tmp_path / f"runs/{name}/metrics.csv") for name in ("whole", "half"))
    for column in ("train/loss", "train/grad_norm"):
        assert half[column] == whole[column] and len(whole[column][0]) == 5
