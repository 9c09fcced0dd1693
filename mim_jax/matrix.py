"""The support matrix: which papers have a meaning on which base. `python -m mim_jax.recipe` prints it, as Markdown.

Every cell is the real build at the sizes of :smoke, traced abstractly; a footnote is the sentence that a run would end with.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator

import jax
from ml_collections import ConfigDict

from mim_jax.config import apply_variants, default_config
from mim_jax.config.values import method_defaults
from mim_jax.errors import Refused
from mim_jax.methods import BASES, PAPERS, build

IMAGES, CLASSES = 1000, 10  # of a dataset that is never read


def list_stacks(papers: Iterable[str] = PAPERS) -> list[tuple[str, ...]]:
    """No paper, each alone, then every pair: what more papers do together follows from their pairs."""
    papers = tuple(papers)
    return [stack for count in range(3) for stack in itertools.combinations(papers, count)]


def small_config(base: str, papers: tuple[str, ...]) -> ConfigDict:
    """A base and papers with the methods' own defaults, small: 32 pixels, two blocks of width 64."""
    methods, config = {**BASES, **PAPERS}, default_config()
    config.base, config.papers = base, papers
    for name in (base, *papers):
        config[name] = ConfigDict(method_defaults(methods[name]))
    return apply_variants(config, 'smoke')


def explain_refusal(base: str, papers: tuple[str, ...]) -> str | None:
    """Why these papers cannot be stacked on this base, in the build's own words; None where they can."""
    try:
        build(small_config(base, papers), IMAGES, CLASSES)
    except Refused as refusal:
        return str(refusal)
    return None


def write_matrix() -> Iterator[str]:
    """The lines of the table, a row per base and a column per stack, then the footnotes."""
    stacks, notes = list_stacks(), []

    def fill_cell(base: str, papers: tuple[str, ...]) -> str:
        sentence = explain_refusal(base, papers)
        if sentence is None:
            return 'yes'
        if sentence not in notes:
            notes.append(sentence)
        return f'({1 + notes.index(sentence)})'

    def write_row(*cells: str) -> str:
        return f'| {" | ".join(cells)} |'

    yield write_row('base', *('+'.join(stack) or 'none' for stack in stacks))
    yield '|' + '---|' * (1 + len(stacks))
    for base in BASES:
        yield write_row(base, *(fill_cell(base, stack) for stack in stacks))
    if notes:
        yield ''
    for number, sentence in enumerate(notes, 1):
        yield f'- ({number}) {sentence}'


def main() -> None:
    """Print the matrix."""
    argparse.ArgumentParser(prog='python -m mim_jax.recipe', description='Print the support matrix.').parse_args()
    jax.config.update('jax_platforms', 'cpu')  # nothing is computed, and a run may be holding the accelerator
    print('\n'.join(write_matrix()))


if __name__ == '__main__':
    main()
