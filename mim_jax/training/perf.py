"""How fast a run is: images per second, time lost to the loader, time to go, floating-point operations, and MFU."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.extend import core

# Dense bf16 peak, FLOP/s per JAX *device*; the first name found in `device_kind` counts. One device is one chip, except
# that a TPU v3 chip is two devices (one per core) and a TPU7x chip is two (one per chiplet).
# Names and TPU v4 lite: jax/_src/pallas/mosaic/tpu_info.py. The other figures are the makers' published ones as remembered
# (NVIDIA's without the sparsity factor of 2); they were not looked up again here: check yours before you quote an mfu.
PEAK_FLOPS = {
    'TPU v3': 123e12 / 2,
    'TPU v4 lite': 137e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5': 459e12,
    'TPU v6 lite': 918e12,
    'TPU v6e': 918e12,
    'TPU7x': 2307e12 / 2,
    'H100 PCIe': 756e12,
    'H100 NVL': 835e12,
    'H200 NVL': 835e12,
    'H100': 989e12,
    'H200': 989e12,
    'A100': 312e12,
}


def find_peak(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device of this kind; None where it is not known, as on a CPU."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


def mfu(flops_per_step: float, images_per_second: float, batch: int, devices: Sequence[jax.Device]) -> float | None:
    """FLOPs utilisation: the used fraction (0 to 1) of all devices' bf16 peak; None where that is not known.

    It is the *model's* utilisation when `flops_per_step` counts no rematerialised work.
    """
    peak = find_peak(devices[0].device_kind)
    if peak is None:
        return None
    return flops_per_step * images_per_second / batch / (peak * len(devices))


class Meter:
    """Measures the window between two log lines and how long the run has to go. All times are host wall time.

    Use: `with meter.wait(): batch = next(loader)`, dispatch the step, `meter.step()`; `with meter.pause():` around
    evaluations and checkpoints; `meter.read(step)` for a log line. The first step of a session compiles: not counted.
    The host must stay within a step of the device (`loggers.Deferred` sees to it), and the caller should let the device
    finish before a pause: a step that runs during a pause costs nothing here.
    """

    def __init__(self, batch_size: int, total_steps: int, clock: Callable[[], float] = time.perf_counter):
        self._batch_size, self._total_steps, self._clock = batch_size, total_steps, clock
        self._session_start: float | None = None  # the end of the first step
        self._session_steps = 0
        self._open_window()

    def _open_window(self) -> None:
        self._start, self._steps, self._waited, self._paused = self._clock(), 0, 0.0, 0.0

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Count the time inside as blocked on the loader: an upper bound on the device's loss, as it may be busy."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time inside out of the rates. eta_seconds keeps it, as pauses will come again."""
        start = self._clock()
        yield
        self._paused += self._clock() - start

    def step(self) -> None:
        """Count one optimizer step."""
        if self._session_start is None:
            self._session_start = self._clock()
            self._open_window()
            return
        self._steps += 1
        self._session_steps += 1

    def read(self, step: int) -> dict[str, float]:
        """Close the window at `step`: images_per_second, data_wait_ms per step, data_wait_share, step_ms, eta_seconds.

        Empty when no step was counted since the last call.
        """
        now = self._clock()
        elapsed = now - self._start - self._paused
        if self._steps == 0 or elapsed <= 0:
            return {}
        seconds_per_step = (now - self._session_start) / self._session_steps
        values = {
            'images_per_second': self._steps * self._batch_size / elapsed,
            'data_wait_ms': 1e3 * self._waited / self._steps,
            'data_wait_share': self._waited / elapsed,
            'step_ms': 1e3 * elapsed / self._steps,
            'eta_seconds': seconds_per_step * (self._total_steps - step),
        }
        self._open_window()
        return values


def count_flops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
    """Floating-point operations of the matrix products and convolutions in `jaxpr`, all devices; 2 per multiply-add.

    Element-wise work is not counted, as is usual for MFU. What `jax.checkpoint` computes twice is counted twice, and so
    is dead code, which the compiler will remove. A scan counts `length` times, a cond as its dearest branch, a
    shard_map once per device of its manual axes. Not counted: the body of a `while`, whose length is not known
    (`fori_loop` with fixed bounds is a scan), and Pallas kernels.
    """
    jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
    return sum(count_equation_flops(equation) for equation in jaxpr.eqns)


def count_equation_flops(equation: Any) -> int:
    """FLOPs of one equation, those inside it included."""
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        left = equation.invars[0].aval.shape
        # The output's axes are the batch axes, then M, then N.
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == 'conv_general_dilated':
        kernel = equation.invars[1].aval.shape
        _, kernel_inputs, *kernel_window = params['dimension_numbers'].rhs_spec
        window = math.prod(kernel[axis] for axis in kernel_window)
        # The kernel's input axis is already per group. A dilated input (in the transpose of a strided convolution) is
        # mostly zeros, which are not multiplied.
        products = math.prod(equation.outvars[0].aval.shape) * window * kernel[kernel_inputs]
        return 2 * products // math.prod(params['lhs_dilation'])
    if name in ('while', 'pallas_call'):
        return 0
    if name == 'cond':
        return max(count_flops(branch) for branch in params['branches'])
    inside = sum(count_flops(value) for value in params.values() if isinstance(value, core.ClosedJaxpr | core.Jaxpr))
    if name == 'scan':
        return inside * params['length']
    if name == 'shard_map':
        axes = params['newly_manual_axes'] if 'newly_manual_axes' in params else params['manual_axes']
        return inside * math.prod(params['mesh'].shape[axis] for axis in axes)
    return inside
