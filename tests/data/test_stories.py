"""The built-in stories: the same on every machine, and no part shares one with another."""

import hashlib
import os

import pytest

from tinylm.data.corpus import StoriesCorpus
from tinylm.data.stories import stories, story


def test_stories_are_the_same_in_every_process(python):
    code = """
    import hashlib
    from tinylm.data.stories import stories
    print(hashlib.sha256("".join(stories(5, 100)).encode()).hexdigest())
    """
    processes = [python(code, env=os.environ | {"PYTHONHASHSEED": seed}) for seed in ("1", "2")]
    here = hashlib.sha256("".join(stories(5, 100)).encode()).hexdigest()
    for process in processes:
        out, err = process.communicate()
        assert out.strip() == here, err


def test_a_story_depends_only_on_seed_and_number():
    assert list(stories(3, 5)) == [story(3, number) for number in range(5)] == list(stories(3, 9))[:5]
    assert len({story(seed, number) for seed in range(3) for number in range(100)}) == 300


def test_stories_are_ascii_and_end_with_their_only_newline():
    for text in stories(0, 1000):
        assert text.isascii() and text.index("\n") == len(text) - 1


@pytest.mark.parametrize("split", [(0.9, 0.1), (0.7, 0.2, 0.1)])
def test_parts_share_no_story_and_together_have_all(split):
    corpus = StoriesCorpus(split, seed=0, count=2000)
    parts = [["".join(document) for document in corpus.documents(part)] for part in corpus.parts]
    assert sorted(text for part in parts for text in part) == sorted(stories(0, 2000))
    assert sum(len(set(part)) for part in parts) == len({text for part in parts for text in part})
    for part, fraction in zip(parts, split, strict=True):  # five standard deviations of a binomial
        assert abs(len(part) - 2000 * fraction) < 5 * (2000 * fraction * (1 - fraction)) ** 0.5


def test_fingerprints_differ_where_the_parts_do():
    different = [StoriesCorpus(split, seed, 10) for split in ((0.9, 0.1), (0.8, 0.2)) for seed in (0, 1)]
    assert len({corpus.fingerprint for corpus in different}) == 4
