"""The tables of docs/interop.md: exported configs with their classes, and refused configs with their messages."""

import re
from pathlib import Path
from typing import Any

import yaml

SHAPE = dict(vocab_size=278, d_model=32, num_layers=2, num_heads=4, max_seq_len=24, d_ff=44)
DOCS = Path(__file__).resolve().parents[2] / "docs" / "interop.md"


def _changes(cell: str) -> dict[str, Any]:
    """`a=1` `b=true` as a dict. YAML reads 1e-05 as a string."""
    found = {name: yaml.safe_load(value) for name, value in re.findall(r"`(\w+)=(\S+)`", cell)}
    return {name: float(value) if name in ("rope_theta", "norm_eps") else value for name, value in found.items()}


def _rows(heading: str) -> list[tuple[str, str]]:
    """The two cells of each row of the table with this heading."""
    _, _, rest = DOCS.read_text(encoding="utf-8").partition(f"{heading}\n|---|---|\n")
    table, _, _ = rest.partition("\n\n")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert rows, f"docs/interop.md has no table {heading}"
    return [(first, second) for first, second in rows]


EXPORTS = {f"{last} {first}": (_changes(first), last) for first, last in _rows("| tinylm | Hugging Face |")}
REFUSALS = {first: (_changes(first), last.strip("`")) for first, last in _rows("| tinylm | message |")}
