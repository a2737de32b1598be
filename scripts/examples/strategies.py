"""Compares ways to choose tokens, side by side: `python scripts/examples/strategies.py [MODEL] [--count 64]`.

For each strategy: one text, and over `--count` texts their mean negative log probability under the model, the share of
different texts, and, for a model of the built-in stories, the share that their grammar can generate.
"""

import argparse
import statistics
import textwrap
from collections.abc import Sequence

import tinylm
from tinylm.data.grammar.stories import story_grammar
from tinylm.generation import Completion, Generator, beam_search

PROMPT = "Once upon a time"
SAMPLED = {
    "greedy": {"temperature": 0.0},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1": {"temperature": 1.0},
    "temperature 1.3": {"temperature": 1.3},
    "top-k 5": {"temperature": 1.0, "top_k": 5},
    "top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "min-p 0.1": {"temperature": 1.0, "min_p": 0.1},
    "typical 0.9": {"temperature": 1.0, "typical_p": 0.9},
    "repetition penalty 1.2": {"temperature": 1.0, "repetition_penalty": 1.2},
}
BEAMS = (2, 8)


def describe(name: str, texts: Sequence[Completion]) -> None:
    """Prints the figures of a strategy, and its first text."""
    nats = statistics.fmean(-sum(each.log_probs) for each in texts)
    different = len({each.text for each in texts})
    right = sum(bool(story_grammar().parse(each.prompt + each.text)) for each in texts)
    print(f"\n{name}: {nats:.1f} nats a text, {different} of {len(texts)} different, {right} parse")
    whole = " ".join(f"{texts[0].prompt}{texts[0].text}".split())
    print(textwrap.fill(whole, 100, initial_indent="    ", subsequent_indent="    "))


def main() -> None:
    """Prints a block for each strategy."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="storyteller", help="run or model folder (default: %(default)s)")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--count", type=int, default=64, help="texts of each strategy (default: %(default)s)")
    options = parser.parse_args()
    generator = Generator(*tinylm.load(options.model))
    room = generator.model.config.max_seq_len - len(generator.whole_prompt(options.prompt))
    for name, settings in SAMPLED.items():
        count = options.count if settings["temperature"] else 1
        describe(
            name,
            generator.complete(
                [options.prompt], num_samples=count, batch_size=32, max_new_tokens=room, seed=0, **settings
            ),
        )
    for beams in BEAMS:
        found = beam_search(generator, options.prompt, num_beams=beams, num_return=beams, max_new_tokens=room)
        describe(f"{beams} beams", found)


if __name__ == "__main__":
    main()
