"""Each paper against its base on CIFAR-10, at the budget of two CPU cores; the claims below were written before any run.

Command   python -m mim_jax.study configs/study/cifar10.py --workdir DIR --jobs 2 --config.data.dir=../shared/data
          python -m mim_jax.study configs/study/cifar10.py --report
Cost      8 to 18 minutes of one core for a row (an arm and a seed); 24 arms, of which 12 make the main table.
"""

from mim_jax.study.plan import Arm, Claim, Study, Test

DATA = 'demo,cifar10,src'  # a ViT of width 128 and depth 4, patches of 4 pixels; the simple resized crop for all but one arm
MAE, MTO, SIMMIM = f'configs/mae.py:{DATA}', f'configs/mto.py:{DATA}', f'configs/simmim.py:{DATA}'
LUT, MR_MAE = f'configs/lut.py:{DATA}', 'configs/mr_mae.py:{},' + DATA
TEACHER = ('mae+src', 'mr_mae.dino_weights')  # the finished MAE of the same seed, as a frozen teacher
OF_TEACHER = ('--config.mr_mae.teachers=dino',)
HEADS = ('--config.lut.head_width=128',)  # the width of :demo, where LUT comes by --config.papers
SIMMIM_MTO = ('--config.papers=mto', '--config.optim.schedule=cosine')

ARMS = (
    Arm('mae', 'configs/mae.py:demo,cifar10'),  # MAE's own crop, random resized
    Arm('mae+src', MAE),
    Arm('mff', f'configs/mff.py:{DATA}', ('--config.optim.decay_exclude=mae',)),  # as its control
    Arm('lut', LUT),
    Arm('mto', MTO),
    Arm('mr_mae', MR_MAE.format('fused'), OF_TEACHER, TEACHER),
    Arm('simmim', SIMMIM),
    Arm('mff+mto', MAE, ('--config.papers=mff,mto',)),
    Arm('lut+mff', MAE, ('--config.papers=lut,mff', *HEADS)),
    Arm('simmim+mto', SIMMIM, SIMMIM_MTO),
    Arm(
        'all four',
        MAE,
        ('--config.papers=mff,lut,mr_mae,mto', *HEADS, *OF_TEACHER, '--config.mr_mae.fusion=False'),
        TEACHER,
    ),
    Arm('from scratch', overrides=('--config.finetune.layer_decay=1.0',), from_scratch='mae+src'),
    # ablations
    Arm('mr_mae, random masks', MR_MAE.format('mimic'), OF_TEACHER, TEACHER),
    Arm('mr_mae, focused', MR_MAE.format('focused'), OF_TEACHER, TEACHER),
    Arm('mr_mae, mimicry alone', MR_MAE.format('mimic_only'), OF_TEACHER, TEACHER),
    Arm('mr_mae, both from the decoder', MR_MAE.format('decoder'), OF_TEACHER, TEACHER),
    Arm('lut, teacher sees a quarter', LUT, ('--config.lut.teacher_mask_ratio=0.75',)),
    Arm('lut, masked tokens pooled too', LUT, ('--config.lut.pooled=both',)),
    Arm('mto, eq5', MTO, ('--config.mto.rank_direction=eq5',)),
    Arm('mto, sparsity alone', MTO, ('--config.mto.e_weight=0.0', '--config.mto.r_weight=0.0')),
    Arm('mto, distinctiveness alone', MTO, ('--config.mto.spa_weight=0.0', '--config.mto.r_weight=0.0')),
    Arm('mto, ranking alone', MTO, ('--config.mto.spa_weight=0.0', '--config.mto.e_weight=0.0')),
    Arm('mto, weight 0.01', MTO, ('--config.mto.mto_weight=0.01',)),
    Arm('mto, weight 1', MTO, ('--config.mto.mto_weight=1.0',)),
)

PROBE, TUNED = 'probe/ridge', 'fine-tuned'
SMALL = 'too short a run, but the direction should show'
CLAIMS = (
    Claim('the simple resized crop helps MAE', 'PixMIM, section 4.2', PROBE, 'mae+src', 'mae', 'yes: less is cut away'),
    Claim('fusion helps, same crop', 'MFF, table 1', PROBE, 'mff', 'mae+src', f'yes; {SMALL}'),
    Claim(
        'fusion helps fine-tuning', 'MFF, table 1', TUNED, 'mff', 'mae+src', 'no difference: 0.3 points in the paper'
    ),
    Claim(
        'weights of the fusion drift to the shallowest block',
        'MFF, figure 1',
        'watch/neck/last/weight_00',
        'mff',
        0.25,
        'yes',
    ),
    Claim(
        'the context loss helps, same crop',
        'LUT, table 1',
        PROBE,
        'lut',
        'mae+src',
        'yes: invariance is what a probe reads',
    ),
    Claim(
        'a teacher that sees all is better than one that sees a quarter',
        'LUT, table 4e',
        PROBE,
        'lut',
        'lut, teacher sees a quarter',
        'yes',
    ),
    Claim(
        'pooling unmasked tokens alone is better', 'LUT, table 4a', PROBE, 'lut', 'lut, masked tokens pooled too', 'yes'
    ),
    Claim(
        'mimicry helps (its teacher: that MAE)',
        'MR-MAE, table 3',
        PROBE,
        'mr_mae',
        'mae+src',
        'little: the teacher is weak',
    ),
    Claim(
        'focused mimicry is better than random',
        'MR-MAE, table 3',
        PROBE,
        'mr_mae, focused',
        'mr_mae, random masks',
        'unsure: the CLS of a short MAE hardly attends',
    ),
    Claim(
        'mimicry and reconstruction are better than either',
        'MR-MAE, table 3',
        PROBE,
        'mr_mae, focused',
        ('mr_mae, mimicry alone', 'mae+src'),
        'unsure',
    ),
    Claim(
        'separate places are better than both from the decoder',
        'MR-MAE, table 3',
        PROBE,
        'mr_mae, focused',
        'mr_mae, both from the decoder',
        'yes',
    ),
    Claim(
        'area under the probe curve, on MAE',
        'MTO, table 1',
        f'rauc/{PROBE}',
        'mto',
        'mae+src',
        'about 1: the weight is 0.1',
    ),
    Claim('area under the probe curve, on SimMIM', 'MTO, table 1', f'rauc/{PROBE}', 'simmim+mto', 'simmim', 'about 1'),
    Claim('the terms help MAE', 'MTO, table 2', PROBE, 'mto', 'mae+src', 'no difference'),
    Claim(
        'the ranking as the text has it is better than as printed',
        'MTO, eq. 5',
        PROBE,
        'mto',
        'mto, eq5',
        'no difference',
    ),
    Claim(
        'all terms are better than one',
        'MTO, table 3',
        PROBE,
        'mto',
        ('mto, sparsity alone', 'mto, distinctiveness alone', 'mto, ranking alone'),
        'no difference',
    ),
    Claim(
        'weight 0.1 is better than the other two',
        'ours',
        PROBE,
        'mto',
        ('mto, weight 0.01', 'mto, weight 1'),
        'no difference',
    ),
    Claim('the stack is better than the best of its papers', 'ours', PROBE, 'mff+mto', ('mff', 'mto'), 'no difference'),
    Claim('the stack is better than the best of its papers', 'ours', PROBE, 'lut+mff', ('lut', 'mff'), 'yes'),
    Claim(
        'the stack is better than the best paper', 'ours', PROBE, 'all four', ('mff', 'lut', 'mr_mae', 'mto'), 'unsure'
    ),
    Claim('fine-tuning after MAE is better than from scratch', 'all', TUNED, 'mae+src', 'from scratch', 'yes'),
)

STUDY = Study(
    name='cifar10',
    about=(
        'CIFAR-10 from JPEGs (`../shared/data`, which says where they are from). Pre-training: a ViT of width 128 and '
        'depth 4 with patches of 4 pixels, decoders of width 64 and depth 2, 1000 steps of 64 images (1.28 epochs): 64,000 '
        'images, where the papers train on 256 million to 2 billion. So this says what happens early in the training of '
        'a tiny model, and nothing about the papers at their scale. probe/ridge and probe/knn: ridge regression and '
        'nearest neighbours on the mean of the patches, 5000 training and 5000 test images; fine-tuned: one pass over a '
        'fifth of the labels, top-1 on all 10,000 test images. Two rows of one seed share data order, and masks where '
        'their methods draw the same. The crop is the simple resized one, but for the arm mae. The teacher of MR-MAE is '
        'the finished run of mae+src of that seed, so MR-MAE is a second pre-training after that one.'
    ),
    arms=ARMS,
    seeds=(0, 1, 2),
    shared=(
        '--config.steps=1000',
        '--config.optim.warmup_epochs=0.128',
        '--config.probe.every_epochs=0.32',
        '--config.probe.train_images=5000',
        '--config.probe.test_images=5000',
        '--config.pictures.every_epochs=0',
        '--config.log.tensorboard=False',
        '--config.checkpoint.every_steps=500',
    ),
    tests=(
        Test(
            TUNED,
            'configs/eval/finetune.py:small',
            'top1',
            (
                '--config.epochs=1.0',
                '--config.batch_size=64',
                '--config.data.share=0.2',
                '--config.optim.warmup_epochs=0.1',
                '--config.finetune.mixup=0.0',
                '--config.finetune.cutmix=0.0',
                '--config.finetune.erase_probability=0.0',
                '--config.data.rand_augment=',
                '--config.log.tensorboard=False',
            ),
        ),
    ),
    claims=CLAIMS,
    kept=('loss/', 'probe/', 'untrained/', 'watch/neck/last/weight_'),
    shown=(PROBE, 'probe/knn', TUNED),
)
