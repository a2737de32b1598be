"""True probabilities of words and tokens: against all texts of small grammars, and against the stories' own."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from tinylm.analysis.charts import draw_choices
from tinylm.analysis.choices import Surprise, choices, surprises, token_truths
from tinylm.data.grammar.parse import Grammar, split_words
from tinylm.data.grammar.stories import log_prob, story, story_grammar
from tinylm.errors import DataError
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer

# "Ann" begins "Anna", a hidden choice shows late, and a text may end early
RULES = {
    "text": {"<who=name> met <name>.": 3, "<who=name> met <who> again.": 1, "<a_name>": 2},
    "name": ["Ann", "Anna", "Bo"],
    "a_name": ["Ann", "Ann met Bo."],
}
GRAMMAR = Grammar(RULES)


def all_texts() -> dict[str, float]:
    """Every text of the grammar and its probability, by hand."""
    found: dict[str, float] = defaultdict(float)
    for who in RULES["name"]:
        for other in RULES["name"]:
            found[f"{who} met {other}."] += 3 / 6 / 9
        found[f"{who} met {who} again."] += 1 / 6 / 3
    for text in RULES["a_name"]:
        found[text] += 2 / 6 / 2
    return found


def tokenizers():
    merged = [(65, 110), (256, 110), (257, 97)]  # An, Ann, Anna
    return [ByteTokenizer(), CharTokenizer("AnaBomet gi.", [END_OF_TEXT]), BPETokenizer(merged)]


def test_word_probabilities_against_all_texts():
    texts = all_texts()
    assert math.fsum(texts.values()) == pytest.approx(1)
    for text in texts:
        words = [*split_words(text), ""]
        for place, found in enumerate(GRAMMAR.word_probabilities(text)):
            same = {t: p for t, p in texts.items() if split_words(t)[:place] == words[:place]}
            expected: dict[str, float] = defaultdict(float)
            for other, share in same.items():
                expected[[*split_words(other), ""][place]] += share / math.fsum(same.values())
            assert found == pytest.approx(expected)
            assert math.fsum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda each: type(each).__name__)
def test_token_truths_against_all_texts(tokenizer):
    """The probability of a token is that of the texts that begin with the tokens up to it, over those up to before."""
    texts = {text: (tokenizer.encode(text), share) for text, share in all_texts().items()}
    for text, (ids, _) in texts.items():
        shares = [
            math.fsum(share for other, share in texts.values() if other[:count] == ids[:count])
            for count in range(len(ids) + 1)
        ]
        expected = -np.diff(np.log(shares))
        np.testing.assert_allclose(token_truths(GRAMMAR, tokenizer, text), expected, atol=1e-12)


def test_truths_of_a_story_multiply_to_its_probability():
    tokenizer = ByteTokenizer([END_OF_TEXT])
    for number in range(3):
        text = story(5, number)
        truths = token_truths(story_grammar(), tokenizer, text)
        assert truths.sum() == pytest.approx(-log_prob(text), abs=1e-9)
        np.testing.assert_allclose(truths, -np.diff(story_grammar().prefix_log_probs(text)), atol=1e-9)  # of letters
        for found in story_grammar().word_probabilities(text):
            assert math.fsum(found.values()) == pytest.approx(1, abs=1e-12)


def test_other_texts_and_tokens_across_words_are_refused():
    with pytest.raises(DataError, match=r"generates no text that continues with ' met'"):
        token_truths(GRAMMAR, ByteTokenizer(), "Bo met Cy.".replace("Cy", "Ann") + " met")
    with pytest.raises(DataError, match="spans several words"):
        token_truths(GRAMMAR, Spanning(), "Ann met Bo.")


class Spanning(ByteTokenizer):
    """A tokenizer with one token for each text."""

    def encode(self, text, **options):
        return [len(text)]


def test_surprises_of_a_uniform_model_by_hand():
    """A model with zero weights gives each of 257 tokens the same probability."""
    tokenizer = ByteTokenizer([END_OF_TEXT])
    model = TransformerLM(ModelConfig(vocab_size=257, d_model=8, num_layers=1, num_heads=2, max_seq_len=32))
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    found = surprises(model, tokenizer, GRAMMAR, "Bo met Bo.")
    assert [each.id for each in found] == [*b"Bo met Bo."]
    assert [each.model for each in found] == pytest.approx([math.log(257)] * 10)
    assert found[0].truth == pytest.approx(-math.log((3 / 6 + 1 / 6) / 3))  # of the names, unless a_name
    assert found[1].truth == 0.0


def test_the_picture_shows_model_and_truth_at_the_choices():
    found = [Surprise(0, 0.01, 0.02), Surprise(1, 1.0, 0.5), Surprise(0, 0.0, 2.0), Surprise(2, 0.1, 0.0)]
    places = choices(found)
    assert places == [1, 2, 3]
    axes = draw_choices(found, places, ["a", "·$b$", "·c"], "t").axes[0]
    truth, model = axes.lines[-2:]
    assert [*truth.get_xdata()] == [0.5, 2.0, 0.0] and [*model.get_xdata()] == [1.0, 0.0, 0.1]
    assert [label.get_text() for label in axes.get_yticklabels()] == [r"a \$b\$", r"\$b\$a", "a c"]
