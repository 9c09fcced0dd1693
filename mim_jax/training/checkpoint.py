"""Checkpoints that are written beside training, check themselves when read, and are never lost to one damaged file.

Orbax writes them: one directory per step with the arrays ('state') and a JSON file ('seal'). The seal lists every
array's path, shape, dtype and fingerprint, because Orbax restores a flipped byte without a word; it also tells a
checkpoint of another model (an error) from a damaged one (the previous one is used).
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mim_jax.errors import CheckpointError
from mim_jax.parallel.agreement import barrier, exchange, together
from mim_jax.parallel.hosts import is_first
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.paths import is_bucket, move_folder, open_path
from mim_jax.training.faults import is_about_hosts, is_damage, is_out_of_space, root_cause
from mim_jax.training.preservation import MILESTONE, NewestAndMilestones, mark_milestone
from mim_jax.training.quiet import silence_orbax
from mim_jax.training.seal import Damaged, check_arrays, check_same_model, make_seal, open_seal, share_damage
from mim_jax.training.workdir import check_writable

STEP_NAMES = ocp.path.step.standard_name_format()
COMMITTED = 'commit_success.txt'  # in a bucket, what Orbax writes last and looks for first


class Checkpoints:
    """The checkpoints of one run: asynchronous saves, of which the newest `keep` and every milestone are kept.

    With several hosts all of them make the same calls: each writes and reads what its devices hold, none decides alone what
    there is and what is damaged, and a checkpoint is complete when the last one has written its part.
    A tree is any pytree of arrays; its leaves are known by their path alone ('params/encoder/norm/scale').
    Uncommitted leftovers of a killed run are removed at the start. `report` gets one line per damaged checkpoint.
    Raises WorkdirError when `directory` cannot be written. A save that fails in the background raises CheckpointError
    from the next `save`, `wait` or `close`.
    """

    def __init__(
        self,
        directory: str,
        keep: int = 3,
        report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ):
        place = open_path(directory)
        self.directory = epath.Path(place if is_bucket(place) else place.absolute())
        self._report = report
        self._saving = None
        silence_orbax()
        together('the checkpoint folder', lambda: check_writable(self.directory, 'The checkpoint folder'))
        options = ocp.CheckpointManagerOptions(
            step_name_format=STEP_NAMES,
            preservation_policy=NewestAndMilestones(self.directory, keep),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, tree: Any, extra: dict | None = None, milestone: bool = False) -> None:
        """Starts writing `tree` and the small JSON-able `extra`; the arrays may be donated as soon as this returns.

        A milestone is marked on disk and kept for good, whatever later sessions call one. A step that is saved already
        is left as it is, but for the mark. Waits for the previous save.
        """
        self.wait()
        self._saving = step
        if step in self.agreed_steps():
            if milestone:
                self._mark(step)
            return
        arrays = _by_path(tree)
        items = {
            'state': ocp.args.StandardSave(_nest(arrays)),
            'seal': ocp.args.JsonSave(make_seal(arrays, extra or {})),
        }
        if milestone:
            items[MILESTONE] = ocp.args.JsonSave({})
        with self._failures():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Returns when the last save is on disk."""
        with self._failures():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads that write."""
        try:
            self.wait()
        finally:
            with self._failures():  # a save that failed in a bucket does so twice
                self._manager.close()

    def steps(self) -> list[int]:
        """Steps that are completely written, ascending."""
        return _steps(self.directory)

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def restore(self, abstract_tree: Any) -> tuple[Any, int, dict] | None:
        """ShapeDtypeStructs with shardings -> (tree of arrays so placed, step, extra); None where nothing was saved.

        The mesh may differ from the one that saved; a leaf without a sharding goes to the first device. A damaged
        checkpoint is reported and, once an older one has been read in its place, moved aside as 'damaged_<step>'.
        Raises CheckpointError when the checkpoint is of another model, or none is readable; nothing is moved then.
        """
        self.wait()
        damaged = {}
        for step in reversed(self.agreed_steps()):
            try:
                tree, extra = _read(self.directory / str(step), abstract_tree)
            except Damaged as damage:
                damaged[step] = str(damage)
                self._report(f'Checkpoint {self.directory / str(step)} is damaged: {damage}.')
                continue
            self._move_aside(damaged)
            return tree, step, extra
        if damaged:
            listing = '; '.join(f'step {step}: {why}' for step, why in damaged.items())
            raise CheckpointError(
                f'No checkpoint in {self.directory} is readable ({listing}). Put back a copy, or move the directory '
                'away to start anew.'
            )
        return None

    def agreed_steps(self) -> list[int]:
        """`steps` as the first host sees them: a shared file system may show the others an older state."""
        return exchange('checkpoints', self.steps())[0]

    def _move_aside(self, steps: dict[int, str]) -> None:
        for step in steps if is_first() else ():
            number, target = 1, self.directory / f'damaged_{step}'
            while target.exists():
                number += 1
                target = self.directory / f'damaged_{step}_{number}'
            move_folder(self.directory / str(step), target, COMMITTED)
            self._report(f'Moved checkpoint {step} aside as {target}.')
        if steps:
            barrier('moved aside')  # the other hosts look again only when the first one is done
            self._manager.reload()

    def _mark(self, step: int) -> None:
        with self._failures():
            if is_first():
                mark_milestone(self.directory / str(step))
        barrier('marked')  # no host decides what to keep before the mark is there

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns what Orbax raises about the save in flight into one sentence, unless another host is at fault."""
        try:
            yield
        except Exception as error:
            if is_about_hosts(error):
                raise
            step = self._saving
            try:
                self._manager.reload()
                kept = self.latest()
                intact = 'No earlier checkpoint exists' if kept is None else f'The checkpoint of step {kept} is intact'
            except Exception as unseen:
                intact = f'The earlier ones cannot be listed now ({root_cause(unseen)})'
            space = '; free disk space or quota there (or set checkpoint.keep lower) and run the same command again'
            raise CheckpointError(
                f'The checkpoint of step {step} could not be written in {self.directory}: {root_cause(error)}. '
                f'{intact}{space if is_out_of_space(error) else ""}.'
            ) from error


def find_step(directory: str, step: int | None = None) -> int:
    """`step`, or that of the newest checkpoint. Raises CheckpointError where there is none."""
    root = epath.Path(open_path(directory))
    steps = _steps(root) if root.is_dir() else []
    if not steps or step not in (None, *steps):
        raise CheckpointError(f'No checkpoint{"" if step is None else f" of step {step}"} in {root}; it has {steps}.')
    return steps[-1] if step is None else step


def read_digest(directory: str, step: int) -> str:
    """What tells a checkpoint from every other: the digest of its seal, which lists all arrays. Raises CheckpointError."""
    path = epath.Path(open_path(directory)) / str(step)
    try:
        return json.loads((path / 'seal' / 'metadata').read_text())['sha256']
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f'Checkpoint {path} is damaged: it has no seal ({error}). Ask for another step.'
        ) from error


def read_arrays(
    directory: str, step: int | None = None, parts: Sequence[str] = ('params',)
) -> tuple[dict[str, np.ndarray], int, dict]:
    """({path: array}, step, extra) of a checkpoint, the newest or that of `step`; arrays are in host memory, and checked.

    parts: which of 'params', 'batch_stats', 'teachers' and 'opt_state'; the paths begin with them. Reads nothing else and
    writes nothing, so it may run beside training. Raises CheckpointError.
    """
    silence_orbax()
    step, root = find_step(directory, step), epath.Path(open_path(directory))
    path = root / str(step)
    try:
        entries, extra = _read_seal(path)
        entries = {name: entry for name, entry in entries.items() if name.partition('/')[0] in parts}
        item = _nest({name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype, _) in entries.items()})
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        arrays = _read_arrays(path, ocp.args.PyTreeRestore(item, restore_args=plain, partial_restore=True))
        check_arrays(entries, arrays)
    except Damaged as damage:
        raise CheckpointError(
            f'Checkpoint {path} is damaged: {damage}. Ask for another step of {_steps(root)}.'
        ) from damage
    return arrays, step, extra


def read_params(directory: str, step: int | None = None) -> tuple[dict, dict]:
    """The 'params' of a checkpoint as nested numpy arrays, and its extra; see `read_arrays`."""
    arrays, _, extra = read_arrays(directory, step)
    return _nest(arrays)['params'], extra


def _read(path: epath.Path, abstract_tree: Any) -> tuple[Any, dict]:
    leaves = _by_path(abstract_tree)
    first_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def read() -> tuple[dict, dict, dict]:
        entries, extra = _read_seal(path)
        check_same_model(path, entries, leaves)
        args = ocp.args.StandardRestore(_nest(leaves), fallback_sharding=first_device)
        return entries, extra, _read_arrays(path, args)

    entries, extra, arrays = share_damage(read)
    share_damage(lambda: check_arrays(entries, arrays))
    return jax.tree.unflatten(jax.tree.structure(abstract_tree), [arrays[name] for name in leaves]), extra


def _read_seal(path: epath.Path) -> tuple[dict, dict]:
    try:
        text = (path / 'seal' / 'metadata').read_text()
    except Exception as error:
        raise _reading_failed(path, 'its list of arrays', error) from error
    return open_seal(text)


def _read_arrays(path: epath.Path, args: ocp.args.CheckpointArgs) -> dict[str, Any]:
    # A fresh reader each time: one that has read in one way refuses another. Not in an ocp.Checkpointer, which waits for
    # all hosts in the end, and for ever when one of them could not read.
    handlers = {
        ocp.args.StandardRestore: ocp.StandardCheckpointHandler,
        ocp.args.PyTreeRestore: ocp.PyTreeCheckpointHandler,
    }
    try:
        with contextlib.closing(handlers[type(args)]()) as reader:
            return dict(flatten_with_paths(reader.restore(path / 'state', args=args)))
    except Exception as error:
        raise _reading_failed(path, 'its arrays', error) from error


def _reading_failed(path: epath.Path, what: str, error: Exception) -> Damaged | CheckpointError:
    """Damaged only where the error shows it: a checkpoint is never moved aside for a fault that may pass."""
    if is_damage(error):
        return Damaged(f'{what} cannot be read ({root_cause(error)})')
    return CheckpointError(
        f'Checkpoint {path} cannot be read now: {root_cause(error)}. Run the same command again; if it stays so, move '
        'that folder away to use the one before it.'
    )


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = flatten_with_paths(tree)
    by_path = dict(leaves)
    if len(by_path) != len(leaves):
        raise ValueError('Two leaves of the tree have the same path.')
    return by_path


def _nest(leaves: dict[str, Any]) -> dict:
    """{'a/b': x} -> {'a': {'b': x}}."""
    tree = {}
    for path, leaf in leaves.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _steps(directory: epath.Path) -> list[int]:
    return sorted(found.step for found in STEP_NAMES.find_all(directory))
