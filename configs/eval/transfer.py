"""Transfer: fine-tuning on another dataset over a grid of learning rates and weight decays (LUT tables 2, 3; MFF table 9).

The papers name no grid ("following Kornblith et al."); this is ours, and the table prints the best point and the mean.

Command   python -m mim_jax.evaluate --checkpoint RUN --suite configs/eval/transfer.py --config.data.dir=DATA
          the names are those of TFDS; a set that is not prepared stands in the table with the reason
Not here  Aircraft (LUT 89.2) and iNat 2019 (LUT 81.0), which TFDS has not: as folders by configs/eval/finetune.py:folder
          --config.data.dir=DIR, DIR/train/<class>/*.jpg and DIR/val/<class>/*.jpg, for every point of GRID
Flowers   on train and validation together, 2,040 images, as Kornblith et al.; train alone is less than a batch of 1024
Expected  LUT, ViT-B, best: iNat18 75.8 (MAE 74.6); CIFAR-10 99.1, CIFAR-100 91.0, Dogs 87.4, Flowers 98.4.
          MFF on MAE: CIFAR-10 98.6, CIFAR-100 90.3, Cars 94.7. Not run here.
"""

from mim_jax.evals.suite import Row

GRID = {'optim.base_lr': (5e-4, 1e-3, 2.5e-3, 5e-3), 'optim.weight_decay': (0.05, 0.1, 0.3)}
SETS = {  # TFDS name, splits, the published figure
    'CIFAR-10': ('cifar10', 'train', 'test', 'LUT 99.1, MFF 98.6'),
    'CIFAR-100': ('cifar100', 'train', 'test', 'LUT 91.0, MFF 90.3'),
    'Cars': ('cars196', 'train', 'test', 'MFF 94.7'),
    'CUB': ('caltech_birds2011', 'train', 'test', 'LUT 86.5'),
    'Dogs': ('stanford_dogs', 'train', 'test', 'LUT 87.4'),
    'Flowers': ('oxford_flowers102', 'train+validation', 'test', 'LUT 98.4'),
    'iNat 2018': ('i_naturalist2018', 'train', 'validation', 'LUT 75.8'),
}
SUITE = tuple(
    Row(
        name,
        'configs/eval/finetune.py',
        'top1',
        tuple(
            f'--config.data.{key}={value}'
            for key, value in {'source': 'tfds', 'name': tfds, 'split': train, 'eval_split': test}.items()
        ),
        GRID,
        paper=paper,
    )
    for name, (tfds, train, test, paper) in SETS.items()
)
