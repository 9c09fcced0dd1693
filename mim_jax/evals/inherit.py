"""What the evaluation of a run takes from that run, and not from the protocol's own config file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from mim_jax.config.names import assign, flatten
from mim_jax.config.tree import default_config
from mim_jax.config.variants import DATASETS, MODEL
from mim_jax.errors import ConfigError

SIZES = ('patch_size', 'width', 'depth', 'heads')
DATASET = ('source', 'name', 'dir', 'split', 'eval_split', 'flip')
ENCODER_ONLY = ('base', *(f'encoder.{name}' for name in SIZES))
SETTLED = ('image_size', 'data.mean', 'data.std', 'data.interpolation')  # when a classifier was trained
WITHOUT_POSITIONS = ('simmim', 'conmim')  # only relative ones, always trained


def inherit_run(config: ConfigDict, run: ConfigDict, spec: str, overrides: Sequence[str]) -> ConfigDict:
    """The protocol's config about the run's encoder; changes and returns `config`.

    The base and the encoder's sizes are always the run's. So are the dataset, whether it is flipped, the image size and the
    statistics of the pixels, unless the protocol or the command line says otherwise: by a variant that names a dataset or
    sets one of its keys, or by an override. How much of an image a crop keeps (data.scale) is the protocol's, save for
    digits, of which it is the dataset's. Raises ConfigError for what would change the encoder, or its grid in a protocol
    that does not train it.
    """
    given = {override.partition('=')[0].removeprefix('--config.') for override in overrides}
    for key in ENCODER_ONLY:
        if key in given:
            raise ConfigError(f'{key} is what --checkpoint holds, and cannot be set in its evaluation.')
    variants = {part.strip() for part in spec.partition(':')[2].split(',')}
    if sizes := [part for part in variants if re.fullmatch(MODEL, part)]:
        raise ConfigError(f'The encoder is what --checkpoint holds; leave out the variant {sizes[0]}.')
    other_dataset = bool(variants & DATASETS.keys() or given & {'data.source', 'data.name'})
    plain = default_config().data
    said = {name for name in DATASET if other_dataset or config.data[name] != plain[name]}
    if config.base in config:
        del config[config.base]
    config.base = run.base
    if run.base in run:
        config[run.base] = run[run.base]
    for name in SIZES:
        config.encoder[name] = run.encoder[name]
    if 'finetune' not in config.papers or run.base in WITHOUT_POSITIONS:
        config.encoder.positions = run.encoder.positions
    for name in ('mean', 'std', *DATASET):
        if f'data.{name}' not in given and name not in said:
            config.data[name] = run.data[name]
    own_scale = DATASETS.get(config.data.source, {}).get('scale')  # of digits: less than half of one cannot be read
    if own_scale and 'data.scale' not in given:
        config.data.scale = own_scale
    if 'image_size' not in given:
        config.image_size = run.image_size
    elif 'finetune' not in config.papers and config.image_size != run.image_size:
        raise ConfigError(
            f'image_size={config.image_size}: the encoder was trained at {run.image_size}, and only fine-tuning resizes it.'
        )
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
