"""Test plots of logged metrics: what is drawn, and in which format it is written."""

import numpy as np
import pytest

from support import figures
from support.figures import SUCCESS_LIMITS, Curves, Panel, plot_bands, plot_budgets, plot_curves

SUCCESS = 'evaluation/overall_success'


@pytest.fixture
def figure(monkeypatch):
    """Return a function that returns the last figure passed to `save`."""
    saved = []
    monkeypatch.setattr(figures, 'save', lambda figure, path: saved.append(figure))
    return lambda: saved[-1]


def rows():
    """Return 20 rows of a loss; every fifth has an evaluation as well."""
    evaluation = {SUCCESS: 0.5, 'evaluation/task1_success': 1.0, 'evaluation/task2_success': 0.0}
    return [{'step': step, 'training/loss': 1.0 / (1 + step)} | (evaluation if step % 5 == 0 else {})
            for step in range(20)]


def labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_plot_curves_has_markers_at_evaluations_only(figure):
    panels = [Panel('success', {'mean': SUCCESS}), Panel('loss', {'train': 'training/loss'})]
    plot_curves([Curves(rows(), 'steps')], panels, 'x.png', 'title')
    success, loss = (axis.lines[0] for axis in figure().axes[:2])
    assert success.get_marker() == 'o' and len(success.get_xdata()) == 4
    assert loss.get_marker() == '' and len(loss.get_xdata()) == 20


def test_plot_curves_legend_has_only_columns_with_data(figure):
    panel = Panel('loss', {'train': 'training/loss', 'validation': 'validation/loss'})
    plot_curves([Curves(rows(), 'steps')], [panel], 'x.png', 'title')
    assert labels(figure().axes[0]) == ['train']


def test_plot_curves_leaves_out_optional_panels_and_names_empty_ones(figure):
    panels = [Panel('absent', {'mean': 'absent'}, optional=True), Panel('empty', {'mean': 'absent'})]
    plot_curves([Curves(rows(), 'steps')], panels, 'x.png', 'title')
    axis = figure().axes[0]
    assert axis.get_title() == 'empty' and not axis.lines and axis.texts[0].get_text() == 'no data yet'
    assert not any(other.get_visible() for other in figure().axes[1:])


def test_plot_curves_ends_the_success_axis_below_the_legend(figure):
    columns = {'mean': SUCCESS, 'task 1': 'evaluation/task1_success', 'task 2': 'evaluation/task2_success'}
    panel = Panel('success', columns, limits=SUCCESS_LIMITS)
    plot_curves([Curves(rows(), 'steps')], [panel], 'x.png', 'title')
    axis = figure().axes[0]
    assert axis.spines['left'].get_bounds() == SUCCESS_LIMITS
    assert max(axis.get_yticks()) <= 1.02 < axis.get_ylim()[1], 'the legend is above the axis'


def test_plot_bands_marks_the_mean_at_steps_that_all_runs_share(figure):
    runs = [((0, 10, 20), (0.0, 0.4, 1.0)), ((0, 12, 20), (0.0, 0.6, 1.0))]
    plot_bands({'a': runs}, 'x.png', 'success, %', 'title')
    axis = figure().axes[0]
    marked, = (line for line in axis.lines if line.get_marker() == 'o' and line.get_linestyle() == 'None')
    assert [*marked.get_xdata()] == [0, 20] and [*marked.get_ydata()] == pytest.approx([0, 100])
    assert axis.get_ylim() == pytest.approx((-2, 102))


def test_plot_bands_has_no_marker_on_the_mean_without_shared_steps(figure):
    runs = [((0, 10, 20), (0.0, 0.4, 1.0)), ((1, 12, 21), (0.0, 0.6, 1.0))]
    plot_bands({'a': runs, 'b': [((0, 5), (0.0, 1.0))]}, 'x.png', 'success, %', 'title')
    markers = [handle.get_marker() for handle in figure().legends[0].get_lines()]
    assert markers == ['', 's']


@pytest.mark.parametrize(('suffix', 'begin'), [('png', b'\x89PNG'), ('pdf', b'%PDF'), ('svg', b'<?xml')])
def test_save_writes_the_format_of_the_suffix(tmp_path, suffix, begin):
    path = tmp_path / f'x.{suffix}'
    plot_budgets({'a': {100: [0.5], 1000: [1.0]}}, path, 'steps', 'success, %', 'title')
    assert path.read_bytes().startswith(begin)


def test_save_refuses_an_unknown_format(tmp_path):
    with pytest.raises(ValueError, match=r'x.abc: unknown figure format .abc; use .png'):
        plot_bands({'a': [(np.arange(3), np.ones(3))]}, tmp_path / 'x.abc', 'success, %', 'title')
    assert not list(tmp_path.iterdir())
