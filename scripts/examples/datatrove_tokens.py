"""Encodes a corpus into token shards with datatrove, the library that FineWeb was made with.

    pip install tinylm datatrove
    python scripts/examples/datatrove_tokens.py 'web/*.txt' tok.json web-tokens --tasks 8 --workers 4

Each task writes its share; datatrove keeps the logs, skips completed tasks and starts failed ones again. For a cluster,
put the same step into a SlurmPipelineExecutor or RayPipelineExecutor.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from tinylm.data import open_corpus, write_shards
from tinylm.data.shard_builder import Share
from tinylm.files import default_cache_dir
from tinylm.tokenizer import load_tokenizer


class TokenShards(PipelineStep):
    """Writes one task's share of a folder of token shards."""

    name, type = "token shards", "tinylm"

    def __init__(self, corpus: str, tokenizer: str, folder: str) -> None:
        super().__init__()
        self.corpus, self.tokenizer, self.folder = corpus, tokenizer, folder

    def run(self, data: Iterable | None, rank: int = 0, world_size: int = 1) -> Iterable:
        """Encodes share `rank` of `world_size`; documents of earlier steps pass through."""
        corpus = open_corpus(self.corpus, split=(0.9, 0.1), cache_dir=default_cache_dir())
        with self.track_time():
            share = Share(rank, world_size)
            index = write_shards(self.folder, corpus, load_tokenizer(self.tokenizer), share, processes=1)
        self.stat_update("shards", value=len(index.shards))
        yield from data or ()


def main() -> None:
    """Runs all tasks on this machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", help="as data.corpus")
    parser.add_argument("tokenizer", help="the file of a tokenizer")
    parser.add_argument("folder", help="folder of token shards")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="tasks at once")
    options = parser.parse_args()
    step = TokenShards(options.corpus, options.tokenizer, options.folder)
    logs = str(Path(options.folder).absolute().with_name(f"{Path(options.folder).name}-logs"))
    LocalPipelineExecutor([step], tasks=options.tasks, workers=options.workers, logging_dir=logs).run()


if __name__ == "__main__":
    main()
