"""The configuration of a run: one tree of scalars and flat tuples, checked before any device is touched.

A config file starts from default_config(), states what its recipe changes, and ends with apply_variants. Programs call
load_config, check_config, then check_devices once devices and dataset are known. Nothing here imports jax.
"""

from mim_jax.config.check import bind_method, check_config, find_contradictions
from mim_jax.config.length import check_devices, peak_lr, steps_per_epoch, total_steps, warmup_steps
from mim_jax.config.load import load_config
from mim_jax.config.record import check_same_run, difference, from_json, shared_settings, to_json
from mim_jax.config.tree import IMAGENET_MEAN, IMAGENET_STD, default_config
from mim_jax.config.variants import apply_variants

__all__ = [
    'IMAGENET_MEAN',
    'IMAGENET_STD',
    'apply_variants',
    'bind_method',
    'check_config',
    'check_devices',
    'check_same_run',
    'default_config',
    'difference',
    'find_contradictions',
    'from_json',
    'load_config',
    'peak_lr',
    'shared_settings',
    'steps_per_epoch',
    'to_json',
    'total_steps',
    'warmup_steps',
]
