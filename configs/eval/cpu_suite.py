"""small_suite.py at a budget of two CPU cores: minutes for each row. It compares recipes of one budget, and ranks nothing else.

A fine-tuning sees about 10,000 images, the share of labels that its name says; two runs of a row differ in their seed.

Command   python -m mim_jax.evaluate --checkpoint RUN [RUN ...] --suite configs/eval/cpu_suite.py
"""

from mim_jax.evals.suite import Row

FINETUNE, SEEDS, SMALL_BATCH = 'configs/eval/finetune.py', (0, 1, 2), '--config.batch_size=64'
BRIEF = ('--config.epochs=1.0', '--config.optim.warmup_epochs=0.1', '--config.data.share=0.2')
SUITE = (
    Row('k-NN of 20 % of the images, mean of patches', 'configs/eval/knn.py:small,pooled', 'knn', BRIEF[2:]),
    Row(
        'linear probe, mean of patches, best of 4 rates on the test images',
        'configs/eval/linear_probe.py:small,pooled',
        'best_on_test/top1',
        (*BRIEF, SMALL_BATCH),
    ),
    Row('fine-tuning, 20 % of labels once', f'{FINETUNE}:small', 'top1', (*BRIEF, SMALL_BATCH), seeds=SEEDS),
    Row(
        'the same from scratch',
        f'{FINETUNE}:small,scratch',
        'top1',
        (*BRIEF, SMALL_BATCH),
        seeds=SEEDS,
        from_scratch=True,
    ),
    Row(
        '10 % of labels (one draw), 2 epochs',
        f'{FINETUNE}:small,share_10',
        'top1',
        ('--config.epochs=2.0', SMALL_BATCH),
    ),
    Row(
        '1 % of labels (one draw), 20 epochs',
        f'{FINETUNE}:small,share_1',
        'top1',
        ('--config.epochs=20.0', SMALL_BATCH),
    ),
    Row(
        'corruptions, error of the fine-tuned on 500 images',
        'configs/eval/corruptions.py',
        'mean_error',
        ('--config.corruptions.limit=500',),
        of='fine-tuning, 20 % of labels once',
    ),
)
