"""Writes conmim.npz beside this file with the released ConMIM: its model, engine, schedules and optimizer, on a CPU.

Usage: make_conmim_golden.py CHECKOUT, a working copy of TencentARC/ConMIM. Needs torch and timm.
Per setting 'one' and 'two' (GPUs): losses, grad_norms, lrs, momenta of ten steps; of the first step student/<level> and
teacher/<level> (block_00, ..., projection), logits of the masked patches, gradients/<path> before clipping, and running/<path>,
the student's BatchNorm statistics after it; after the tenth final/student/<path> and final/teacher/<path>. Once: masks, and
initial/<path>: (mean, deviation, largest, count) of the released initial weights. Paths are ours; arrays are kept as
parity_rules.sample keeps them.
"""

from __future__ import annotations

import functools
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / 'parity'), str(HERE.parent)]

import conftest  # noqa: E402, F401  the one of parity/: repairs torchvision before timm asks for it
import timm.optim  # noqa: E402, F401
import torch  # noqa: E402
from conmim_cases import (  # noqa: E402
    DEPTH,
    EPOCHS,
    GROUPS,
    HEADS,
    IMAGES,
    MASK_RATIO,
    MEAN,
    MOMENTUM,
    OPTIM,
    PATCH,
    PROJECTOR,
    SIDE,
    STD,
    STEPS,
    STEPS_PER_EPOCH,
    TEMPERATURE,
    WIDTH,
    batch_of,
    darken,
)
from parity_rules import draw_weights, sample, sample_all  # noqa: E402

from mim_jax.interop.conmim import CONMIM  # noqa: E402
from mim_jax.weights.layout import to_ours, to_theirs  # noqa: E402

Arrays = dict[str, np.ndarray]


def import_released(checkout: str) -> types.SimpleNamespace:
    """The released modules; what they import and nobody has any more, and nobody calls here, is stood in for."""
    sys.path.insert(0, checkout)
    gone = {'torch._six': 'inf', **{f'timm.optim.{n.lower()}': n for n in ('NovoGrad', 'Nadam', 'RAdam')}}
    for name, attribute in gone.items():
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], attribute, float('inf'))
    import engine_for_pretraining as engine
    import masking_generator as masking
    import modeling_pretrain as modeling
    import optim_factory
    import utils

    torch.cuda.synchronize = lambda: None
    return types.SimpleNamespace(engine=engine, masking=masking, modeling=modeling, optim=optim_factory, utils=utils)


def make_model(released: Any) -> torch.nn.Module:
    """The released model with the case's sizes and its own initial weights."""
    return released.modeling.VisionTransformerForMaskedImageModeling(
        img_size=SIDE,
        patch_size=PATCH,
        vocab_size=8,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_dim=PROJECTOR['projector_width'],
        dim=PROJECTOR['projector_output'],
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        init_values=0.1,
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
        use_mlp_projectors=True,
    )


def our_paths(statistics: bool) -> tuple[str, ...]:
    """All paths of the layout: BatchNorm's running statistics, or the parameters."""
    paths = [
        entry.ours.replace('{i}', f'{i:02d}')
        for entry in CONMIM.entries
        for i in range(DEPTH if '{i}' in entry.ours else 1)
    ]
    return tuple(path for path in paths if path.endswith(('/mean', '/var')) == statistics)


def ours_of(tensors: Any, statistics: bool = False) -> Arrays:
    """{our path: array} of tensors by their names."""
    return to_ours({name: value.detach().numpy().copy() for name, value in tensors}, CONMIM, our_paths(statistics))


def load_rule(model: torch.nn.Module) -> None:
    """Weights by rule. What the layout does not set is exactly its constants, what it ignores, and running statistics."""
    state = model.state_dict()
    weights = draw_weights({path: array.shape for path, array in ours_of(state.items()).items()})
    theirs = {name: torch.from_numpy(value.copy()) for name, value in to_theirs(weights, CONMIM).items()}
    model.load_state_dict(state | theirs)
    ignored = {name for name in state for pattern in CONMIM.ignored if re.fullmatch(pattern, name)}
    running = {name for name in state if name.endswith(('running_mean', 'running_var'))}
    assert state.keys() - theirs.keys() == ignored | running | CONMIM.constants.keys()
    grid = types.SimpleNamespace(grid=(SIDE // PATCH,) * 2)
    for name, compute in CONMIM.constants.items():
        np.testing.assert_array_equal(compute(grid), state[name].numpy())


class Devices(torch.nn.Module):
    """Each run of `images` images goes through the model by itself, as on a GPU of its own; remembers the first call.

    Each starts from the same running statistics; the model is left with the average of what they make of them.
    """

    def __init__(self, model: torch.nn.Module, images: int):
        super().__init__()
        self.module, self.images = model, images
        self.seen: dict[str, list[np.ndarray]] = {}
        self.recording = True
        for i, block in enumerate(model.blocks):
            block.register_forward_hook(functools.partial(self._remember, f'block_{i:02d}'))

    def _remember(self, name: str, module: Any, inputs: Any, output: torch.Tensor) -> None:
        if self.recording:
            self.seen.setdefault(name, []).append(output.detach().numpy().copy())

    def forward(self, images: torch.Tensor, bool_masked_pos: torch.Tensor, **options: Any) -> torch.Tensor:
        buffers = {name: value for name, value in self.module.named_buffers() if 'running' in name}
        before, after, parts = {name: value.clone() for name, value in buffers.items()}, [], []
        for rows in torch.arange(len(images)).split(self.images):
            for name, value in buffers.items():
                value.data.copy_(before[name])  # .data: the first part's graph remembers the buffer
            parts.append(self.module(images[rows], bool_masked_pos[rows], **options))
            self._remember('projection', None, None, parts[-1])
            after.append({name: value.clone() for name, value in buffers.items()})
        for name, value in buffers.items():
            value.data.copy_(torch.stack([moved[name] for moved in after]).mean(dim=0))
        self.recording = False
        return torch.cat(parts)

    def first(self) -> Arrays:
        return {name: np.concatenate(parts) for name, parts in self.seen.items()}


class Recorder:
    """The engine's log writer: keeps every value it is given."""

    def __init__(self):
        self.values: dict[str, list[float]] = {}

    def update(self, head: str, **values: Any) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append(float(value))

    def set_step(self) -> None:
        pass


def record_logits(store: list[np.ndarray]) -> Callable:
    """torch's CrossEntropyLoss, which also keeps its first input."""

    class Recording(torch.nn.modules.loss.CrossEntropyLoss):
        def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            if not store:
                store.append(logits.detach().numpy().copy())
            return super().forward(logits, labels)

    return Recording


def train(released: Any, images_per_device: int, masks: np.ndarray) -> Arrays:
    """Ten steps of the released train_one_epoch; everything in the form the golden has it."""
    student, teacher = make_model(released), make_model(released)
    load_rule(student)
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    models = {'student': Devices(student, images_per_device), 'teacher': Devices(teacher, images_per_device)}
    gradients: dict[str, torch.Tensor] = {}

    def keep_gradient(name: str, parameter: torch.nn.Parameter) -> None:
        gradients.setdefault(name, parameter.grad.clone())

    for name, parameter in student.named_parameters():
        parameter.register_post_accumulate_grad_hook(functools.partial(keep_gradient, name))

    settings = types.SimpleNamespace(
        opt='adamw',
        lr=OPTIM['base_lr'],
        opt_eps=1e-8,
        opt_betas=(OPTIM['b1'], OPTIM['b2']),
        weight_decay=OPTIM['weight_decay'],
    )
    optimizer = released.optim.create_optimizer(settings, student)
    schedule = released.utils.cosine_scheduler
    rates = schedule(
        OPTIM['base_lr'], OPTIM['min_lr'], EPOCHS, STEPS_PER_EPOCH, warmup_epochs=int(OPTIM['warmup_epochs'])
    )
    momenta = schedule(MOMENTUM, 1, EPOCHS, STEPS_PER_EPOCH)
    scaler = released.utils.NativeScalerWithGradNormCount()
    scaler.state_dict = lambda: {'scale': 1.0}  # without CUDA torch's has no scale to log
    writer, logits, running = Recorder(), [], {}
    torch.nn.CrossEntropyLoss = record_logits(logits)
    for epoch in range(EPOCHS):
        start = epoch * STEPS_PER_EPOCH
        released.engine.train_one_epoch(
            models['student'],
            Loader(masks, start, lambda: running or running.update(ours_of(student.state_dict().items(), True))),
            optimizer,
            torch.device('cpu'),
            epoch,
            scaler,
            momenta,
            models['teacher'],
            teacher,
            TEMPERATURE,
            OPTIM['clip_norm'],
            log_writer=writer,
            start_steps=start,
            lr_schedule_values=rates,
        )
    found = {
        'losses': np.array(writer.values['loss']),
        'grad_norms': np.array(writer.values['grad_norm']),
        'lrs': np.array(writer.values['lr']),
        'momenta': momenta,
        'logits': sample('logits', logits[0]),
        **sample_all(ours_of(gradients.items()), 'gradients/'),
        **sample_all(running, 'running/'),
    }
    for name, model in models.items():
        found |= sample_all(model.first(), f'{name}/')
        found |= sample_all(ours_of(model.module.state_dict().items()), f'final/{name}/')
    return found


class Loader:
    """An epoch's batches: (images, the teacher's images, masks), label. `between` is called before all but the run's first."""

    def __init__(self, masks: np.ndarray, start: int, between: Callable[[], Any]):
        self.masks, self.start, self.between = masks, start, between

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __iter__(self) -> Any:
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        for step in range(self.start, self.start + STEPS_PER_EPOCH):
            if step:
                self.between()
            pixels = torch.from_numpy(batch_of(step).copy()).float() / 255.0
            views = [((x - mean) / std).permute(0, 3, 1, 2).contiguous() for x in (pixels, darken(pixels))]
            yield (*views, torch.from_numpy(self.masks[step])), 0


def initial_statistics(model: torch.nn.Module) -> Arrays:
    """(mean, deviation, largest absolute value, count) of every parameter."""
    return {
        f'initial/{path}': np.array([a.mean(), a.std(), np.abs(a).max(), a.size])
        for path, a in ours_of(model.state_dict().items()).items()
    }


def make_golden(released: Any) -> Arrays:
    """All arrays of the file."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  the released mask generator draws from it
    generator = released.masking.MaskGenerator(SIDE, 2 * PATCH, PATCH, MASK_RATIO)
    masks = np.stack([[generator() for _ in range(IMAGES)] for _ in range(STEPS)]).astype(np.uint8)
    stored = {'masks': masks, **initial_statistics(make_model(released))}
    for setting, images in GROUPS.items():
        found = train(released, images, masks)
        stored |= {f'{setting}/{name}': array for name, array in found.items()}
        print(setting, found['losses'], found['grad_norms'])
    return stored


if __name__ == '__main__':
    path = HERE / 'conmim.npz'
    np.savez_compressed(path, **make_golden(import_released(sys.argv[1])))
    print(path, f'{path.stat().st_size / 1024:.0f} KiB')
