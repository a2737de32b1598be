"""A corpus, a tokenizer and a data module of one's own, each one file outside the package, named in YAML."""

import hashlib
import random
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml

import tinylm
from tests import processes
from tinylm.bundle import read_checkpoint
from tinylm.data import IGNORE, Batch, TextDataModule
from tinylm.data.loader_batches import LoaderBatches, Restored, as_batch
from tinylm.errors import ConfigError, DataError
from tinylm.generation import Generator, textbook
from tinylm.runs.compare import read_run
from tinylm.runs.metrics import read_metrics
from tinylm.tokenizer import ByteTokenizer, load_tokenizer, write_tokenizer_json
from tinylm.training import OwnData

CORPUS = """
from tinylm.data import Corpus

class Numbers(Corpus):
    def __init__(self, count=200):
        self.count = count

    def documents(self, part):
        for number in range(self.count):
            if (number % 10 == 0) == (part == "val"):
                yield f"{number} and {number + 1}"
"""
TOKENIZER = '''
import numpy as np
from tinylm.tokenizer import Tokenizer

class Backwards(Tokenizer):
    """Characters, the last letter of the alphabet first."""
    kind = "backwards"

    def __init__(self, letters, special_tokens=()):
        super().__init__([letter.encode() for letter in letters], special_tokens)
        self.letters = letters

    @classmethod
    def train_from_streams(cls, streams, special_tokens=(), extra=""):
        found = {letter for stream in streams for chunk in stream for letter in chunk}
        return cls("".join(sorted(found | set(extra), reverse=True)), special_tokens)

    def encode_ordinary(self, text, start=0):
        return np.array([self.letters.index(letter) for letter in text], dtype=np.int64)

    def options(self):
        return {"letters": self.letters, "special_tokens": list(self.special_tokens)}
'''
DATA = """
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from tinylm.tokenizer import ByteTokenizer

class Lines(pl.LightningDataModule):
    def __init__(self, text: str = "abcdefgh", batch_size: int = 4, max_seq_len: int = 16, repeats: int = 60):
        super().__init__()
        self.text, self.batch_size, self.width, self.repeats = text, batch_size, max_seq_len, repeats
        self.fingerprint = text

    def setup(self, stage):
        self.tokenizer = ByteTokenizer()
        ids = torch.tensor(self.tokenizer.encode(self.text * self.repeats))
        self.rows = ids[: len(ids) // self.width * self.width].view(-1, self.width)

    def loader(self, rows, shuffle):
        return DataLoader(TensorDataset(rows[:, :-1], rows[:, 1:]), batch_size=self.batch_size, shuffle=shuffle)

    def train_dataloader(self):
        return self.loader(self.rows[:-5], shuffle=True)

    def val_dataloader(self):
        return self.loader(self.rows[-5:], shuffle=False)

class NoData:
    pass
"""
CONFIG = """
model:
  network: {d_model: 16, num_layers: 1, num_heads: 2, max_seq_len: 16, dropout: 0.1}
  schedule: {name: constant, warmup_steps: 1}
run: {sample_tokens: 2, peak_flops: 1.0e+12}
trainer: {accelerator: cpu, max_steps: 5, val_check_interval: 5, check_val_every_n_epoch: null, log_every_n_steps: 1}
"""
TEXT = """
data:
  corpus: {class_path: bench_corpus.Numbers, init_args: {count: 300}}
  tokenizer: {class_path: bench_tokenizer.Backwards, init_args: {extra: "xyz"}}
  batch_size: 4
"""
TRUST = ("--trust", "bench_corpus", "--trust", "bench_tokenizer", "--trust", "bench_data")


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """A folder with the three modules and two configs that name them."""
    folder = tmp_path_factory.mktemp("bench")
    for name, text in {"corpus": CORPUS, "tokenizer": TOKENIZER, "data": DATA, "stranger": DATA}.items():
        (folder / f"bench_{name}.py").write_text(text)
    (folder / "text.yaml").write_text(CONFIG + TEXT + f"  cache_dir: {folder / 'cache'}\n")
    (folder / "own.yaml").write_text(CONFIG + "data: {class_path: bench_data.Lines, init_args: {text: hello you}}\n")
    return folder


@pytest.fixture
def fit(cli, bench):
    """fit(name, *options) trains by a config of the bench, and returns the run."""

    def train(config: str, *options: str) -> Path:
        result = cli("fit", "-c", bench / f"{config}.yaml", *TRUST, *options)
        assert result.code == 0, result.err
        return Path("runs", options[options.index("--run.name") + 1] if "--run.name" in options else config)

    return train


def same_runs(one: Path, other: Path) -> None:
    assert read_metrics(one / "metrics.csv")["train/loss"] == read_metrics(other / "metrics.csv")["train/loss"]
    weights = [read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"] for run in (one, other)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


@pytest.mark.parametrize(
    ("config", "options"),
    [
        pytest.param("text", (), marks=pytest.mark.slow),
        ("own", ("--data.batch_size", "8")),
        pytest.param(
            "own", ("--trainer.accumulate_grad_batches", "2", "--data.text", "0123456789"), marks=pytest.mark.slow
        ),
    ],
    ids=["corpus and tokenizer", "data module", "micro-batches"],
)
def test_a_run_on_data_of_ones_own_is_resumed_to_the_last_bit(fit, config, options):
    """An epoch of the data module has 4 steps: the part ends within the first, the whole in the second."""
    whole = fit(config, *options, "--run.name", "whole")
    fit(config, *options, "--run.name", "part", "--trainer.max_steps", "3")
    same_runs(whole, fit(config, *options, "--run.name", "part", "--resume"))
    losses = read_metrics(whole / "metrics.csv")["train/loss"][1]
    assert losses[-1] < losses[0]


def test_a_run_records_its_plug_ins_and_generates_compares_and_validates(fit, cli, bench):
    run = fit("text")
    config = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert config["corpus"] == {"class_path": "bench_corpus.Numbers", "init_args": {"count": 300}}
    assert config["tokenizer"] == {"class_path": "bench_tokenizer.Backwards", "init_args": {"extra": "xyz"}}
    recorded = read_checkpoint(run / "checkpoints/last.ckpt")["tinylm_plugins"]
    assert {each["class_path"]: each["sha256"] for each in recorded} == {
        f"bench_{name}.{kind}": hashlib.sha256((bench / f"bench_{name}.py").read_bytes()).hexdigest()
        for name, kind in (("corpus", "Numbers"), ("tokenizer", "Backwards"))
    }
    model, tokenizer = tinylm.load(run)
    assert tokenizer.letters == "zyxnda9876543210 "  # type: ignore[attr-defined]
    text = Generator(model, tokenizer).generate("1 and", max_new_tokens=8, temperature=0)
    ids = tokenizer.encode("1 and")
    plain = list(textbook.generate(model, [*tokenizer.opening, *ids], max_new_tokens=8))
    assert text == tokenizer.decode(tokenizer.until_stop(plain))
    assert read_run(run).tokens == 5 * 4 * 16
    result = cli("validate", "-c", run / "config.yaml", *TRUST)
    assert result.code == 0 and "val/loss" in result.out


def test_a_run_on_a_data_module_records_it_and_needs_only_its_tokenizer_afterwards(fit, cli, capfd):
    run = fit("own", "--data.batch_size", "3")
    config = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert config["class_path"] == "bench_data.Lines"
    assert config["init_args"] == {"text": "hello you", "batch_size": 3, "repeats": 60}
    capfd.readouterr()
    with pytest.raises(SystemExit):
        cli("fit", "-c", run / "config.yaml", *TRUST, "--print_config")
    assert yaml.safe_load(capfd.readouterr().out)["data"] == config
    checkpoint = read_checkpoint(run / "checkpoints/last.ckpt")
    assert checkpoint["tinylm_data"]["fingerprint"] == "hello you"
    assert [each["class_path"] for each in checkpoint["tinylm_plugins"]] == ["bench_data.Lines"]
    assert tinylm.load(run)[1].own_class is None
    assert read_run(run).tokens == pytest.approx(5 * 3 * 15, abs=3)
    result = cli("fit", "-c", run / "config.yaml", *TRUST, "--run.name", "own", "--resume", "--data.text", "other")
    assert result.code == 2 and "is not the text that the checkpoint was trained on" in result.error


REFUSED = {
    "not trusted": (("-c", "STRANGER"), "stranger.yaml: data.class_path: bench_stranger.Lines: importing it runs code"),
    "no data module": (
        ("--data.class_path", "bench_data.NoData"),
        "data.class_path: bench_data.NoData is not a subclass of lightning",
    ),
    "a misspelled option": (("--data.txet", "x"), "data.txet: no such option, did you mean 'data.text'?"),
    "an option of another class": (("--data.corpus", "x"), "data.corpus: no such option"),
    "a value of another type": (("--data.batch_size", "x"), "data.batch_size must be int, got x"),
    "no test split": (None, "data: bench_data.Lines gives no test_dataloader; define it"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_mistakes_are_one_line(cli, bench, options, message):
    stranger = bench / "stranger.yaml"
    stranger.write_text(CONFIG + "data: {class_path: bench_stranger.Lines}\n")
    words = [str(word).replace("STRANGER", str(stranger)) for word in options or ()]
    if options is None:
        assert cli("fit", "-c", bench / "own.yaml", *TRUST, "--trainer.max_steps", "1").code == 0
    result = cli("test" if options is None else "fit", "-c", bench / "own.yaml", *TRUST, *words)
    assert result.code == 2 and message in result.error
    assert "bench_stranger" not in sys.modules


def test_a_corpus_or_tokenizer_that_cannot_be_used_is_refused_by_name(bench, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(bench)
    tinylm.plugins.trust(["bench_corpus", "bench_tokenizer"])
    corpus = {"class_path": "bench_corpus.Numbers", "init_args": {"count": 30}}
    wrong = {
        r"data\.corpus: bench_tokenizer\.Backwards gives Backwards, which is not a subclass": dict(
            corpus={"class_path": "bench_tokenizer.Backwards", "init_args": {"letters": "ab"}}
        ),
        r"data\.corpus: bench_corpus\.Numbers: .*'cout', did you mean 'count'\?": dict(
            corpus=corpus | {"init_args": {"cout": 3}}
        ),
        r"data\.tokenizer: bench_tokenizer\.Backwards: init_args: no argument extr, did you mean 'extra'\?": dict(
            tokenizer={"class_path": "bench_tokenizer.Backwards", "init_args": {"extr": "a"}}
        ),
    }
    for message, options in wrong.items():
        with pytest.raises(ConfigError, match=message):
            _ = TextDataModule(**dict(corpus=corpus, cache_dir=str(tmp_path)) | options).tokenizer


def test_a_tokenizer_of_ones_own_is_saved_with_its_class_and_never_passed_off_as_another(bench, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(bench)
    tinylm.plugins.trust(["bench_tokenizer"])
    from bench_tokenizer import Backwards  # type: ignore[import-not-found]

    tokenizer = Backwards.train_from_texts(["hello"], special_tokens=["<|endoftext|>"])
    tokenizer.save(tmp_path / "tokenizer.json")
    assert yaml.safe_load((tmp_path / "tokenizer.json").read_text())["class_path"] == "bench_tokenizer.Backwards"
    assert load_tokenizer(tmp_path / "tokenizer.json") == tokenizer
    with pytest.raises(ConfigError, match=r"bench_tokenizer\.Backwards cannot be written as tokenizer\.json"):
        write_tokenizer_json(tokenizer, tmp_path / "other.json")
    monkeypatch.setattr(tinylm.plugins, "_trusted", set())
    monkeypatch.setattr(tinylm.plugins.Part, "_given", {})
    with pytest.raises(ConfigError, match=r"tokenizer\.json: needs code .*: bench_tokenizer\.Backwards"):
        load_tokenizer(tmp_path / "tokenizer.json")


# --- the order of a loader's batches


class Shuffled:
    """Seven batches, whose order and values are random numbers of all three generators."""

    def __init__(self, sized: bool = True) -> None:
        if not sized:
            self.__class__ = Unsized

    def __len__(self) -> int:
        return 7

    def __iter__(self):
        for place in torch.randperm(7).tolist():
            yield place, torch.rand(()).item(), random.random(), np.random.rand()


class Unsized(Shuffled):
    __len__ = None  # type: ignore[assignment]


class Stateful(Shuffled):
    """Keeps its position."""

    place = 0

    def __iter__(self):
        self.place %= 7
        while self.place < 7:
            self.place += 1
            yield self.place

    def load_state_dict(self, state):
        self.place = state


def batches(loader, sized: bool = True, share=(1, 0), restored=None, accumulate: int = 1) -> LoaderBatches:
    per_epoch = 7 // share[0] // accumulate * accumulate if sized else None
    return LoaderBatches(loader, per_epoch, share, (3,), lambda batch: batch, restored, accumulate)


@pytest.mark.parametrize("sized", [True, False], ids=["epochs", "no length"])
def test_batches_are_the_same_from_any_step_on_and_the_random_state_is_left_alone(sized):
    reader = batches(Shuffled(sized), sized)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    whole = [reader[index] for index in range(20)]
    assert torch.equal(torch.rand(3), expected)
    assert sorted(each[0] for each in whole[:7]) == list(range(7)) and whole[:7] != whole[7:14]
    for start in (3, 7, 11):
        again = batches(Shuffled(sized), sized)
        assert [again[index] for index in range(start, 20)] == whole[start:]


@pytest.mark.parametrize("sized", [True, False], ids=["epochs", "no length"])
def test_several_devices_share_the_batches_of_one(sized):
    one = batches(Shuffled(sized), sized, accumulate=2)
    two = [batches(Shuffled(sized), sized, (2, rank)) for rank in (0, 1)]
    assert [one[index] for index in range(18)] == [two[index % 2][index // 2] for index in range(18)]


def test_a_loader_with_a_state_is_asked_for_it():
    reader, other = batches(Stateful()), Stateful()
    whole = [reader[index] for index in range(12)]
    again = batches(other, restored=Restored(state=4))
    assert [again[index] for index in range(4, 12)] == whole[4:]
    other.place = 5  # by its data module
    again = batches(other, restored=Restored(by_module=True))
    assert [again[index] for index in range(5, 12)] == whole[5:]


def test_both_forms_of_a_batch_are_taken_and_anything_else_is_refused():
    tokenizer, ids = ByteTokenizer(), torch.arange(8, dtype=torch.int32).view(2, 4)
    targets = torch.where(ids < 3, IGNORE, ids)
    for given in ((ids, targets), [ids, targets], {"inputs": ids, "targets": targets}):
        batch = as_batch(given, tokenizer, 4, micro_batches=6)
        assert batch.inputs.dtype == torch.int64 and batch.num_targets == 5 * 6
    assert as_batch(Batch(ids.long(), ids.long(), 11), tokenizer, 4).num_targets == 11
    wrong = {
        "a loader gives Tensor; a batch is": ids,
        "a loader gives list; a batch is": [ids],
        r"inputs are \(2, 4\) and targets \(2, 3\)": (ids, ids[:, 1:]),
        "a batch has 4 tokens a sequence, max_seq_len is 3": (ids, ids),
        "token id 256 is outside the vocabulary of 256 tokens": (ids[:, :3] + 250, ids[:, :3]),
        "token id -1 is outside": (ids[:, :3], ids[:, :3] - 1),
    }
    for message, given in wrong.items():
        with pytest.raises(DataError, match=message):
            as_batch(given, tokenizer, 3 if "3" in message or "outside" in message else 4)


def test_batches_of_transformers_collators_have_the_loss_that_transformers_computes():
    """With padding on the right and with labels of its own; without labels, padding is no target."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers itself")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval().double()
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    padded = ids.masked_fill(mask == 0, IGNORE)
    answers = padded.masked_fill(torch.arange(5) < 2, IGNORE)  # the loss of the answers only
    tokenizer = ByteTokenizer()
    for labels in (padded, answers):
        given = transformers.BatchEncoding({"input_ids": ids, "attention_mask": mask, "labels": labels})
        batch = as_batch(given, tokenizer, 4)
        logits = model(input_ids=batch.inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
        assert loss.item() == pytest.approx(model(**given).loss.item(), abs=1e-6)  # theirs in float32
    assert batch.num_targets == 3 + 1
    assert torch.equal(as_batch({"input_ids": ids, "attention_mask": mask}, tokenizer, 4).targets, padded[:, 1:])
    assert torch.equal(as_batch({"input_ids": ids}, tokenizer, 4).targets, ids[:, 1:])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(position_ids=torch.ones(2, 3)), "a batch has position_ids, which is not read"),
        (dict(attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]])), 'set padding_side="right" in the tokenizer'),
        (dict(labels=torch.ones(2, 4)), r"must be tensors of one shape \(B, T\)"),
        (dict(labels=[[1, 2, 3]]), r"must be tensors of one shape \(B, T\)"),
    ],
)
def test_what_a_collator_gives_beyond_that_is_refused(entries, message):
    with pytest.raises(DataError, match=message):
        as_batch({"input_ids": torch.ones(2, 3).long(), **entries}, ByteTokenizer(), 4)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # Lightning asks for it without a device
def test_a_data_module_made_from_datasets_is_taken():
    rows = torch.arange(9).repeat(32, 1)
    pairs = torch.utils.data.TensorDataset(rows[:, :-1], rows[:, 1:])
    given = pl.LightningDataModule.from_datasets(pairs, val_dataset=pairs, batch_size=8)
    given.tokenizer = ByteTokenizer()
    data = OwnData(given, 8)
    assert data.content.num_tokens("train") == data.content.num_tokens("val") == 32 * 8
    assert not data.content.defines("test")
    data.setup("fit")  # without a trainer, to look at the batches
    batches = [*data.train_dataloader()]
    assert len(batches) == 4 and all(torch.equal(batch.targets, rows[:8, 1:]) for batch in batches)


class Given(pl.LightningDataModule):
    tokenizer = ByteTokenizer()
    loader = ((torch.zeros(2, 3).long(), torch.zeros(2, 3).long()),)

    def train_dataloader(self):
        return self.loader


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (dict(tokenizer=None), "has no tokenizer; set self.tokenizer"),
        (dict(tokenizer="byte"), "has a str as its tokenizer"),
        (dict(loader=iter([1])), "gives an iterator, which can be read once"),
        (dict(loader={}), "gives a dict; give one DataLoader"),
        (dict(loader=3), "gives a int; give one DataLoader"),
    ],
)
def test_a_data_module_that_lacks_something_is_refused_by_name(attributes, message):
    given = Given()
    vars(given).update(attributes)
    with pytest.raises(ConfigError, match=message):
        _ = OwnData(given).vocab_size, OwnData(given).content.num_tokens("train")


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_last_bit(fit, bench, tmp_path):
    save = "--trainer.callbacks+={class_path: tinylm.training.LastCheckpoint, init_args: {every_n_train_steps: 2}}"
    options = [save, "--trainer.max_steps", "400", "--trainer.val_check_interval", "400"]
    arguments = ["fit", "-c", str(bench / "own.yaml"), *TRUST, *options, "--run.name", "killed"]
    process = processes.start(processes.command_line, arguments, tmp_path, tmp_path / "log", OMP_NUM_THREADS="1")
    processes.wait_for((tmp_path / "runs/killed/checkpoints/last.ckpt").is_file)
    process.kill()
    process.join()
    assert not (tmp_path / "runs/killed/model").exists()
    same_runs(fit("own", *options, "--run.name", "killed", "--resume"), fit("own", *options, "--run.name", "whole"))
