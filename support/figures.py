"""Plot logged metrics by matplotlib without a display, and share colours among all figures."""

import contextlib
import dataclasses
import gc
import itertools
import os
import sys
import time
from pathlib import Path

import numpy as np

from support.files import write_atomic
from support.flags import flag
from support.stats import bootstrap_interval, on_common_steps

# Okabe and Ito's colours, which are distinguishable with colour blindness
TASK_COLORS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9')
LINE_COLORS = ('#0072B2', '#D55E00', '#009E73', '#E69F00', '#CC79A7', '#56B4E9')
LABEL_COLORS = {'train': '#0072B2', 'validation': '#D55E00', 'mean': '#222222'}
GOOD = '#009E73'
FAILURE = '#D55E00'
INK = '#222222'
QUIET = '#666666'  # of remarks
MARKERS = 'os^Dvp'
MEASURED = ('evaluation/', 'validation/', 'collect/', 'labeler/')  # metrics of single points in time
MAX_MARKERS = 40  # more of them on a curve would hide it
MAX_MARKED = 10  # curves of one plot; markers on more of them would hide each other

FORMATS = ('png', 'pdf', 'svg')  # of pictures
SUCCESS_LIMITS = (-0.02, 1.02)  # of a success axis: markers at 0 and 1 are whole
PLOTS_PER_ROW = 4
NAME_HEIGHT = 0.12  # of the name of a line, as a fraction of the axis
MARGIN = 0.1  # beyond the curves, as a fraction of the axis
LOG_MARGIN = 1.4  # the same with a log scale, as a factor
LEGEND_COLUMNS = 3  # of a legend above a plot
LEGEND_ROW = 0.13  # height of a row of this legend, as a fraction of the axis
HIGHER, LOWER = '↑', '↓'  # behind the title of a plot: which way is good
ARROWS = {HIGHER: 'higher is better', LOWER: 'lower is better'}
MIN_LOG_RATIO = 20  # ratio of the largest to the smallest value above which a log scale is used


@contextlib.contextmanager
def default_style():
    """Context (or decorator) in which matplotlib is imported and has its default settings.

    A matplotlibrc or a backend of the user does not matter: a notebook names one in MPLBACKEND that other
    environments lack. The import is late, since it takes half a second.
    """
    backend = os.environ.get('MPLBACKEND')
    os.environ['MPLBACKEND'] = 'agg'
    try:
        from matplotlib import style
    finally:
        del os.environ['MPLBACKEND']
        if backend is not None:
            os.environ['MPLBACKEND'] = backend

    with style.context('default'):
        yield


@contextlib.contextmanager
def optional_picture(what):
    """Context for a picture beside the results of a program: one that fails is one line on stderr.

    Args:
        what: its path or another name, for the line.
    """
    try:
        yield
    except Exception as error:  # matplotlib, environments and their renderers raise many types
        cause = (str(error).splitlines() or [''])[0]
        with contextlib.suppress(OSError):
            print(f'warning: {what} was not made ({type(error).__name__}: {cause}); the results are complete '
                  'without it', file=sys.stderr)


class Seldom:
    """Draw a picture of a run in progress now and then, in at most about 1 / `rarity` of the time."""

    def __init__(self, rarity=30):
        self.rarity = rarity
        self.next_time = -float('inf')

    def draw(self, function, last=False):
        """Call a function that draws if the waiting time is over, or if this is the `last` call."""
        begin = time.perf_counter()
        if last or begin > self.next_time:
            function()
            end = time.perf_counter()
            self.next_time = end + self.rarity * (end - begin)


def subplots(rows, columns, figsize, **options):
    """Return a figure of no window, in inches, and its axes (rows, columns); `options` are matplotlib's."""
    from matplotlib.figure import Figure
    figure = Figure(figsize, layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def format_flag():
    """Return the field of a dataclass of flags that names the format of pictures."""
    return flag('png', 'format of the pictures', choices=FORMATS)


def add_format(parser):
    """Add --format to an argparse parser of a script with --output."""
    parser.add_argument('--format', choices=FORMATS, help='format of the picture; default: as --output')


def output_path(path, format):
    """Return the path of --output with the suffix of --format, if one is given.

    Raises:
        ValueError: if matplotlib cannot write this format.
    """
    path = Path(path).with_suffix(f'.{format}') if format else Path(path)
    format_of(path)
    return path


@default_style()
def format_of(path):
    """Return the format that the suffix of `path` names, such as 'pdf'; 'png' without a suffix.

    Raises:
        ValueError: if matplotlib cannot write it.
    """
    from matplotlib.backend_bases import FigureCanvasBase
    suffix = Path(path).suffix[1:].lower() or 'png'
    if suffix not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f'{path}: unknown figure format .{suffix}; use .png, .pdf or .svg')
    return suffix


def save(figure, path, dpi=150):
    """Write a figure atomically and free it; the suffix of `path` (.png, .pdf, .svg) names the format.

    Raises:
        ValueError: if matplotlib cannot write this format.
    """
    suffix = format_of(path)
    write_atomic(path, lambda file: figure.savefig(file, dpi=dpi, format=suffix))
    gc.collect()  # a figure is full of reference cycles: without this, a long run grows by 8 MB per figure


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot of several: CSV columns by their label in the legend."""

    title: str
    columns: dict
    log_scale: bool = False
    optional: bool = False  # left out without data, and of a single row
    limits: tuple[float | None, float | None] = (None, None)  # smallest and largest y; None: by the data
    better: str = ''  # HIGHER, LOWER or neither
    reference: tuple[str, float] | None = None  # name and y of a horizontal line, such as chance
    x: str = 'step'  # column of the x axis
    xlabel: str = ''  # default: what `step` counts


@dataclasses.dataclass(frozen=True)
class Curves:
    """Logged rows (dicts of metrics) and what their 'step' counts."""

    rows: list
    xlabel: str

    def has(self, panel):
        """Return whether a column of a `Panel` has a point."""
        return any(self.points(column, panel.x) for column in panel.columns.values())

    def points(self, column, x='step'):
        """Return the (x, value) pairs of the rows that have a column."""
        return [(row[x], row[column]) for row in self.rows if column in row and x in row]


@default_style()
def plot_curves(curves, panels, path, title):
    """Draw one plot for each `Panel`, from the first of the `Curves` that has its columns.

    Args:
        curves: list of `Curves`.
        panels: list of `Panel`.
        path: the file to write.
        title: title of the figure.
    """
    # the curves of each panel
    plots = []
    for panel in panels:
        source = next((candidate for candidate in curves if candidate.has(panel)), curves[-1])
        if not panel.optional or len(source.rows) > 1 and source.has(panel):
            plots.append((panel, source))

    rows = -(-len(plots) // PLOTS_PER_ROW)
    size = (3.3 * PLOTS_PER_ROW, 2.5 * rows + 0.4)
    figure, axes = subplots(rows, PLOTS_PER_ROW, size)

    for axis, (panel, source) in zip(axes.flat, plots, strict=False):
        _plot_panel(axis, panel, source)
        axis.set_xlabel(panel.xlabel or source.xlabel, fontsize=8.5)
    for axis in axes.flat[len(plots):]:
        axis.set_visible(False)

    # one legend for the plots without their own, if some of them have two lines
    shared = {}
    for axis in axes.flat[:len(plots)]:
        if axis.lines and not axis.get_legend():
            handles, labels = axis.get_legend_handles_labels()
            shared |= dict(zip(labels, handles, strict=True))
    if any(len(panel.columns) == 2 for panel, _ in plots):
        figure.legend(shared.values(), shared, fontsize=9, frameon=False, loc='outside upper right',
                      ncols=len(shared))

    # the title, and what the arrows mean
    arrows = [f'{arrow} {words}' for arrow, words in ARROWS.items()
              if any(panel.better == arrow for panel, _ in plots)]
    figure.suptitle(f'{title}   ({", ".join(arrows)})' if arrows else title, fontsize=11)
    save(figure, path)


def _plot_panel(axis, panel, source):
    """Draw the columns of a `Panel` that some `Curves` have."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    colors = LABEL_COLORS | {f'task {k}': color for k, color in enumerate(TASK_COLORS, 1)}
    other_colors = _colors(len(panel.columns))
    for i, (label, column) in enumerate(panel.columns.items()):
        points = source.points(column, panel.x)
        if not points:
            continue

        # markers where something was measured, and at a point that has no line
        few = len(points) <= MAX_MARKERS and len(panel.columns) <= MAX_MARKED
        measured = few and column.startswith(MEASURED)
        marker = 'o' if measured or len(points) == 1 else ''
        width, zorder = (2.2, 3) if label == 'mean' else (1.3, 2)
        axis.plot(*zip(*points, strict=True), label=label, color=colors.get(label, other_colors[i]), lw=width,
                  marker=marker, ms=3.5, zorder=zorder)

    # a linear scale is easier to read within about a decade
    values = [y for line in axis.lines for y in line.get_ydata()]
    if panel.log_scale and values and max(values) > MIN_LOG_RATIO * min(values) > 0:
        is_long = max(values) > 100 * min(values)
        axis.set_yscale('log')
        axis.yaxis.set_major_locator(LogLocator(subs=(1,) if is_long else (1, 2, 5)))
        axis.yaxis.set_major_formatter('{x:g}')
        axis.yaxis.set_minor_formatter('')
    if values:
        _set_limits(axis, panel, values)
        if panel.reference:
            _add_reference(axis, panel.reference, values)
        axis.set_xlim(left=0)

    axis.xaxis.set_major_locator(MaxNLocator(4))
    _style(axis)
    axis.set_title(f'{panel.title} {panel.better}'.strip(), fontsize=10.5)
    axis.tick_params(which='both', labelsize=8)

    drawn = axis.get_legend_handles_labels()[1]
    if not values:
        axis.set(xticks=[], yticks=[])
        axis.text(0.5, 0.5, 'no data yet', fontsize=9, ha='center', va='center', transform=axis.transAxes)
    elif len(drawn) > 2:
        _add_legend_above(axis, len(drawn))


def _colors(count):
    """Return colours of `count` lines: distinguishable ones, or a scale from dark to bright for many."""
    if count <= len(LINE_COLORS):
        return LINE_COLORS
    from matplotlib import colormaps
    return colormaps['viridis'](np.linspace(0, 0.95, count))


def _add_reference(axis, reference, values):
    """Draw a dashed line with its name, such as ('chance', 0.5).

    The name stands on the side with fewer of the values, but not below the axis.
    """
    name, y = reference
    axis.axhline(y, color=QUIET, lw=1.1, ls=(0, (4, 3)), zorder=1)
    height = (axis.transScale + axis.transLimits).transform((1, y))[1]
    is_above = np.mean(np.asarray(values) > y) < 0.5 or height < NAME_HEIGHT
    axis.annotate(f'{name}: {y:.2g}', (1, y), (-2, 2 if is_above else -3), xycoords=('axes fraction', 'data'),
                  textcoords='offset points', fontsize=8, color=QUIET, ha='right', zorder=4,
                  va='bottom' if is_above else 'top',
                  bbox={'boxstyle': 'square,pad=0', 'fc': 'white', 'ec': 'none', 'alpha': 0.8})


def _set_limits(axis, panel, values):
    """Set the limits of y to those of a `Panel`, with room for markers, or wider if values lie beyond."""
    if panel.reference:
        values = [*values, panel.reference[1]]
    if axis.get_yscale() == 'log':
        axis.set_ylim(min(values) / LOG_MARGIN, max(values) * LOG_MARGIN)
        return

    low, high = panel.limits
    low = min(values) if low is None else min(low, *values)
    high = max(values) if high is None else max(high, *values)
    if panel.limits != SUCCESS_LIMITS:
        room = MARGIN * (high - low or abs(high) or 1.0)
        low, high = low - room / 3 if panel.limits[0] is not None else low - room, high + room
    axis.set_ylim(low, high)


def _add_legend_above(axis, count):
    """Draw the legend of `count` lines above the end of the y axis."""
    room = LEGEND_ROW * -(-count // LEGEND_COLUMNS) + 0.04
    low, high = axis.get_ylim()
    axis.set_yticks([tick for tick in axis.get_yticks() if low <= tick <= high])
    axis.spines['left'].set_bounds(low, high)
    if axis.get_yscale() == 'log':
        axis.set_ylim(low, high * (high / low) ** room)
    else:
        axis.set_ylim(low, high + room * (high - low))
    axis.legend(fontsize=8, frameon=False, ncols=LEGEND_COLUMNS, loc='upper center', handlelength=1.2,
                columnspacing=1.0, labelspacing=0.25, borderaxespad=0)


@default_style()
def plot_bands(groups, path, ylabel, title, xlabel='environment steps', percent=True):
    """Draw the mean and 95 % bootstrap interval over the runs of each group.

    Thin lines are single runs. Markers are evaluations: those of each run, and on the mean those at steps
    which all runs share.

    Args:
        groups: {label: [(steps, values), ...]}, one pair for each run.
        path: the file to write.
        ylabel: label of the y axis.
        title: title of the figure.
        xlabel: label of the x axis.
        percent: the values are rates in [0, 1] that are drawn in percent.
    """
    figure, ((axis,),) = subplots(1, 1, (6.6, 3.2))
    scale = 100 if percent else 1
    last_step = 0.0
    looks = itertools.cycle(zip(LINE_COLORS, MARKERS, strict=True))

    for (label, runs), (color, marker) in zip(groups.items(), looks, strict=False):
        # single runs
        if len(runs) > 1:
            for steps, values in runs:
                axis.plot(steps, scale * np.asarray(values), color=color, lw=0.6, alpha=0.4, ms=2,
                          marker='o' if len(steps) <= MAX_MARKERS else '')

        # mean and interval
        steps, values = on_common_steps(runs)
        mean = scale * values.mean(0)
        low, high = bootstrap_interval(values.T)
        axis.plot(steps, mean, color=color, lw=2)
        axis.fill_between(steps, scale * low, scale * high, color=color, alpha=0.2, lw=0)

        # evaluations that all runs share
        shared = shared_steps(runs)
        if shared:
            axis.plot(shared, np.interp(shared, steps, mean), ls='', color=color, marker=marker, ms=5)

        # the entry of the legend
        axis.plot([], [], color=color, lw=2, marker=marker if shared else '', ms=5,
                  label=f'{label} ({len(runs)})')
        last_step = max(last_step, *(run_steps[-1] for run_steps, _ in runs))

    _name_axes(axis, xlabel, ylabel)
    axis.set_xlim(0, 1.02 * last_step)  # the last marker is whole
    if percent:
        axis.set_ylim(*(100 * limit for limit in SUCCESS_LIMITS))
    _style(axis)
    axis.set_title(title, fontsize=11)
    figure.legend(loc='outside right center', fontsize=9, frameon=False, title='group (runs)',
                  title_fontsize=9)
    save(figure, path)


def shared_steps(runs):
    """Return the sorted steps at which every run has a value; none if there are more than `MAX_MARKERS`."""
    shared = sorted(set.intersection(*(set(steps) for steps, _ in runs)))
    return shared if len(shared) <= MAX_MARKERS else []


@default_style()
def plot_budgets(groups, path, xlabel, ylabel, title, beside=('', {})):
    """Draw the mean success rate for each budget, on a logarithmic axis, and a dot for each of several runs.

    Args:
        groups: {label: {budget: [success in [0, 1], ...]}}.
        path: the file to write.
        xlabel: label of the x axis.
        ylabel: label of the y axis.
        title: title of the figure.
        beside: (name, groups), drawn dashed in the colour of the group with the same label.
    """
    figure, ((axis,),) = subplots(1, 1, (6.6, 3.2))
    other_name, others = beside
    budgets = sorted({budget for runs in [*groups.values(), *others.values()] for budget in runs})
    looks = itertools.cycle(zip(LINE_COLORS, MARKERS, strict=True))
    look_of = dict(zip(dict.fromkeys([*groups, *others]), looks, strict=False))

    for name, runs in groups.items():
        color, marker = look_of[name]
        _plot_budget_line(axis, runs, color=color, marker=marker, ls='-', label=name)
    for name, runs in others.items():
        color, marker = look_of[name]
        label = f'{name}, {other_name}'
        _plot_budget_line(axis, runs, color=color, marker=marker, ls='--', label=label, mfc='white')

    axis.set_xscale('log')
    axis.set_xticks(budgets)
    axis.minorticks_off()
    axis.set_ylim(*(100 * limit for limit in SUCCESS_LIMITS))
    _name_axes(axis, xlabel, ylabel)
    _style(axis)
    if any(len(rates) > 1 for runs in [*groups.values(), *others.values()] for rates in runs.values()):
        axis.plot([], [], '.', color=QUIET, ms=6, label='one run')
    figure.suptitle(title, fontsize=11)
    figure.legend(loc='outside right center', fontsize=9, frameon=False, handlelength=3)
    save(figure, path)


def _plot_budget_line(axis, runs, **style):
    """Draw the means, and dots of several runs with one budget; runs = {budget: [success, ...]}."""
    budgets = sorted(runs)
    axis.plot(budgets, [100 * np.mean(runs[budget]) for budget in budgets], lw=2, ms=5, **style)
    for budget in budgets:
        values = [100 * value for value in runs[budget]]
        if len(values) > 1:
            axis.plot([budget] * len(values), values, '.', color=style['color'], ms=4, alpha=0.6)


@default_style()
def plot_bars(groups, path, xlabel, ylabel, title):
    """Draw a bar of the mean success of each group for each value on the x axis, and a dot for each run.

    Args:
        groups: {label: {value: [success in [0, 1], ...]}}.
        path: the file to write.
        xlabel: label of the x axis.
        ylabel: label of the y axis.
        title: title of the figure.
    """
    figure, ((axis,),) = subplots(1, 1, (6.6, 3.2))
    values = sorted({value for runs in groups.values() for value in runs})
    width = 0.8 / len(groups)
    bars = {}  # label -> its first bar
    dots = []

    colors = itertools.cycle(LINE_COLORS)
    for i, ((label, runs), color) in enumerate(zip(groups.items(), colors, strict=False)):
        for place, value in enumerate(values):
            rates = 100 * np.array(runs.get(value, []))
            if not len(rates):
                continue
            x = place + (i - (len(groups) - 1) / 2) * width
            mean = rates.mean()
            bar = axis.bar(x, mean, 0.92 * width, color=color, alpha=0.75, lw=0)
            bars.setdefault(label, bar)
            axis.annotate(f'{mean:.0f}', (x, rates.max()), (0, 3), textcoords='offset points', fontsize=9,
                          ha='center')
            if len(rates) > 1:
                places = x + width * np.linspace(-0.2, 0.2, len(rates))
                dots = axis.plot(places, rates, '.', color=INK, ms=5, clip_on=False)

    axis.set_xticks(range(len(values)), [f'{value:g}' for value in values])
    axis.set_ylim(0, 100 * SUCCESS_LIMITS[1])
    _name_axes(axis, xlabel, ylabel)
    _style(axis, steps=False)
    axis.grid(False, axis='x')
    axis.set_title(title, fontsize=11, pad=14)
    named = bars | ({'one run': dots[0]} if dots else {})
    figure.legend(named.values(), named, loc='outside right center', fontsize=9, frameon=False)
    save(figure, path)


@default_style()
def plot_before_after(sections, path, title, xlabel='success, %'):
    """Draw a row for each case: success before and after, joined by a line, and a dash for each run.

    Args:
        sections: {heading: {case: (rates before, rates after)}}, rates in [0, 1], one for each run.
        path: the file to write.
        title: title of the figure.
        xlabel: label of the x axis.
    """
    heights = [len(cases) for cases in sections.values()]
    figure, axes = subplots(len(sections), 1, (6.6, 0.29 * sum(heights) + 0.35 * len(heights) + 0.9),
                            height_ratios=[height + 0.4 for height in heights], sharex=True)
    for axis, (heading, cases) in zip(axes.flat, sections.items(), strict=True):
        for y, (before, after) in enumerate(cases.values()):
            _plot_before_after_row(axis, y, 100 * np.array(before), 100 * np.array(after))
        axis.set_yticks(range(len(cases)), cases, fontsize=9.5)
        axis.set_ylim(len(cases) - 0.4, -0.6)
        axis.set_title(heading, fontsize=10, loc='left', fontweight='bold')
        axis.spines[['top', 'right', 'left']].set_visible(False)
        axis.tick_params(left=False, labelsize=9.5)
        axis.grid(alpha=0.25, lw=0.5)

    # one axis of success, and a legend
    axis = axes.flat[-1]
    axis.set_xlim(-3, 112)  # the mean is written to the right of the points
    axis.set_xticks(range(0, 101, 20))
    axis.set_xlabel(xlabel, fontsize=10)
    handle_of = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    named = {label: handle_of[label] for label in ('before', 'after', 'one run') if label in handle_of}
    figure.suptitle(title, fontsize=11)
    figure.legend(named.values(), named, loc='outside lower center', ncols=len(named), fontsize=9.5,
                  frameon=False)
    save(figure, path)


def _plot_before_after_row(axis, y, before, after):
    """Draw the percentages of one case at a height `y`; either may be empty."""
    if len(before) and len(after):
        axis.plot([before.mean(), after.mean()], [y, y], color=QUIET, lw=1.2, alpha=0.6, zorder=1)
    if len(before):
        axis.plot(before.mean(), y, 'o', ms=7, mfc='white', mec=FAILURE, mew=1.6, label='before', zorder=3)
    if len(after):
        if len(after) > 1:
            axis.plot(after, np.full(len(after), y), '|', ms=11, mew=1.2, color=INK, label='one run',
                      zorder=4)
        axis.plot(after.mean(), y, 'o', ms=7, color=LABEL_COLORS['train'], label='after', zorder=3)
        axis.annotate(f'{after.mean():.0f}', (max(after), y), (9, 0), textcoords='offset points',
                      fontsize=9.5, va='center_baseline')


def _name_axes(axis, xlabel, ylabel):
    """Write the labels of the x and the y axis of a figure with one panel."""
    axis.set_xlabel(xlabel, fontsize=10)
    axis.set_ylabel(ylabel, fontsize=10)


def _style(axis, steps=True):
    """Write thousands of steps as k if x are steps, and draw a light grid without a frame."""
    if steps:
        axis.xaxis.set_major_formatter(lambda x, _: f'{x / 1000:g}k' if abs(x) >= 1000 else f'{x:g}')
    axis.grid(alpha=0.25, lw=0.5)
    axis.spines[['top', 'right']].set_visible(False)
