"""Writes mae_released.npz beside this file: python make_mae_released_golden.py CHECKOUT (of facebookresearch/mae). Needs torch.

Keys: <case>/seen/<place> samples; <case>/{loss, masked}; <case>/gradients/<our path> samples; <case>/constants/<name>.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / 'parity'), str(HERE.parent)]

import mae_released_cases as cases  # noqa: E402
from conftest import repair_torchvision  # noqa: E402
from parity_rules import sample_all  # noqa: E402

from mim_jax.config.tree import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from mim_jax.interop.blocks import pack_biases  # noqa: E402
from mim_jax.interop.formats import find_paths  # noqa: E402
from mim_jax.interop.mae import MAE  # noqa: E402
from mim_jax.weights.layout import to_ours, to_theirs  # noqa: E402

Arrays = dict[str, np.ndarray]


def open_checkout(checkout: str) -> Any:
    """Its models_mae beside a newer timm, whose Block no longer takes qk_scale, and NumPy, which has no np.float."""
    repair_torchvision()
    import timm.models.vision_transformer as vision_transformer

    block = vision_transformer.Block
    vision_transformer.Block = lambda *args, qk_scale=None, **kwargs: block(*args, **kwargs)
    vars(np)['float'] = float
    sys.path.insert(0, checkout)
    import models_mae

    return models_mae


def build(released: Any, case: cases.Case) -> Any:
    """Their model with weights by rule, loaded strictly; its positions are its own."""
    import torch

    model = released.MaskedAutoencoderViT(
        img_size=case.image_size,
        patch_size=case.patch_size,
        embed_dim=case.width,
        depth=case.depth,
        num_heads=case.heads,
        decoder_embed_dim=case.decoder_width,
        decoder_depth=case.decoder_depth,
        decoder_num_heads=case.decoder_heads,
        mlp_ratio=4,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        norm_pix_loss=case.norm_pix_loss,
    )
    own = model.state_dict()
    state = to_theirs(pack_biases(cases.make_weights(case), MAE), MAE)
    assert not state.keys() & MAE.constants.keys()
    weights = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
    model.load_state_dict(weights | {name: own[name] for name in MAE.constants}, strict=True)
    return model.train()


def run(released: Any, case: cases.Case) -> Arrays:
    """Samples of what is seen on the way, the loss, the mask, and samples of gradients."""
    import torch

    model, seen = build(released, case), {}

    def keep(place: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(place, output[:, 1:].detach().numpy())

    for i, block in enumerate(model.blocks):
        block.register_forward_hook(keep(f'encoder/block_{i:02d}'))
    for i, block in enumerate(model.decoder_blocks):
        block.register_forward_hook(keep(f'decoder/pixels/block_{i:02d}'))
    model.norm.register_forward_hook(keep('latent'))
    pixels = torch.from_numpy(cases.make_images(case)).float() / 255.0
    images = ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(0, 3, 1, 2)
    with mock.patch.object(torch, 'rand', return_value=torch.from_numpy(cases.make_noise(case))):
        loss, prediction, mask = model(images, mask_ratio=0.75)
    loss.backward()
    seen['prediction'] = prediction.detach().numpy()
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters() if p.requires_grad}
    gradients = to_ours(theirs, MAE, find_paths(theirs, MAE))
    assert to_theirs(gradients, MAE).keys() == theirs.keys()
    constants = {name: model.state_dict()[name].numpy() for name in MAE.constants}
    return {
        'loss': loss.detach().numpy(),
        'masked': mask.numpy().astype(bool),
        **sample_all(seen, 'seen/'),
        **sample_all(gradients, 'gradients/'),
        **sample_all(constants, 'constants/'),
    }


if __name__ == '__main__':
    models_mae = open_checkout(sys.argv[1])
    stored = {
        f'{name}/{key}': value for name, case in cases.CASES.items() for key, value in run(models_mae, case).items()
    }
    path = HERE / 'mae_released.npz'
    np.savez_compressed(path, **stored)
    print(path, f'{path.stat().st_size / 1e3:.0f} kB')
