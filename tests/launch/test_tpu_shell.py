"""Every shell script under launch/: shellcheck and bash find nothing, and those that people call can be called."""

import os
import subprocess

import pytest
from tpu_world import LAUNCH, find_tool

SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')])


def test_shellcheck_has_nothing_to_say():
    command = [find_tool('shellcheck'), '--external-sources', *SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ''), done.stdout


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script):
    done = subprocess.run(['bash', '-n', script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, '')
    called = script.suffix == '.sh' and script.stem != 'tpu_common'
    assert os.access(script, os.X_OK) == called
