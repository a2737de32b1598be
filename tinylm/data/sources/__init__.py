"""Sources: the files of a corpus, local or behind a URL, compressed or not, as bytes."""

from tinylm.data.sources.source import Source, find_sources

__all__ = ["Source", "find_sources"]
