"""Writes simmim.npz beside this file: python make_simmim_golden.py CHECKOUT, a checkout of microsoft/SimMIM. Needs torch.

Keys: <case>/masks u8[B,rows,columns] of its generator; <case>/seen/<place> samples; <case>/loss; <case>/gradients/<our
path> samples; grid_14/<clip>/{losses,norms,moments/<path>,moved/<path>}: steps of AdamW; drop_path/<attention kept><MLP
kept>: what a block with drop-path makes of an image; initial/paths, initial/values f32[P,3]: mean, deviation and largest
value of fresh weights; masks: counts of masked patches; rates f64[K,2]: (update, learning rate) of the released schedule.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / 'parity'), str(HERE.parent)]

import simmim_cases as cases  # noqa: E402
from conftest import repair_torchvision  # noqa: E402
from parity_rules import sample_all  # noqa: E402

from mim_jax.config.tree import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from mim_jax.interop.formats import find_paths  # noqa: E402
from mim_jax.interop.simmim import SIMMIM  # noqa: E402
from mim_jax.weights.layout import to_ours, to_theirs  # noqa: E402

Arrays = dict[str, np.ndarray]
UPDATES = (0, 1, 2, 47, 50, 98, 99, 100, 101, 3500, 6998, 6999, 7000, 7001, 7999)
UPDATES_PER_EPOCH = 10


def build(case: cases.Case, drop_path: float = 0.0) -> torch.nn.Module:
    """The released model as configs/vit_base__800ep has it, with its own fresh weights."""
    from models.simmim import SimMIM, VisionTransformerForSimMIM

    encoder = VisionTransformerForSimMIM(
        img_size=case.image_size,
        patch_size=case.patch_size,
        num_classes=0,
        embed_dim=case.width,
        depth=case.depth,
        num_heads=case.heads,
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=drop_path,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        init_values=0.1,
        use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
        use_mean_pooling=False,
    )
    return SimMIM(encoder, case.patch_size)


def load(model: torch.nn.Module, case: cases.Case) -> torch.nn.Module:
    """The model with weights by rule; every key of its state is either a weight or one of the layout's constants."""
    state = to_theirs(cases.make_weights(case), SIMMIM)
    state |= {name: value(cases.make_recipe(case)) for name, value in SIMMIM.constants.items()}
    for name in SIMMIM.constants:
        np.testing.assert_array_equal(model.get_buffer(name).numpy(), state[name])
    model.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()}, strict=True)
    return model


def normalised(case: cases.Case) -> torch.Tensor:
    """f32[B,3,S,S]."""
    pixels = torch.from_numpy(cases.make_images(case)).float() / 255.0
    return ((pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(0, 3, 1, 2)


def draw_masks(case: cases.Case) -> np.ndarray:
    """u8[B,rows,columns] from the released generator."""
    from data.data_simmim import MaskGenerator

    np.random.seed(0)  # noqa: NPY002  the generator draws from the global state
    generate = MaskGenerator(case.image_size, 2 * case.patch_size, case.patch_size, 0.6)
    return np.stack([generate() for _ in range(case.batch)]).astype(np.uint8)


def gradients_of(model: torch.nn.Module) -> Arrays:
    """{our path: gradient}."""
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return map_back(theirs)


def map_back(theirs: Arrays) -> Arrays:
    """{our path: array} of arrays under their names, all of them."""
    ours = to_ours(theirs, SIMMIM, find_paths(theirs, SIMMIM))
    assert to_theirs(ours, SIMMIM).keys() == theirs.keys()
    return ours


def run(case: cases.Case, masks: np.ndarray) -> Arrays:
    """Samples of every block's patch tokens, latent and prediction, the loss, and samples of gradients."""
    model, seen = load(build(case), case).eval(), {}

    def keep(place: str, change) -> object:
        return lambda module, inputs, output: seen.__setitem__(place, change(output).detach().numpy())

    for i, block in enumerate(model.encoder.blocks):
        block.register_forward_hook(keep(f'encoder/block_{i:02d}', lambda x: x[:, 1:]))
    model.encoder.register_forward_hook(keep('latent', lambda x: x.flatten(2).transpose(1, 2)))
    p, grid = case.patch_size, case.grid
    model.decoder.register_forward_hook(
        keep(
            'prediction',
            lambda x: x.reshape(-1, 3, grid, p, grid, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2),
        )
    )
    loss = model(normalised(case), torch.from_numpy(masks).long())
    loss.backward()
    return sample_all(seen, 'seen/') | {'loss': loss.detach().numpy()} | sample_all(gradients_of(model), 'gradients/')


def optimise(case: cases.Case, masks: np.ndarray, clip: float) -> Arrays:
    """Steps with the released optimizer groups and clipping."""
    from optimizer import build_pretrain_optimizer

    model = load(build(case), case).train()
    settings = SimpleNamespace(NAME='adamw', EPS=cases.ADAMW['eps'], BETAS=cases.ADAMW['betas'])
    train = SimpleNamespace(OPTIMIZER=settings, BASE_LR=cases.ADAMW['lr'], WEIGHT_DECAY=cases.ADAMW['weight_decay'])
    optimizer = build_pretrain_optimizer(SimpleNamespace(TRAIN=train), model, mock.MagicMock())
    before, losses, norms, stored = cases.make_weights(case), [], [], {}
    for step in range(cases.STEPS):
        optimizer.zero_grad()
        loss = model(normalised(case), torch.from_numpy(masks).long())
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        losses.append(loss.item())
        optimizer.step()
        if step == 0:
            moments = {name: optimizer.state[p]['exp_avg'].numpy() for name, p in model.named_parameters()}
            after = map_back({name: p.detach().numpy() for name, p in model.named_parameters()})
            moved = {path: value - before[path] for path, value in after.items()}
            stored = sample_all(map_back(moments), 'moments/') | sample_all(moved, 'moved/')
    return stored | {'losses': np.array(losses), 'norms': np.array(norms)}


def drop(case: cases.Case, masks: np.ndarray, copies: int = 64) -> Arrays:
    """The four outcomes of the last block, drop-path 1/2, on copies of one image; names say what was kept."""
    model, dropped = load(build(case, drop_path=0.5), case).train(), []
    torch.manual_seed(0)
    last = model.encoder.blocks[-1]
    outputs: list[torch.Tensor] = []
    last.register_forward_hook(lambda module, inputs, output: outputs.append(output[:, 1:].detach()))
    last.drop_path.register_forward_hook(
        lambda module, inputs, output: dropped.append(output.flatten(1).abs().sum(1) == 0)
    )
    model(normalised(case)[:1].expand(copies, -1, -1, -1), torch.from_numpy(masks[:1]).long().expand(copies, -1, -1))
    kept = torch.stack(dropped, 1).logical_not().long()
    outcomes = {f'{a}{b}': outputs[0][(kept == torch.tensor([a, b])).all(1)] for a in (0, 1) for b in (0, 1)}
    assert all(len(rows) and (rows - rows[0]).abs().max() < 1e-5 for rows in outcomes.values())
    return {f'drop_path/{name}': rows[0].numpy().astype(np.float32)[::8] for name, rows in outcomes.items()}


def initial() -> Arrays:
    """Statistics of fresh weights, by our paths."""
    torch.manual_seed(0)
    arrays = map_back({name: p.detach().numpy() for name, p in build(cases.INITIAL).named_parameters()})
    values = [[array.mean(), array.std(), np.abs(array).max()] for array in arrays.values()]
    return {'initial/paths': np.array(list(arrays)), 'initial/values': np.array(values, np.float32)}


def schedule() -> Arrays:
    """The learning rate after the released scheduler was told of an update: ViT-B's, 2048 images, 10 updates an epoch."""
    from lr_scheduler import build_scheduler

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4 * 2048 / 512)
    decay = SimpleNamespace(NAME='multistep', GAMMA=0.1, MULTISTEPS=[700], DECAY_EPOCHS=30, DECAY_RATE=0.1)
    train = SimpleNamespace(EPOCHS=800, WARMUP_EPOCHS=10, WARMUP_LR=5e-7 * 2048 / 512, MIN_LR=0.0, LR_SCHEDULER=decay)
    scheduler, rates = build_scheduler(SimpleNamespace(TRAIN=train), optimizer, UPDATES_PER_EPOCH), []
    for update in UPDATES:
        scheduler.step_update(update)
        rates.append(optimizer.param_groups[0]['lr'])
    return {'rates': np.array([UPDATES, rates]).T}


def count_masks() -> Arrays:
    """Masked patches at the sizes of cases.MASKS."""
    from data.data_simmim import MaskGenerator

    return {'masks': np.array([MaskGenerator(*sizes)().sum() for sizes in cases.MASKS])}


def make_golden() -> Arrays:
    """All arrays of the file."""
    stored = initial() | schedule() | count_masks()
    for name, case in cases.CASES.items():
        masks = draw_masks(case)
        found = {'masks': masks, **run(case, masks)}
        if name == 'grid_14':
            for clip, value in cases.CLIPS.items():
                found |= {f'{clip}/{key}': array for key, array in optimise(case, masks, value).items()}
        else:
            stored |= drop(case, masks)
        stored |= {f'{name}/{key}': array for key, array in found.items()}
    return stored


def open_checkout(checkout: str) -> None:
    """Make its modules importable. `_pil_interp`, which its fine-tuning asks of an older timm, is not used here."""
    repair_torchvision()
    import timm.data.transforms

    timm.data.transforms._pil_interp = None
    sys.path.insert(0, checkout)


if __name__ == '__main__':
    open_checkout(sys.argv[1])
    path = HERE / 'simmim.npz'
    np.savez_compressed(path, **make_golden())
    print(path, f'{path.stat().st_size / 1e3:.0f} kB')
