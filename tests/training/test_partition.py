"""What the partitioner does: weights are gathered over fsdp, images never are, however small a micro-batch is; a block that
a group of devices shares costs two sums of its tokens on the way there and two on the way back."""

import re
from collections import Counter

import pytest
from tiny_runs import start, tiny_config, tiny_mae

WIDTH, IMAGES = 256, 16  # two images a device
VISIBLE, ALL = 5, 17  # tokens of the encoder and of the decoder, CLS with them
KERNELS = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]


def compile_step(**mesh):
    """HLO of a step in which every device has two images of few tokens: where the partitioner prefers to split weights."""
    config = tiny_config(encoder={'width': WIDTH, 'depth': 2, 'heads': 2})
    return start(tiny_mae(config), **mesh).step.as_text()


@pytest.fixture(scope='module')
def program():
    return compile_step(data=1, fsdp=8)


@pytest.fixture(scope='module')
def shared():
    """Two groups of images, fsdp over two and every block shared by two."""
    return compile_step(data=2, fsdp=2, model=2)


def shapes_in(types):
    """'(f32[8,4]{1,0}, s32[])' -> [(8, 4), ()]."""
    return [tuple(map(int, filter(None, shape.split(',')))) for shape in re.findall(r'[a-z]+\d*\[([\d,]*)\]', types)]


def collectives(text, kind):
    """Shapes of the results of every collective of one kind."""
    return [shape for types in re.findall(rf'= (.*?) {kind}(?:-start)?\(', text) for shape in shapes_in(types)]


def is_kernel(shape):
    """One of a block's, or its transpose."""
    return shape in KERNELS or shape[::-1] in KERNELS


def test_no_activation_is_gathered_or_summed_over_devices(program):
    """An activation has three axes or more and the images of all devices in front; parameters have two."""
    for kind in ('all-gather', 'all-reduce', 'all-to-all'):
        moved = [shape for shape in collectives(program, kind) if len(shape) >= 3 and shape[0] == IMAGES]
        assert not moved, (kind, moved)


def test_weights_are_gathered(program):
    assert any(len(shape) == 2 and WIDTH in shape for shape in collectives(program, 'all-gather'))


def test_no_whole_gradient_is_kept(program):
    """XLA:CPU knows no reduce-scatter: it sums whole gradients. What reads such a sum must make a shard of it at once.

    On a TPU the same program scatters them: test_tpu_partition.py.
    """
    shapes, readers = {}, {}
    for name, types, inputs in re.findall(r'^\s+(%[\w.-]+) = (.+?) [\w-]+\((.*?)\)', program, re.M):
        shapes[name] = shapes_in(types)
        for read in re.findall(r'%[\w.-]+', inputs):
            readers.setdefault(read, []).append(name)
    sums = re.findall(r'(%[\w.-]+) = \(.*?\) all-reduce\(', program)
    whole = [part for one in sums for part in readers[one] if is_kernel(shapes[part][0])]
    assert len(whole) == 2 * len(KERNELS)  # of two blocks
    for gradient in whole:
        assert readers[gradient]
        for reader in readers[gradient]:
            assert not any(map(is_kernel, shapes[reader])), (gradient, reader)


def test_shared_blocks_sum_their_tokens_and_gather_none(shared):
    tokens = {(IMAGES // 4, VISIBLE): 'encoder', (IMAGES // 4, ALL): 'decoder'}
    for kind in ('all-gather', 'all-to-all', 'collective-permute'):
        moved = [shape for shape in collectives(shared, kind) if shape[:2] in tokens]
        assert not moved, (kind, moved)
    summed = Counter(tokens[shape[:2]] for shape in collectives(shared, 'all-reduce') if shape[:2] in tokens)
    assert summed == {'encoder': 4 * 2, 'decoder': 4 * 1}  # of every block attention and MLP, forward and backward


def test_shared_weights_are_never_whole(shared):
    """Gathered over fsdp alone; the kernel of queries, keys and values by heads."""
    gathered = collectives(shared, 'all-gather')
    assert not set(gathered) & set(KERNELS)
    assert {(WIDTH // 2, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH), (WIDTH, 3, 1, WIDTH // 2)} <= set(gathered)
