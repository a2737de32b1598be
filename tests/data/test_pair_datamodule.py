"""TextDataModule with pairs: no text is opened, and pairs are shared out as windows of a text are."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import tinylm.data.text_content
from tinylm.data import CHAT, IGNORE, Batch, TextDataModule
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer


def trainer(world_size: int = 1, rank: int = 0, step: int = 0):
    """The attributes of a trainer that the loaders read."""
    fields = dict(accumulate_grad_batches=1, val_check_interval=1.0, limit_train_batches=1.0, global_step=step)
    fields |= dict(max_steps=100, max_epochs=-1, state=SimpleNamespace(fn="fit"))
    return SimpleNamespace(world_size=world_size, global_rank=rank, **fields)


def write(path: Path, numbers: range) -> str:
    """A file of sums: "12+12=" and "24"."""
    lines = [json.dumps({"prompt": f"{n}+{n}=", "response": str(2 * n)}) for n in numbers]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(**options) is a data module of forty sums for training and ten to validate; opening a text is an error."""
    monkeypatch.setattr(tinylm.data.text_content, "open_corpus", lambda *_, **__: pytest.fail("a corpus was opened"))
    train, val = write(tmp_path / "train.jsonl", range(40)), write(tmp_path / "val.jsonl", range(40, 50))

    def make(**options) -> TextDataModule:
        given = dict(pairs=train, pairs_val=val, max_seq_len=12, batch_size=8, cache_dir=str(tmp_path)) | options
        data = TextDataModule(**given)
        data.use_tokenizer(CharTokenizer("0123456789+=", [END_OF_TEXT]))
        return data

    return make


def answers(data: TextDataModule, batches: list[Batch]) -> list[str]:
    """The target tokens of each answer."""
    targets = [row[row != IGNORE] for batch in batches for row in batch.targets]
    text = "".join(data.tokenizer.decode(row) for row in targets)
    return text.split(END_OF_TEXT)[:-1]


def read(data: TextDataModule, loader: str, **running) -> list[Batch]:
    data.trainer = trainer(**running)  # type: ignore[assignment]
    data.setup("fit")
    return list(getattr(data, loader)())


def test_what_the_command_line_asks_of_it(module):
    data = module()
    assert (data.vocab_size, data.floors, Path(data.source).name) == (13, {}, "train.jsonl")
    characters = sum(len(f"{n}+{n}={2 * n}") for n in range(40))
    assert len(data.tokens["train"]) == characters + 40 * 2  # an end before and after each
    assert {part: len(pairs) for part, pairs in data.content.examples.items()} == {"train": 40, "val": 10}


def test_an_epoch_has_every_pair_once_and_the_next_another_order(module):
    first = answers(module(), read(module(), "train_dataloader"))
    second = answers(module(), read(module(), "train_dataloader", step=5))
    assert len(first) == 40 and sorted(map(int, first)) == sorted(map(int, second)) == list(range(0, 80, 2))
    assert first != second != list(map(str, range(0, 80, 2)))
    assert answers(module(), read(module(seed=1), "train_dataloader")) != first


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_and_resuming_change_neither_order_nor_counts(packing, world_size, module):
    options = dict(packing=packing, max_seq_len=24 if packing else 12, micro_batch_size=2)
    whole = read(module(**options | {"micro_batch_size": 8}), "train_dataloader")
    resumed = [
        read(module(**options), "train_dataloader", world_size=world_size, rank=r, step=1) for r in range(world_size)
    ]
    accumulate = 8 // world_size // 2
    for step, batch in enumerate(whole[1:]):  # the run resumes at its second step
        micro_steps = slice(step * accumulate, (step + 1) * accumulate)
        mine = [share for rank in resumed for share in rank[micro_steps]]
        assert answers(module(), mine) == answers(module(), [batch])
        assert {share.num_targets for share in mine} == {int((batch.targets != IGNORE).sum())}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_reads_every_pair_once_in_order(world_size, module):
    options = dict(batch_size=6 * world_size, micro_batch_size=2, packing=True)  # which is for training only
    ranks = [read(module(**options), "val_dataloader", world_size=world_size, rank=rank) for rank in range(world_size)]
    batches = [batch for together in zip(*ranks, strict=True) for batch in together]
    assert answers(module(), batches) == [str(2 * n) for n in range(40, 50)]


def test_packed_batches_are_as_wide_as_the_context_and_padded_ones_as_their_longest(module):
    packed = read(module(packing=True, max_seq_len=30, batch_size=2), "train_dataloader")
    assert {batch.inputs.shape for batch in packed} == {(2, 30)}
    assert max(int(batch.documents.max()) for batch in packed if batch.documents is not None) >= 3
    for batch in read(module(max_seq_len=30), "train_dataloader"):
        longest = max(len(f"{n}+{n}={n * 2}") for n in (int(answer) // 2 for answer in answers(module(), [batch])))
        assert batch.inputs.shape == (8, longest + 1)


def test_without_a_validation_file_a_part_of_the_pairs_is_kept_for_it(module, tmp_path):
    sums = write(tmp_path / "sums.jsonl", range(40))
    data = module(pairs=sums, pairs_val=None, split=(0.7, 0.2, 0.1))
    sizes = {part: len(pairs) for part, pairs in data.content.examples.items()}
    assert sizes == {"train": 28, "val": 8, "test": 4}
    loaded = [
        answer for loader in ("val_dataloader", "test_dataloader") for answer in answers(data, read(data, loader))
    ]
    kept = {data.tokenizer.decode(each.ids[each.counts]) for each in data.content.examples["train"]}
    assert len(set(loaded)) == 12 and not kept & {answer + END_OF_TEXT for answer in loaded}


def test_the_val_file_beside_a_train_file_is_for_validation_and_is_named(module, tmp_path, capsys):
    data = module(pairs_val=None)
    assert data.content.val == str(tmp_path / "val.jsonl")
    assert capsys.readouterr().err == f"tinylm: data.pairs_val: {tmp_path / 'val.jsonl'}\n"
    assert {part: len(pairs) for part, pairs in data.content.examples.items()} == {"train": 40, "val": 10}
    assert data.fingerprint == module().fingerprint
    other = write(tmp_path / "other.jsonl", range(40))
    assert module(pairs=other, pairs_val=None).content.val is None
    (tmp_path / "val.jsonl").unlink()
    assert {part: len(pairs) for part, pairs in module(pairs_val=None).content.examples.items()} == {
        "train": 36,
        "val": 4,
    }
    assert capsys.readouterr().err == ""


def test_fields_and_the_home_folder_reach_the_pairs(module, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine.csv").write_text("q;a;id\n" + "".join(f"{n}+{n}=;{2 * n};{n}\n" for n in range(40)))
    data = module(pairs="~/mine.csv", pairs_val=None, fields=("q", "a"))
    assert {part: len(pairs) for part, pairs in data.content.examples.items()} == {"train": 36, "val": 4}
    assert data.example_prompt() == "0+0="
    other = module(pairs="~/mine.csv", pairs_val=None, fields=("q", "id"))
    assert data.fingerprint != other.fingerprint


def test_a_saved_tokenizer_can_be_named(module, tmp_path):
    ByteTokenizer(CHAT.special_tokens).save(tmp_path / "tokenizer.json")
    data = TextDataModule(
        pairs=str(tmp_path / "train.jsonl"), tokenizer=str(tmp_path / "tokenizer.json"), template="chat"
    )
    assert data.template.special_tokens[1] == "<|system|>"
    assert data.vocab_size == 260 and data.content.examples["train"][0].ids[0] == 256


# --- refusals

REFUSED = {
    "template": (dict(template="chta"), ConfigError, r"data\.template: no template 'chta', did you mean 'chat'"),
    "too_long": (dict(too_long="cut"), ConfigError, r"data\.too_long must be error, drop or truncate, got 'cut'"),
    "train_tokens": (dict(train_tokens=9), ConfigError, r"data\.train_tokens is for texts; with data\.pairs, give a"),
    "pairs": (dict(pairs="no.jsonl"), MissingInputError, r"data\.pairs: no\.jsonl: no such file"),
    "pairs_val": (dict(pairs_val="no.csv"), MissingInputError, r"data\.pairs_val: no\.csv: no such file"),
    "sample data": (
        dict(pairs="questions/train.jsonl"),
        MissingInputError,
        r"data\.pairs: questions/train\.jsonl: no such file; to write it: .* prepare questions --out questions$",
    ),
    "a folder": (dict(pairs="."), MissingInputError, r"data\.pairs: \.: is a folder; give a file"),
    "val": (
        dict(val="val.txt"),
        ConfigError,
        r"data\.val: is for data\.corpus; give the validation pairs as data\.pai",
    ),
    "both": (dict(split=(1.0,)), ConfigError, r"data\.pairs_val: .* data\.split is \[1\.0\]; leave out one of the two"),
    "field": (dict(field="body"), ConfigError, r"data\.field: does not work with data\.pairs; leave it out"),
    "separator": (dict(separator="#"), ConfigError, r"data\.separator: does not work with data\.pairs; leave it out"),
    "include": (dict(include=("*.md",)), ConfigError, r"data\.include: does not work with data\.pairs; leave it out"),
    "exclude": (dict(exclude=("*.md",)), ConfigError, r"data\.exclude: does not work with data\.pairs; leave it out"),
    "deduplicate": (dict(deduplicate=True), ConfigError, r"data\.deduplicate: does not work with data\.pairs; leave"),
    "fields": (
        dict(pairs=None, pairs_val=None, fields=("a", "b")),
        ConfigError,
        r"data\.fields: is for data\.pairs; leave",
    ),
}


@pytest.mark.parametrize(("options", "kind", "problem"), REFUSED.values(), ids=REFUSED)
def test_options_without_meaning_are_refused_at_once(options, kind, problem, module):
    with pytest.raises(kind, match=problem):
        module(**options)


def test_all_pairs_are_trained_on_without_a_validation(module, capfd, tmp_path):
    data = module(pairs_val=None, split=(1.0,))  # of the 40 pairs, and not val.jsonl beside them
    assert {part: len(pairs) for part, pairs in data.content.examples.items()} == {"train": 40}
    read(data, "train_dataloader")
    assert not data.validates
    assert "no validation (all is trained on): the last checkpoint is the model" in capfd.readouterr().err
    with pytest.raises(ConfigError, match=r"data\.split has no val part: give two fractions, .* or data\.pairs_val"):
        data.setup("validate")


def test_what_only_the_data_tell_is_refused_before_the_first_step(module, tmp_path):
    with pytest.raises(DataError, match=r"train\.jsonl: 35 of 40 records have more than the 6 tokens"):
        read(module(max_seq_len=6), "train_dataloader")
    few = write(tmp_path / "few.jsonl", range(3))
    with pytest.raises(
        DataError, match=r"few\.jsonl: has too few prompts in its 3 pairs for a val part of 0\.1; give more, or data"
    ):
        read(module(pairs=few, pairs_val=None), "train_dataloader")
    with pytest.raises(ConfigError, match=r"data\.pairs_val leaves no test part; give that file as data\.pairs_val"):
        read(module(), "test_dataloader")
    with pytest.raises(ConfigError, match=r"data\.tokenizer: use that of a trained model, by its folder"):
        _ = TextDataModule(pairs=few).vocab_size
    with pytest.raises(ConfigError, match=r"data\.template=chat needs <\|system\|>"):
        read(module(template="chat"), "train_dataloader")
