"""launch/Dockerfile, which no test builds: linted, read, and its pinned versions held against requirements.txt."""

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

from packaging.requirements import Requirement
from tpu_world import find_tool

CLONE = Path(__file__).parents[2]
LAUNCH = CLONE / 'launch'


def read_instructions() -> list[str]:
    text = re.sub(r'\\\n\s*', '', (LAUNCH / 'Dockerfile').read_text())
    return [line for line in text.splitlines() if line and not line.startswith('#')]


def read_requirements(path: Path) -> dict[str, Requirement]:
    lines = (line.split('#')[0].strip() for line in path.read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    return {requirement.name.lower().replace('_', '-'): requirement for requirement in requirements}


def test_hadolint_has_nothing_to_say():
    done = subprocess.run([find_tool('hadolint'), LAUNCH / 'Dockerfile'], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ''), done.stdout


def test_packages_come_before_code_and_the_run_is_not_root():
    lines = read_instructions()
    code = lines.index('COPY . .')
    assert next(n for n, line in enumerate(lines) if line.startswith('RUN') and 'packages/requirements' in line) < code
    assert lines.index('USER 1000') > code
    assert not [line for line in lines if line.startswith('ADD') or 'secret' in line.lower() or 'token' in line.lower()]
    for line in lines:  # what is copied exists
        if line.startswith('COPY') and line != 'COPY . .':
            assert all(list(CLONE.glob(source)) for source in line.split()[1:-1])


def test_the_jax_argument_takes_three_values():
    [check] = [line for line in read_instructions() if 'case "$JAX"' in line]
    shell = check.removeprefix('RUN ').split('&&')[0]
    for value, status in {'cpu': 0, 'tpu': 0, 'cuda12': 0, 'cuda': 2, '': 2}.items():
        done = subprocess.run(['sh', '-c', shell], env={'JAX': value}, capture_output=True, text=True)
        assert done.returncode == status, value


def test_only_what_a_run_needs_is_sent_to_the_builder():
    rules = [line for line in (LAUNCH / 'Dockerfile.dockerignore').read_text().splitlines() if line and line[0] != '#']
    assert rules[0] == '*'
    kept = {rule[1:] for rule in rules if rule.startswith('!')}
    assert {'mim_jax', 'configs', 'launch', 'requirements.txt', 'pyproject.toml', 'README.md'} <= kept
    assert not {'requirements-dev.txt', 'requirements-parity.txt', 'tests'} & kept
    assert not any(fnmatch(secret, name) for secret in ('.git', '.env', 'runs', 'key.json', '.venv') for name in kept)


def test_the_pinned_versions_are_complete_and_within_the_ranges():
    ranges, pinned = read_requirements(CLONE / 'requirements.txt'), read_requirements(LAUNCH / 'constraints.txt')
    assert set(pinned) >= {*ranges, 'jaxlib'}
    for name, requirement in pinned.items():
        [specifier] = requirement.specifier
        assert specifier.operator == '=='
        if name in ranges:
            assert ranges[name].specifier.contains(specifier.version), name
