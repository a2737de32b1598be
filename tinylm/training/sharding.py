"""ShardedStrategy: weights, gradients and optimizer state sharded over devices (FSDP 2; overlays/fsdp.yaml)."""

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with data parallelism over all devices of all nodes.

    By default it would use the devices of a node for tensor parallelism, which needs a plan for each layer. Checkpoints
    are single files.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        """Creates the strategy.

        Args:
            process_group_backend: nccl, gloo, ... Default: the one for the device
        """
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        """Sets the data-parallel size to the number of devices."""
        count: Any = self.num_nodes * self.num_processes
        self._data_parallel_size = count
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads weights and optimizer states, saved by any strategy.

        Lightning takes the numbers of parameters in an optimizer's state for places in the model. Those of an optimizer
        that is not sharded count through its groups instead, so parameters are matched group by group.
        """
        optimizers, self._optimizers = self._optimizers, []
        try:
            checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            self._optimizers = optimizers
        model: Any = self.model
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        for optimizer, state in zip(optimizers, checkpoint["optimizer_states"] if optimizers else [], strict=True):
            set_optimizer_state_dict(model, optimizer, _by_name(model, optimizer, state), options=options)
        return checkpoint


def _by_name(model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with names for numbers of parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, Any] = {"state": {}, "param_groups": []}
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        ours = [names[parameter] for parameter in group["params"]]
        pairs = zip(ours, saved["params"], strict=True)
        found["state"] |= {name: state["state"][number] for name, number in pairs if number in state["state"]}
        found["param_groups"].append(saved | {"params": ours})
    return found
