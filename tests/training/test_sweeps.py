"""The sweeps in configs/sweeps, as `wandb agent` runs them."""

from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))


def agents_command(sweep: dict, parameters: dict) -> list[str]:
    """The command that the agent starts, with macros replaced as in `wandb_agent.Agent._command_run`."""
    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"]}
    return [word for part in sweep["command"] for word in (macros[part[2:-1]] if part.startswith("${") else [part])]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_value_of_a_sweep_arrives(cli, capfd, path):
    sweep = yaml.safe_load(path.read_text())
    choices = {name: parameter["values"] for name, parameter in sweep["parameters"].items()}
    parameters = {name: values[-1] for name, values in choices.items()}
    command = agents_command(sweep, parameters)
    assert command[:4] == ["/usr/bin/env", "python", "-m", "tinylm"]
    with pytest.raises(SystemExit):
        cli(*command[4:], "--print_config")
    config = yaml.safe_load(capfd.readouterr().out)
    for name, value in parameters.items():
        place = config
        for key in name.split("."):
            place = place[key]
        assert place == value, name
    assert [logger["class_path"] for logger in config["trainer"]["logger"]] == ["tinylm.training.WandbTracker"]
    assert sweep["metric"]["name"] == "val/loss"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model.optimizer.lr", 1e-05, 1e-05),  # --model.optimizer.lr=1e-05, which YAML takes for a string
        ("model.network.tie_embeddings", False, False),
        ("model.network.num_kv_heads", "null", None),  # None would be written "None", a string
        ("data.split", [0.9, 0.1], [0.9, 0.1]),
        ("data.corpus", "my text.txt", "my text.txt"),
    ],
)
def test_values_of_all_kinds_are_read_as_the_agent_writes_them(cli, capfd, name, value, expected):
    sweep = yaml.safe_load(SWEEPS[0].read_text())
    with pytest.raises(SystemExit):
        cli(*agents_command(sweep, {name: value})[4:], "--print_config")
    config = yaml.safe_load(capfd.readouterr().out)
    for key in name.split("."):
        config = config[key]
    assert config == expected
