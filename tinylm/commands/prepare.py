"""Writes data sets to train on.

tinylm prepare questions --out questions/
tinylm prepare summaries --out summaries/ --train 20000
tinylm prepare tinystories --sample 10000
"""

import json
from collections.abc import Callable
from pathlib import Path

from tinylm.console import Parser
from tinylm.errors import ConfigError, did_you_mean
from tinylm.files import default_cache_dir, write_text
from tinylm.locate import command


def pairs(kind: str, description: str) -> Callable[[list[str]], None]:
    """The command that writes prompts and responses of a kind."""

    def write(arguments: list[str]) -> None:
        parser = Parser(f"prepare {kind}", description)
        parser.add_argument("--out", type=Path, required=True, help="the folder for train.jsonl, val.jsonl, test.jsonl")
        parser.add_argument("--train", type=int, default=10_000, help="records to train on (%(default)s)")
        parser.add_argument("--val", type=int, default=300, help="to validate on (%(default)s)")
        parser.add_argument("--test", type=int, default=300, help="to test on (%(default)s)")
        parser.add_argument("--seed", type=int, default=0, help="another one gives other records (%(default)s)")
        options = parser.parse(arguments)
        counts = {name: getattr(options, name) for name in ("train", "val", "test")}
        for name, count in counts.items():
            if count < 1:
                raise ConfigError(f"--{name} must be at least 1, got {count}")

        from tinylm.data.grammar.questions import write_parts

        for name, records in zip(counts, write_parts(kind, list(counts.values()), options.seed), strict=True):
            lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in records]
            write_text(options.out / f"{name}.jsonl", "".join(line + "\n" for line in lines))
            print(f"{options.out / name}.jsonl: {len(records):,} records")
        if not Path("runs/small").exists():
            print(f"first a model to begin with: {command('fit', '-c', 'small')}")
        files = ["--data.pairs", options.out / "train.jsonl", "--data.pairs_val", options.out / "val.jsonl"]
        print(f"to train on them: {command('fit', '-c', 'finetune', *files)}")

    return write


def tinystories(arguments: list[str]) -> None:
    """The command that writes the first stories of TinyStories."""
    description = "The first stories of TinyStories (GPT-4's part), to train and to validate on."
    parser = Parser("prepare tinystories", description)
    parser.add_argument("--sample", type=int, default=10_000, help="stories to train on (%(default)s)")
    parser.add_argument("--val", type=int, default=500, help="to validate on (%(default)s)")
    parser.add_argument("--out", type=Path, help="the folder for train.txt and val.txt (tinystories-SAMPLE)")
    parser.add_argument("--url", help="a mirror: the folder that has the two files, or one .txt file of such stories")
    parser.add_argument("--cache-dir", type=Path, help="where files put by hand are ($TINYLM_CACHE or ~/.cache/tinylm)")
    options = parser.parse(arguments)
    for name in ("sample", "val"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(options, name)}")
    folder = options.out or Path(f"tinystories-{options.sample}")

    from tinylm.data.corpora.tinystories import sources, write_sample

    counts = (options.sample, options.val)
    paths = write_sample(folder, counts, sources(options.url), options.cache_dir or default_cache_dir())
    for path, count in zip(paths, counts, strict=True):
        print(f"{path}: {count:,} stories, {path.stat().st_size:,} bytes")
    print(f"to train on them: {command('fit', '-c', 'small', '--data.corpus', folder)}")
    print(f"or with NumPy:    {command('train-numpy', '-c', 'tiny', '--data.corpus', folder)}")


COMMANDS = {
    "questions": pairs("questions", "Questions about short stories, with their answers."),
    "summaries": pairs("summaries", "Short stories, each with one sentence that sums it up."),
    "tinystories": tinystories,
}


def run(arguments: list[str]) -> None:
    """Does what the first word says."""
    parser = Parser("prepare", __doc__)
    parser.add_argument("what", help=f"one of {', '.join(COMMANDS)}; --help after it lists its options")
    what = parser.parse(arguments[:1]).what
    if what not in COMMANDS:
        raise ConfigError(
            f"{what}: no such data set{did_you_mean(what, COMMANDS) or '; there are ' + ', '.join(COMMANDS)}"
        )
    COMMANDS[what](arguments[1:])
