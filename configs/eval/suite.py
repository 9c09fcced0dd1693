"""All protocols that the papers' tables have columns for, of one encoder, on the dataset that it was trained on.

Command   python -m mim_jax.evaluate --checkpoint RUN --suite configs/eval/suite.py
"""

from mim_jax.evals.suite import Row

FINETUNE = 'configs/eval/finetune.py'
SUITE = (
    Row('k-NN', 'configs/eval/knn.py', 'knn'),
    Row('linear probe', 'configs/eval/linear_probe.py', 'top1', paper='MAE 68.0 (1600 epochs)'),
    Row('fine-tuning', FINETUNE, 'top1', paper='MAE 83.6'),
    Row('1 % of labels', f'{FINETUNE}:1pct', 'top1', paper='MAE, 800 epochs, 45.4'),
    Row('10 % of labels', f'{FINETUNE}:10pct', 'top1', paper='MAE, 800 epochs, 71.2'),
    *(
        Row(
            name,
            'configs/eval/robustness.py',
            metric,
            (f'--config.robustness.sets={kind},',),
            of='fine-tuning',
            paper=paper,
        )
        for name, kind, metric, paper in (
            ('IN-A', 'imagenet_a', 'imagenet_a/top1', 'MAE 35.9'),
            ('IN-R', 'imagenet_r', 'imagenet_r/top1', 'MAE 48.3'),
            ('IN-Sketch', 'imagenet_sketch', 'imagenet_sketch/top1', 'MAE 34.5'),
            ('IN-V2', 'imagenet_v2', 'imagenet_v2/top1', 'MAE 72.9 (LUT table)'),
            ('IN-C', 'imagenet_c', 'imagenet_c/mce', 'MAE 51.7, lower is better'),
        )
    ),
)
