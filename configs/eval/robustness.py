"""The robustness sets of ImageNet: -A, -R, -Sketch, -V2, -C, -O, ReaL, ObjectNet, SI-Score, center occlusion.

Command   python -m mim_jax.evaluate --checkpoint FINETUNED_RUN --config configs/eval/robustness.py
          sets: --config.robustness.sets=imagenet_c,imagenet_o  as folders: --config.robustness.source=folder
          --config.robustness.dir=DIR, with a folder per set in it (evals/robust_images.py)
          logits, labels and places of all images, a file for each part, to predictions/: --predictions
Expected  ViT-B, MAE: IN-A 35.9, IN-R 48.3, IN-Sketch 34.5, IN-C 51.7 (mCE); MFF 49.0 on IN-C. Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.papers = ('robustness',)
    config.robustness = ConfigDict(
        {
            'sets': ('imagenet_a', 'imagenet_r', 'imagenet_sketch', 'imagenet_v2'),  # see evals/robustness.py
            'source': 'tfds',  # or folder
            'dir': '',  # of TFDS, '' is data.dir; or of the folders
            'whole': True,  # a set must have as many images as were published; False: test what is there
            'hole': 112,  # pixels of 224 that center_occlusion hides, in both directions
            'head': '',  # which classifier: the trained one; average; 00, 01, ... of a linear probe's rates
        }
    )
    return apply_variants(config, variant)
