"""Held-out stories for a model: the first validation stories of the run that trained it."""

import itertools
from pathlib import Path

from tinylm.data.corpora import open_corpus
from tinylm.errors import DataError
from tinylm.files import default_cache_dir
from tinylm.safe_yaml import read_yaml


def held_out_stories(model: Path, count: int) -> list[str]:
    """Up to `count` validation stories for a run, its model folder or checkpoint; none unless it trained on stories."""
    configs = [folder / "config.yaml" for folder in (model, *model.resolve().parents[:2])]
    config = next((path for path in configs if path.is_file()), None)
    try:
        data = {} if config is None else read_yaml(config)["data"]
        name, split = (data["corpus"], tuple(data["split"])) if data.get("val") is None else (data["val"], (1.0,))
        on_stories = data.get("pairs") is None and name.partition(":")[0] == "stories"
    except (DataError, LookupError, TypeError, AttributeError):
        return []  # a config.yaml of another program
    if not on_stories:
        return []
    corpus = open_corpus(name, split=split, cache_dir=default_cache_dir(), seed=data["seed"])
    part = "val" if data.get("val") is None else "train"
    return ["".join(story) for story in itertools.islice(corpus.documents(part), count)]
