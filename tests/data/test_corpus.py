"""Text is read unchanged and split at the right characters; errors name the file and the offset."""

import glob
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.data.corpora import check_split, open_corpus
from tinylm.data.corpora.lines import LineCorpus
from tinylm.data.corpora.parts import PartsCorpus
from tinylm.data.corpora.text import TextCorpus
from tinylm.data.records import split_documents
from tinylm.data.sources import Source, find_sources
from tinylm.errors import ConfigError, DataError, MissingInputError

few = settings(max_examples=40, deadline=None)
MEBIBYTE = 1 << 20
posix = pytest.mark.skipif(os.name != "posix", reason="making links needs rights elsewhere")
ODD = "a\0b\r\nc\rd\n e\u0301 👩\u200d👩\u200d👧 \U0001d518 \ufeff\u2028\x85\U0010ffff`<|endoftext|>`"


def open_files(source, split=(0.9, 0.1), **options):
    return open_corpus(str(source), split=split, cache_dir=source.parent / "cache", **options)


def documents(corpus, part):
    return ["".join(chunks) for chunks in corpus.documents(part)]


# --- splitting


@pytest.mark.parametrize("length", [1, 10_007, 2 * MEBIBYTE + 7])
def test_split_by_characters_gives_nanogpts_bounds(length, tmp_path):
    text = "".join(np.random.default_rng(0).choice(list("ab é\n😀"), length))
    (tmp_path / "t.txt").write_bytes(text.encode())
    corpus = open_files(tmp_path / "t.txt")
    bound = int(len(text) * 0.9)
    assert "".join(documents(corpus, "train")) == text[:bound]
    assert documents(corpus, "val") == [text[bound:]]


@pytest.mark.parametrize("split", [(0.8, 0.1, 0.1), (0.6, 0.3, 0.1), (0.7, 0.2, 0.1)])
def test_bounds_follow_the_decimal_fractions_exactly(split, tmp_path):
    (tmp_path / "t.txt").write_text("0123456789" * 10)
    corpus = open_files(tmp_path / "t.txt", split)
    lengths = [len("".join(documents(corpus, part))) for part in corpus.parts]
    assert lengths == [round(100 * fraction) for fraction in split]


@few
@given(
    st.lists(st.text(max_size=12), min_size=1, max_size=4).filter(any),
    st.lists(st.integers(1, 10), min_size=2, max_size=3),
)
@example([ODD, ODD], [1, 1, 1])
def test_the_joined_parts_are_the_text_of_all_files(tmp_path_factory, texts, weights):
    folder = tmp_path_factory.mktemp("texts")
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_bytes(text.encode())
    corpus = open_files(folder / "*.txt", tuple(weight / sum(weights) for weight in weights))
    assert corpus.parts == ("train", "val", "test")[: len(weights)]
    assert "".join(text for part in corpus.parts for text in documents(corpus, part)) == "".join(texts)
    assert "".join(corpus.texts()) == "".join(texts)
    for i, part in enumerate(corpus.parts[:-1]):  # rounded down, within floating point
        length = sum(map(len, documents(corpus, part)))
        assert length == pytest.approx(sum(map(len, texts)) * weights[i] / sum(weights), abs=1)


def test_each_file_of_a_glob_is_a_document_sorted_by_name(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, text in {"b.txt": "second", "a.txt": "first ", "deep/c.txt": "third!", "d.md": "not matched"}.items():
        (tmp_path / name).write_text(text)
    corpus = open_files(tmp_path / "**" / "*.txt", (0.5, 0.5))
    assert documents(corpus, "train") == ["first ", "sec"]  # 18 characters, cut at the ninth
    assert documents(corpus, "val") == ["ond", "third!"]
    assert corpus.separated
    assert not open_files(tmp_path / "a.txt").separated


def test_an_existing_file_takes_precedence_over_a_glob(tmp_path):
    (tmp_path / "[ab].txt").write_text("right")
    (tmp_path / "a.txt").write_text("wrong")
    assert "".join(open_files(tmp_path / "[ab].txt").texts()) == "right"


@pytest.mark.parametrize("split", [(0.9, 0.1), (0.8, 0.1, 0.1), [0.5, 0.5]])
def test_valid_splits_are_accepted(split):
    assert check_split(split) == tuple(split)


@pytest.mark.parametrize(
    "split",
    [(0.9,), (1.1,), (0.9, 0.2), (0.5, 0.4), (1.0, 0.0), (1.5, -0.5), (0.25,) * 4, (),
     (float("nan"), 0.5), (0.5, float("nan")), (float("inf"), 0.1)],
)  # fmt: skip
def test_invalid_splits_are_refused(split):
    with pytest.raises(ConfigError, match=r"data\.split must be one to three positive fractions that sum to 1, got"):
        check_split(split)


# --- characters


@pytest.mark.parametrize("before", [0, MEBIBYTE - 1, MEBIBYTE - 2, MEBIBYTE - 3, 2 * MEBIBYTE - 1])
def test_nothing_is_normalized_at_any_chunk_border(before, tmp_path):
    text = "x" * before + ODD + "\r\n" + "é"
    (tmp_path / "t.txt").write_bytes(text.encode())
    assert "".join(open_files(tmp_path / "t.txt").texts()) == text


A, EURO, SMILE = b"a" * (MEBIBYTE - 1), "€".encode(), "😀".encode()  # A is one byte shorter than a chunk
BAD_UTF8 = {
    "first byte": (b"", b"\xff rest"),
    "after a character of two bytes": ("é".encode(), b"\x80 rest"),
    "an overlong form": (b"abc", b"\xc0\x80 rest"),
    "a surrogate": (b"abc", b"\xed\xa0\x80 rest"),
    "half a character at the end": (b"abc", b"\xe2\x82"),
    "in the second chunk": (A + b"12345", b"\xff rest"),
    "straddling the border": (A, b"\xe2A rest"),
    "straddling the border, found at the third byte": (A, b"\xf0\x9fA rest"),
    "after a character that straddles the border": (A + EURO, b"\xff rest"),
    "after two that straddle": (A + EURO + A[:-2] + SMILE, b"\xff rest"),
    "half a character at the border and the end": (A, b"\xf0\x9f\x98"),
}


@pytest.mark.parametrize(("good", "bad"), BAD_UTF8.values(), ids=BAD_UTF8)
def test_errors_name_the_byte_offset_of_invalid_utf8(good, bad, tmp_path):
    (tmp_path / "t.txt").write_bytes(good + bad)
    with pytest.raises(DataError, match=rf"t\.txt: is not UTF-8 at byte {len(good)} \(.*data\.errors=replace"):
        open_files(tmp_path / "t.txt")


def test_invalid_utf8_is_replaced_with_errors_replace(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"a\xffb\xe2\x82")
    assert "".join(open_files(tmp_path / "t.txt", errors="replace").texts()) == "a\ufffdb\ufffd"


def test_fingerprints_differ_where_the_parts_do(tmp_path):
    for name, text in {"a": "text", "b": "tex", "c": "t"}.items():
        (tmp_path / name).write_text(text)
    a, b, c = (Source(str(tmp_path / name)) for name in "abc")
    different = [
        TextCorpus("x", [a], (0.9, 0.1)), TextCorpus("x", [b], (0.9, 0.1)), TextCorpus("x", [a], (0.8, 0.2)),
        TextCorpus("x", [a], (0.9, 0.1), "replace"), TextCorpus("x", [b, c], (0.9, 0.1)),
        TextCorpus("x", [c, b], (0.9, 0.1)),
    ]  # fmt: skip
    assert len({corpus.fingerprint for corpus in different}) == len(different)
    assert TextCorpus("x", [a], (0.9, 0.1)).fingerprint == different[0].fingerprint


# --- missing and empty corpora


def test_a_missing_corpus_is_missing_input_with_a_suggestion(tmp_path):
    with pytest.raises(MissingInputError, match=r"data\.corpus: storeis: no such .* did you mean 'stories'") as raised:
        open_corpus("storeis", split=(0.9, 0.1), cache_dir=tmp_path)
    assert raised.value.exit_code == 66
    with pytest.raises(MissingInputError, match=r"nowhere\.txt: no such corpus or file; give a text file, a glob"):
        open_files(tmp_path / "nowhere.txt")
    with pytest.raises(MissingInputError, match="no such corpus or file"):
        open_corpus("", split=(0.9, 0.1), cache_dir=tmp_path)


@pytest.mark.parametrize("source", ["x" * 5000, "nul\0.txt"])
def test_an_impossible_file_name_is_missing_input(source, tmp_path):
    with pytest.raises(MissingInputError, match="no such corpus or file"):
        open_corpus(source, split=(0.9, 0.1), cache_dir=tmp_path)


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """The folder `notes` in the current folder: a.md, b.md, deep/c.md, and a hidden one."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.md", "b.md", "deep/c.md", ".hidden/d.md", "deep/picture.png"):
        (tmp_path / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / name).write_text(f"This is {name}.")
    return tmp_path / "notes"


def opened(source):
    """The documents of a corpus, and its files."""
    corpus = open_corpus(source, split=(0.5, 0.5), cache_dir=Path("cache"))
    assert isinstance(corpus, TextCorpus | LineCorpus)
    return "".join(corpus.texts()), [Path(source.url).as_posix() for source in corpus.sources]


@pytest.mark.parametrize("source", ["notes", "notes/", "./notes", "lines:notes"])
def test_a_folder_is_read_with_all_below(source, notes):
    assert opened(source)[1] == ["notes/a.md", "notes/b.md", "notes/deep/c.md"]
    (notes / "pictures").mkdir()
    with pytest.raises(MissingInputError, match=r"notes/pictures: has no files of text or records \(it is empty\)"):
        opened("notes/pictures")


def test_the_number_of_files_is_said_for_several(notes, capsys):
    opened("notes/**/*.md")
    assert capsys.readouterr().err == "tinylm: notes/**/*.md: 3 files\n"
    opened("notes/a.md")
    opened("notes/a*")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "pattern", ["**/*.md", "./**/*.md", "notes/**/*.md", "notes/**", "**/deep/**/*", "*/*.md", "not*/**/*"]
)
def test_a_glob_matches_what_python_matches(pattern, notes):
    expected = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    assert (
        [Path(each.url).as_posix() for each in find_sources(pattern)]
        == [Path(path).as_posix() for path in expected]
        != []
    )


@posix
def test_a_circle_of_links_lists_each_file_once(notes, capsys):
    (notes / "deep/up").symlink_to(notes, target_is_directory=True)
    (notes / "deep/here").symlink_to(".", target_is_directory=True)  # two circles: 2 ** 40 paths
    (notes / "self").symlink_to("self")
    assert opened("notes/**/*.md")[1] == ["notes/a.md", "notes/b.md", "notes/deep/c.md"]
    assert capsys.readouterr().err == "tinylm: notes/**/*.md: 3 files\n"


@posix
def test_links_are_followed_but_a_file_is_read_once(notes, capsys, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/e.md").write_text("Elsewhere.")
    (notes / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    (notes / "1.md").symlink_to("b.md")
    text, files = opened("notes/**/*.md")
    assert files == ["notes/a.md", "notes/b.md", "notes/deep/c.md", "notes/linked/e.md"] and "Elsewhere" in text
    left_out = "left out: 1 links to files that are there already"
    assert capsys.readouterr().err == f"tinylm: notes/**/*.md: 4 files; {left_out}\n"


@posix
@pytest.mark.parametrize("source", ["notes/x.md", "notes/*.md", "lines:notes/**/*.md"])
def test_a_broken_link_is_named(source, notes):
    (notes / "x.md").symlink_to("nowhere.md")
    problem = r"data\.corpus: notes/x\.md: is a link to nowhere\.md, which does not exist; repair or remove it"
    with pytest.raises(MissingInputError, match=problem):
        opened(source)


def test_brackets_in_names_are_names_if_they_exist(notes):
    for name in ("my[1]/a.txt", "my1/a.txt", "2/b.txt"):
        Path(name).parent.mkdir()
        Path(name).write_text(name)
    assert opened("my[1]/*.txt") == ("my[1]/a.txt", ["my[1]/a.txt"])
    assert opened("my[1]/**/*") == ("my[1]/a.txt", ["my[1]/a.txt"])
    assert opened("[1-3]/*.txt") == ("2/b.txt", ["2/b.txt"])


def test_a_tilde_is_the_home_folder(notes, monkeypatch):
    monkeypatch.setenv("HOME", str(notes))
    monkeypatch.setenv("USERPROFILE", str(notes))
    for source in ("~/a.md", "~/**/a.md", "lines:~/a.md"):
        assert opened(source)[0] == "This is a.md."


def test_a_folder_of_parts_has_the_parts_that_it_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    texts = {"train": "one<|endoftext|>two", "val": "three<|endoftext|>four", "test": "five<|endoftext|>six"}
    for part, text in texts.items():
        Path(f"own/{part}.txt").write_text(text)
    for split in ((0.9, 0.1), (0.8, 0.1, 0.1)):
        corpus = open_corpus("own", split=split, cache_dir=tmp_path)
        found = {part: "<|endoftext|>".join(documents(corpus, part)) for part in corpus.parts}
        assert found == texts
    Path("own/test.txt").unlink()
    assert open_corpus("own", split=(0.9, 0.1), cache_dir=tmp_path).parts == ("train", "val")
    corpus = open_corpus("own", split=(0.8, 0.1, 0.1), cache_dir=tmp_path)
    assert [documents(corpus, part) for part in corpus.parts] == [["one", "two"], ["three"], ["four"]]
    assert corpus.more("test") == corpus.more("val") == f"put more text into {Path('own/val.txt')}"


def test_an_empty_corpus_is_refused(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"")
    for source in ("a.txt", "*.txt"):
        with pytest.raises(DataError, match=r"data\.corpus: .*txt: is empty"):
            open_files(tmp_path / source)


# --- documents between separators


@few
@given(
    st.lists(st.text("ab<|>", max_size=6), max_size=6),
    st.lists(st.integers(0, 100), max_size=8),
    st.sampled_from(["<|>", "|", "aa"]),
)
def test_documents_between_separators_do_not_depend_on_the_chunks(texts, cuts, separator):
    whole = separator.join(texts)
    bounds = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    chunks = [whole[a:b] for a, b in pairwise(bounds)]
    assert list(split_documents(chunks, separator)) == [text for text in whole.split(separator) if text]


def test_tinystories_keeps_its_own_split_and_divides_validation_for_test(tmp_path):
    train, validation = tmp_path / "train.txt", tmp_path / "valid.txt"
    train.write_bytes(b"one\n<|endoftext|>\ntwo\n<|endoftext|>")
    validation.write_text("a<|endoftext|>b<|endoftext|>c")
    files = {"train": [Source(str(train))], "val": [Source(str(validation))]}
    two = PartsCorpus("t", files, (0.9, 0.1))
    three = PartsCorpus("t", files, (0.8, 0.1, 0.1))
    assert [documents(two, part) for part in two.parts] == [["one\n", "\ntwo\n"], ["a", "b", "c"]]
    assert [documents(three, part) for part in three.parts] == [["one\n", "\ntwo\n"], ["a", "c"], ["b"]]
    assert two.fingerprint != three.fingerprint


# --- lines as documents


@few
@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=5)),
    st.sampled_from(["\n", "\r\n"]),
)
def test_every_nonempty_line_is_a_document_of_one_part(tmp_path_factory, lines, ending):
    path = tmp_path_factory.mktemp("lines") / "t.txt"
    path.write_bytes("".join(line + ending for line in [*lines, "x"]).encode())
    corpus = open_corpus(f"lines:{path}", split=(0.5, 0.3, 0.2), cache_dir=path.parent)
    expected = [line for line in [*lines, "x"] if line]
    homes = [(part, "".join(chunks)) for part, chunks in corpus.items()]
    assert [text for _, text in homes] == expected
    assert len(set(homes)) == len(set(expected))  # equal lines are in one part
    for part in corpus.parts:
        assert documents(corpus, part) == [text for home, text in homes if home == part]


def test_lines_are_split_by_the_fractions(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(map(str, range(10_000))))
    corpus = open_corpus(f"lines:{tmp_path}/*.txt", split=(0.9, 0.1), cache_dir=tmp_path)
    spread = (10_000 * 0.9 * 0.1) ** 0.5  # of a binomial
    assert len(documents(corpus, "train")) == pytest.approx(9_000, abs=4 * spread)


def test_a_file_of_empty_lines_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("\n\r\n\n")
    with pytest.raises(DataError, match=r"lines:.*t\.txt: is empty"):
        open_corpus(f"lines:{tmp_path / 't.txt'}", split=(0.9, 0.1), cache_dir=tmp_path)
