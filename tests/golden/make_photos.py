"""Writes photos.npz: four 112 x 112 pieces of scikit-learn's two sample photographs (china.jpg, flower.jpg; CC BY 2.0)."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

PLACES = ((40, 60), (200, 330))  # top, left of 224-pixel windows, halved

if __name__ == '__main__':
    china, flower = load_sample_images().images
    pieces = [
        np.asarray(Image.fromarray(photo[top : top + 224, left : left + 224]).resize((112, 112), Image.BICUBIC))
        for top, left in PLACES
        for photo in (china, flower)
    ]
    path = Path(__file__).parent / 'photos.npz'
    np.savez_compressed(path, images=np.stack(pieces))
    print(path, path.stat().st_size)
