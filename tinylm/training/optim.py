"""Optimizers by name, their parameter groups, and Muon.

Weight decay is for matrices (and embeddings); norms and biases are left alone, since pulling a scale towards zero is no
regularization. Muon (Jordan et al. 2024) replaces the update of every matrix by the nearest orthogonal one, so that all
directions of its space learn at the same speed; everything that is not a matrix of a block is AdamW's.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tinylm.checks import check_types, require
from tinylm.errors import NumericError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer, and how."""

    name: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """adamw, adam, sgd, or muon: Muon for the matrices of the blocks, AdamW for the rest."""
    lr: float = 1e-3
    """Learning rate after warmup, for Muon as for AdamW."""
    weight_decay: float = 0.1
    """Weight decay of matrices and embeddings; in adam and sgd an L2 penalty."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    momentum: float = 0.95
    """Momentum of SGD and Muon."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        check_types(self)
        require(self.lr > 0, f"lr must be positive, got {self.lr}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        for name, value in (("betas", min(self.betas)), ("betas", max(self.betas)), ("momentum", self.momentum)):
            require(0 <= value < 1, f"{name} must be in [0, 1), got {value}")
        require(self.eps > 0, f"eps must be positive, got {self.eps}")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Every trainable parameter once: the matrices of the blocks (for Muon), what else decays, and what does not."""
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "no_decay": []}
    for name, parameter in model.named_parameters():  # a tied weight appears once
        if parameter.requires_grad:
            is_block_matrix = parameter.ndim == 2 and "blocks." in name
            kind = "no_decay" if parameter.ndim < 2 else "decay"
            groups["muon" if is_block_matrix and config.name == "muon" else kind].append(parameter)
    decay = {"muon": config.weight_decay, "decay": config.weight_decay, "no_decay": 0.0}
    return [
        {"params": parameters, "weight_decay": decay[name], "name": name}
        for name, parameters in groups.items()
        if parameters
    ]


def make_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """The optimizer that the config names, over all trainable parameters of `model`.

    Args:
        model: the network
        config: which one
        fused: use PyTorch's fused kernel for Adam and AdamW
    """
    groups = parameter_groups(model, config)
    match config.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)
        case "muon":
            return Muon(groups, lr=config.lr, momentum=config.momentum, betas=config.betas, eps=config.eps)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Pulls all singular values of each matrix to about 1 (0.7 to 1.2), keeping its singular vectors.

    The Newton-Schulz iteration X <- aX + (b XXᵀ + c (XXᵀ)²) X, whose coefficients are chosen for speed and not for an
    exact limit (Jordan et al. 2024). It needs matrix products only.

    Args:
        matrices: (n, rows, columns)
        steps: iterations

    Returns:
        (n, rows, columns)
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices  # the Gram matrix of the shorter side
    x = x.bfloat16() if x.is_cuda else x  # the iteration forgives rounding
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)  # spectral norm at most 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.type_as(matrices)
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


class Muon(torch.optim.Optimizer):
    """Muon for the group named `muon`, AdamW for all others.

    A matrix is moved by lr * 0.2 √max(rows, columns) * orthogonalize(momentum), which has about the root mean square of
    an AdamW update (Liu et al. 2025), so one learning rate and one weight decay serve both kinds.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["name"] == "muon":
                self._step_muon(group, parameters)
            else:
                for parameter in parameters:
                    self._step_adamw(group, parameter)
        return loss

    def _step_muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        by_shape = defaultdict(list)  # matrices of one shape are orthogonalized together
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        for shape, same in by_shape.items():
            momenta = [self._momentum(group, parameter) for parameter in same]
            updates = orthogonalize(torch.stack(momenta))
            scale = group["lr"] * 0.2 * max(shape) ** 0.5
            for parameter, update in zip(same, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)

    def _momentum(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        """Nesterov's: the running mean of gradients, looked at one gradient ahead."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        return torch.lerp(gradient, mean, group["momentum"])

    def _step_adamw(self, group: dict[str, Any], parameter: Tensor) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        beta1, beta2 = group["betas"]
        state["step"] += 1
        step = int(state["step"])
        mean = state["mean"].lerp_(gradient, 1 - beta1)
        square = state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**step))


def check_finite(step: int, **values: Tensor) -> None:
    """Raises before a step that would ruin the weights.

    Raises:
        NumericError: if a value is NaN or infinite, naming it and the step.
    """
    if torch.isfinite(torch.stack(list(values.values()))).all():  # a device is waited for once
        return
    for name, value in values.items():
        if not torch.isfinite(value):
            raise NumericError(
                f"step {step}: the {name} is {value.item()}; the weights are as before this step. "
                f"Try a lower lr, more warmup_steps, or trainer.gradient_clip_val=1"
            )
