"""The protocols of small data such as CIFAR-10, on a CPU or one GPU: k-NN, probes, fine-tuning, low-shot, corruptions.

Command   python -m mim_jax.evaluate --checkpoint RUN --suite configs/eval/small_suite.py
"""

from mim_jax.evals.suite import Row

FINETUNE, SEEDS = 'configs/eval/finetune.py', (0, 1, 2)
SUITE = (
    Row('k-NN, mean of patches', 'configs/eval/knn.py:small,pooled', 'knn'),
    Row(
        'cached-feature probe, mean of patches',
        'configs/eval/cached_probe.py:small,pooled',
        'cached_probe',
        seeds=SEEDS,
    ),
    Row('linear probe, mean of patches', 'configs/eval/linear_probe.py:small,pooled', 'best/top1'),
    Row('fine-tuning, 10 epochs', f'{FINETUNE}:small', 'top1'),
    Row('1 % of labels', f'{FINETUNE}:small,share_1', 'top1', ('--config.epochs=50.0',), seeds=SEEDS),
    Row('10 % of labels', f'{FINETUNE}:small,share_10', 'top1', ('--config.epochs=20.0',)),
    Row('corruptions, error', 'configs/eval/corruptions.py', 'mean_error', of='fine-tuning, 10 epochs'),
)
