"""Inspects a corpus, and writes data sets to train on.

tinylm prepare inspect my.txt --tokenizer bpe:2048
tinylm prepare questions --out questions/
tinylm prepare summaries --out summaries/ --train 20000
tinylm prepare tinystories --sample 10000
tinylm prepare tokens my.txt --tokenizer tok.json --out shards
tinylm prepare shards my.txt --to nanogpt --tokenizer char --out my-chars
"""

import json
from pathlib import Path

from tinylm.commands import prepare_inspect
from tinylm.console import Parser, check_at_least
from tinylm.errors import ConfigError, did_you_mean
from tinylm.files import default_cache_dir, write_text
from tinylm.locate import command
from tinylm.targets import FileKind, check_target

PAIRS = {
    "questions": "Writes questions about short stories, with their answers.",
    "summaries": "Writes short stories, each with a one-sentence summary.",
}
KINDS = ("inspect", *PAIRS, "tinystories", "tokens", "shards")
PAIRS_FILE = FileKind("a file of pairs", rb'\{"prompt": "[^\n]*", "response": ".*')
STORIES = FileKind("a sample of TinyStories", rb".*<\|endoftext\|>")


def run(arguments: list[str]) -> None:
    """Runs the subcommand that the first argument names."""
    parser = Parser("prepare", __doc__)
    parser.add_argument("kind", help=f"one of {', '.join(KINDS)}; --help after it lists its options")
    kind = parser.parse(arguments[:1]).kind
    if kind in PAIRS:
        write_pairs(kind, arguments[1:])
    elif kind == "inspect":
        prepare_inspect.run(arguments[1:])
    elif kind == "tinystories":
        write_tinystories(arguments[1:])
    elif kind == "tokens":
        from tinylm.commands.prepare_tokens import write_tokens

        write_tokens(arguments[1:])
    elif kind == "shards":
        from tinylm.commands.prepare_shards import write_shards

        write_shards(arguments[1:])
    else:
        raise ConfigError(f"{kind}: no such subcommand{did_you_mean(kind, KINDS) or '; there are ' + ', '.join(KINDS)}")


def write_pairs(kind: str, arguments: list[str]) -> None:
    """Writes prompt/response pairs."""
    parts = {"train": 10_000, "val": 300, "test": 300}
    parser = Parser(f"prepare {kind}", PAIRS[kind])
    parser.add_argument("--out", type=Path, required=True, help="folder for train.jsonl, val.jsonl and test.jsonl")
    parser.add_overwrite_option()
    for name, default in parts.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"number of pairs in {name}.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random pairs")
    options = parser.parse(arguments)
    check_at_least(1, options, *parts)
    paths = [options.out / f"{name}.jsonl" for name in parts]
    for path in paths:
        check_target(path, PAIRS_FILE, options.overwrite)

    from tinylm.data.grammar.questions import write_parts

    counts = [getattr(options, name) for name in parts]
    for path, records in zip(paths, write_parts(kind, counts, options.seed), strict=True):
        lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in records]
        write_text(path, "".join(line + "\n" for line in lines))
        print(f"{path}: {len(records):,} pairs")
    if not Path("runs/small").exists():
        print(f"to train the model to start from: {command('fit', '-c', 'small')}")
    files = ["--data.pairs", options.out / "train.jsonl", "--data.pairs_val", options.out / "val.jsonl"]
    print(f"to finetune on them: {command('fit', '-c', 'finetune', *files)}")


def write_tinystories(arguments: list[str]) -> None:
    """Writes the first stories of TinyStories."""
    parser = Parser("prepare tinystories", "Writes the first stories of TinyStories (those by GPT-4).")
    add = parser.add_argument
    add("--sample", type=int, default=10_000, help="number of stories in train.txt")
    add("--val", type=int, default=500, help="number of stories in val.txt")
    add("--out", type=Path, help="folder for train.txt and val.txt (default: tinystories-SAMPLE)")
    parser.add_overwrite_option()
    add("--url", help="mirror: a folder with both files, or one .txt file of stories (default: Hugging Face)")
    add("--cache-dir", type=Path, help="folder of downloaded files (default: $TINYLM_CACHE or ~/.cache/tinylm)")
    options = parser.parse(arguments)
    check_at_least(1, options, "sample", "val")
    folder = options.out or Path(f"tinystories-{options.sample}")

    for name in ("train.txt", "val.txt"):
        check_target(folder / name, STORIES, options.overwrite)

    from tinylm.data.corpora.tinystories import sources, write_sample

    counts = (options.sample, options.val)
    paths = write_sample(folder, counts, sources(options.url), options.cache_dir or default_cache_dir())
    for path, count in zip(paths, counts, strict=True):
        print(f"{path}: {count:,} stories, {path.stat().st_size:,} bytes")
    print(f"to train on them: {command('fit', '-c', 'small', '--data.corpus', folder)}")
    print(f"or with NumPy:    {command('train-numpy', '-c', 'tiny', '--data.corpus', folder)}")
