"""The seal of a checkpoint: a list of what it must hold, so that every altered value is noticed when it is read."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from mim_jax.errors import CheckpointError
from mim_jax.parallel.agreement import exchange, together
from mim_jax.training.fingerprint import fingerprint_all

Result = TypeVar('Result')


class Damaged(Exception):
    """A checkpoint whose files are truncated, missing or altered; says what is wrong."""


def share_damage(act: Callable[[], Result]) -> Result:
    """act(), once it succeeded on every host: a checkpoint that is damaged as one of them sees it is so for all.

    Raises Damaged, or the UserError of whichever host met one.
    """

    def attempt() -> tuple[Result | None, str]:
        try:
            return act(), ''
        except Damaged as damage:
            return None, str(damage)

    result, mine = together('the checkpoint', attempt)
    found = exchange('damage', mine)
    if any(found):
        host = next(host for host, damage in enumerate(found) if damage)
        raise Damaged(mine or f'{found[host]} (seen by host {host})')
    return result


def make_seal(arrays: dict[str, jax.Array], extra: dict) -> dict[str, str]:
    """{path: array} and a JSON-able dict -> a JSON text and its own digest."""
    fingerprints = fingerprint_all(arrays)
    entries = {path: [list(array.shape), str(array.dtype), fingerprints[path]] for path, array in arrays.items()}
    text = json.dumps({'arrays': entries, 'extra': extra}, sort_keys=True)
    return {'sha256': hashlib.sha256(text.encode()).hexdigest(), 'text': text}


def open_seal(text: str) -> tuple[dict[str, list], dict]:
    """The text of a seal's file -> ({path: [shape, dtype, fingerprint]}, extra). Raises Damaged."""
    try:
        seal = json.loads(text)
        intact = hashlib.sha256(seal['text'].encode()).hexdigest() == seal['sha256']
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged('its list of arrays is not readable') from error
    if not intact:
        raise Damaged('its list of arrays was altered since being saved')
    contents = json.loads(seal['text'])
    return contents['arrays'], contents['extra']


def check_same_model(path: Any, entries: dict[str, list], wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Raises CheckpointError naming the first array that the checkpoint at `path` and this run do not share."""
    advice = 'It belongs to another model or optimizer: use the config that it was saved with, or another workdir.'
    for name in sorted(entries.keys() | wanted.keys()):
        if name not in wanted:
            raise CheckpointError(f'Checkpoint {path} holds {name}, which this run does not have. {advice}')
        if name not in entries:
            raise CheckpointError(f'Checkpoint {path} lacks {name}, which this run has. {advice}')
        shape, dtype, _ = entries[name]
        saved, here = f'{dtype}{shape}', f'{wanted[name].dtype}{list(wanted[name].shape)}'
        if saved != here:
            raise CheckpointError(f'In checkpoint {path}, {name} is {saved}; in this run it is {here}. {advice}')


def check_arrays(entries: dict[str, list], arrays: dict[str, Any]) -> None:
    """Raises Damaged naming the first array that is not, bit for bit, the one that was saved."""
    found = fingerprint_all(arrays)
    altered = [name for name, (_, _, fingerprint) in entries.items() if found[name] != fingerprint]
    if altered:
        others = f' (and {len(altered) - 1} more)' if len(altered) > 1 else ''
        raise Damaged(f'{altered[0]}{others} was altered since being saved')
