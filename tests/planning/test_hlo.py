"""Compiled programs' text: what runs how often, who tells whom what, and what goes through main memory.

golden/tpu_loop.hlo.txt, written by hand, has the forms that libtpu 0.0.42 prints, with fewer and smaller arrays.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.planning.collectives import Collective, find_collectives, read_groups
from mim_jax.planning.hlo import count_trips, parse_hlo, parse_instruction, visit_instructions
from mim_jax.planning.traffic import count_bytes

TPU = (Path(__file__).parents[1] / 'golden' / 'tpu_loop.hlo.txt').read_text()
TWO_SLICES = [0] * 16 + [1] * 16


def test_a_loop_of_asynchronous_collectives_counts_each_of_them_once_a_turn():
    """The three fusions of one all-gather are one; all-reduce and slice are a reduce-scatter; the condition has the count."""
    found = find_collectives(parse_hlo(TPU), TWO_SLICES)
    assert found == [
        Collective('all-gather', 12, True, 768 * 8 * 2, 16, False),
        Collective('reduce-scatter', 12, True, 32 * 4 * 4, 16, False),
        Collective('all-reduce', 1, True, 32 * 4 * 4, 2, True),
    ]
    assert [one.sent for one in found] == [15 / 16 * 768 * 8 * 2, 15 / 16 * 512, 2 * 1 / 2 * 512]


def test_between_slices_the_hosts_reduce_what_they_are_sent():
    transfer = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"'
    send = f'%send = (f32[32,4], u32[], token[]) send(%last, %token), channel_id=3, frontend_attributes={{{transfer}}}'
    module = parse_hlo(
        TPU.replace('  ROOT %all-reduce.2', f'  %token = token[] after-all()\n  {send}\n  ROOT %all-reduce.2')
    )
    assert find_collectives(module, TWO_SLICES)[2] == Collective('all-reduce', 1, True, 32 * 4 * 4, 2, True)


def test_a_loop_of_unknown_length_is_told():
    module = parse_hlo(TPU.replace('direction=LT', 'direction=NE'))
    found = find_collectives(module, TWO_SLICES)
    assert [(one.times, one.exact) for one in found] == [(1, False), (1, False), (1, True)]


def test_the_compilers_own_count_goes_first():
    known = 'body=%body, backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}'
    module = parse_hlo(TPU.replace('body=%body', known))
    loop = module.computations['main']['while.1']
    assert count_trips(module, 'main', loop) == 7


@pytest.mark.parametrize(
    ('text', 'groups'),
    [
        ('replica_groups={{0,1},{2,3}}, x', [[0, 1], [2, 3]]),
        ('replica_groups={}, x', [[0, 1, 2, 3]]),
        ('replica_groups=[2,2]<=[4], x', [[0, 1], [2, 3]]),
        ('replica_groups=[2,2]<=[2,2]T(1,0), x', [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", None),
        ('source_target_pairs={{0,1},{1,0}}, x', [[0, 1], [1, 0]]),
        ('dimensions={0}', None),
    ],
)
def test_who_takes_part(text, groups):
    assert read_groups(text, 4) == groups


@pytest.mark.parametrize(
    ('line', 'opcode', 'sizes', 'spaces', 'operands'),
    [
        (
            'ROOT %t = (f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/pred[]) tuple(%a, /*index=1*/%b.2)',
            'tuple',
            (24, 1),
            (1, 0),
            2,
        ),
        ('%c.1 = s32[]{:T(128)} constant(12)', 'constant', (4,), (0,), 0),
        (
            '%g = bf16[4]{0} get-tuple-element(%t), index=1, metadata={op_name="a(b)/c"}',
            'get-tuple-element',
            (8,),
            (0,),
            1,
        ),
        ('%k = f8e4m3fn[16]{0} parameter(0)', 'parameter', (16,), (0,), 0),
        ('%s = ((f32[8]{0}), f32[2]{0:S(1)}, u32[]{:S(2)}) slice-start(%g)', 'slice-start', (32, 8, 4), (0, 1, 2), 1),
    ],
)
def test_one_instruction(line, opcode, sizes, spaces, operands):
    found = parse_instruction(line)
    assert (found.opcode, tuple(a.size for a in found.arrays), tuple(a.space for a in found.arrays)) == (
        opcode,
        sizes,
        spaces,
    )
    assert len(found.operands) == operands


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match='ENTRY'):
        parse_hlo('HloModule nothing')


def test_traffic_reads_of_stacked_parameters_only_the_layer_in_use():
    """Of a scan over [8,64,64] every turn reads one layer: 8 layers in all, not 64; on this machine's real compiler."""
    width, layers = 64, 8

    def run(x, stack):
        return jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), x, stack)[0]

    x, stack = np.zeros((width, width), np.float32), np.zeros((layers, width, width), np.float32)
    module = parse_hlo(jax.jit(run).lower(x, stack).compile().as_text())
    assert {visit.times for visit in visit_instructions(module)} == {1, layers}
    least = layers * 3 * x.nbytes  # every turn reads x and a layer, and writes x
    assert least <= count_bytes(module) < 3 * least


def test_traffic_leaves_out_what_stays_on_the_chip():
    """Per turn the shard is read three times and the gradient once; the results are on the chip. Then one all-reduce."""
    assert count_bytes(parse_hlo(TPU)) == 12 * (3 * 48 * 8 * 2 + 512) + 2 * 512
