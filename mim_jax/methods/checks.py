"""Checks that several methods share."""

from __future__ import annotations

from collections.abc import Mapping

from mim_jax.errors import Refused


def check_choices(method: str, choices: Mapping[str, tuple[str, ...]], given: Mapping[str, str]) -> None:
    """Raise Refused, naming the setting, unless each value given is one of the choices under its name."""
    for name, value in given.items():
        if value not in choices[name]:
            raise Refused(f'{method}.{name}={value!r} must be one of {", ".join(choices[name])}.')
