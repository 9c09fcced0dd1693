"""No array of any recipe's state changes its place unnoticed."""

import pytest
from sharded_recipes import NAMES, list_shardings, read_listing


def test_the_listing_has_every_recipe():
    assert sorted(read_listing()) == NAMES


@pytest.mark.parametrize('name', NAMES)
def test_arrays_lie_where_they_did(name):
    """After a change that is meant: tests/golden/make_shardings_golden.py."""
    assert list_shardings(name).splitlines() == read_listing()[name].splitlines()
