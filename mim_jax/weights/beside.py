"""What transformers saves beside weights, config.json and preprocessor_config.json: read, and never believed unseen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim_jax.models.layers import ACTIVATIONS
from mim_jax.weights.files import WeightsError

LARGEST = 1e30  # that a number in them, or one by it, may be: both are used in fp32


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return type(value) in (int, float) and abs(value) < LARGEST


def is_positive(value: Any) -> bool:
    """Whether it is one above 0."""
    return is_number(value) and value > 1 / LARGEST


def are_three(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether it is a list of three that fit."""
    return lambda value: isinstance(value, list | tuple) and len(value) == 3 and all(map(fits, value))


RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {  # key -> what its value must be
    'vision_config': ('an object', lambda value: isinstance(value, Mapping)),
    'num_attention_heads': ('a whole number above 0', lambda value: type(value) is int and value > 0),
    'hidden_act': (f'one of {", ".join(ACTIVATIONS)}', lambda value: isinstance(value, str) and value in ACTIVATIONS),
    'layer_norm_eps': ('a number above 0', is_positive),
    'do_normalize': ('true or false', lambda value: isinstance(value, bool)),
    'image_mean': ('three numbers', are_three(is_number)),
    'image_std': ('three numbers above 0', are_three(is_positive)),
}


@dataclass(frozen=True)
class Settings:
    """values: {key: value}; origin: the file that they come from, for messages."""

    origin: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def get(self, key: str, default: Any) -> Any:
        """The value of a key of RULES, or `default` where it is not there. Raises WeightsError unless it is as it must be."""
        if key not in self.values:
            return default
        value, (wanted, fits) = self.values[key], RULES[key]
        if not fits(value):
            raise WeightsError(f'{self.origin}: {key} is {json.dumps(value, default=repr)}, and must be {wanted}.')
        return value

    def inside(self, key: str) -> Settings:
        """The settings under a key, or these where it is not there."""
        return Settings(self.origin, self.get(key, self.values))


def read_settings(path: Path) -> Settings:
    """Of a file; none where it is not there. Raises WeightsError unless it holds an object of JSON."""
    if not path.is_file():
        return Settings(str(path))
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 among them
        raise WeightsError(f'{path} is not JSON ({error}); fetch it again.') from error
    if not isinstance(values, dict):
        raise WeightsError(f'{path} holds {json.dumps(values)[:40]}, and must hold an object; fetch it again.')
    return Settings(str(path), values)
