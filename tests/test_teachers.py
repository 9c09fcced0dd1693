"""Momentum schedules, as 1 - momentum, against their formulas in float64."""

import math

import numpy as np
import pytest

from mim_jax.teachers import constant_momentum, cosine_momentum


@pytest.mark.parametrize('step', [0, 1, 17, 500, 998, 1000])
def test_cosine_momentum(step):
    momentum = 1 + 0.5 * (0.996 - 1) * (1 + math.cos(math.pi * step / 1000))
    np.testing.assert_allclose(cosine_momentum(0.996, 1000)(step), 1 - momentum, rtol=1e-4, atol=1e-11)


def test_constant_momentum_keeps_its_digits():
    np.testing.assert_allclose(constant_momentum(0.99999)(7), 1e-5, rtol=1e-4)
