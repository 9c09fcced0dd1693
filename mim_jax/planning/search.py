"""What would make a run fit: settings that leave its batch, masks and learning rate as they are, to be tried in order."""

from __future__ import annotations

import math
from typing import Any

from mim_jax.planning.measure import Fit

MOST_SPLIT = 16  # devices that share one copy of the state: further ones save little of it, and gather more often
Changes = dict[str, Any]  # {key of the config: value}


def list_remedies(config: Any, fit: Fit) -> list[Changes]:
    """Changes for a run that does not fit, each alone in the order remat, accumulate, fsdp, then together.

    Recomputing costs about a third more FLOPs and no network; accumulation smaller products and a buffer of gradients; FSDP
    a gathering of all parameters, twice a step and micro-batch.
    """
    devices = fit.devices['count']
    most = config.batch_size // fit.shards
    parts = [config.accumulate * 2**n for n in range(1, 20) if most % (config.accumulate * 2**n) == 0]
    wanted = guess_accumulation(config, fit)
    enough = next((part for part in parts if part >= wanted), parts[-1] if parts else 0)
    widest = max(n for n in range(1, MOST_SPLIT + 1) if devices % n == 0)
    remat = {} if config.encoder.remat == 'full' else {'encoder.remat': 'full'}
    fsdp = {'mesh.fsdp': widest} if widest > config.mesh.fsdp and config.mesh.data == -1 else {}
    halved, split, finest = ({'accumulate': n} if n else {} for n in ((parts or [0])[0], enough, (parts or [0])[-1]))
    together = [remat | halved, remat | fsdp, remat | split | fsdp, remat | finest | fsdp]
    found = [changes for changes in (remat, split, fsdp, *together) if changes]
    return [changes for i, changes in enumerate(found) if changes not in found[:i]]


def guess_accumulation(config: Any, fit: Fit) -> float:
    """Micro-batches at which what is not state would fit, if it fell as the batch does; a guess to begin with."""
    state = sum(fit.memory[part] for part in ('parameters', 'optimizer', 'teachers', 'frozen'))
    room = (fit.memory['capacity'] or math.inf) - state - fit.memory['parameters']  # and the sum of gradients
    over = fit.needed or fit.memory['peak'] or math.inf
    return config.accumulate * over / room if room > 0 else math.inf
