"""Every command that README and docs show: its program, options, config, variants and keys exist. None of them is run here:
`make demo` and `make test` are what CI runs, training, evaluating and exporting are run by tests of their own."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest

from mim_jax.config import check_config, load_config
from mim_jax.evals.protocols import DIRECT
from mim_jax.evals.suite import read_suite
from mim_jax.methods import METHODS
from mim_jax.study.plan import read_study

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'launch' / 'README.md', *(ROOT / 'docs').glob('*.md')]
)
PROGRAMS = {
    'train': 'mim_jax.train',
    'evaluate': 'mim_jax.evaluate',
    'prepare': 'mim_jax.prepare',
    'doctor': 'mim_jax.doctor',
    'compile': 'mim_jax.compile',
    'export': 'mim_jax.export',
    'import_weights': 'mim_jax.import_weights',
    'study': 'mim_jax.study.__main__',
    'evals.rauc': 'mim_jax.evals.rauc',
    'recipe': '',
}
EXAMPLE = 'colour'  # the paper that docs/new_paper.md writes; tests/test_docs.py runs it


def find_commands() -> list[str]:
    """Lines of fenced blocks and inline code that start a program of ours or make, '# comments' cut off, breaks joined."""
    found = []
    for page in PAGES:
        text = page.read_text().replace('\\\n', ' ')
        blocks = re.findall(r'^```(?:bash|sh|console)?\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r'`((?:python -m mim_jax|make )[^`]*)`', text)
        starts = ('python ', 'make ', 'launch/', 'sbatch ')
        found += [
            f'{page.name}: {line.partition(" #")[0].strip()}' for line in lines if line.lstrip('$ ').startswith(starts)
        ]
    return sorted(set(found))


COMMANDS = find_commands()


def help_of(program: str) -> str:
    """What --help prints."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        importlib.import_module(PROGRAMS[program]).main(['--help'])
    return shown.getvalue()


def check_program(program: str, words: list[str]) -> None:
    """Its options are known, and its config, suite or study can be read with these overrides."""
    assert program in PROGRAMS, f'there is no program mim_jax.{program}'
    overrides = [word for word in words if word.startswith('--config.')]
    options = [word.partition('=')[0] for word in words if word.startswith('--') and word not in overrides]
    if options:
        shown = help_of(program)
        assert all(re.search(rf'{re.escape(option)}\b', shown) for option in options), (
            f'{options} are not all of {program}'
        )
    if '--config' in words and not any(EXAMPLE in override for override in overrides):
        config, _ = load_config(words[words.index('--config') + 1], overrides, {**METHODS, **DIRECT})
        if program in ('train', 'doctor', 'prepare'):
            check_config(config, METHODS)
    if '--suite' in words:
        assert read_suite(words[words.index('--suite') + 1])
    if program == 'study':
        assert all(read_study(word) for word in words if word.startswith('configs/') and '*' not in word)


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 30
    assert 'README.md: make demo' in COMMANDS


@pytest.mark.parametrize('shown', COMMANDS)
def test_a_command_that_is_shown_is_one(shown, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(shown.partition(': ')[2].lstrip('$ '))
    if words[0] == 'make':
        targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
        assert {word for word in words[1:] if '=' not in word} <= set(targets)
        return
    for word in words:  # scripts of ours, wherever they stand
        if re.fullmatch(r'(launch|benchmarks|tests)/[\w./]+\.(py|sh|sbatch|yaml)', word):
            assert (ROOT / word).exists(), f'{word} is not there'
    for at, word in enumerate(words):
        if word.startswith('mim_jax.'):
            check_program(word.removeprefix('mim_jax.').rstrip(';'), words[at + 1 :])
