"""End-to-end fine-tuning, by MAE's protocol for ViT-B (facebookresearch/mae FINETUNE.md, main_finetune.py) and the papers'.

Command   python -m mim_jax.evaluate --checkpoint RUN --config configs/eval/finetune.py
          MAE: :mae_l :mae_h  papers: :mff (:mff_released) :lut_s :lut_b :lut_l (:lut_released) :mr_mae
          MTO's tables: :mto_mae_b :mto_mae_l :mto_simmim :mto_bootmae :mto_conmim  the bases' own: :simmim :bootmae :conmim
          low-shot: :1pct :10pct (ImageNet's subsets)  :share_1 :share_10 (of any dataset)  :small (small data, CPU)
          :scratch with --from-scratch (the control: random weights, no layer-wise decay)
          another dataset than the run's: :imagenet :cifar10 :digits :folder
          crops keep 0.08 to 1 of an image, whatever pre-training's kept; of digits 0.5 to 1 (--config.data.scale=...)
          :mto_conmim is one point of MTO's grid of learning rates (1e-3 to 4e-3, and 5e-3): set optim.base_lr for the others
Expected  ImageNet, ViT-B: MAE 83.6 (four seeds 83.46 to 83.66), MFF 83.6, LUT 84.2, MR-MAE 85.8 on MCMAE. Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def recipe(lr, decay, epochs, drop_path, batch=1024, warmup=5.0, scaling='linear/256', **more):
    """One row of the papers' tables."""
    return {
        **{'optim.base_lr': lr, 'finetune.layer_decay': decay, 'epochs': float(epochs), 'encoder.drop_path': drop_path},
        **{'batch_size': batch, 'optim.warmup_epochs': warmup, 'optim.lr_scaling': scaling, **more},
    }


VARIANTS = {
    'mae_l': recipe(1e-3, 0.75, 50, 0.2),
    'mae_h': recipe(1e-3, 0.75, 50, 0.3),
    'mff': recipe(1e-3, 0.75, 100, 0.1),
    'mff_released': recipe(5e-4, 0.65, 100, 0.1, **{'optim.same_ends': True}),
    'lut_s': recipe(5e-4, 0.75, 300, 0.1),
    'lut_b': recipe(2.5e-4, 0.65, 100, 0.1),
    'lut_l': recipe(1e-3, 0.65, 50, 0.1),
    'lut_released': recipe(1e-3, 0.75, 100, 0.1),
    'mr_mae': recipe(3e-4, 0.6, 100, 0.2),
    'mto_mae_b': recipe(1e-3, 0.75, 100, 0.1),
    'mto_mae_l': recipe(1e-3, 0.75, 50, 0.2),
    'mto_simmim': recipe(5e-3, 0.9, 100, 0.1, 2048, 10.0, 'none'),
    'mto_bootmae': recipe(5e-3, 0.75, 100, 0.1, 1024, 20.0, 'none'),
    'mto_conmim': recipe(4e-3, 0.65, 100, 0.1, 1024, 20.0, 'none'),
    'simmim': recipe(
        *(1.25e-3, 0.65, 100, 0.1, 2048, 20.0, 'linear/512'),
        **{'optim.same_ends': True, 'optim.schedule': 'cosine_timm', 'optim.clip_norm': 5.0},
        **{'optim.warmup_lr': 2.5e-7, 'optim.min_lr': 1e-6},  # there both 2.5e-7, and both scaled; min_lr never is here
    ),
    'bootmae': recipe(
        *(5e-3, 0.6, 100, 0.1, 2048, 20.0, 'none'),
        **{'optim.schedule': 'cosine_beit', 'finetune.average': 0.9998, 'encoder.positions': 'fixed'},
    ),
    'conmim': recipe(4e-3, 0.65, 100, 0.1, 1024, 20.0, 'none', **{'optim.schedule': 'cosine_beit'}),
    '1pct': {'data.name': 'imagenet2012_subset/1pct'},
    '10pct': {'data.name': 'imagenet2012_subset/10pct'},
    'share_1': {'data.share': 0.01},
    'share_10': {'data.share': 0.1},
    'small': {
        **{'batch_size': 128, 'epochs': 10.0, 'optim.base_lr': 1e-3, 'optim.lr_scaling': 'none'},
        **{'optim.warmup_epochs': 1.0, 'encoder.drop_path': 0.0, 'dtype': 'float32', 'data.threads': 2},
    },
    'scratch': {'finetune.layer_decay': 1.0},
}


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.papers = ('finetune',)
    config.batch_size = 1024
    config.epochs = 100.0
    config.checkpoint.milestone_epochs = 0.0
    config.encoder.positions = 'learned'
    config.encoder.drop_path = 0.1
    config.optim.base_lr = 5e-4
    config.optim.b2 = 0.999
    config.optim.warmup_epochs = 5.0
    config.optim.min_lr = 1e-6
    config.optim.decay_exclude = 'simmim'  # also positions and CLS, as in the released code
    config.data.scale = (0.08, 1.0)
    config.data.rand_augment = 'rand-m9-mstd0.5-inc1'
    config.finetune = ConfigDict(
        {
            'classes': 0,  # of the classifier; 0: as many as the dataset has
            'pool': 'mean',  # of the patch tokens, then a new norm; cls: after the encoder's own
            'head_deviation': 2e-5,  # of the classifier's initial weights
            'layer_decay': 0.65,  # of the learning rate, block by block from the classifier down; 1: off
            'label_smoothing': 0.1,
            'mixup': 0.8,  # of its Beta distribution; 0: off
            'cutmix': 1.0,  # likewise
            'switch_probability': 0.5,  # of cutmix where both are on
            'erase_probability': 0.25,  # of one rectangle of noise
            'average': 0.0,  # momentum of an average of the weights, tested beside them; 0: none
        }
    )
    return apply_variants(config, variant, VARIANTS)
