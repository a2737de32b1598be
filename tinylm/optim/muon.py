"""Muon (Jordan et al. 2024): the update of every matrix is replaced by the nearest orthogonal one.

So all directions of a matrix learn at the same speed. Parameters other than the matrices of the blocks use AdamW.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

TINY = 1e-12  # so that a neuron that never had a gradient keeps its zeros
JORDAN = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS = (  # of each step; the last also of those that follow
    (8.0934, -23.6204, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
    (1.9562, -1.3375, 0.3839),
    (1.875, -1.25, 0.375),
)


def orthogonalize(
    matrices: Tensor, steps: int = 5, dtype: torch.dtype | None = None, coefficients: str = "jordan"
) -> Tensor:
    """Moves all singular values of each matrix close to 1 and keeps its singular vectors.

    The Newton-Schulz iteration X <- aX + (b XXᵀ + c (XXᵀ)²) X. It needs matrix products only. Of the coefficients there
    are two sets:

    - jordan: the same in all steps, chosen for speed rather than an exact limit: 0.7 to 1.2 after five (Jordan et al.
      2024)
    - polar_express: of each step those that leave the smallest error, if the singular values are at least 1% of the
      bound that X is divided by: 0.73 to 1.27 after three, 0.99 to 1.01 after four (Amsel et al. 2025). The bound is
      √|XXᵀ|, which is closer than |X|

    Args:
        matrices: (n, rows, columns)
        steps: iterations
        dtype: of the products. None: `iteration_type`
        coefficients: the name of the set

    Returns:
        (n, rows, columns)
    """
    express = coefficients == "polar_express"
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices  # the Gram matrix of the shorter side
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)  # spectral norm at most 1
    x = x.to(iteration_type(x) if dtype is None else dtype)
    for step in range(steps):
        a, b, c = POLAR_EXPRESS[min(step, len(POLAR_EXPRESS) - 1)] if express else JORDAN
        gram = x @ x.mT
        if express and step == 0:
            scale = (1.01 * torch.linalg.matrix_norm(gram, keepdim=True) + 1e-7).rsqrt()  # 1%: of bfloat16's rounding
            x, gram = x * scale, gram * scale.square()
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.type_as(matrices)
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


def row_factors(means: Tensor, norms: Tensor) -> Tensor:
    """NorMuon (Li et al. 2025) divides each row of a matrix, a neuron, by the root of the mean square of its updates.

    The matrix keeps its norm, so a common factor of the means, as from their start at zero, does not matter.

    Args:
        means: running means of the squared norms of the rows, (..., rows, 1)
        norms: `norm_ratios` of the matrices, (..., 1, 1)

    Returns:
        the factors of the rows, (..., rows, 1)
    """
    return (norms / (means + TINY)).sqrt()


def norm_ratios(squares: Tensor, means: Tensor) -> Tensor:
    """The squared norm of each matrix over that of the matrix with divided rows.

    Args:
        squares: squared norms of the rows, (..., rows, 1)
        means: their running means, (..., rows, 1)

    Returns:
        (..., 1, 1)
    """
    return squares.sum(-2, keepdim=True) / ((squares / (means + TINY)).sum(-2, keepdim=True) + TINY)


def iteration_type(matrices: Tensor) -> torch.dtype:
    """The type of the products of `orthogonalize`: on CUDA bfloat16 for float32 matrices, whose rounding it forgives.

    On a processor runs on one and on several processes, or on processors with and without its instructions, stay equal
    within float32's rounding instead.
    """
    return torch.bfloat16 if matrices.is_cuda and matrices.dtype == torch.float32 else matrices.dtype


class Muon(torch.optim.Optimizer):
    """Muon for the group named `muon`, AdamW for all others.

    The update of a matrix is lr * 0.2 √max(rows, columns) * orthogonalize(momentum). Its root mean square is about that
    of an AdamW update (Liu et al. 2025), so both use the same learning rate and weight decay.

    Args:
        groups: parameters with their `name` and `weight_decay`
        lr: learning rate
        momentum: of the matrices' gradients
        betas: of AdamW
        eps: of AdamW
        ns_steps: Newton-Schulz iterations
        ns_dtype: type of their products. None: `iteration_type`
        ns_coefficients: their coefficients, `jordan` or `polar_express`
        neuron_beta: decay rate of the running means of `row_factors`; 0: rows stay as they are
        weight_decay: of a group that is added later and has none
        matrices: those of the parameters that a group without a `name`, added later by a callback, orthogonalizes
    """

    found_inf: Tensor | None = None  # 1 on the device: the step changes nothing, as in PyTorch's fused optimizers

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float, betas: tuple[float, float], eps: float,
        ns_steps: int = 5, ns_dtype: torch.dtype | None = None, ns_coefficients: str = "jordan",
        neuron_beta: float = 0.0, weight_decay: float = 0.0, matrices: Iterable[Tensor] = (),
    ) -> None:  # fmt: skip
        self.matrices = {*matrices}
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)
        self.iteration = partial(orthogonalize, steps=ns_steps, dtype=ns_dtype, coefficients=ns_coefficients)
        self.neuron_beta = neuron_beta

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; one without a `name` becomes two, matrices and others."""
        if "name" in param_group:
            return super().add_param_group(param_group)
        given = param_group["params"]
        parameters = [given] if isinstance(given, Tensor) else [*given]
        for name, orthogonalized in (("muon", True), ("decay", False)):
            chosen = [each for each in parameters if (each in self.matrices) == orthogonalized]
            if chosen:
                super().add_param_group({**param_group, "params": chosen, "name": name})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient. The learning rate of a group may be a tensor."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                (self._step_muon if group["name"] == "muon" else self._step_adamw)(group, parameters)
        return loss

    def _step_muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        momenta = self._momenta(group["momentum"], parameters)
        lr = group["lr"] if self.found_inf is None else group["lr"] * (1 - self.found_inf)
        by_shape = defaultdict(list)
        for index, parameter in enumerate(parameters):
            by_shape[parameter.shape].append(index)
        for shape, same in by_shape.items():
            weights = [parameters[index] for index in same]
            updates = self._orthogonalize([momenta[index] for index in same])
            if self.neuron_beta:
                updates = self._evened(updates, weights)
            torch._foreach_mul_(updates, lr * -0.2 * max(shape) ** 0.5)
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
            torch._foreach_add_(weights, updates)

    def _orthogonalize(self, momenta: list[Tensor]) -> list[Tensor]:
        """Orthogonalizes matrices of one shape together; the results may be changed in place."""
        return list(self.iteration(torch.stack(momenta)).unbind())

    def _evened(self, updates: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """Multiplies the updates, of one shape, by their `row_factors`."""
        stack = torch.stack(updates)
        squares = stack.square().sum(-1, keepdim=True)
        means = torch.stack(self._neuron_means(parameters, list(squares)))
        return list(stack * row_factors(means, norm_ratios(squares, means)))

    def _neuron_means(self, parameters: list[Tensor], squares: list[Tensor]) -> list[Tensor]:
        """The running means of the rows' squares, after these."""
        for parameter, square in zip(parameters, squares, strict=True):
            self.state[parameter].setdefault("neurons", torch.zeros_like(square))
        means = [self.state[parameter]["neurons"] for parameter in parameters]
        torch._foreach_lerp_(means, self._finite(means, squares), 1 - self.neuron_beta)
        return means

    def _momenta(self, momentum: float, parameters: list[Tensor]) -> list[Tensor]:
        """Nesterov momenta: the running means of the gradients, one gradient ahead."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        (means,) = self._states(parameters, "momentum")
        gradients = self._finite(means, gradients)
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        return list(torch._foreach_lerp(gradients, means, momentum))

    def _finite(self, means: list[Tensor], values: list[Tensor]) -> list[Tensor]:
        """The values that the means move to; the means themselves if the step is to change nothing."""
        if self.found_inf is None:
            return values
        return [torch.where(self.found_inf > 0, *pair) for pair in zip(means, values, strict=True)]

    def _step_adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            state["step"] = state.get("step", torch.zeros(())).to(parameter.device)  # a checkpoint's is on the CPU
        steps, means, squares = self._states(parameters, "step", "mean", "square")
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        adamw(
            parameters, gradients, means, squares, [], steps, fused=True, amsgrad=False, maximize=False,
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"],
            weight_decay=group["weight_decay"], found_inf=self.found_inf,
        )  # fmt: skip

    def _states(self, parameters: list[Tensor], *names: str) -> list[list[Tensor]]:
        """The running averages of these names, zero at first: a list over the parameters for each name."""
        for parameter in parameters:
            for name in names:
                if name not in self.state[parameter]:
                    self.state[parameter][name] = torch.zeros_like(parameter)
        return [[self.state[parameter][name] for parameter in parameters] for name in names]
