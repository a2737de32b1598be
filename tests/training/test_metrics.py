import math

import pytest
import torch
import torch.nn.functional as F

from tests import processes
from tests.training import ranks
from tinylm.training.metrics import IGNORE, TextMetrics, TokenMetrics

LENGTHS = torch.tensor([1, 2, 3, 4, 1])


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows in (3, 1, 2, 5):
        targets = torch.randint(5, (rows, 7), generator=generator)
        targets[0, 4:] = IGNORE
        found.append((torch.randn(rows, 7, 5, generator=generator), targets))
    return found


def test_sums_match_one_pass_over_all_tokens():
    logits = torch.cat([each.flatten(0, 1) for each, _ in batches()])
    targets = torch.cat([each.flatten() for _, each in batches()])
    metric = TextMetrics(LENGTHS)
    for each in batches():
        metric.update(*each, log_prob=-2.0)
    found, counts = metric.compute(), targets != IGNORE
    nats = F.cross_entropy(logits.double(), targets, ignore_index=IGNORE, reduction="sum").item()
    assert found["loss"] == pytest.approx(nats / counts.sum().item(), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bpb"] == pytest.approx(nats / math.log(2) / LENGTHS[targets[counts]].sum().item(), rel=1e-6)
    assert found["accuracy"] == (logits.argmax(-1) == targets)[counts].sum().item() / counts.sum().item()
    assert found["floor"] == 8.0 / counts.sum().item()


def test_the_loss_of_each_source_is_that_of_its_batches_alone():
    metric, web = TextMetrics(LENGTHS, sources=["web", "books"]), TextMetrics(LENGTHS)
    for batch, source in zip(batches(), ["web", "books", "books", "web"], strict=True):
        metric.update(*batch, source=source)
        if source == "web":
            web.update(*batch)
    found, nats, tokens = metric.compute(), web.nats.item(), web.tokens.item()
    assert found["loss_web"] == pytest.approx(web.compute()["loss"], rel=1e-12)
    rest = (metric.nats.item() - nats) / (metric.tokens.item() - tokens)
    assert found["loss_books"] == pytest.approx(rest, rel=1e-12)
    assert found["loss"] == pytest.approx(metric.nats.item() / metric.tokens.item())


def test_floor_is_left_out_if_one_batch_has_none():
    metric = TextMetrics(LENGTHS)
    (first, second, *_) = batches()
    metric.update(*first, log_prob=-2.0)
    metric.update(*second)
    assert {"floor", "excess"}.isdisjoint(metric.compute())


def test_states_are_float64_and_in_no_state_dict():
    metric = TokenMetrics()
    assert {metric.nats.dtype, metric.tokens.dtype, metric.hits.dtype} == {torch.float64}
    assert not metric.state_dict()


def test_reset_forgets_what_was_added():
    metric = TokenMetrics()
    metric.update(*batches()[0])
    metric.reset()
    metric.update(*batches()[1])
    other = TokenMetrics()
    other.update(*batches()[1])
    assert metric.compute() == other.compute()


def test_two_processes_compute_what_one_does(tmp_path):
    (one,) = processes.run_ranks(1, ranks.measure, out=tmp_path)
    first, second = processes.run_ranks(2, ranks.measure, out=tmp_path)
    assert first == second
    assert first == pytest.approx(one, rel=1e-14)
