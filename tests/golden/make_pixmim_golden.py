"""Writes pixmim.npz beside this file: python make_pixmim_golden.py CHECKOUT LIBRARIES. Needs torch.

CHECKOUT: of open-mmlab/mmselfsup; LIBRARIES: a folder made by `pip install --no-deps --target LIBRARIES mmcls==1.0.0rc6
mmengine==0.10.4 mmcv-lite==2.0.1 addict yapf platformdirs termcolor rich pygments`. Keys: <case>/seen/<place> samples;
<case>/target, f32 samples of a filtered image; <case>/{loss, masked}; <case>/gradients/<our path> samples;
side_64/{losses, moved/<path>}: steps of AdamW; constants/<their name> samples.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / 'parity'), str(HERE.parent)]

import pixmim_cases as cases  # noqa: E402
from conftest import repair_torchvision  # noqa: E402
from parity_rules import sample_all  # noqa: E402

from mim_jax.config.tree import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from mim_jax.interop.formats import find_paths  # noqa: E402
from mim_jax.interop.pixmim import PIXMIM  # noqa: E402
from mim_jax.weights.layout import to_ours, to_theirs  # noqa: E402

Arrays = dict[str, np.ndarray]
RELEASED = 'configs/selfsup/pixmim/pixmim_vit-base-p16_8xb512-amp-coslr-800e_in1k.py'


class StandIn(types.ModuleType):
    """A module of which any name can be imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return mock.MagicMock()


def open_checkout(checkout: str, libraries: str) -> None:
    """Make mmselfsup importable beside a newer torch. What is stood in for reads images or model indices."""
    repair_torchvision()
    sys.modules['transformers'] = None  # mmengine would register its optimizers beside torch's own
    for name in ('cv2', 'modelindex', 'modelindex.load_model_index', 'modelindex.models', 'modelindex.models.Model'):
        sys.modules[name] = StandIn(name)
    sys.modules['mmcls.apis'] = StandIn('mmcls.apis')
    sys.path[:0] = [libraries, checkout]


def build(checkout: str, case: cases.Case) -> tuple[Any, Any]:
    """(the released configuration with the case's sizes, its model with weights by rule)."""
    import mmselfsup.models.algorithms.pixmim
    import mmselfsup.models.backbones.mae_vit
    import mmselfsup.models.heads.mae_head
    import mmselfsup.models.losses.mae_loss
    import mmselfsup.models.necks.mae_neck
    import mmselfsup.models.target_generators.low_freq_generator  # noqa: F401
    import torch
    from mmengine.config import Config
    from mmselfsup.registry import MODELS

    config = Config.fromfile(str(Path(checkout) / RELEASED))
    arch = {'embed_dims': cases.WIDTH, 'num_layers': cases.DEPTH, 'num_heads': cases.HEADS}
    config.model.backbone.update(arch={**arch, 'feedforward_channels': 4 * cases.WIDTH})
    config.model.backbone.update(img_size=case.image_size, patch_size=case.patch_size)
    names = {'decoder_embed_dim': 'width', 'decoder_depth': 'depth', 'decoder_num_heads': 'heads'}
    config.model.neck.update({theirs: cases.DECODER[f'decoder_{ours}'] for theirs, ours in names.items()})
    config.model.neck.update(num_patches=case.patches, patch_size=case.patch_size, embed_dim=cases.WIDTH)
    config.model.head.patch_size = case.patch_size
    config.model.target_generator.update(radius=case.radius, img_size=case.image_size)
    model = MODELS.build(config.model)
    model.init_weights()
    own = model.state_dict()
    left = {*PIXMIM.constants, 'target_generator.low_pass_filter'}
    state = {name: torch.from_numpy(a.copy()) for name, a in to_theirs(cases.make_weights(case), PIXMIM).items()}
    assert not left & state.keys()
    model.load_state_dict(state | {name: own[name] for name in left}, strict=True)
    return config, model.train()


def map_back(theirs: Arrays) -> Arrays:
    """{our path: array} of arrays under their names, all of them."""
    ours = to_ours(theirs, PIXMIM, find_paths(theirs, PIXMIM))
    assert to_theirs(ours, PIXMIM).keys() == theirs.keys()
    return ours


def trained(model: Any) -> dict[str, Any]:
    """Their parameters, without the fixed positions."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def loss_of(model: Any, case: cases.Case) -> Any:
    """The released loss on the case's images and noise."""
    import torch

    pixels = torch.from_numpy(cases.make_images(case)).float() / 255.0
    images = ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(0, 3, 1, 2)
    with mock.patch.object(torch, 'rand', return_value=torch.from_numpy(cases.make_noise(case))):
        return model.loss([images], None)['loss']


def run(checkout: str, case: cases.Case) -> Arrays:
    """Samples of what is seen on the way, the loss, the mask, and samples of gradients."""
    _, model = build(checkout, case)
    seen: Arrays = {}
    order = np.roll(np.arange(cases.WIDTH), cases.WIDTH // 2)
    decoder_order = np.roll(np.arange(cases.DECODER['decoder_width']), cases.DECODER['decoder_width'] // 2)

    def keep(place: str, channels: np.ndarray | slice = slice(None)) -> Any:
        """Patch tokens, the residual stream's channels in our order."""
        return lambda module, inputs, output: seen.__setitem__(place, output[:, 1:].detach().numpy()[..., channels])

    for i, block in enumerate(model.backbone.layers):
        block.register_forward_hook(keep(f'encoder/block_{i:02d}', order))
    model.backbone.ln1.register_forward_hook(keep('latent', order))
    for i, block in enumerate(model.neck.decoder_blocks):
        block.register_forward_hook(keep(f'decoder/pixels/block_{i:02d}', decoder_order))
    model.neck.decoder_pred.register_forward_hook(keep('prediction'))
    found: Arrays = {}

    def inspect(module: Any, inputs: tuple) -> None:
        _, target, mask = inputs
        found['masked'] = mask.numpy().astype(bool)
        seen['target'] = module.construct_target(target).numpy()
        seen['filtered'] = target.permute(0, 2, 3, 1).numpy()

    model.head.register_forward_pre_hook(inspect)
    loss = loss_of(model, case)
    loss.backward()
    gradients = map_back({name: parameter.grad.numpy() for name, parameter in trained(model).items()})
    found['loss'] = loss.detach().numpy()
    return found | sample_all(seen, 'seen/') | sample_all(gradients, 'gradients/')


def optimise(checkout: str, case: cases.Case) -> Arrays:
    """Steps with the released decay groups."""
    from mmengine.optim import build_optim_wrapper

    config, model = build(checkout, case)
    assert {name: config.optim_wrapper.optimizer[name] for name in ('type', 'betas')} == {
        'type': 'AdamW',
        'betas': cases.ADAMW['betas'],
    }
    config.optim_wrapper.update(type='OptimWrapper')
    config.optim_wrapper.pop('loss_scale')  # fp32 here
    config.optim_wrapper.optimizer.update(lr=cases.ADAMW['lr'], weight_decay=cases.ADAMW['weight_decay'])
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    before, losses, stored = cases.make_weights(case), [], {}
    for step in range(cases.STEPS):
        loss = loss_of(model, case)
        losses.append(loss.item())
        wrapper.update_params(loss)
        if step == 0:
            after = map_back({name: parameter.detach().numpy() for name, parameter in trained(model).items()})
            stored = sample_all({path: value - before[path] for path, value in after.items()}, 'moved/')
    return stored | {'losses': np.array(losses)}


def constants(checkout: str, case: cases.Case) -> Arrays:
    """Samples of their fixed positions."""
    _, model = build(checkout, case)
    return sample_all({name: model.state_dict()[name].numpy() for name in PIXMIM.constants}, 'constants/')


def make_golden(checkout: str) -> Arrays:
    """All arrays of the file."""
    stored = constants(checkout, cases.CASES['side_224'])
    for name, case in cases.CASES.items():
        found = run(checkout, case)
        if name == 'side_64':
            found |= optimise(checkout, case)
        stored |= {f'{name}/{key}': array for key, array in found.items()}
    return stored


if __name__ == '__main__':
    open_checkout(*sys.argv[1:])
    path = HERE / 'pixmim.npz'
    np.savez_compressed(path, **make_golden(sys.argv[1]))
    print(path, f'{path.stat().st_size / 1e3:.0f} kB')
