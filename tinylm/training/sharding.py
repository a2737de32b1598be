"""ShardedStrategy: weights, gradients and optimizer state sharded over devices (FSDP 2; overlays/fsdp.yaml).

With a `tensor_parallel_size` the devices of a group share every layer (overlays/tensor_parallel.yaml).
"""

import secrets
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import loss_parallel

from tinylm.bundle import read_checkpoint
from tinylm.checks import require
from tinylm.files import atomic_write, make_folder, seal_zip
from tinylm.shards import KEY, SHARDED, Shards
from tinylm.training.tensor_parallel import NAME, check_tensor_parallel, parallelize


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with data parallelism over all devices of all nodes, or groups of them."""

    def __init__(
        self, tensor_parallel_size: int = 1, sharded_checkpoints: bool = False, process_group_backend: str | None = None
    ) -> None:
        """Creates the strategy.

        Args:
            tensor_parallel_size: Neighbouring devices that share every layer and one batch, which takes fast links
            sharded_checkpoints: Every process saves its own shard, so that none holds the whole state. A run resumes
                from either kind, with any number of processes
            process_group_backend: nccl, gloo, ... Default: the one for the device
        """
        super().__init__(
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=sharded_checkpoints,
            process_group_backend=process_group_backend,
        )
        self.group_size = tensor_parallel_size

    def setup_environment(self) -> None:
        """Sets the data-parallel size to the number of tensor-parallel groups."""
        count, size = self.num_nodes * self.num_processes, self.group_size
        groups: Any = count // size
        self._data_parallel_size = groups
        super().setup_environment()

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Number and rank of the data readers; the devices of a tensor-parallel group read the same data.

        Raises:
            ConfigError: if the devices cannot be divided into such groups; before other processes are started.
        """
        size, count = self.group_size, self.world_size
        require(size >= 1 and count % size == 0, f"{NAME}: must divide the number of devices, got {size} and {count}")
        whole = size == 1 or not self._save_distributed_checkpoint
        require(whole, f"sharded_checkpoints: not with {NAME} above 1; set it to false")
        return {"num_replicas": count // size, "rank": self.global_rank // size}

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's training step. The loss of logits that are sharded over the vocabulary is computed in shards."""
        with loss_parallel():
            return super().training_step(*args, **kwargs)

    def backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The backward pass, which also takes a loss computed in shards."""
        with loss_parallel():
            return super().backward(*args, **kwargs)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state, in which parameters are numbered in both kinds of checkpoints."""
        state = super().optimizer_state(optimizer)
        if self._save_distributed_checkpoint:
            assert self.model is not None
            state = FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_ID, self.model)
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Saves a checkpoint: first the shards of all processes, then the file that names their folder."""
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        path = Path(self.broadcast(filepath))
        folder = path.with_name(f"{path.name}.shards-{self.broadcast(secrets.token_hex(4))}")
        parts: dict[str, Tensor] = {}
        rest = _split(checkpoint, parts)
        with atomic_write(make_folder(folder) / f"{self.global_rank}.pt") as file:
            torch.save(parts, file)
            seal_zip(file)
        self.barrier()
        if self.is_global_zero:
            rest[KEY] = {"folder": folder.name, "files": self.world_size}
            self.checkpoint_io.save_checkpoint(rest, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads weights and optimizer state, saved by any strategy, and returns the rest.

        From a sharded checkpoint, each process reads its own rows only; with tensor parallelism it reads all.
        """
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = read_checkpoint(path, self._rows if self.group_size == 1 else Shards.rows)
        assert self.model is not None and self.lightning_module is not None
        state = checkpoint.pop("state_dict")
        whole = not any(isinstance(each, DTensor) for each in state.values())
        strict = self.lightning_module.strict_loading
        options = StateDictOptions(full_state_dict=whole, broadcast_from_rank0=whole, strict=strict)
        set_model_state_dict(self.model, state, options=options)
        if self.optimizers:  # there are none in an evaluation
            for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                set_optimizer_state_dict(self.model, optimizer, _by_name(self.model, optimizer, saved), options=options)
        return checkpoint

    def _rows(self, shards: Shards, name: str, shape: list[int]) -> DTensor:
        """The rows of this process, which are those of `torch.chunk`."""
        assert self.device_mesh is not None
        each = -(-shape[0] // self.world_size)
        start, stop = (min(shape[0], each * (self.global_rank + number)) for number in (0, 1))
        rows, strides = shards.rows(name, shape, start, stop), torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            rows.to(self.root_device), self.device_mesh["data_parallel"], [Shard(0)], run_check=False,
            shape=torch.Size(shape), stride=strides,
        )  # fmt: skip


def shard_weights(module: Any) -> None:
    """Shards the weights of a LitTransformerLM over the devices of its strategy, block by block.

    Raises:
        ConfigError: if the objective has weights, or the devices cannot share the layers of this network.
    """
    has_weights = isinstance(module.objective, nn.Module) and next(module.objective.parameters(), None) is not None
    require(not has_weights, "model.objective: has weights, which this strategy does not shard; take ddp")
    groups, mesh = module.device_mesh["tensor_parallel"], module.device_mesh["data_parallel"]
    if groups.size() > 1:
        ours = isinstance(module.trainer.strategy, ShardedStrategy)
        require(ours, f"{NAME}: needs tinylm.training.ShardedStrategy")
        check_tensor_parallel(module, groups.size())
        parallelize(module.net, groups)
    for part in (*module.net.blocks, module.net):
        fully_shard(part, mesh=mesh)


def _split(value: Any, parts: dict[str, Tensor], name: str = "") -> Any:
    """A checkpoint without its sharded tensors, whose local rows are added to `parts`."""
    if isinstance(value, DTensor):
        parts[name] = value.to_local()
        return {SHARDED: name, "shape": list(value.shape)}
    if isinstance(value, dict):
        return type(value)((key, _split(each, parts, f"{name}/{key}")) for key, each in value.items())
    return [_split(each, parts, f"{name}/{n}") for n, each in enumerate(value)] if isinstance(value, list) else value


def _by_name(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with the names of parameters instead of their numbers.

    A number is the parameter's position in the model or, in an optimizer that is not sharded, its position across the
    groups. The order within a group is the same, so parameters are matched group by group.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, Any] = {"state": {}, "param_groups": []}
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        ours = [names[parameter] for parameter in group["params"]]
        pairs = zip(ours, saved["params"], strict=True)
        found["state"] |= {name: state["state"][number] for name, number in pairs if number in state["state"]}
        found["param_groups"].append(saved | {"params": ours})
    return found
