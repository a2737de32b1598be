"""Sources: the files of a corpus, local or at a URL, compressed or not, as bytes."""

from tinylm.data.sources.find import find_sources
from tinylm.data.sources.globs import RECORDS, TEXTS
from tinylm.data.sources.memory import remembered
from tinylm.data.sources.source import Source, suffix_of

__all__ = ["RECORDS", "TEXTS", "Source", "find_sources", "remembered", "suffix_of"]
