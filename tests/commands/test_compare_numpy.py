"""`tinylm compare-numpy` as a user runs it."""

import pytest
import torch

from tinylm.bundle import save_bundle
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import CharTokenizer


@pytest.fixture
def run(load):
    return load("compare-numpy")


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", "1e-10"), ("float32", "0.0001")])
def test_equal_networks_are_reported_equal(precision, tolerance, run, model):
    code, out, err = run("--model", model, "--precision", precision)
    lines = out.splitlines()
    assert (code, err, lines[-1]) == (0, "", f"all equal within {tolerance}")
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    block = ["attention_norm", "attention", "feedforward_norm", "feedforward"]
    parts = ["embedding", *(f"blocks.0.{part}" for part in block), "blocks.0", "final_norm"]
    assert names[1:9] == [*parts, "head"]
    assert names[9:16] == parts[::-1]
    assert {"embedding.weight", "blocks.0.attention.query_norm.weight"} <= {*names[16:]}
    assert "<" not in out


BLOCKS = {
    "parallel": ["attention_norm", "feedforward_norm", "attention", "feedforward"],
    "parallel_one_norm": ["attention_norm", "attention", "feedforward"],
}


@pytest.mark.parametrize(("residual", "parts"), BLOCKS.items(), ids=BLOCKS)
def test_blocks_of_another_form_are_compared_part_by_part(residual, parts, run, tmp_path):
    shape = dict(vocab_size=3, d_model=16, num_layers=1, num_heads=2, max_seq_len=8, head_bias=True)
    save_bundle(tmp_path / "m", TransformerLM(ModelConfig(**shape, residual=residual)), CharTokenizer("abc"))
    code, out, err = run("--model", tmp_path / "m")
    lines = out.splitlines()
    assert (code, err, lines[-1]) == (0, "", "all equal within 1e-10")
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    expected = ["embedding", *(f"blocks.0.{part}" for part in parts), "blocks.0", "final_norm", "head"]
    assert names[1 : len(expected) + 1] == expected
    assert sum(name == "blocks.0" for name in names) == 2 and "head.bias" in names


FORMS = [
    {},
    dict(norm_placement="post", tie_embeddings=False, positional_encoding="learned"),
    dict(norm_placement="output", layer_pattern="SN", sliding_window=2, qk_norm_width="all", d_head=4),
    dict(residual="parallel", rotary_fraction=0.5, attention_scale=1.0, qkv_bias=True),
]


@pytest.mark.parametrize("form", FORMS)
def test_a_broken_forward_is_located(form, run, tmp_path, monkeypatch):
    """The output of the second block's feed-forward layer is 1% too large."""
    from tinylm.reference import transformer

    shape = dict(vocab_size=3, d_model=16, num_layers=2, num_heads=2, max_seq_len=8)
    torch.manual_seed(0)
    save_bundle(tmp_path / "m", TransformerLM(ModelConfig(**shape, **form)), CharTokenizer("abc"))
    right, calls = transformer.feedforward, []

    def wrong(*arguments):
        y, backward = right(*arguments)
        calls.append(1)
        return (y * 1.01, backward) if len(calls) == 2 else (y, backward)

    monkeypatch.setattr(transformer, "feedforward", wrong)
    code, out, _ = run("--model", tmp_path / "m", "--length", 5, "--batch-size", 2)
    assert code == 0
    assert "the first part to differ by more than 1e-10: blocks.1.feedforward\n" in out


def test_a_broken_backward_is_located(run, model, monkeypatch):
    """Forward is right everywhere, and so are the gradients of all parts after the attention."""
    from tinylm.reference import transformer

    right = transformer.attention

    def wrong(*arguments):
        y, backward = right(*arguments)

        def wrong_backward(dy):
            dx, grads = backward(dy)
            return dx * 1.01, grads

        return y, wrong_backward

    monkeypatch.setattr(transformer, "attention", wrong)
    code, out, _ = run("--model", model)
    assert code == 0
    assert "the first part" not in out
    assert out.splitlines()[-2:] == [
        "the first gradient with respect to a part to differ by more than 1e-10: blocks.0.attention_norm",
        "the first gradient of a parameter to differ by more than 1e-10: blocks.0.attention_norm.weight",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "nowhere"], 66, "nowhere: no such model"),
        (["--length", "17"], 2, "--length must be from 1 to the context, 16, got 17"),
        (["--batch-size", "0"], 2, "--batch-size must be at least 1, got 0"),
        (["--precison", "float32"], 2, "did you mean '--precision'"),
    ],
)
def test_errors_are_one_line(arguments, code, message, run, model):
    found, out, err = run("--model", model, *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("tinylm: error: ") and message in err and err.count("\n") == 1
