"""Whole states under another library's names, in ours: what the parity tests compare. NumPy only, but for the package."""

from collections.abc import Mapping

import numpy as np

from mim_jax.interop.formats import find_paths
from mim_jax.weights.layout import Arrays, Layout, to_ours


def rename_all(state: Mapping[str, np.ndarray], layout: Layout) -> Arrays:
    """{our path: array} of everything in a state that the layout has a place for; weights, gradients or moments."""
    return to_ours(state, layout, find_paths(state, layout))
