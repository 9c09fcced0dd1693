"""A study's rows -> a table, what became of each claim, and a picture. Intervals are Student's t, 95 %, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from mim_jax.evals.rauc import rauc
from mim_jax.paths import replace_file
from mim_jax.study.plan import RAUC, Claim, Study
from mim_jax.study.rows import Row
from mim_jax.training.curves import save_picture

CONFIDENCE = 0.95
FEWEST = 3  # seeds, below which nothing is said about a claim
BySeed = dict[int, float]


def values_of(rows: Sequence[Row], arm: str, metric: str) -> BySeed:
    """{seed: value}."""
    found = {row['seed']: row['metrics'].get(metric) for row in rows if row['arm'] == arm}
    return {seed: float(value) for seed, value in sorted(found.items()) if value is not None}


def half_width(values: Sequence[float]) -> float:
    """Of the interval of the mean; infinite for a single value."""
    if len(values) < 2:
        return float('inf')
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(quantile * stdev(values) / len(values) ** 0.5)


def differences(rows: Sequence[Row], claim: Claim) -> tuple[BySeed, str]:
    """({seed: better minus than}, what stood for `than`), of the seeds that all its arms have."""
    if claim.metric.startswith(RAUC):
        key = claim.metric.removeprefix(RAUC)
        curves = [
            {row['seed']: np.transpose(row['curves'][key]) for row in rows if row['arm'] == arm} for arm in claim.arms
        ]
        ours, baseline = curves
        return {seed: _area_ratio(baseline[seed], ours[seed]) - 1 for seed in sorted({*ours} & {*baseline})}, '1'
    better = values_of(rows, claim.better, claim.metric)
    if isinstance(claim.than, int | float):
        return {seed: value - claim.than for seed, value in better.items()}, f'{claim.than:g}'
    others = {arm: values_of(rows, arm, claim.metric) for arm in claim.arms[1:]}
    shared = sorted(set(better).intersection(*others.values()))
    if not shared:
        return {}, ' or '.join(others)
    best = max(others, key=lambda arm: mean(others[arm][seed] for seed in shared))
    return {seed: better[seed] - others[best][seed] for seed in shared}, best


def _area_ratio(baseline: np.ndarray, ours: np.ndarray) -> float:
    """RAUC over all checkpoints, above what the baseline's first one reached. Rows: epochs, scores."""
    start, stop = baseline[0][0], baseline[0][-1]
    return rauc(*baseline, *ours, start, stop, reference='first')


def judge(values: Sequence[float]) -> str:
    """What the interval of the differences says."""
    if len(values) < FEWEST:
        return f'open: {len(values)} of {FEWEST} seeds'
    centre, half = mean(values), half_width(values)
    return 'confirmed' if centre - half > 0 else 'refuted' if centre + half < 0 else 'not confirmed'


def write_interval(values: Sequence[float], digits: int = 2) -> str:
    """'41.20 ± 0.52', the half width of the interval after the mean."""
    if not values:
        return '–'
    half = half_width(values)
    return f'{mean(values):.{digits}f}' + (f' ± {half:.{digits}f}' if np.isfinite(half) else '')


def write_report(study: Study, rows: Sequence[Row], picture: str = '') -> str:
    """The whole page as Markdown."""
    made = sorted({f'jax {row["versions"]["jax"]}, {row["devices"]["kind"]}' for row in rows})
    commits = sorted({str(row['commit'])[:8] for row in rows})
    lines = [f'# Study {study.name}', '', study.about, '']
    told = f'Rows: {len(rows)}. Made on {"; ".join(made)}; code of {", ".join(commits)}.'
    lines += [f'{told} ± is half of the 95 % interval of the mean over seeds (Student).', '']
    if picture:
        lines += [f'![Every seed, and the mean]({picture})', '']
    shown = study.shown
    lines += [f'| arm | seeds | {" | ".join(shown)} |', '|---' * (2 + len(shown)) + '|']
    for arm in study.arms:
        found = [[*values_of(rows, arm.name, metric).values()] for metric in shown]
        seeds = len({row['seed'] for row in rows if row['arm'] == arm.name})
        lines.append(f'| {arm.name} | {seeds} | {" | ".join(write_interval(values) for values in found)} |')
    lines += ['', '## Claims', '']
    lines += [
        'Fixed before the first run: confirmed where the interval of the paired differences is above zero, refuted where '
        f'it is below, open with fewer than {FEWEST} seeds. No correction for their number is made: of {len(study.claims)} '
        'intervals at 95 % about one in twenty misses the truth.',
        '',
        '| claim | source | metric | difference | seeds | outcome at this scale | expected |',
        '|---' * 7 + '|',
    ]
    for claim in study.claims:
        by_seed, than = differences(rows, claim)
        values, text = [*by_seed.values()], f'{claim.better} above {than}: {claim.text}'
        cells = [text, claim.source, claim.metric, write_interval(values, 3), str(len(values)), judge(values)]
        lines.append(f'| {" | ".join([*cells, claim.expected])} |')
    return '\n'.join(lines) + '\n'


def draw_report(study: Study, rows: Sequence[Row], path: Path) -> None:
    """A PNG: for every metric shown a dot for each seed, and the mean with its interval where there are two."""
    arms = [arm.name for arm in study.arms if any(row['arm'] == arm.name for row in rows)]
    height = 1.2 + 0.32 * max(1, len(arms))
    figure = Figure(figsize=(3.4 * len(study.shown) + 1.6, height), layout='constrained')
    panels = figure.subplots(1, len(study.shown), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, study.shown, strict=True):
        draw_metric(axes, rows, arms, metric)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()
    save_picture(figure, path)


def draw_metric(axes: Axes, rows: Sequence[Row], arms: Sequence[str], metric: str) -> None:
    """One panel."""
    for place, arm in enumerate(arms):
        values = [*values_of(rows, arm, metric).values()]
        axes.plot(values, [place] * len(values), 'o', color='tab:gray', markersize=3)
        half = half_width(values)
        if np.isfinite(half):
            axes.errorbar(mean(values), place, xerr=half, fmt='D', color='tab:blue', markersize=4, capsize=3)
    axes.set_xlabel(metric)
    axes.grid(alpha=0.3)


def save_report(study: Study, rows: Sequence[Row], out: Path) -> str:
    """`out` (Markdown) and a picture of the same name beside it. Returns the text."""
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = out.with_suffix('.png')
    draw_report(study, rows, picture)
    text = write_report(study, rows, picture.name)
    replace_file(out, text)
    return text
