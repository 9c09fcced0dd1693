"""The linear probe on cached features: its learning rate, its choice of one, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from mim_jax.config import default_config
from mim_jax.errors import ConfigError, UserError
from mim_jax.evals.cached import cached_probe, choose_rate, train_head
from mim_jax.evals.ledger import Ledger
from mim_jax.training.journal import JOURNAL, read_events

CLASSES, WIDTH = 3, 6


def make_config(**optim):
    config = default_config()
    config.batch_size, config.epochs = 32, 4.0
    config.optim.update({'name': 'lars', 'base_lr': 0.5, 'lr_scaling': 'linear/256', 'weight_decay': 0.0, **optim})
    config.optim.warmup_epochs = 0.0
    return config


def make_features(count, seed):
    """Clusters that a line can tell apart."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, count)
    centres = np.random.default_rng(0).normal(size=(CLASSES, WIDTH))
    return (centres[labels] + 0.3 * draw.normal(size=(count, WIDTH))).astype(np.float32), labels.astype(np.int32)


def subject_of(config, train, test, folder):
    features = {'train': train, 'test': test}
    sources = [SimpleNamespace(name=name, num_classes=CLASSES) for name in features]
    return SimpleNamespace(
        open=lambda: sources,
        features=lambda source, *reading: features[source.name],
        recipe=SimpleNamespace(config=config),
        ledger=Ledger(folder, {}, 0),
        report=lambda line: None,
    )


def test_it_learns_and_says_at_which_rate(tmp_path):
    subject = subject_of(make_config(name='adamw'), make_features(150, 1), make_features(60, 2), tmp_path)
    found = cached_probe(subject, rates=(1e-6, 1.0))
    assert found['cached_probe'] > 90
    assert found['cached_probe_rate'] == 1.0
    tried = [event for event in read_events(tmp_path / JOURNAL) if 'part' in event]
    assert [event['part'] for event in tried] == ['rate 1e-06', 'rate 1.0']
    assert tried[0]['held_out'] < tried[1]['held_out'] <= 100


def test_the_learning_rate_goes_by_the_batch_that_is_used():
    x, y = make_features(48, 1)
    config, other = make_config(), make_config()
    config.batch_size, other.batch_size = 48, 4096
    logits = [train_head(each, x, y, x, CLASSES, 1.0) for each in (config, other)]
    np.testing.assert_array_equal(*logits)
    assert other.batch_size == 4096


def test_a_rate_that_diverges_is_not_chosen_and_is_told_when_it_is_the_only_one(tmp_path):
    config, train = make_config(name='adamw'), make_features(150, 1)
    subject = subject_of(config, train, make_features(20, 2), tmp_path)
    assert choose_rate(subject, *train, CLASSES, (1e39, 0.1)) == 0.1
    with pytest.raises(UserError, match=r'diverged at 1e\+39 times'):
        cached_probe(subject, rates=(1e39,))


@pytest.mark.parametrize('rates', [(), (0.0,), (1.0, -2.0), (float('nan'),), (float('inf'),)])
def test_rates_that_are_none(rates):
    with pytest.raises(ConfigError, match=r'cached_probe\.rates='):
        cached_probe(None, rates=rates)
