"""Facts of accelerators: memory, and how fast it and the links between devices are."""

from __future__ import annotations

from dataclasses import dataclass

GIB, GB = 2**30, 1e9


@dataclass(frozen=True)
class Chip:
    """Of one JAX device, in bytes and bytes/s; None where it is not known.

    capacity: what the compiler will fill (devices other than TPUs say it themselves); memory: bandwidth of the device's
    memory; links: what a device can send to others of its slice or host, all links one way together; network: its share of
    the host's network cards (between slices).
    """

    capacity: float | None = None
    memory: float | None = None
    links: float | None = None
    network: float | None = None


# The first name found in `device_kind` counts. A device is a chip, save that of TPU7x it is half of one; dense bf16 peaks
# are in training/perf.py. TPU capacities are what the compiler of libtpu 0.0.42 said when a program was too large. The other
# figures are published ones: of TPUs from Google's pages on each version (docs.cloud.google.com/tpu/docs, as stored in 2026;
# links and network are half of "bidirectional" where so stated, a pod's share of its network where only that is); v4's links
# (six of 50 GB/s), all of TPU7x's bandwidths and of NVIDIA's are as remembered. Check yours before you quote a bound.
CHIPS = {
    'TPU v4': Chip(30.75 * GIB, 1200 * GB, 300 * GB, None),
    'TPU v5 lite': Chip(15.75 * GIB, 819 * GB, 200 * GB, 25 / 8 * GB),
    'TPU v5': Chip(95.74 * GIB, 2765 * GB, 600 * GB, 50 / 8 * GB),
    'TPU v6 lite': Chip(31.25 * GIB, 1640 * GB, 400 * GB, 100 / 8 * GB),
    'TPU7x': Chip(94.75 * GIB, 7380 / 2 * GB, 600 / 2 * GB, 100 / 8 / 2 * GB),
    'H200': Chip(None, 4800 * GB, 450 * GB, None),
    'H100 PCIe': Chip(None, 2000 * GB, None, None),
    'H100': Chip(None, 3350 * GB, 450 * GB, None),
    'A100': Chip(None, 2039 * GB, 300 * GB, None),
}


def find_chip(device_kind: str) -> Chip:
    """The facts of a kind of device; a Chip of unknowns where it is not in the table, as a CPU."""
    return next((chip for name, chip in CHIPS.items() if name in device_kind), Chip())
