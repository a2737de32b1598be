"""Optimizers by name, and their parameter groups.

Weight decay applies to matrices and embeddings, not to norms and biases, for which shrinking is not regularization. A
network with muP (model/mup.py) gives factors of the learning rate, by which the groups are divided further.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tinylm.checks import check_types, require
from tinylm.errors import ConfigError, NumericError, first_line
from tinylm.optim.muon import Muon
from tinylm.optim.sharded_muon import ShardedMuon
from tinylm.plugins import Part


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its settings."""

    name: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """adamw, adam, sgd, or muon: Muon for the matrices of the blocks, AdamW for the rest."""
    lr: float = 1e-3
    """Learning rate after warmup, for Muon and AdamW."""
    weight_decay: float = 0.1
    """Weight decay of matrices and embeddings; in adam and sgd an L2 penalty."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates of both moments."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    momentum: float = 0.95
    """Momentum of SGD and Muon."""
    ns_steps: int = 5
    """muon: Newton-Schulz iterations of an update."""
    ns_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """muon: type of the iteration's products. auto: bfloat16 on CUDA, elsewhere that of the weights."""
    ns_coefficients: Literal["jordan", "polar_express"] = "jordan"
    """muon: coefficients of the iteration. polar_express needs a step less."""
    neuron_beta: float = 0.0
    """muon: decay rate of the mean square of each row's updates, whose root divides them (NorMuon). 0: none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        check_types(self)
        require(self.lr > 0, f"lr must be positive, got {self.lr}")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        for name, value in (
            ("betas", min(self.betas)),
            ("betas", max(self.betas)),
            ("momentum", self.momentum),
            ("neuron_beta", self.neuron_beta),
        ):
            require(0 <= value < 1, f"{name} must be in [0, 1), got {value}")
        require(self.eps > 0, f"eps must be positive, got {self.eps}")
        require(self.ns_steps >= 1, f"ns_steps must be at least 1, got {self.ns_steps}")
        for name in ("ns_steps", "ns_dtype", "ns_coefficients", "neuron_beta") if self.name != "muon" else ():
            unset = getattr(self, name) == getattr(type(self), name)
            require(unset, f"{name}: of muon only; leave it out with optimizer {self.name}")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups the trainable parameters: matrices of the blocks (Muon only), other decaying ones, and the rest.

    Parameters whose learning rate has a factor form groups of their own, with the entries `lr` and `lr_factor`. Their
    weight decay is divided by it, so that lr times decay is that of all others.
    """
    factors = rate_factors(model, config.name)
    penalty = config.name == "adam" and config.weight_decay > 0 and any(each != 1 for each in factors.values())
    require(not penalty, "weight_decay: with mup_base_width adam's would depend on the width; set 0, or use adamw")
    groups: dict[tuple[str, float], list[nn.Parameter]] = {(name, 1.0): [] for name in ("muon", "decay", "no_decay")}
    orthogonalized = {*muon_matrices(model)} if config.name == "muon" else set()
    for parameter in model.parameters():  # a tied weight appears once
        if parameter.requires_grad:
            kind = "no_decay" if parameter.ndim < 2 else "decay"
            kind = "muon" if parameter in orthogonalized else kind
            groups.setdefault((kind, factors.get(parameter, 1.0)), []).append(parameter)
    found: list[dict[str, Any]] = []
    for (name, factor), parameters in groups.items():
        decay = 0.0 if name == "no_decay" else config.weight_decay / factor
        scaled = {} if factor == 1 else {"lr": config.lr * factor, "lr_factor": factor}
        found += [{"params": parameters, "weight_decay": decay, "name": name, **scaled}] if parameters else []
    return found


def muon_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices of the blocks, which Muon orthogonalizes.

    The table of an `nn.Embedding`, such as one of position biases, is no linear map: AdamW takes it.
    """
    tables = {each.weight for each in model.modules() if isinstance(each, nn.Embedding)}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "blocks." in name and parameter not in tables
    ]


def rate_factors(model: nn.Module, optimizer: str) -> dict[nn.Parameter, float]:
    """The factors of the learning rate that the network, or one within the model, gives for an optimizer."""
    networks: list[Any] = [each for each in model.modules() if hasattr(each, "rate_factors")]
    return {parameter: factor for each in networks for parameter, factor in each.rate_factors(optimizer).items()}


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the parameters whose rate has no factor."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_factor", 1.0)


def make_optimizer(model: nn.Module, config: OptimizerConfig | Part, *, fused: bool = False) -> torch.optim.Optimizer:
    """Makes the optimizer that the config names, for all trainable parameters of a model.

    Args:
        model: the model
        config: the optimizer and its settings, or a class that takes parameter groups first, as PyTorch's do
        fused: use PyTorch's fused kernel for Adam and AdamW, with any precision
    """
    if isinstance(config, Part):
        return _make_part(model, config)
    groups = parameter_groups(model, config)
    match config.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
        case "muon":
            muon = ShardedMuon if any(isinstance(each, DTensor) for each in model.parameters()) else Muon
            return muon(
                groups, lr=config.lr, momentum=config.momentum, betas=config.betas, eps=config.eps,
                ns_steps=config.ns_steps, ns_dtype=getattr(torch, config.ns_dtype, None),
                ns_coefficients=config.ns_coefficients, neuron_beta=config.neuron_beta,
                weight_decay=config.weight_decay, matrices=muon_matrices(model),
            )  # fmt: skip
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    optimizer: Any = kind(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused or None
    )
    optimizer._step_supports_amp_scaling = False  # with 16-mixed, gradients are unscaled before they are clipped
    return optimizer


def _make_part(model: nn.Module, part: Part) -> torch.optim.Optimizer:
    """An optimizer of the user's choice: its own weight decay for matrices and embeddings, none for the rest.

    Raises:
        ConfigError: if it does not take the groups, is not an optimizer, or has no learning rate.
    """
    rate_factors(model, part.class_path)  # refuses muP, whose factors are unknown for it
    groups = parameter_groups(model, OptimizerConfig())
    for group in groups:
        if group["name"] == "decay":
            del group["weight_decay"]  # the class's own
    field = "model.optimizer"
    try:
        optimizer = part.make(groups, field=field, kind=torch.optim.Optimizer)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{field}: {part.class_path}: {first_line(error)}") from error
    rates = [group.get("lr") for group in optimizer.param_groups]
    positive = all(isinstance(rate, float | int) and rate > 0 for rate in rates)
    require(positive, f"{field}: {part.class_path}: must have a positive number lr, got {rates[0]}")
    optimizer._step_supports_amp_scaling = False  # as above
    return optimizer


def check_finite(step: int, precision: str = "32-true", **values: Tensor) -> None:
    """Checks the values of a step, in the trainer's precision, before it changes the weights.

    Raises:
        NumericError: naming the step and the value, if one is NaN or infinite.
    """
    if torch.isfinite(torch.stack(list(values.values()))).all():  # waits for the device once
        return
    remedy = "Try a lower lr, more warmup_steps, or trainer.gradient_clip_val=1"
    if precision == "16-true":  # gradients below 6e-8 and Adam's eps become zero, numbers above 65,504 infinite
        remedy = "trainer.precision=16-true rounds weights and gradients to float16; try bf16-mixed or 32-true"
    for name, value in values.items():
        if not torch.isfinite(value):
            raise NumericError(
                f"step {step}: the {name} is {value.item()}; the weights are unchanged by this step. {remedy}"
            )
