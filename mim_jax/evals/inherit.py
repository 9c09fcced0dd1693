"""What the evaluation of a run takes from that run, and not from the protocol's own config file."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from mim_jax.config.names import assign, flatten
from mim_jax.config.variants import DATASETS
from mim_jax.errors import ConfigError

SIZES = ('patch_size', 'width', 'depth', 'heads')
DATASET = ('source', 'name', 'dir', 'split', 'eval_split')
ENCODER_ONLY = ('base', *(f'encoder.{name}' for name in SIZES))
SETTLED = ('image_size', 'data.mean', 'data.std', 'data.interpolation')  # when a classifier was trained
WITHOUT_POSITIONS = ('simmim', 'conmim')  # only relative ones, always trained


def inherit_run(config: ConfigDict, run: ConfigDict, spec: str, overrides: Sequence[str]) -> ConfigDict:
    """The protocol's config about the run's encoder; changes and returns `config`.

    The base and the encoder's sizes are always the run's. So are the dataset, the image size and the statistics of the
    pixels, unless the command line says otherwise, by a variant that names a dataset or by an override.
    Raises ConfigError when an override would change the encoder.
    """
    given = {override.partition('=')[0].removeprefix('--config.') for override in overrides}
    for key in ENCODER_ONLY:
        if key in given:
            raise ConfigError(f'{key} is what --checkpoint holds, and cannot be set in its evaluation.')
    variants = {part.strip() for part in spec.partition(':')[2].split(',')}
    other_dataset = bool(variants & DATASETS.keys() or given & {'data.source', 'data.name'})
    if config.base in config:
        del config[config.base]
    config.base = run.base
    if run.base in run:
        config[run.base] = run[run.base]
    for name in SIZES:
        config.encoder[name] = run.encoder[name]
    if 'finetune' not in config.papers or run.base in WITHOUT_POSITIONS:
        config.encoder.positions = run.encoder.positions
    for name in ('mean', 'std', *(() if other_dataset else DATASET)):
        if f'data.{name}' not in given:
            config.data[name] = run.data[name]
    if 'image_size' not in given:
        config.image_size = run.image_size
    return config


def inherit_classifier(config: ConfigDict, run: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """After inherit_run, for a protocol of a whole classifier: what its training settled; changes and returns `config`.

    dtype is the run's unless the command line says otherwise. Raises ConfigError when an override says something else.
    """
    given = {override.partition('=')[0].removeprefix('--config.') for override in overrides}
    was, now = flatten(run), flatten(config)
    for key in SETTLED:
        if key in given and now[key] != was[key]:
            raise ConfigError(f'{key} was {was[key]} when the classifier of --checkpoint was trained; leave it out.')
        assign(config, key, was[key])
    if 'dtype' not in given:
        config.dtype = run.dtype
    return config
