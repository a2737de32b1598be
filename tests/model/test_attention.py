"""Attention: the two kernels against loops over heads, queries and keys, and masks against their definition."""

import math

import pytest
import torch

from tinylm.model import ModelConfig
from tinylm.model.attention import Attention, attend_fused, attend_plain, visible_keys

H, E = 4, 6
EXACT = dict(rtol=0.0, atol=1e-10)  # for float64


def is_visible(query, key, window=None, documents=None):
    """The definition of visibility for one query and one key, given by position."""
    return (
        key <= query
        and (window is None or query - key < window)
        and (documents is None or documents[query] == documents[key])
    )


def brute_force_mask(num_queries, num_keys, window=None, documents=None):
    T, S = num_queries, num_keys
    rows = [None] if documents is None else documents.tolist()
    table = [[[is_visible(t + S - T, s, window, row) for s in range(S)] for t in range(T)] for row in rows]
    return torch.tensor(table)[:, None]  # (B or 1, 1, T, S)


def random_inputs(kv_heads, num_queries, num_keys):
    K, T, S = kv_heads, num_queries, num_keys
    generator = torch.Generator().manual_seed(100 * K + 10 * T + S)
    shapes = (2, H, T, E), (2, K, S, E), (2, K, S, E)
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def with_gradients(attend, inputs):
    """The output, and the gradients of its inner product with a fixed random tensor."""
    output = attend(*inputs)
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=output.dtype)
    return [output.detach(), *torch.autograd.grad((output * probe).sum(), inputs)]


def attend_by_loops(query, key, value, mask):
    """The sums of the paper, one head, query and key at a time."""
    B, _, T, _ = query.shape
    K, S = key.shape[1:3]
    mask = mask.expand(B, 1, T, S)
    output = []
    for b in range(B):
        for h in range(H):
            k = h * K // H
            for t in range(T):
                keys = [s for s in range(S) if mask[b, 0, t, s]]
                odds = [((query[b, h, t] * key[b, k, s]).sum() / math.sqrt(E)).exp() for s in keys]
                total = sum(odds)
                output.append(sum(o / total * value[b, k, s] for o, s in zip(odds, keys, strict=True)))
    return torch.stack(output).view(B, H, T, E)


DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [5, 2, 2, 2, 2, 9, 9]])
CASES = [
    pytest.param(K, T, S, window, documents, id=f"K{K}-T{T}-S{S}-window{window}-{'packed' if packed else 'single'}")
    for K in (4, 2, 1)
    for T, S in ((7, 7), (3, 7), (1, 7), (1, 1))
    for window in (None, 1, 3, 7, 9)
    for packed, documents in ((False, None), (True, DOCUMENTS))
    if not packed or T == S == 7
]


@pytest.mark.parametrize(("kv_heads", "num_queries", "num_keys", "window", "documents"), CASES)
def test_both_kernels_match_loops_in_outputs_and_gradients(kv_heads, num_queries, num_keys, window, documents):
    inputs = random_inputs(kv_heads, num_queries, num_keys)
    visible = visible_keys(num_queries, num_keys, window=window, documents=documents)
    mask = brute_force_mask(num_queries, num_keys, window, documents)
    expected = with_gradients(lambda q, k, v: attend_by_loops(q, k, v, mask), inputs)
    for attend in (attend_plain, attend_fused):
        found = with_gradients(lambda q, k, v, attend=attend: attend(q, k, v, visible), inputs)
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("num_keys", range(1, 8))
def test_visible_keys_match_their_definition(num_keys):
    """For every number of queries and every window. None, no matrix, stands for the causal mask."""
    S = num_keys
    for T in range(1, S + 1):
        for window in (None, *range(1, S + 2)):
            found = visible_keys(T, S, window=window)
            expected = brute_force_mask(T, S, window)[0, 0]
            assert torch.equal(torch.ones(T, S).tril(S - T).bool() if found is None else found, expected)
    for window in (None, *range(1, S + 2)):
        documents = DOCUMENTS[:, :S]
        found = visible_keys(S, S, window=window, documents=documents)
        assert torch.equal(found, brute_force_mask(S, S, window, documents))


def test_no_mask_is_built_where_causality_alone_decides():
    """Without a matrix the fused kernel skips hidden keys, so a window that hides nothing must not create one."""
    assert visible_keys(7, 7) is None
    assert visible_keys(7, 7, window=7) is None
    assert visible_keys(1, 7) is None
    assert visible_keys(1, 7, window=7) is None


def test_large_scores_do_not_overflow():
    """exp(10⁴) overflows, so the softmax must subtract the maximum. Only the best key then counts."""
    query = torch.full((1, 1, 3, 4), 100.0)
    key = torch.tensor([-100.0, 100.0, 0.0]).view(1, 1, 3, 1).expand(1, 1, 3, 4)
    value = torch.arange(3.0).view(1, 1, 3, 1).expand(1, 1, 3, 4)
    expected = torch.tensor([0.0, 1.0, 1.0]).view(1, 1, 3, 1).expand(1, 1, 3, 4)
    for attend in (attend_plain, attend_fused):
        torch.testing.assert_close(attend(query, key, value, None), expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("attend", [attend_plain, attend_fused])
def test_dropout_preserves_the_expected_attention_weights(attend):
    """With one-hot values the outputs are the weights: each is 0 or w/(1-p), with mean w to five standard errors."""
    torch.manual_seed(0)
    p, draws = 0.25, 4000
    query, key = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    value = torch.eye(4).view(1, 1, 4, 4)
    weights = attend(query, key, value, None)[0, 0]
    many = torch.cat([attend(query.expand(draws, -1, -1, -1), *(x.expand(draws, -1, -1, -1) for x in (key, value)),
                             None, dropout=p)], dim=1)[:, 0]  # fmt: skip
    dropped = many == 0.0
    kept = torch.where(dropped, weights / (1 - p), many)
    torch.testing.assert_close(kept, (weights / (1 - p)).expand_as(many), rtol=1e-5, atol=1e-6)
    error = weights * math.sqrt(p / (1 - p) / draws)  # of the mean of w/(1-p) * Bernoulli(1-p)
    assert ((many.mean(0) - weights).abs() <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("kernel", ["plain", "fused"])
def test_dropout_is_active_in_training_only(kernel):
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=2, d_model=8, num_heads=2, dropout=0.5, attention_kernel=kernel)
    attention, x = Attention(config, layer=0), torch.randn(2, 9, 8)

    def forward():
        return attention(x, None, None, None)

    assert not torch.equal(forward(), forward())
    attention.eval()
    deterministic = forward()
    attention.train().dropout = 0.0
    assert torch.equal(deterministic, forward())
