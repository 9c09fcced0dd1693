"""A configuration from a file, variants and the command line: `configs/mae.py:vit_s16,cifar10 --config.epochs=50`."""

import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mim_jax.config.check import find_unknown_methods
from mim_jax.config.names import assign, flatten, raise_problems, suggest
from mim_jax.config.values import describe_type, method_defaults, methods_in_use, parse_value
from mim_jax.errors import ConfigError, UserError

PREFIX = '--config.'


def load_config(
    spec: str, overrides: Sequence[str] = (), methods: Mapping[str, Callable] | None = None
) -> tuple[ConfigDict, ConfigDict]:
    """(config, reference): the run's configuration, locked, and the file's own without variant or override.

    spec: path of a file that defines get_config(variant: str = '') -> ConfigDict, then optionally ':variant,variant'.
    overrides: '--config.optim.base_lr=1e-3'; the last one of a key wins. Tuples: --config.data.scale=0.2,1.0
    methods: {name: function}. With it, the section of every method in use is completed with the method's own defaults
    (so that all of them can be overridden and are saved), and sections of methods not in use are dropped.
    ConfigError: no such file, key or variant, a value of the wrong type, a file that fails; lists all bad overrides.
    """
    path, _, variant = spec.partition(':')
    get_config = _read_config_file(Path(path))
    config, reference = get_config(variant), get_config('')
    methods = methods or {}

    settings, problems = _split_overrides(overrides)
    # What is in use decides which sections exist, so it goes first.
    in_use = [(name, text) for name, text in settings if name in ('base', 'papers')]
    problems += _apply_settings(config, in_use, methods)
    unknown = find_unknown_methods(config, methods) if methods else []
    if unknown:  # nothing can be said of their sections
        raise_problems(problems + unknown)
    selected = methods_in_use(config)
    for tree in (config, reference):
        _fit_sections(tree, methods, selected)
    problems += _apply_settings(config, [pair for pair in settings if pair not in in_use], methods)
    raise_problems(problems)
    return config.lock(), reference.lock()


def _read_config_file(path: Path) -> Callable[[str], ConfigDict]:
    """The file's get_config, with every failure turned into a ConfigError that names the file and the line."""
    if not path.is_file():
        there = sorted(str(other) for other in path.parent.glob('*.py'))
        hint = suggest(path.name, [Path(other).name for other in there]) or f' There are: {", ".join(there) or "none"}.'
        raise ConfigError(f"There is no config file '{path}'.{hint}")
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    # Executed by hand: an import would leave bytecode beside the file and an entry in sys.modules.
    _call_in_file(path, lambda: exec(compile(path.read_text(), str(path), 'exec'), module.__dict__))
    if not callable(getattr(module, 'get_config', None)):
        raise ConfigError(f"{path} does not define get_config(variant: str = '') -> ConfigDict.")

    def get_config(variant: str) -> ConfigDict:
        config = _call_in_file(path, lambda: module.get_config(variant))
        if not isinstance(config, ConfigDict):
            raise ConfigError(f'{path}: get_config returned {type(config).__name__}, not a ConfigDict.')
        return config

    return get_config


def _call_in_file(path: Path, call: Callable):
    try:
        return call()
    except UserError:  # such as an unknown variant: already a sentence for the user
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 1
        raise ConfigError(f'{path}, line {line}: {type(error).__name__}: {error}') from error


def _split_overrides(overrides: Iterable[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """[(dotted key, text)], and the problems of what does not read as --config.key=value."""
    settings, problems = [], []
    for override in overrides:
        key, equals, text = override.partition('=')
        if key.startswith(PREFIX) and equals:
            settings.append((key.removeprefix(PREFIX), text))
        else:
            problems.append(f"'{override}' is not an override; write --config.key=value, such as --config.epochs=100.")
    return settings, problems


def _apply_settings(config: ConfigDict, settings: list[tuple[str, str]], methods: Mapping[str, Callable]) -> list[str]:
    """Set the keys, each by the type of a method's default or of its present value; return the problems."""
    problems, selected = [], [name for name in methods_in_use(config) if name in methods]
    # A default of () is a tuple of anything: what is there now, such as ('all',), need not be what may be there.
    own = {f'{name}.{key}': value for name in selected for key, value in method_defaults(methods[name]).items()}
    for name, text in settings:
        known = flatten(config)
        if name not in known:
            problems.append(f'{PREFIX}{name}: {_explain_unknown(name, config, known, methods)}')
            continue
        like = own.get(name, known[name])
        try:
            assign(config, name, parse_value(text, like))
        except ValueError:
            problems.append(f"{PREFIX}{name}={text}: expected {describe_type(like)}, not '{text}'.")
    return problems


def _explain_unknown(name: str, config: ConfigDict, known: Iterable[str], methods: Mapping[str, Callable]) -> str:
    section, dot, _ = name.partition('.')
    if not dot and isinstance(config.get(name), ConfigDict):
        return f'this is a section; set one of its keys: {", ".join(f"{name}.{key}" for key in config[name])}.'
    if section in methods and section not in methods_in_use(config):
        return f'{section} is not in use, so this has no effect; add it with {PREFIX}papers or {PREFIX}base.'
    return 'there is no such key.' + (
        suggest(name, known) or f' {section if section in config else "The tree"} has: {_list_keys(config, section)}.'
    )


def _list_keys(config: ConfigDict, section: str) -> str:
    owner = config[section] if isinstance(config.get(section), ConfigDict) else config
    return ', '.join(owner)


def _fit_sections(config: ConfigDict, methods: Mapping[str, Callable], selected: Iterable[str]) -> None:
    """Give every selected method its complete section; drop the sections of the others."""
    for name in methods:
        section = config.get(name, ConfigDict())
        if not isinstance(section, ConfigDict):
            raise ConfigError(f'{name} is a section, the keyword arguments of that method; it cannot be {section!r}.')
        if name in selected:
            config[name] = ConfigDict(method_defaults(methods[name]) | dict(section))
        elif name in config:
            del config[name]
