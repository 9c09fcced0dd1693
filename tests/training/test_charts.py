"""What the charts' axes hold, and that a run of MFF and MTO logs and draws every layer."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from program_runs import arguments, call

from mim_jax.recipe import Chart
from mim_jax.training import charts
from mim_jax.training.journal import Journal, read_events

WEIGHTS = Chart('watch/neck/last/weight_', 'weight')
LEVELS = Chart('watch/mto/pixels/heterogeneity_', 'H', 'layers')


def make_events(steps, layers=(0, 2, 3), prefix=WEIGHTS.prefix):
    """Values of every layer, which say their layer and step, between events of other things."""
    events = []
    for step in steps:
        events.append({'step': step, **{f'{prefix}{layer:02d}': layer + step / 1000 for layer in layers}})
        events.append({'step': step, 'probe/knn': 50.0, f'{prefix}mean': 7.0})
    return events


def lines_of(draw, events, chart):
    axes = Figure().subplots()
    draw(axes, events, chart)
    return {line.get_label(): line for line in axes.lines}


def test_over_steps_a_line_is_a_layer():
    lines = lines_of(charts.draw_over_steps, make_events([10, 20, 25]), WEIGHTS)
    assert list(lines) == ['layer 0', 'layer 2', 'layer 3']
    for layer in (0, 2, 3):
        np.testing.assert_array_equal(lines[f'layer {layer}'].get_xdata(), [10, 20, 25])
        np.testing.assert_allclose(lines[f'layer {layer}'].get_ydata(), layer + np.array([0.01, 0.02, 0.025]))
    darkness = [sum(line.get_color()[:3]) for line in lines.values()]
    assert darkness == sorted(darkness)


def test_layers_are_in_the_order_of_depth_whenever_they_were_first_logged():
    events = [*make_events([10], layers=(9,)), *make_events([20], layers=(10, 2))]
    assert list(lines_of(charts.draw_over_steps, events, WEIGHTS)) == ['layer 2', 'layer 9', 'layer 10']


def test_only_shares_of_one_are_compared_with_equality():
    shares = [
        {'step': step, **{f'{WEIGHTS.prefix}{i:02d}': 0.25 + 0.01 * (i - 1.5) for i in range(4)}} for step in (1, 2)
    ]
    dashed = lines_of(charts.draw_over_steps, shares, WEIGHTS)['equal']
    assert set(dashed.get_ydata()) == {0.25}
    assert dashed.get_linestyle() == '--'
    assert 'equal' not in lines_of(charts.draw_over_steps, make_events([1, 2]), WEIGHTS)


def test_over_layers_a_line_is_a_moment():
    lines = lines_of(charts.draw_over_layers, make_events([10, 500, 990], prefix=LEVELS.prefix), LEVELS)
    assert list(lines) == ['step 10', 'step 500', 'step 990']
    for step in (10, 500, 990):
        np.testing.assert_array_equal(lines[f'step {step}'].get_xdata(), [0, 2, 3])
        np.testing.assert_allclose(lines[f'step {step}'].get_ydata(), np.array([0, 2, 3]) + step / 1000)


@pytest.mark.parametrize(
    ('steps', 'chosen'),
    [
        ([7], [7]),
        ([5, 10], [5, 10]),
        (range(10, 81, 10), list(range(10, 81, 10))),
        (range(0, 701), list(range(0, 701, 100))),
        (range(1, 1000), [1, 144, 286, 429, 571, 714, 856, 999]),
        (
            [*range(1, 101), 701],
            [1, 100, 701],
        ),  # logged often at first: the spread is over the run, not over the events
    ],
)
def test_moments_are_spread_evenly_from_the_first_to_the_last(steps, chosen):
    assert charts.choose_moments(list(steps)) == chosen


def test_values_that_are_missing_or_not_finite_are_gaps():
    events = make_events([1, 2, 3], layers=(0, 1), prefix=LEVELS.prefix)
    events[0][f'{LEVELS.prefix}01'] = 'nan'
    del events[2][f'{LEVELS.prefix}00']
    lines = lines_of(charts.draw_over_layers, events, LEVELS)
    finite = [np.isfinite(line.get_ydata()).tolist() for line in lines.values()]
    assert finite == [[True, False], [False, True], [True, True]]
    over_steps = lines_of(charts.draw_over_steps, events, LEVELS)
    np.testing.assert_array_equal(over_steps['layer 0'].get_xdata(), [1, 3])
    assert np.isfinite(over_steps['layer 1'].get_ydata()).tolist() == [False, True, True]


def test_a_resumed_run_shows_what_was_done_again(tmp_path):
    for resume, first in ((None, 1.0), (4, 2.0)):
        journal = Journal(tmp_path, resume)
        for step in range((resume or 0) + 1, 7):
            journal.write(step, {f'{LEVELS.prefix}{layer:02d}': first + layer for layer in (0, 1)})
        journal.close()
    events = read_events(journal.path)
    line = lines_of(charts.draw_over_steps, events, LEVELS)['layer 1']
    assert list(line.get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert list(line.get_ydata()) == [2.0, 2.0, 2.0, 2.0, 3.0, 3.0]
    assert len(lines_of(charts.draw_over_layers, events, LEVELS)) == 6


@pytest.mark.parametrize('steps', [[5], [5, 10]])
def test_a_file_for_each_chart_of_which_something_was_logged(tmp_path, steps):
    wanted = {
        'weights': WEIGHTS,
        'nothing': Chart('watch/other_', 'other'),
        'over_layers': Chart('watch/n', 'n', 'layers'),
    }
    events = [*make_events(steps), *make_events(steps, range(24), 'watch/n')]
    charts.draw_charts(events, wanted, lambda name: tmp_path / f'{name}.png', 'mae+mff')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['over_layers.png', 'weights.png']
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert picture.size == (960, 540)
            assert len(picture.convert('RGB').getcolors(1 << 20)) > 10  # something is drawn


def test_a_run_logs_every_layer_at_every_log_step_and_draws_it(tmp_path, capsys):
    settings = {'papers': 'mff,mto', 'encoder.depth': 3, 'steps': 5, 'log.every_steps': 2}
    assert call(capsys, arguments(tmp_path, settings)).status == 0
    events = read_events(tmp_path / 'metrics.jsonl')
    assert [event['step'] for event in events] == [2, 4, 5]
    fused = {f'watch/neck/last/{name}_{layer:02d}' for name in ('weight', 'share') for layer in (0, 1, 2)}
    heights = {f'watch/mto/pixels/heterogeneity_{layer:02d}' for layer in (0, 1)}  # of a decoder of one block
    for event in events:
        assert fused | heights <= event.keys()
        for name in ('weight', 'share'):
            assert sum(event[f'watch/neck/last/{name}_{layer:02d}'] for layer in (0, 1, 2)) == pytest.approx(1.0)
        assert 0.0 <= event['watch/mto/pixels/heterogeneity_00'] <= np.log(4) + 1e-6  # of 4 visible patches
    drawn = {path.stem for path in (tmp_path / 'pictures').glob('*.png')}
    assert drawn == {'curves', 'fusion_weights', 'fusion_shares', 'heterogeneity_pixels'}
    lines = lines_of(charts.draw_over_layers, events, LEVELS)
    for event in events:
        found = lines[f'step {event["step"]}'].get_ydata()
        assert list(found) == [event[key] for key in sorted(heights)]
