"""The table of formats: which layouts there are for a recipe, and which of them a file is in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mim_jax.errors import Refused
from mim_jax.interop.bootmae import BOOTMAE
from mim_jax.interop.classifier import FINETUNED, class_layout, ends_without_norm, find_classifier
from mim_jax.interop.conmim import CONMIM
from mim_jax.interop.hf import BEIT, BEIT_HUB, VIT, VIT_HUB
from mim_jax.interop.lut import LUT
from mim_jax.interop.mae import MAE, VITMAES
from mim_jax.interop.mcmae import CONVMAE
from mim_jax.interop.mff import MFF
from mim_jax.interop.pixmim import PIXMIM, STREAM
from mim_jax.interop.simmim import SIMMIM
from mim_jax.interop.timm import TIMM_BEIT, TIMM_CLASSIFIER, TIMM_VIT
from mim_jax.models.neck import Last
from mim_jax.models.vit import ViT
from mim_jax.recipe import Recipe
from mim_jax.weights.files import WeightsError
from mim_jax.weights.layout import SAME, Entry, Form, Layout

POSITIONS = 'encoder/pos_embed'


@dataclass(frozen=True)
class Format:
    """A layout, and what concerns the encoder's positions and the names in a file as a whole.

    name: what --layout calls it; generations of one library share it. positions: where the encoder's table f[1,1+N,D] of
    absolute positions is, CLS first; None where there is none. prefix: what may stand before every name of the encoder.
    """

    name: str
    layout: Layout
    positions: Entry | None = None
    prefix: str = ''


def _positions(name: str, form: Form = SAME) -> Entry:
    return Entry(POSITIONS, name, form)


_MAE = (
    Format('mae', MAE, _positions('pos_embed')),
    *(Format('hf', layout, _positions('vit.embeddings.position_embeddings')) for layout in VITMAES),
    Format('mmselfsup', PIXMIM, _positions('backbone.pos_embed', STREAM)),
)
RELEASED = {  # base -> formats that hold more than an encoder; the first is its authors' own
    'mae': _MAE,
    'pixmim': (_MAE[-1], *_MAE[:-1]),
    'simmim': (Format('simmim', SIMMIM),),
    'bootmae': (Format('bootmae', BOOTMAE, _positions('pos_embed')),),
    'conmim': (Format('conmim', CONMIM),),
    'mcmae': (Format('convmae', CONVMAE, _positions('pos_embed')),),
    'supervised': (Format('timm', TIMM_CLASSIFIER, _positions('pos_embed')),),
}
MFF_OF_MAE = Format('mmpretrain', MFF, _positions('backbone.pos_embed', STREAM))
LUT_OF_MAE = Format('lut', LUT, _positions('pos_embed'))
VITS = (
    Format('timm', TIMM_VIT, _positions('pos_embed')),
    Format('hf', VIT_HUB, _positions('embeddings.position_embeddings'), 'vit.'),
    Format('hf', VIT, _positions('embeddings.position_embeddings'), 'vit.'),
)
BEITS = (Format('timm', TIMM_BEIT), Format('hf', BEIT_HUB, prefix='beit.'), Format('hf', BEIT, prefix='beit.'))


def own_format(paths: Iterable[str]) -> Format:
    """Our own names, one to one; a table of positions is an array like any other."""
    return Format('mim_jax', Layout('mim_jax', tuple(Entry(path, path) for path in paths)))


def library_formats(recipe: Recipe) -> tuple[Format, ...]:
    """timm's and transformers' models of the encoder alone. Empty where they have none that computes the same."""
    if not isinstance(recipe.encoder, ViT) or not recipe.encoder.cls:
        return ()
    return BEITS if recipe.encoder.relative_bias else VITS


def classifier_formats(recipe: Recipe) -> tuple[Format, ...]:
    """Of an encoder with its classifier: timm's model; for MCMAE, which timm has not, its authors'."""
    part = find_classifier(recipe)
    plain = [form for form in library_formats(recipe) if form.name == 'timm']
    plain = plain or [form for form in RELEASED.get(recipe.papers[0], ()) if form.layout is CONVMAE]
    return tuple(replace(form, layout=class_layout(form.layout, part)) for form in plain if part)


def find_timm_format(recipe: Recipe, paths: Iterable[str]) -> Format | None:
    """timm's model that holds these arrays: with a classifier where they have one; None where it has none."""
    part, paths = find_classifier(recipe), list(paths)
    if part and f'{part.linear}/kernel' in paths:
        found = classifier_formats(recipe)
    else:
        found = () if ends_without_norm(recipe) else library_formats(recipe)
    return next((form for form in found if form.name == 'timm'), None)


def released_formats(recipe: Recipe) -> tuple[Format, ...]:
    """Those of its base, which lack what papers added, and before them the papers' own; the first is its authors'."""
    own = {'lut': LUT_OF_MAE, 'mff': MFF_OF_MAE} if recipe.papers[0] in ('mae', 'pixmim') else {}
    return (*(own[paper] for paper in recipe.papers if paper in own), *RELEASED.get(recipe.papers[0], ()))


def formats_of(recipe: Recipe, paths: Iterable[str]) -> tuple[Format, ...]:
    """Every format in which weights of this recipe, whose arrays are at `paths`, can be read."""
    finetuned = classifier_formats(recipe) if FINETUNED in recipe.roles() else ()
    return (own_format(paths), *finetuned, *released_formats(recipe), *library_formats(recipe))


def export_format(recipe: Recipe, name: str, part: str, paths: Iterable[str]) -> Format:
    """Where to write a part to. Raises Refused where that library has no such model."""
    if name == 'safetensors':
        return own_format(paths)
    library = 'timm' if name == 'timm' else 'transformers'
    found = [form for form in library_formats(recipe) if form.name == name]
    if not found:
        raise Refused(
            f'The encoder of {recipe.papers[0]} has no model in {library} that computes the same; use --format safetensors.'
        )
    if part != 'full' and ends_without_norm(recipe):
        raise Refused(
            f"The encoder of {recipe.name} has no final norm, whose place the classifier's takes: write both with --format "
            'timm --part full, or the encoder alone with --format safetensors.'
        )
    if part != 'full':
        return found[0]
    finetuned = FINETUNED in recipe.roles()
    whole = [form for form in (classifier_formats if finetuned else released_formats)(recipe) if form.name == name]
    if not whole:
        other = '--format timm' if finetuned else '--part encoder'
        raise Refused(
            f'{library} has no model with the whole of {recipe.name if finetuned else recipe.papers[0]} that is known here; '
            f'use {other}, or --format safetensors.'
        )
    if others := [f'neck/{key}' for key, reader in recipe.neck.items() if not isinstance(reader, Last)]:
        raise Refused(
            f"The model in {library} reads the encoder's last block, in {recipe.name} {', '.join(others)}, which has no "
            'place there; use --part encoder, or --format safetensors.'
        )
    return whole[0]


def place_names(layout: Layout, names: Iterable[str]) -> dict[str, tuple[Entry, int]]:
    """{name: its entry and block number} of those that hold one of our arrays."""
    whole, numbered = {}, []
    for entry in layout.entries:
        for theirs in (entry.theirs,) if isinstance(entry.theirs, str) else entry.theirs:
            if '{i}' in theirs:
                numbered.append((re.compile(re.escape(theirs).replace(r'\{i\}', r'(\d+)')), entry))
            else:
                whole[theirs] = entry
    places = {}
    for name in names:
        if name in whole:
            places[name] = whole[name], 0
            continue
        found = ((pattern.fullmatch(name), entry) for pattern, entry in numbered)
        places.update((name, (entry, int(match[1]))) for match, entry in found if match)
    return places


def find_paths(names: Iterable[str], layout: Layout) -> tuple[str, ...]:
    """Our paths that have at least one array among these names, sorted."""
    places = place_names(layout, names).values()
    return tuple(sorted({entry.ours.replace('{i}', f'{i:02d}') for entry, i in places}))


def recognise(
    state: Mapping[str, np.ndarray], formats: Iterable[Format], wanted: str = 'auto'
) -> tuple[Format, dict[str, Any]]:
    """The format, of those called `wanted` or of all, that has a place for most names; the state with its own names.

    Among equals the one that knows more of the others decides, then the order.

    Raises WeightsError: a format that does not exist for this recipe, or a file that is in none.
    """
    formats = tuple(formats)
    known = ', '.join(dict.fromkeys(form.name for form in formats))
    if wanted != 'auto':
        formats = tuple(form for form in formats if form.name == wanted)
        if not formats:
            raise WeightsError(f"--layout {wanted}: this config's weights can be read as {known}.")
    best: tuple[tuple[int, int], Format | None, dict[str, Any]] = ((0, 0), None, {})
    for form in formats:
        named = {name.removeprefix(form.prefix): array for name, array in state.items()}
        constants = {*form.layout.constants, *((form.positions.theirs,) if form.positions else ())}
        places = place_names(form.layout, named)
        ignored = sum(any(re.fullmatch(pattern, name) for pattern in form.layout.ignored) for name in named)
        score = len(places) + len(constants & named.keys()), ignored
        if places and score > best[0]:
            best = score, form, named
    if best[1] is None:
        some = ', '.join(sorted(state)[:4])
        raise WeightsError(f'The names in the file ({some}, ...) are of none of the layouts of this config: {known}.')
    return best[1], best[2]
