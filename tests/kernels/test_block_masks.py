"""Block-sparse masks against the dense ones, with PyTorch's unfused FlexAttention standing in for its GPU kernel.

FlexAttention refuses gradients on a CPU, where its kernel has none; the unfused computation, which is PyTorch's own
reference for the kernel, has them. That check is therefore taken out.
"""

import copy
import itertools
import pickle
import re

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask, create_mask

from tests.model.test_attention import DOCUMENTS, brute_force_mask, with_gradients
from tinylm.analysis.attention import attention_maps
from tinylm.kernels import block_masks
from tinylm.kernels.block_masks import attend_blocks, block_mask, use_block_masks
from tinylm.known import unknown_part
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.attention import Attention, attend_fused, attend_plain, visible_keys

pytestmark = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile",
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # by Dynamo
    "ignore:.*autograd.function.Function.* should not be instantiated",  # by FlexAttention under Dynamo
)
T = 150  # more than a block, and not a multiple of it
SHAPE = dict(vocab_size=11, d_model=64, num_layers=2, num_heads=4, max_seq_len=T, document_mask=True)
FORMS = {
    "documents": {},
    "windows": dict(sliding_window=20),
    "pattern": dict(sliding_window=20, layer_pattern="SL"),
    "grouped": dict(num_kv_heads=2, attention_scale=0.3),
    "checkpointed": dict(sliding_window=20, layer_pattern="SL", activation_checkpointing=True),
}


@pytest.fixture
def unfused(monkeypatch):
    """The sparse path on a CPU, without compilation."""
    monkeypatch.setattr(block_masks, "DEVICES", ("cpu",))
    monkeypatch.setattr(block_masks, "TYPES", (torch.float32, torch.float64))
    monkeypatch.setattr(block_masks, "compiled", lambda function: function)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)


@pytest.fixture
def masks(monkeypatch):
    """The masks that were made since: of each, its form."""
    made = []

    def recorded(function):
        return lambda *arguments: made.append(function(*arguments)) or made[-1]

    monkeypatch.setattr(block_masks, "block_mask", recorded(block_masks.block_mask))
    monkeypatch.setattr(block_masks, "visible_keys", recorded(block_masks.visible_keys))
    return made


def batch(rows=2, seed=0, length=T):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(11, (2, rows, length), generator=generator)
    documents = (torch.rand(rows, length, generator=generator) < 0.05).cumsum(1)
    return ids[0], ids[1], documents


def network(**fields):
    torch.manual_seed(0)
    return TransformerLM(ModelConfig(**SHAPE | fields)).double()


def loss_and_gradients(model, forward=None, documents=True, seed=0):
    ids, targets, numbers = batch(seed=seed)
    model.zero_grad()
    loss = (forward or model)(ids, documents=numbers if documents else None, targets=targets)
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in model.parameters())]


@pytest.mark.parametrize("window", [None, 1, 3, 7, 9])
@pytest.mark.parametrize("length", range(1, 8))
def test_the_rule_of_a_block_mask_is_the_definition(unfused, window, length):
    for documents in (None, DOCUMENTS[:, :length]):
        mask = block_mask(length, window, documents, "cpu")
        found = create_mask(mask.mask_mod, None if documents is None else 2, None, length, length, "cpu")
        assert torch.equal(found, brute_force_mask(length, length, window, documents))


@pytest.mark.parametrize(("kv_heads", "scale"), [(4, None), (2, 0.3), (1, None)])
@pytest.mark.parametrize(("window", "packed"), [(None, True), (20, True), (20, False), (140, True)])
def test_sparse_attention_equals_the_formula_in_outputs_and_gradients(unfused, kv_heads, scale, window, packed):
    generator = torch.Generator().manual_seed(kv_heads)
    shapes = (2, 4, T, 16), (2, kv_heads, T, 16), (2, kv_heads, T, 16)
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    documents = batch()[2] if packed else None
    dense, blocks = visible_keys(T, T, window, documents), block_mask(T, window, documents, "cpu")
    expected = with_gradients(lambda q, k, v: attend_plain(q, k, v, dense, 0.0, scale), inputs)
    found = with_gradients(lambda q, k, v: attend_blocks(q, k, v, blocks, 0.0, scale), inputs)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_training_with_block_masks_equals_training_with_dense_ones(unfused, masks, form):
    model = network(**FORMS[form])
    expected = loss_and_gradients(model)
    use_block_masks(model)
    torch.testing.assert_close(loss_and_gradients(model), expected, rtol=1e-10, atol=1e-10)
    assert len(masks) == len(model.masks) and all(isinstance(mask, BlockMask) for mask in masks)


@pytest.mark.parametrize("form", ["pattern", "checkpointed"])
@pytest.mark.slow
def test_block_masks_are_part_of_one_compiled_program(unfused, form):
    """No graph break, and no new program for other documents. No dense mask is in it."""
    model, graphs = network(**FORMS[form]), []
    expected = [loss_and_gradients(model, seed=seed) for seed in range(3)]
    use_block_masks(model)

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    forward = torch.compile(model.forward, backend=backend, fullgraph=True)
    for seed in range(3):
        found = loss_and_gradients(model, forward, seed=seed)
        torch.testing.assert_close(found, expected[seed], rtol=1e-10, atol=1e-10)
    assert len(graphs) == 1
    code = "".join(each.code for each in graphs[0].modules() if hasattr(each, "code"))
    assert "flex_attention" in code and "scaled_dot_product" not in code


@pytest.mark.slow
def test_a_compiled_program_fits_other_batch_sizes_and_lengths(unfused):
    """Batches of pairs differ in both. The second shape gives symbolic sizes, which fit the third."""
    model, graphs = network(sliding_window=20, num_layers=1), []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    for rows, length in ((2, 150), (3, 140), (4, 135)):
        ids, targets, documents = batch(rows=rows, length=length)
        model.visible_keys = visible_keys
        expected = model(ids, documents=documents, targets=targets)
        use_block_masks(model)
        forward = torch.compile(model.forward, backend=backend, fullgraph=True)
        found = forward(ids, documents=documents, targets=targets)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert len(graphs) == 2


def test_windows_without_documents_are_sparse_too(unfused, masks):
    model = network(sliding_window=20)
    expected = loss_and_gradients(model, documents=False)
    use_block_masks(model)
    torch.testing.assert_close(loss_and_gradients(model, documents=False), expected, rtol=1e-10, atol=1e-10)
    assert [type(mask) for mask in masks] == [BlockMask]


def test_causal_attention_needs_no_mask_of_either_kind(unfused, masks):
    model = network(sliding_window=T)
    use_block_masks(model)
    loss_and_gradients(model, documents=False)
    assert masks == [None]


class OwnAttention(Attention):
    def forward(self, x, visible, rotary, cache):
        assert visible is None or isinstance(visible, torch.Tensor)
        return super().forward(x, visible, rotary, cache)


def own_layer(model):
    layer = OwnAttention(model.config, 1).double()
    layer.load_state_dict(model.blocks[1].attention.state_dict())
    model.blocks[1].attention = layer


def own_kernel(model):
    def attend(query, key, value, visible, dropout, scale):
        return attend_plain(query, key, value, visible.logical_and(visible), dropout, scale)

    model.blocks[1].attention.attend = attend


def narrow_blocks(model):
    model.config = ModelConfig(**SHAPE | dict(num_heads=4, d_head=8))


@pytest.mark.parametrize("change", [own_layer, own_kernel, narrow_blocks])
def test_other_code_is_given_dense_masks(unfused, masks, change):
    model = network()
    expected = loss_and_gradients(model)
    use_block_masks(model)
    change(model)
    torch.testing.assert_close(loss_and_gradients(model), expected, rtol=1e-10, atol=1e-10)
    assert [type(mask) for mask in masks] == [torch.Tensor]


def test_dropout_of_attention_weights_needs_dense_masks(unfused, masks):
    model = network(dropout=0.1)
    use_block_masks(model)
    torch.manual_seed(1)
    found = loss_and_gradients(model)
    plain = network(dropout=0.1)
    torch.manual_seed(1)
    torch.testing.assert_close(found, loss_and_gradients(plain), rtol=1e-10, atol=1e-10)
    assert [type(mask) for mask in masks] == [torch.Tensor]
    for block in model.blocks:
        block.attention.dropout = 0.0  # as DropoutAnnealing does
    loss_and_gradients(model)
    assert isinstance(masks[-1], BlockMask)


@pytest.mark.parametrize(
    ("length", "training", "kind"),
    [(T, False, BlockMask), (T - 1, False, torch.Tensor), (T - 1, True, BlockMask), (128, True, torch.Tensor)],
)
def test_evaluation_compiles_for_whole_contexts_only(unfused, masks, length, training, kind):
    model = network().train(training)
    ids, _, documents = batch(length=length)
    with torch.no_grad():
        expected = model(ids, documents=documents)
        use_block_masks(model)
        torch.testing.assert_close(model(ids, documents=documents), expected, rtol=1e-10, atol=1e-10)
    assert [type(mask) for mask in masks] == [kind]


def test_a_cache_is_read_with_dense_masks(unfused, masks):
    model = network(sliding_window=20).eval()
    ids, _, _ = batch()
    expected = model(ids)
    use_block_masks(model)
    cache = model.make_cache(2, spare=T)
    found = torch.cat([model(ids[:, :140], cache=cache), model(ids[:, 140:], cache=cache)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not any(isinstance(mask, BlockMask) for mask in masks)


def test_attention_maps_of_a_model_with_block_masks_are_those_of_its_weights(unfused):
    model = network(sliding_window=20, layer_pattern="SL")
    ids, _, documents = batch()
    expected = attention_maps(model, ids, documents)
    use_block_masks(model)
    assert torch.equal(attention_maps(model, ids, documents), expected)


def test_a_model_with_block_masks_is_standard_and_can_be_copied():
    model = network()
    use_block_masks(model)
    assert unknown_part(model) is None
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert unknown_part(twin) is None and twin.visible_keys.model is twin
    model.visible_keys = lambda *arguments, **options: None
    assert "visible_keys is <lambda>" in unknown_part(model)


def test_a_cpu_keeps_dense_masks(masks):
    model = network().float()
    use_block_masks(model)
    loss_and_gradients(model)
    assert [type(mask) for mask in masks] == [torch.Tensor]


@pytest.mark.parametrize("what", [flex_attention.create_block_mask, flex_attention.flex_attention])
def test_masks_are_dense_where_they_cannot_be_compiled(unfused, monkeypatch, capsys, what):
    def compiled(function):
        if function is what:
            error = RuntimeError("Failed to find C compiler\nset CC")
            raise BackendCompilerFailed(torch.compile, error, None)
        return function

    model = network()
    expected = loss_and_gradients(model)
    use_block_masks(model)
    monkeypatch.setattr(block_masks.VisibleBlocks, "fails", False)
    monkeypatch.setattr(block_masks, "compiled", compiled)
    for _ in range(2):
        torch.testing.assert_close(loss_and_gradients(model), expected, rtol=1e-10, atol=1e-10)
    message = "tinylm: attention masks are dense, since FlexAttention cannot be compiled: Failed to find C compiler\n"
    assert capsys.readouterr().err == message


def test_other_errors_of_attention_are_not_taken_for_those_of_the_compiler(unfused, monkeypatch):
    def compiled(function):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = network()
    use_block_masks(model)
    monkeypatch.setattr(block_masks, "compiled", compiled)
    with pytest.raises(torch.OutOfMemoryError):
        loss_and_gradients(model)
    assert not block_masks.VisibleBlocks.fails


def test_making_a_block_mask_does_not_wait_for_the_device(unfused):
    """Fake tensors have no values, so that reading one, which a CUDA graph forbids, would raise."""
    with FakeTensorMode():
        documents = torch.zeros(3, 400, dtype=torch.long)
        mask = block_mask(400, 30, documents, "cpu")
        assert mask.kv_indices.shape == (3, 1, 4, 4)
        with pytest.raises(Exception, match=r"data-dependent|DataDependent|nonzero|_local_scalar_dense"):
            documents.max().item()


def test_blocks_that_hide_all_keys_are_skipped(unfused):
    """Three documents of 256 tokens each: of every 128 x 128 blocks the diagonal and one below it in each document."""
    documents = torch.arange(768)[None] // 256
    mask = block_mask(768, None, documents, "cpu")
    counts = mask.kv_num_blocks + mask.full_kv_num_blocks
    assert counts.flatten().tolist() == [1, 2] * 3 and mask.full_kv_num_blocks.flatten().tolist() == [0, 1] * 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # as the compiler is imported
def test_a_compiled_block_mask_stores_no_matrix_of_positions():
    from torch._inductor.utils import run_and_get_code

    length, rows = 500, 3
    documents = batch(rows=rows, length=length)[2]
    mask, (code,) = run_and_get_code(block_mask, length, 30, documents, "cpu")
    shapes = re.findall(r"empty_strided_cpu\(\(([\d, ]*)\)", code)
    sizes = [torch.Size(map(int, re.findall(r"\d+", shape))).numel() for shape in shapes]
    assert sizes and max(sizes) <= rows * 4 * 5  # blocks, and a spare column
    found = create_mask(mask.mask_mod, rows, None, length, length, "cpu")
    assert torch.equal(found, visible_keys(length, length, 30, documents))


def test_kernels_that_stand_for_each_other_take_the_same_arguments():
    inputs = [torch.randn(1, 2, 5, 16) for _ in range(3)]
    for mask, scale in itertools.product((None, visible_keys(5, 5, 2)), (None, 0.5)):
        found = attend_blocks(*inputs, mask, 0.0, scale)
        assert torch.equal(found, attend_fused(*inputs, mask, 0.0, scale))
