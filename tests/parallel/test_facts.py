"""Facts of several hosts: silence where all agree, else a sentence with the fact, the hosts and every value."""

import pytest

from mim_jax.parallel.facts import find_difference

NAMES = ['host 0 (a)', 'host 1 (b)', 'host 2 (c)']


def test_equal_facts_are_not_told():
    assert (
        find_difference([{'jax': '0.10', 'scale': (0.2, 1.0)}, {'scale': [0.2, 1.0], 'jax': '0.10'}], NAMES[:2]) == ''
    )


@pytest.mark.parametrize(
    ('values', 'sentence'),
    [
        ([1, 1, 2], 'seed is 1 on host 0 (a), but 2 on host 2 (c)'),
        ([2, 1, 1], 'seed is 1 on host 1 (b), but 2 on host 0 (a)'),  # most hosts are right, not the first
        ([1, 2, 3], 'seed is 1 on host 0 (a), but 2 on host 1 (b), 3 on host 2 (c)'),
        ([1, 1, True], 'seed is 1 on host 0 (a), but true on host 2 (c)'),
    ],
)
def test_the_odd_host_is_named(values, sentence):
    assert find_difference([{'seed': value, 'same': 0} for value in values], NAMES) == sentence


def test_a_fact_that_one_host_does_not_know_differs():
    assert find_difference([{'new': 1}, {}], NAMES) == 'new is 1 on host 0 (a), but null on host 1 (b)'


def test_long_lists_are_cut():
    hosts, facts = 256, 30
    every = [{f'key{fact:02}': host % 100 for fact in range(facts)} for host in range(hosts)]
    sentence = find_difference(every, [f'host {host}' for host in range(hosts)])
    assert 'key09' in sentence
    assert 'key10' not in sentence
    assert sentence.endswith('20 more facts differ')
    assert sentence.count('on host') == 10 * 11
    assert f'and on {hosts - 3 - 10} more' in sentence  # three hosts have each of the first 56 values
