"""Can this configuration run? Names, types, choices, ranges, contradictions, before any device is touched."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from mim_jax.config.length import peak_lr
from mim_jax.config.names import around, assign, flatten, raise_problems, suggest
from mim_jax.config.tree import BELOW_ONE, CHOICES, COUNTS, POSITIVE, TUPLE_LENGTHS, default_config
from mim_jax.config.values import describe_type, fit_value, method_defaults, methods_in_use
from mim_jax.data.rand_augment import parse_rand_augment
from mim_jax.errors import ConfigError


def check_config(config: ConfigDict, methods: Mapping[str, Callable]) -> None:
    """Raise one ConfigError listing every mistake; convert integers to floats, in place, where floats are expected.

    methods: {name: function}; the keyword-only parameters of a function are the schema of the section of its name.
    Contradictions are looked for once names and types are right.
    """
    raise_problems(
        [*_find_wrong_methods(config, methods), *_find_wrong_keys(config, methods), *_fit_types(config, methods)]
    )
    raise_problems(find_contradictions(config))


def bind_method(config: ConfigDict, name: str, function: Callable) -> Callable:
    """The method with the keyword arguments of its section bound: partial(mff, layers=(0, 11))."""
    return partial(function, **config.get(name, ConfigDict()))


def find_unknown_methods(config: ConfigDict, methods: Mapping[str, Callable]) -> list[str]:
    """What to say of a base, or of papers, that do not exist."""
    in_use = methods_in_use(config)
    return [
        f"{'base' if name == in_use[0] else 'papers'}: there is no method '{name}'."
        f'{suggest(str(name), methods)} There are: {", ".join(methods)}.'
        for name in dict.fromkeys(in_use)
        if name not in methods
    ]


def _find_wrong_methods(config: ConfigDict, methods: Mapping[str, Callable]) -> list[str]:
    """Methods that do not exist, come twice, or have a section without being in use."""
    in_use, problems = methods_in_use(config), find_unknown_methods(config, methods)
    problems += [
        f"papers: '{name}' is there twice; a method is applied once."
        for name in dict.fromkeys(in_use)
        if name in methods and in_use.count(name) > 1
    ]
    for name in _method_sections(config):
        if name not in methods:
            known = [*default_config(), *methods]
            problems.append(f"There is no section and no method '{name}'.{suggest(name, known)}")
        elif name not in in_use:
            problems.append(f"The section '{name}' has no effect: {name} is neither the base nor one of the papers.")
    return problems


def _find_wrong_keys(config: ConfigDict, methods: Mapping[str, Callable]) -> list[str]:
    """Keys that are missing from the tree, or that neither the tree nor a method knows."""
    want, have = flatten(default_config()), flatten(config)
    problems = [f'{key} is missing; start the config file from default_config().' for key in want if key not in have]
    sections = _method_sections(config)
    for key in have:
        section, _, keyword = key.partition('.')
        if section not in sections:
            if key not in want:
                problems.append(f'{key}: there is no such key.{suggest(key, want)}')
        elif section in methods and keyword not in method_defaults(methods[section]):
            known = [f'{section}.{other}' for other in method_defaults(methods[section])]
            hint = suggest(key, known) or f' {section} has: {", ".join(known) or "no settings"}.'
            problems.append(f'{key}: {section} has no such setting.{hint}')
    return problems


def _method_sections(config: ConfigDict) -> list[str]:
    shared = default_config()
    return [name for name, value in config.items() if isinstance(value, ConfigDict) and name not in shared]


def _fit_types(config: ConfigDict, methods: Mapping[str, Callable]) -> list[str]:
    """The wrong types among known keys; values that fit once converted are stored converted."""
    want = flatten(default_config())
    for name, function in methods.items():
        want |= {f'{name}.{keyword}': value for keyword, value in method_defaults(function).items()}
    problems = []
    for key, value in flatten(config).items():
        if key not in want:
            continue
        try:
            fitted = fit_value(value, want[key])
        except ValueError:
            problems.append(f'{key}={value!r}: expected {describe_type(want[key])}, not {type(value).__name__}.')
            continue
        if type(fitted) is not type(value) or isinstance(value, tuple):
            assign(config, key, fitted)
    return problems


def find_contradictions(config: ConfigDict) -> list[str]:
    """Every value outside its choices or range, and every pair of keys that cannot both be meant; types are right."""
    flat = flatten(config)
    alone = _find_out_of_range({key: flat[key] for key in flatten(default_config())})  # methods judge their own
    return [*alone.values(), *_find_misfits(config, lambda *keys: not any(key in alone for key in keys))]


def _find_out_of_range(flat: dict[str, Any]) -> dict[str, str]:
    """{key: what is wrong with its value}."""
    wrong = {}
    for key, value in flat.items():
        if key in CHOICES and value not in CHOICES[key]:
            listed = ', '.join(CHOICES[key])
            wrong[key] = f"{key}='{value}' is not one of {listed}.{suggest(value, CHOICES[key])}"
        elif key in COUNTS and value < 1:
            wrong[key] = f'{key}={value} must be at least 1.'
        elif key in POSITIVE and value <= 0:
            wrong[key] = f'{key}={value} must be above 0.'
        elif key in BELOW_ONE and not 0 <= value < 1:
            wrong[key] = f'{key}={value} must be at least 0 and below 1.'
        elif key in TUPLE_LENGTHS and len(value) != TUPLE_LENGTHS[key]:
            wrong[key] = f'{key}={value} must have {TUPLE_LENGTHS[key]} numbers.'
        elif key != 'mesh.data' and type(value) in (int, float) and value < 0:
            wrong[key] = f'{key}={value} must not be negative.'
    if flat['mesh.data'] != -1 and flat['mesh.data'] < 1:
        wrong['mesh.data'] = (
            f'mesh.data={flat["mesh.data"]} must be at least 1, or -1 for all devices fsdp and model leave.'
        )
    return wrong


def _find_misfits(config: ConfigDict, sound: Callable[..., bool]) -> Iterator[str]:
    """sound(*keys): their values make sense alone, so that they can be compared."""
    encoder, optim, data, probe = config.encoder, config.optim, config.data, config.probe
    size, patch, batch = config.image_size, encoder.patch_size, config.batch_size
    if sound('image_size', 'encoder.patch_size') and size % patch:
        yield f'image_size={size} is not a multiple of encoder.patch_size={patch}; {around(size, patch)} would be.'
    if sound('encoder.width', 'encoder.heads'):
        # Sin-cos positions need a sine and a cosine of x and of y: four equal parts.
        for part, name in (encoder.heads, f'encoder.heads={encoder.heads}'), (4, '4, which sin-cos positions need'):
            if encoder.width % part:
                widths = around(encoder.width, math.lcm(encoder.heads, 4))
                yield f'encoder.width={encoder.width} is not divisible by {name}; {widths} would be.'
    if sound('batch_size', 'accumulate') and batch % config.accumulate:
        yield (
            f'batch_size={batch} does not split into accumulate={config.accumulate} equal micro-batches; '
            f'{around(batch, config.accumulate)} would.'
        )
    if config.steps == 0 and config.epochs == 0:
        yield 'steps and epochs are both 0: the run has no length. Set --config.epochs or --config.steps.'
    if config.steps == 0 and 0 < config.epochs <= optim.warmup_epochs:
        yield (
            f'optim.warmup_epochs={optim.warmup_epochs} leaves nothing of epochs={config.epochs}; '
            'shorten the warm-up or lengthen the run.'
        )
    if sound('optim.base_lr', 'optim.lr_scaling', 'batch_size') and optim.min_lr > peak_lr(config):
        yield (
            f'optim.min_lr={optim.min_lr} is above the peak learning rate {peak_lr(config):.3g}, which is '
            f'optim.base_lr={optim.base_lr} scaled by {optim.lr_scaling}; min_lr itself is not scaled.'
        )
    if sound('optim.base_lr', 'optim.warmup_lr') and optim.warmup_lr > optim.base_lr:
        yield f'optim.warmup_lr={optim.warmup_lr} is above optim.base_lr={optim.base_lr}, to which the warm-up rises.'
    if optim.schedule == 'step':
        epochs = optim.step_epochs
        if not epochs or not all(type(epoch) in (int, float) for epoch in epochs):
            yield f"optim.schedule='step' needs optim.step_epochs, numbers such as 700, not {epochs}."
        elif list(epochs) != sorted(set(epochs)) or epochs[0] < optim.warmup_epochs:
            yield f'optim.step_epochs={epochs} must rise, and begin after optim.warmup_epochs={optim.warmup_epochs}.'
        elif config.steps == 0 and epochs[-1] >= config.epochs:
            yield (
                f'optim.step_epochs={epochs} is not reached in epochs={config.epochs}; '
                f'set --config.optim.step_epochs={0.875 * config.epochs:g}, or --config.optim.schedule=cosine and '
                '--config.optim.step_epochs=().'
            )
    elif optim.step_epochs:
        yield f"optim.step_epochs={optim.step_epochs} has no effect unless optim.schedule='step'."
    if sound('data.scale') and not 0 < data.scale[0] <= data.scale[1] <= 1:
        yield f'data.scale={data.scale} must satisfy 0 < smallest <= largest <= 1.'
    if sound('data.ratio') and not 0 < data.ratio[0] <= data.ratio[1]:
        yield f'data.ratio={data.ratio} must satisfy 0 < narrowest <= widest.'
    if sound('data.std') and min(data.std) <= 0:
        yield f'data.std={data.std} must be above 0 in every channel.'
    if data.rand_augment:
        try:
            parse_rand_augment(data.rand_augment)
        except ConfigError as error:
            yield str(error)
        if data.crop == 'center':
            yield f"data.rand_augment='{data.rand_augment}' has no effect with data.crop='center'; use another crop."
    if data.source == 'tfds' and not data.name:
        yield "data.source='tfds' needs data.name, such as imagenet2012."
    if data.source in ('folder', 'npz') and not data.dir:
        yield f"data.source='{data.source}' needs to know where: add --config.data.dir=PATH."
    if probe.every_epochs > 0 and not (probe.knn or probe.ridge or probe.few_shot):
        yield f'probe.every_epochs={probe.every_epochs}, but probe.knn, probe.ridge and probe.few_shot are all off.'
