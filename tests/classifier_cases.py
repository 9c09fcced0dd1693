"""Networks of random weights, and tiny sets of images in the layouts that the protocols of classifiers read."""

import io

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny_runs import SIDE, init_plain, tiny_config, to_host

from mim_jax.evals.ledger import Ledger
from mim_jax.evals.network import Network, Task
from mim_jax.evals.robust_images import SetCrop
from mim_jax.methods import build
from mim_jax.parallel.mesh import make_mesh


def make_network(tmp_path, classes, data, devices=1, predictions=False):
    """MAE's encoder under a classifier of random weights, 16 x 16 pixels, and the lines that it reports."""
    config = tiny_config({'depth': 1})
    config.papers, config.base = ('finetune',), 'mae'
    config.mae = ConfigDict({'decoder_width': 16, 'decoder_depth': 1, 'decoder_heads': 2})
    config.finetune = ConfigDict({'head_deviation': 1.0})
    config.data.update({'threads': 1, 'cache': 'never', **data})
    recipe = build(config, 1000, classes)
    lines = []
    ledger = Ledger(tmp_path, {'test': 'of tests'}, 5, predictions)
    task = Task(config, make_mesh(devices=jax.devices()[:devices]), ledger, lines.append, None)
    return Network(tmp_path / 'run', recipe, to_host(init_plain(recipe)), 5, task), lines


def write_images(folder, names, seed=0, shape=(20, 24)):
    draw = np.random.default_rng([seed, len(str(folder.name))])
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (*shape, 3), np.uint8)).save(path)


def by_hand(network, paths, transform='center'):
    """Logits of files, each image cut on its own."""
    crop = SetCrop(transform, SIDE)
    images = np.stack([crop(Image.open(path), None) for path in paths])
    return np.asarray(network.predict(images)[''])


def validation(tmp_path, labels):
    """An npz file that stands for ImageNet's validation set."""
    images = np.random.default_rng(3).integers(0, 256, (len(labels), 20, 24, 3), np.uint8)
    path = tmp_path / 'validation.npz'
    np.savez(path, validation_images=images, validation_labels=np.asarray(labels))
    return {'source': 'npz', 'dir': str(path), 'eval_split': 'validation'}, images


def prefer(network, classes):
    """The network, its classifier's bias so changed that it answers with one of these classes: some answers are right."""
    head = network.state.params['objectives/classify/head']['linear']
    head['bias'] = head['bias'].copy()
    head['bias'][list(classes)] = 100.0
    return network


def store(name, split, features, rows, place):
    """A tiny dataset as TFDS would have prepared it, under a name that it knows."""
    tfds = pytest.importorskip('tensorflow_datasets')

    def info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    members = {
        'VERSION': tfds.builder_cls(name).VERSION,
        '_info': info,
        '_split_generators': lambda self, manager: {split: enumerate(rows)},
        '_generate_examples': lambda self: None,
        '__module__': __name__,
    }
    with tfds.core.registered.skip_registration():
        kind = type(name.title().replace('_', ''), (tfds.core.GeneratorBasedBuilder,), members)
    builder = kind(data_dir=str(place), file_format='array_record')
    builder.name = name
    builder.download_and_prepare()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    file.seek(0)
    return file
