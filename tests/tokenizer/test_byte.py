"""ByteTokenizer: the ids of a text are its UTF-8 bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.errors import DataError
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer

few = settings(max_examples=50, deadline=None)


@few
@given(st.text())
def test_ids_are_the_bytes_of_utf8(text):
    assert ByteTokenizer().encode(text) == list(text.encode("utf-8"))


def test_there_are_256_ids_and_training_reads_no_text():
    def unread():
        pytest.fail("a text was read")
        yield

    assert ByteTokenizer().vocab_size == 256
    assert ByteTokenizer.train_from_texts(unread()) == ByteTokenizer()
    assert ByteTokenizer([END_OF_TEXT]).end_of_text == 256


@few
@given(st.binary(), st.integers(0, 50))
def test_encode_stream_passes_invalid_utf8_through_unchanged(data, cut):
    text = data.decode("utf-8", "surrogateescape")
    ids = np.concatenate(list(ByteTokenizer().encode_stream([text[:cut], text[cut:]])))
    assert ids.tolist() == list(data)


def test_escaped_bytes_in_a_users_text_are_refused():
    with pytest.raises(DataError, match=r"lone surrogate, U\+DCFF, at character 1"):
        ByteTokenizer().encode("a\udcff")
