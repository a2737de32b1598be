"""Token shift: by the formula, causal, through a run's files and without a cache."""

import pytest
import torch

import tinylm
from tests.strategies import random_model
from tinylm.bundle import save_bundle
from tinylm.errors import ConfigError
from tinylm.generation import Generator
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.feedforward import FeedForward, SwiGLU
from tinylm.model.token_shift import ShiftedFeedForward
from tinylm.tokenizer import CharTokenizer

V, T, D = 10, 12, 16
SHIFTED = "tinylm.model.token_shift.ShiftedFeedForward"
SHAPE = dict(vocab_size=V, d_model=D, num_layers=2, num_heads=4, max_seq_len=T)


def shifted_model() -> TransformerLM:
    return random_model(ModelConfig(**SHAPE, feedforward=SHIFTED))


@pytest.mark.parametrize(("activation", "kind"), [("swiglu", SwiGLU), ("relu2", FeedForward)])
def test_the_layer_reads_each_vector_and_a_part_of_the_one_before(activation, kind):
    torch.manual_seed(0)
    config = ModelConfig(**SHAPE, activation=activation)
    plain, shifted = kind(config).double(), ShiftedFeedForward(config).double()
    factors = torch.linspace(-1, 1, D).double()
    shifted.layer.load_state_dict(plain.state_dict())
    shifted.factors.data.copy_(factors)
    x = torch.randn(2, 5, D).double()
    mixed = torch.stack([x[:, t] + (factors * x[:, t - 1] if t else 0) for t in range(5)], dim=1)
    torch.testing.assert_close(shifted(x), plain(mixed), rtol=0, atol=1e-12)


def test_the_factors_start_at_zero_so_a_new_model_is_the_plain_one():
    torch.manual_seed(0)
    plain = TransformerLM(ModelConfig(**SHAPE))
    torch.manual_seed(0)
    shifted = TransformerLM(ModelConfig(**SHAPE, feedforward=SHIFTED))
    ids = torch.arange(T)[None] % V
    torch.testing.assert_close(shifted(ids), plain(ids), rtol=0, atol=0)


def test_no_token_is_seen_before_its_time():
    model, ids = shifted_model(), torch.arange(T)[None] % V
    changed = ids.clone()
    changed[0, 7] = 0
    before, after = model(ids)[0], model(changed)[0]
    torch.testing.assert_close(before[:7], after[:7], rtol=0, atol=0)
    assert not torch.allclose(before[7], after[7]) and not torch.allclose(before[8], after[8])


def test_a_stored_model_needs_no_trust_and_generates_as_it_reads(tmp_path, capsys):
    """Prompts of different lengths together, by the definition: the most probable token after the whole text."""
    save_bundle(tmp_path / "m", shifted_model(), CharTokenizer("abcdefghij"))
    model, tokenizer = tinylm.load(tmp_path / "m")
    prompts = ["abc", "d", "ef"]
    found = Generator(model, tokenizer).complete(prompts, max_new_tokens=5, temperature=0)
    assert "decoding without a cache" in capsys.readouterr().err
    for prompt, completion in zip(prompts, found, strict=True):
        ids = tokenizer.encode(prompt)
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert completion.ids == ids[-5:]


def test_documents_that_are_kept_apart_are_not_mixed():
    with pytest.raises(ConfigError, match="document_mask: token shift would mix the documents of a sequence"):
        TransformerLM(ModelConfig(**SHAPE, feedforward=SHIFTED, document_mask=True))
