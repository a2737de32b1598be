"""Nonlinearities against the C library's erfc: PyTorch could share an error with us."""

import math

import numpy as np
import pytest

from tinylm.reference import fast
from tinylm.reference.feedforward import gelu, sigmoid


@pytest.mark.parametrize("gelu", [gelu, fast.gelu], ids=["plain", "fast"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 4e-15), (np.float32, 4e-7)])
def test_exact_gelu_and_its_slope_match_erfc(gelu, dtype, tolerance):
    x = np.concatenate((np.linspace(-12, 12, 20_001), [0.0, 1e-20, -1e-20, 40.0, -40.0, 1e4, -1e4])).astype(dtype)
    distribution = np.array([math.erfc(-float(each) / math.sqrt(2)) / 2 for each in x])
    wide = x.astype(float)
    y, slope = gelu(x)
    assert y.dtype == slope.dtype == dtype
    assert (np.abs(y - wide * distribution) <= tolerance * np.maximum(1, np.abs(wide))).all()
    expected = distribution + wide * np.exp(-wide * wide / 2) / math.sqrt(2 * math.pi)
    assert np.abs(slope - expected).max() <= tolerance


def test_sigmoid_of_large_numbers_is_0_or_1_without_a_warning():
    with np.errstate(all="raise", under="ignore"):
        found = sigmoid(np.array([-1e4, -math.log(3), 0, math.log(3), 1e4]))
    assert np.abs(found - [0, 0.25, 0.5, 0.75, 1]).max() < 1e-15
