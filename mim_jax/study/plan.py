"""What a study file says: its arms, their tests, and the claims, each of which names in advance what would refute it."""

from __future__ import annotations

import runpy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mim_jax.errors import ConfigError

RAUC = 'rauc/'


@dataclass(frozen=True)
class Arm:
    """One recipe. config: 'configs/mff.py:demo,cifar10'; overrides: '--config.key=value' each.

    teacher: (arm, key): the encoder of that arm's run of the same seed, exported for transformers, is given by this key.
    from_scratch: nothing is pre-trained, and the tests begin with random weights of this arm's encoder; `overrides` are theirs.
    """

    name: str
    config: str = ''
    overrides: tuple[str, ...] = ()
    teacher: tuple[str, str] | None = None
    from_scratch: str = ''

    @property
    def needs(self) -> str:
        """The arm whose run of the same seed must be there before; '' for none."""
        return self.teacher[0] if self.teacher else self.from_scratch


@dataclass(frozen=True)
class Test:
    """A protocol of mim_jax.evaluate. metric: which of its results stands in the row, under `name`."""

    __test__ = False  # not pytest's

    name: str
    config: str
    metric: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """`better` is above `than` in `metric`, on the mean over seeds, paired by seed.

    metric: a key of the rows, or 'rauc/KEY': the ratio of the areas of the two arms' curves of KEY (evals/rauc.py), above 1.
    than: an arm; a tuple of arms, of which the one with the highest mean counts; or a number.
    source: where the claim is made; expected: what was expected, and why, before the first run.
    """

    text: str
    source: str
    metric: str
    better: str
    than: str | tuple[str, ...] | float
    expected: str

    @property
    def arms(self) -> tuple[str, ...]:
        """All that it speaks of."""
        others = () if isinstance(self.than, int | float) else (self.than,) if isinstance(self.than, str) else self.than
        return (self.better, *others)


@dataclass(frozen=True)
class Study:
    """about: a paragraph for the report; shared: overrides of every pre-training, before an arm's own; kept: prefixes of the
    logged values that stand in a row; shown: the metrics that the table and the picture show."""

    name: str
    about: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    shared: tuple[str, ...] = ()
    tests: tuple[Test, ...] = ()
    claims: tuple[Claim, ...] = ()
    kept: tuple[str, ...] = ('loss/', 'probe/', 'untrained/')
    shown: tuple[str, ...] = ('probe/ridge',)

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)


def read_study(path: str) -> Study:
    """STUDY of a Python file. Raises ConfigError."""
    if not Path(path).is_file():
        raise ConfigError(f"There is no study file '{path}'; configs/study/cifar10.py is one.")
    try:
        study = runpy.run_path(path).get('STUDY')
    except Exception as error:
        raise ConfigError(f'{path} cannot be read: {type(error).__name__}: {error}') from error
    if not isinstance(study, Study):
        raise ConfigError(f'{path} must define STUDY, a mim_jax.study.plan.Study.')
    check_study(study, path)
    return study


def check_study(study: Study, path: str) -> None:
    """Raise ConfigError where names are missing or stand twice."""
    if not study.arms or not study.seeds:
        raise ConfigError(f'{path}: a study needs an arm and a seed.')
    for what, names in (('arms', [arm.name for arm in study.arms]), ('tests', [test.name for test in study.tests])):
        twice = find_twice(names)
        if twice:
            raise ConfigError(f"{path} has two {what} called '{twice}'; rename one.")
    seen: set[str] = set()
    for arm in study.arms:
        if bool(arm.config) == bool(arm.from_scratch):
            raise ConfigError(f"{path}: arm '{arm.name}' needs a config, or from_scratch, and not both.")
        if arm.needs and arm.needs not in seen:
            raise ConfigError(f"{path}: arm '{arm.name}' needs '{arm.needs}', which must stand above it.")
        if arm.needs and study.arm(arm.needs).from_scratch:
            raise ConfigError(f"{path}: arm '{arm.name}' needs '{arm.needs}', of which nothing is pre-trained.")
        seen.add(arm.name)
    for claim in study.claims:
        unknown = set(claim.arms) - seen
        if unknown:
            raise ConfigError(f"{path}: the claim '{claim.text}' names no arm: {', '.join(sorted(unknown))}.")
        if claim.metric.startswith(RAUC) and not isinstance(claim.than, str):
            raise ConfigError(f"{path}: RAUC compares two arms; the claim '{claim.text}' does not.")


def find_twice(names: Iterable[str]) -> str:
    """The first name that stands twice; '' for none."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), '')
