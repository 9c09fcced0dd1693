"""What the evaluation of a run takes from that run, and not from the protocol's own config file."""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from mim_jax.config.variants import DATASETS
from mim_jax.errors import ConfigError

SIZES = ('patch_size', 'width', 'depth', 'heads')
DATASET = ('source', 'name', 'dir', 'split', 'eval_split')
ENCODER_ONLY = ('base', *(f'encoder.{name}' for name in SIZES))
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
    if run.base in WITHOUT_POSITIONS:
        config.encoder.positions = 'fixed'
    for name in ('mean', 'std', *(() if other_dataset else DATASET)):
        if f'data.{name}' not in given:
            config.data[name] = run.data[name]
    if 'image_size' not in given:
        config.image_size = run.image_size
    return config
