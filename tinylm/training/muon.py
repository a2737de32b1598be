"""Muon (Jordan et al. 2024): the update of every matrix is replaced by the nearest orthogonal one.

So all directions of a matrix learn at the same speed. Parameters other than the matrices of the blocks use AdamW.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Moves all singular values of each matrix close to 1 (0.7 to 1.2) and keeps its singular vectors.

    The Newton-Schulz iteration X <- aX + (b XXᵀ + c (XXᵀ)²) X, with coefficients chosen for speed rather than an exact
    limit (Jordan et al. 2024). It needs matrix products only.

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

    The update of a matrix is lr * 0.2 √max(rows, columns) * orthogonalize(momentum). Its root mean square is about that
    of an AdamW update (Liu et al. 2025), so both use the same learning rate and weight decay.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient."""
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
        """Nesterov momentum: the running mean of the gradients, one gradient ahead."""
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
