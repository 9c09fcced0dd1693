"""Types of configuration values: reading one from the command line, fitting one to its key, schemas of methods."""

import ast
import inspect
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict


def describe_type(like: Any) -> str:
    """What a key whose value is `like` expects, in words."""
    if isinstance(like, tuple):
        return f'a tuple such as {",".join(map(str, like))}' if like else 'a tuple such as a,b'
    words = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'text'}
    return words[type(like)]


def parse_value(text: str, like: Any) -> Any:
    """Read `text` as the type of `like`; ValueError if it is not one. Tuples: 0.2,1.0 or (0.2,1.0), '' is ()."""
    if isinstance(like, bool):
        if text.lower() not in ('true', 'false'):
            raise ValueError(text)
        return text.lower() == 'true'
    if isinstance(like, tuple):
        inner = text.strip()
        if inner[:1] + inner[-1:] in ('()', '[]'):
            inner = inner[1:-1]
        items = [item.strip().strip('\'"') for item in inner.split(',')]
        if items[-1] == '':  # '' and a trailing comma
            items.pop()
        return tuple(parse_value(item, like[0]) if like else _parse_literal(item) for item in items)
    return fit_value(type(like)(text), like)


def _parse_literal(text: str) -> Any:
    """An item of a tuple that is empty by default, hence untyped: a number if it reads as one, text otherwise."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return value if type(value) in (int, float) else text


def fit_value(value: Any, like: Any) -> Any:
    """`value` as the type of `like`, integers becoming floats where those are expected; ValueError if it is not."""
    if isinstance(like, tuple):
        if not isinstance(value, tuple) or not all(type(item) in (bool, int, float, str) for item in value):
            raise ValueError(value)
        return tuple(fit_value(item, like[0]) for item in value) if like else value
    if type(like) is float and type(value) is int:
        return float(value)
    if type(value) is not type(like) or (type(like) is float and not math.isfinite(value)):
        raise ValueError(value)
    return value


def methods_in_use(config: ConfigDict) -> tuple[str, ...]:
    """The base, then the papers. Tolerates a tree where these are missing or malformed, which check_config reports."""
    papers = config.get('papers', ())
    return (config.get('base', ''), *(papers if isinstance(papers, tuple) else ()))


def method_defaults(function: Callable) -> dict[str, Any]:
    """{keyword: default} of a method's keyword-only parameters, the schema of the section of its name.

    TypeError, a programming error, when a default is neither a scalar nor a tuple: the type would be unknown.
    """
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for keyword in keywords:
        if type(keyword.default) not in (bool, int, float, str, tuple):
            raise TypeError(f'{function.__name__}({keyword.name}=...) needs a default that is a scalar or a tuple')
    return {keyword.name: keyword.default for keyword in keywords}
