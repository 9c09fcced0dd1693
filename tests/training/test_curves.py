"""What the curves' axes hold, and that a picture appears whatever was logged."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mim_jax.training import curves


def make_events():
    events = [{'step': 0, 'untrained/knn': 20.0}]
    for step in range(10, 1001, 10):
        loss = 1.0 / (1 + step / 100)
        event = {
            'step': step,
            'loss/total': loss,
            'loss/pixels': 0.7 * loss,
            'loss/mimic': 0.3 * loss,
            'lr': step * 1e-6,
        }
        events.append(event)
        if step % 250 == 0:
            events.append({'step': step, 'probe/knn': 20 + step / 50, 'probe/ridge': 30 + step / 50})
    return events


def lines_of(draw, events):
    axes = Figure().subplots()
    draw(axes, events)
    return {line.get_label(): line for line in axes.lines}


def test_losses_show_the_total_and_every_term():
    lines = lines_of(curves.draw_losses, make_events())
    assert set(lines) == {'total', 'pixels', 'mimic'}
    assert lines['total'].get_xdata()[0] == 10
    np.testing.assert_allclose(lines['mimic'].get_ydata(), 0.3 * np.asarray(lines['total'].get_ydata()))


def test_a_single_term_is_the_total_and_drawn_once():
    events = [{'step': step, 'loss/total': 1.0, 'loss/pixels': 1.0} for step in (1, 2)]
    assert set(lines_of(curves.draw_losses, events)) == {'total'}


def test_non_finite_strings_are_gaps():
    events = [{'step': 1, 'loss/total': 0.5}, {'step': 2, 'loss/total': 'nan'}, {'step': 3, 'loss/total': 'inf'}]
    values = lines_of(curves.draw_losses, events)['total'].get_ydata()
    np.testing.assert_array_equal(np.isfinite(values), [True, False, False])


def test_probes_have_the_untrained_value_dashed_in_their_colour():
    lines = lines_of(curves.draw_probes, make_events())
    assert set(lines) == {'knn', 'knn, untrained', 'ridge'}
    dashed = lines['knn, untrained']
    assert dashed.get_linestyle() == '--'
    assert set(dashed.get_ydata()) == {20.0}
    assert dashed.get_color() == lines['knn'].get_color()


@pytest.mark.parametrize('keys', [{'loss/total', 'loss/pixels', 'loss/mimic', 'lr', 'probe/knn'}, {'lr'}, set()])
def test_a_picture_appears_and_absent_panels_take_no_room(tmp_path, keys):
    events = [{key: value for key, value in event.items() if key == 'step' or key in keys} for event in make_events()]
    curves.draw_curves(events, tmp_path / 'curves.png', title='digits')
    with Image.open(tmp_path / 'curves.png') as picture:
        assert picture.width == 960
        assert (picture.height > 600) == ('loss/total' in keys)
        assert len(picture.convert('L').getcolors(256)) > 2  # something is drawn
