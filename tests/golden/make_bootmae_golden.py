"""Writes bootmae.npz beside this file: python make_bootmae_golden.py CHECKOUT, a checkout of LightDXY/BootMAE. Needs torch.

The released train_one_epoch, scaler, optimizer, schedules, masks and timm's EMA run unedited on the CPU.
Keys: order u8[10,2,196], the patches of each step, visible ones first; seen/<place> samples of the first step; steps/<name>
f64[10]; gradients/<our path> samples of the first step; moved/<our path> and teacher/<our path> samples of how far
ten steps moved parameters and teacher; constants/<their name> samples; names; ramp/<dynamic> f64[epochs];
masks/<statistic>; initial/paths and initial/values f32[n,2], deviation and largest value of fresh parameters.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

import bootmae_cases as cases  # noqa: E402
from parity_rules import sample_all  # noqa: E402

from mim_jax.interop.bootmae import BOOTMAE  # noqa: E402
from mim_jax.weights.layout import to_ours, to_theirs  # noqa: E402

Arrays = dict[str, np.ndarray]
DRAWN_MASKS = 20_000
EPOCHS_SEEN = (0, 1, 50, 99, 100, 101, 250, 399, 400, 500, 800)  # of the momentum's ramp


def import_released(checkout: str) -> types.SimpleNamespace:
    """Its modules, with stand-ins for what is imported and not used here, and for CUDA."""
    spec = importlib.util.spec_from_file_location('parity_conftest', HERE.parent / 'parity' / 'conftest.py')
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # repairs torchvision
    stand_ins = {
        'torch._six': ('inf',),
        'tensorboardX': ('SummaryWriter',),
        'datasets': ('build_pretraining_dataset',),
        **{f'timm.optim.{name.lower()}': (name,) for name in ('Adafactor', 'Adahessian', 'AdamP', 'Lookahead')},
        **{f'timm.optim.{name.lower()}': (name,) for name in ('Nadam', 'RAdam', 'SGDP')},
        'timm.optim.rmsprop_tf': ('RMSpropTF',),
    }
    for name, members in stand_ins.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(dict.fromkeys(members))
    sys.modules['torch._six'].inf = math.inf
    vars(np).update(int=int)  # NumPy took it away
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    sys.path.insert(0, checkout)
    names = ('run_pretraining', 'utils', 'optim_factory', 'masking_generator', 'models.modeling_pretrain_bootmae')
    return types.SimpleNamespace(**{name.rpartition('.')[2]: importlib.import_module(name) for name in names})


def build(released: types.SimpleNamespace, side: int, width: int, depth: int, heads: int, decoder_width: int) -> Any:
    """The released model as bootmae_base makes it, at other sizes; freshly initialised."""
    return released.modeling_pretrain_bootmae.VisionTransformerForMaskedImageModeling(
        img_size=side,
        patch_size=cases.PATCH,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=4,
        qkv_bias=True,
        decode_dim=decoder_width,
        fea_list=[0, depth - 1],
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    )


def load(model: Any, weights: Arrays) -> None:
    """Weights by our paths into the released model; exactly its parameters."""
    state = {name: torch.from_numpy(a.copy()) for name, a in to_theirs(weights, BOOTMAE).items()}
    assert sorted(model.load_state_dict(state, strict=False).missing_keys) == sorted(BOOTMAE.constants)
    assert set(state) <= set(model.state_dict())


def as_ours(tensors: dict[str, torch.Tensor], paths: tuple[str, ...]) -> Arrays:
    """Their parameters or gradients by our paths, copied."""
    return to_ours({name: a.detach().numpy().copy() for name, a in tensors.items()}, BOOTMAE, paths)


class Recorder:
    """Takes the place of the released scaler, which it calls; notes what the training loop knows at that moment."""

    def __init__(self, scaler: Any, model: Any):
        self.scaler, self.model, self.steps, self.first = scaler, model, [], {}

    def __call__(self, loss: Any, optimizer: Any, **keywords: Any) -> Any:
        loop = sys._getframe(1).f_locals
        norm = self.scaler(loss, optimizer, **keywords)
        self.steps.append(
            {
                'order': loop['idx_shuffle'].numpy().astype(np.uint8),
                'loss/total': loss.item(),
                'loss/pixels': loop['Rloss'].item(),
                'loss/features': loop['Ploss'].item(),
                'weight': loop['feature_weight'],
                'momentum': loop['model_ema'].decay,
                'lr': optimizer.param_groups[0]['lr'],
                'grad_norm': norm.item(),
            }
        )
        if not self.first:
            patch = cases.PATCH
            self.first = {
                'gradients': {name: p.grad.clone() for name, p in self.model.named_parameters() if p.requires_grad},
                'target/pixels': patches_of(loop['im_norm']),
                'target/features': loop['LN'](loop['Feat_gt']),
                'weights/pixels': loop['weight_mask'][:, 0, ::patch, ::patch].flatten(1),
                'weights/features': loop['perc_mask'][..., 0],
                'prediction/pixels': patches_of(loop['out'][0]),
                'prediction/features': loop['LN'](loop['out'][1]),
            }
        return norm

    def state_dict(self) -> dict[str, float]:
        return {'scale': 1.0}


def patches_of(images: torch.Tensor) -> torch.Tensor:
    """f[B,3,H,W] -> f[B,N,P], values of a patch ordered (dy, dx, channel)."""
    b, patch = len(images), cases.PATCH
    side = images.shape[-1] // patch
    cells = images.reshape(b, 3, side, patch, side, patch).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(b, side * side, -1)


def make_batches(released: types.SimpleNamespace, epoch: int) -> list[Any]:
    """An epoch of ((images, block masks), labels), as its data loader gives them."""
    generator, batches = make_generator(released), []
    for step in range(epoch * cases.PER_EPOCH, (epoch + 1) * cases.PER_EPOCH):
        pixels = torch.from_numpy(cases.make_images(step)).permute(0, 3, 1, 2).float() / 255.0
        masks = torch.from_numpy(np.stack([generator() for _ in range(cases.IMAGES)]))
        batches.append((((pixels - 0.5) / 0.5, masks), torch.zeros(cases.IMAGES)))
    return batches


def make_generator(released: types.SimpleNamespace) -> Any:
    """Block masks with the arguments' defaults, which the released scripts keep."""
    return released.masking_generator.MaskingGenerator(
        (14, 14), num_masking_patches=120, max_num_patches=60, min_num_patches=16
    )


def train(released: types.SimpleNamespace) -> Arrays:
    """Ten steps of the released loop; the teacher begins with weights of its own."""
    torch.manual_seed(0)
    random.seed(0)
    args = types.SimpleNamespace(
        **{'feature_weight': 1.0, 'epochs': cases.EPOCHS, 'mask_num': 147, 'weight_mask': True},
        **{'model_ema_decay': cases.MOMENTUM, 'model_ema_dynamic': True, 'patch_size': (cases.PATCH,) * 2},
        **{'window_size': (14, 14), 'opt': 'adamw', 'weight_decay': 0.05, 'lr': cases.PEAK},
    )
    model = build(released, cases.SIDE, **cases.SIZES, decoder_width=cases.DECODER_WIDTH)
    weights = {role: cases.make_weights(cases.make_recipe(), role) for role in ('', 'teacher/')}
    load(model, weights[''])
    ema = released.run_pretraining.ModelEma(model, decay=args.model_ema_decay, device='', resume='')
    load(ema.ema, weights['teacher/'])
    seen = watch(model)
    optimizer = released.optim_factory.create_adamw_optimizer(args, model)
    lr_table, decay_table = (
        released.utils.cosine_scheduler(start, end, cases.EPOCHS, cases.PER_EPOCH, warmup_epochs=warmup)
        for start, end, warmup in ((cases.PEAK, cases.FLOOR, cases.WARMUP_EPOCHS), (0.05, 0.05, 0))
    )
    recorder = Recorder(released.utils.NativeScalerWithGradNormCount(), model)
    for epoch in range(cases.STEPS // cases.PER_EPOCH):
        released.run_pretraining.train_one_epoch(
            torch.nn.DataParallel(model),
            make_batches(released, epoch),
            optimizer,
            torch.device('cpu'),
            epoch,
            recorder,
            max_norm=None,
            start_steps=epoch * cases.PER_EPOCH,
            lr_schedule_values=lr_table,
            wd_schedule_values=decay_table,
            update_freq=1,
            rank=1,  # only rank 0 draws pictures
            args=args,
            model_ema=ema,
        )
    paths = tuple(weights[''])
    gradients = as_ours(recorder.first.pop('gradients'), paths)
    seen |= {name: value.detach().numpy() for name, value in recorder.first.items()}
    state, teacher = (as_ours(one.state_dict(), paths) for one in (model, ema.ema))
    moved = {path: state[path] - weights[''][path] for path in paths}
    held = [path for path in paths if path.startswith('encoder/') and not path.startswith('encoder/norm/')]
    followed = {path: teacher[path] - weights['teacher/'][path] for path in held}
    constants = {name: model.state_dict()[name].numpy() for name in BOOTMAE.constants}
    steps = {name: np.array([step[name] for step in recorder.steps]) for name in recorder.steps[0]}
    return {
        'order': steps.pop('order'),
        **{f'steps/{name}': values for name, values in steps.items()},
        **sample_all(seen, 'seen/'),
        **sample_all(gradients, 'gradients/'),
        **sample_all(moved, 'moved/'),
        **sample_all(followed, 'teacher/'),
        **sample_all(constants, 'constants/'),
        'names': np.array([f'{name} {tuple(value.shape)}' for name, value in model.state_dict().items()]),
    }


def watch(model: Any) -> Arrays:
    """{our place: output}, filled by the first forward pass."""
    places = {f'blocks.{i}': f'encoder/block_{i:02d}' for i in range(cases.SIZES['depth'])} | {'norm': 'latent'}
    for name, suffix in (('pixels', ''), ('features', '_1')):
        places |= {f'decode_blocks{suffix}.{i}': f'decoder/{name}/block_{i:02d}' for i in range(2)}
    seen: Arrays = {}

    def note(place: str, module: Any, inputs: Any, output: torch.Tensor) -> None:
        seen.setdefault(place, output.detach().numpy().copy())

    for name, place in places.items():
        model.get_submodule(name).register_forward_hook(functools.partial(note, place))
    return seen


def describe_masks(released: types.SimpleNamespace) -> Arrays:
    """Statistics of many block masks: how often each patch lies inside, and the length of the border."""
    random.seed(1)
    generator = make_generator(released)
    masks = np.stack([generator() for _ in range(DRAWN_MASKS)]).astype(bool)
    assert (masks.sum((1, 2)) == 120).all()
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    border = (padded[:, 1:] != padded[:, :-1]).sum((1, 2)) + (padded[:, :, 1:] != padded[:, :, :-1]).sum((1, 2))
    moments = np.array([border.mean(), border.std(), DRAWN_MASKS])
    return {'masks/inside': masks.mean(0), 'masks/border': moments}


def describe_initial(released: types.SimpleNamespace) -> Arrays:
    """Deviation and largest value of every parameter of a fresh model."""
    torch.manual_seed(2)
    shapes = cases.shapes_of(cases.make_fresh_recipe())
    fresh = as_ours(build(released, **cases.FRESH).state_dict(), tuple(shapes))
    values = np.array([[value.std(), np.abs(value).max()] for value in fresh.values()], np.float32)
    return {'initial/paths': np.array(list(fresh)), 'initial/values': values}


def make_golden(checkout: str) -> Arrays:
    """All arrays of the file."""
    released = import_released(checkout)
    stored = train(released) | describe_masks(released) | describe_initial(released)
    stored['ramp/epochs'] = np.array(EPOCHS_SEEN)
    for dynamic in (True, False):
        args = types.SimpleNamespace(model_ema_decay=0.999, model_ema_dynamic=dynamic)
        ramp = [released.utils.adjust_ema_momentum(epoch, args) for epoch in EPOCHS_SEEN]
        stored[f'ramp/{dynamic}'] = np.array(ramp)
    return stored


if __name__ == '__main__':
    path = HERE / 'bootmae.npz'
    np.savez_compressed(path, **make_golden(sys.argv[1]))
    print(path, f'{path.stat().st_size / 1e3:.0f} kB')
