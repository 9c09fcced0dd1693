"""What docs/ shows runs as it stands there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_runs import random_batch, start, tiny_config

from mim_jax.config import check_config
from mim_jax.errors import ConfigError, Refused
from mim_jax.methods import BASES, PAPERS, build

DOCS = Path(__file__).parents[1] / 'docs'


@pytest.fixture(scope='module')
def code():
    """What docs/new_paper.md shows."""
    return re.search(r'```python\n(.*?)```', (DOCS / 'new_paper.md').read_text(), re.DOTALL).group(1)


@pytest.fixture(scope='module')
def colour(code):
    """Its paper."""
    names: dict = {}
    exec(compile(code, 'docs/new_paper.md', 'exec'), names)
    return names['colour']


def make(colour, papers, base='mae', **settings):
    """A recipe as the command line makes it."""
    config = tiny_config(base=base, papers=papers)
    config.mae = ConfigDict({'decoder_width': 16, 'decoder_depth': 1, 'decoder_heads': 2})
    config.mff = ConfigDict({'layers': (0, 1)})
    config.colour = ConfigDict(settings)
    return build(config, 80, 10, papers={**PAPERS, 'colour': colour})


@pytest.mark.parametrize('papers', [('colour',), ('mff', 'mto', 'colour')])
def test_the_new_paper_trains_alone_and_stacked(colour, papers):
    recipe = make(colour, papers, weight=1.0)
    run = start(recipe, schedule='constant')
    before = jax.tree.map(np.array, run.first.params)
    now, logs = run.train([random_batch(recipe)] * 8)
    losses = [float(log['loss/colour']) for log in logs]
    assert losses[-1] < losses[0]
    head = 'objectives/colour/predict'
    assert np.abs(np.asarray(now.params[head]['kernel']) - before[head]['kernel']).max() > 0


def test_the_new_papers_settings_are_checked_as_others(colour):
    with pytest.raises(Refused, match=r'colour\.weight=-1\.0'):
        make(colour, ('colour',), weight=-1.0)
    with pytest.raises(Refused, match='supervised has none'):
        make(colour, ('colour',), base='supervised')
    config = tiny_config(papers=('colour',))
    config.colour = ConfigDict({'wieght': 1.0})
    with pytest.raises(ConfigError, match=r'colour\.wieght'):
        check_config(config, {**BASES, **PAPERS, 'colour': colour})


def test_it_fits_in_thirty_lines(code):
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    assert 'colour' not in {**BASES, **PAPERS}
