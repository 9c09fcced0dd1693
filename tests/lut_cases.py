"""What the LUT parity test and the script that writes its golden share: sizes, settings, batches, noise. NumPy only."""

from collections.abc import Mapping

import numpy as np
from parity_rules import photographs, uniform

SIDE, PATCH, WIDTH, DEPTH, HEADS = 112, 8, 48, 2, 4
DECODER = {'decoder_width': 24, 'decoder_depth': 1, 'decoder_heads': 3}
HEAD_WIDTH = 64
IMAGES, EPOCHS, STEPS_PER_EPOCH = 8, 2, 5
STEPS = EPOCHS * STEPS_PER_EPOCH
MASK_RATIO, ALPHA = 0.75, 0.25

# LUT's own, save that rate, decay and the teacher's rate are larger, so that an error in any shows within ten steps.
OPTIM = {'base_lr': 1e-3, 'min_lr': 0.0, 'warmup_epochs': 1.0, 'b1': 0.9, 'b2': 0.95, 'weight_decay': 0.5}
MOMENTUM = 0.9
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def views_of(step: int) -> dict[str, np.ndarray]:
    """{crop: u8[8,112,112,3]}: photographs and their transposes; the second moved, mirrored and darker."""
    images = photographs(SIDE, 4)
    images = np.roll(np.concatenate([images, images.swapaxes(1, 2)[:, ::-1]]), step, axis=0)
    images = images[:, :, ::-1] if step % 2 else images
    second = np.roll(images, (4, -3), axis=(1, 2))[:, :, ::-1]
    return {'main': images, 'second': np.round(255.0 * (second / 255.0) ** 1.3).astype(np.uint8)}


def noise_of(step: int) -> np.ndarray:
    """f32[8,196]: what patches are ranked by, for both views."""
    return (0.5 * uniform(f'noise/{step}', (IMAGES, (SIDE // PATCH) ** 2)) + 0.5).astype(np.float32)


def clear_key_biases(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with zeros for the biases of keys: attention does not see them, and Adam enlarges the rounding of their zero
    gradients to steps of full size."""
    cleared = {path: np.array(array) for path, array in arrays.items()}
    for path, array in cleared.items():
        if path.endswith('attn/qkv/bias'):
            width = array.size // 3
            array[width : 2 * width] = 0.0
    return cleared
