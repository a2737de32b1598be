"""Measures a model's stories at temperature 1: `python scripts/bench/parsing.py runs/small runs/grpo --count 1000`.

For each model: the share of stories that the grammar can generate, their entropy in nats per story (the grammar's own
is printed first), the share of different stories, and the share that occurs in the training split.
"""

import argparse
import statistics

import tinylm
from tinylm.data.grammar.stories import COUNT, log_prob, stories, story_grammar
from tinylm.generation import Generator

BEGIN = "Once upon a time"  # of every story


def main() -> None:
    """Prints a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--count", type=int, default=1000, help="stories of each model (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    known = set(stories(0, COUNT))
    entropy = -statistics.fmean(map(log_prob, stories(1, 1000)))
    print(f"{'grammar':24} parses 100.0%   entropy {entropy:5.1f} nats")
    for path in options.models:
        generator = Generator(*tinylm.load(path))
        room = generator.model.config.max_seq_len - len(generator.whole_prompt(BEGIN))
        found = generator.complete(
            [BEGIN], num_samples=options.count, batch_size=128, max_new_tokens=room, seed=options.seed * options.count
        )
        texts = [BEGIN + each.text if each.finished == "end" else "" for each in found]
        right = statistics.fmean(bool(text and story_grammar().parse(text)) for text in texts)
        nats = statistics.fmean(-sum(each.log_probs) for each in found)
        copied = statistics.fmean(text in known for text in texts)
        print(
            f"{path:24} parses {right:6.1%}   entropy {nats:5.1f} nats   "
            f"different {len(set(texts)) / len(texts):.1%}   copied {copied:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
