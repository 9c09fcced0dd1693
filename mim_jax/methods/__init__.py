"""Methods: one file each, one public function. The table of all of them, and how a config becomes a recipe."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from mim_jax.config import bind_method, steps_per_epoch, total_steps
from mim_jax.errors import ConfigError
from mim_jax.forward import create_parameters
from mim_jax.methods.bootmae import bootmae
from mim_jax.methods.conmim import conmim
from mim_jax.methods.finetune import finetune
from mim_jax.methods.linear_probe import linear_probe
from mim_jax.methods.lut import lut
from mim_jax.methods.mae import mae
from mim_jax.methods.mcmae import mcmae
from mim_jax.methods.mff import mff
from mim_jax.methods.mr_mae import mr_mae
from mim_jax.methods.mto import mto
from mim_jax.methods.pixmim import pixmim
from mim_jax.methods.simmim import simmim
from mim_jax.methods.supervised import supervised
from mim_jax.recipe import Recipe

BASES: dict[str, Callable[..., Recipe]] = {  # Config -> Recipe
    'mae': mae,
    'simmim': simmim,
    'pixmim': pixmim,
    'bootmae': bootmae,
    'conmim': conmim,
    'mcmae': mcmae,
    'supervised': supervised,
}
PAPERS: dict[str, Callable[..., Recipe]] = {'mff': mff, 'mto': mto, 'lut': lut, 'mr_mae': mr_mae}  # Recipe -> Recipe
PROTOCOLS: dict[str, Callable[..., Recipe]] = {
    'finetune': finetune,
    'linear_probe': linear_probe,
}  # the same, to test one
METHODS: dict[str, Callable[..., Recipe]] = {**BASES, **PAPERS, **PROTOCOLS}


def build(
    config: Any,
    dataset_size: int,
    classes: int = 0,
    bases: Mapping[str, Callable[..., Recipe]] = BASES,
    papers: Mapping[str, Callable[..., Recipe]] = {**PAPERS, **PROTOCOLS},
) -> Recipe:
    """The recipe of a checked config. Its `config` has the dataset's part filled in: `steps`, `steps_per_epoch`, `classes`.

    config.base is applied to the config, then each of config.papers to the recipe, left to right; a method's options are
    the config section of its name. Ends by tracing the losses abstractly, so that every mistake is a sentence
    before a device is touched: Refused, ConfigError or a shape error with the value that was being computed.
    """
    _check_kinds(config, bases, papers)
    config = config.copy_and_resolve_references().unlock()
    config.steps, config.steps_per_epoch = total_steps(config, dataset_size), steps_per_epoch(config, dataset_size)
    config.classes = classes
    config.lock()
    recipe = bind_method(config, config.base, bases[config.base])(config)
    for name in config.papers:
        recipe = bind_method(config, name, papers[name])(recipe)
    jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(config.seed))
    return recipe


def _check_kinds(config: Any, bases: Mapping[str, Any], papers: Mapping[str, Any]) -> None:
    """Raise ConfigError for a paper in place of the base, or a base among the papers."""
    if config.base not in bases:
        raise ConfigError(
            f'base={config.base} is a paper, which goes on a base: name it in papers; bases: {", ".join(bases)}.'
        )
    for name in config.papers:
        if name not in papers:
            raise ConfigError(
                f'papers: {name} is a base, of which a run has one; set base={name}; papers: {", ".join(papers)}.'
            )
    for name in config.papers[:-1]:
        if name in PROTOCOLS:
            raise ConfigError(
                f'papers: {name} tests what stands before it, so nothing can come after it; name it last.'
            )
