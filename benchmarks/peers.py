"""MAE's train step as people run it in PyTorch today, for benchmarks/step.py: transformers' model, and one of timm's blocks.

Both train with AdamW (fused, the fastest form) on given images and mask noise, eager or through torch.compile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import timm.models.vision_transformer as timm_vit
import torch
import transformers
from torch import nn

Arrays = Mapping[str, np.ndarray]


class TimmMae(nn.Module):
    """MAE of timm's blocks and patch embedding, with its fused attention, parameters named as in MAE's files."""

    def __init__(self, side: int, patch: int, width: int, depth: int, heads: int, decoder: tuple[int, int, int]):
        super().__init__()
        narrow, levels, decoder_heads = decoder
        norm = functools.partial(nn.LayerNorm, eps=1e-6)

        def stack(number: int, size: int, parts: int) -> nn.ModuleList:
            blocks = [timm_vit.Block(size, parts, 4.0, qkv_bias=True, norm_layer=norm) for _ in range(number)]
            return nn.ModuleList(blocks)

        patches = (side // patch) ** 2
        self.patch = patch
        self.patch_embed = timm_vit.PatchEmbed(side, patch, 3, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width), requires_grad=False)
        self.blocks, self.norm = stack(depth, width, heads), norm(width)
        self.decoder_embed = nn.Linear(width, narrow)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, narrow))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, patches + 1, narrow), requires_grad=False)
        self.decoder_blocks, self.decoder_norm = stack(levels, narrow, decoder_heads), norm(narrow)
        self.decoder_pred = nn.Linear(narrow, patch * patch * 3)

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Images f[B,3,S,S], noise f[B,N] -> the loss: normalised pixels of the hidden three quarters."""
        b, patches = noise.shape
        visible = patches // 4
        order = torch.argsort(noise, dim=1)
        restore = torch.argsort(order, dim=1)

        def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return torch.gather(x, 1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))

        x = self.patch_embed(pixels) + self.pos_embed[:, 1:]
        x = gather(x, order[:, :visible])
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        hidden = self.mask_token.expand(b, patches - visible, -1)
        x = torch.cat([x[:, :1], gather(torch.cat([x[:, 1:], hidden], dim=1), restore)], dim=1)
        x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        predicted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        size, rows = self.patch, pixels.shape[-1] // self.patch
        target = pixels.reshape(b, 3, rows, size, rows, size).permute(0, 2, 4, 3, 5, 1).reshape(b, patches, -1)
        spread, mean = torch.var_mean(target, dim=-1, keepdim=True)
        error = ((predicted - (target - mean) / (spread + 1e-6) ** 0.5) ** 2).mean(-1)
        masked = (restore >= visible).to(error.dtype)
        return (error * masked).sum() / masked.sum()


def make_transformers(config: Mapping[str, Any], weights: Arrays) -> Callable[..., torch.Tensor]:
    """transformers.ViTMAEForPreTraining with its fused attention, of the configuration and weights that our export writes."""
    chosen = {key: value for key, value in config.items() if key not in ('model_type', 'architectures')}
    settings = transformers.ViTMAEConfig(**chosen)
    model = transformers.ViTMAEForPreTraining._from_config(settings, attn_implementation='sdpa', dtype=torch.float32)
    return Loss(fill(model, weights))


class Loss(nn.Module):
    """transformers' model, called as TimmMae is."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.model(pixels, noise=noise).loss


def make_timm(config: Mapping[str, Any], weights: Arrays) -> nn.Module:
    """TimmMae of the same sizes, with the weights that our export writes under MAE's names."""
    sizes = [config[f'decoder_{key}'] for key in ('hidden_size', 'num_hidden_layers', 'num_attention_heads')]
    names = ('image_size', 'patch_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads')
    return fill(TimmMae(*(config[name] for name in names), tuple(sizes)), weights)


def fill(model: nn.Module, weights: Arrays) -> nn.Module:
    """The model with these weights, every one of them."""
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()}, strict=True)
    return model


class Trainer:
    """The step of one peer: forward, backward, AdamW, with MAE's groups (vectors and biases are not decayed)."""

    def __init__(
        self,
        model: nn.Module,
        pixels: np.ndarray,
        noise: np.ndarray,
        optim: Mapping[str, Any],
        options: Mapping[str, Any],
    ):
        """pixels f[B,S,S,3], normalised already (which ours are not); optim: lr, b1, b2, eps, weight_decay; options: device,
        dtype, compiled.
        """
        self.device = torch.device(options['device'])
        self.autocast = options['dtype'] != 'float32'
        model = model.to(self.device).train()
        self.pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(self.device)
        self.noise = torch.from_numpy(noise).to(self.device)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        free = {name for name, p in trained.items() if p.ndim <= 1 or name.endswith('.bias')}
        groups = [
            {'params': [p for name, p in trained.items() if name in free], 'weight_decay': 0.0},
            {'params': [p for name, p in trained.items() if name not in free], 'weight_decay': optim['weight_decay']},
        ]
        betas = optim['b1'], optim['b2']
        self.optimizer = torch.optim.AdamW(groups, lr=optim['lr'], betas=betas, eps=optim['eps'], fused=True)
        self.model = torch.compile(model) if options['compiled'] else model

    def step(self) -> torch.Tensor:
        """One step -> its loss."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.model(self.pixels, self.noise)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def run(self, steps: int) -> list[float]:
        """Losses of so many steps, all of them done."""
        losses = [self.step() for _ in range(steps)]
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        return [float(loss) for loss in losses]


def matmul_rate(device: str, dtype: str, run: Callable[[Callable[[], None]], float]) -> float:
    """FLOP/s of a large square product; run: a call -> its seconds."""
    size = 8192 if device == 'cuda' else 2048
    kind = getattr(torch, dtype)
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))

    def once() -> None:
        a @ b
        if device == 'cuda':
            torch.cuda.synchronize()

    return 2 * size**3 / run(once)
