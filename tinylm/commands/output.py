"""Input and output of `tinylm generate`: prompt files, output files, coloured probabilities, statistics."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.console import Scale, plural
from tinylm.errors import DataError
from tinylm.files import decode_blocks, parse_json, write_text
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.pieces import visible

if TYPE_CHECKING:
    from tinylm.generation.text import Completion, Stats

COLORS = (210, 216, 223, 229, 193, 157, 120)  # red, orange, yellow, light and dark green, in terminals
PROBABILITY = Scale("probability", ".0%", ".0%", tuple((i / len(COLORS), color) for i, color in enumerate(COLORS)))
BETWEEN = "---"  # the line between two texts


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file: its lines without blank ones; in JSON lines the field `prompt` of each line.

    Lines end with LF or CRLF. Other separators of Unicode, such as U+2028, are part of a prompt. A compressed file is
    decompressed first.
    """
    from tinylm.data.sources import Source  # imported here: it takes long

    source = Source(str(path))
    if source.suffix in (".json", ".csv"):
        raise DataError(f"{path}: prompts are read from lines of text, or from a .jsonl file; convert it")
    jsonl = is_jsonl(Path(f"prompts{source.suffix}"))
    whole = "".join(decode_blocks(source.blocks(), path, records=jsonl))
    lines = [(n, line.removesuffix("\r")) for n, line in enumerate(whole.split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: has no prompt; write one on each line")
    if not jsonl:
        return [line for _, line in lines]
    return [_prompt(line, f"{path}: line {n}") for n, line in lines]


def is_jsonl(path: Path) -> bool:
    """Whether a file holds JSON lines, by its name."""
    return path.suffix.lower() in (".jsonl", ".ndjson")


def _prompt(line: str, origin: str) -> str:
    value = parse_json(line, origin)
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise DataError(f'{origin}: must be an object with a prompt, as {{"prompt": "Once"}}')
    return value["prompt"]


def write_completions(path: Path, completions: "Sequence[Completion]", tokenizer: Tokenizer) -> None:
    """Writes prompts and completions atomically.

    A .jsonl file gets one object per line, with the text, id and log probability (nats) of each token. Any other file
    gets the texts, with a line between two of them.
    """
    if not is_jsonl(path):
        write_text(path, f"\n{BETWEEN}\n".join(each.prompt + each.text for each in completions) + "\n")
        return
    rows = [asdict(each) | {"tokens": [visible(tokenizer.token_bytes[i]) for i in each.ids]} for each in completions]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def show_probabilities(completion: "Completion", tokenizer: Tokenizer, color: bool) -> str:
    """The tokens of a text by probability: a background from red to green, or a percentage in brackets.

    They end where the text ends: a token that a stop string cuts in two is shown only up to the string.
    """
    shown, left, decode_piece = [], len(completion.text), tokenizer.piece_decoder()
    for token, log_prob in zip(completion.ids, completion.log_probs, strict=True):
        if completion.finished == "stop" and left <= 0:
            break
        piece = decode_piece(token)
        bytes_shown = tokenizer.token_bytes[token] if len(piece) <= left else piece[:left].encode()
        shown.append(PROBABILITY.show(visible(bytes_shown), math.exp(log_prob), color))
        left -= len(piece)
    return "".join(shown)


def show_stats(stats: "Stats", threads: int | None) -> str:
    """One line with speeds, cache memory and CPU threads."""
    parts = (("prompts", stats.prompt_tokens, stats.prompt_seconds), ("text", stats.new_tokens, stats.decode_seconds))
    speeds = [
        f"{name}: {plural(count, 'token')}, {count / seconds:,.0f} tokens/s" for name, count, seconds in parts if count
    ]
    memory = f"cache {stats.cache_bytes / 1e6:,.1f} MB"
    cpu = [] if threads is None else [plural(threads, "CPU thread")]
    return "; ".join([*speeds, memory, *cpu])
