"""Checkpoints 10 and 20 of one small run, for the tests to read and to damage."""

import itertools
import shutil
from pathlib import Path

import pytest
from checkpoint_cases import make_state

from mim_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    """Checkpoints 10 and 20 of seeds 10 and 20."""
    directory = tmp_path_factory.mktemp('template')
    checkpoints = Checkpoints(directory)
    for step in (10, 20):
        checkpoints.save(step, make_state(step), {'images_seen': step * 8})
    checkpoints.close()
    return directory


@pytest.fixture
def make_copy(template, tmp_path):
    """A fresh copy, at a new path each time: TensorStore remembers within a process what it has read from a path."""
    names = itertools.count()
    return lambda: Path(shutil.copytree(template, tmp_path / f'checkpoints_{next(names)}'))


@pytest.fixture
def saved(make_copy):
    return make_copy()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def checkpoints(saved, lines):
    checkpoints = Checkpoints(saved, report=lines.append)
    yield checkpoints
    checkpoints.close()
