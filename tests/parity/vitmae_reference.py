"""transformers' ViTMAEForPreTraining as the reference: fp32, eager attention, random weights. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from layouts import rename_all
from mae_cases import ADAMW, MEAN, STD, STEPS, Case, settled
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mim_jax.interop.mae import VITMAE
from mim_jax.weights.layout import to_theirs

Arrays = dict[str, np.ndarray]


def build_reference(case: Case, norm_pix_loss: bool, seed: int) -> ViTMAEForPreTraining:
    """A model whose every parameter is random, tokens, biases and norms too, and exact in float16 (small goldens)."""
    config = ViTMAEConfig(
        image_size=case.image_size,
        patch_size=case.patch_size,
        hidden_size=case.width,
        num_hidden_layers=case.depth,
        num_attention_heads=case.heads,
        intermediate_size=4 * case.width,
        decoder_hidden_size=case.decoder_width,
        decoder_num_hidden_layers=case.decoder_depth,
        decoder_num_attention_heads=case.decoder_heads,
        decoder_intermediate_size=4 * case.decoder_width,
        norm_pix_loss=norm_pix_loss,
        layer_norm_eps=1e-6,  # the paper's code; transformers' default is 1e-12
    )
    model = ViTMAEForPreTraining._from_config(config, attn_implementation='eager', dtype=torch.float32)
    _set_positions(model, case)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = 0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5  # a token's rows have D values
            values = scale * torch.randn(parameter.shape, generator=generator)
            if 'norm' in name and name.endswith('.weight'):
                values += 1.0
            if name.endswith('cls_token'):  # nearly constant: its first LayerNorm depends on epsilon
                values = 0.1 + 0.002 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values.half().float())
    return model


def _set_positions(model: ViTMAEForPreTraining, case: Case) -> None:
    """Make transformers write its own sine-cosine tables.

    transformers 5.23 leaves them (and both tokens) at zero in a model made from a config: the flag its initialiser
    looks at is set before it runs. Pretrained files carry the tables, so only training from scratch is affected.
    """
    model.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    for parameter in model.parameters():
        parameter._is_hf_initialized = False
    model.vit.embeddings.initialize_weights()
    model.decoder.initialize_weights(case.patches)


def run_reference(model: ViTMAEForPreTraining, images: np.ndarray, noise: np.ndarray) -> dict[str, Any]:
    """Loss, prediction, mask, gradients, and parameters after AdamW steps on one batch and mask; names are torch's.

    The model is trained in place. `after` holds NaN where an element is not settled (see mae_cases).
    """
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    pixels = ((torch.from_numpy(images).float() / 255.0 - mean) / std).permute(0, 3, 1, 2).contiguous()
    noise = torch.from_numpy(noise)
    optimizer = make_adamw(model)
    found: dict[str, Any] = {'positions': [positions_of(model, name) for name in VITMAE.constants], 'after': {}}
    history: list[Arrays] = []
    for step in range(1, max(STEPS) + 1):
        output = model(pixels, noise=noise)
        optimizer.zero_grad()
        output.loss.backward()
        history.append({name: p.grad.numpy().copy() for name, p in trainable(model).items()})
        if step == 1:
            found |= {
                'prediction': output.logits.detach().numpy(),
                'shown': np.arange(output.logits.shape[1]),
                'loss': output.loss.detach().numpy(),
                'masked': output.mask.numpy().astype(bool),
                'restore': output.ids_restore.numpy().astype(np.int32),
                'gradients': history[0],
            }
        optimizer.step()
        if step in STEPS:
            kept = settled_by_name(history)
            found['after'][step] = {
                name: np.where(kept[name], p.detach().numpy(), np.float32(np.nan))
                for name, p in trainable(model).items()
            }
    return found


def settled_by_name(history: list[Arrays]) -> dict[str, np.ndarray]:
    """Where each parameter is settled, judged in our packing: a key's bias by the scale of its query's and value's."""
    packed = [rename_all(gradients, VITMAE) for gradients in history]
    return to_theirs({path: settled([g[path] for g in packed]) for path in packed[0]}, VITMAE)


def make_adamw(model: ViTMAEForPreTraining) -> torch.optim.AdamW:
    """MAE's groups (timm's add_weight_decay): one-dimensional parameters and biases are not decayed, tokens are."""
    parameters = trainable(model)
    free = {name for name, p in parameters.items() if p.ndim <= 1 or name.endswith('.bias')}
    groups = [
        {'params': [p for name, p in parameters.items() if name in free], 'weight_decay': 0.0},
        {'params': [p for name, p in parameters.items() if name not in free]},
    ]
    return torch.optim.AdamW(groups, **ADAMW)


def trainable(model: torch.nn.Module) -> Mapping[str, torch.nn.Parameter]:
    """Parameters with gradients, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def positions_of(model: torch.nn.Module, name: str) -> np.ndarray:
    """f32[1+N,D]: a fixed table with its CLS row."""
    return model.get_parameter(name).detach().numpy()[0].copy()


def weights_of(model: torch.nn.Module) -> Arrays:
    """A copy of the trainable parameters."""
    return {name: p.detach().numpy().copy() for name, p in trainable(model).items()}
