"""Writes protocols.npz beside this file: python make_protocols_golden.py CHECKOUT, of facebookresearch/mae. Needs torch, timm.

Run beside ours: its models_vit, util/lars.py, util/lr_decay.py, util/lr_sched.py; timm's Mixup. Keys: lars/<name>/<step>;
groups/{paths,scales,decays} of util/lr_decay.py; norm/{inputs,train,eval,mean,var} of BatchNorm1d(affine=False, eps=1e-6);
finetune/{losses,logits,with_cls}, finetune/{parameters,settled,moved}/<path> samples; mixes/...; probe/{losses,logits,mean,
var}, probe/parameters/<path>.
"""

from __future__ import annotations

import sys
import types
from functools import partial
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / 'parity'), str(HERE.parent)]

from conftest import repair_torchvision  # noqa: E402

repair_torchvision()

import protocol_cases as cases  # noqa: E402
import protocols_reference as reference  # noqa: E402
import torch  # noqa: E402
from layouts import rename_all  # noqa: E402
from parity_rules import sample, sample_all, uniform  # noqa: E402

Arrays = dict[str, np.ndarray]


def import_released(checkout: str) -> types.SimpleNamespace:
    """Its modules. timm 1's own forward() pools once more; the one of timm 0.3.2, for which they were written, does not."""
    sys.path.insert(0, checkout)
    import models_vit
    from util.lars import LARS
    from util.lr_decay import param_groups_lrd
    from util.lr_sched import adjust_learning_rate

    models_vit.VisionTransformer.forward = lambda self, x: self.head(self.forward_features(x))
    return types.SimpleNamespace(
        model=models_vit.VisionTransformer, lars=LARS, groups=param_groups_lrd, adjust=adjust_learning_rate
    )


def build(released: types.SimpleNamespace, global_pool: bool) -> torch.nn.Module:
    return released.model(
        global_pool=global_pool,
        img_size=cases.SIDE,
        patch_size=cases.PATCH,
        embed_dim=cases.SIZES['width'],
        depth=cases.SIZES['depth'],
        num_heads=cases.SIZES['heads'],
        mlp_ratio=4,
        qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_classes=cases.CLASSES,
    )


def schedule(released: types.SimpleNamespace, peak: float, floor: float) -> object:
    args = types.SimpleNamespace(lr=peak, min_lr=floor, warmup_epochs=cases.WARMUP, epochs=cases.EPOCHS)
    return lambda optimizer, step: released.adjust(optimizer, step * cases.EPOCHS / cases.STEPS, args)


def lars_golden(released: types.SimpleNamespace) -> Arrays:
    """Every value of three parameters after each of ten steps, with weight decay."""
    shapes = {'kernel': (5, 4), 'bias': (4,), 'zero': (3, 2)}
    values = {name: torch.from_numpy(uniform(f'lars/{name}', shape)).float() for name, shape in shapes.items()}
    values['zero'] *= 0
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
    optimizer = released.lars(parameters.values(), lr=0.0, weight_decay=0.1, momentum=cases.LARS['momentum'])
    adjust, stored = schedule(released, cases.LARS['peak'], 0.0), {}
    for step in range(cases.STEPS):
        adjust(optimizer, step)
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(uniform(f'lars/{name}/{step}', shapes[name])).float()
        optimizer.step()
        stored |= {f'lars/{name}/{step}': p.detach().numpy().copy() for name, p in parameters.items()}
    return stored


def norm_golden() -> Arrays:
    """Three batches of features of deviations from 6e-4 to 6 through BatchNorm1d, then one in evaluation mode."""
    norm = torch.nn.BatchNorm1d(6, affine=False, eps=1e-6)
    inputs = 0.25 + uniform('norm', (4, 8, 6)).astype(np.float32) * np.logspace(-3, 1, 6, dtype=np.float32)
    trained = np.stack([norm(torch.from_numpy(x)).numpy() for x in inputs[:3]])
    evaluated = norm.eval()(torch.from_numpy(inputs[3])).numpy()
    found = {'inputs': inputs, 'train': trained, 'eval': evaluated}
    found |= {'mean': norm.running_mean.numpy(), 'var': norm.running_var.numpy()}
    return {f'norm/{name}': value for name, value in found.items()}


def groups_golden(model: torch.nn.Module, groups: list) -> Arrays:
    """{our path: lr_scale, weight_decay} as three columns."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (g['lr_scale'], g['weight_decay'], p) for g in groups for p in g['params']}
    assert found.keys() == set(names.values())
    columns = [
        rename_all({name: np.full(p.shape, row[i]) for name, (*row, p) in found.items()}, cases.FINETUNED)
        for i in (0, 1)
    ]
    paths = sorted(columns[0])
    scales, decays = (np.array([column[path].flat[0] for path in paths]) for column in columns)
    return {'groups/paths': np.array(paths), 'groups/scales': scales, 'groups/decays': decays}


def finetune_golden(released: types.SimpleNamespace) -> Arrays:
    recipe = cases.finetune_recipe()
    weights, mixes = cases.head_weights(recipe), cases.draw_mixes()
    batches, stored = cases.make_batches('finetune'), {f'mixes/{name}': value for name, value in mixes.items()}
    adjust = schedule(released, cases.ADAMW['peak'], cases.ADAMW['floor'])
    for position_of_cls in (True, False):
        model = reference.load(build(released, True), weights, cases.FINETUNED, recipe)
        groups = released.groups(
            model, cases.ADAMW['decay'], model.no_weight_decay(), layer_decay=cases.FINETUNE['layer_decay']
        )
        stored |= groups_golden(model, groups)
        optimizer = torch.optim.AdamW(groups, lr=cases.ADAMW['peak'], betas=cases.ADAMW['betas'])
        losses, settled = reference.train_finetune(model, optimizer, adjust, batches, mixes, position_of_cls)
        stored['finetune/with_cls' if position_of_cls else 'finetune/losses'] = np.array(losses)
    stored['finetune/logits'] = reference.logits_of(model, cases.make_batches('held out', 1)[0]['main'])
    after = rename_all(reference.parameters_of(model), cases.FINETUNED)
    settled = rename_all(settled, cases.FINETUNED)
    stored |= sample_all(after, 'finetune/parameters/')
    stored |= sample_all({path: value - weights[path] for path, value in after.items()}, 'finetune/moved/')
    stored |= {f'finetune/settled/{path}': sample(path, mask)[2:] > 0.5 for path, mask in settled.items()}
    return stored


def probe_golden(released: types.SimpleNamespace) -> Arrays:
    encoder = cases.save_rule_encoder(HERE / 'rule_encoder.safetensors')
    recipe = cases.probe_recipe(encoder)
    weights = cases.head_weights(recipe) | cases.encoder_weights()
    encoder.unlink()
    model = reference.load(reference.freeze(build(released, False)), weights, cases.PROBED, recipe)
    optimizer = released.lars(model.head.parameters(), lr=0.0, weight_decay=0.0)
    adjust = schedule(released, cases.LARS['peak'], 0.0)
    losses = reference.train_probe(model, optimizer, adjust, cases.make_batches('probe'))
    norm, head = model.head
    stored = {'losses': np.array(losses), 'mean': norm.running_mean.numpy(), 'var': norm.running_var.numpy()}
    stored |= {'parameters/kernel': head.weight.detach().numpy().T, 'parameters/bias': head.bias.detach().numpy()}
    stored['logits'] = reference.logits_of(model, cases.make_batches('held out', 1)[0]['main'])
    return {f'probe/{name}': value for name, value in stored.items()}


if __name__ == '__main__':
    parts = import_released(sys.argv[1])
    golden = {**lars_golden(parts), **norm_golden(), **finetune_golden(parts), **probe_golden(parts)}
    path = HERE / 'protocols.npz'
    np.savez_compressed(path, **golden)
    print(path, f'{path.stat().st_size / 1e3:.0f} kB')
    for name in ('finetune/losses', 'finetune/with_cls', 'probe/losses'):
        print(name, np.round(golden[name], 4))
