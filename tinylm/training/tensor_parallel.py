"""Tensor parallelism: several devices share the matrices of every layer and compute one batch together.

As in Megatron-LM (Shoeybi et al. 2019): queries, keys, values and the input of the feed-forward layer are divided by
columns, so that each device has whole heads and units; the projections back are divided by rows, and their results
summed over the devices, once per sublayer. Embedding, head and loss are divided over the vocabulary. Norms, and what
flows between the layers, are the same on all devices. (Columns and rows are those of x W.)
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from tinylm.checks import require
from tinylm.known import unknown_part
from tinylm.model import ModelConfig, TransformerLM

NAME = "tensor_parallel_size"


class Replicated(ParallelStyle):
    """Replicates the parameters of a module on every device. Its input is replicated, or divided along one axis."""

    def __init__(self, layout: Placement | None = None) -> None:
        self.layout = layout or Replicate()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def before(module: nn.Module, inputs: tuple[Tensor, ...], mesh: DeviceMesh) -> Any:
            return DTensor.from_local(inputs[0], mesh, [self.layout], run_check=False)

        def after(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> Any:
            return output.redistribute(mesh, [self.layout]).to_local()

        return distribute_module(module, device_mesh, None, before, after)


def check_tensor_parallel(module: Any, size: int) -> None:
    """Refuses a LitTransformerLM whose options or network `size` devices that share every layer cannot train.

    Raises:
        ConfigError: naming the option, the part of the network, or the field of its config.
    """
    others = {"objective": module.objective, "lora": module.lora, "compile": module._compiled}
    for name, value in {**others, "loss_rows": module.net.loss_rows}.items():
        require(value is None, f"{NAME}: not with model.{name}; leave one of them out")
    changed = module.changed or unknown_part(module.net, hooks=False)
    require(changed is None, f"{NAME}: this network is not the standard one: {changed}")
    check_sizes(module.network, size)


def check_sizes(config: ModelConfig, size: int) -> None:
    """Refuses a network that cannot be divided over `size` devices.

    Raises:
        ConfigError: naming the field.
    """
    whole = {"num_heads": config.num_heads, "num_kv_heads": config.kv_heads, "d_ff": config.ff_width}
    for name, number in whole.items():
        require(number % size == 0, f"{NAME}: must divide model.network.{name}, got {size} and {number}")
    # devices would draw equal masks for their heads, whereas one process draws all masks independently
    require(config.dropout == 0, f"{NAME}: not with dropout; set model.network.dropout=0")


def parallelize(net: TransformerLM, mesh: DeviceMesh) -> None:
    """Divides the parameters of a network over the devices of a mesh, in place."""
    columns, rows = ColwiseParallel(), RowwiseParallel()
    inner = {f"attention.{name}": columns for name in ("query", "key", "value")}
    inner |= {"feedforward.gate": columns, "feedforward.input": columns}
    inner |= {"attention.output": rows, "feedforward.output": rows}
    inner |= {"attention_norm": Replicated(), "feedforward_norm": Replicated()}
    inner |= {f"attention.{name}": Replicated(Shard(2)) for name in ("query_norm", "key_norm")}  # (B, T, heads, E)
    inner |= {"attention": _shared_input(4), "feedforward": _shared_input(1)}
    for block in net.blocks:
        _apply(block, mesh, inner)
    embedding = RowwiseParallel(input_layouts=Replicate())
    head = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)  # the loss reads its share of the logits
    _apply(net, mesh, {"embedding": embedding, "head": head, "positions": Replicated(), "final_norm": Replicated()})
    if net.config.tie_embeddings:
        net.head.weight = net.embedding.weight
    net.register_forward_hook(_whole_output)


def _shared_input(count: int) -> PrepareModuleInput:
    """Converts the first of `count` arguments for all layers that read it, so its gradient is summed once."""
    layouts = (Replicate(), *[None] * (count - 1))
    return PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts)


def _apply(module: nn.Module, mesh: DeviceMesh, plan: Mapping[str, ParallelStyle]) -> None:
    """Applies the styles to those of the named parts that have parameters."""
    parts = {name: part for name, part in module.named_modules() if any(True for _ in part.parameters())}
    parallelize_module(module, mesh, {name: style for name, style in plan.items() if name in parts})


def _whole_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    """The whole loss or logits, as one process computes them."""
    if not isinstance(output, DTensor):
        return output
    whole = output.full_tensor()
    return whole.clone() if whole.ndim == 0 else whole  # FSDP warns of an output that is a view
