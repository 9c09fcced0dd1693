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
    Row(
        'linear probe, mean of patches, best of 4 rates on the test images',
        'configs/eval/linear_probe.py:small,pooled',
        'best_on_test/top1',
    ),
    Row('fine-tuning, 10 epochs', f'{FINETUNE}:small', 'top1'),
    Row('the same from scratch', f'{FINETUNE}:small,scratch', 'top1', from_scratch=True),
    Row(
        '1 % of labels (one draw), 50 epochs',
        f'{FINETUNE}:small,share_1',
        'top1',
        ('--config.epochs=50.0',),
        seeds=SEEDS,
    ),
    Row('10 % of labels (one draw), 20 epochs', f'{FINETUNE}:small,share_10', 'top1', ('--config.epochs=20.0',)),
    Row(
        'corruptions, error of the fine-tuned', 'configs/eval/corruptions.py', 'mean_error', of='fine-tuning, 10 epochs'
    ),
)
