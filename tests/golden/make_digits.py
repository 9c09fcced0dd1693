"""Makes mim_jax/data/digits.npz from scikit-learn's copy of the UCI optical digits (CC BY 4.0, E. Alpaydin, C. Kaynak).

Arrays: images u8[1797,8,8] with values 0..16, labels u8[1797], test bool[1797]: 360 of them, each class in proportion.
Run: python tests/golden/make_digits.py
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TEST_SIZE = 360


def choose_test(labels: np.ndarray, size: int) -> np.ndarray:
    """Marks `size` examples, shared among the classes by largest remainder, the lowest Philox draws of each class."""
    counts = np.bincount(labels)
    exact = counts * size / labels.size
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind='stable')[: size - quota.sum()]] += 1
    draws = np.random.Philox(key=0).random_raw(labels.size)
    test = np.zeros(labels.size, bool)
    for label, n in enumerate(quota):
        members = np.flatnonzero(labels == label)
        test[members[np.argsort(draws[members], kind='stable')[:n]]] = True
    return test


if __name__ == '__main__':
    digits = load_digits()
    labels = digits.target.astype(np.uint8)
    path = Path(__file__).parents[2] / 'mim_jax/data/digits.npz'
    np.savez_compressed(path, images=digits.images.astype(np.uint8), labels=labels, test=choose_test(labels, TEST_SIZE))
    print(f'{path}: {path.stat().st_size} bytes')
