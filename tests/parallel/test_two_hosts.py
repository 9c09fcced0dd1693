"""Two real processes with four devices each: a global batch is put together from what each of them has read."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PROGRAM = """
import sys
import jax
import numpy as np

port, host = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f'127.0.0.1:{port}', 2, host)
from mim_jax.parallel.hosts import local_rows, to_global
from mim_jax.parallel.mesh import make_mesh, replicated

devices = jax.devices()
assert [d.process_index for d in devices] == [0] * 4 + [1] * 4
mixed = [devices[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]
whole = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
held = []
for order in (devices, mixed):
    for sizes in ((8, 1, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)):
        mesh = make_mesh(*sizes, devices=order)
        rows = local_rows(mesh, 16)
        batch = to_global(mesh, {'image': whole[rows], 'row': rows.astype(np.int32)})
        copy = jax.jit(lambda batch: batch, out_shardings=replicated(mesh))(batch)
        np.testing.assert_array_equal(np.asarray(copy['image']), whole)
        np.testing.assert_array_equal(np.asarray(copy['row']), np.arange(16))
        held.append(rows.tolist())
print(held)
jax.distributed.shutdown()
"""


@pytest.mark.slow
def test_rows_meet_their_devices_whatever_their_order():
    """Contiguous shares; rows of a mesh that alternates between the hosts; the same rows twice."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    environment = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'PYTHONPATH': str(REPO)}
    command = [sys.executable, '-c', PROGRAM, str(port)]
    hosts = [
        subprocess.Popen([*command, str(host)], env=environment, stdout=subprocess.PIPE, text=True) for host in (0, 1)
    ]
    try:
        first, second = (json.loads(host.communicate(timeout=300)[0].splitlines()[-1]) for host in hosts)
    finally:
        for host in hosts:
            host.kill()
    assert first[0] == list(range(8))
    assert second[0] == list(range(8, 16))
    assert first[4] == [0, 1, 4, 5, 8, 9, 12, 13]  # every other device is here
    assert second[4] == [2, 3, 6, 7, 10, 11, 14, 15]
    assert first[3] == second[3] == first[7] == second[7] == list(range(16))
