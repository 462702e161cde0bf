"""Pictures of logged numbers, by matplotlib without a display; colours that all pictures share."""

import dataclasses
import gc
import itertools

import numpy as np

from support.files import write_atomic
from support.stats import bootstrap_interval, on_common_steps

# Okabe and Ito's colours, which the colour-blind can tell apart
TASK_COLORS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9')
GOOD = '#009E73'
FAILURE = '#D55E00'
INK = '#222222'
MARKERS = 'os^Dvp'
LINE_COLORS = ('#0072B2', '#D55E00', '#009E73', '#E69F00', '#CC79A7', '#56B4E9')


def pyplot():
    """matplotlib.pyplot, imported late (it takes half a second) and drawing into files only."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    return plt


def save(figure, path, dpi=150):
    """Write a figure as PNG, in one piece, and free it."""
    write_atomic(path, lambda file: figure.savefig(file, dpi=dpi, format='png'))
    pyplot().close(figure)
    gc.collect()  # a figure is full of cycles: the rare automatic collection lets a long run grow by 8 MB per picture


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot among many: columns of a CSV by label. An optional one is left out where it would show nothing: fewer
    than two points. `limits`: least and largest y, where they are known."""

    title: str
    columns: dict
    log_scale: bool = False
    optional: bool = False
    limits: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Curves:
    """Logged rows (dicts of numbers) and what their 'step' counts."""

    rows: list
    xlabel: str

    def have(self, panel, points=1):
        """Is there a column of a `Panel` with so many points?"""
        return any(sum(column in row for row in self.rows) >= points for column in panel.columns.values())


def plot_curves(curves, panels, path, title):
    """Draw one plot for each `Panel`, from the first of some `Curves` (a list) that has its columns."""
    from matplotlib.ticker import MaxNLocator

    colors = {'train': '#0072B2', 'validation': '#D55E00', 'mean': INK}
    colors |= {f'task {k}': color for k, color in enumerate(TASK_COLORS, 1)}
    others = TASK_COLORS[1:]
    many = {'ncols': 3, 'loc': 'upper center', 'handlelength': 1.2, 'columnspacing': 1.0}
    sources = []
    for panel in panels:
        source = next((some for some in curves if some.have(panel)), curves[-1])
        if not panel.optional or source.have(panel, points=2):
            sources.append((panel, source))

    n_columns = 4
    n_rows = -(-len(sources) // n_columns)
    figure, axes = pyplot().subplots(n_rows, n_columns, figsize=(3.1 * n_columns, 2.35 * n_rows), squeeze=False,
                                layout='constrained')
    for number, (axis, (panel, source)) in enumerate(zip(axes.flat, sources, strict=False)):
        columns = panel.columns
        for i, (label, column) in enumerate(columns.items()):
            points = [(row['step'], row[column]) for row in source.rows if column in row]
            if points:
                marker = 'o' if len(points) < 12 else ''
                axis.plot(*zip(*points, strict=True), label=label, lw=2.2 if label == 'mean' else 1.3,
                          color=colors.get(label, others[i % len(others)]),
                          marker=marker, ms=3, zorder=2 + (label == 'mean'))
        values = [y for line in axis.lines for y in line.get_ydata()]
        # under a decade or so, linear reads better
        if panel.log_scale and values and max(values) > 20 * min(values) > 0:
            axis.set_yscale('log')
        if panel.limits:
            axis.set_ylim(*panel.limits)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        _thousands(axis)
        axis.set_title(panel.title, fontsize=9)
        axis.tick_params(which='both', labelsize=7)
        if len(columns) > 2 and axis.lines:  # room for the legend
            low, high = axis.get_ylim()
            axis.set_yticks([tick for tick in axis.get_yticks() if low <= tick <= high])
            axis.set_ylim(low, high + 0.3 * (high - low))
        if len(columns) > 1 and axis.lines:
            axis.legend(fontsize=6.5, frameon=False, **(many if len(columns) > 2 else {}))
        if len(curves) > 1 or number >= len(sources) - n_columns:  # one label for a column, where all mean the same
            axis.set_xlabel(source.xlabel, fontsize=8)
    for axis in axes.flat[len(sources):]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def plot_bands(groups, path, ylabel, title, xlabel='environment steps', percent=True):
    """Mean and 95 % bootstrap interval over runs, one colour and marker per group: groups = {label: [(steps, values),
    ...]}. Thin lines are the single runs."""
    figure, axis = pyplot().subplots(figsize=(6.6, 3.2), layout='constrained')
    scale = 100 if percent else 1
    top = 0.0  # the last step of all
    for (label, runs), color, marker in zip(groups.items(), itertools.cycle(LINE_COLORS), itertools.cycle(MARKERS)):
        for own_steps, own_values in runs[:len(runs) * (len(runs) > 1)]:
            axis.plot(own_steps, [scale * value for value in own_values], color=color, lw=0.6, alpha=0.4)
        steps, values = on_common_steps(runs)
        low, high = bootstrap_interval(values.T)
        axis.plot(steps, scale * values.mean(0), color=color, lw=2, marker=marker, markevery=20, ms=5,
                  label=f'{label} ({len(runs)})')
        axis.fill_between(steps, scale * low, scale * high, color=color, alpha=0.2, lw=0)
        top = max(top, *(own_steps[-1] for own_steps, _ in runs))
    axis.set_xlabel(xlabel, fontsize=10)
    axis.set_ylabel(ylabel, fontsize=10)
    axis.set_xlim(0, 1.001 * top)  # a run ends a little before its budget, whose tick shall be seen
    if percent:
        axis.set_ylim(0, 100)
    _thousands(axis)
    axis.set_title(title, fontsize=11)
    figure.legend(loc='outside right center', fontsize=9, frameon=False, title='group (runs)', title_fontsize=9)
    save(figure, path)


def plot_budgets(groups, path, xlabel, ylabel, title, log_scale=True, beside=('', {})):
    """Success (0 to 1) of runs of different budgets, or of whatever else is a number: the mean of each budget, and a
    dot for each of several runs. groups = {label: {budget: [success, ...]}}; `beside` = (name, groups like these) is
    dashed in each group's colour."""
    figure, axis = pyplot().subplots(figsize=(6.6, 3.2), layout='constrained')
    other, others = beside
    budgets = sorted({budget for runs in [*groups.values(), *others.values()] for budget in runs})
    looks = itertools.cycle(zip(LINE_COLORS, MARKERS, strict=True))
    look_of = dict(zip(dict.fromkeys([*groups, *others]), looks, strict=False))
    lines = [(name, '-', name, runs) for name, runs in groups.items()]
    lines += [(name, '--', f'{name}, {other}', runs) for name, runs in others.items()]
    for group, style, label, runs in lines:
        color, marker = look_of[group]
        own = sorted(runs)
        axis.plot(own, [100 * np.mean(runs[budget]) for budget in own], style, color=color, lw=2, marker=marker, ms=5,
                  label=label)
        for budget in own:
            if len(runs[budget]) > 1:
                axis.plot([budget] * len(runs[budget]), [100 * value for value in runs[budget]], '.', color=color,
                          ms=4, alpha=0.6)

    if log_scale:
        axis.set_xscale('log')
    axis.set_xticks(budgets)
    axis.minorticks_off()
    axis.set_ylim(-3, 103)  # marks at 0 and 100 are whole
    axis.set_xlabel(xlabel, fontsize=10)
    axis.set_ylabel(ylabel, fontsize=10)
    _thousands(axis)
    figure.suptitle(title, fontsize=11)
    figure.legend(loc='outside right center', fontsize=9, frameon=False, handlelength=3)
    save(figure, path)


def _thousands(axis):
    axis.xaxis.set_major_formatter(lambda x, _: f'{x / 1000:g}k' if abs(x) >= 1000 else f'{x:g}')
    axis.grid(alpha=0.25, lw=0.5)
    axis.spines[['top', 'right']].set_visible(False)
