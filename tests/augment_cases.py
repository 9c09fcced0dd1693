"""timm's RandAugment operations under our names: what the golden's script, its test and the live comparison share."""

import itertools

import numpy as np
from parity_rules import photographs
from PIL import Image

TWO_SCALES = ('posterize', 'solarize', 'color', 'contrast', 'brightness', 'sharpness')
ONE_DIRECTION = ('auto_contrast', 'equalize', 'invert', 'posterize', 'solarize', 'solarize_add')
WITHOUT_MAGNITUDE = ('auto_contrast', 'equalize', 'invert')
FILL = (124, 116, 104)  # 255 x ImageNet's mean


def timm_name(operation: str, increasing: bool) -> str:
    """shear_x -> ShearX, posterize -> PosterizeIncreasing, translate_x -> TranslateXRel."""
    name = ''.join(word.capitalize() for word in operation.split('_'))
    if operation.startswith('translate'):
        return f'{name}Rel'
    return f'{name}Increasing' if increasing and operation in TWO_SCALES else name


def keeps_no_bit(operation: str, increasing: bool, magnitude: float) -> bool:
    """Posterize at the end of its scale: black up to Pillow 12. Pillow 13 refuses it, and timm passes the error on."""
    bits = int(magnitude / 10.0 * 4.0)
    return operation == 'posterize' and (4 - bits if increasing else bits) == 0


def golden_cases(operations) -> list[tuple[str, bool, float, bool]]:
    """(operation, increasing, magnitude, negated) of every output stored in rand_augment.npz."""
    cases = []
    for operation in operations:
        magnitudes = (9.0,) if operation in WITHOUT_MAGNITUDE else (0.0, 4.3, 9.0, 10.0)
        signs = (False,) if operation in ONE_DIRECTION else (False, True)
        cases += itertools.product((operation,), (True,), magnitudes, signs)
        if operation in TWO_SCALES:
            cases += itertools.product((operation,), (False,), (0.0, 4.3, 10.0), (False,))
    return [case for case in cases if not keeps_no_bit(*case[:3])]


def golden_image() -> Image.Image:
    """36 x 24 pixels of a photograph, neither square nor even-handed in its colours."""
    return Image.fromarray(np.ascontiguousarray(photographs(side=112, count=4)[1, 40:64, 38:74]))
