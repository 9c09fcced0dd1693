"""Writes lut.npz beside this file with the released LUT: its model, engine, momentum teacher and schedules, on a CPU.

Usage: make_lut_golden.py CHECKOUT, a working copy of naver-ai/lut. Needs torch and timm. Its two faults are mended from
outside: the missing util/utils_dino is stood in for (what is imported from it is never called), and the weight of the loss is
handed over under the name w_bc, by which the engine reads it.
Of ten steps: reconstruction, context (the two losses), grad_norms, lrs, momenta. Of the first: seen/<network>/<view>/<place>
(student and teacher; main and lut; block_00, ..., context, output), seen/prediction, masked/<view>, gradients/<path> and
running/<path>, the student's BatchNorm statistics after it; after the tenth final/{student,teacher,student_statistics,
teacher_statistics}/<path>. Once initial/<path>: (mean, deviation, largest, count) of the released initial weights. Paths are
ours; arrays are kept as parity_rules.sample keeps them.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / 'parity'), str(HERE.parent)]

import conftest  # noqa: E402, F401  the one of parity/: repairs torchvision before timm asks for it
import torch  # noqa: E402
from lut_cases import (  # noqa: E402
    ALPHA,
    DECODER,
    DEPTH,
    EPOCHS,
    HEAD_WIDTH,
    HEADS,
    IMAGES,
    MASK_RATIO,
    MEAN,
    MOMENTUM,
    OPTIM,
    PATCH,
    SIDE,
    STD,
    STEPS_PER_EPOCH,
    WIDTH,
    clear_key_biases,
    noise_of,
    views_of,
)
from parity_rules import draw_weights, sample_all  # noqa: E402
from timm.optim import param_groups_weight_decay  # noqa: E402

from mim_jax.interop.formats import find_paths  # noqa: E402
from mim_jax.interop.lut import LUT  # noqa: E402
from mim_jax.weights.layout import to_ours, to_theirs  # noqa: E402

Arrays = dict[str, np.ndarray]


def import_released(checkout: str) -> types.SimpleNamespace:
    """The released modules; what they import and nobody has any more, and nobody calls here, is stood in for."""
    sys.path.insert(0, checkout)
    for name, attribute, value in (('torch._six', 'inf', float('inf')), ('util.utils_dino', 'trunc_normal_', None)):
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], attribute, value)
    vars(np)['float'] = float
    from engines import engine_lut
    from models import models_lut
    from util import augs, misc, model_ema_sched

    torch.cuda.synchronize = lambda: None
    return types.SimpleNamespace(
        engine=engine_lut, models=models_lut, augs=augs, misc=misc, ema=model_ema_sched.ModelEma_sched
    )


def make_model(released: Any) -> torch.nn.Module:
    """The released model with the case's sizes and its own initial weights."""
    return released.models.MaskedAutoencoderViT_LUT(
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        decoder_embed_dim=DECODER['decoder_width'],
        decoder_depth=DECODER['decoder_depth'],
        decoder_num_heads=DECODER['decoder_heads'],
        head_mlp_dim=HEAD_WIDTH,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        norm_pix_loss=True,
    )


def ours_of(tensors: Mapping[str, torch.Tensor], statistics: bool = False) -> Arrays:
    """{our path: array} of tensors by their names: BatchNorm's running statistics, or the rest."""
    arrays = {name: value.detach().numpy().copy() for name, value in tensors.items()}
    paths = [path for path in find_paths(arrays, LUT) if path.endswith(('/mean', '/var')) == statistics]
    return to_ours(arrays, LUT, tuple(paths))


def load_rule(model: torch.nn.Module) -> None:
    """Weights by rule. What the layout does not set is exactly its constants, what it ignores, and running statistics."""
    state = model.state_dict()
    weights = draw_weights({path: array.shape for path, array in ours_of(state).items()})
    theirs = {name: torch.from_numpy(value.copy()) for name, value in to_theirs(weights, LUT).items()}
    model.load_state_dict(state | theirs)
    ignored = {name for name in state for pattern in LUT.ignored if re.fullmatch(pattern, name)}
    kept = {name for name in state if name.endswith(('running_mean', 'running_var'))}
    assert state.keys() - theirs.keys() == ignored | kept | LUT.constants.keys()


class Recorder:
    """The engine's log writer, and hooks that keep what passes through a network's first forward pass."""

    def __init__(self):
        self.values: dict[str, list[float]] = {}
        self.seen: Arrays = {}

    def logger_type(self) -> str:
        return 'tensorboard'

    def update(self, head: str, **values: Any) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(float(value))

    def set_step(self) -> None:
        pass

    def watch(self, model: torch.nn.Module, network: str, output: str) -> None:
        """Both views of a network take the same way, main first."""

        def keep(place: str, module: Any, inputs: Any, result: torch.Tensor) -> None:
            for view in ('main', 'lut'):
                if f'{network}/{view}/{place}' not in self.seen:
                    self.seen[f'{network}/{view}/{place}'] = result.detach().numpy().copy()
                    return

        def keep_input(place: str, module: Any, inputs: Any) -> None:
            keep(place, module, None, inputs[0])

        def keep_prediction(module: Any, inputs: Any, result: torch.Tensor) -> None:
            self.seen.setdefault('prediction', result[:, 1:].detach().numpy().copy())

        model.decoder_pred.register_forward_hook(keep_prediction)
        for i, block in enumerate(model.blocks):
            block.register_forward_hook(functools.partial(keep, f'block_{i:02d}'))
        model.head.register_forward_pre_hook(functools.partial(keep_input, 'context'))
        getattr(model, output).register_forward_hook(functools.partial(keep, 'output'))


def keep_masks(model: torch.nn.Module, found: Arrays) -> None:
    """The masks of the first forward pass; True: masked."""
    original = model.random_masking

    def masking(*args: Any) -> Any:
        results = original(*args)
        for view, mask in (('main', results[2]), ('lut', results[3])):
            found.setdefault(f'masked/{view}', mask.numpy().astype(bool))
        return results

    model.random_masking = masking


class Loader:
    """An epoch's batches: (both views, label). `between` is called before all but the run's first."""

    def __init__(self, start: int, between: Any):
        self.start, self.between = start, between

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __iter__(self) -> Iterator:
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        for step in range(self.start, self.start + STEPS_PER_EPOCH):
            if step:
                self.between()
            pixels = [torch.from_numpy(x.copy()).float() / 255.0 for x in views_of(step).values()]
            yield [((x - mean) / std).permute(0, 3, 1, 2).contiguous() for x in pixels], 0


@contextlib.contextmanager
def given_noise() -> Iterator:
    """torch.rand hands out the case's noise, step by step."""
    steps = iter(range(EPOCHS * STEPS_PER_EPOCH))
    with mock.patch.object(torch, 'rand', side_effect=lambda *shape, **_: torch.from_numpy(noise_of(next(steps)))):
        yield


def train(released: Any) -> Arrays:
    """Ten steps of the released train_one_epoch; everything in the form the golden has it."""
    student = make_model(released)
    load_rule(student)
    momenta = released.augs.cosine_scheduler(MOMENTUM, 1, EPOCHS, STEPS_PER_EPOCH)
    ema = released.ema(student, decay=momenta)
    settings = types.SimpleNamespace(
        lr=OPTIM['base_lr'] * IMAGES**0.5 / 4,
        min_lr=OPTIM['min_lr'],
        warmup_epochs=OPTIM['warmup_epochs'],
        epochs=EPOCHS,
        accum_iter=1,
        mask_ratio=MASK_RATIO,
        w_mae=1.0,
        w_bc=ALPHA,
    )
    # The rule of timm 0.3's add_weight_decay, by its present name: arrays of one axis and biases are spared.
    groups = param_groups_weight_decay(student, OPTIM['weight_decay'])
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(OPTIM['b1'], OPTIM['b2']))
    scaler = released.misc.NativeScalerWithGradNormCount()
    scaler.state_dict = lambda: {'scale': 1.0}  # without CUDA torch's has no scale to log
    recorder, gradients, rates, found, running = Recorder(), {}, [], {}, {}
    recorder.watch(student, 'student', 'predictor')
    recorder.watch(ema.ema, 'teacher', 'head')
    keep_masks(student, found)

    def keep_gradient(name: str, parameter: torch.nn.Parameter) -> None:
        gradients.setdefault(name, parameter.grad.clone())

    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(functools.partial(keep_gradient, name))
    optimizer.register_step_pre_hook(lambda opt, *_: rates.append(opt.param_groups[0]['lr']))

    def after_the_first() -> None:
        if not running:
            running.update(ours_of(student.state_dict(), True))

    with given_noise():
        for epoch in range(EPOCHS):
            loader = Loader(epoch * STEPS_PER_EPOCH, after_the_first)
            released.engine.train_one_epoch(
                student, loader, optimizer, torch.device('cpu'), epoch, scaler, ema, recorder, settings
            )
    for name, model in (('student', student), ('teacher', ema.ema)):
        state = model.state_dict()
        found |= sample_all(clear_key_biases(ours_of(state)), f'final/{name}/')
        found |= sample_all(ours_of(state, True), f'final/{name}_statistics/')
    return {
        **found,
        'reconstruction': np.array(recorder.values['mae_loss']),
        'context': np.array(recorder.values['bc_loss']),
        'grad_norms': np.array(recorder.values['grad_norm']),
        'momenta': np.array(recorder.values['ema_decay']),
        'lrs': np.array(rates),
        **sample_all(recorder.seen, 'seen/'),
        **sample_all(clear_key_biases(ours_of(gradients)), 'gradients/'),
        **sample_all(running, 'running/'),
    }


def initial_statistics(model: torch.nn.Module) -> Arrays:
    """(mean, deviation, largest absolute value, count) of every parameter."""
    return {
        f'initial/{path}': np.array([a.mean(), a.std(), np.abs(a).max(), a.size])
        for path, a in ours_of(model.state_dict()).items()
    }


if __name__ == '__main__':
    torch.manual_seed(0)
    modules = import_released(sys.argv[1])
    stored = {**initial_statistics(make_model(modules)), **train(modules)}
    print({name: stored[name] for name in ('reconstruction', 'context', 'grad_norms', 'lrs', 'momenta')})
    path = HERE / 'lut.npz'
    np.savez_compressed(path, **stored)
    print(path, f'{path.stat().st_size / 1024:.0f} KiB')
