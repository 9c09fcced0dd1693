"""Writes photometric.npz beside this file: torchvision's colour operations on photographs. Needs torch and torchvision.

Keys tensor/<operation>/<factor>/<photo>: on f32 tensors; pil/hue/<factor>: on 8-bit PIL images, all photographs.
Values are samples, see parity_rules.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / 'parity'), str(HERE.parent)]

from conftest import repair_torchvision  # noqa: E402
from parity_rules import photographs, sample_all  # noqa: E402

if __name__ == '__main__':
    repair_torchvision()
    import torch
    from PIL import Image
    from torchvision.transforms import functional

    photos = photographs(side=112, count=4)
    blends = (0.0, 0.6, 0.83, 1.0, 1.17, 1.4)
    turns = (-0.5, -0.1, -0.037, 0.0, 0.037, 0.1, 0.5)
    operations = {
        'brightness': (functional.adjust_brightness, blends),
        'contrast': (functional.adjust_contrast, blends),
        'saturation': (functional.adjust_saturation, blends),
        'hue': (functional.adjust_hue, turns),
        'gray': (lambda x, _: functional.rgb_to_grayscale(x, num_output_channels=3), (1.0,)),
        'solarize': (lambda x, _: functional.solarize(x, 128 / 255), (1.0,)),
    }
    on_tensors, on_images = {}, {}
    for name, (operation, factors) in operations.items():
        for factor in factors:
            for i, photo in enumerate(photos):
                x = torch.from_numpy(photo).permute(2, 0, 1).float() / 255.0
                on_tensors[f'{name}/{factor}/{i}'] = operation(x, factor).numpy()
    for turn in turns:
        turned = [np.asarray(functional.adjust_hue(Image.fromarray(photo), turn)) / 255.0 for photo in photos]
        on_images[f'hue/{turn}'] = np.stack(turned).transpose(0, 3, 1, 2)
    path = HERE / 'photometric.npz'
    np.savez_compressed(path, **sample_all(on_tensors, 'tensor/'), **sample_all(on_images, 'pil/'))
    print(path, path.stat().st_size)
