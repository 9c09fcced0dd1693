"""What the partitioner does with FSDP: weights are gathered, images never are, however small a micro-batch is."""

import re

import pytest
from tiny_runs import start, tiny_config, tiny_mae

WIDTH, IMAGES = 256, 16  # two images a device


@pytest.fixture(scope='module')
def program():
    """HLO of a step in which every device has two images of few tokens: where the partitioner prefers to split weights."""
    config = tiny_config(encoder={'width': WIDTH, 'depth': 2, 'heads': 2})
    return start(tiny_mae(config), data=1, fsdp=8).step.as_text()


def collectives(text, kind):
    """Shapes of the results of every collective of one kind."""
    lines = re.findall(rf'= (.*?) {kind}(?:-start)?\(', text)
    return [tuple(map(int, s.split(','))) for line in lines for s in re.findall(r'[a-z]+\d+\[([\d,]+)\]', line)]


def test_no_activation_is_gathered_or_summed_over_devices(program):
    """An activation has three axes or more and the images of all devices in front; parameters have two."""
    for kind in ('all-gather', 'all-reduce', 'all-to-all'):
        moved = [shape for shape in collectives(program, kind) if len(shape) >= 3 and shape[0] == IMAGES]
        assert not moved, (kind, moved)


def test_weights_are_gathered(program):
    assert any(len(shape) == 2 and WIDTH in shape for shape in collectives(program, 'all-gather'))
