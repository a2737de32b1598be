"""The options of LitTransformerLM: those that exclude one another, and their form in a checkpoint; its subclasses."""

import inspect
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from tinylm.adapt import FreezeConfig, LoRAConfig
from tinylm.checks import require
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.optim.schedule import ScheduleConfig
from tinylm.plugins import Part


def check_options(
    optimizer: OptimizerConfig | Part,
    schedule: ScheduleConfig | Part,
    objective: Part | None = None,
    lora: LoRAConfig | None = None,
    freeze: FreezeConfig | None = None,
    **counts: int | None,
) -> None:
    """Raises ConfigError for an invalid option or combination; `counts` are None or at least 1."""
    for name, value in counts.items():
        require(value is None or value >= 1, f"model.{name} must be at least 1, got {value}")
    if isinstance(optimizer, OptimizerConfig) and isinstance(schedule, ScheduleConfig):
        rates = f"min_lr={schedule.min_lr} and lr={optimizer.lr}"
        require(schedule.min_lr <= optimizer.lr, f"min_lr must not exceed lr, got {rates}")
    if isinstance(objective, str):  # in a checkpoint it is only described
        remedy = "give it to load_from_checkpoint, or objective=None"
        raise ConfigError(f"the checkpoint was trained by the objective {objective}: {remedy}")
    if lora is not None and freeze is not None:
        raise ConfigError("model.lora: freezes all weights but the adapters; leave out model.freeze")


def check_losses(module: Any, rows: int | None, own_forward: bool, own_loss: bool) -> None:
    """Raises ConfigError for `model.objective` or `model.loss_rows` where the module does not compute the loss itself.

    Args:
        module: the LitTransformerLM
        rows: `model.loss_rows`
        own_forward: whether the user's subclass has a `forward`
        own_loss: whether it has a `summed_loss`
    """
    name, objective = type(module).__name__, module.objective
    twice = f"model.objective: {name} has a summed_loss of its own; leave one of the two out"
    require(objective is None or not own_loss, twice)
    reasons = {
        "model.objective computes the loss; leave it out": objective is not None,
        "needs a head that is a plain Linear; leave head out of lora.targets": type(module.net.head) is not nn.Linear,
        f"{name} has a forward of its own; leave it out": own_forward,
    }
    for reason, holds in reasons.items() if rows is not None else ():
        require(not holds, f"model.loss_rows: {reason}")


def padded(network: ModelConfig, multiple: int | None) -> ModelConfig:
    """The architecture with rows of the vocabulary up to a multiple; None: as it is."""
    return replace(network, vocab_size=network.vocab_size + -network.vocab_size % (multiple or 1))


def plain_values(config: Any) -> dict[str, Any] | None:
    """The options of a config, or the form in which a plug-in is named; None for None."""
    if config is None:
        return None
    return config.to_dict() if isinstance(config, Part) else dict(vars(config))


def typed(given: Any, kind: type) -> Any:
    """The config or plug-in whose `plain_values` are given; anything else as it is."""
    if not isinstance(given, dict):
        return given
    if "class_path" in given:
        return Part(**given)
    return ModelConfig.from_dict(given) if kind is ModelConfig else kind(**given)


def own_class(module: Any, base: type) -> list[Part]:
    """The class of a module as a plug-in, if it is a user's subclass of `base` that can be imported."""
    kind = type(module)
    ours = kind.__module__ in ("__main__", base.__module__)
    return [Part.of(kind)] if not ours and kind.__qualname__.isidentifier() else []


def hooks(base: type) -> list[str]:
    """The hooks and evaluation steps in which LitTransformerLM, `base`, has work to do itself."""
    others = ("setup", "configure_model", "validation_step", "test_step")
    ours = [name for each in base.__mro__[: base.__mro__.index(LightningModule)] for name in vars(each)]
    return [name for name in ours if name.startswith("on_") or name in others]


def check_hooks(kind: type, base: type) -> None:
    """Refuses a subclass of `base` with a hook that does not call that of `base`.

    Raises:
        ConfigError: naming the hook.
    """
    for name in hooks(base):
        if replaces(kind, base, name):
            call = f"super().{name}({', '.join([*inspect.signature(getattr(base, name)).parameters][1:])})"
            raise ConfigError(f"{kind.__name__}.{name}: tinylm has work to do there; call {call} in it")


def replaces(kind: type, base: type, name: str) -> bool:
    """Whether a subclass of `base` has this method without calling that of `base`."""
    for each in kind.__mro__[: kind.__mro__.index(base)]:
        if method := vars(each).get(name):
            code = getattr(inspect.unwrap(method), "__code__", None)
            if code is not None and not {"super", base.__name__} & {*code.co_names}:
                return True
    return False


def named_optimizer(optimizer: OptimizerConfig | Part) -> str:
    """The name of an optimizer, for the user."""
    return optimizer.class_path.rpartition(".")[2] if isinstance(optimizer, Part) else optimizer.name


def learning_rate(optimizer: OptimizerConfig | Part, own: str = "") -> float:
    """The learning rate of an optimizer's config; `own` names one that a subclass makes, which has no config.

    Raises:
        AttributeError: if there is none. Lightning then says so where it wants one.
    """
    if own or (isinstance(optimizer, Part) and "lr" not in optimizer.init_args):
        raise AttributeError(f"{own or optimizer}: no learning rate in the config")
    return optimizer.init_args["lr"] if isinstance(optimizer, Part) else optimizer.lr


def with_learning_rate(optimizer: OptimizerConfig | Part, lr: float) -> OptimizerConfig | Part:
    """The config of an optimizer with another learning rate."""
    if isinstance(optimizer, Part):
        return Part(optimizer.class_path, optimizer.init_args | {"lr": lr})
    return replace(optimizer, lr=lr)
