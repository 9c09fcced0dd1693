"""Top-1 and top-5 accuracy of a fine-tuned or probed run, counted again from its checkpoint.

Command   python -m mim_jax.evaluate --checkpoint FINETUNED_RUN --config configs/eval/accuracy.py
          another test split: --config.data.eval_split=test
          logits and labels of all images, too, to predictions/test.npz: --predictions
Expected  what the run counted when it ended, to the last image.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.papers = ('accuracy',)
    return apply_variants(config, variant)
