"""Preferences between a model's own stories: those that the grammar can generate over those that it cannot.

python scripts/examples/preferences.py openings prompts.txt
tinylm generate --model runs/small --prompts-file prompts.txt --num-samples 8 --batch-size 128 --max-new-tokens 110 \\
    --temperature 1 --seed 0 --out samples.jsonl
python scripts/examples/preferences.py pairs samples.jsonl preferences.jsonl
tinylm fit -c dpo
"""

import itertools
import json
import sys
from pathlib import Path

from tinylm.data.grammar.stories import stories, story_grammar

SEED, COUNT = 2, 250  # of the stories that are begun; other seeds write the training text


def openings(prompts: str) -> None:
    """Writes the first two sentences of new stories, one opening a line: validation needs several prompts."""
    found = [". ".join(story.split(". ")[:2]) + "." for story in stories(SEED, COUNT)]
    Path(prompts).write_text("\n".join(dict.fromkeys(found)) + "\n", encoding="utf-8", newline="\n")


def pairs(samples: str, preferences: str) -> None:
    """Pairs the stories with the same opening, each one that parses with one that does not."""
    grammar, count, parse = story_grammar(), 0, 0
    records = map(json.loads, Path(samples).read_text(encoding="utf-8").splitlines())
    with Path(preferences).open("w", encoding="utf-8", newline="\n") as file:
        for prompt, group in itertools.groupby(records, key=lambda record: record["prompt"]):
            texts: tuple[list[str], list[str]] = ([], [])
            for record in group:
                texts[bool(grammar.parse(prompt + record["text"]))].append(record["text"])
            wrong, right = texts
            count, parse = count + len(right) + len(wrong), parse + len(right)
            for chosen, rejected in zip(right, wrong, strict=False):
                pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                file.write(json.dumps(pair, ensure_ascii=False) + "\n")
    print(f"{parse / count:.1%} of {count:,} stories parse")


if __name__ == "__main__":
    {"openings": openings, "pairs": pairs}[sys.argv[1]](*sys.argv[2:])
