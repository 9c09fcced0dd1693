"""Fine-tuning and linear probe against facebookresearch/mae in PyTorch (golden of golden/make_protocols_golden.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol_cases as cases
import pytest
from base_ours import shapes_of
from parity_rules import GOLDEN, largest_difference, sample, under, uniform

from mim_jax.forward import create_parameters
from mim_jax.models.batch_norm import BatchNorm
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.training.assemble import make_schedule
from mim_jax.training.optim import decay_mask, make_optimizer


@pytest.fixture(scope='module')
def stored():
    with np.load(GOLDEN / 'protocols.npz') as arrays:
        return dict(arrays)


def relative(ours, theirs):
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max())


def test_lars_is_theirs_step_by_step(stored):
    theirs = under(stored, 'lars/')
    shapes = {name: theirs[f'{name}/0'].shape for name in ('kernel', 'bias', 'zero')}
    draw = {name: np.float32(uniform(f'lars/{name}', shape)) for name, shape in shapes.items()}
    params = {name: jnp.asarray(value * (name != 'zero')) for name, value in draw.items()}
    config = cases.make_config({'name': 'lars', 'base_lr': cases.LARS['peak'], 'b1': 0.9, 'weight_decay': 0.1})
    optimizer = make_optimizer(config.optim, make_schedule(config))
    state, update, worst = optimizer.init(params), jax.jit(optimizer.update), 0.0
    for step in range(cases.STEPS):
        gradients = {name: jnp.float32(uniform(f'lars/{name}/{step}', shape)) for name, shape in shapes.items()}
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, value in params.items():
            after = theirs[f'{name}/{step}']
            worst = max(worst, float(np.abs(value - after).max() / max(np.abs(after).max(), 1e-30)))
    print(f'LARS {worst:.1e}')
    assert worst < 1e-5


def test_every_parameter_has_their_learning_rate_and_decay(stored):
    recipe = cases.finetune_recipe()
    like = jax.eval_shape(lambda key: create_parameters(recipe, key)[0], jax.random.key(0))
    mask = dict(flatten_with_paths(decay_mask(like, 'simmim')))
    ours = {path: (recipe.rate(path, shape), mask[path]) for path, shape in shapes_of(recipe).items()}
    columns = zip(stored['groups/paths'], stored['groups/scales'], stored['groups/decays'], strict=True)
    theirs = {str(path): (scale, decay > 0) for path, scale, decay in columns}
    assert ours.keys() == theirs.keys()
    for path, (rate, decays) in ours.items():
        assert (rate, decays) == (pytest.approx(theirs[path][0], rel=1e-12), theirs[path][1]), path


def test_the_norm_of_the_probe_is_theirs_in_training_and_in_evaluation(stored):
    norm, theirs = BatchNorm(affine=False, epsilon=1e-6), under(stored, 'norm/')
    stats = {'mean': jnp.zeros(6), 'var': jnp.ones(6)}
    for x, expected in zip(theirs['inputs'], theirs['train'], strict=False):
        y, moved = norm.apply({'batch_stats': stats}, x, mutable=['batch_stats'])
        stats = moved['batch_stats']
        np.testing.assert_allclose(y, expected, atol=5e-5)
    assert expected[:, 0].std() < 0.9  # the epsilon is as large as this feature's variance
    np.testing.assert_allclose(stats['mean'], theirs['mean'], rtol=1e-6)
    np.testing.assert_allclose(stats['var'], theirs['var'], rtol=1e-5)
    evaluated = norm.apply({'batch_stats': stats}, theirs['inputs'][3])
    np.testing.assert_allclose(evaluated, theirs['eval'], rtol=1e-5, atol=1e-5)


def test_ten_steps_of_fine_tuning_agree(stored):
    recipe, theirs = cases.finetune_recipe(), under(stored, 'finetune/')
    mixes = cases.draw_mixes()
    for name, value in under(stored, 'mixes/').items():  # what the golden was mixed by; another JAX may draw otherwise
        np.testing.assert_array_equal(mixes[name], value)
    assert 2 <= mixes['cut'].sum() <= 8
    weights = cases.head_weights(recipe)
    held_out = cases.make_batches('held out', 1)[0]['main']
    found = cases.train_ours(recipe, weights, cases.make_batches('finetune'), held_out)
    after, moved, settled = (under(theirs, f'{name}/') for name in ('parameters', 'moved', 'settled'))
    assert found['parameters'].keys() == after.keys() == settled.keys()
    share = np.concatenate(list(settled.values())).mean()
    differences = {
        'losses': relative(found['losses'], theirs['losses']),
        'logits': relative(found['logits'], theirs['logits']),
    }
    for name, reference, start in (('parameters', after, 0.0), ('moved', moved, 1.0)):
        worst = (0.0, '')
        for path, value in reference.items():
            ours = sample(path, found['parameters'][path] - start * weights[path])
            gap = np.abs(ours - value)[2:][settled[path]]
            worst = max(worst, (float(gap.max(initial=0.0) / value[1]), path))
        differences[name] = worst
    everything = largest_difference(found['parameters'], after, relative=True)
    print('fine-tuning', differences, 'settled', share, 'with the unsettled', everything)
    print('position of CLS: losses', relative(theirs['with_cls'], theirs['losses']))
    assert differences['losses'] < 1e-4
    assert differences['logits'] < 1e-3
    assert differences['parameters'][0] < 1e-3
    assert differences['moved'][0] < 1e-2
    assert share > 0.9
    assert np.ptp(theirs['losses']) > 0.1


def test_a_position_of_cls_that_is_trained_too_changes_little(stored):
    """Released code trains one, ours has none: two parameters that are always added get the same gradient."""
    assert 1e-7 < relative(stored['finetune/with_cls'], stored['finetune/losses']) < 1e-3


def test_ten_steps_of_the_linear_probe_agree(stored, tmp_path):
    theirs = under(stored, 'probe/')
    recipe = cases.probe_recipe(cases.save_rule_encoder(tmp_path / 'encoder.safetensors'))
    held_out = cases.make_batches('held out', 1)[0]['main']
    found = cases.train_ours(recipe, cases.head_weights(recipe), cases.make_batches('probe'), held_out)
    differences = {
        'losses': relative(found['losses'], theirs['losses']),
        'logits': relative(found['logits'], theirs['logits']),
        **{
            name: relative(found['parameters'][f'objectives/probe/linear_00/{name}'], theirs[f'parameters/{name}'])
            for name in ('kernel', 'bias')
        },
        **{
            name: relative(found['statistics'][f'objectives/probe/norm/{name}'], theirs[name])
            for name in ('mean', 'var')
        },
    }
    print('linear probe', '  '.join(f'{name} {value:.1e}' for name, value in differences.items()))
    assert max(differences.values()) < 1e-4
    assert np.ptp(theirs['losses']) > 0.1
