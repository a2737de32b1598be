"""Measures reading documents out of files of every format: megabytes of text per second, clock and processor time.

    python scripts/bench/documents.py --megabytes 50

One text is written in each format by the libraries themselves, then opened as a corpus and read to its end.
"""

import argparse
import csv
import json
import random
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from tinylm.data import open_corpus


def make_texts(megabytes: int) -> list[str]:
    """Documents of a few kilobytes, of random words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(20_000)]
    texts, size = [], 0
    while size < megabytes * 1_000_000:
        texts.append(" ".join(draw.choices(words, k=draw.randint(50, 800))))
        size += len(texts[-1])
    return texts


def write_files(folder: Path, texts: list[str]) -> list[Path]:
    """The files of all formats."""
    (folder / "separated.txt").write_text("<|endoftext|>".join(texts), encoding="utf-8")
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    (folder / "list.json").write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    table = pa.table({"text": texts})
    pyarrow.parquet.write_table(table, folder / "column.parquet", row_group_size=1000)
    with pa.OSFile(str(folder / "column.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, 1000)
    return sorted(folder.iterdir())


def main() -> None:
    """Prints a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=50, help="size of the text (default: 50)")
    options = parser.parse_args()
    texts = make_texts(options.megabytes)
    size = sum(map(len, texts))
    print(f"{len(texts):,} documents, {size / 1e6:.0f} MB")
    print(f"{'':16} {'opened, s':>10} {'MB/s':>6} {'MB per CPU second':>18}")
    with tempfile.TemporaryDirectory() as name:
        files = Path(name) / "files"
        files.mkdir()
        for path in write_files(files, texts):
            started = time.perf_counter()
            corpus = open_corpus(str(path), split=(0.9, 0.1), cache_dir=Path(name))
            opened, cpu = time.perf_counter(), time.process_time()
            read = sum(len(chunk) for _, document in corpus.items() for chunk in document)
            clock, cpu = time.perf_counter() - opened, time.process_time() - cpu
            assert read == size, (path.name, read, size)
            print(f"{path.name:16} {opened - started:10.2f} {size / clock / 1e6:6.0f} {size / cpu / 1e6:18.0f}")


if __name__ == "__main__":
    main()
