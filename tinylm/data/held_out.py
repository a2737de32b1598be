"""Texts that a model was not trained on, found by the run that it is of."""

import itertools
from pathlib import Path

import yaml

from tinylm.data.corpus import open_corpus
from tinylm.files import default_cache_dir


def held_out_stories(model: Path, count: int) -> list[str]:
    """The first validation stories, if a model is of a run on the built-in ones; else nothing, of finetuned ones too.

    Args:
        model: a run folder, its model folder, or one of its checkpoints
        count: how many, at most
    """
    configs = [folder / "config.yaml" for folder in (model, *model.resolve().parents[:2])]
    config = next((path for path in configs if path.is_file()), None)
    try:
        data = {} if config is None else yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
        told_stories = data.get("pairs") is None and data.get("corpus", "").partition(":")[0] == "stories"
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return []  # somebody else's config.yaml
    if not told_stories:
        return []
    corpus = open_corpus(data["corpus"], split=tuple(data["split"]), cache_dir=default_cache_dir(), seed=data["seed"])
    return ["".join(story) for story in itertools.islice(corpus.documents("val"), count)]
