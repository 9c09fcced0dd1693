"""Named changes to any recipe: `configs/mae.py:vit_s16`, `:cifar10`, `:smoke`, `:demo`, and combinations of them.

At most one of each kind: a model, a dataset, a crop, a scale. Their order does not matter. A config file may add variants
of its own, such as the rows of a paper's table; several of these combine. A scale (smoke, demo) brings a small
model and the embedded digits along unless a model or a dataset is named: `smoke,vit_s16,imagenet` runs ViT-S/16 for 20
steps.
"""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mim_jax.config.names import suggest
from mim_jax.config.tree import IMAGENET_MEAN, IMAGENET_STD, default_config
from mim_jax.errors import ConfigError

VIT_SIZES = {  # width, depth, heads
    't': (192, 12, 3),
    's': (384, 12, 6),
    'b': (768, 12, 12),
    'l': (1024, 24, 16),
    'h': (1280, 32, 16),
}

CVIT_SIZES = {  # MCMAE's encoder: width, depth, heads of its transformer, widths of its convolution stages (2 blocks each)
    's': (384, 11, 6, (128, 256)),
    'b': (768, 11, 12, (256, 384)),
    'l': (1024, 23, 16, (384, 768)),
    'h': (1280, 31, 16, (768, 1024)),
}

# The crop stays the recipe's, save for digits. Mean and std are ImageNet's unless given; a recipe with statistics of its
# own (BootMAE's 0.5) keeps them.
DATASETS: dict[str, dict[str, Any]] = {
    'imagenet': {'source': 'tfds', 'name': 'imagenet2012', 'split': 'train', 'eval_split': 'validation'},
    'cifar10': {
        **{'source': 'tfds', 'name': 'cifar10', 'split': 'train', 'eval_split': 'test'},
        **{'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2470, 0.2435, 0.2616)},
    },
    # One photo per class, no validation split: to rehearse the ImageNet pipeline, not for accuracies.
    'imagenet_sample': {
        **{'source': 'tfds', 'name': 'imagenet_sample', 'split': 'train[:800]', 'eval_split': 'train[800:]'},
    },
    # Handwritten digits of scikit-learn, 8 x 8 grey, enlarged to 32. Half of one can still be read, its mirror
    # image cannot.
    'digits': {
        **{'source': 'digits', 'name': '', 'split': 'train', 'eval_split': 'test'},
        **{'mean': (0.309,) * 3, 'std': (0.349,) * 3, 'scale': (0.5, 1.0), 'flip': False},
    },
    'folder': {'source': 'folder', 'name': '', 'split': 'train', 'eval_split': 'val'},  # and --config.data.dir=ROOT
    'synthetic': {'source': 'synthetic', 'name': '', 'split': 'train', 'eval_split': 'test'},  # to time the step alone
}
MODEL = r'(?:vit_([tsblh])|cvit_([sblh]))([1-9]\d*)'  # a size of either kind, and a patch size
CROPS = {  # as released with MAE, and with PixMIM and MFF; configs/mae.py:src is the control that MFF's crop asks for
    'rrc': {'crop': 'rrc', 'interpolation': 'bicubic'},
    'src': {'crop': 'src', 'interpolation': 'bilinear'},
}
TINY_IMAGES = ('cifar10', 'digits')  # 32 pixels, patches of 4; the others 224 and 16
FEW_IMAGES = ('imagenet_sample', 'digits')  # batches of at most 128

# Learning rates are pinned (lr_scaling none): the papers' rules say little at these batch sizes.
SCALES: dict[str, dict[str, Any]] = {
    'smoke': {  # seconds on two cores: does it run, save and resume?
        'batch_size': 32,
        'steps': 20,
        'optim.warmup_epochs': 0.05,  # 2 to 3 steps of digits
        'log.every_steps': 5,
        'checkpoint.every_steps': 10,
        'encoder.width': 64,
        'encoder.depth': 2,
        'encoder.heads': 2,
    },
    'demo': {  # minutes on two cores: does it learn?
        'batch_size': 64,
        'epochs': 40.0,
        'optim.warmup_epochs': 3.0,
        'log.every_steps': 20,
        'checkpoint.every_steps': 100,
        'probe.every_epochs': 5.0,
        'pictures.every_epochs': 10.0,
        'encoder.width': 128,
        'encoder.depth': 4,
        'encoder.heads': 4,
    },
}
SMALL = {
    'dtype': 'float32',
    'optim.base_lr': 1e-3,
    'optim.lr_scaling': 'none',
    'optim.warmup_lr': 0.0,
    'optim.schedule': 'cosine',
    'optim.step_epochs': (),
    'optim.min_lr': 0.0,
    'data.threads': 2,
    'checkpoint.milestone_epochs': 0.0,
}
SMALL_HEADS = {  # where a method's section has them
    **{'decoder_width': 64, 'decoder_depth': 2, 'decoder_heads': 4, 'projector_width': 128, 'projector_output': 64},
    **{'head_width': 128, 'stage_widths': (32, 48), 'stage_depths': (1, 1), 'teachers': ('random',)},
}


def apply_variants(config: ConfigDict, variants: str, own: Mapping[str, Mapping[str, Any]] = {}) -> ConfigDict:
    """Change `config` as the comma-separated variants say ('' does nothing) and return it.

    own: the config file's {variant: {dotted key: value}}, applied last. ConfigError: an unknown variant, or two of the same
    kind.
    """
    model = dataset = crop = scale = ''
    chosen: list[str] = []
    for variant in filter(None, (part.strip() for part in variants.split(','))):
        taken = ''
        if re.fullmatch(MODEL, variant):
            taken, model = model, variant
        elif variant in DATASETS:
            taken, dataset = dataset, variant
        elif variant in CROPS:
            taken, crop = crop, variant
        elif variant in SCALES:
            taken, scale = scale, variant
        elif variant in own:
            taken = next((other for other in chosen if own[other].keys() & own[variant].keys()), '')
            chosen.append(variant)
        else:
            raise ConfigError(_explain_unknown(variant, own))
        if taken:
            raise ConfigError(f"Variants '{taken}' and '{variant}' exclude one another; keep one.")
    if scale:
        _apply_scale(config, scale)
        dataset = dataset or 'digits'
    if dataset:
        _apply_dataset(config, dataset)
        if scale == 'smoke' and dataset != 'digits':
            config.optim.warmup_epochs = 0.0  # 20 steps are a small part of an epoch here, shorter than any warm-up
    if model:
        _apply_model(config, model)
    if crop:
        config.data.update(CROPS[crop])
    for key, value in (item for variant in chosen for item in own[variant].items()):
        section, _, leaf = key.rpartition('.')
        if section and section not in config:
            config[section] = ConfigDict()  # of a paper that the variant adds
        (config[section] if section else config)[leaf] = value
    return config


def _apply_model(config: ConfigDict, model: str) -> None:
    vit, cvit, patch_size = re.fullmatch(MODEL, model).groups()
    section = config.get(config.base, {})
    if ('stage_widths' in section) != bool(cvit):
        raise ConfigError(
            f"Variant '{model}': MCMAE has an encoder of its own, with sizes cvit_{{{','.join(CVIT_SIZES)}}}PATCH, such as "
            "cvit_s16; the other methods' are vit_s16 and so on."
        )
    if cvit:
        *sizes, section.stage_widths = CVIT_SIZES[cvit]
        section.stage_depths = (2, 2)
    else:
        sizes = VIT_SIZES[vit]
    config.encoder.width, config.encoder.depth, config.encoder.heads = sizes
    config.encoder.patch_size = int(patch_size)


def _apply_scale(config: ConfigDict, scale: str) -> None:
    config.update_from_flattened_dict(SMALL | SCALES[scale])
    for name in set(config) - set(default_config()):  # sections of methods
        config[name].update({key: value for key, value in SMALL_HEADS.items() if key in config[name]})


def _apply_dataset(config: ConfigDict, dataset: str) -> None:
    config.image_size, config.encoder.patch_size = (32, 4) if dataset in TINY_IMAGES else (224, 16)
    if dataset in FEW_IMAGES:
        batch = min(config.batch_size, 128)
        config.optim.min_lr *= batch / config.batch_size  # else it may be above the peak of so small a batch
        config.batch_size = batch
    own = {} if config.data.mean == IMAGENET_MEAN else {'mean': config.data.mean, 'std': config.data.std}
    config.data.update({'mean': IMAGENET_MEAN, 'std': IMAGENET_STD} | DATASETS[dataset] | own)


def _explain_unknown(variant: str, own: Mapping[str, Any]) -> str:
    models = [*(f'vit_{size}16' for size in VIT_SIZES), *(f'cvit_{size}16' for size in CVIT_SIZES)]
    names = [*models, *DATASETS, *CROPS, *SCALES, *own]
    listed = (
        f'vit_{{{",".join(VIT_SIZES)}}}PATCH (such as vit_s16; cvit_{{{",".join(CVIT_SIZES)}}}PATCH for MCMAE), '
        f'{", ".join([*DATASETS, *CROPS, *SCALES, *own])}'
    )
    return f"There is no variant '{variant}'.{suggest(variant, names)} There are: {listed}."
