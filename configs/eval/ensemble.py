"""The mean of the probabilities of two fine-tuned runs (MR-MAE, table 4; the rule is inferred).

Command   python -m mim_jax.evaluate --checkpoint FINETUNED_RUN --config configs/eval/ensemble.py \
          --config.ensemble.with_run=SECOND_RUN
Expected  ImageNet: MR-MAE 85.5 for two separate ViT-B students (CLIP, DINO). Not run here.
"""

from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config


def get_config(variant: str = '') -> ConfigDict:
    config = default_config()
    config.papers = ('ensemble',)
    config.ensemble = ConfigDict(
        {
            'with_run': '',  # folder of the other run
            'head': '',  # which classifier: the trained one; average; 00, 01, ... of a linear probe's rates
        }
    )
    return apply_variants(config, variant)
