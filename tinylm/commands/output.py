"""What is shown and written of generated texts: files, probabilities in colour, speeds; and where prompts come from."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tinylm.errors import DataError
from tinylm.files import read_chunks, write_text
from tinylm.generation.text import Completion, Stats
from tinylm.tokenizer import Tokenizer
from tinylm.tokenizer.pieces import visible

# Backgrounds of the 256 colours of terminals, from probability 0 to 1: red, orange, yellow, light and dark green.
COLORS = (210, 216, 223, 229, 193, 157, 120)
BETWEEN = "---"  # the line between texts


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines, blank ones left out; of a name that ends in .jsonl the field `prompt` of each.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if it is not UTF-8, has no prompt, or a line of a .jsonl file is no object with a prompt.
    """
    lines = [(n, line) for n, line in enumerate("".join(read_chunks(path)).splitlines(), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: has no prompt; write one on each line")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_prompt(line, f"{path}: line {n}") for n, line in lines]


def _prompt(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise DataError(f'{where}: must be an object with a prompt, as {{"prompt": "Once"}}')
    return value["prompt"]


def write_completions(path: Path, completions: Sequence[Completion], tokenizer: Tokenizer) -> None:
    """Writes texts, atomically: prompts and continuations with a line between; or, to a name that ends in .jsonl, an
    object on each line, with the pieces, ids and log probabilities (nats) of its tokens.

    Raises:
        StorageError: if it cannot be written.
    """
    if path.suffix != ".jsonl":
        write_text(path, f"\n{BETWEEN}\n".join(each.prompt + each.text for each in completions) + "\n")
        return
    rows = [asdict(each) | {"tokens": [visible(tokenizer.token_bytes[i]) for i in each.ids]} for each in completions]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def show_probabilities(completion: Completion, tokenizer: Tokenizer, color: bool) -> str:
    """The tokens of a text by how likely they were: a background from red to green, or the percentage behind each."""
    pieces = [visible(tokenizer.token_bytes[token]) for token in completion.ids]
    chances = [math.exp(log_prob) for log_prob in completion.log_probs]
    if not color:
        return "".join(f"{piece}[{chance:.0%}]" for piece, chance in zip(pieces, chances, strict=True))
    shades = [COLORS[min(int(chance * len(COLORS)), len(COLORS) - 1)] for chance in chances]
    return "".join(f"\x1b[30;48;5;{shade}m{piece}\x1b[0m" for piece, shade in zip(pieces, shades, strict=True))


def legend(color: bool) -> str:
    """What the colours of `show_probabilities` mean."""
    if not color:
        return "behind each token: its probability"
    steps = [f"\x1b[30;48;5;{shade}m {i / len(COLORS):.0%} \x1b[0m" for i, shade in enumerate(COLORS)]
    return "probability from " + "".join(steps)


def show_stats(stats: Stats, threads: int | None) -> str:
    """One line: speeds, texts at a time, memory, threads."""
    parts = (("prompts", stats.prompt_tokens, stats.prompt_seconds), ("text", stats.new_tokens, stats.decode_seconds))
    speeds = [f"{name}: {count:,} tokens, {count / seconds:,.0f} tokens/s" for name, count, seconds in parts if count]
    memory = f"cache {stats.cache_bytes / 1e6:,.1f} MB"
    on = [] if threads is None else [f"{threads} CPU thread{'s' if threads > 1 else ''}"]
    return "; ".join([*speeds, memory, *on])
