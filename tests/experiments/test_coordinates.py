"""The coordinate check: slopes of activation changes over the width, where theory gives them."""

import pytest
import torch

from tinylm.data import Batch
from tinylm.experiments.coordinates import Coordinates, at_width, check_coordinates
from tinylm.model import ModelConfig
from tinylm.optim import OptimizerConfig

WIDTHS = (32, 64, 128)
BASE = ModelConfig(vocab_size=48, d_model=32, num_layers=2, num_heads=2, max_seq_len=24, d_ff=96)
IDS = torch.randint(0, 48, (2, 8, 25), generator=torch.Generator().manual_seed(0))
BATCHES = [Batch(ids[:, :-1], ids[:, 1:], 8 * 24) for ids in IDS]


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(norm_placement="post", tie_embeddings=False, activation="gelu", norm="layernorm", bias=True),
        dict(residual="parallel", num_kv_heads=1, positional_encoding="learned", zero_init_output=True, qk_norm=False),
    ],
    ids=["preset", "post", "parallel"],
)
def test_changes_of_activations_depend_on_the_width_without_mup_only(name, fields):
    """The slope is 0 in the limit, of networks as narrow as these a third at most.

    Without muP a step changes the output of a matrix by lr * width under AdamW and by lr * √width under Muon, and that
    of a layer of several matrices, or the logits, by more, unless a norm follows.
    """
    base, settings = ModelConfig(**BASE.to_dict() | fields), OptimizerConfig(name=name, lr=0.003)
    found = {
        mup: check_coordinates([at_width(base, width, mup=mup) for width in WIDTHS], settings, BATCHES, 2).slopes
        for mup in (True, False)
    }
    assert max(map(abs, found[True].values())) < 0.35, found[True]
    assert max(found[False].values()) > 0.7, found[False]


def test_a_config_at_another_width_keeps_its_heads_and_ratios():
    base = ModelConfig(vocab_size=9, d_model=96, num_layers=1, num_heads=4, num_kv_heads=2, d_ff=200)
    wide = at_width(base, 192, mup=True)
    assert (wide.num_heads, wide.kv_heads, wide.head_dim, wide.ff_width) == (8, 4, 24, 400)
    assert wide.mup_base_width == 96 and at_width(base, 192, mup=False).mup_base_width is None
    narrow = at_width(base, 64, mup=True)  # 64 / 24 is no whole number of heads
    assert (narrow.num_heads, narrow.kv_heads, narrow.head_dim, narrow.ff_width) == (2, 1, 24, 133)


def test_slopes_are_those_of_power_laws():
    laws = {"constant": 0.0, "root": 0.5, "steep": -0.3}
    found = Coordinates(
        widths=WIDTHS, changes={name: tuple(7 * width**power for width in WIDTHS) for name, power in laws.items()}
    )
    assert found.slopes == pytest.approx(laws)
    assert not found.passes
    assert Coordinates(widths=WIDTHS, changes={"constant": (1.0, 1.1, 0.9)}).passes
