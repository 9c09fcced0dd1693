"""Corruptions, by a network of random weights whose numbers are worked out by hand from its logits."""

import numpy as np
import pytest
from classifier_cases import make_network, validation
from PIL import Image
from tiny_runs import SIDE

from mim_jax.data.sources import open_source
from mim_jax.errors import ConfigError, DataError
from mim_jax.evals.accuracy import check_test
from mim_jax.evals.classifiers import corruptions
from mim_jax.evals.corruptions import corrupt, describe_source
from mim_jax.evals.robust_images import SetCrop


def test_the_table_of_errors_is_that_of_images_corrupted_by_hand(tmp_path):
    network, lines = make_network(tmp_path, 10, {'source': 'digits', 'eval_split': 'test[:25]'})
    found, notes = corruptions(network, names=('shot_noise', 'fog'), severities=(2, 5))
    test = open_source(network.task.config.data, 'test[:25]')
    images, labels = (np.stack(column) for column in zip(*(test[i][:2] for i in range(25)), strict=True))
    crop = SetCrop('center', SIDE)

    def error_on(pixels):
        cut = np.stack([crop(Image.fromarray(one), None) for one in pixels])
        return 100 * np.mean(np.asarray(network.predict(cut)['']).argmax(1) != labels)

    errors = {name: {s: error_on(corrupt(images, name, s)) for s in (2, 5)} for name in ('shot_noise', 'fog')}
    assert notes['errors'] == {name: pytest.approx(both) for name, both in errors.items()}
    assert notes['images'] == describe_source()
    means = {name: np.mean([*both.values()]) for name, both in errors.items()}
    assert found == pytest.approx(
        {
            'mean_error': np.mean([*means.values()]),
            'clean_top1': 100 - error_on(images),
            'images': 25,
            **{f'error/{name}': mean for name, mean in means.items()},
        }
    )
    assert [line.split(':')[0] for line in lines] == ['clean', 'shot_noise 2', 'shot_noise 5', 'fog 2', 'fog 5']


def test_corruptions_that_cannot_be_made(tmp_path):
    network, _ = make_network(tmp_path, 10, {'source': 'digits', 'eval_split': 'test[:25]'})
    with pytest.raises(ConfigError, match='frost cannot be made here; names are gaussian_noise'):
        corruptions(network, names=('fog', 'frost'))
    with pytest.raises(ConfigError, match='6 cannot be made here'):
        corruptions(network, severities=(1, 6))
    with pytest.raises(ConfigError, match='limit=-1 must be'):
        corruptions(network, limit=-1)
    data, _ = validation(tmp_path, [1, 9])
    network, _ = make_network(tmp_path, 10, data)
    with pytest.raises(DataError, match=r'u8\[n,32,32,3\]'):
        corruptions(network)


@pytest.mark.parametrize('classes', [9, 11])
def test_other_classes_than_those_of_training_are_refused(tmp_path, classes):
    network, _ = make_network(tmp_path, classes, {'source': 'digits', 'eval_split': 'test[:25]'})
    with pytest.raises(DataError, match=f'has 10 classes, the training split {classes}'):
        network.open_test()


def test_a_classifier_that_was_asked_to_be_wider_may_see_fewer_classes(tmp_path):
    network, _ = make_network(tmp_path, 11, {'source': 'digits', 'eval_split': 'test[:25]'})
    with network.recipe.config.unlocked():
        network.recipe.config.finetune.classes = 11
    check_test(network.recipe, network.open_test())
