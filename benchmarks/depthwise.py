"""Depth-wise 5 x 5 convolution, forward and backward: three forms, interleaved. python benchmarks/depthwise.py [rounds]

CViT-B's first stage at 224 pixels, batch 4: f32[4,56,56,256]. Prints seconds (least and median of the rounds), the ratio of
medians to the form in use, and the compiler's temporaries. Numbers with machine and date: benchmarks/README.md.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp

from mim_jax.models.depthwise import _correlate, correlate

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7


def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same by XLA's convolution with as many groups as channels."""
    dimensions = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=dimensions, feature_group_count=x.shape[-1]
    )


def main() -> None:
    x = jax.random.normal(jax.random.key(0), (4, 56, 56, 256))
    kernel = jax.random.normal(jax.random.key(1), (5, 5, 1, 256))
    forms = {'shifts, own gradient (in use)': correlate, "shifts, JAX's gradient": _correlate, 'grouped': grouped}
    compiled, seconds = {}, {name: [] for name in forms}
    for name, form in forms.items():
        gradient = jax.grad(lambda x, kernel, form=form: jnp.sin(form(x, kernel)).sum(), argnums=(0, 1))
        compiled[name] = jax.jit(gradient).lower(x, kernel).compile()
        jax.block_until_ready(compiled[name](x, kernel))
    for _ in range(ROUNDS):
        for name, run in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(run(x, kernel))
            seconds[name].append(time.perf_counter() - start)
    first = statistics.median(next(iter(seconds.values())))
    print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}, {ROUNDS} rounds')
    for name, times in seconds.items():
        median, memory = statistics.median(times), compiled[name].memory_analysis()
        size = '' if memory is None else f', {memory.temp_size_in_bytes / 2**20:.0f} MiB of temporaries'
        print(f'{name:32} least {min(times):.4f} s, median {median:.4f} s, ratio {median / first:.2f}{size}')


if __name__ == '__main__':
    main()
