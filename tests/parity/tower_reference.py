"""transformers' side of the towers: models of a case, with weights at random or from a folder, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tower_cases import Case

from mim_jax.weights.tower_layouts import FAMILIES

transformers.utils.logging.disable_progress_bar()


def build(case: Case, name: str = '', seed: int = 0) -> Any:
    """A model of transformers (default: the class that a family is opened with), every parameter drawn at random."""
    name = name or FAMILIES[case.kind].opens
    kind, config = getattr(transformers, name), case.config()
    torch.manual_seed(seed)
    if name == 'CLIPModel':
        text = {'hidden_size': 64, 'num_hidden_layers': 1, 'num_attention_heads': 1, 'intermediate_size': 64}
        settings = {'vision_config': config, 'text_config': text, 'projection_dim': case.projected}
        model = kind(transformers.CLIPConfig(**settings, attn_implementation='eager'))
    else:
        model = kind(kind.config_class(**config, attn_implementation='eager'))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim > 1 and parameter.shape[0] > 1 and 'position' not in path:
                parameter.copy_(torch.randn(parameter.shape) * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def open_folder(case: Case, folder: Path) -> Any:
    """The model of a folder; every array of the file must be taken, and none be missing but the pooler, which is unused."""
    kind = getattr(transformers, FAMILIES[case.kind].opens)
    options = {'add_pooling_layer': False} if case.kind == 'dino' else {}
    model, told = kind.from_pretrained(folder, output_loading_info=True, attn_implementation='eager', **options)
    wrong = {key: names for key, names in told.items() if set(names) - {'embeddings.mask_token'}}
    assert not wrong, wrong
    return model.eval()


def run(model: Any, kind: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """What tower_cases.run_tower returns, of normalised images f32[B,S,S,3]; positions are interpolated where they must."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    base = next((getattr(model, name) for name in ('vision_model', 'vit', 'dinov2') if hasattr(model, name)), model)
    found, kept = {}, []
    final = base.post_layernorm if kind == 'clip' else base.layernorm
    interpolate = {} if kind == 'dinov2' else {'interpolate_pos_encoding': True}  # Dinov2Model always does
    if kind != 'clip':
        hook = final.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        output = base(pixels, output_attentions=True, **interpolate)
        if kind == 'clip':  # its last_hidden_state is before the norm, which it applies to CLS alone
            finished = final(output.last_hidden_state)
            kept.append(output.last_hidden_state)
            assert torch.equal(finished[:, 0], output.pooler_output)
            if hasattr(model, 'visual_projection'):
                found['proj'] = model.visual_projection(finished)[:, 1:].numpy()
        else:
            finished = output.last_hidden_state
            hook.remove()
    attention = output.attentions[-1].numpy()
    found |= {'pre_ln': kept[0][:, 1:].numpy(), 'ln_post': finished[:, 1:].numpy(), 'cls': finished[:, 0].numpy()}
    return found | {'attention': attention}
