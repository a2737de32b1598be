"""Operations against PyTorch's counter, parameters against the network's, memory against PyTorch's profiler."""

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.strategies import model_configs, random_ids, random_model
from tinylm.adapt import quantize
from tinylm.analysis.gradients import part_of
from tinylm.analysis.profile import kept_bytes, profile
from tinylm.errors import ConfigError
from tinylm.kernels.rms_norm import tune_for_training
from tinylm.model import ModelConfig, TransformerLM, parameter_count, preset

few = settings(max_examples=25, deadline=None)
plain = model_configs(attention_kernel=st.just("plain"))


@few
@given(plain, st.integers(1, 3), st.integers(0, 11))
def test_operations_match_pytorchs_counter(config, rows, shorter):
    length = max(config.max_seq_len - shorter, 1)
    model, ids = random_model(config), random_ids(config, rows, length)
    with FlopCounterMode(display=False) as forward:
        logits = model(ids)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    found = profile(model, length)
    tokens = rows * length
    assert (found.forward * tokens, found.backward * tokens) == (forward.get_total_flops(), backward.get_total_flops())


@few
@given(plain)
def test_operations_of_each_part_match_pytorchs_counter(config):
    """Parts are compared with the modules of that name; the attention kernel is what its projections leave."""
    model, ids = random_model(config), random_ids(config, 1)
    with FlopCounterMode(display=False) as counter:
        model(ids)
    counts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}

    def counted(ending: str) -> int:
        return sum(count for name, count in counts.items() if name.endswith(ending))

    T = config.max_seq_len
    found = {part.name: part.flops(T, T) for part in profile(model).parts}
    projections = sum(counted(f"attention.{name}") for name in ("query", "key", "value", "output"))
    assert found["attention: projections"] == projections
    assert found["attention: scores, values"] == counted(".attention") - projections
    assert found["feed-forward"] == counted(".feedforward")
    assert found["head"] == counted(".head")


@few
@given(model_configs())
def test_parameters_of_each_part_match_the_network(config):
    model = TransformerLM(config)
    found = {part.name: part.parameters for part in profile(model).parts}
    expected = dict.fromkeys(found, 0)
    for name, weight in model.named_parameters():
        kind = part_of(name).rpartition(".")[2]
        kind = {"attention": "attention: projections", "feedforward": "feed-forward"}.get(kind, kind)
        expected["norms" if "norm" in name else kind] += weight.numel()
    assert found == expected
    assert profile(model).parameters == parameter_count(config) == sum(w.numel() for w in model.parameters())


@few
@given(model_configs())
def test_cache_size_matches_a_real_cache(config):
    model = random_model(config)
    found, cache = profile(model), model.make_cache(1)
    assert found.cache_bytes == cache.num_bytes == found.cache_bytes_per_token * (cache.num_slots + 1)


RANDOM_STATE = torch.get_rng_state().nbytes


@pytest.mark.parametrize(
    ("options", "elsewhere"),
    [
        (dict(), 0),
        (dict(dropout=0.1), 0),
        (dict(attention_kernel="plain", num_kv_heads=1), 2 * 8),  # 1/√E, in each layer
        (dict(activation_checkpointing=True), 2 * RANDOM_STATE),  # saved for the recomputation
        (dict(norm="layernorm", activation="gelu", bias=True, qk_norm=False, positional_encoding="learned"), 0),
        (dict(norm_placement="post", activation="relu2", tie_embeddings=False, positional_encoding="none"), 0),
    ],
    ids=str,
)
def test_kept_memory_matches_pytorchs_profiler(options, elsewhere, monkeypatch):
    """Memory allocated and not freed during a forward pass is kept, except for the loss."""
    monkeypatch.setitem(os.environ, "KINETO_LOG_LEVEL", "5")  # silences the profiler's library
    shape = dict(vocab_size=50, d_model=32, num_layers=2, num_heads=2, max_seq_len=24)
    model = TransformerLM(ModelConfig(**shape | options)).train()
    tune_for_training(model)
    ids = random_ids(model.config, 1)
    model(ids)  # creates the rotary table, which is kept
    table = 2 * 24 * 8 * 4 if model.config.positional_encoding == "rotary" else 0
    watched = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=watched, profile_memory=True, acc_events=True) as profiler:
        loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    stayed = sum(event.self_cpu_memory_usage for event in profiler.events())
    assert kept_bytes(model, ids) == stayed - loss.nbytes + table - elsewhere  # the loss keeps the graph alive


@few
@given(model_configs(dropout=st.just(0.2)), st.booleans())
def test_measuring_kept_memory_changes_nothing(config, training):
    model, state = random_model(config).train(training), torch.get_rng_state()
    kept_bytes(model, random_ids(config))
    assert model.training == training and torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


def test_intensity_by_hand():
    """One layer, D = 4, one head, F = 8, V = 10, ReLU; four bytes per number; T = 2."""
    config = ModelConfig(
        vocab_size=10, d_model=4, num_layers=1, num_heads=1, d_ff=8, max_seq_len=2, activation="relu", qk_norm=False
    )
    found = profile(TransformerLM(config))
    head, feedforward, projections = (
        next(part for part in found.parts if part.name.startswith(name))
        for name in ("head", "feed-forward", "attention: projections")
    )
    # 2 x 40 FLOPs a token; 40 weights, 4 numbers in and 10 out for each token
    assert found.decode_intensity((head,)) == pytest.approx(80 / ((40 + 14) * 4))
    assert found.prefill_intensity((head,)) == pytest.approx(160 / ((40 + 28) * 4))
    assert found.prefill_intensity((feedforward,)) == pytest.approx(2 * 2 * 64 / ((64 + 2 * 24) * 4))
    assert found.prefill_intensity((projections,)) == pytest.approx(2 * 2 * 64 / ((64 + 2 * 32) * 4))
    scores = next(part for part in found.parts if "scores" in part.name)
    # a query of 4, 2 keys and 2 values of 4, 2 scores written and read, 4 numbers out; two products of 2 x 2 x 4 FLOPs
    assert found.decode_intensity((scores,)) == pytest.approx(2 * 2 * 2 * 4 / ((4 + 16 + 4 + 4) * 4))
    whole = (80 + 128 + 128 + 32) / ((54 + 64 + 24 + 64 + 32 + 28) * 4)
    assert found.decode_intensity() == pytest.approx(whole)


def test_decoding_in_a_sliding_window_reads_its_keys_only():
    shape = dict(vocab_size=10, d_model=4, num_layers=1, num_heads=1, max_seq_len=8, qk_norm=False)
    found = profile(TransformerLM(ModelConfig(**shape, sliding_window=3)))
    scores = next(part for part in found.parts if "scores" in part.name)
    # a query of 4, 3 keys and 3 values of 4, 3 scores written and read, 4 numbers out; two products of 2 x 3 x 4 FLOPs
    assert found.decode_intensity((scores,)) == pytest.approx(2 * 2 * 3 * 4 / ((4 + 24 + 6 + 4) * 4))


def test_quantized_weights_count_as_stored_in_intensity():
    model = TransformerLM(
        ModelConfig(vocab_size=10, d_model=8, num_layers=1, num_heads=2, d_ff=16, max_seq_len=4)
    ).eval()
    plain, rounded = profile(model), profile(quantize(model, bits=8))
    for name, outputs in (("attention: projections", 4 * 8), ("feed-forward", 2 * 16 + 8)):
        before, after = (next(part for part in each.parts if part.name == name) for each in (plain, rounded))
        weights = before.weight_bytes / 4
        assert after.weight_bytes == weights + 2 * outputs  # one byte per weight, and a 16-bit scale per output
        assert rounded.decode_intensity((after,)) > plain.decode_intensity((before,))


def test_quantized_weights_count_as_stored_in_memory():
    model = quantize(TransformerLM(preset("tiny", vocab_size=64)).eval(), bits=8)
    stored = {name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}  # tied
    assert profile(model, 4).weight_bytes == sum(tensor.nbytes for tensor in stored.values())


@pytest.mark.parametrize("length", [0, 129])
def test_a_length_out_of_range_is_refused(length):
    with pytest.raises(ConfigError, match=f"length must be from 1 to 128, got {length}"):
        profile(TransformerLM(preset("tiny", vocab_size=64)), length)
