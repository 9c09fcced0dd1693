"""Corrupted test images of 32 x 32 pixels, made here by CIFAR-10-C's numbers: 11 of its 15 kinds (evals/corruptions.py).

Command   python -m mim_jax.evaluate --checkpoint FINETUNED_RUN --config configs/eval/corruptions.py
          logits and labels of all images, a file for each corruption and severity, to predictions/: --predictions
Expected  no paper reports it; the numbers are not those of the published CIFAR-10-C.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.papers = ('corruptions',)
    config.corruptions = ConfigDict(
        {
            'names': (),  # of the corruptions; (): all
            'severities': (1, 2, 3, 4, 5),
            'limit': 0,  # so many random test images; 0: all
            'head': '',  # which classifier: the trained one; average; 00, 01, ... of a linear probe's rates
        }
    )
    return apply_variants(config, variant)
