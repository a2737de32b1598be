"""Measures the speed and peak memory of building the token cache of a large text.

    python scripts/bench/token_cache.py --text /tmp/big.txt --megabytes 300

If the text does not exist, it is generated from the built-in stories.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tinylm.data.corpora import open_corpus
from tinylm.data.grammar.stories import story
from tinylm.data.tokens import open_tokens, resolve_tokenizer


def peak_megabytes() -> float:
    """Peak resident memory of this process. (Linux; a memory-mapped cache counts only once it is read.)"""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_text(path: Path, megabytes: int) -> None:
    """Writes numbered copies of a block of stories up to the given file size."""
    block = "".join(story(0, number) for number in range(2000)).encode()
    with path.open("wb") as file:
        number = 0
        while file.tell() < megabytes * 1_000_000:
            file.write(f"{number}\n".encode() + block)
            number += 1


def main() -> None:
    """Builds the cache, opens it again and prints both times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="text file; generated if missing")
    parser.add_argument("--megabytes", type=int, default=300, help="size of a generated text (%(default)s)")
    parser.add_argument("--tokenizer", default="char", help="value of data.tokenizer (%(default)s)")
    options = parser.parse_args()
    if not options.text.exists():
        make_text(options.text, options.megabytes)
    before = peak_megabytes()
    size = options.text.stat().st_size / 1e6
    with tempfile.TemporaryDirectory() as cache:
        for turn in ("first", "cached"):
            started = time.perf_counter()
            corpus = open_corpus(str(options.text), split=(0.9, 0.1), cache_dir=Path(cache))
            tokenizer = resolve_tokenizer(options.tokenizer, corpus, Path(cache))
            tokens = open_tokens(corpus, tokenizer, Path(cache))
            seconds = time.perf_counter() - started
            count = sum(map(len, tokens.values()))
            print(f"{turn:7} {size:.0f} MB, {count:,} tokens, {seconds:.2f} s, {size / seconds:.0f} MB/s")
            del tokens
    print(f"peak memory {peak_megabytes():.0f} MB, of which {before:.0f} MB before the first byte was read")


if __name__ == "__main__":
    main()
