"""TextDataModule: a text becomes batches, shared out over ranks and micro-steps without changing the global batch."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.data import IGNORE, TextDataModule, TrainingWindows
from tinylm.data.batches import MicroSteps, TrainingBatches, gather
from tinylm.data.evaluation_rows import EvaluationBatches, window_rows
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.files import default_cache_dir
from tinylm.tokenizer import ByteTokenizer, CharTokenizer
from tinylm.training.remarks import epochs

few = settings(max_examples=40, deadline=None)


@pytest.fixture
def module(tmp_path):
    """module(content, **options) is a data module of a text, with its cache in a temporary folder."""

    def make(content: str | bytes, **options) -> TextDataModule:
        (tmp_path / "t.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return TextDataModule(corpus=str(tmp_path / "t.txt"), cache_dir=str(tmp_path / "cache"), **options)

    return make


def trainer(world_size: int = 1, rank: int = 0, **options):
    """The attributes of a trainer that the loaders read."""
    fields = dict(accumulate_grad_batches=1, val_check_interval=1.0, limit_train_batches=1.0) | options
    fields = dict(max_steps=100, max_epochs=-1, state=SimpleNamespace(fn="fit")) | fields
    return SimpleNamespace(world_size=world_size, global_rank=rank, **fields)


# --- sharing out


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("step", [0, 5])
def test_ranks_and_micro_steps_together_are_the_global_batch_in_order(world_size, accumulate, step):
    tokens = np.random.default_rng(0).integers(0, 100, 1000).astype(np.uint16)
    windows = TrainingWindows(len(tokens), context=8, batch_size=16, seed=3)
    whole = gather(tokens, windows.starts(step), 8, num_targets=128)
    shares = [
        TrainingBatches(tokens, windows, accumulate, world_size, rank)[step * accumulate + micro_step]
        for rank in range(world_size)
        for micro_step in range(accumulate)
    ]
    assert torch.equal(torch.cat([share.inputs for share in shares]), whole.inputs)
    assert torch.equal(torch.cat([share.targets for share in shares]), whole.targets)
    assert {len(share.inputs) for share in shares} == {16 // world_size // accumulate}
    assert {share.num_targets for share in shares} == {16 * 8}  # of the whole step, on every device


@few
@given(st.integers(2, 200), st.integers(1, 12), st.integers(1, 5), st.integers(1, 4))
def test_ranks_together_evaluate_every_token_but_the_first_once(num_tokens, context, batch_size, world_size):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    rows = window_rows(num_tokens, context)
    ranks = [EvaluationBatches(tokens, rows, batch_size, world_size, rank) for rank in range(world_size)]
    batches = [data[i] for data in ranks for i in range(len(data))]
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert sorted(targets[targets != IGNORE].tolist()) == list(range(1, num_tokens))
    assert sum(batch.num_targets for batch in batches) == num_tokens - 1
    assert len({len(data) for data in ranks}) == 1  # as many batches on each, some perhaps without targets
    assert sum(batch.num_targets > 0 for batch in batches) == -(-len(rows.begins) // batch_size)


def test_micro_steps_go_on_from_where_the_run_stands_to_the_epochs_end():
    assert list(MicroSteps(6, lambda: 0)) == [0, 1, 2, 3, 4, 5]
    assert list(MicroSteps(6, lambda: 8)) == [8, 9, 10, 11]
    assert list(MicroSteps(6, lambda: 12)) == [12, 13, 14, 15, 16, 17]


# --- text to tokens


def test_a_text_has_the_vocabulary_of_all_its_parts(module):
    data = module("ab" * 9 + "cd", tokenizer="char")  # c and d are in the validation part only
    assert data.vocab_size == 4
    assert {part: ids.tolist() for part, ids in data.tokens.items()} == {"train": [0, 1] * 9, "val": [2, 3]}


@pytest.mark.slow
def test_stories_are_built_in(tmp_path):
    data = TextDataModule(cache_dir=str(tmp_path), split=(0.8, 0.1, 0.1))
    assert data.tokenizer.end_of_text == data.vocab_size - 1
    first = data.tokenizer.decode(data.tokens["train"][:5000]).split("<|endoftext|>")[0]
    assert first in {"".join(story) for story in data.corpus.documents("train")}


def test_the_byte_tokenizer_takes_any_bytes_as_they_are(module):
    raw = np.random.default_rng(0).bytes((1 << 20) + 1000) + "é\0\r\n😀".encode() + b"\xf0\x9f"
    data = module(raw, tokenizer="byte", split=(0.5, 0.5))
    assert bytes(np.concatenate([data.tokens["train"], data.tokens["val"]]).astype(np.uint8)) == raw


def test_a_saved_byte_tokenizer_takes_any_bytes_too(module, tmp_path):
    ByteTokenizer().save(tmp_path / "bytes.json")
    data = module(b"abc\xff" * 10, tokenizer=str(tmp_path / "bytes.json"))
    assert bytes(np.concatenate([data.tokens["train"], data.tokens["val"]]).astype(np.uint8)) == b"abc\xff" * 10


def test_other_tokenizers_refuse_invalid_utf8_or_replace_it(module):
    with pytest.raises(DataError, match=r"t\.txt: is not UTF-8 at byte 3"):
        _ = module(b"abc\xff" * 10).tokens
    data = module(b"abc\xff" * 10, errors="replace", split=(0.5, 0.5))
    assert data.tokenizer.decode(data.tokens["train"]) == "abc\ufffd" * 5
    data = module(b"abc\xff" * 10, tokenizer="byte", errors="replace", split=(0.5, 0.5))
    assert data.tokenizer.decode(data.tokens["train"]) == "abc\ufffd" * 5


def test_a_trained_models_tokenizer_can_be_used_instead(module):
    data = module("abab" * 5)
    data.use_tokenizer(CharTokenizer("xbya"))
    assert data.vocab_size == 4
    assert data.tokens["val"].tolist() == [3, 1]


@pytest.mark.parametrize(
    ("environment", "folder"),
    [({"TINYLM_CACHE": "/x"}, "/x"), ({"XDG_CACHE_HOME": "/y"}, "/y/tinylm"), ({}, Path.home() / ".cache/tinylm")],
)
def test_the_cache_is_where_the_environment_says(environment, folder, monkeypatch):
    for name in ("TINYLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_cache_dir() == TextDataModule().content.settings.cache_dir == Path(folder)


# --- loaders, without a Trainer


def test_training_batches_go_on_where_the_run_stands(module):
    data = module("abcdefgh" * 20, max_seq_len=8, batch_size=4, micro_batch_size=2, seed=7)
    data.trainer = trainer()
    data.setup("fit")
    assert data.trainer.accumulate_grad_batches == 2
    data.trainer.global_step = 5
    windows = TrainingWindows(len(data.tokens["train"]), 8, 4, 7)
    assert len(data.train_dataloader()) == windows.steps_per_epoch * 2
    first = next(iter(data.train_dataloader()))
    expected = gather(data.tokens["train"], windows.starts(5)[:2], 8, num_targets=32)
    assert torch.equal(first.inputs, expected.inputs) and torch.equal(first.targets, expected.targets)
    assert first.num_targets == 32


def test_validation_test_and_prediction_read_their_text_in_order(module, tmp_path):
    data = module("abcdefghij" * 4, max_seq_len=3, batch_size=2, split=(0.5, 0.25, 0.25), text=str(tmp_path / "p.txt"))
    (tmp_path / "p.txt").write_text("jihgfedcba")
    data.trainer = trainer()

    def read(loader):
        batches = list(loader)
        return "".join(data.tokenizer.decode(batch.targets[batch.targets != IGNORE]) for batch in batches)

    assert read(data.val_dataloader()) == "bcdefghij"
    assert read(data.test_dataloader()) == "bcdefghij"
    assert read(data.predict_dataloader()) == "ihgfedcba"


def test_lines_are_trained_on_and_evaluated_from_their_starts(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(f"{number:03}" for number in range(200)))
    data = TextDataModule(f"lines:{tmp_path / 't.txt'}", max_seq_len=6, batch_size=8, cache_dir=str(tmp_path / "cache"))
    data.trainer = trainer(global_step=0)
    data.setup("fit")
    end, last = data.tokenizer.end_of_text, data.tokens["train"][-6:].tolist()
    for batch in data.train_dataloader():  # the text's last windows have to begin a little earlier
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            assert inputs[0] == end or targets.tolist() == last
    rows = [row for batch in data.val_dataloader() for row in batch.targets]
    texts = [data.tokenizer.decode(row[row != IGNORE]) for row in rows]
    assert texts == ["".join(line) + "<|endoftext|>" for line in data.corpus.documents("val")]


@pytest.mark.parametrize("count", range(30, 40))
def test_the_first_training_tokens_end_with_a_whole_document(tmp_path, count):
    (tmp_path / "t.txt").write_text("\n".join(f"{number:03}" for number in range(200)))
    options = dict(max_seq_len=6, cache_dir=str(tmp_path / "cache"))
    data = TextDataModule(f"lines:{tmp_path / 't.txt'}", train_tokens=count, **options)
    whole = TextDataModule(f"lines:{tmp_path / 't.txt'}", **options).tokens["train"]
    tokens = data.tokens["train"]
    assert tokens[-1] == data.tokenizer.end_of_text
    assert len(tokens) == -(-count // 4) * 4  # a line is three digits and a separator
    assert tokens.tolist() == whole[: len(tokens)].tolist()


def test_a_part_of_the_validation_is_spread_over_the_split_with_its_floors(tmp_path):
    options = dict(max_seq_len=32, batch_size=4, cache_dir=str(tmp_path / "cache"))
    part = TextDataModule("stories:300", max_val_tokens=4000, **options)
    part.trainer = trainer(global_step=0)
    part.setup("fit")
    assert part.validation_tokens == 4000 < len(part.tokens["val"])
    batches, whole = list(part.val_dataloader()), list(part.whole_validation())
    assert sum(batch.num_targets for batch in whole) == len(part.tokens["val"])  # each separator begins a document
    ids = [token for batch in batches for token in batch.targets[batch.targets != IGNORE].tolist()]
    texts = part.tokenizer.decode(ids).split("<|endoftext|>")[:-1]
    every = ["".join(document) for document in part.corpus.documents("val")]
    assert len(texts) == len(every) * 4000 // len(part.tokens["val"])
    assert (texts[0], texts[-1]) == (every[0], every[-1])
    assert sum(batch.log_prob for batch in batches) == pytest.approx(sum(map(part.corpus.log_prob, texts)))


# --- refusals

REFUSED = {
    "errors": (dict(errors="x"), "data.errors must be strict or replace, got 'x'"),
    "escaping errors": (dict(errors="surrogateescape"), "data.errors must be strict or replace"),
    "no batch": (dict(batch_size=0), "data.batch_size must be at least 1, got 0"),
    "negative batch": (dict(batch_size=-4), "data.batch_size must be at least 1, got -4"),
    "no micro-batch": (dict(micro_batch_size=0), "data.micro_batch_size must be at least 1, got 0"),
    "negative micro-batch": (dict(micro_batch_size=-1), "data.micro_batch_size must be at least 1, got -1"),
    "split": (dict(split=(0.9, 0.2)), "data.split must be one to three positive fractions"),
    "negative seed": (dict(seed=-1), "data.seed"),
    "no context": (dict(max_seq_len=0), "max_seq_len must be at least 1"),
}


@pytest.mark.parametrize(("options", "problem"), REFUSED.values(), ids=REFUSED)
def test_options_without_meaning_are_refused(options, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        TextDataModule(cache_dir=str(tmp_path), **options)


@pytest.mark.parametrize(
    ("size", "options", "width", "told"),
    [
        (100, dict(max_seq_len=128), 89, r"data\.corpus: .*t\.txt: has 90 tokens: training on windows of 89 of"),
        (100, dict(max_seq_len=90), 89, r"has 90 tokens: training on windows of 89 of the 90 of max_seq_len"),
        (100, dict(max_seq_len=89), 89, None),
        (100, dict(max_seq_len=32, train_tokens=20), 19, r"data\.train_tokens: has 20 tokens: training on windows"),
        (20, dict(max_seq_len=200_000), 17, r"has 18 tokens: training on windows of 17 of the 200,000 of max_seq_len"),
        (2, dict(max_seq_len=4, split=(1.0,)), 1, r"has 2 tokens: training on windows of 1 of the 4 of max_seq_len"),
    ],
)  # fmt: skip
def test_a_text_shorter_than_the_context_trains_in_shorter_windows(module, capfd, size, options, width, told):
    data = module("ab" * (size // 2), batch_size=1, **options)
    data.trainer = trainer(global_step=0)
    data.setup("fit")
    said = capfd.readouterr().err
    assert said.count("training on windows") == (told is not None)
    assert told is None or re.search(told, said)
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape == (1, width) and batch.num_targets == width
    assert data.content.sequence_length == width


def test_short_documents_train_in_shorter_windows_too(tmp_path):
    (tmp_path / "names.txt").write_text("anna\nbo\ncleo\n")
    data = TextDataModule(f"lines:{tmp_path / 'names.txt'}", cache_dir=str(tmp_path), split=(1.0,), max_seq_len=256)
    data.trainer = trainer(global_step=0)
    data.setup("fit")  # 4 + 2 + 4 characters and 3 separators
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape == (32, 12) and batch.num_targets == 32 * 12
    texts = {data.tokenizer.decode([*row, targets[-1]]) for row, targets in zip(*batch[:2], strict=True)}
    assert texts <= {
        "<|endoftext|>anna<|endoftext|>bo<|endoftext|>cleo",
        "anna<|endoftext|>bo<|endoftext|>cleo<|endoftext|>",
    }


def test_texts_without_two_tokens_are_refused_with_counts(module):
    with pytest.raises(DataError, match=r"data\.corpus: .*t\.txt: train has 1 tokens, needs at least 2; give a longer"):
        module("a", split=(1.0,)).setup("fit")
    with pytest.raises(DataError, match=r"^data\.train_tokens: train has 1 tokens, needs at least 2; raise it"):
        module("a" * 100, train_tokens=1).setup("fit")
    with pytest.raises(DataError, match=r"val has 1 tokens, needs at least 2; give it more of data\.split"):
        module("a" * 10, split=(0.95, 0.05)).content.num_tokens("val")


def test_a_batch_of_the_default_size_may_repeat_a_short_text(module, capfd):
    data = module("ab" * 50, max_seq_len=8)
    data.trainer = trainer()
    data.setup("fit")
    data.setup("fit")  # by the command line, and by Lightning
    told = capfd.readouterr().err
    assert re.findall(r"data\.batch_size: 32 is more than the 1\d sequences of 8 tokens .*: a step repeats them", told)
    assert told.count("data.batch_size") == 1
    assert epochs(data) == f"{100 * 32 / data.order.num_windows:,.1f} epochs"  # of 100 steps
    data = module("ab" * 50, max_seq_len=8, batch_size=33)
    data.trainer = trainer()
    with pytest.raises(ConfigError, match=r"data\.batch_size: 33 is more than the 1\d sequences of 8 tokens"):
        data.setup("fit")


def test_a_missing_test_part_is_refused(module):
    with pytest.raises(ConfigError, match=r"data\.split has no test part: give three fractions"):
        module("a" * 100).test_dataloader()


@pytest.mark.parametrize(
    ("options", "running", "problem"),
    [
        (dict(batch_size=3), dict(world_size=2), "divisible by the number of devices, got 3 and 2"),
        (dict(batch_size=8, micro_batch_size=3), dict(world_size=2), "data.micro_batch_size, got 4 and 3"),
        (dict(batch_size=8, micro_batch_size=8), dict(world_size=2), "data.micro_batch_size, got 4 and 8"),
        (dict(batch_size=8, micro_batch_size=4), dict(accumulate_grad_batches=3), "accumulate_grad_batches follows"),
    ],
)
def test_batches_that_cannot_be_shared_out_are_refused(options, running, problem, module):
    data = module("ab" * 100, max_seq_len=4, **options)
    data.trainer = trainer(**running)
    with pytest.raises(ConfigError, match=problem):
        data.setup("fit")


def test_a_text_to_predict_is_recognized_as_a_corpus_is(module, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.gz").write_bytes(b"\x1f\x8b\b")
    (tmp_path / "latin.txt").write_bytes(b"abc \xff")
    for name, problem in {"~/a.gz": "is a gzip file", "~/latin.txt": r"byte 4 .*data\.errors=replace"}.items():
        with pytest.raises(DataError, match=problem):
            module("ab" * 50, text=name).predict_dataloader()


def test_a_text_to_predict_must_be_given_there_and_long_enough(module, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.text: missing"):
        module("ab" * 50).predict_dataloader()
    with pytest.raises(MissingInputError, match=r"data\.text: .*nowhere\.txt: no such file"):
        module("ab" * 50, text=str(tmp_path / "nowhere.txt")).predict_dataloader()
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(DataError, match=r"short\.txt: has 1 tokens, needs at least 2"):
        module("ab" * 50, text=str(tmp_path / "short.txt")).predict_dataloader()
    (tmp_path / "short.txt").write_text("")
    with pytest.raises(DataError, match=r"short\.txt: has 0 tokens, needs at least 2"):
        module("ab" * 50, text=str(tmp_path / "short.txt")).predict_dataloader()


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("cpu", False), ("mps", False)])
def test_batches_for_a_gpu_lie_in_pinned_memory(module, device, pinned):
    data = module("abcdefgh" * 100, max_seq_len=16, batch_size=8)
    data.trainer = trainer(global_step=0, strategy=SimpleNamespace(root_device=torch.device(device)))
    data.setup("fit")
    assert data.train_dataloader().pin_memory is pinned
    assert data.val_dataloader().pin_memory is pinned
