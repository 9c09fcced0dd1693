"""A run moves between 4, 2 and 1 processes, with FSDP; batches and masks are the same, and so are the losses up to rounding."""

import numpy as np
import pytest
from pod_runs import run_pod, statuses
from program_runs import arguments, read_losses, read_summary, saved_steps, share_compilations

STEPS = 16
PLACES = [(4, 1, 2), (2, 2, 4), (1, 4, 2), (4, 1, 4)]  # processes, devices of each, mesh.fsdp
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


@pytest.mark.parametrize('accumulate', [(1, 1, 1, 1), (1, 2, 4, 1)])
def test_from_four_processes_to_two_to_one_and_back(accumulate, tmp_path):
    """Four sessions of four steps each, at one global batch; in the second case accumulation changes as well.

    `stop` ends a session at its last step: as a signal to one host does, and every host of it agrees.
    """
    workdir, reference = tmp_path / 'run', tmp_path / 'whole'
    settings = {'steps': STEPS, 'checkpoint.every_steps': 4}
    for session, ((hosts, devices, fsdp), parts) in enumerate(zip(PLACES, accumulate, strict=True)):
        stop = 4 * (session + 1)
        fault = f"""
import os
from mim_jax.training import loop
before = loop.Session._look_up
def look_up(self, done, *rest):
    before(self, done, *rest)
    if done == {stop} - {int(hosts > 1)}:
        os.kill(os.getpid(), 15)
loop.Session._look_up = look_up
"""
        line = arguments(workdir, settings | {'mesh.fsdp': fsdp, 'accumulate': parts})
        last = session == len(PLACES) - 1
        folder = tmp_path / f'pod_{session}'
        ended = run_pod(folder, line, hosts, devices, faults={} if last else {hosts - 1: fault})
        assert statuses(ended) == [0 if last else 75] * hosts, ended
        if not last:
            assert saved_steps(workdir)[-1] == read_summary(workdir)['steps']
        if session:
            assert 'Resuming mae at step' in ended[0].out
        assert f'{hosts * devices} x cpu' in ended[0].out
    (whole,) = run_pod(tmp_path / 'alone', arguments(reference, settings), hosts=1, devices=1)
    assert whole.status == 0, whole
    ours, expected = read_losses(workdir), read_losses(reference)
    assert list(ours) == list(expected) == list(range(1, STEPS + 1))
    gap = max(abs(ours[step] / expected[step] - 1) for step in expected)
    print(f'accumulate {accumulate}: losses differ by {gap:.1e}')
    np.testing.assert_allclose(list(ours.values()), list(expected.values()), rtol=1e-5)
