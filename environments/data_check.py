"""A table of a dataset by dimension, and the distance of an environment's goals from it, before any training.

`python ogbench_utils.py check states.npz --env module:factory` prints both.
"""

import contextlib
import math
from pathlib import Path

import support.threads  # noqa: F401  before torch

import numpy as np

from environments.agreement import compare_states, first_states
from environments.checks import ERRORS, closing, describe, num_tasks
from environments.custom_env import goal_dims_of
from observing.observation_models import FULL_STATE
from ogbench_utils import check_dimensions, make_env
from planning.goal_weights import find_goal_weights
from planning.time_scales import choose_numbers
from support.npz import load_trajectories
from support.steps import dimension_notes, step_notes
from support.text import foreign, listed, ranges
from support.tolerances import divisor, find_origin, precision_warning, varies
from trajectories import TrajectoryDataset

WIDE = 60  # dimensions, beyond which not all are shown
SHOWN = 30  # dimensions of wide data: those with notes, then those of the largest weights
MAX_LINES = 4  # on slow dimensions without a weight
LONGEST = 0.99  # of the longest time scale that the data can show, above which a time scale may be longer
SHORTEST = 0.1  # time scale, in k, below which the values k steps apart are independent
MAX_NAME = 24  # characters of a name
ROW = '{} {:>11} {:>11} {:>9} {:>11} {:>12}  {}'  # of the table
CHOSEN = dict(transition_steps=0, discount=0, context_length=0)  # 0: from the data
NUM_GOALS = 20  # resets of the environment
COMPARED = 200  # states of the data whose distance from other trajectories is measured
ROWS_AT_ONCE = 1 << 16
FAR = 2.0  # distance of a far goal, in the 95 % quantile of the distances between trajectories
FAR_STD = 0.25  # the least distance of a far goal, in standard deviations per dimension


def check_dataset(path, env='', show_all=False):
    """Read a whole file; print its content by dimension, warnings, and the numbers that follow from it.

    Args:
        path: npz file.
        env: `module:factory` or name of a dataset, whose goals are compared with the data; '' compares none.
        show_all: whether to show all dimensions of wide data.

    Raises:
        the errors of `load_trajectories`.
        ValueError: states of the environment have other dimensions.
    """
    path = Path(path)
    states, starts, ends = load_trajectories(path, flag='`ogbench_utils.py check`')
    print_size(path, states, starts, ends)

    # the data as the agent observes them, with the numbers that follow from them
    model = FULL_STATE.with_angles(states, ends).with_origin(states)
    arrays = model.observe_trajectories(states, starts, ends, seed=0), starts, ends
    numbers, reasons = choose_numbers(TrajectoryDataset(*arrays), CHOSEN)
    data = TrajectoryDataset(*arrays, **numbers)

    # irregular steps
    print_notes(path, states, ends, model)

    # the environment
    declared, goal_lines = [], []
    if env:
        with closing(make_env(env)) as opened:
            check_dimensions(env, path, states.shape[1], opened.observation_space.shape[0])
            declared = model.columns(goal_dims_of(opened))
            goal_lines = compare_goals(data, model.wrap(opened), env)

    # the table, and what follows from the data
    places, has_objects = find_goal_weights(data, declared)
    lines = make_table(states, data, model, places, read_names(path, states.shape[1]), show_all)
    lines += describe_weights(places, has_objects, declared)
    lines += [*goal_lines, 'these follow from the data, unless flags override them:']
    print('\n' + '\n'.join([*lines, *(f'  {reason}' for reason in reasons)]))


def print_size(path, states, starts, ends):
    """Print one line on the size of a file."""
    relative = states - find_origin(states)
    constant = int(np.sum(~varies(relative.std(0), relative.mean(0))))
    lengths = ends - starts + 1
    rows = f'{lengths.min()}' if lengths.min() == lengths.max() else f'{lengths.min()}-{lengths.max()}'
    print(f'{path}: good. {len(starts):,} trajectories of {rows} rows, {len(states):,} observations of '
          f'{states.shape[1]} dimensions, {path.stat().st_size / 1e6:,.1f} MB on disk, '
          f'{states.nbytes / 1e6:,.0f} MB in memory'
          + (f'; {constant} dimension(s) never vary' if constant else ''))


def print_notes(path, states, ends, model):
    """Print lines on the precision and on irregular steps of all dimensions."""
    if warning := precision_warning(path, states, ends):
        print(warning)
    if model.note:
        print(model.note)
    for note in step_notes(states, ends, may_jump='teleport' in path.name):
        print(f'warning: {path}: {note}')


# -------------------------------------------------------------------------------------------------- the table
def read_names(path, count):
    """Return labels of dimensions: their numbers, with the names that scripts/convert_data.py wrote."""
    names = np.zeros(0)
    with np.load(path, allow_pickle=False) as file, contextlib.suppress(KeyError, ValueError):
        names = file['names']
    if names.shape != (count,) or names.dtype.kind != 'U':
        return [f'{dim:>9}' for dim in range(count)]
    return [f'{dim:>3} {foreign(name)[:MAX_NAME]}' for dim, name in enumerate(names)]


def make_table(states, data, model, places, names, show_all=False):
    """Return the lines of a table of raw states (N, S) by dimension.

    Args:
        data: TrajectoryDataset of the observed states. model: ObservationModel, with all dimensions.
        places: Places of the goals.
        names: S texts of the first column.
        show_all: whether to show all dimensions of wide data.
    """
    relative = states - find_origin(states)
    stds = relative.std(0, dtype=np.float64)
    is_constant = ~varies(stds, relative.mean(0, dtype=np.float64))
    scales = data.time_scales() * data.transition_steps
    weights = places.weights.copy()
    for sine, cosine, _ in model.angles:
        weights[sine] = max(weights[[sine, cosine]])

    # which dimensions are shown
    dims = np.flatnonzero(~is_constant)
    notes = {dim: dimension_notes(states[:, dim], data.ends) for dim in dims}
    shown = dims
    if len(dims) > WIDE and not show_all:
        importance = weights if places.are_dimensions else scales
        shown = np.sort(sorted(dims, key=lambda dim: (not notes[dim], -importance[dim]))[:SHOWN])

    width = max(map(len, ['dimension', *(names[dim] for dim in shown)]))
    lines = [ROW.format('dimension'.ljust(width), 'from', 'to', 'std', 'time scale', 'goal weight', 'notes')]
    for dim in shown:
        time_scale = _format_scale(scales[dim], data)
        weight = f'{weights[dim]:.2g}' if places.are_dimensions else '-'
        low, high = states[:, dim].min(), states[:, dim].max()
        numbers = [f'{value:.4g}' for value in (low, high, stds[dim])]
        row = ROW.format(names[dim].ljust(width), *numbers, time_scale, weight, '; '.join(notes[dim]))
        lines.append(row.rstrip())
    if is_constant.any():
        lines.append(f'never vary: dimensions {ranges(np.flatnonzero(is_constant))}')
    if len(shown) < len(dims):
        lines.append(f'not shown: {len(dims) - len(shown)} other dimensions; --all shows them')
    return [*lines, '']


def _format_scale(scale, data):
    """Return a time scale in steps as text: 12, >200, <2, or - for none."""
    if scale > LONGEST * data.longest_time_scale:
        return f'>{data.longest_time_scale}'
    shortest = math.ceil(SHORTEST * data.transition_steps)
    return f'{scale:.3g}' if scale > shortest else f'<{shortest}' if scale else '-'


def describe_weights(places, has_objects, declared):
    """Return lines on what goal weights are, and on slow dimensions that have none."""
    kind = 'dimensions that change slowly'
    if has_objects:
        kind = 'dimensions of objects that rest until they are moved'
    elif (places.weights == 1).all():
        kind = 'all dimensions'
    elif not places.are_dimensions:
        kind = 'directions of the state, since no dimensions span those that change slowly'
    line = f'goals are about {kind}' + (f'; declared: {listed(declared, 8)}' if len(declared) else '')
    return [line, *places.excluded[:MAX_LINES], *['…'] * (len(places.excluded) > MAX_LINES)]


# -------------------------------------------------------------------------------------------------- the goals
def compare_goals(data, env, name):
    """Reset an environment; return lines on its states and on the distance of its goals from the data.

    Args:
        data: TrajectoryDataset of observed states (N, S).
        env: the environment, observed alike. name: its name.

    Raises:
        ValueError: a reset fails.
    """
    try:
        states, goals = first_states(env, num_tasks(env), NUM_GOALS)
    except ERRORS as error:
        raise ValueError(f'--env {name}: a reset fails with {describe(error)}') from error

    lines = []
    space = env.observation_space
    if difference := compare_states(data, states, goals, space.low, space.high):
        lines.append(f'warning: data and environment differ: {difference}')

    # in standard deviations per dimension, of those that vary and that the goal is about
    mean, std = data.statistics()
    scale = divisor(std, mean)
    goals = (goals - mean) / scale
    counted = ~np.isnan(goals) & varies(std, mean)
    rows, distances = find_nearest(data, mean, scale, goals, counted)
    lines.append(f'distance of {NUM_GOALS} goals of {name} from the nearest state of the data: median '
                 f'{np.median(distances):.2g}, largest {distances.max():.2g} standard deviations per '
                 'dimension')
    if len(data.ends) < 2:
        return lines

    # the same of states of the data, without their own trajectory
    sample = np.linspace(0, len(data) - 1, COMPARED).astype(int)
    queries = (data.observations[sample] - mean) / scale
    same = np.tile(counted[0], (COMPARED, 1))
    others = find_nearest(data, mean, scale, queries, same, data.end_of[sample])[1]
    typical, usual = np.quantile(others, (0.5, 0.95))
    lines.append(f'  states of the data from those of other trajectories: median {typical:.2g}, 95 % below '
                 f'{usual:.2g}')

    far = np.flatnonzero(distances > max(FAR * usual, FAR_STD))
    if len(far):
        apart = np.abs(goals[far] - (data.observations[rows[far]] - mean) / scale)
        apart = np.where(counted[far], apart, 0).max(0)
        dims = np.flatnonzero(apart > 0.5 * apart.max())
        lines.append(f'warning: {len(far)} of {NUM_GOALS} goals are far from the data (reset seeds '
                     f'{listed(far, 5)}), most in dimension(s) {listed(dims, 5)}; a goal is a state that the '
                     'robot can be in, NaN where a dimension does not matter')
    return lines


def find_nearest(data, mean, scale, queries, counted, excluded=None):
    """Find the nearest row of a TrajectoryDataset for each query.

    Args:
        mean, scale: (S,) of the standardised states.
        queries: (n, S) standardised; NaN where they are not counted.
        counted: (n, S) bool, dimensions that the distance of each query is about.
        excluded: (n,) last row of the trajectory that is left out for each query.

    Returns:
        rows (n,), and distances (n,): root mean squares over the counted dimensions.
    """
    queries = np.where(counted, queries, 0)
    rows, best = np.zeros(len(queries), int), np.full(len(queries), np.inf)
    for first in range(0, len(data), ROWS_AT_ONCE):
        states = (data.observations[first:first + ROWS_AT_ONCE] - mean) / scale
        squares = np.square(states) @ counted.T - 2 * states @ queries.T + np.square(queries).sum(1)
        if excluded is not None:
            squares[data.end_of[first:first + len(states), None] == excluded] = np.inf
        nearest = squares.argmin(0)
        smallest = squares[nearest, np.arange(len(queries))]
        rows = np.where(smallest < best, first + nearest, rows)
        best = np.minimum(best, smallest)
    return rows, np.sqrt(np.maximum(best, 0) / np.maximum(counted.sum(1), 1))
