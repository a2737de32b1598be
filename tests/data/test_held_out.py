"""Held-out stories are the validation stories of the run; other models have none."""

import pytest

from tinylm.data import open_corpus
from tinylm.data.held_out import held_out_stories


def test_held_out_stories_are_the_first_validation_stories(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYLM_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "runs/one"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text("data: {corpus: 'stories:60', split: [0.9, 0.1], seed: 3}\n")
    corpus = open_corpus("stories:60", split=(0.9, 0.1), cache_dir=tmp_path / "cache", seed=3)
    expected = ["".join(story) for story in corpus.documents("val")]
    assert len(expected) > 2
    for path in (run, run / "model", run / "checkpoints/last.ckpt"):
        assert held_out_stories(path, 2) == expected[:2]
    assert held_out_stories(run, 100) == expected


def test_a_validation_corpus_of_its_own_is_held_out(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {corpus: my.txt, val: 'stories:5', split: [0.9, 0.1], seed: 3}\n")
    corpus = open_corpus("stories:5", split=(1.0,), cache_dir=tmp_path, seed=3)
    assert held_out_stories(tmp_path, 9) == ["".join(story) for story in corpus.documents("train")]
    (tmp_path / "config.yaml").write_text("data: {corpus: stories, val: my.txt, split: [0.9, 0.1], seed: 3}\n")
    assert held_out_stories(tmp_path, 9) == []


@pytest.mark.parametrize("config", [None, "data: {corpus: my.txt, split: [0.9, 0.1], seed: 0}\n"])
def test_models_of_other_corpora_have_none(config, tmp_path):
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    assert held_out_stories(tmp_path, 4) == []
