"""Eight fake CPU devices for every test, set before jax is first imported; and a bucket for those that ask for it."""

import os
import tracemalloc  # noqa: F401  pytest's hook imports it late, which fails while TFDS has import itself patched

import pytest
from fake_gcs import serve

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_flag = '--xla_force_host_platform_device_count'
if _flag not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_flag}=8'.strip()


@pytest.fixture(scope='session')
def served():
    """One for all: TensorStore remembers where GCS is."""
    with pytest.MonkeyPatch.context() as patch, serve() as (bucket, environment):
        for name, value in environment.items():
            patch.setenv(name, value)
        yield bucket


@pytest.fixture
def bucket(served):
    """gs://fake, empty, to this process and its children; see fake_gcs."""
    served.reset()
    yield served
    served.reset()
