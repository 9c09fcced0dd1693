"""What was measured, for a person to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mim_jax.planning.measure import Fit

UNITS = ((2**30, 'GiB'), (2**20, 'MiB'), (2**10, 'KiB'))


def write_size(size: float) -> str:
    """'4.74 GiB', in the largest unit of which there is one."""
    unit, name = next((pair for pair in UNITS if size >= pair[0]), UNITS[-1])
    return f'{size / unit:.3g} {name}'


def describe(fit: Fit) -> Iterator[str]:
    """The lines on one configuration."""
    devices, batch = fit.devices, fit.batch
    mesh = ' x '.join(f'{name} {size}' for name, size in fit.mesh.items())
    micro = batch['images'] // (fit.shards * batch['accumulate'])
    slices = f' in {devices["slices"]} slices' if devices['slices'] > 1 else ''
    yield (
        f'{fit.recipe} on {devices["count"]} x {devices["kind"]}{slices}, mesh {mesh}; {batch["images"]} images a step, '
        f'{batch["accumulate"]} x {micro} a device.'
    )
    yield describe_memory(fit)
    yield describe_flops(fit.flops)
    if fit.memory['peak'] is None:
        return
    yield from describe_collectives(fit)
    yield describe_bounds(fit)


def describe_memory(fit: Fit) -> str:
    """Bytes on a device, and the verdict."""
    memory = fit.memory
    parts = ('parameters', 'optimizer', 'teachers', 'frozen', 'batch', 'temporaries')
    listed = ', '.join(f'{part} {write_size(memory[part])}' for part in parts if memory[part])
    capacity = None if memory['capacity'] is None else write_size(memory['capacity'])
    if memory['peak'] is None:
        needs = write_size(fit.needed) if fit.needed else 'more'
        return f'memory of a device: {listed}. DOES NOT FIT: the compiler asks for {needs} of {capacity}.'
    verdict = (
        f'{"fits" if fit.fits else "DOES NOT FIT"} in {capacity}' if capacity else 'how much there is, is not known'
    )
    code = f' (and {write_size(memory["program"])} of code)' if memory['program'] else ''
    return f'memory of a device: {listed}; peak {write_size(memory["peak"])}{code}: {verdict}.'


def describe_flops(flops: Mapping[str, float | None]) -> str:
    """Ours and the compiler's."""
    line = f'FLOPs: {flops["image"] / 1e9:.4g} G an image, {flops["device"] / 1e12:.4g} T a device and step'
    if flops['compiler'] is None:
        return f'{line}.'
    return f'{line}; the compiler counts {flops["compiler"] / 1e12:.4g} T, bodies of loops once.'


def describe_collectives(fit: Fit) -> Iterator[str]:
    """A line for each kind."""
    if not fit.collectives:
        yield 'collectives: none.'
        return
    yield 'collectives, a step and device:'
    for row in fit.collectives:
        where = {True: ', between slices', False: '', None: ', devices not named'}[row['crosses']]
        count = f'{row["count"]}{"" if row["exact"] else " or more"}'
        yield (
            f'  {row["kind"]} among {row["group"]}{where}: {count}, arrays of {write_size(row["size"])}, '
            f'{write_size(row["sent"])} sent'
        )


def describe_bounds(fit: Fit) -> str:
    """Step times that cannot be beaten, if the table of chips is right."""
    known = {name: bound for name, bound in fit.bounds.items() if bound is not None}
    if not known:
        return 'bounds of the step time: none, as nothing is known of this kind of device.'
    listed = ', '.join(f'{name} {1e3 * bound:.3g} ms' for name, bound in known.items())
    rate = fit.batch['images'] / fit.step_seconds
    return f'bounds, not predictions: {listed}: at least {1e3 * fit.step_seconds:.3g} ms a step, {rate:,.0f} images/s at most.'


def describe_changes(changes: Mapping[str, Any]) -> str:
    """As they would be typed."""
    return ' '.join(f'--config.{key}={value}' for key, value in changes.items())
