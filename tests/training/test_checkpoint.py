"""Checkpoints: bit-exact on any mesh, the right ones kept, and a full disk told."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_cases import abstract, assert_identical, damage, largest_file, make_state, truncate

from mim_jax.errors import CheckpointError, WorkdirError
from mim_jax.parallel.mesh import make_mesh
from mim_jax.parallel.rules import shardings
from mim_jax.training.checkpoint import Checkpoints, read_params

REPO = Path(__file__).parents[2]


def test_round_trip_is_bit_exact(checkpoints, lines):
    assert checkpoints.steps() == [10, 20]
    assert checkpoints.latest() == 20
    tree, step, extra = checkpoints.restore(abstract(make_state()))
    assert (step, extra, lines) == (20, {'images_seen': 160}, [])
    assert_identical(tree, make_state(20))


@pytest.mark.parametrize('sizes', [(2, 4), (8, 1), (1, 2), (2, 2, 2), (1, 1, 8)])
def test_restore_on_another_mesh(checkpoints, sizes):
    data, fsdp, model = (*sizes, 1)[:3]
    mesh = make_mesh(data, fsdp, model, devices=jax.devices()[: data * fsdp * model])
    tree, step, _ = checkpoints.restore(abstract(make_state(), mesh))
    assert step == 20
    assert_identical(tree, make_state(20))
    kernel = tree['params']['encoder']['block_00']['mlp']['fc1']['kernel']
    assert len(kernel.addressable_shards) == mesh.size
    assert kernel.addressable_shards[0].data.shape == (64 // fsdp, 256 // model)


@pytest.mark.parametrize('sizes', [(1, 8, 1), (2, 2, 2)])
def test_sharded_save_restores_on_one_device(sizes, tmp_path):
    mesh = make_mesh(*sizes)
    state = make_state(3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, jax.device_put(state, shardings(state, mesh, whole=False)))
    tree, _, extra = checkpoints.restore(abstract(state))
    checkpoints.close()
    assert extra == {}
    assert_identical(tree, state)


def test_arrays_may_be_donated_after_save(tmp_path):
    state = {'params': {'w': jnp.arange(2**18, dtype=jnp.float32)}}
    expected = jax.tree.map(np.array, state)
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    jax.block_until_ready(update(state))
    tree, _, _ = checkpoints.restore(abstract(expected))
    checkpoints.close()
    assert_identical(tree, expected)


def test_nothing_saved_restores_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'new')
    assert checkpoints.latest() is None
    assert checkpoints.restore(abstract(make_state())) is None
    checkpoints.close()


def save_range(directory, steps, keep, milestone_every):
    checkpoints = Checkpoints(directory, keep=keep)
    for step in steps:
        checkpoints.save(step, {'w': jnp.float32(step)}, milestone=step % milestone_every == 0)
    checkpoints.close()
    return checkpoints.steps()


def test_keeps_the_newest_and_the_milestones(tmp_path):
    assert save_range(tmp_path, range(1, 9), keep=2, milestone_every=3) == [3, 6, 7, 8]
    tree, step, _ = Checkpoints(tmp_path).restore({'w': jax.ShapeDtypeStruct((), jnp.float32)})
    assert (step, float(tree['w'])) == (8, 8.0)


def test_milestones_stay_whatever_later_sessions_call_one(tmp_path):
    assert save_range(tmp_path, range(1, 13), keep=2, milestone_every=5) == [5, 10, 11, 12]
    assert save_range(tmp_path, [13], keep=2, milestone_every=6) == [5, 10, 12, 13]
    assert save_range(tmp_path, range(14, 21), keep=1, milestone_every=100) == [5, 10, 20]


def test_a_saved_step_stays_as_it_is_but_for_the_mark(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {'w': jnp.float32(1)})
    checkpoints.wait()
    before = {file: file.read_bytes() for file in (tmp_path / '1').rglob('*') if file.is_file()}
    for _ in range(2):
        checkpoints.save(1, {'w': jnp.float32(-1)}, milestone=True)
    assert {file: file.read_bytes() for file in before} == before
    for step in (2, 3):
        checkpoints.save(step, {'w': jnp.float32(step)})
    checkpoints.save(3, {'w': jnp.float32(-1)}, milestone=False)
    checkpoints.close()
    assert checkpoints.steps() == [1, 3]


def test_leftovers_of_a_killed_save_are_removed(saved):
    for step in (25, 30):
        shutil.copytree(saved / '20', saved / f'{step}.orbax-checkpoint-tmp')
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest() == 20
    checkpoints.save(30, make_state(30))
    checkpoints.close()
    assert sorted(p.name for p in saved.iterdir()) == ['10', '20', '30']


def test_unwritable_directory(tmp_path):
    (tmp_path / 'file').write_text('')
    for directory in (tmp_path / 'file' / 'checkpoints', Path('/proc/checkpoints')):
        with pytest.raises(WorkdirError, match=f'{directory} cannot be written'):
            Checkpoints(directory)


DISK_FULL = """
    import resource, signal, sys, time
    import jax, jax.numpy as jnp
    from mim_jax.errors import CheckpointError
    from mim_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(sys.argv[1], keep=1)
    state = lambda step: {'params': {'w': jax.random.normal(jax.random.key(step), (200, 200))}}
    checkpoints.save(1, state(1))
    checkpoints.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))

    def expect_failure(action):
        checkpoints.save(2, state(2))
        time.sleep(0.5)
        try:
            action()
        except CheckpointError as error:
            print(error)
        else:
            sys.exit('the failed save went unnoticed')

    expect_failure(lambda: checkpoints.save(3, state(3)))
    expect_failure(checkpoints.wait)
    assert checkpoints.steps() == [1], checkpoints.steps()
    expect_failure(checkpoints.close)
"""


def test_disk_full_is_told_and_the_previous_checkpoint_is_intact(tmp_path):
    """RLIMIT_FSIZE stands in for a full disk: writes fail with 'File too large'."""
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(REPO), 'XLA_FLAGS': ''}
    program = [sys.executable, '-c', textwrap.dedent(DISK_FULL), str(tmp_path)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr
    messages = done.stdout.splitlines()
    assert len(messages) == 3
    for message in messages:
        assert f'step 2 could not be written in {tmp_path}' in message
        assert 'File too large' in message
        assert 'The checkpoint of step 1 is intact; free disk space or quota there' in message
    checkpoints = Checkpoints(tmp_path)
    tree, step, _ = checkpoints.restore({'params': {'w': jax.ShapeDtypeStruct((200, 200), jnp.float32)}})
    checkpoints.close()
    assert step == 1
    assert_identical(tree, {'params': {'w': jax.random.normal(jax.random.key(1), (200, 200))}})


def test_read_params(saved, make_copy):
    params, extra = read_params(saved)
    assert extra == {'images_seen': 160}
    expected = make_state(20)['params']
    expected['neck'] = {'last': expected.pop('neck/last')}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    assert_identical(params, expected)
    assert read_params(saved, step=10)[1] == {'images_seen': 80}
    with pytest.raises(CheckpointError, match=r'No checkpoint of step 15 .*\[10, 20\]'):
        read_params(saved, step=15)
    with pytest.raises(CheckpointError, match='No checkpoint in'):
        read_params(saved / 'nowhere')
    saved = make_copy()
    damage(largest_file(saved / '20'), truncate(100))
    with pytest.raises(CheckpointError, match=r'20 is damaged.*another step of \[10, 20\]'):
        read_params(saved)
    assert sorted(p.name for p in saved.iterdir()) == ['10', '20']


def test_seal_is_json_that_people_can_read(saved):
    seal = json.loads((saved / '20' / 'seal' / 'metadata').read_text())
    contents = json.loads(seal['text'])
    shape, dtype, fingerprint = contents['arrays']['params/neck/last/kernel']
    assert (shape, dtype, len(fingerprint)) == ([64, 8], 'bfloat16', 16)
