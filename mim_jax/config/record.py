"""The configuration on paper: what differs from the recipe's own, config.json, whether a workdir holds this run."""

import json
from typing import Any

from ml_collections import ConfigDict

from mim_jax.config.names import flatten
from mim_jax.config.tree import default_config
from mim_jax.errors import WorkdirError

# Where and how the numbers are computed, seen or kept; not which. A name ending in a dot is a whole section.
FREE_ON_RESUME = (
    *('mesh.', 'accumulate', 'encoder.remat'),
    *('log.', 'checkpoint.', 'probe.', 'pictures.'),
    *('data.dir', 'data.threads', 'data.workers', 'data.cache', 'data.on_bad_image'),
    *('mr_mae.clip_weights', 'mr_mae.dino_weights', 'mr_mae.dinov2_weights', 'linear_probe.weights'),
)
# Where one host finds what all have: the dataset's fingerprint and the files' checksums say whether it is the same.
OF_ONE_HOST = (
    *('data.dir', 'data.threads', 'data.workers', 'data.cache'),
    *('mr_mae.clip_weights', 'mr_mae.dino_weights', 'mr_mae.dinov2_weights', 'linear_probe.weights'),
)
ABSENT = '(not set)'


def difference(config: ConfigDict, reference: ConfigDict) -> list[str]:
    """Lines such as 'optim.base_lr: 0.00015 -> 0.001', from reference to config, in alphabetical order."""
    new, old = flatten(config), flatten(reference)
    lines = []
    for key in sorted(new | old):
        was, is_now = (repr(tree[key]) if key in tree else ABSENT for tree in (old, new))
        if was != is_now:
            lines.append(f'{key}: {was} -> {is_now}')
    return lines


def shared_settings(config: ConfigDict) -> dict[str, Any]:
    """{key: value} of what all hosts of a run must set alike."""
    return {key: value for key, value in flatten(config).items() if key not in OF_ONE_HOST}


def to_json(config: ConfigDict) -> str:
    """The tree as JSON text, keys in alphabetical order; tuples become arrays, which from_json turns back."""
    return json.dumps(config.to_dict(), indent=2, allow_nan=False) + '\n'


def from_json(text: str) -> ConfigDict:
    """The configuration that to_json wrote, with every value and type; locked, as load_config's are.

    A key that did not exist yet when it was written has its default, which must mean what runs did without it.
    """
    return ConfigDict(_complete(_with_tuples(json.loads(text)), default_config().to_dict())).lock()


def _complete(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    sections = {key: _complete(saved.get(key, {}), value) for key, value in defaults.items() if isinstance(value, dict)}
    return {**defaults, **saved, **sections}


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value


def check_same_run(config: ConfigDict, saved: ConfigDict) -> None:
    """WorkdirError unless a run with `saved` (the workdir's config.json) may be continued with `config`.

    Free to change, because the batches, the masks and the update they give stay the same up to rounding:
    - mesh.*, accumulate, encoder.remat: how one global batch is spread over devices and time; masks and augmentation
      are keyed by an example's global position. (BatchNorm in a head does see smaller batches when accumulate grows.)
      accumulate is bound where more than that is of a micro-batch: the draws of drop-path (encoder.drop_path), and in
      finetune and linear_probe those of mixup and cutmix with their partners, and the probe's BatchNorm.
    - data.threads, data.workers, data.cache, data.dir: who fetches the same images, and from where.
    - data.on_bad_image: a run stopped by a broken image may go on without it; nothing before it changes.
    - mr_mae.*_weights, linear_probe.weights: where the files of frozen networks are; the checkpoint has their checksums.
    - log.*, checkpoint.*, probe.*, pictures.*: what is watched and kept; probes never touch the training state.
    Everything else would make the rest of the run a different experiment from its beginning.
    """
    by_micro_batch = config.encoder.drop_path or {'finetune', 'linear_probe'} & {*config.papers}
    bound = ('accumulate',) if by_micro_batch else ()
    changed = {line: line.partition(':')[0] for line in difference(config, saved)}
    lines = [line for line, key in changed.items() if key in bound or not _is_free(key)]
    if lines:
        raise WorkdirError(
            'This workdir holds a run with other settings (saved -> now):\n  '
            + '\n  '.join(lines)
            + '\nUse another --workdir, or the settings this run began with.'
        )


def _is_free(key: str) -> bool:
    return any(key == free or (free.endswith('.') and key.startswith(free)) for free in FREE_ON_RESUME)
