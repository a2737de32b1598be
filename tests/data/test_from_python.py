"""Data from Python: texts, records, token ids and corpora of one's own, as TextDataModule takes them."""

import hashlib
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from tinylm.data import Corpus, TextDataModule
from tinylm.data.corpora import items as items_module
from tinylm.data.token_array import TokenArray
from tinylm.errors import ConfigError, DataError
from tinylm.model import ModelConfig
from tinylm.tokenizer import ByteTokenizer, CharTokenizer
from tinylm.training import LitTransformerLM

LINES = [f"line {number} of the text" for number in range(40)]


@pytest.fixture
def module(tmp_path):
    """module(corpus, **options) is a data module with its cache in a temporary folder."""

    def make(corpus, **options) -> TextDataModule:
        return TextDataModule(corpus, **dict(cache_dir=str(tmp_path / "cache")) | options)

    return make


def texts(data: TextDataModule) -> dict[str, str]:
    """The decoded tokens of each part."""
    return {part: data.tokenizer.decode(ids) for part, ids in data.tokens.items()}


class Again:
    """An iterable that can be read any number of times."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)


class Mapped(Dataset):
    """A map-style data set that never raises IndexError, as many do not."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index % len(self.values)]


# --- texts


def forms():
    records = [{"text": line, "other": 1} for line in LINES]
    found = {
        "list": LINES,
        "tuple": tuple(LINES),
        "iterable": Again(LINES),
        "generator": (line for line in LINES),
        "numpy": np.array(LINES),
        "torch": Mapped(LINES),
        "records": records,
        "generator of records": iter(records),
    }
    optional = {
        "pandas": lambda pandas: [pandas.Series(LINES), pandas.DataFrame(records)],
        "polars": lambda polars: [polars.Series(LINES), polars.DataFrame(records)],
        "pyarrow": lambda arrow: [arrow.array(LINES), arrow.Table.from_pylist(records)],
        "datasets": lambda datasets: [datasets.Dataset.from_list(records), datasets.Dataset.from_list(records)["text"]],
    }
    for name, make in optional.items():
        if find_spec(name) is not None:
            found |= {f"{name} {number}": form for number, form in enumerate(make(import_module(name)))}
    return found


def test_the_same_texts_in_any_form_are_the_same_corpus(module):
    # The first 90% of the 40 texts' characters are train; a separator ends each document, and each piece of one.
    joined = "".join(LINES)
    cut = int(len(joined) * 0.9)
    found = {name: module(form) for name, form in forms().items()}
    for name, data in found.items():
        parts = texts(data)
        assert parts["train"].replace("<|endoftext|>", "") == joined[:cut], name
        assert parts["val"].replace("<|endoftext|>", "") == joined[cut:], name
        assert parts["train"].startswith("<|endoftext|>".join(LINES[:5])), name
    assert len({data.fingerprint for data in found.values()}) == 1


def test_a_hundred_texts_are_divided_by_their_hashes_and_never_cut(module):
    given = [f"story number {number}" for number in range(400)]
    parts = texts(module(given, split=(0.5, 0.25, 0.25)))
    ends = {"train": 0.5, "val": 0.75, "test": 1.0}
    expected = {part: [] for part in ends}
    for text in given:
        fraction = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 256**7
        expected[next(part for part, end in ends.items() if fraction < end)].append(text)
    for part, documents in expected.items():
        assert parts[part].split("<|endoftext|>")[:-1] == documents


def test_a_generator_is_read_once_and_held(module, monkeypatch):
    taken = []

    def generate():
        for line in LINES:
            taken.append(line)
            yield line

    data = module(generate())
    assert len(taken) == 1  # to see what it gives
    assert data.vocab_size and data.tokens
    assert taken == LINES
    monkeypatch.setattr(items_module, "HELD", 100)
    with pytest.raises(DataError, match=r"generator: gives more than 100 characters and can be read only once; write"):
        _ = module(generate()).tokens


def test_a_list_that_is_changed_later_is_trained_on_as_it_was(module):
    given = list(LINES)
    data = module(given)
    given.clear()
    assert texts(data)["train"].startswith(LINES[0])


def test_an_iterable_that_gives_something_else_each_time_is_refused(module):
    class Once:
        def __init__(self):
            self.values = iter(LINES)

        def __iter__(self):
            yield from self.values

    with pytest.raises(DataError, match=r"Once: gave 39 texts, and 0 when read again; it must give the same each time"):
        _ = module(Once()).tokens


def test_nested_fields_and_fields_with_dots_are_found(module):
    nested = [{"a": {"b": line}} for line in LINES]
    dotted = [{"a.b": line} for line in LINES]
    assert module(nested, field="a.b").fingerprint == module(dotted, field="a.b").fingerprint
    assert module(LINES).fingerprint == module(nested, field="a.b").fingerprint


def test_equal_texts_are_kept_once_if_asked(module):
    given = [*LINES, *LINES[::-1], "", " \n"]
    assert module(given, deduplicate=True).fingerprint == module(LINES).fingerprint
    assert module(given).fingerprint != module(LINES).fingerprint


def test_a_separator_divides_texts_into_documents(module, capfd):
    data = module(["one<|endoftext|>two", "three"], split=(1.0,))
    assert texts(data)["train"] == "one<|endoftext|>two<|endoftext|>three<|endoftext|>"
    assert data.tokens["train"].tolist().count(data.tokenizer.end_of_text) == 3
    assert '<|endoftext|> separates documents; set data.separator="" to read it as text' in capfd.readouterr().err
    whole = module(["one<|endoftext|>two"], split=(1.0,), separator="")
    assert whole.tokenizer.end_of_text is None and texts(whole)["train"] == "one<|endoftext|>two"
    other = module(["one###two"], split=(1.0,), separator="###")
    assert texts(other)["train"] == "one<|endoftext|>two<|endoftext|>"


def test_a_tokenizer_object_is_used(module):
    tokenizer = CharTokenizer("".join(sorted(set("".join(LINES)))), special_tokens=["<|endoftext|>"])
    assert module(LINES, tokenizer=tokenizer).tokenizer is tokenizer


REFUSED = {
    "an empty list": ([], {}, DataError, r"0 items: is empty$"),
    "blank texts": (["", " "], {}, DataError, r"2 texts: is empty$"),
    "a number": (7, {}, ConfigError, r"data\.corpus: int gives no texts; give a name or path, an iterable of texts"),
    "bytes": (b"abc", {}, ConfigError, r"data\.corpus: bytes are not text; decode them"),
    "numbers among texts": (["a", 2], {}, DataError, r"2 texts: item 2 is a int, not a text"),
    "nothing among records": ([{"text": "a"}, {"text": None}], {}, DataError, r"record 2 is None, not a text"),
    "a missing field": ([{"body": "a"}], {}, DataError, r"record 1 has no field text; it has body; set field"),
    "a missing nested field": ([{"a": {"c": "x"}}], {"field": "a.b"}, DataError, r"has no field a\.b; it has a; set"),
    "parts": ({"train": LINES, "test": LINES}, {}, ConfigError, r"dict has train, test; give one of them"),
    "a field of texts": (LINES, {"field": "body"}, ConfigError, r"data\.field: is for records, and the corpus is 40 t"),
    "patterns of names": (LINES, {"include": ("*.md",)}, ConfigError, r"data\.include: is for folders, and the corpus"),
    "a separator of records": ([{"text": "a"}], {"separator": "#"}, ConfigError, r"data\.separator: is for plain text"),
    "a separator that is nowhere": (LINES, {"separator": "#"}, ConfigError, r"data\.separator: no text has '#'; leave"),
    "errors of strings": (LINES, {"errors": "replace"}, ConfigError, r"data\.errors: is for files of text, not for"),
    "a class": (Again, {}, ConfigError, r"Again is a class; give an object of it, as Again\(\.\.\.\)"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "options", "kind", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_text_is_refused_by_name(given, options, kind, problem, module):
    with pytest.raises(kind, match=problem):
        _ = module(given, **options).tokens


def test_a_table_without_the_column_is_refused(module):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ConfigError, match=r"DataFrame: has no column text; it has body, label; set field"):
        module(pandas.DataFrame({"body": LINES, "label": 1}))


# --- a corpus of one's own


class Minimal(Corpus):
    def documents(self, part):
        return LINES[:30] if part == "train" else ([line[:3], line[3:]] for line in LINES[30:])


def test_a_corpus_needs_no_more_than_its_documents(module):
    data = module(Minimal())
    parts = texts(data)
    assert parts["train"] == "".join(f"{line}<|endoftext|>" for line in LINES[:30])
    assert parts["val"] == "".join(f"{line}<|endoftext|>" for line in LINES[30:])
    assert data.source == "Minimal"
    assert data.fingerprint == module(Minimal()).fingerprint


def test_the_fingerprint_of_a_corpus_is_that_of_its_texts_unless_it_has_its_own(module):
    class Other(Corpus):
        def documents(self, part):
            return LINES[:30] if part == "train" else LINES[31:]

    class Own(Minimal):
        fingerprint = "v2"

    assert module(Other()).fingerprint != module(Minimal()).fingerprint
    assert module(Own()).fingerprint == "v2"


def own(**attributes) -> Corpus:
    return type("Mine", (Corpus,), {"documents": lambda self, part: LINES, **attributes})()


WRONG = {
    "no subclass": (SimpleNamespace(documents=1), r"SimpleNamespace is not a subclass of tinylm\.data\.Corpus"),
    "parts": (own(parts=["train"]), r"Mine\.parts must be one of \('train',\), .* got \['train'\]"),
    "a fingerprint": (own(fingerprint=5), r"Mine\.fingerprint must be a string, got 5"),
    "separated": (own(separated="yes"), r"Mine\.separated must be True or False, got 'yes'"),
    "no documents": (own(documents=lambda self, part: None), r"Mine: documents\('train'\) gave NoneType; docum"),
    "one string": (own(documents=lambda self, part: "text"), r"documents\('train'\) gave str; documents\(part\)"),
    "numbers": (own(documents=lambda self, part: [3]), r"Mine: a document is int; documents\(part\)"),
    "bytes": (own(documents=lambda self, part: [[b"a"]]), r"a chunk of a document is bytes; documents\(part\) gives"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "problem"), WRONG.values(), ids=WRONG)
def test_a_corpus_that_breaks_the_contract_is_one_error_that_names_it(given, problem, module):
    with pytest.raises((ConfigError, DataError), match=problem):
        _ = module(given).tokens


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(split=(0.8, 0.2)), r"data\.split: Minimal has parts of its own; leave it out, or give \[1\.0\]"),
        (dict(field="body"), r"data\.field: does not work with Minimal"),
        (dict(deduplicate=True), r"data\.deduplicate: does not work with Minimal"),
    ],
)
def test_options_that_do_nothing_with_a_corpus_are_refused(options, problem, module):
    with pytest.raises(ConfigError, match=problem):
        module(Minimal(), **options)


# --- token ids

IDS = np.random.default_rng(0).integers(0, 256, 1000)


def id_forms(tmp_path):
    mapped = np.memmap(tmp_path / "ids.bin", np.uint16, "w+", shape=(1000,))
    mapped[:] = IDS
    return {
        "array": IDS,
        "tensor": torch.from_numpy(IDS),
        "memmap": mapped,
        "list": IDS.tolist(),
        "generator": iter(IDS.tolist()),
        "array in pieces": TokenArray([IDS[:300], IDS[300:]]),
        "documents": [IDS[:400], torch.from_numpy(IDS[400:700]), IDS[700:].tolist()],
        "data set": Mapped([IDS[:500].tolist(), IDS[500:].tolist()]),
        "rows": torch.from_numpy(IDS.reshape(10, 100)),
        "tensor data set": TensorDataset(torch.from_numpy(IDS.reshape(10, 100))),
        "records": [{"ids": IDS[:500].tolist()}, {"ids": IDS[500:].tolist()}],
    }


def test_token_ids_in_any_form_are_trained_on_as_they_are(module, tmp_path):
    for name, form in id_forms(tmp_path).items():
        options = {"field": "ids"} if name == "records" else {}
        data = module(form, tokenizer=ByteTokenizer(), max_seq_len=8, **options)  # it has no <|endoftext|>
        assert [*np.asarray(data.tokens["train"]), *np.asarray(data.tokens["val"])] == IDS.tolist(), name
        assert len(data.tokens["val"]) == 100, name
    assert (
        module(IDS, tokenizer="byte").fingerprint
        == module(TokenArray([IDS[:7], IDS[7:]]), tokenizer="byte").fingerprint
    )


def test_documents_of_ids_are_separated_by_end_of_text(module):
    tokenizer = ByteTokenizer(special_tokens=["<|endoftext|>"])
    data = module([[1, 2], [3, 256], [4]], tokenizer=tokenizer, split=(1.0,))
    assert data.tokens["train"].tolist() == [1, 2, 256, 3, 256, 4, 256]
    many = [[number, number] for number in range(200)]
    data = module(many, tokenizer=tokenizer)
    documents = {part: np.asarray(ids).reshape(-1, 3) for part, ids in data.tokens.items()}
    assert sorted(np.concatenate([*documents.values()]).tolist()) == [[number, number, 256] for number in range(200)]
    assert len(documents["val"]) in range(8, 36)  # 20 expected, and six standard deviations


@pytest.mark.parametrize(
    ("given", "options", "problem"),
    [
        ([[1, 2], [3, 300]], {}, r"data\.corpus: 2 items: item 2 has id 300 at position 1, and the tokenizer has"),
        (np.array([1, -1, 2, 3]), {}, r"array of int64: train has id -1 at position 1"),
        ([[1, 2], "text"], {}, r"item 2 is str of shape \(\) and type <U4, not a sequence of token ids"),
        ([[1, 2], [[3]]], {}, r"item 2 is list of shape \(1, 1\) and type int64"),
        ([[1, 2]], {"tokenizer": "char"}, r"data\.tokenizer: char is learned from a text; give the tokenizer"),
        ([[1, 2]], {"deduplicate": True}, r"data\.deduplicate: does not work with 1 item"),
        ([[1, 2]], {"val": ["a text"]}, r"data\.val: is a text, and data\.corpus holds token ids; give token ids"),
        (LINES, {"val": [[1, 2]]}, r"data\.val: holds token ids, and data\.corpus is a text; give a text"),
    ],
)  # fmt: skip
def test_ids_that_cannot_be_meant_are_refused_with_their_place(given, options, problem, module):
    with pytest.raises((ConfigError, DataError), match=problem):
        _ = module(given, **dict(tokenizer="byte") | options).tokens


# --- a validation text of its own


def test_a_validation_text_leaves_the_whole_corpus_to_train_on(module, tmp_path):
    (tmp_path / "train.txt").write_text("".join(LINES))
    (tmp_path / "held.txt").write_text("what is validated on: {}")
    forms = {
        "files": (str(tmp_path / "train.txt"), str(tmp_path / "held.txt")),
        "paths": (tmp_path / "train.txt", tmp_path / "held.txt"),
        "texts": (["".join(LINES)], ["what is validated on: {}"]),
        "both": (tmp_path / "train.txt", (text for text in ["what is validated on: {}"])),
    }
    for name, (corpus, val) in forms.items():
        data = module(corpus, val=val)
        assert texts(data) == {"train": "".join(LINES), "val": "what is validated on: {}"}, name  # { is in val alone
    ids = module([[1, 2, 3]], val=np.array([4, 5]), tokenizer="byte")
    assert {part: each.tolist() for part, each in ids.tokens.items()} == {"train": [1, 2, 3], "val": [4, 5]}


def test_the_floor_of_generated_validation_texts_is_known(module):
    data = module("stories:300", val="stories:40", tokenizer="byte")
    assert len(data.floors["val"].log_probs) == 40


def test_a_validation_text_has_neither_a_split_nor_a_test_part(module, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.val: .* data\.split is \[0\.8, 0\.2\]; leave out one of the two"):
        module(LINES, val=LINES, split=(0.8, 0.2))
    with pytest.raises(ConfigError, match=r"data\.val leaves no test part; give that text as data\.val instead"):
        module(LINES, val=LINES).test_dataloader()
    with pytest.raises(FileNotFoundError, match=r"^data\.val: .*nowhere\.txt: no such"):
        _ = module(LINES, val=str(tmp_path / "nowhere.txt")).tokens
    with pytest.raises(DataError, match=r"val has 1 tokens, needs at least 2; give a longer text as data\.val"):
        module(["".join(LINES)], val=["a"]).content.num_tokens("val")


# --- with a plain Trainer


def fit(data: TextDataModule, steps: int = 4, **options) -> pl.Trainer:
    torch.manual_seed(0)
    network = ModelConfig(vocab_size=data.vocab_size, d_model=16, num_layers=1, num_heads=2, max_seq_len=64)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", **quiet | options)
    trainer.fit(LitTransformerLM(network), datamodule=data)
    return trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
class TestTraining:
    def test_two_sentences_train_a_model(self, module, capfd):
        data = module(["The cat sat.", "The dog ran off."], max_seq_len=64)
        trainer = fit(data)
        # 28 characters: 25 to train on, in two documents, each with its separator
        told = capfd.readouterr().err
        assert "data.corpus: 2 texts: has 27 tokens: training on windows of 26 of the 64 of max_seq_len" in told
        assert "data.batch_size: 32 is more than the 1 sequence of 26 tokens to train on: a step repeats it" in told
        assert trainer.global_step == 4 and trainer.callback_metrics["val/loss"] > 0
        assert next(iter(data.train_dataloader())).inputs.shape == (32, 26)

    def test_two_characters_train_a_model_without_a_validation(self, module, capfd):
        trainer = fit(module(["ab"], max_seq_len=64))
        told = capfd.readouterr().err
        assert "data.corpus: 1 text: too short for a validation part; data.val or data.split would give it one" in told
        assert "no validation (all is trained on): the last checkpoint is the model" in told
        assert trainer.global_step == 4 and "val/loss" not in trainer.callback_metrics

    def test_one_token_is_too_few_and_a_split_that_was_asked_for_is_kept(self, module):
        with pytest.raises(DataError, match=r"1 text: train has 1 tokens, needs at least 2; give a longer text"):
            fit(module(["a"], split=(1.0,), max_seq_len=64))
        with pytest.raises(DataError, match=r"1 text: val has 1 tokens, needs at least 2; give it more of data\.split"):
            fit(module(["a text"], split=(0.95, 0.05), max_seq_len=64))

    def test_token_ids_and_a_corpus_of_ones_own_train_a_model(self, module):
        for form in (Mapped([IDS[:500].tolist(), IDS[500:].tolist()]), IDS):
            assert fit(module(form, tokenizer="byte", max_seq_len=64, batch_size=4)).global_step == 4
        assert fit(module(Minimal(), max_seq_len=64, batch_size=4)).callback_metrics["val/loss"] > 0

    def test_a_short_validation_does_not_limit_the_training_windows(self, module):
        data = module(LINES, val=["a few words"], max_seq_len=64, batch_size=4)
        fit(data)
        assert next(iter(data.train_dataloader())).inputs.shape == (4, 64)
