"""Prints figures of a corpus before training: sizes, lengths, duplicates, invalid text, samples.

tinylm prepare inspect my.txt
tinylm prepare inspect web.jsonl.zst --field content --tokenizer tiktoken:gpt2 --json figures.json
tinylm prepare inspect my.txt -c small --max-steps 5000

Without a tokenizer, lengths are in characters. A config supplies its tokenizer, split, batch and steps. Every document
is read once; duplicates are found by 8-byte hashes, which take 8 MB of memory per million documents.
"""

import argparse
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.console import Mode, Parser, check_at_least, plural, table
from tinylm.errors import ConfigError, InvalidTextError
from tinylm.files import default_cache_dir, write_json
from tinylm.locate import find_config
from tinylm.safe_yaml import read_yaml
from tinylm.targets import FileKind, check_target

if TYPE_CHECKING:
    from tinylm.data.corpora import Corpus
    from tinylm.data.inspection import Example, Inspection

FIGURES = FileKind("figures of a corpus", rb'\{\s*"corpus": ')
WIDTH = 80  # columns
MOST_ROWS = 16  # of the histogram
SIZES = ("--max-steps", "--batch-size", "--max-seq-len")
MODES = (
    Mode("without --tokenizer or --config", SIZES, lambda options: not (options.tokenizer or options.config)),
    Mode("without --json", ("--overwrite",)),
)


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser("prepare inspect", __doc__, MODES)
    add = parser.add_argument
    add("corpus", nargs="?", help="as data.corpus takes it (default: that of the config)")
    add("-c", "--config", help="config whose data.*, max_seq_len and max_steps are the defaults below")
    add("--tokenizer", help="count tokens, as data.tokenizer takes it: bpe:2048, a file, tiktoken:gpt2 (default: none)")
    add("--field", help="field or column of a record that is its text (default: text)")
    add("--separator", help="text between documents of a plain text file (default: <|endoftext|> if the file has it)")
    add("--include", nargs="+", metavar="PATTERN", help="names of the files to take from a folder, such as '*.md'")
    add("--exclude", nargs="+", metavar="PATTERN", help="names of the files to leave out")
    add("--split", type=float, nargs="+", help="fractions of the parts (default: 0.9 0.1)")
    add("--max-steps", type=int, help="print the epochs of this many optimizer steps")
    add("--batch-size", type=int, help="sequences in a step (default: 32)")
    add("--max-seq-len", type=int, help="tokens in a sequence (default: 256)")
    add("--longest", type=int, default=5, help="number of the longest documents to print")
    add("--samples", type=int, default=3, help="number of random documents to print")
    add("--seed", type=int, help="seed of the samples and of generated texts (default: 0)")
    add("--json", type=Path, help="also write the figures to a file")
    parser.add_overwrite_option()
    add("--cache-dir", type=Path, help="folder of downloads and tokenizers (default: $TINYLM_CACHE or ~/.cache/tinylm)")
    return parser


def run(arguments: list[str]) -> None:
    """Prints the figures of a corpus."""
    options = make_parser().parse(arguments)
    take_config(options)
    check_at_least(1, options, "max_steps", "batch_size", "max_seq_len")
    check_at_least(0, options, "longest", "samples", "seed")
    if options.json is not None:
        check_target(options.json, FIGURES, options.overwrite)

    try:
        figures = measure(options, "strict")
    except InvalidTextError:  # reported with the other figures
        figures = measure(options, "surrogateescape")
    print("\n\n".join(filter(None, sections(figures, options))))
    if options.json is not None:
        write_json(
            options.json, figures.to_dict() | {"tokenizer": options.tokenizer, "training": training(figures, options)}
        )


def take_config(options: argparse.Namespace) -> None:
    """Fills in options that were not given from the config and the defaults of training."""
    values: dict[str, Any] = {} if options.config is None else read_yaml(find_config(options.config)) or {}
    data = values.get("data", {})
    if options.corpus is None:
        if data.get("pairs") is not None:
            raise ConfigError(f"{options.config}: trains on pairs; inspect reads a corpus")
        if options.config is None:
            raise ConfigError("which corpus? Give a file, a folder or a name, or a config with --config")
    given = {
        "field": data.get("field", "text"),
        "separator": data.get("separator"),
        "include": data.get("include", ()),
        "exclude": data.get("exclude", ()),
        "corpus": data.get("corpus", "stories"),
        "tokenizer": data.get("tokenizer", "char") if options.config else None,
        "split": data.get("split", (0.9, 0.1)),
        "seed": data.get("text_seed", 0),
        "batch_size": data.get("batch_size", 32),
        "max_seq_len": values.get("model", {}).get("network", {}).get("max_seq_len", 256),
        "max_steps": values.get("trainer", {}).get("max_steps"),
        "cache_dir": Path(data.get("cache_dir") or default_cache_dir()),
    }
    for name, value in given.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("corpus", "tokenizer"):
        if isinstance(getattr(options, name), dict):
            kind = "a plug-in" if "class_path" in getattr(options, name) else "a mixture"
            raise ConfigError(f"{options.config}: data.{name} is {kind}, which inspect does not read; name another")


def measure(options: argparse.Namespace, errors: str) -> "Inspection":
    """The figures of the corpus; `errors` is the treatment of bytes that are not UTF-8."""
    from tinylm.data.inspection import inspect_corpus
    from tinylm.data.tokens import resolve_tokenizer

    corpus, tokenizer = opened(options, errors), None
    if options.tokenizer is not None:
        learned_from = corpus if errors == "strict" else opened(options, "replace")
        tokenizer = resolve_tokenizer(options.tokenizer, learned_from, options.cache_dir)
    return inspect_corpus(
        corpus, tokenizer, context=options.max_seq_len, num_longest=options.longest, num_samples=options.samples,
        seed=options.seed,
    )  # fmt: skip


def opened(options: argparse.Namespace, errors: str) -> "Corpus":
    """The corpus that the options name."""
    from tinylm.data.corpora import Reading, check_split, open_corpus

    return open_corpus(
        options.corpus,
        split=check_split(options.split),
        cache_dir=options.cache_dir,
        seed=options.seed,
        errors=errors,
        reading=Reading(options.field, options.separator, tuple(options.include), tuple(options.exclude)),
    )


# --- printing


def sections(figures: "Inspection", options: argparse.Namespace) -> list[str]:
    """The sections of the report."""
    return [
        counts(figures, options.tokenizer),
        histogram(figures),
        parts(figures, options.split),
        epochs(figures, options),
        invalid(figures),
        examples("Longest documents", figures.unit, figures.longest if figures.total.documents > 1 else []),
        examples(f"Samples, of seed {options.seed}", figures.unit, figures.samples),
    ]


def counts(figures: "Inspection", tokenizer: str | None) -> str:
    """Sizes, duplicates, empty records and invalid text."""
    total = figures.total
    stored = f"; {size(figures.stored_bytes)} as stored" if figures.stored_bytes not in (None, total.bytes) else ""
    share = f"{figures.duplicate_share:.1%}: " if figures.num_duplicates else ""
    per_token = f"{tokenizer}: {total.bytes / total.tokens:.2f} bytes a token" if total.tokens else ""
    rows = [
        ("documents", total.documents, ""),
        ("bytes", total.bytes, f"{size(total.bytes)} of UTF-8{stored}"),
        ("characters", total.characters, ""),
        ("tokens", total.tokens, per_token or "not counted: give --tokenizer, such as bpe:2048 or tiktoken:gpt2"),
        ("duplicates", figures.num_duplicates, f"{share}documents equal to an earlier one"),
        ("empty", figures.num_empty, "records without text, left out"),
        ("not UTF-8", figures.num_invalid, "documents, listed below" if figures.num_invalid else "documents"),
    ]
    lines = [f"  {name:<12}{'-' if count is None else f'{count:,}':>16}  {remark}" for name, count, remark in rows]
    return "\n".join([figures.corpus, *(line.rstrip() for line in lines)])


def size(count: int | None) -> str:
    """Bytes in the unit that suits them."""
    unit, name = next(
        (each for each in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if (count or 0) >= each[0]), (1, "bytes")
    )
    return f"{(count or 0) / unit:,.{0 if unit == 1 else 1}f} {name}"


def histogram(figures: "Inspection") -> str:
    """The number of documents by length."""
    lengths, rows = figures.lengths, figures.lengths.bins(MOST_ROWS)
    if figures.total.documents < 2:
        return ""
    middle = f"shortest {lengths.shortest:,}, median about {lengths.quantile(0.5):,}, longest {lengths.longest:,}"
    wide, most = max(len(f"{high:,}") for _, high, _ in rows), max(count for *_, count in rows)
    counted = max(len(f"{count:,}") for *_, count in rows)
    lines = []
    for low, high, count in rows:
        label = f"  {low:>{wide},} - {high:>{wide},}  {count:>{counted},}  {count / figures.total.documents:>6.1%}  "
        lines.append((label + bar(count / most, WIDTH - len(label))).rstrip())
    return "\n".join([f"Lengths, in {figures.unit}: {middle}", *lines])


def bar(share: float, width: int) -> str:
    """A bar of eighths of characters; not empty unless the share is 0."""
    eighths = max(round(share * width * 8), share > 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def parts(figures: "Inspection", split: tuple[float, ...]) -> str:
    """The size of each part."""
    counted = figures.total.tokens is not None
    rows = [["", "documents", "bytes", "characters", *(["tokens"] if counted else [])]]
    for name, part in figures.parts.items():
        sizes = [part.documents, part.bytes, part.characters, *([part.tokens] if counted else [])]
        rows.append([name, *(f"{each:,}" for each in sizes)])
    pieces = sum(part.documents for part in figures.parts.values()) - figures.total.documents
    remark = f"; {plural(pieces, 'document')} cut in two" if pieces else ""
    lines = [f"  {line}" for line in table(rows).split("\n")]
    return "\n".join([f"Parts, by the split {' '.join(map(str, split))}{remark}", *lines])


def training(figures: "Inspection", options: argparse.Namespace) -> dict[str, Any] | None:
    """The steps of an epoch and the epochs of a run; None without a tokenizer."""
    sequences = figures.sequences(options.max_seq_len)
    if sequences is None:
        return None
    steps = None if options.max_steps is None or options.max_steps < 0 else options.max_steps
    return {
        "max_steps": steps,
        "batch_size": options.batch_size,
        "max_seq_len": options.max_seq_len,
        "steps_per_epoch": sequences / options.batch_size,
        "epochs": None if steps is None else steps * options.batch_size / sequences,
    }


def epochs(figures: "Inspection", options: argparse.Namespace) -> str:
    """The epochs of a run: its passes over the training part."""
    found = training(figures, options)
    if found is None or (options.config is None and options.max_steps is None):
        return ""
    step = f"  a step       {options.batch_size:,} sequences of {options.max_seq_len:,} tokens"
    epoch = f"  an epoch     {found['steps_per_epoch']:,.1f} steps"
    run = (
        [] if found["epochs"] is None else [f"  {plural(found['max_steps'], 'step'):<13}{found['epochs']:,.2f} epochs"]
    )
    return "\n".join(["Training", step, epoch, *run])


def invalid(figures: "Inspection") -> str:
    """The first bytes that are not UTF-8, by file."""
    if not figures.invalid:
        return ""
    lines = []
    for each in figures.invalid:
        within = " of its text" if each.place.kind else ""
        lines.append(f"  {each.place}: at byte {each.offset:,}{within}")
    return "\n".join(["Not UTF-8, first in each file (train with --data.errors replace, or repair them)", *lines])


def examples(title: str, unit: str, found: "list[Example]") -> str:
    """Documents, each with its place, its length and its first words."""
    lines = []
    for each in found:
        lines += [f"  {each.place} ({each.length:,} {unit})", f"    {beginning(each.begin, WIDTH - 4)}"]
    return "\n".join([title, *lines]) if found else ""


def beginning(text: str, width: int) -> str:
    """The first words of a text on one line of at most `width` columns; characters of no width are shown as dots."""
    line, used = "", 0
    for character in " ".join(text.split()):
        columns = 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used + columns > width - 3:
            return line.rstrip() + "..."
        line, used = line + (character if character.isprintable() else "·"), used + columns
    return line
