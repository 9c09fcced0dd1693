"""What one host may ask of all of them: to stop, as it was sent a signal, or to save, as the clock says it is time."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mim_jax.parallel.agreement import exchange
from mim_jax.parallel.hosts import are_several, is_first
from mim_jax.training.interrupt import Interrupt

STOP, SAVE = LOGS = ('asked/stop', 'asked/save')


class Requests:
    """Answers that are the same on every host at the same step, so that all of them stop and save together.

    With one host they are answered at once. With several, every step carries what its hosts ask at that moment, adds it up
    on the devices beside the loss, and returns the sums among its logs, which each host fetches one step late anyway: no
    step waits for an agreement, and no host acts on its own signal or clock. Outside of steps, `agree` asks all hosts.
    """

    def __init__(self, mesh: Mesh, interrupt: Interrupt):
        self._interrupt, self._several = interrupt, are_several()
        self._agreed = dict.fromkeys(LOGS, False)
        self._carried = {}
        if self._several:
            shape, sharding = (mesh.size, len(LOGS)), asked_sharding(mesh)
            for asked in np.ndindex(2, 2):  # all there can be, made once
                value = np.broadcast_to(np.array(asked, np.int32), shape)
                self._carried[asked] = jax.make_array_from_callback(shape, sharding, value.__getitem__)

    @property
    def stop(self) -> bool:
        """Whether all hosts stop here."""
        return self._agreed[STOP] if self._several else bool(self._interrupt.requested)

    def save(self, due: bool) -> bool:
        """Whether all hosts save here, `due` being what this host's clock says: with several hosts the first one's counts."""
        return self._agreed[SAVE] if self._several else due

    def carry(self, due: bool) -> tuple[jax.Array, ...]:
        """What the next step is given beside its batch; nothing with one host."""
        asked = int(bool(self._interrupt.requested)), int(due and is_first())
        return (self._carried[asked],) if self._several else ()

    def take(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Remember what a step's logs say was asked; the other logs."""
        for name in LOGS:
            self._agreed[name] |= logs.get(name, 0) > 0
        return {key: value for key, value in logs.items() if key not in LOGS}

    def saved(self) -> None:
        """All hosts have saved: what was asked until now is done."""
        self._agreed[SAVE] = False

    def agree(self) -> bool:
        """Whether any host was sent a signal. All hosts must ask, and wait for each other."""
        if self._several:
            self._agreed[STOP] |= any(exchange('stop', bool(self._interrupt.requested)))
        return self.stop


def asked_sharding(mesh: Mesh) -> NamedSharding:
    """A row on each device, over all axes: no two hosts share one, as they may share images under tensor parallelism."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))
