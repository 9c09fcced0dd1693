"""Writes mff.npz beside this file: python make_mff_golden.py CHECKOUT LIBRARIES. Needs torch.

CHECKOUT: of open-mmlab/mmpretrain; LIBRARIES: the folder that make_pixmim_golden.py describes. Keys: <case>/seen/<place>
samples; <case>/{loss, masked, weights}; <case>/gradients/<our path> samples; two_layers/{losses, moved/<path>}: steps of
AdamW; constants/<their name> samples. Places: patch tokens of every block, and with CLS 'projected/<i>', 'latent'.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / 'parity'), str(HERE.parent)]

import mff_cases as cases  # noqa: E402
from conftest import repair_torchvision  # noqa: E402
from make_pixmim_golden import StandIn, trained  # noqa: E402
from parity_rules import sample_all  # noqa: E402

from mim_jax.config.tree import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from mim_jax.interop.formats import find_paths  # noqa: E402
from mim_jax.interop.mff import MFF  # noqa: E402
from mim_jax.weights.layout import to_ours, to_theirs  # noqa: E402

Arrays = dict[str, np.ndarray]
RELEASED = 'configs/mff/mff_vit-base-p16_8xb512-amp-coslr-800e_in1k.py'


def open_checkout(checkout: str, libraries: str) -> None:
    """Make mmpretrain importable beside a newer torch. What is stood in for reads images or model indices."""
    repair_torchvision()
    sys.modules['importlib_metadata'] = importlib.metadata
    sys.modules['transformers'] = None  # mmengine would register its optimizers beside torch's own
    for name in ('cv2', 'modelindex', 'modelindex.load_model_index', 'modelindex.models', 'modelindex.models.Model'):
        sys.modules[name] = StandIn(name)
    sys.modules['mmpretrain.apis'] = StandIn('mmpretrain.apis')
    sys.path[:0] = [libraries, checkout]


def build(checkout: str, case: cases.Case) -> tuple[Any, Any]:
    """(the released configuration with the case's sizes, its model with weights by rule)."""
    import mmpretrain.models  # noqa: F401
    import torch
    from mmengine.config import Config
    from mmpretrain.registry import MODELS

    config = Config.fromfile(str(Path(checkout) / RELEASED))
    arch = {'embed_dims': cases.WIDTH, 'num_layers': case.depth, 'num_heads': cases.HEADS}
    config.model.backbone.update(arch={**arch, 'feedforward_channels': 4 * cases.WIDTH})
    config.model.backbone.update(img_size=case.image_size, patch_size=case.patch_size)
    if case.layers:
        config.model.backbone.out_indices = list(case.layers)
    names = {'decoder_embed_dim': 'width', 'decoder_depth': 'depth', 'decoder_num_heads': 'heads'}
    config.model.neck.update({theirs: cases.DECODER[f'decoder_{ours}'] for theirs, ours in names.items()})
    config.model.neck.update(num_patches=case.patches, patch_size=case.patch_size, embed_dim=cases.WIDTH)
    config.model.head.patch_size = case.patch_size
    model = MODELS.build(config.model)
    model.init_weights()
    own = model.state_dict()
    state = {name: torch.from_numpy(a.copy()) for name, a in to_theirs(cases.make_weights(case), MFF).items()}
    assert not MFF.constants.keys() & state.keys()
    model.load_state_dict(state | {name: own[name] for name in MFF.constants}, strict=True)
    return config, model.train()


def map_back(theirs: Arrays) -> Arrays:
    """{our path: array} of arrays under their names, all of them."""
    ours = to_ours(theirs, MFF, find_paths(theirs, MFF))
    assert to_theirs(ours, MFF).keys() == theirs.keys()
    return ours


def losses_of(model: Any, case: cases.Case) -> dict[str, Any]:
    """What the released model reports on the case's images and noise: the loss, and the weights of the fusion."""
    import torch

    pixels = torch.from_numpy(cases.make_images(case)).float() / 255.0
    images = ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(0, 3, 1, 2)
    with mock.patch.object(torch, 'rand', return_value=torch.from_numpy(cases.make_noise(case))):
        return model.loss(images, None)


def run(checkout: str, case: cases.Case) -> Arrays:
    """Samples of what is seen on the way, the loss, the mask, the weights, and samples of gradients."""
    _, model = build(checkout, case)
    seen: Arrays = {}
    order = np.roll(np.arange(cases.WIDTH), cases.WIDTH // 2)
    decoder_order = np.roll(np.arange(cases.DECODER['decoder_width']), cases.DECODER['decoder_width'] // 2)

    def keep(place: str, channels: np.ndarray | slice = slice(None), start: int = 1) -> Any:
        """Tokens from `start`, 0 being CLS; the residual stream's channels in our order."""
        return lambda module, inputs, output: seen.__setitem__(place, output[:, start:].detach().numpy()[..., channels])

    for i, block in enumerate(model.backbone.layers):
        block.register_forward_hook(keep(f'encoder/block_{i:02d}', order))
    for i, layer in enumerate(model.backbone.proj_layers):
        layer.register_forward_hook(keep(f'projected/{i}', order, start=0))
    fused = lambda module, inputs: seen.__setitem__('fused', inputs[0].detach().numpy()[..., order])  # noqa: E731
    model.backbone.ln1.register_forward_pre_hook(fused)
    model.backbone.ln1.register_forward_hook(keep('latent', order))
    for i, block in enumerate(model.neck.decoder_blocks):
        block.register_forward_hook(keep(f'decoder/pixels/block_{i:02d}', decoder_order))
    model.neck.decoder_pred.register_forward_hook(keep('prediction'))
    found: Arrays = {}

    def inspect(module: Any, inputs: tuple) -> None:
        _, target, mask = inputs
        found['masked'] = mask.numpy().astype(bool)
        seen['target'] = target.numpy()

    model.head.loss_module.register_forward_pre_hook(inspect)
    losses = losses_of(model, case)
    losses['loss'].backward()
    gradients = map_back({name: parameter.grad.numpy() for name, parameter in trained(model).items()})
    found['loss'] = losses['loss'].detach().numpy()
    found['weights'] = np.array([losses[f'weight_{i}'].item() for i in range(len(losses) - 1)])
    return found | sample_all(seen, 'seen/') | sample_all(gradients, 'gradients/')


def optimise(checkout: str, case: cases.Case) -> Arrays:
    """Steps with the released decay groups."""
    from mmengine.optim import build_optim_wrapper

    config, model = build(checkout, case)
    released = {name: config.optim_wrapper.optimizer[name] for name in ('type', 'betas')}
    assert released == {'type': 'AdamW', 'betas': cases.ADAMW['betas']}
    config.optim_wrapper.update(type='OptimWrapper')
    config.optim_wrapper.pop('loss_scale')  # fp32 here
    config.optim_wrapper.optimizer.update(lr=cases.ADAMW['lr'], weight_decay=cases.ADAMW['weight_decay'])
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    before, losses, stored = cases.make_weights(case), [], {}
    for step in range(cases.STEPS):
        loss = losses_of(model, case)['loss']
        losses.append(loss.item())
        wrapper.update_params(loss)
        if step == 0:
            after = map_back({name: parameter.detach().numpy() for name, parameter in trained(model).items()})
            stored = sample_all({path: value - before[path] for path, value in after.items()}, 'moved/')
    return stored | {'losses': np.array(losses)}


def make_golden(checkout: str) -> Arrays:
    """All arrays of the file."""
    _, model = build(checkout, cases.CASES['released_layers'])
    stored = sample_all({name: model.state_dict()[name].numpy() for name in MFF.constants}, 'constants/')
    for name, case in cases.CASES.items():
        found = run(checkout, case)
        if name == cases.STEPPED:
            found |= optimise(checkout, case)
        stored |= {f'{name}/{key}': array for key, array in found.items()}
    return stored


if __name__ == '__main__':
    open_checkout(*sys.argv[1:])
    path = HERE / 'mff.npz'
    np.savez_compressed(path, **make_golden(sys.argv[1]))
    print(path, f'{path.stat().st_size / 1e3:.0f} kB')
