"""Files in other formats and encodings are recognized by their first bytes, wherever a text is expected."""

import bz2
import gzip
import io
import json
import lzma
import re
import sqlite3
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from tests.commands.conftest import save_model
from tinylm.commands import run_command
from tinylm.commands.output import read_prompts
from tinylm.data import open_corpus, open_tokens, read_pairs
from tinylm.data.grammar.stories import stories
from tinylm.errors import DataError, MissingInputError
from tinylm.files import read_chunks
from tinylm.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

TEXT = "".join(stories(seed=0, count=20))
FRENCH = "Où est né l'été ? Il fait déjà très chaud à Orléans.\n" * 20
RUSSIAN = "Жили-были старик со старухой у самого синего моря.\n" * 20  # noqa: RUF001 (Russian letters)
QUOTES = "it’s “late”, he said – "  # noqa: RUF001 (what word processors write)
CHINESE = "从前有一个小女孩,她住在森林里。\n" * 20
ASCII_PDF = "%PDF-1.4\n1 0 obj << /Type /Catalog >> endobj\n" + "BT (Once upon a time) Tj ET\n" * 50


def zipped(*names: str, mimetype: str = "") -> bytes:
    """A zip archive with files of these names."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        if mimetype:
            archive.writestr("mimetype", mimetype)
        for name in names:
            archive.writestr(name, TEXT)
    return data.getvalue()


def tarred() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return data.getvalue()


def array() -> bytes:
    data = io.BytesIO()
    np.save(data, np.arange(100))
    return data.getvalue()


def token_ids(kind: type) -> bytes:
    """The text as nanoGPT and tinylm write it: uint16 ids."""
    options = dict(vocab_size=600) if kind is BPETokenizer else {}
    return kind.train_from_texts([TEXT], **options).encode_array(TEXT).astype(np.uint16).tobytes()


def iconv(encoding: str) -> str:
    return f"; convert it: iconv -f {encoding} -t UTF-8 "


FORMATS = {  # name of the file -> its bytes, a part of the answer
    "a.txt.gz": (gzip.compress(TEXT.encode()), "is a gzip file, not text; gunzip -k a.txt.gz"),
    "a.tar.gz": (gzip.compress(tarred()), "is a gzip file, not text; tar -xf a.tar.gz"),
    "a.bz2": (bz2.compress(TEXT.encode()), "is a bzip2 file, not text; bunzip2 -k a.bz2"),
    "a.xz": (lzma.compress(TEXT.encode()), "is an xz file, not text; unxz -k a.xz"),
    "a.zst": (zstandard.ZstdCompressor().compress(TEXT.encode()), "is a Zstandard file, not text; unzstd a.zst"),
    "a.tar": (tarred(), "is a tar archive, not text; tar -xf a.tar"),
    "a.zip": (zipped("a.txt"), "is a zip archive, not text; unzip a.zip"),
    "cut.zip": (zipped("a.txt")[:200], "is a zip archive, not text; unzip cut.zip"),
    "my essay.docx": (
        zipped("[Content_Types].xml", "word/document.xml"),
        "is a Word document, not text; pandoc 'my essay.docx' -t plain -o 'my essay'.txt",
    ),
    "a.epub": (
        zipped("META-INF/container.xml", "content.opf", mimetype="application/epub+zip"),
        "is an EPUB book, not text; pandoc a.epub -t plain -o a.txt",
    ),
    "a.odt": (zipped("content.xml"), "is an OpenDocument file, not text; pandoc a.odt"),
    "a.xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "is an Excel workbook, not text; save it as CSV"),
    "a.npz": (zipped("ids.npy"), "is an archive of arrays, not text"),
    "a.doc": (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(500), "is an old Office document, not text; save it as plain"),
    "a.rtf": ("{\\rtf1\\ansi Once upon a time}", "is an RTF document, not text; pandoc a.rtf -t plain -o a.txt"),
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "is a PDF document, not text; pdftotext a.pdf a.txt"),
    "ascii.pdf": (ASCII_PDF, "is a PDF document, not text; pdftotext ascii.pdf ascii.txt"),
    "a.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG image, not text"),
    "a.jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a JPEG image, not text"),
    "a.gif": (b"GIF89a\1\0\1\0", "is a GIF image, not text"),
    "a.parquet": (b"PAR1\x15\4\x15", "is a Parquet file, not text; write its column of texts to a file"),
    "a.npy": (array(), "is a NumPy array, not text"),
    "letters.bin": (token_ids(CharTokenizer), "is binary (such as token ids), not text; give the text itself"),
    "letters": (token_ids(CharTokenizer), "is binary (such as token ids), not text; give the text itself"),
    "train.bin": (token_ids(BPETokenizer), "is binary (such as token ids), not text; give the text itself"),
    "random": (np.random.default_rng(0).bytes(5000), "is binary (such as token ids), not text"),
    "u16.txt": (TEXT.encode("utf-16"), "is UTF-16, not UTF-8" + iconv("UTF-16") + "u16.txt > u16-utf8.txt"),
    "be16.txt": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "is UTF-16, not UTF-8" + iconv("UTF-16")),
    "u32.txt": (TEXT.encode("utf-32"), "is UTF-32, not UTF-8" + iconv("UTF-32")),
    "le.txt": (TEXT.encode("utf-16-le"), "looks like UTF-16LE, not UTF-8" + iconv("UTF-16LE") + "le.txt > le-utf8.txt"),
    "be.txt": (TEXT.encode("utf-16-be"), "looks like UTF-16BE, not UTF-8" + iconv("UTF-16BE")),
    "le32.txt": (TEXT.encode("utf-32-le"), "looks like UTF-32LE, not UTF-8" + iconv("UTF-32LE")),
    "russian16.txt": (RUSSIAN.encode("utf-16-le"), "looks like UTF-16LE, not UTF-8" + iconv("UTF-16LE")),
    "chinese16.txt": (CHINESE.encode("utf-16-le"), "looks like UTF-16LE, not UTF-8" + iconv("UTF-16LE")),
    "latin1.txt": (
        FRENCH.encode("latin-1"),
        "is not UTF-8 at byte 1 (invalid start byte); it looks like ISO-8859-1"
        + iconv("ISO-8859-1") + "latin1.txt > latin1-utf8.txt",
    ),
    "quotes.txt": (QUOTES.encode("cp1252"), "it looks like WINDOWS-1252" + iconv("WINDOWS-1252")),
    "russian.txt": (RUSSIAN.encode("cp1251"), "it looks like an older encoding; if you know which: iconv -f ENCODING"),
    "chinese.txt": (CHINESE.encode("gbk"), "it looks like an older encoding; if you know which: iconv -f ENCODING"),
    "damaged.txt": ("Où est né\n".encode() * 9 + b"\xff\xff", "(invalid start byte); repair the file"),
}  # fmt: skip


COMPRESSED = ("a.txt.gz", "a.bz2", "a.xz", "a.zst")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_no_utf8_text_is_named_with_the_remedy(name, folder):
    data, problem = FORMATS[name]
    Path(name).write_bytes(data.encode() if isinstance(data, str) else data)
    for read in (read_chunks, lambda path: [open_corpus(str(path), split=(0.9, 0.1), cache_dir=folder)]):
        if name == "a.parquet" and read is not read_chunks:
            problem = "is not a valid Parquet file, or is truncated or damaged"
        if name == "a.tar.gz" and read is not read_chunks:
            problem = "is a tar archive, not text; tar -xf a.tar.gz"
        elif name in COMPRESSED and read is not read_chunks:
            assert "".join(chunk for corpus in read(Path(name)) for chunk in corpus.texts()) == TEXT
            continue
        with pytest.raises(DataError) as caught:
            list(read(Path(name)))
        assert str(caught.value).startswith(f"{name}: ") and problem in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, (_, problem) in FORMATS.items() if " iconv -f " in problem])
def test_the_conversion_named_gives_the_text(name, folder):
    data, problem = FORMATS[name]
    command = problem.partition("iconv ")[2].split(" -t ")[0]
    if "ENCODING" in command:
        command = f"-f {'CP1251' if 'russian' in name else 'GBK'}"
    texts = {"russian": RUSSIAN, "chinese": CHINESE, "latin": FRENCH, "quotes": QUOTES, "": TEXT}
    text = next(text for part, text in texts.items() if part in name)
    found = subprocess.run(["iconv", *command.split(), "-t", "UTF-8"], input=data, capture_output=True, check=True)
    assert found.stdout.decode() == text


def test_errors_replace_is_no_way_around_a_format(folder):
    Path("a.zip").write_bytes(zipped("a.txt"))
    with pytest.raises(DataError, match="is a zip archive"):
        open_corpus("a.zip", split=(0.9, 0.1), cache_dir=folder, errors="replace")


def test_the_byte_tokenizer_takes_any_bytes_with_a_remark(folder, capsys):
    """`surrogateescape` is how the data module opens a text for it."""
    for name in ("a.zip", "b.zip"):
        Path(name).write_bytes(zipped("a.txt"))
    corpus = open_corpus("*.zip", split=(0.5, 0.5), cache_dir=folder, errors="surrogateescape")
    said = capsys.readouterr().err.splitlines()
    tokens = open_tokens(corpus, ByteTokenizer(), folder)
    read = np.concatenate(list(tokens.values())).astype(np.uint8).tobytes()
    assert read == Path("a.zip").read_bytes() + Path("b.zip").read_bytes()
    assert said[0] == "tinylm: *.zip: 2 files"
    assert said[1:] == ["tinylm: a.zip: is a zip archive, not text; unzip a.zip (1 more files are alike)"]


@pytest.mark.parametrize("content", ["", "\ufeff", "a\0b", "\0" * 8, "\x1b[1mbold\x1b[0m" * 50, "P\bPA\bAG\bG" * 50,
                                     "\0".join(TEXT.split(".")), "GIF files, PK and %PDF", FRENCH, RUSSIAN,
                                     CHINESE, "\x1e\x1f".join(TEXT)])  # fmt: skip
def test_texts_with_some_control_characters_are_texts(content, folder):
    Path("a.txt").write_bytes(content.encode())
    assert "".join(read_chunks(Path("a.txt"))) == content.removeprefix("\ufeff")


def test_a_byte_order_mark_is_no_character_of_the_text(folder):
    Path("plain.txt").write_text(TEXT + "\ufeff end", encoding="utf-8")
    Path("marked.txt").write_text(TEXT + "\ufeff end", encoding="utf-8-sig")
    plain, marked = (open_corpus(name, split=(0.9, 0.1), cache_dir=folder) for name in ("plain.txt", "marked.txt"))
    assert list(marked.texts()) == list(plain.texts()) and marked.fingerprint == plain.fingerprint
    bpe = [BPETokenizer.train([name], vocab_size=300) for name in ("plain.txt", "marked.txt")]
    assert bpe[0] == bpe[1]
    assert bpe[0].encode_file("marked.txt").tolist() == bpe[0].encode_file("plain.txt").tolist()
    Path("bad.txt").write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(DataError, match=r"is not UTF-8 at byte 5 "):  # in the file, mark included
        list(read_chunks(Path("bad.txt")))


# --- JSON and markup

PAIRS = [{"Prompt": "2+2=", "Response": "4"}, {"Prompt": "", "Response": "x"}]
DOCUMENTS = [{"id": "7", "text": "Once upon a time"}, {"id": "8", "text": "The end"}]


def lines(records: list) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


RECORDS = {
    "pairs.jsonl": (lines(PAIRS), "holds prompts and responses, not plain text; give it as pairs, as in: ",
                    "--data.pairs pairs.jsonl"),
    "pairs.JSON": (json.dumps(PAIRS, indent=1), "holds prompts and responses", "--data.pairs pairs.JSON"),
    "chats.ndjson": (lines([{"messages": []}]), "holds prompts and responses", "--data.pairs chats.ndjson"),
    "alpaca.json": (lines([{"instruction": "a", "output": "b"}] * 2), "holds prompts and responses", "alpaca.json"),
    "texts.jsonl": (lines(DOCUMENTS), "holds JSON records, not plain text; name it .txt to train on the JSON itself, "
                    "or write the texts to a file: ", "jq -r .text texts.jsonl > texts.txt"),
    "list.json": (json.dumps(DOCUMENTS), "holds JSON records", "jq -r '.[].text' list.json > list.txt"),
    "body.jsonl": (lines([{"n": "1", "body": "Once upon"}]), "holds JSON records", "jq -r .body body.jsonl > body.txt"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_json_records_are_no_text_and_the_remedy_is_a_command(name, folder):
    content, problem, remedy = RECORDS[name]
    Path(name).write_text(content)
    with pytest.raises(DataError) as caught:
        list(read_chunks(Path(name)))
    assert str(caught.value).startswith(f"{name}: {problem}") and str(caught.value).endswith(remedy)
    if "holds prompts" in problem:
        with pytest.raises(DataError, match=f"^{re.escape(str(caught.value))}$"):
            open_corpus(name, split=(0.9, 0.1), cache_dir=folder)


REMARKS = {
    "a.html": ("<!DOCTYPE html>\n<p>Once", "looks like HTML; its tags are trained on as they stand, unless you remove "
               "them, as with: pandoc a.html -t plain -o a.txt"),
    "a.xml": ("<?xml version='1.0'?><a>Once</a>", "looks like markup; its tags are trained on as they stand"),
    "wiki.txt": ("<page><title>Once</title></page>\n" * 9, "looks like markup; its tags"),
    "package.json": ('{"name": "x", "version": "1"}', "looks like JSON; its syntax is trained on as it stands"),
    "records.txt": (lines(DOCUMENTS), "looks like JSON; its syntax is trained on as it stands"),
}  # fmt: skip


@pytest.mark.parametrize("name", REMARKS)
def test_markup_and_json_get_a_remark_of_one_line(name, folder, capsys):
    content, remark = REMARKS[name]
    Path(name).write_text(content)
    assert "".join(open_corpus(name, split=(0.9, 0.1), cache_dir=folder).texts()) == content
    said = capsys.readouterr().err
    assert said.startswith(f"tinylm: {name}: {remark}") and said.count("\n") == 1


@pytest.mark.parametrize("content", [TEXT, "a < b and c > d </ x", "{x} [y] {'a': 1}", "`<|endoftext|>`\n" * 99,
                                     "for (i = 0; i < 9; i++) { a[i] = \"x\"; }"])  # fmt: skip
def test_plain_text_and_code_get_none(content, folder, capsys):
    Path("a.txt").write_text(content)
    open_corpus("a.txt", split=(0.9, 0.1), cache_dir=folder)
    assert capsys.readouterr().err == ""


# --- every program

PROGRAMS = {
    "score": ["--model", "m", "--text"],
    "score pairs": ["--model", "m", "--pairs"],
    "generate": ["--model", "m", "--prompts-file"],
    "quantize": ["--model", "m", "--out", "q", "--text"],
    "analyze": ["--model", "m", "--text"],
    "tokenizer": ["train", "--out", "t.json"],
    "tokenizer char": ["train", "--kind", "char", "--out", "t.json"],
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.rtf", "is an RTF document, not text; pandoc a.rtf -t plain -o a.txt"),
        ("u16.jsonl", "is UTF-16, not UTF-8; convert it: iconv -f UTF-16"),
    ],
)
def test_every_program_names_the_format_before_it_loads_a_model(program, name, problem, folder, capfd):
    data = b"{\\rtf1 " + TEXT.encode() if name == "a.rtf" else lines(PAIRS).encode("utf-16")
    Path(name).write_bytes(data)
    save_model(folder / "m") if program in ("score pairs", "generate") else None  # which look for it first
    assert run_command(program.split()[0], [*PROGRAMS[program], name]) == 65
    out, err = capfd.readouterr()
    err = err.removeprefix("tinylm: loading m\n")
    assert out == "" and err.startswith(f"tinylm: error: {name}: {problem}") and err.count("\n") == 1


def test_only_programs_that_expect_json_read_it(folder, capfd):
    Path("p.jsonl").write_text(lines(PAIRS))
    for program in ("score", "analyze", "tokenizer", "tokenizer char", "quantize"):
        assert run_command(program.split()[0], [*PROGRAMS[program], "p.jsonl"]) == 65
        assert "p.jsonl: holds prompts and responses, not plain text" in capfd.readouterr().err
    assert len(read_pairs("p.jsonl")) == 2
    for name in ("a.jsonl", "a.NDJSON"):
        Path(name).write_text(
            '{"prompt": "one\\ntwo \u2028"}\n\n{"prompt": "", "response": "x"}\n', encoding="utf-8-sig"
        )
        assert read_prompts(Path(name)) == ["one\ntwo \u2028", ""]


def test_a_database_is_named(folder):
    with sqlite3.connect("a.db") as base:
        base.execute("create table t (text)")
    with pytest.raises(DataError, match=r"is an SQLite database, not text; export its text: sqlite3 a\.db 'SELECT"):
        list(read_chunks(Path("a.db")))


def test_a_file_that_cannot_be_read_is_missing_input(folder, monkeypatch):
    Path("a.txt").write_text("a")
    Path("there").mkdir()
    Path("broken").symlink_to("nowhere")
    for name, problem in {"there": "is a folder; give a file", "broken": "is a link to nowhere, which does not exist",
                          "none": "no such file"}.items():  # fmt: skip
        with pytest.raises(MissingInputError, match=f"^{name}: {problem}"):
            list(read_chunks(Path(name)))
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(MissingInputError, match=r"^a\.txt: cannot be read \(Permission denied\); change its perm"):
        list(read_chunks(Path("a.txt")))
