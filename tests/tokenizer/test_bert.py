"""BERT's normalizer and pre-tokenizer equal those of `tokenizers` on every assigned character of Unicode."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from tokenizers import normalizers, pre_tokenizers

from tests.tokenizer.scripts import texts
from tinylm.errors import ConfigError
from tinylm.tokenizer.normalizers.base import Normalizer
from tinylm.tokenizer.normalizers.bert import BertNormalizer, bert_words
from tinylm.tokenizer.normalizers.bert_tables import ORDERED, WHOLE

EVERY = [chr(point) for point in (*range(0xD800), *range(0xE000, 0x32400), *range(0xE0000, 0xE0200), 0x10FFFF)]
OFF = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
OPTIONS = [  # clean_text, handle_chinese_chars, strip_accents, lowercase
    (True, True, None, True), (True, True, None, False), (True, False, True, False), (False, True, False, True),
    (False, False, True, True),
]  # fmt: skip


@pytest.mark.parametrize("step", OFF)
def test_every_assigned_character_is_normalized_as_in_tokenizers(step):
    options, whole = OFF | {step: True}, "\n".join(EVERY)
    assert BertNormalizer(**options).normalize(whole) == normalizers.BertNormalizer(**options).normalize_str(whole)


def test_every_assigned_character_is_split_as_in_tokenizers():
    whole = "".join("a" + each for each in EVERY)
    assert bert_words(whole) == [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(whole)]


@pytest.mark.parametrize("options", OPTIONS)
def test_texts_and_runs_of_marks_are_normalized_as_in_tokenizers(options):
    ours, random = BertNormalizer(*options), Random(0)
    names = dict(zip(OFF, options, strict=True))
    theirs = normalizers.BertNormalizer(**names)
    marks = [*map(chr, sorted(ORDERED | WHOLE)), *map(chr, range(0x300, 0x370))]
    runs = ["a" + "".join(random.choices(marks, k=random.randint(1, 5))) + "b" for _ in range(500)]
    for text in texts(300, seed=1) + runs:
        assert ours.normalize(text) == theirs.normalize_str(text), ascii(text)
    again = Normalizer.from_dict(ours.to_dict())
    assert isinstance(again, BertNormalizer) and again.options() == names


def test_parts_between_allowed_cuts_are_normalized_independently():
    ours, count = BertNormalizer(), 0
    for text in texts(100, seed=2):
        cuts = [0, *(cut for cut in range(1, len(text)) if ours.may_cut(text, cut)), len(text)]
        assert "".join(ours.normalize(text[a:b]) for a, b in pairwise(cuts)) == ours.normalize(text)
        count += len(cuts)
    assert count > 1000


def test_offsets_give_the_source_of_each_normalized_character():
    """By hand: é loses its accent, the Chinese character gets spaces around it, NUL is removed, İ loses its dot."""
    text = "é\0中İ"
    assert BertNormalizer().normalize(text) == "e 中 i"
    begins, ends = BertNormalizer().offsets(text)
    assert begins.tolist() == [0, 2, 2, 2, 3] and np.array_equal(ends, begins + 1)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="normalizer: no kind 'berts', known are "):
        Normalizer.from_dict({"kind": "berts"})
