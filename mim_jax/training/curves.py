"""The run's curves as one picture: loss and its terms, learning rate, probes beside the untrained encoder's."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # Figure without pyplot: the Agg canvas, no display and no global state

from mim_jax.paths import replace_file

Event = dict[str, Any]


def save_picture(figure: Figure, path: str | Path) -> None:
    """Write a PNG, whole or not at all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format='png', dpi=120)
    replace_file(path, drawn.getvalue())


def select_series(events: Sequence[Event], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of `key`; the journal's 'nan' and 'inf' become floats, which matplotlib leaves out as gaps."""
    found = [(event['step'], float(event[key])) for event in events if key in event]
    return [step for step, _ in found], [value for _, value in found]


def list_keys(events: Sequence[Event], prefix: str) -> list[str]:
    """Every key that starts with `prefix`, in order of first appearance."""
    return list(dict.fromkeys(key for event in events for key in event if key.startswith(prefix)))


def plot_series(axes: Axes, events: Sequence[Event], key: str, **style: Any) -> Any:
    """One line; a series too short to show as a line gets points."""
    steps, values = select_series(events, key)
    (line,) = axes.plot(steps, values, marker='o' if len(steps) < 30 else None, markersize=3, **style)
    return line


def draw_losses(axes: Axes, events: Sequence[Event]) -> None:
    """The total in black; its terms, when there is more than one, in colours."""
    terms = [key for key in list_keys(events, 'loss/') if key != 'loss/total']
    plot_series(axes, events, 'loss/total', color='black', linewidth=1.5, label='total')
    if len(terms) > 1:
        for key in terms:
            plot_series(axes, events, key, linewidth=1.0, label=key.removeprefix('loss/'))
        axes.legend(fontsize=8)
    axes.set_ylabel('loss')


def draw_learning_rate(axes: Axes, events: Sequence[Event]) -> None:
    plot_series(axes, events, 'lr', color='tab:gray', linewidth=1.2)
    axes.set_ylabel('learning rate')
    axes.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    axes.set_ylim(bottom=0)


def draw_probes(axes: Axes, events: Sequence[Event]) -> None:
    """Each probe solid, the untrained encoder's value of the same probe dashed in the same colour."""
    for key in list_keys(events, 'probe/'):
        name = key.removeprefix('probe/')
        line = plot_series(axes, events, key, label=name)
        _, untrained = select_series(events, f'untrained/{name}')
        if untrained:
            axes.axhline(untrained[-1], color=line.get_color(), linestyle='--', linewidth=1, label=f'{name}, untrained')
    axes.set_ylabel('accuracy (%)')
    axes.legend(fontsize=8)


def draw_curves(events: Sequence[Event], path: str | Path, title: str = 'Training curves') -> None:
    """Write a PNG of the journal's events (`journal.read_events`). Panels with nothing to show are left out."""
    panels = [
        ('loss/total', draw_losses, 3.0),
        ('lr', draw_learning_rate, 1.0),
        ('probe/', draw_probes, 2.0),
    ]
    panels = [(draw, height) for prefix, draw, height in panels if list_keys(events, prefix)]
    heights = [height for _, height in panels] or [1.0]
    figure = Figure(figsize=(8, 1.2 + 1.3 * sum(heights)), layout='constrained')
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (draw, _) in zip(rows, panels, strict=False):
        draw(axes, events)
        axes.grid(alpha=0.3)
    if not panels:
        rows[0].text(0.5, 0.5, 'nothing was logged yet', ha='center', transform=rows[0].transAxes)
    rows[-1].set_xlabel('optimizer step')
    figure.suptitle(title)
    save_picture(figure, path)
