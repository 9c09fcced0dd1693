"""What the ConMIM parity test and the script that writes its golden share: sizes, settings, batches. NumPy only."""

import numpy as np
from parity_rules import photographs

# The released engine is written for 196 patches: 14 x 14 of 8 pixels are the photographs' 112.
SIDE, PATCH, WIDTH, DEPTH, HEADS = 112, 8, 48, 2, 4
PROJECTOR = {'projector_width': 64, 'projector_output': 32}
IMAGES, EPOCHS, STEPS_PER_EPOCH = 4, 2, 5
STEPS = EPOCHS * STEPS_PER_EPOCH
GROUPS = {'one': 4, 'two': 2}  # images that share BatchNorm statistics: one GPU, two GPUs

# ConMIM's own, save that decay and the teacher's rate are larger, so that an error in either shows within ten steps.
OPTIM = {
    'base_lr': 5e-4,
    'min_lr': 1e-5,
    'warmup_epochs': 1.0,
    'b1': 0.9,
    'b2': 0.98,
    'weight_decay': 0.5,
    'clip_norm': 1.0,
}
MOMENTUM, TEMPERATURE, MASK_RATIO = 0.9, 0.1, 0.75
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batch_of(step: int) -> np.ndarray:
    """u8[4,112,112,3]: the photographs, in another order and every second time mirrored."""
    images = np.roll(photographs(SIDE, IMAGES), step, axis=0)
    return images[:, :, ::-1] if step % 2 else images


def darken(pixels):
    """The teacher's photometric view: deterministic, in place of ConMIM's random one."""
    return pixels**1.3
