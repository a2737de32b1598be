"""Blocks, joined, equal the documents they were cut from, also after pickling."""

import pickle
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.errors import DataError
from tinylm.tokenizer.fast import blocks
from tinylm.tokenizer.fast.blocks import Block, FileBlock, Packer

few = settings(max_examples=200, deadline=None)
documents = st.lists(st.lists(st.text("ab \n", max_size=12), max_size=4), max_size=6)


def before_a_space(text: str) -> int:
    return max(text.rfind(" "), 0)


@few
@given(documents, st.booleans(), st.integers(1, 15))
@example([["a"], [], ["b c ", "d"]], True, 1)
@example([["no place to cut" * 3]], False, 2)
def test_blocks_join_to_the_documents(documents, end, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", size)
        packer = Packer(before_a_space)
        found = [block for document in documents for block in packer.add(document)] + list(packer.rest(end))
    texts = ["".join(document) for document in documents]
    joined = ""
    for block in found:
        assert joined.rsplit("|", 1)[-1] == (texts[joined.count("|")][: block.start] if documents else "")
        joined += "|".join(block.texts)
    assert joined == "|".join([*texts, ""] if end and texts else texts)
    for before, after in pairwise(found):  # cut before a space, or between documents
        assert after.texts[0].startswith(" ") or before.texts[-1] == "" or after.start == 0


def test_a_long_text_without_a_safe_cut_is_searched_only_rarely(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 10)
    searched = []
    packer = Packer(lambda text: searched.append(len(text)) or 0)
    assert list(packer.add(["x" * 10] * 1000)) == []
    assert len(searched) < 12 and sum(searched) < 25_000
    [block] = packer.rest(end=False)
    assert block.texts == ["x" * 10_000]


@few
@given(st.lists(st.text(), min_size=1, max_size=4), st.integers(0, 100))
def test_a_block_is_unchanged_by_pickling(texts, start):
    block = pickle.loads(pickle.dumps(Block(texts, start)))
    assert (block.data, block.texts, block.start) == (Block(texts).data, texts, start)


def test_a_block_with_a_lone_surrogate_can_be_pickled_but_has_no_utf8():
    block = pickle.loads(pickle.dumps(Block(["a\udcff"], 3)))
    assert (block.texts, block.start) == (["a\udcff"], 3)
    with pytest.raises(DataError, match="lone surrogate"):
        _ = block.data


def test_a_file_block_is_read_lazily(tmp_path):
    path = tmp_path / "t.txt"
    block = pickle.loads(pickle.dumps(FileBlock(path, 2, 6)))
    path.write_bytes("ab cé d".encode())
    assert block.texts == [" cé"]
    with pytest.raises(DataError, match=r"t\.txt: is not UTF-8 at byte 4"):
        _ = FileBlock(path, 3, 5).data
