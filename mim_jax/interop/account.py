"""What an import did with every array, in lines that a person can read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Account:
    """loaded, missing (kept at their initial values): our paths; recomputed, resized: lines; skipped: their name -> why."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    recomputed: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report, a heading each."""
        reasons: dict[str, list[str]] = {}
        for name, why in self.skipped.items():
            reasons.setdefault(why, []).append(name)
        return [
            f'loaded      {len(self.loaded)} arrays: {count_roles(self.loaded)}',
            *(f'recomputed  {line}' for line in self.recomputed),
            *(f'resized     {line}' for line in self.resized),
            *(f'skipped     {", ".join(collapse(names))}: {why}' for why, names in reasons.items()),
            *([f'missing     {describe_parts(self.missing)}: kept as initialised'] if self.missing else []),
        ]


def role_of(path: str) -> str:
    """'encoder', 'neck/<n>', 'decoder/<n>', 'objectives/<n>/<head>'."""
    kind, *rest = path.split('/')
    return '/'.join((kind, *rest[: {'encoder': 0, 'objectives': 2}.get(kind, 1)]))


def count_roles(paths: Iterable[str]) -> str:
    """'encoder 150, decoder/pixels 100'."""
    roles: dict[str, int] = {}
    for path in paths:
        roles[role_of(path)] = roles.get(role_of(path), 0) + 1
    return ', '.join(f'{role} {count}' for role, count in roles.items()) or 'nothing'


def describe_parts(paths: Iterable[str]) -> str:
    """'encoder/mask_token, all of decoder/pixels (19 arrays)': an encoder's paths by name, of other roles all there are."""
    counts: dict[str, int] = {}
    alone = []
    for path in paths:
        if role_of(path) == 'encoder':
            alone.append(path)
        else:
            counts[role_of(path)] = counts.get(role_of(path), 0) + 1
    return ', '.join([*collapse(alone), *(f'all of {role} ({count} arrays)' for role, count in counts.items())])


def collapse(names: Iterable[str]) -> list[str]:
    """Names that differ only in a block's number as one: 'blocks.{0-11}.norm1.weight'."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = re.search(r'(?:(?<=\.)|(?<=block_))\d+(?=[./])', name)
        head, number, tail = (name[: match.start()], match[0], name[match.end() :]) if match else (name, '', '')
        groups.setdefault((head, tail), []).append(number)
    return [
        f'{head}{_join(sorted(numbers, key=lambda n: int(n or 0)))}{tail}' for (head, tail), numbers in groups.items()
    ]


def _join(numbers: list[str]) -> str:
    """['3'] -> '3', ['0', '1', '2'] -> '{0-2}', ['0', '2'] -> '{0,2}'."""
    if len(numbers) == 1:
        return numbers[0]
    whole = len(numbers) > 2 and int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1
    return f'{{{numbers[0]}-{numbers[-1]}}}' if whole else f'{{{",".join(numbers)}}}'
