"""A training run as described by its options, without its data, for `estimate` to count and measure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tinylm.adapt import FreezeConfig, LoRAConfig, add_lora, freeze
from tinylm.checks import require
from tinylm.chosen import PARTS, chosen_path
from tinylm.data import TextDataModule
from tinylm.data.shard_order import ShardOrder
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.empty import without_weights
from tinylm.model.lora import A, B
from tinylm.optim.optimizer import OptimizerConfig, muon_matrices
from tinylm.plugins import Part
from tinylm.tokenizer import Tokenizer
from tinylm.training.foreign import find_base
from tinylm.training.parser import make_parser
from tinylm.training.preflight import check_trainer, chosen_devices
from tinylm.training.start import Start


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A training run.

    Attributes:
        batch_size: sequences per optimizer step, over all devices
        rows: sequences that a device computes at once
        context: tokens of a sequence
        steps: optimizer steps of the run
        precision: the trainer's; None: chosen by the device
        devices: number of devices
        assumed: sentences about assumptions beyond the options
    """

    network: ModelConfig
    optimizer: OptimizerConfig | Part
    lora: LoRAConfig | None = None
    freeze: FreezeConfig | None = None
    loss_rows: int | None = None
    compiled: bool = False
    batch_size: int
    rows: int
    context: int
    steps: int
    precision: str | None = None
    devices: int = 1
    assumed: tuple[str, ...] = ()

    @property
    def micro_steps(self) -> int:
        """Micro-batches of an optimizer step."""
        return self.batch_size // self.devices // self.rows

    def make_net(self) -> TransformerLM:
        """The network with its adapters or frozen parameters, and its initial weights."""
        net = TransformerLM(self.network)
        if self.freeze is not None:
            freeze(net, self.freeze)
        if self.lora is not None:
            add_lora(net, self.lora)
        net.loss_rows = self.loss_rows
        return net


# --- parameters


def count_by_part(workload: Workload) -> tuple[dict[str, int], int]:
    """The numbers of parameters by part of the network, and of those that are trained."""
    with without_weights():
        net = workload.make_net()
    counts: Counter[str] = Counter()
    for name, parameter in net.named_parameters():  # a tied weight appears once
        counts[_part(name)] += parameter.numel()
    trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    return dict(counts), trained


def _part(name: str) -> str:
    if A in name or B in name:
        return "adapters"
    words = name.split(".")
    if any(word.endswith("norm") for word in words):
        return "norms"
    return (
        {"attention": "attention", "feedforward": "feed-forward"}.get(words[2], "other")
        if words[0] == "blocks"
        else words[0]
    )


def matrices(workload: Workload) -> list[tuple[int, int]]:
    """The shapes of the matrices that Muon orthogonalizes."""
    muon = isinstance(workload.optimizer, OptimizerConfig) and workload.optimizer.name == "muon"
    with without_weights():
        net: nn.Module = workload.make_net()
    found = [each for each in muon_matrices(net) if each.requires_grad] if muon else []
    return [(min(each.shape), max(each.shape)) for each in found]


# --- options


def read_workload(words: Sequence[str], vocab_size: int | None, read_data: bool, devices: int | None) -> Workload:
    """Reads the options of `fit`.

    Args:
        words: the command line after `tinylm fit`
        vocab_size: size of the vocabulary, if it is known
        read_data: whether to read the data for the vocabulary even if the options bound it
        devices: number of devices, instead of `trainer.devices`

    Raises:
        ConfigError: for an option that is invalid or whose cost is unknown.
    """
    for part in PARTS:
        refused = f"{part}.class_path: the cost of a class of your own is unknown; leave it out"
        require(chosen_path(part, list(words)) is None, refused)
    config = make_parser("").parse_args(list(words))
    check_trainer(config.trainer)
    model, trainer = config.model, config.trainer
    network = _network(model, vocab_size)
    largest = network.pop("vocab_size") or _largest_vocabulary(config.data.tokenizer)
    data = None
    if read_data or largest is None or (trainer.max_epochs or -1) >= 0:
        data = TextDataModule(**(config.data.as_dict() | {"max_seq_len": network["max_seq_len"]}))
    size = largest if data is None else data.vocab_size
    assert size is not None
    used = _devices(trainer) if devices is None else devices
    rows, batch_size = _rows(config.data, used)
    bound = f"a vocabulary of {size:,} tokens, the most that {config.data.tokenizer} may have (--read-data counts them)"
    assumed = [bound] if data is None and vocab_size is None and not model.init_from else []
    assumed += ["model.objective costs nothing"] if model.objective is not None else []
    staged = [name for name in ("batch_schedule", "context_schedule") if config.data.get(name)]
    assumed += [f"all steps cost as much as the last one (data.{name})" for name in staged]
    return Workload(
        network=ModelConfig(vocab_size=size + -size % (model.vocab_multiple or 1), **network),
        optimizer=_made(OptimizerConfig, model.optimizer),
        lora=_made(LoRAConfig, model.lora),
        freeze=_made(FreezeConfig, model.freeze),
        loss_rows=model.loss_rows,
        compiled=model.compile,
        batch_size=batch_size,
        rows=rows,
        context=network["max_seq_len"] if data is None else data.content.sequence_length,
        steps=_steps(trainer, data),
        precision=None if trainer.precision is None else str(trainer.precision),
        devices=used,
        assumed=tuple(assumed),
    )


def _network(model: Any, vocab_size: int | None) -> dict[str, Any]:
    """The fields of the network, those of a base model included; mistakes are reported before the data are read."""
    network = model.network.as_dict()
    network["vocab_size"] = vocab_size
    if model.init_from:
        network = Start(str(find_base(model.init_from))).architecture(network)
        network["vocab_size"] = vocab_size or network["vocab_size"]
    ModelConfig.from_dict({**network, "vocab_size": 1})
    return network


def _made(kind: type, values: Any) -> Any:
    """An object built from parsed options; plug-ins, None and objects are returned unchanged."""
    return kind(**values.as_dict()) if hasattr(values, "as_dict") else values


def _largest_vocabulary(tokenizer: Any) -> int | None:
    """The largest vocabulary that a name of a tokenizer allows; None if it depends on the data."""
    kind, _, size = str(tokenizer).partition(":")
    return int(size) if kind in Tokenizer.kinds and Tokenizer.kinds[kind].has_size and size.isdigit() else None


def _devices(trainer: Any) -> int:
    """The devices of all nodes; `auto` counts as one."""
    there = trainer.devices
    chosen = [0] if there == "auto" or str(there) == "-1" else chosen_devices(there, on_cpu=False)
    return max(len(chosen), 1) * trainer.num_nodes


def _rows(data: Any, devices: int) -> tuple[int, int]:
    """Sequences that a device computes at once, and sequences in a step."""
    batch, micro = data.batch_size, data.micro_batch_size
    require(devices >= 1, f"--devices must be at least 1, got {devices}")
    require(batch % devices == 0, f"data.batch_size must be divisible by the devices, got {batch} and {devices}")
    share = batch // devices
    rows = min(micro or share, share)
    divides = f"data.micro_batch_size must divide the share of a device, got {rows} and {share}"
    require(share % rows == 0, divides)
    return rows, batch


def _steps(trainer: Any, data: TextDataModule | None) -> int:
    """Optimizer steps of the run."""
    ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if (trainer.max_epochs or -1) >= 0:
        assert data is not None
        unknown = "trainer.max_steps: missing; with data.streaming the length of an epoch is not known"
        require(not isinstance(data.order, ShardOrder), unknown)
        ends.append(trainer.max_epochs * data.order.steps_per_epoch)  # pyright: ignore
    return min(ends)
