"""Preferences between a model's own stories: those that the grammar can generate over those that it cannot.

tinylm generate --model runs/small --prompt "Once upon a time" --num-samples 1000 --max-new-tokens 120 \\
    --temperature 1 --seed 0 --out samples.jsonl
python scripts/examples/preferences.py samples.jsonl preferences.jsonl
tinylm fit -c dpo
"""

import json
import sys
from pathlib import Path

from tinylm.data.grammar.stories import story_grammar


def main(samples: str, preferences: str) -> None:
    """Pairs each story that parses with one that does not, and writes as many pairs as there are of both."""
    grammar, stories = story_grammar(), ([], [])
    records = map(json.loads, Path(samples).read_text(encoding="utf-8").splitlines())
    for record in records:
        stories[bool(grammar.parse(record["prompt"] + record["text"]))].append(record)
    wrong, right = stories
    print(f"{len(right) / (len(right) + len(wrong)):.1%} of {len(right) + len(wrong):,} stories parse")
    with Path(preferences).open("w", encoding="utf-8", newline="\n") as file:
        for chosen, rejected in zip(right, wrong, strict=False):
            pair = {"prompt": chosen["prompt"], "chosen": chosen["text"], "rejected": rejected["text"]}
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
