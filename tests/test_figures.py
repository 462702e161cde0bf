"""Test plots of logged metrics: what is drawn, and in which format it is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support import figures
from support.figures import (
    LOWER,
    SUCCESS_LIMITS,
    Curves,
    Panel,
    optional_picture,
    output_path,
    plot_bands,
    plot_bars,
    plot_before_after,
    plot_budgets,
    plot_curves,
)
from support.runs import Stopped

ROOT = Path(__file__).resolve().parent.parent

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
    assert [text.get_text() for text in figure().legends[0].get_texts()] == ['train']


def test_plot_curves_names_chance_and_the_good_way(figure):
    panel = Panel('loss', {'train': 'training/loss'}, better=LOWER, reference=('chance', 2.0))
    plot_curves([Curves(rows(), 'steps')], [panel, Panel('reward', {'mean': SUCCESS})], 'x.png', 'title')
    loss, reward = figure().axes[:2]
    assert (loss.get_title(), reward.get_title()) == ('loss ↓', 'reward')
    assert [text.get_text() for text in loss.texts] == ['chance: 2'] and not reward.texts
    assert loss.get_ylim()[1] > 2
    assert figure().get_suptitle() == 'title   (↓ lower is better)'


def test_plot_curves_draws_over_another_column(figure):
    logged = [{'step': 10 * k, SUCCESS: 0.1 * k, 'gradient_steps': 7 * k} for k in range(5)]
    panel = Panel('success', {'mean': SUCCESS}, x='gradient_steps', xlabel='gradient steps')
    plot_curves([Curves(logged, 'environment steps')], [panel], 'x.png', 'title')
    axis = figure().axes[0]
    assert [*axis.lines[0].get_xdata()] == [0, 7, 14, 21, 28] and axis.get_xlabel() == 'gradient steps'


@pytest.mark.parametrize(('limits', 'values', 'least', 'most'), [
    ((0, None), (0.29, 0.3), -0.02, 0.34),
    (SUCCESS_LIMITS, (0.4, 0.5), -0.02, 1.02),
    ((0, 1.02), (-0.1, 0.9), -0.2, 1.2),
])
def test_limits_of_a_panel_show_all_values_and_no_more_than_needed(figure, limits, values, least, most):
    logged = [{'step': step, 'collect/x': value} for step, value in enumerate(values)]
    panel = Panel('x', {'mean': 'collect/x'}, limits=limits)
    plot_curves([Curves(logged, 'steps')], [panel], 'x.png', 'title')
    low, high = figure().axes[0].get_ylim()
    assert least <= low <= min(values) and max(values) < high <= most


def test_plot_curves_leaves_out_optional_panels_of_a_single_row(figure):
    panels = [Panel('always', {'mean': 'x'}), Panel('optional', {'mean': 'x'}, optional=True)]
    for logged, titles in ([{'step': 1, 'x': 1.0}], ['always']), ([{'step': 1}, {'step': 2, 'x': 1.0}],
                                                                 ['always', 'optional']):
        plot_curves([Curves(logged, 'steps')], panels, 'x.png', 'title')
        assert [axis.get_title() for axis in figure().axes if axis.get_visible()] == titles


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


def test_plot_bars_has_a_bar_and_a_dot_per_run_for_each_value(figure):
    groups = {'a': {0: [1.0], 50: [0.5, 0.7]}, 'b': {0: [0.2]}}
    plot_bars(groups, 'x.png', 'dropped, %', 'success, %', 'title')
    axis = figure().axes[0]
    assert [round(bar.get_height()) for bar in axis.patches] == [100, 60, 20]
    assert [text.get_text() for text in axis.texts] == ['100', '60', '20']
    assert [text.get_text() for text in figure().legends[0].get_texts()] == ['a', 'b', 'one run']


def test_plot_before_after_has_a_row_per_case(figure):
    sections = {'robots': {'arm': ([0.1], [0.8, 1.0]), 'car': ([], [0.5])}, 'units': {'mm': ([0.2], [])}}
    plot_before_after(sections, 'x.png', 'title')
    robots, units = figure().axes
    assert [label.get_text() for label in robots.get_yticklabels()] == ['arm', 'car']
    assert [text.get_text() for text in robots.texts] == ['90', '50'] and not units.texts
    assert [text.get_text() for text in figure().legends[0].get_texts()] == ['before', 'after', 'one run']


@pytest.mark.parametrize(('path', 'format', 'expected'), [
    ('a/runs.png', None, 'a/runs.png'), ('a/runs.png', 'pdf', 'a/runs.pdf'), ('k.b', 'svg', 'k.svg')])
def test_format_replaces_the_suffix_of_an_output(path, format, expected):
    assert output_path(path, format) == Path(expected)


@pytest.mark.parametrize(('suffix', 'begin'), [('png', b'\x89PNG'), ('pdf', b'%PDF'), ('svg', b'<?xml')])
def test_save_writes_the_format_of_the_suffix(tmp_path, suffix, begin):
    path = tmp_path / f'x.{suffix}'
    plot_budgets({'a': {100: [0.5], 1000: [1.0]}}, path, 'steps', 'success, %', 'title')
    assert path.read_bytes().startswith(begin)


def test_save_refuses_an_unknown_format(tmp_path):
    with pytest.raises(ValueError, match=r'x.abc: unknown figure format .abc; use .png'):
        plot_bands({'a': [(np.arange(3), np.ones(3))]}, tmp_path / 'x.abc', 'success, %', 'title')
    assert not list(tmp_path.iterdir())


def test_settings_of_the_user_do_not_matter(tmp_path):
    """Jupyter names a backend that this environment lacks; a matplotlibrc wants LaTeX. Without torch, for speed."""
    (tmp_path / 'matplotlibrc').write_text('text.usetex: True\nsavefig.format: pdf\n')
    code = f"""
import os, sys, types
sys.modules['torch'] = types.ModuleType('torch')
sys.path.insert(0, {str(ROOT)!r})
from support.figures import plot_budgets
plot_budgets({{'a': {{1: [0.5], 10: [1.0]}}}}, 'x.png', 'steps', 'success, %', 'title')
assert os.environ['MPLBACKEND'] == 'module://nowhere.backend', 'programs that this one starts keep it'
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {'MPLBACKEND': 'module://nowhere.backend'})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'x.png').read_bytes().startswith(b'\x89PNG')


def test_a_figure_that_fails_stays_open_nowhere(tmp_path):
    """matplotlib warns of more than 20 open figures."""
    import matplotlib.pyplot as plt
    path = tmp_path / 'x.png'
    path.mkdir()
    with pytest.raises(OSError, match=r'x\.png cannot be written'):
        plot_budgets({'a': {1: [0.5]}}, path, 'steps', 'success, %', 'title')
    assert plt.get_fignums() == []


def test_an_optional_picture_that_fails_is_one_line(tmp_path, capsys):
    path = tmp_path / 'x.png'
    path.mkdir()
    with optional_picture(path):
        plot_budgets({'a': {1: [0.5]}}, path, 'steps', 'success, %', 'title')
    with optional_picture('videos'):
        raise RuntimeError('latex was not found\nmany lines')
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f'warning: {path} was not made (') and 'cannot be written' in first
    assert second == ('warning: videos was not made (RuntimeError: latex was not found); '
                      'the results are complete without it')

    with pytest.raises(Stopped), optional_picture('x.png'):
        raise Stopped


def test_no_module_uses_global_figures():
    """pyplot keeps figures until they are closed, and takes its backend from the user."""
    folders = ('.', 'environments', 'figures', 'support', 'scripts', 'scripts/*')
    sources = {path: path.read_text(encoding='utf-8') for folder in folders for path in ROOT.glob(f'{folder}/*.py')}
    assert not [path.name for path, source in sources.items() if re.search(r'\bpyplot\b', source)]
