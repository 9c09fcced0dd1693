"""Where randomness in the data comes from: streams that are named, and the same in every version of NumPy."""

import functools
import hashlib
import threading

import numpy as np

_order_lock = threading.Lock()


@functools.lru_cache(maxsize=64)
def _philox_key(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(f'{seed}/{purpose}'.encode(), digest_size=16).digest(), 'little')


def random_stream(seed: int, purpose: str, number: int) -> np.random.Philox:
    """An independent stream per (seed, purpose, number). NumPy promises the streams of its bit generators for good."""
    return np.random.Philox(key=_philox_key(seed, purpose), counter=number << 128)


@functools.lru_cache(maxsize=4)
def _sort_epoch(seed: int, epoch: int, n: int) -> np.ndarray:
    order = np.argsort(random_stream(seed, 'order', epoch).random_raw(n), kind='stable')
    order.setflags(write=False)
    return order


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the n examples in one epoch, i64[n], read-only. The last four are kept in memory."""
    with _order_lock:  # or every thread would sort for itself at the start of an epoch
        return _sort_epoch(seed, epoch, n)
