"""The charts that a recipe asks for: logged values of every layer, over the steps of a run or over the layers."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mim_jax.recipe import Chart
from mim_jax.training.curves import Event, list_keys, plot_series, save_picture, select_series

MOMENTS = 8  # lines of a chart over layers, at most: more cannot be told apart


def find_layers(events: Sequence[Event], prefix: str) -> dict[int, str]:
    """{layer: key} of every logged key that is `prefix` and a layer's two digits, shallow to deep."""
    found = {key: re.fullmatch(r'\d\d', key.removeprefix(prefix)) for key in list_keys(events, prefix)}
    return dict(sorted((int(digits[0]), key) for key, digits in found.items() if digits))


def choose_moments(steps: Sequence[int], count: int = MOMENTS) -> list[int]:
    """At most `count` of the rising `steps`, the first and the last and those nearest to an even spread between them."""
    wanted = np.linspace(steps[0], steps[-1], count)
    return sorted({min(steps, key=lambda step: abs(step - moment)) for moment in wanted})


def spread_colours(count: int) -> np.ndarray:
    """f[count,4], from dark to light; the lightest end of the map is left out, as it cannot be seen on white."""
    return colormaps['plasma'](np.linspace(0.0, 0.9, count))


def draw_over_steps(axes: Axes, events: Sequence[Event], chart: Chart) -> None:
    """A line per layer against optimizer steps; dashed, where the layers' values sum to 1, what equality would be."""
    layers = find_layers(events, chart.prefix)
    for (layer, key), colour in zip(layers.items(), spread_colours(len(layers)), strict=True):
        plot_series(axes, events, key, color=colour, linewidth=1.3, label=f'layer {layer}')
    newest = [select_series(events, key)[1][-1] for key in layers.values()]
    if len(layers) > 1 and abs(sum(newest) - 1.0) < 1e-3:
        axes.axhline(1.0 / len(layers), color='gray', linestyle='--', linewidth=0.8, label='equal')
    axes.set_xlabel('optimizer step')


def draw_over_layers(axes: Axes, events: Sequence[Event], chart: Chart) -> None:
    """A line per chosen moment of the run against layers."""
    layers = find_layers(events, chart.prefix)
    values = {key: dict(zip(*select_series(events, key), strict=True)) for key in layers.values()}
    moments = choose_moments(sorted(set().union(*values.values())))
    for moment, colour in zip(moments, spread_colours(len(moments)), strict=True):
        heights = [values[key].get(moment, np.nan) for key in layers.values()]
        axes.plot(list(layers), heights, color=colour, marker='o', markersize=4, linewidth=1.3, label=f'step {moment}')
    axes.set_xlabel('layer')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_chart(events: Sequence[Event], chart: Chart, path: str | Path, title: str) -> None:
    """Write a PNG of one chart of which something was logged."""
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    axes = figure.subplots()
    (draw_over_steps if chart.over == 'steps' else draw_over_layers)(axes, events, chart)
    axes.set_ylabel(chart.label)
    axes.grid(alpha=0.3)
    figure.legend(loc='outside right upper', fontsize=8, ncols=1 + (len(axes.lines) > 20))
    figure.suptitle(title)
    save_picture(figure, path)


def draw_charts(
    events: Sequence[Event], charts: Mapping[str, Chart], place: Callable[[str], Any], title: str = ''
) -> None:
    """Write place(name) for each of a recipe's charts; a chart of which nothing was logged has no file."""
    for name, chart in charts.items():
        if find_layers(events, chart.prefix):
            draw_chart(events, chart, place(name), title)
