"""How long a run is and how fast it learns, and whether it fits the devices and the dataset it is given."""

import math

from ml_collections import ConfigDict

from mim_jax.config.names import around, raise_problems


def steps_per_epoch(config: ConfigDict, dataset_size: int) -> float:
    """Optimizer steps per pass over `dataset_size` images. Exact, not floored: batches cross the ends of epochs."""
    return dataset_size / config.batch_size


def total_steps(config: ConfigDict, dataset_size: int) -> int:
    """Optimizer steps of the run: config.steps, or the nearest whole number to config.epochs passes."""
    return config.steps or max(1, round(config.epochs * dataset_size / config.batch_size))


def warmup_steps(config: ConfigDict, dataset_size: int) -> float:
    """Length of the linear warm-up in optimizer steps; a fraction, as warm-up is counted in (fractional) epochs."""
    return config.optim.warmup_epochs * dataset_size / config.batch_size


def peak_lr(config: ConfigDict) -> float:
    """Learning rate after the warm-up: base_lr, x batch/256 (MAE), x batch/512 (SimMIM), x sqrt(batch)/4 (LUT)."""
    factors = {
        'none': 1.0,
        'linear/256': config.batch_size / 256,
        'linear/512': config.batch_size / 512,
        'sqrt': math.sqrt(config.batch_size) / 4,
    }
    return config.optim.base_lr * factors[config.optim.lr_scaling]


def check_devices(config: ConfigDict, devices: int, dataset_size: int | None) -> None:
    """Raise one ConfigError listing every reason why this run does not fit.

    devices: of the whole run. dataset_size: images of data.split, None while unknown. config has been checked.
    """
    problems = _find_mesh_problems(config, devices)
    batch, group = config.batch_size, config.mesh.model
    shards = max(1, devices // group)  # the devices of a group work on the same images
    unit = shards * config.accumulate  # every batch that can be split is a multiple of this
    if batch % unit:
        over = f'{devices} devices' if group == 1 else f'{shards} groups of mesh.model={group} devices'
        micro = f' x accumulate={config.accumulate}' if config.accumulate > 1 else ''
        problems.append(
            f'batch_size={batch} does not split evenly over {over}{micro}; batch_size={around(batch, unit)} does.'
        )
    if dataset_size is not None:
        problems += _find_length_problems(config, dataset_size, unit)
    raise_problems(problems)


def _find_mesh_problems(config: ConfigDict, devices: int) -> list[str]:
    data, fsdp, model, slices = (config.mesh[name] for name in ('data', 'fsdp', 'model', 'slices'))
    if devices % (fsdp * model):
        product = f'mesh.fsdp={fsdp}' if model == 1 else f'mesh.fsdp={fsdp} x mesh.model={model}'
        return [f'{product} does not divide {devices} devices; it can be {_divisors(devices)}.']
    left = devices // (fsdp * model)
    if data not in (-1, left):
        by_model = '' if model == 1 else f' x mesh.model={model}'
        return [
            f'mesh.data={data} x mesh.fsdp={fsdp}{by_model} is {data * fsdp * model}, but there are {devices} devices; '
            f'set mesh.data={left}, or -1 to take what {"fsdp leaves" if model == 1 else "fsdp and model leave"}.',
        ]
    if slices and left % slices:
        return [f'mesh.slices={slices} does not divide mesh.data={left}; it can be {_divisors(left)}.']
    return []


def _divisors(count: int) -> str:
    return ', '.join(str(n) for n in range(1, count + 1) if count % n == 0)


def _find_length_problems(config: ConfigDict, dataset_size: int, unit: int) -> list[str]:
    data, problems = config.data, []
    name = data.name if data.source == 'tfds' else data.dir or data.source
    if config.batch_size > dataset_size:
        fits = dataset_size // unit * unit
        remedy = (
            f'use batch_size={fits} or less' if fits else f'so is the smallest batch these devices can share, {unit}'
        )
        problems.append(
            f"batch_size={config.batch_size} is larger than the {dataset_size} images of '{name}' ({data.split}); "
            f'{remedy}.'
        )
    warmup, total = warmup_steps(config, dataset_size), total_steps(config, dataset_size)
    if warmup and warmup >= total:
        problems.append(
            f'optim.warmup_epochs={config.optim.warmup_epochs} is {warmup:.0f} steps ({dataset_size} images in batches '
            f'of {config.batch_size}), but the run has only {total}; a tenth of it is '
            f'optim.warmup_epochs={0.1 * total * config.batch_size / dataset_size:.2g}.'
        )
    return problems
