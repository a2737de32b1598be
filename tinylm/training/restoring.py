"""Entries and checks of checkpoints, and corrections of Lightning's step counters in them."""

from typing import Any

from torch import Tensor, nn

from tinylm.bundle import checkpoint_entry
from tinylm.checks import require
from tinylm.data.run_data import RunData
from tinylm.errors import ConfigError, notice
from tinylm.model import ModelConfig
from tinylm.model.config import WITHOUT_WEIGHTS
from tinylm.optim.scheduler import is_scheduler
from tinylm.plugins import Part, admit, describe
from tinylm.tokenizer import Tokenizer
from tinylm.training.earlier import CONFIG, text_seed_remedy
from tinylm.training.time_budget import restore_steps

OTHER_ORDER = (
    "the order of training windows has changed since this run began: from here on it reads other "
    "windows than the version that wrote the checkpoint would have"
)


def checkpoint_entries(module: Any, data: RunData) -> dict[str, Any]:
    """The entries of a LitTransformerLM's checkpoint that `tinylm.load` and a resumed run read."""
    return {
        "tinylm": checkpoint_entry(module.network, module.tokenizer, module.adapters, module.changed),
        "tinylm_plugins": describe(module.all_plugins),
        "tinylm_trained": module.trained_names,
        "tinylm_reference": getattr(module.objective, "fingerprint", ""),
        "tinylm_data": {
            "fingerprint": data.fingerprint,
            "sources": data.fingerprints,
            "order": data.order.version,
            "accumulate_grad_batches": module.trainer.accumulate_grad_batches,
        },
    }


def frozen_parameters(objective: Any) -> dict[str, Tensor]:
    """The parameters of an objective that checkpoints leave out, by their names there."""
    module = objective if isinstance(objective, nn.Module) else nn.Module()
    named = module.state_dict(keep_vars=True).items()  # tied weights under all of their names
    frozen = {name: each for name, each in named if isinstance(each, nn.Parameter) and not each.requires_grad}
    return {f"objective.{name}": parameter.detach() for name, parameter in frozen.items()}


def trained_names(model: nn.Module) -> list[str]:
    """The names of the parameters that the optimizer of a model updates."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def accept(checkpoint: dict[str, Any], module: Any, data: RunData) -> None:
    """Completes a checkpoint in place, and refuses one that a LitTransformerLM cannot continue on these data.

    Raises:
        ConfigError: for another architecture, tokenizer, kind of optimizer, choice of frozen parameters or, on resume,
            text.
    """
    entry, objective = checkpoint.get("tinylm"), module.objective
    if entry is None:
        raise ConfigError("the checkpoint is not one of tinylm: it has no model config")
    if frozen := frozen_parameters(objective):
        checkpoint["state_dict"].update(frozen)
    trains = module.trainer.state.fn == "fit"
    check_text(checkpoint, data, module.resumes, trains)
    check_model(entry, module.network, module.tokenizer, module.adapters, module.changed)
    if trains:
        check_optimizer(checkpoint["hyper_parameters"], dict(module.hparams), module.schedule)
        check_trained(checkpoint.get("tinylm_trained"), trained_names(module.trained))
        same = checkpoint.get("tinylm_reference") in (None, getattr(objective, "fingerprint", ""))
        remedy = "restore it, or begin a new run with model.init_from"
        require(same or not module.resumes, f"model.objective: the frozen reference has changed since; {remedy}")
        admit(module.all_plugins, checkpoint.get("tinylm_plugins"), "the checkpoint")
        rescale_progress(checkpoint, module.trainer.accumulate_grad_batches)
        if module.resumes:
            restore_steps(module.trainer, checkpoint)
        if checkpoint["global_step"] < data.total_steps:
            enter_next_epoch(checkpoint)


# --- checks, each of which raises ConfigError


def check_model(
    entry: dict[str, Any], network: ModelConfig, tokenizer: Tokenizer, adapters: dict[str, float], changed: str | None
) -> None:
    """Refuses a checkpoint of another model.

    Args:
        entry: what the checkpoint says of its model
        network: the architecture of this run
        tokenizer: its tokenizer
        adapters: its LoRA adapters, by name, and their scales
        changed: its parts that the architecture does not describe
    """
    ours = network.to_dict()
    for name, theirs in ModelConfig.from_dict(entry["model"]).to_dict().items():  # fields that it lacks: defaults
        if name not in WITHOUT_WEIGHTS:
            require(ours.get(name) == theirs, f"{name}: checkpoint {theirs}, config {ours.get(name)}")
    require(
        entry["tokenizer"]["sha256"] == tokenizer.sha256,
        "tokenizer: the checkpoint's differs from the config's (SHA-256 "
        f"{entry['tokenizer']['sha256'][:12]} and {tokenizer.sha256[:12]})",
    )
    theirs = entry.get("adapters", {})
    require(theirs == adapters, f"lora: checkpoint has adapters {theirs}, config {adapters}")
    theirs, ours = (each or "none" for each in (entry.get("changed"), changed))
    require(theirs == ours, f"modified parts of the network: checkpoint {theirs}; this network {ours}")


def check_optimizer(theirs: dict[str, Any], ours: dict[str, Any], schedule: Any) -> None:
    """Refuses another optimizer, or other settings for a scheduler that keeps a state.

    Args:
        theirs: the hyperparameters in the checkpoint
        ours: those of this run
        schedule: the schedule of this run
    """
    names = [each["optimizer"].get("name") or each["optimizer"]["class_path"] for each in (theirs, ours)]
    require(names[0] == names[1], f"optimizer.name: checkpoint {names[0]}, config {names[1]}")
    stateful = isinstance(schedule, Part) and is_scheduler(schedule)
    for part in ("schedule", "optimizer") if stateful else ():
        remedy = "it keeps a state, so its settings cannot change; begin a new run with model.init_from"
        require(theirs[part] == ours[part], f"model.{part}: changed for {schedule}: {remedy}")


def check_trained(theirs: list[str] | None, ours: list[str]) -> None:
    """Refuses the optimizer's state of other parameters, which is stored by their numbers and not by their names.

    Args:
        theirs: the parameters that the checkpoint's run trained; empty for an optimizer of the user's
        ours: those that this run trains
    """
    if not theirs or set(theirs) == set(ours):
        return
    frozen = [name for name in theirs if name not in ours]
    names, verb = (frozen, "freeze") if frozen else ([name for name in ours if name not in theirs], "train")
    count = "one parameter" if len(names) == 1 else f"{len(names)} parameters"
    problem = f"this run {verb}s {count} that the checkpoint's did not {verb}, such as {names[0]}"
    raise ConfigError(f"model.freeze: {problem}; set it as it was, or begin a new run with model.init_from")


def check_text(checkpoint: dict[str, Any], data: RunData, resumes: bool, trains: bool) -> None:
    """Refuses to resume a run on another text; a new run may begin from a checkpoint of another text.

    Args:
        checkpoint: the checkpoint
        data: the data of this run
        resumes: whether the checkpoint is one of this run
        trains: whether this run trains; a new run then prints that the text is another
    """
    theirs = checkpoint.get("tinylm_data", {})
    if theirs.get("fingerprint") in (None, "", data.fingerprint) or not data.fingerprint:
        if resumes and theirs.get("order", 1) != data.order.version:
            notice(OTHER_ORDER)
        return
    problem = f"{changed_text(data, theirs.get('sources', {}))} is not the text that the checkpoint was trained on"
    remedy = text_seed_remedy(checkpoint.get(CONFIG, {}), data.text_seed)
    if resumes:
        remedy = remedy or "restore it, or start a new run from the checkpoint with --ckpt_path"
        raise ConfigError(f"data: {problem}; {remedy}")
    if remedy or trains:
        notice("; ".join(filter(None, (problem, remedy))))


def changed_text(data: RunData, sources: dict[str, str]) -> str:
    """The name of the data that changed; for a mixture, the names of the changed sources.

    Args:
        data: the data module
        sources: the fingerprints of the sources of a mixture as they were
    """
    ours = data.fingerprints
    if not ours or not sources:
        return data.source
    return ", ".join(name for name in {**ours, **sources} if ours.get(name) != sources.get(name))


# --- Lightning's count


def rescale_progress(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Sets Lightning's count of micro-batches to match the optimizer steps done.

    A run may be resumed with more or fewer micro-batches per step, and a checkpoint may have been saved within a step,
    whose micro-batches are then repeated.

    Args:
        checkpoint: changed in place
        accumulate: micro-batches per step from now on
    """
    before = checkpoint.get("tinylm_data", {}).get("accumulate_grad_batches")
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    if before is None:
        before = max(1, progress["total"]["ready"] // max(checkpoint["global_step"], 1))
    for counts in (progress["total"], progress["current"]):
        shift = counts["ready"] // before * accumulate - counts["ready"]
        extra = counts["ready"] % before  # micro-batches of an unfinished step
        counts.update({name: count + shift for name, count in counts.items()})
        counts.update({"completed": counts["ready"]} if extra else {})


def enter_next_epoch(checkpoint: dict[str, Any]) -> None:
    """Lets a run that ended with an epoch begin the next epoch at its first micro-batch.

    Lightning would continue to count the micro-batches of the completed epoch, and step after the first one.

    Args:
        checkpoint: changed in place
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    if progress["is_last_batch"] and epochs["ready"] == epochs["completed"]:
        progress["current"] = dict.fromkeys(progress["current"], 0)
        progress["is_last_batch"] = False
