"""How transformers names the arrays of a ViT: on the hub, which every version reads and writes, and in version 5's models."""

from __future__ import annotations

from mim_jax.weights.layout import PATCHES, Entry, linear, norm


def hf_ends(prefix: str = '') -> tuple[Entry, ...]:
    """What is not in the blocks."""
    return (
        *linear('encoder/patch_embed', f'{prefix}embeddings.patch_embeddings.projection', form=PATCHES),
        Entry('encoder/cls_token', f'{prefix}embeddings.cls_token'),
        *norm('encoder/norm', f'{prefix}layernorm'),
    )


def hf_attention(ours: str, theirs: str, hub: bool, beit: bool = False) -> tuple[Entry, ...]:
    """The attention `theirs` of one layer; beit: keys have no bias."""
    inside, out = ('attention.query', 'attention.key', 'attention.value'), 'output.dense'
    if not hub:
        inside, out = ('q_proj', 'k_proj', 'v_proj'), 'o_proj'
    query, _, value = packed = tuple(f'{theirs}.{name}' for name in inside)
    apart = (Entry(f'{ours}/q_bias', f'{query}.bias'), Entry(f'{ours}/v_bias', f'{value}.bias'))
    return (
        *linear(f'{ours}/qkv', *packed, bias=not beit),
        *(apart if beit else ()),
        *linear(f'{ours}/out', f'{theirs}.{out}'),
    )


def hf_blocks(ours: str, theirs: str, hub: bool, beit: bool = False) -> tuple[Entry, ...]:
    """A stack of layers, `theirs`.0 ...; beit: keys have no bias, and both branches a LayerScale."""
    ours, theirs = f'{ours}/block_{{i}}', f'{theirs}.{{i}}'
    fc1, fc2 = ('intermediate.dense', 'output.dense') if hub else ('mlp.fc1', 'mlp.fc2')
    scaled = (Entry(f'{ours}/gamma_1', f'{theirs}.lambda_1'), Entry(f'{ours}/gamma_2', f'{theirs}.lambda_2'))
    return (
        *norm(f'{ours}/norm1', f'{theirs}.layernorm_before'),
        *hf_attention(f'{ours}/attn', f'{theirs}.attention', hub, beit),
        *(scaled if beit else ()),
        *norm(f'{ours}/norm2', f'{theirs}.layernorm_after'),
        *linear(f'{ours}/mlp/fc1', f'{theirs}.{fc1}'),
        *linear(f'{ours}/mlp/fc2', f'{theirs}.{fc2}'),
    )
