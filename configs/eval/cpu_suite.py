"""small_suite.py at a budget of two CPU cores: minutes for each row. It compares recipes of one budget, and ranks nothing else.

A fine-tuning sees 15,000 images, the share of labels that its name says; two runs of it differ in their seed.

Command   python -m mim_jax.evaluate --checkpoint RUN [RUN ...] --suite configs/eval/cpu_suite.py
"""

from mim_jax.evals.suite import Row

FINETUNE, SEEDS = 'configs/eval/finetune.py', (0, 1, 2)
BRIEF = ('--config.epochs=1.0', '--config.optim.warmup_epochs=0.1', '--config.data.share=0.3')
SUITE = (
    Row('k-NN, mean of patches', 'configs/eval/knn.py:small,pooled', 'knn'),
    Row('cached-feature probe, mean of patches', 'configs/eval/cached_probe.py:small,pooled', 'cached_probe'),
    Row(
        'linear probe, mean of patches, best of 4 rates on the test images',
        'configs/eval/linear_probe.py:small,pooled',
        'best_on_test/top1',
        BRIEF,
        seeds=SEEDS,
    ),
    Row('fine-tuning, 30 % of labels once', f'{FINETUNE}:small', 'top1', BRIEF, seeds=SEEDS),
    Row('the same from scratch', f'{FINETUNE}:small,scratch', 'top1', BRIEF, seeds=SEEDS, from_scratch=True),
    Row('10 % of labels (one draw), 3 epochs', f'{FINETUNE}:small,share_10', 'top1', ('--config.epochs=3.0',)),
    Row('1 % of labels (one draw), 30 epochs', f'{FINETUNE}:small,share_1', 'top1', ('--config.epochs=30.0',)),
    Row(
        'corruptions, error of the fine-tuned on 1000 images',
        'configs/eval/corruptions.py',
        'mean_error',
        ('--config.corruptions.limit=1000',),
        of='fine-tuning, 30 % of labels once',
    ),
)
