"""Parameter names and layouts of PyTorch ViTs <-> our role paths, in numpy: transformers' ViTMAE and timm's ViT.

Everything here only renames, transposes, concatenates and splits, so gradients and optimizer moments go the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """One library's names. modules, tokens: our path -> its name; stacks: our role -> the prefix of its blocks.

    block: a module of our block -> its name(s) there; several are concatenated along the output axis. fixed: what has
    no counterpart, because our positions are constants of the program.
    """

    modules: Mapping[str, str]
    tokens: Mapping[str, str]
    stacks: Mapping[str, str]
    block: Mapping[str, tuple[str, ...]]
    fixed: tuple[str, ...]

    def pairs(self, depths: Mapping[str, int]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(our module, its modules) of a network with `depths` blocks per stack."""
        for ours, theirs in self.modules.items():
            yield ours, (theirs,)
        for role, prefix in self.stacks.items():
            for i in range(depths[role]):
                for ours, theirs in self.block.items():
                    yield f'{role}/block_{i:02d}/{ours}', tuple(f'{prefix}.{i}.{name}' for name in theirs)


VITMAE = Layout(  # transformers 5, ViTMAEForPreTraining.state_dict()
    modules={
        'encoder/patch_embed': 'vit.embeddings.patch_embeddings.projection',
        'encoder/norm': 'vit.layernorm',
        'decoder/pixels/embed': 'decoder.decoder_embed',
        'decoder/pixels/norm': 'decoder.decoder_norm',
        'decoder/pixels/head': 'decoder.decoder_pred',
    },
    tokens={'encoder/cls_token': 'vit.embeddings.cls_token', 'decoder/pixels/mask_token': 'decoder.mask_token'},
    stacks={'encoder': 'vit.layers', 'decoder/pixels': 'decoder.decoder_layers'},
    block={
        'norm1': ('layernorm_before',),
        'attn/qkv': ('attention.q_proj', 'attention.k_proj', 'attention.v_proj'),
        'attn/out': ('attention.o_proj',),
        'norm2': ('layernorm_after',),
        'mlp/fc1': ('mlp.fc1',),
        'mlp/fc2': ('mlp.fc2',),
    },
    fixed=('vit.embeddings.position_embeddings', 'decoder.decoder_pos_embed'),
)

TIMM = Layout(  # timm 1, VisionTransformer(num_classes=0, class_token=True).state_dict()
    modules={'encoder/patch_embed': 'patch_embed.proj', 'encoder/norm': 'norm'},
    tokens={'encoder/cls_token': 'cls_token'},
    stacks={'encoder': 'blocks'},
    block={
        'norm1': ('norm1',),
        'attn/qkv': ('attn.qkv',),
        'attn/out': ('attn.proj',),
        'norm2': ('norm2',),
        'mlp/fc1': ('mlp.fc1',),
        'mlp/fc2': ('mlp.fc2',),
    },
    fixed=('pos_embed',),
)


def import_weights(state: Mapping[str, np.ndarray], layout: Layout) -> Arrays:
    """A PyTorch state dict (or gradients under the same names) -> {our path: array}.

    Raises KeyError for a missing name and ValueError for names nobody asked for (fixed ones aside).
    """
    depths = {
        role: len({name[len(prefix) + 1 :].split('.')[0] for name in state if name.startswith(f'{prefix}.')})
        for role, prefix in layout.stacks.items()
    }
    arrays = {ours: np.asarray(state[theirs]) for ours, theirs in layout.tokens.items()}
    used = {*layout.tokens.values(), *layout.fixed}
    for ours, theirs in layout.pairs(depths):
        weights = [_import_weight(np.asarray(state[f'{name}.weight'])) for name in theirs]
        leaf = 'scale' if weights[0].ndim == 1 else 'kernel'
        arrays[f'{ours}/{leaf}'] = np.concatenate(weights, axis=-1)
        arrays[f'{ours}/bias'] = np.concatenate([np.asarray(state[f'{name}.bias']) for name in theirs])
        used.update(f'{name}.{part}' for name in theirs for part in ('weight', 'bias'))
    if unknown := sorted(state.keys() - used):
        raise ValueError(f'no place for {", ".join(unknown)}')
    return arrays


def export_weights(arrays: Mapping[str, np.ndarray], layout: Layout) -> Arrays:
    """The inverse of `import_weights`; fixed positions are not among the results."""
    depths = {
        role: len({path for path in arrays if path.startswith(f'{role}/block_') and path.endswith('/norm1/scale')})
        for role in layout.stacks
    }
    state = {theirs: np.asarray(arrays[ours]) for ours, theirs in layout.tokens.items()}
    for ours, theirs in layout.pairs(depths):
        leaf = 'scale' if f'{ours}/scale' in arrays else 'kernel'
        weights = np.split(np.asarray(arrays[f'{ours}/{leaf}']), len(theirs), axis=-1)
        biases = np.split(np.asarray(arrays[f'{ours}/bias']), len(theirs))
        for name, weight, bias in zip(theirs, weights, biases, strict=True):
            state[f'{name}.weight'] = _export_weight(weight, convolution=ours.endswith('/patch_embed'))
            state[f'{name}.bias'] = bias
    return state


def _import_weight(weight: np.ndarray) -> np.ndarray:
    """Norm (D,) as it is; linear (out, in) -> (in, out); convolution (D, 3, p, p) -> (p*p*3, D) by (dy, dx, channel)."""
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
    return weight.T


def _export_weight(weight: np.ndarray, convolution: bool) -> np.ndarray:
    if convolution:
        side = math.isqrt(weight.shape[0] // 3)
        return weight.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
    return weight.T
