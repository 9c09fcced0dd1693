"""Writes shardings.txt; look at the difference before you commit it.

PYTHONPATH=.:tests python tests/golden/make_shardings_golden.py
"""

from sharded_recipes import LISTING, NAMES, list_shardings

LISTING.write_text('\n\n'.join(map(list_shardings, NAMES)) + '\n')
