"""Settings that matter and that do not, and labels, of made-up configs."""

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runs.test_compare import NETWORK
from tinylm.runs.settings import FREE, alike, differences, key, labels, read_settings

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_steps": 30, "logger": None, "precision": "32-true", "strategy": "auto", "callbacks": None},
    "model": {"network": {**NETWORK, "vocab_size": 20}, "optimizer": {"name": "muon", "lr": 0.01},
              "schedule": {"name": "linear"}, "lora": None, "objective": None},
    "data": {"corpus": "stories", "text_seed": 0, "batch_size": 4, "seed": 0, "tokenizer": "char"},
    "run": {"name": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """read({"model.optimizer.lr": 1}, ...): comparable settings of CONFIG with each of the changes; None: an entry."""
    folder = tmp_path_factory.mktemp("runs")

    def read(*changes: dict[str, Any], without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        found = []
        for number, change in enumerate(changes):
            config = copy.deepcopy(CONFIG)
            for name, value in change.items():
                *path, last = name.split(".")
                place = config
                for part in path:
                    place[part] = place.get(part) if isinstance(place.get(part), dict) else {}
                    place = place[part]
                place[last] = value
            for name in without if number == 0 else ():
                part, _, last = name.rpartition(".")
                place = config
                for each in part.split("."):
                    place = place[each]
                del place[last]
            run = folder / f"run-{number}"
            run.mkdir(exist_ok=True)
            (run / "config.yaml").write_text(yaml.safe_dump(config))
            found.append(read_settings(run))
        return alike(found)

    return read


VALUES = st.one_of(st.integers(1, 9), st.booleans(), st.sampled_from(["a", "b.C"]), st.lists(st.integers(), max_size=2))
LETTERS = st.text("abcdefgh_", min_size=1, max_size=6).map(lambda text: f"x{text}")


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.sampled_from(FREE), max_size=4), value=VALUES.filter(lambda value: value != "b.C"), inside=LETTERS
)
def test_free_entries_and_what_is_in_them_do_not_matter(read, names, value, inside):
    first, second = read({}, dict.fromkeys(names, value))
    assert key(first) == key(second)
    first, second = read({}, {f"{name}.{inside}": value for name in names if name in ("run", "trainer.logger")})
    assert key(first) == key(second)


@settings(max_examples=40, deadline=None)
@given(
    part=st.sampled_from(["model", "model.network", "data", "trainer", "model.optimizer", "new"]),
    name=LETTERS, values=st.lists(VALUES, min_size=2, max_size=2, unique_by=repr),
)  # fmt: skip
def test_any_other_entry_matters_even_one_that_nobody_knows(read, part, name, values):
    first, second = read(*({f"{part}.{name}": value} for value in values))
    assert key(first) != key(second)
    assert differences([first, second]) == [f"{part}.{name}"]


@pytest.mark.parametrize(
    "name", ["model", "data", "model.network.attention", "model.objective", "model.schedule", "data.corpus"]
)
def test_classes_and_their_arguments_matter_and_arguments_follow_from_another_class(read, name):
    def change(path: str, **arguments: Any) -> dict[str, Any]:
        return {f"{name}.class_path": path, f"{name}.init_args": arguments} if path else {}

    plain, first, second, other = read(
        change(""), change("mine.Gated", gate=1), change("mine.Gated", gate=2), change("yours.Linear", gate=3, rank=4)
    )
    assert len({key(run) for run in (plain, first, second, other)}) == 4
    assert differences([first, second]) == [f"{name}.init_args.gate"]
    assert differences([first, other])[0] == name and f"{name}.init_args.rank" not in differences([first, other])
    assert labels([first, second]) == ["gate 1", "gate 2"]
    assert labels([first, other])[0].endswith("Gated") and labels([first, other])[1].endswith("Linear")


def test_callbacks_that_only_observe_do_not_matter_and_others_do(read):
    def callbacks(*paths: str) -> dict[str, Any]:
        return {
            "trainer.callbacks": [{"class_path": path, "init_args": {"every_n_steps": 9}} for path in paths] or None
        }

    observers = "tinylm.training.GradientNorms", "lightning.pytorch.callbacks.LearningRateMonitor"
    early, mine = "lightning.pytorch.callbacks.EarlyStopping", "mine.GradientNorms"
    none, watched, stopped, own = read(
        callbacks(), callbacks(*observers), callbacks(*observers, early), callbacks(mine)
    )
    assert key(none) == key(watched) and len({key(run) for run in (none, stopped, own)}) == 3
    assert labels([none, stopped]) == ["callbacks none", "callbacks EarlyStopping"]


def test_devices_do_not_matter_but_a_foreign_strategy_does(read):
    auto, ddp, ours, foreign = read(
        *({"trainer.strategy": name} for name in ("auto", "ddp")),
        *({"trainer.strategy.class_path": path} for path in ("tinylm.training.ShardedStrategy", "mine.DiLoCo")),
    )
    assert key(auto) == key(ddp) == key(ours) != key(foreign)


def test_an_entry_that_an_older_run_lacks_is_the_default_of_the_network_or_off(read):
    old, new, other = read(
        {}, {"model.network.norm": "rmsnorm", "data.streaming": False, "model.freeze": None},
        {"model.network.norm": "layernorm"}, without=("model.lora", "model.objective"),
    )  # fmt: skip
    assert key(old) == key(new) != key(other)
    old, new = read({}, {"data.window": 5})
    assert labels([old, new]) == ["window none", "window 5"]


def test_whole_numbers_are_equal_with_and_without_a_point(read):
    whole, same = read({"model.optimizer.lr": 1}, {"model.optimizer.lr": 1.0})
    assert key(whole) == key(same)


def test_older_runs_of_other_data_seeds_have_other_texts(read):
    old, zero, three = read({"data.seed": 3}, {}, {"data.text_seed": 3}, without=("data.text_seed",))
    assert key(old) == key(three) != key(zero)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{}, {}], ["", ""]),
        ([{"model.optimizer.lr": 3e-3}, {"model.network.d_model": 32}], ["lr 0.003, width 16", "lr 0.01, width 32"]),
        ([{}, {"model.lora": {"rank": 8, "alpha": 16}}], ["lora off", "lora on"]),
        ([{"model.lora": {"rank": rank, "alpha": 16}} for rank in (4, 8)], ["rank 4", "rank 8"]),
        ([{}, {"model.lora": {"rank": 4}}, {"model.lora": {"rank": 8}}],
         ["lora off", "lora on, rank 4", "lora on, rank 8"]),
        ([{"a.depth": 1, "b.depth": 1}, {"a.depth": 2, "b.depth": 3}],
         ["a.depth 1, b.depth 1", "a.depth 2, b.depth 3"]),
        ([{"model.objective.class_path": f"{name}.Loss"} for name in ("mine", "yours")],
         ["objective mine.Loss", "objective yours.Loss"]),
        ([{"model.optimizer.name": "adamw"}, {"model.optimizer": {"class_path": "torch.optim.RAdam"}}],
         ["optimizer adamw", "optimizer RAdam"]),
        ([{}, {"data.corpus": {"mine": "x.txt", "web": "y.txt"}}], ["corpus stories", "corpus mine+web"]),
        ([{}, {"model.class_path": "mine.Distilled"}], ["model default", "model Distilled"]),
        ([{}, {"model.network.attention.class_path": "mine.Gated"}], ["attention default", "attention Gated"]),
        ([{}, {f"data.{name}": 1 for name in "abcde"}], ["", ""]),
    ],
)  # fmt: skip
def test_labels_say_what_differs(read, changes, expected):
    assert labels(read(*changes)) == expected
