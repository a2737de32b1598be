"""The corpus of the run that trained a model, and held-out stories: the first of the run's validation data."""

import itertools
from pathlib import Path

from tinylm.data.corpora import open_corpus
from tinylm.errors import DataError
from tinylm.files import default_cache_dir
from tinylm.safe_yaml import read_yaml


def held_out_stories(model: Path, count: int) -> list[str]:
    """Up to `count` validation stories for a run, its model folder or checkpoint; none unless it trained on stories.

    For a mixture, the stories of the first source that has them.
    """
    config = _config(model)
    try:
        data = {} if config is None else read_yaml(config)["data"]
        separate = data.get("val") is not None
        given = data["val"] if separate else data.get("corpus", "")
        corpora = given if data.get("pairs") is None else {}
        sources = corpora.values() if isinstance(corpora, dict) else [corpora]
        stories = next((source for source in sources if source.partition(":")[0] == "stories"), None)
        part, split = ("train", (1.0,)) if separate else ("val", tuple(data["split"]))
    except (DataError, LookupError, TypeError, AttributeError):
        return []  # a config.yaml of another program
    if not stories:
        return []
    seed = data.get("text_seed", data["seed"])  # earlier versions had one seed for the text and for the order
    corpus = open_corpus(stories, split=split, cache_dir=default_cache_dir(), seed=seed)
    return ["".join(story) for story in itertools.islice(corpus.documents(part), count)]


def corpus_of(model: Path) -> str | None:
    """The name of the corpus that a run, its model folder or checkpoint was trained on; None if it is not known."""
    config = _config(model)
    try:
        return None if config is None else str(read_yaml(config)["data"]["corpus"])
    except (DataError, LookupError, TypeError):
        return None  # a config.yaml of another program


def _config(model: Path) -> Path | None:
    configs = [folder / "config.yaml" for folder in (model, *model.resolve().parents[:2])]
    return next((path for path in configs if path.is_file()), None)
