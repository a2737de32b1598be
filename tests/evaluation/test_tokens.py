"""Token losses against the score of the whole text."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import random_model
from tinylm.errors import DataError
from tinylm.evaluation import score_text
from tinylm.evaluation.tokens import LOSS, SHADES, TokenLoss, mean_loss, show_losses, token_losses
from tinylm.model import ModelConfig
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer

few = settings(max_examples=40, deadline=None)


def make(tokenizer, context: int = 6):
    shape = dict(d_model=16, num_layers=2, num_heads=2, tie_embeddings=False)
    return random_model(ModelConfig(vocab_size=tokenizer.vocab_size, max_seq_len=context, **shape))


@few
@given(st.text("abc", min_size=2, max_size=30), st.integers(1, 7), st.booleans())
def test_losses_sum_to_the_score_and_guesses_are_most_probable(text, context, end):
    tokenizer = CharTokenizer("abc", [END_OF_TEXT] if end else [])
    model = make(tokenizer, context)
    losses = token_losses(model, tokenizer, text)
    assert tokenizer.decode([each.id for each in losses]) == text
    predicted = [each for each in losses if each.nats is not None]
    score = score_text(model, tokenizer, text)
    assert len(predicted) == score.tokens == len(text) - (not end)
    assert math.fsum(each.nats for each in predicted) == pytest.approx(score.nats, abs=1e-9)
    assert mean_loss(losses) == pytest.approx(score.nats / score.tokens)
    before = torch.tensor([[*([tokenizer.end_of_text] if end else []), *tokenizer.encode(text)]])[:, :context]
    logits = model(before)[0]
    assert [each.guess for each in predicted][: len(logits)] == logits.argmax(dim=-1).tolist()[: len(predicted)]


def test_a_text_without_a_token_to_predict_is_refused():
    tokenizer = CharTokenizer("ab")
    for text in ("", "a"):
        with pytest.raises(DataError, match="the text has no token to predict; give a longer one"):
            token_losses(make(tokenizer), tokenizer, text)


def test_shades_by_hand_have_falling_luminance():
    for nats, number in ((-1e-9, 231), (0.0, 231), (0.09, 231), (0.1, 230), (1.5, 215), (7.99, 170), (8.0, 99)):
        assert LOSS.show("a", nats, color=True) == f"\x1b[30;48;5;{number}ma\x1b[0m"
    assert LOSS.show("a", 100.0, color=True) == LOSS.show("a", 8.0, color=True)
    # a colour of the palette is 16 + 36 r + 6 g + b; WCAG 2: black text needs a contrast of at least 4.5
    steps = [0, 95, 135, 175, 215, 255]
    channels = [[steps[(number - 16) // base % 6] / 255 for base in (36, 6, 1)] for _, number in SHADES]
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb] for rgb in channels]
    luminance = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear]
    assert all(light > dark for light, dark in itertools.pairwise(luminance))
    assert all((value + 0.05) / 0.05 >= 4.5 for value in luminance)
    # neighbours differ by a seventh of the way from black to white in some channel, 2 and 4 nats by far more
    apart = [max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(channels)]
    assert min(apart) >= 1 / 7 and apart[4] > 0.8


LOSSES = [TokenLoss(104, None, None), TokenLoss(60, 0.02, 60), TokenLoss(10, 9.0, 9)]  # "h", "<", "\n" for "\t"


def test_terminals_show_losses_as_colours_or_numbers():
    tokenizer = ByteTokenizer()
    assert show_losses(LOSSES, tokenizer, color=False) == "h<[0.0]\\n[9.0]"
    assert show_losses(LOSSES, tokenizer, color=True) == "h\x1b[30;48;5;231m<\x1b[0m\x1b[30;48;5;99m\\n\x1b[0m"
    assert LOSS.legend(color=False) == "in brackets: the loss in nats of each token"
    assert LOSS.legend(color=True).count("\x1b[30;48;5;") == len(SHADES)


def test_document_mask_hides_the_separator_before_a_text():
    tokenizer = CharTokenizer("abc", [END_OF_TEXT])
    config = ModelConfig(vocab_size=4, d_model=16, num_layers=2, num_heads=2, max_seq_len=8, document_mask=True)
    model = random_model(config)
    losses = [each.nats for each in token_losses(model, tokenizer, "abcab")]
    alone = model(torch.tensor([[0, 1, 2, 0]]))[0].double().log_softmax(dim=-1)
    assert losses[1:] == pytest.approx([-alone[place, token].item() for place, token in enumerate([1, 2, 0, 1])])


def test_only_the_beginning_of_a_long_text_is_read(capsys):
    tokenizer = CharTokenizer("ab")
    model = random_model(ModelConfig(vocab_size=2, d_model=16, num_layers=1, num_heads=2, max_seq_len=8))
    whole, part = token_losses(model, tokenizer, "ab" * 20), token_losses(model, tokenizer, "ab" * 20, most=9)
    assert part == whole[:9]
    assert "reading the first 9 of the text's 40 tokens" in capsys.readouterr().err
