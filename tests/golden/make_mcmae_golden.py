"""Writes mcmae.npz beside this file: python make_mcmae_golden.py CHECKOUT, a checkout of Alpha-VL/ConvMAE. Needs torch.

Keys: seen/<place> samples of every block's output, of the visible cells only; setting 'norm' or 'plain' (norm_pix_loss):
<setting>/loss, <setting>/gradients/<our path> samples; masked bool[2,196]; constants/<their name> samples.
"""

from __future__ import annotations

import functools
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

import mcmae_cases as cases  # noqa: E402
from parity_rules import sample_all  # noqa: E402

from mim_jax.config.tree import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from mim_jax.interop.mcmae import CONVMAE  # noqa: E402
from mim_jax.weights.layout import to_ours, to_theirs  # noqa: E402

Arrays = dict[str, np.ndarray]


def import_released(checkout: str) -> types.ModuleType:
    """Its models_convmae; timm's names it imports without using them in numerics are stood in for."""
    names = {
        'timm': (),
        'timm.data': ('IMAGENET_DEFAULT_MEAN', 'IMAGENET_DEFAULT_STD'),
        'timm.models': (),
        'timm.models.helpers': ('load_pretrained',),
        'timm.models.layers': ('DropPath', 'to_2tuple', 'trunc_normal_'),
        'timm.models.resnet': ('resnet26d', 'resnet50d'),
        'timm.models.registry': ('register_model',),
    }
    for module, members in names.items():
        sys.modules[module] = types.ModuleType(module)
        for member in members:
            setattr(sys.modules[module], member, None)
    sys.modules['timm.models.layers'].to_2tuple = lambda size: (size, size)
    vars(np).update(float=float)  # NumPy took it away
    sys.path.insert(0, checkout)
    import models_convmae

    return models_convmae


def build(released: types.ModuleType, norm_pix_loss: bool) -> torch.nn.Module:
    """The released model at the case's widths, weights by rule."""
    decoder = {f'decoder_{name}': cases.DECODER[f'decoder_{ours}'] for name, ours in NAMES.items()}
    model = released.MaskedAutoencoderConvViT(
        img_size=[224, 56, 28],
        patch_size=[4, 2, 2],
        embed_dim=[*cases.STAGE_WIDTHS, cases.WIDTH],
        depth=[*cases.STAGE_DEPTHS, cases.DEPTH],
        num_heads=cases.HEADS,
        mlp_ratio=[4, 4, 4],
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        norm_pix_loss=norm_pix_loss,
        **decoder,
    )
    state = to_theirs(cases.make_weights(cases.make_recipe()), CONVMAE)
    missing = model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()}, strict=False)
    assert not missing.unexpected_keys
    assert sorted(missing.missing_keys) == sorted(CONVMAE.constants)
    return model


NAMES = {'embed_dim': 'width', 'depth': 'depth', 'num_heads': 'heads'}  # their keyword -> ours
PLACES = {  # their module -> our place
    **{f'patch_embed{i}': f'encoder/embed{i}' for i in (1, 2, 3, 4)},
    **{f'blocks{s}.{i}': f'encoder/stage{s}/block_{i:02d}' for s in (1, 2) for i in range(cases.STAGE_DEPTHS[s - 1])},
    **{f'blocks3.{i}': f'encoder/block_{i:02d}' for i in range(cases.DEPTH)},
    **{f'stage{s}_output_decode': f'neck/stages/stage{s}' for s in (1, 2)},
    'norm': 'latent',
    **{f'decoder_blocks.{i}': f'decoder/pixels/block_{i:02d}' for i in range(cases.DECODER['decoder_depth'])},
    'decoder_pred': 'prediction',
}


def visible_cells(output: torch.Tensor, keep: torch.Tensor) -> np.ndarray:
    """A map f[B,C,14s,14s], or all tokens f[B,196,C], -> f[B,49*s*s,C]; tokens of visible patches are that already."""
    if output.ndim == 4:
        b, channels, side, _ = output.shape
        s = side // 14
        output = output.reshape(b, channels, 14, s, 14, s).permute(0, 2, 4, 3, 5, 1).reshape(b, 196, s * s, channels)
    else:
        output = output[:, :, None]
    kept = torch.stack([image[ids] for image, ids in zip(output, keep, strict=True)])
    return kept.flatten(1, 2).detach().numpy()


def run(model: torch.nn.Module) -> tuple[Arrays, Arrays]:
    """(what is seen on the way, {'loss', 'masked', gradients by our paths})."""
    outputs: dict[str, torch.Tensor] = {}
    for name, place in PLACES.items():
        hook = lambda module, inputs, output, place=place: outputs.__setitem__(place, output)  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    noise = torch.from_numpy(cases.make_noise())
    pixels = torch.from_numpy(cases.make_images()).float() / 255.0
    images = ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(0, 3, 1, 2)
    with mock.patch.object(torch, 'rand', return_value=noise):
        loss, _, mask = model(images)
    loss.backward()
    keep = torch.argsort(noise, dim=1)[:, : cases.VISIBLE]
    seen = {}
    for place, output in outputs.items():
        everywhere = output.ndim == 4 or place == 'encoder/embed4'
        seen[place] = visible_cells(output, keep) if everywhere else output.detach().numpy()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.requires_grad}
    ours = to_ours(gradients, CONVMAE, tuple(cases.make_weights(cases.make_recipe())))
    return seen, {'loss': loss.detach().numpy(), 'masked': mask.numpy().astype(bool), 'gradients': ours}


def make_golden(checkout: str) -> Arrays:
    """All arrays of the file."""
    released, stored = import_released(checkout), {}
    for setting in ('norm', 'plain'):
        model = build(released, setting == 'norm')
        constants = {name: model.get_parameter(name).detach().numpy() for name in CONVMAE.constants}
        seen, found = run(model)
        stored |= sample_all(seen, 'seen/') | sample_all(constants, 'constants/')  # the same in both settings
        stored |= {'masked': found['masked'], f'{setting}/loss': found['loss']}
        stored |= sample_all(found['gradients'], f'{setting}/gradients/')
    return stored


if __name__ == '__main__':
    path = HERE / 'mcmae.npz'
    np.savez_compressed(path, **make_golden(sys.argv[1]))
    print(path, f'{path.stat().st_size / 1e3:.0f} kB')
