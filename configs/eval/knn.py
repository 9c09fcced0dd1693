"""k nearest neighbours of frozen features, by DINO's protocol (facebookresearch/dinov2 eval/knn.py).

Command   python -m mim_jax.evaluate --checkpoint RUN --config configs/eval/knn.py
          :pooled (the mean of the patch tokens)  another dataset than the run's: :imagenet :cifar10 :digits :folder
Expected  low for reconstruction of pixels (public: MAE ViT-B, 100 epochs, 11.2 on ImageNet): a trend. Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config

VARIANTS = {'pooled': {'knn.pool': 'mean'}, 'small': {'dtype': 'float32', 'data.threads': 2}}


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.papers = ('knn',)
    config.knn = ConfigDict(
        {
            'pool': 'cls',  # or mean of the patch tokens
            'norm': 'encoder',  # the final norm before pooling; fresh: one after it; none
            'layer': 0,  # block that is read, from 1; 0: the last
            'neighbours': (10, 20, 100, 200),  # 20 is the headline
            'temperature': 0.07,
        }
    )
    return apply_variants(config, variant, VARIANTS)
