"""How many classes a checkpoint's classifier has: a run's dataset decided, and need not be there to look."""

from collections.abc import Mapping

import numpy as np

HEADS = ('params/objectives/classify/', 'params/objectives/probe/')


def count_saved_classes(saved: Mapping[str, np.ndarray]) -> int:
    """K of the classifier, or of every one, in {path: array} of a checkpoint's parameters; 0 where there is none."""
    kernels = [array for path, array in saved.items() if path.startswith(HEADS) and path.endswith('/kernel')]
    return kernels[0].shape[-1] if kernels else 0
