"""Dotted names of the configuration tree: listing them, finding the one meant, reporting all mistakes at once."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

from ml_collections import ConfigDict

from mim_jax.errors import ConfigError


def flatten(config: ConfigDict) -> dict[str, Any]:
    """{'optim.base_lr': 1.5e-4, ...} in alphabetical order, ConfigDict's own; an empty section has no entry."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f'{name}.{inner}': leaf for inner, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def assign(config: ConfigDict, name: str, value: Any) -> None:
    """Set an existing dotted key whatever type it had; callers have checked the value."""
    section, _, leaf = name.rpartition('.')
    owner = config[section] if section else config
    with owner.ignore_type():
        owner[leaf] = value


# What the papers' own code calls it: spelling alone would not lead there.
ALIASES = {
    'lr': 'base_lr',
    'blr': 'base_lr',
    'learning_rate': 'base_lr',
    'wd': 'weight_decay',
    'input_size': 'image_size',
    'accum_iter': 'accumulate',
}


def _likeness(given: str, candidate: str) -> float:
    """0..1: the last parts count, since the usual slips are a typo, a forgotten section, or half a name."""
    section, _, leaf = given.rpartition('.')
    leaf = ALIASES.get(leaf, leaf)
    candidate_section, _, candidate_leaf = candidate.rpartition('.')
    spelling = SequenceMatcher(None, leaf, candidate_leaf).ratio()
    same_word = bool(set(leaf.split('_')) & set(candidate_leaf.split('_')))
    return 0.95 * max(spelling, (0.65 + 0.1 * spelling) * same_word) + 0.05 * (section == candidate_section)


def nearest(given: str, candidates: Iterable[str]) -> list[str]:
    """Up to three candidates close enough to have been meant, best first."""
    scored = [(_likeness(given, candidate), candidate) for candidate in candidates]
    near = sorted((pair for pair in scored if pair[0] >= 0.6), key=lambda pair: -pair[0])
    # Names much less near than the best would only distract.
    return [name for score, name in near[:3] if score > near[0][0] - 0.12]


def suggest(given: str, candidates: Iterable[str]) -> str:
    """' Did you mean a or b?', or an empty string when nothing is near."""
    names = nearest(given, candidates)
    return f' Did you mean {" or ".join(names)}?' if names else ''


def around(value: int, unit: int) -> str:
    """The multiples of `unit` just below and above `value`: '96 or 112'; only the upper one when the lower is 0."""
    below = value // unit * unit
    return f'{below} or {below + unit}' if below else f'{unit}'


def raise_problems(problems: list[str], error: type[Exception] = ConfigError) -> None:
    """Raise one error that lists every problem, one per line; return when there is none."""
    if len(problems) == 1:
        raise error(problems[0])
    if problems:
        raise error('\n  '.join([f'{len(problems)} mistakes in the configuration:', *problems]))
