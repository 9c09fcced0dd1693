"""Fine-tuning and linear probe against timm and torch, live: `make test-parity` installs them.

The released code of MAE itself is compared through golden/protocols.npz. Here its parts are timm's and torch's own: the pooled
VisionTransformer, timm's layer-wise decay, Mixup; LARS as SGD with momentum on gradients that were scaled before.
"""

import importlib.util
from functools import partial

import jax
import numpy as np
import protocol_cases as cases
import pytest
from layouts import rename_all

from mim_jax.models.batch_norm import BatchNorm

MISSING = [name for name in ('torch', 'torchvision', 'timm') if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(bool(MISSING), reason=f'needs {", ".join(MISSING)}: run `make test-parity`'),
]
SMALL = {'width': 192, 'depth': 4, 'heads': 3}

if not MISSING:
    import protocols_reference as reference
    import timm
    import torch
    from timm.optim import param_groups_layer_decay


def build(sizes, pool):
    return timm.models.vision_transformer.VisionTransformer(
        img_size=cases.SIDE,
        patch_size=cases.PATCH,
        embed_dim=sizes['width'],
        depth=sizes['depth'],
        num_heads=sizes['heads'],
        global_pool=pool,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_classes=cases.CLASSES,
    )


def relative(ours, theirs):
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max())


def test_learning_rates_of_layers_are_those_of_timm():
    recipe = cases.finetune_recipe(SMALL, layer_decay=0.75)
    model = build(SMALL, 'avg')
    groups = param_groups_layer_decay(model, 0.05, layer_decay=0.75)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(p)]: np.full(p.shape, group['lr_scale']) for group in groups for p in group['params']}
    theirs = {path: scale.flat[0] for path, scale in rename_all(scales, cases.FINETUNED).items()}
    shapes = {path: value.shape for path, value in cases.head_weights(recipe).items()}
    assert theirs == pytest.approx({path: recipe.rate(path, shape) for path, shape in shapes.items()}, rel=1e-12)
    np.testing.assert_allclose(sorted(set(theirs.values())), [0.75**power for power in range(5, -1, -1)], rtol=1e-12)


@pytest.mark.parametrize('mixed', [True, False])
def test_ten_steps_of_fine_tuning(mixed):
    recipe = cases.finetune_recipe(SMALL, **({} if mixed else {'mixup': 0.0, 'cutmix': 0.0}))
    weights, batches = cases.head_weights(recipe), cases.make_batches('finetune')
    model = reference.load(build(SMALL, 'avg'), weights, cases.FINETUNED, recipe)
    groups = param_groups_layer_decay(
        model, cases.ADAMW['decay'], model.no_weight_decay(), layer_decay=cases.FINETUNE['layer_decay']
    )
    optimizer = torch.optim.AdamW(groups, lr=cases.ADAMW['peak'], betas=cases.ADAMW['betas'])

    def schedule(optimizer, step):
        reference.set_rates(optimizer, reference.cosine(step, cases.ADAMW['peak'], cases.ADAMW['floor']))

    mixes = cases.draw_mixes() if mixed else None
    losses, settled = reference.train_finetune(model, optimizer, schedule, batches, mixes)
    held_out = cases.make_batches('held out', 1)[0]['main']
    found = cases.train_ours(recipe, weights, batches, held_out)
    after = rename_all(reference.parameters_of(model), cases.FINETUNED)
    settled, moved, apart = rename_all(settled, cases.FINETUNED), {}, {}
    for path, value in after.items():
        gap = np.abs(found['parameters'][path] - value)[settled[path]].max(initial=0.0)
        apart[path] = float(gap / np.abs(value).max())
        moved[path] = float(gap / np.abs(value - weights[path]).max())
    everything = max(relative(found['parameters'][path], value) for path, value in after.items())
    differences = {
        'losses': relative(found['losses'], losses),
        'logits': relative(found['logits'], reference.logits_of(model, held_out)),
        'parameters': max(apart.values()),
        'moved': max((gap, path) for path, gap in moved.items()),
        'unsettled too': everything,
    }
    print('fine-tuning', mixed, differences)
    assert differences['losses'] < 1e-4
    assert differences['logits'] < 1e-3
    assert differences['parameters'] < 1e-3
    assert differences['moved'][0] < 1e-2
    assert np.concatenate([mask.ravel() for mask in settled.values()]).mean() > 0.9


def test_ten_steps_of_the_linear_probe(tmp_path):
    recipe = cases.probe_recipe(cases.save_rule_encoder(tmp_path / 'encoder.safetensors', SMALL), SMALL)
    weights, batches = cases.head_weights(recipe), cases.make_batches('probe')
    model = reference.freeze(build(SMALL, 'token'))
    reference.load(model, weights | cases.encoder_weights(SMALL), cases.PROBED, recipe)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=1.0, momentum=cases.LARS['momentum'])

    def trust(head):
        weight = head[1].weight
        weight.grad.mul_(0.001 * weight.detach().norm() / weight.grad.norm())

    def schedule(optimizer, step):
        reference.set_rates(optimizer, reference.cosine(step, cases.LARS['peak'], 0.0))

    losses = reference.train_probe(model, optimizer, schedule, batches, trust)
    held_out = cases.make_batches('held out', 1)[0]['main']
    found = cases.train_ours(recipe, weights, batches, held_out)
    norm, linear = model.head
    differences = {
        'losses': relative(found['losses'], losses),
        'kernel': relative(found['parameters']['objectives/probe/linear_00/kernel'], linear.weight.detach().numpy().T),
        'mean': relative(found['statistics']['objectives/probe/norm/mean'], norm.running_mean.numpy()),
        'var': relative(found['statistics']['objectives/probe/norm/var'], norm.running_var.numpy()),
        'logits': relative(found['logits'], reference.logits_of(model, held_out)),
    }
    print('linear probe', '  '.join(f'{name} {value:.1e}' for name, value in differences.items()))
    assert max(differences.values()) < 1e-4


@pytest.mark.parametrize('deviation', [1e-3, 1.0, 100.0])
def test_the_norm_of_the_probe(deviation):
    draw, ours, theirs = (
        np.random.default_rng(0),
        BatchNorm(affine=False, epsilon=1e-6),
        torch.nn.BatchNorm1d(16, affine=False, eps=1e-6),
    )
    stats = {'mean': np.zeros(16, np.float32), 'var': np.ones(16, np.float32)}
    for _ in range(3):
        x = np.float32(deviation * (draw.normal(size=(32, 16)) + 0.5))
        y, moved = ours.apply({'batch_stats': stats}, x, mutable=['batch_stats'])
        stats = jax.device_get(moved['batch_stats'])
        np.testing.assert_allclose(y, theirs(torch.from_numpy(x)).numpy(), atol=1e-5)
    np.testing.assert_allclose(stats['var'], theirs.running_var.numpy(), rtol=1e-5)
    expected = theirs.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours.apply({'batch_stats': stats}, x), expected, rtol=1e-5, atol=1e-5)
