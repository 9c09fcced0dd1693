"""PyTorch's side of the protocols: the loops of MAE's main_finetune.py and main_linprobe.py around given parts.

The parts, models, optimizers, parameter groups, are handed in: those of the released code (golden/make_protocols_golden.py),
or those of timm and torch themselves (test_protocols_live.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import numpy as np
import protocol_cases as cases
import timm.data.mixup
import torch
from mae_cases import MEAN, STD
from timm.loss import SoftTargetCrossEntropy

from mim_jax.weights.layout import Layout, to_theirs

Arrays = dict[str, np.ndarray]


def normalise(images: np.ndarray) -> torch.Tensor:
    """u8[B,H,W,3] -> f32[B,3,H,W], as ToTensor and Normalize do."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def load(model: torch.nn.Module, weights: Arrays, layout: Layout, recipe: Any) -> torch.nn.Module:
    """Our arrays and the layout's constants into the model, strictly; statistics of a BatchNorm stay at 0 and 1."""
    state = to_theirs(weights, layout) | {name: value(recipe) for name, value in layout.constants.items()}
    loaded = model.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in state.items()}, strict=False)
    assert not loaded.unexpected_keys
    assert {name.rpartition('.')[2] for name in loaded.missing_keys} <= {
        'running_mean',
        'running_var',
        'num_batches_tracked',
    }
    return model


def cosine(step: int, peak: float, floor: float) -> float:
    """The rate at a step of the cases' schedule, by MAE's formula."""
    epoch = step * cases.EPOCHS / cases.STEPS
    if epoch < cases.WARMUP:
        return peak * epoch / cases.WARMUP
    progress = (epoch - cases.WARMUP) / (cases.EPOCHS - cases.WARMUP)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group['lr'] = rate * group.get('lr_scale', 1.0)


def mix(images: torch.Tensor, labels: torch.Tensor, mixes: Arrays, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """timm's Mixup in mode 'batch', told what to draw."""
    mixup = timm.data.mixup.Mixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=cases.FINETUNE['label_smoothing'], num_classes=cases.CLASSES
    )
    weight, cut = float(mixes['weight'][step]), bool(mixes['cut'][step])
    box = tuple(int(edge) for edge in mixes['box'][step])
    with (
        mock.patch.object(mixup, '_params_per_batch', return_value=(weight, cut)),
        mock.patch.object(timm.data.mixup, 'cutmix_bbox_and_lam', return_value=(box, weight)),
    ):
        return mixup(images.clone(), labels)


def train_finetune(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[torch.optim.Optimizer, int], None],
    batches: Iterable,
    mixes: Arrays | None,
    position_of_cls: bool = False,
) -> tuple[list[float], dict[str, np.ndarray]]:
    """(losses, {name: bool, where every gradient so far was more than rounding}). position_of_cls: whether it is trained."""
    model.train()
    if not position_of_cls:
        only = torch.ones_like(model.pos_embed)
        only[:, 0] = 0
        model.pos_embed.register_hook(lambda gradient: gradient * only)
    losses, settled = [], {}
    for step, batch in enumerate(batches):
        schedule(optimizer, step)
        images, labels = normalise(batch['main']), torch.from_numpy(batch['label']).long()
        if mixes is None:
            loss = torch.nn.CrossEntropyLoss(label_smoothing=cases.FINETUNE['label_smoothing'])(model(images), labels)
        else:
            images, targets = mix(images, labels, mixes, step)
            loss = SoftTargetCrossEntropy()(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            size = parameter.grad.abs().numpy()
            settled[name] = settled.get(name, True) & (size > cases.SETTLED * size.max())
        optimizer.step()
        losses.append(loss.item())
    return losses, settled


def train_probe(
    model: torch.nn.Module,
    optimizer: Any,
    schedule: Callable[[Any, int], None],
    batches: Iterable,
    scale: Callable[[torch.nn.Module], None] = lambda head: None,
) -> list[float]:
    """Losses. scale: called between the backward pass and the step."""
    model.train()
    losses = []
    for step, batch in enumerate(batches):
        schedule(optimizer, step)
        loss = torch.nn.CrossEntropyLoss()(model(normalise(batch['main'])), torch.from_numpy(batch['label']).long())
        optimizer.zero_grad()
        loss.backward()
        scale(model.head)
        optimizer.step()
        losses.append(loss.item())
    return losses


def freeze(model: torch.nn.Module) -> torch.nn.Module:
    """MAE's head for the probe, BatchNorm before the linear layer; nothing else is trained."""
    for parameter in model.parameters():
        parameter.requires_grad = False
    norm = torch.nn.BatchNorm1d(model.head.in_features, affine=False, eps=1e-6)
    model.head = torch.nn.Sequential(norm, torch.nn.Linear(model.head.in_features, model.head.out_features))
    return model


def parameters_of(model: torch.nn.Module) -> Arrays:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def logits_of(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """f32[B,K] in evaluation mode."""
    with torch.no_grad():
        return model.eval()(normalise(images)).numpy()
