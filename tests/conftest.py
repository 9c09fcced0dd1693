"""Eight fake CPU devices for every test; set before jax is first imported."""

import os
import tracemalloc  # noqa: F401  pytest's hook imports it late, which fails while TFDS has import itself patched

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_flag = '--xla_force_host_platform_device_count'
if _flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_flag}=8'.strip()
