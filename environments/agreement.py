"""Whether the environment and the data agree: order and units of the dimensions, origin, control rate.

`compare_states` needs some resets of the environment, before training. `compare_steps` needs random steps.
Both return one line, '' if nothing is certain. They see states as the agent observes them.

A robot starts in a small part of its space, random actions move it less than a demonstrator does, and what it
never touches rests. Hence a difference of distributions is no fault by itself. These differences are:

- states farther from the data than the data are wide;
- bounds of the observation space that most data exceed;
- a factor between units, in states and steps alike;
- steps of the data that need actions beyond their bounds.
"""

import warnings

import numpy as np
from scipy.optimize import linear_sum_assignment

from environments.checks import ERRORS
from ogbench_utils import reset_env
from support.progress import warn
from support.text import listed
from support.tolerances import varies

NUM_RESETS = 4  # of the comparison before training
MAX_ROWS = 20_000  # rows of the data that are compared
MARGIN = 1.0  # distance from the data, in their widths, beyond which a state is outside
WIDE = 6.0  # width of what the environment reaches, in widths of the data, at which units differ
FITS = 0.1  # distance, in widths, at which another order of dimensions fits
BOUND_MARGIN = 2.0  # distance from the bounds, in their widths, beyond which data have other units
UNITS = {180 / np.pi: 'radians and degrees', 1000.0: 'a unit and its thousandths',
         100.0: 'a unit and its hundredths'}
SAME_WIDTH = 3.0  # factor between widths that are the same, or that differ by a unit
SMOOTH = 20.0  # width in root mean square steps, from which a dimension moves rather than jitters
MIN_R2 = 0.8  # of actions predicted linearly from own steps, from which the control rate is compared
BEYOND = 1.5  # action of a step of the data, in bounds, beyond which no action makes this step
MAX_BEYOND = 0.2  # fraction of such steps
MIN_STEPS = 100  # own steps, and comparable steps of the data, that this takes
RIDGE = 1e-6  # of standardised steps, relative to their number

ADVICE = 'give both the same dimensions in the same order, units and origin'


def warn_of_states(data, env, tasks=1):
    """Compare the data with some resets of an environment; print a line on stderr if they differ.

    Args:
        data: TrajectoryDataset of states (N, S).
        env: environment with states (S,), observed as the data are.
        tasks: number of its tasks.
    """
    try:
        states, goals = first_states(env, tasks)
    except ERRORS:  # the online half reports faults of a reset
        return
    space = env.observation_space
    _warn(compare_states(data, states, goals, space.low, space.high))


def first_states(env, tasks, count=NUM_RESETS):
    """Return the states and goals (count, S) of resets with the seeds 0 to count - 1, of all tasks in turn."""
    generator_state = np.random.get_state()
    try:
        first = [reset_env(env, 1 + i % tasks, i) for i in range(count)]
    finally:
        np.random.set_state(generator_state)
    return tuple(map(np.stack, zip(*first, strict=True)))


def warn_of_steps(data, replay, episodes):
    """Compare the data with the steps in a ReplayBuffer; print a line on stderr if they differ."""
    _warn(compare_steps(data, replay, np.stack([episode.goal for episode in episodes])))


def _warn(difference):
    if difference:
        warn(f'warning: data and environment differ: {difference}')


def compare_states(data, states, goals, low=None, high=None):
    """Compare the first states and goals of episodes with the data.

    Args:
        data: TrajectoryDataset of states (N, S).
        states, goals: (n, S) of n episodes; NaN in a goal does not matter.
        low, high: (S,) bounds of the observation space; None: unknown.

    Returns:
        One line on what differs, or ''.
    """
    rows = _sample(data.observations[:len(data)])
    own = np.concatenate([states, goals])

    # states or goals far outside the data; where both overlap, a few recordings may cover little of what the
    # environment reaches, unless it reaches much more than data that are much wider than their steps
    outside = np.maximum(_outside(rows, states), _outside(rows, goals))
    first, last = np.nanmin(own, 0), np.nanmax(own, 0)
    low_data, high_data = rows.min(0), rows.max(0)
    is_wide = (last - first > WIDE * (high_data - low_data)) & _is_smooth(data)
    is_apart = (first > high_data) | (last < low_data)
    far = np.flatnonzero((outside.diagonal() > MARGIN) & (is_apart | is_wide))
    if len(far):
        order = linear_sum_assignment(outside + 1e-3 * (1 - np.eye(len(outside))))[1]
        fits = outside[np.arange(len(order)), order].max() <= FITS
        cause = 'in another order of the dimensions they would agree' if fits else _cause(rows, own, far)
        return f'{_difference(rows, own, far)}{cause}; {ADVICE}'

    # data far outside the bounds that the environment keeps to
    if low is not None and low.shape == own.shape[1:]:
        with np.errstate(invalid='ignore'):
            bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
            bounded &= ~((own < low) | (own > high)).any(0)
        width = np.where(bounded, high - low, np.inf)
        bulk = np.quantile(rows, (0.05, 0.95), axis=0)
        beyond = np.where(bounded, np.maximum(low - bulk[0], bulk[1] - high), 0) / width
        far = np.flatnonzero(beyond > BOUND_MARGIN)
        if len(far):
            cause = f'{_cause(rows, own, far)}, its observation_space excludes most data'
            return f'{_difference(rows, own, far)}{cause}; {ADVICE}'
    return ''


def compare_steps(data, replay, goals):
    """Compare the steps of the environment with those of the data.

    Args:
        data: TrajectoryDataset of states (N, S).
        replay: ReplayBuffer of random steps, with actions in [-1, 1].
        goals: (n, S) goals of its episodes.

    Returns:
        One line on what differs, or ''.
    """
    own = replay.observations[:len(replay)].astype(np.float64)
    if len(replay.transition_rows) < MIN_STEPS:
        return ''
    if line := compare_states(data, own, goals):
        return line

    # steps of both
    rows = _sample(data.transition_rows)
    before = data.observations[rows].astype(np.float64)
    after = data.observations[rows + 1].astype(np.float64)
    own_rows = replay.transition_rows
    own_before, own_after = own[own_rows], own[own_rows + 1]
    own_steps = _rms(own_after - own_before)
    with np.errstate(divide='ignore', invalid='ignore'):
        step_ratio = _rms(after - before) / own_steps
        visited = np.concatenate([own, goals])
        own_width = np.nanmax(visited, 0) - np.nanmin(visited, 0)
        width_ratio = (before.max(0) - before.min(0)) / own_width

    # a unit between them, in most of what moves smoothly; a single dimension may be one that rests by chance
    smooth = (own_width > SMOOTH * own_steps) & (own_steps > 0) & (step_ratio > 0)
    for unit in UNITS:
        for factor in (unit, 1 / unit):
            has_unit = smooth & _near(step_ratio, factor) & _near(width_ratio, factor)
            if 2 * has_unit.sum() >= max(1, smooth.sum()):
                difference = _difference(before, visited, np.flatnonzero(has_unit))
                return f'{difference}{UNITS[unit]}; {ADVICE}'

    # actions that the steps of the data need, by those of own steps
    rate = _rate(before, after, own_before, own_after, replay.actions[own_rows])
    if rate:
        return (f'many steps of the data need actions of {rate:.2g} times their bounds, as if recorded at a '
                'lower rate; two rows in a row must be one environment step apart: resample the data, or let '
                'the environment repeat each action')
    return ''


def _rate(before, after, own_before, own_after, actions):
    """Return what actions steps of the data need, in bounds; 0 if the bounds are enough, or this is unknown.

    Linear inverse dynamics of own steps predict the actions of those steps of the data that begin within the
    own states, without clipping.

    Args:
        before, after: (n, S) steps of the data. own_before, own_after: (m, S), with actions (m, A).
    """
    inside = ((before >= own_before.min(0)) & (before <= own_before.max(0))).all(1)
    if inside.sum() < MIN_STEPS:
        return 0

    def inputs(states, steps):
        return np.concatenate([(states - own_before.mean(0)) / scale, steps / step_scale,
                               np.ones((len(states), 1))], 1)

    # what never moves has no scale
    deviation, step_rms = own_before.std(0), _rms(own_after - own_before)
    scale = np.where(varies(deviation, own_before.mean(0)), deviation, np.inf)
    step_scale = np.where(step_rms > 0, step_rms, np.inf)

    # fit on every other step
    x = inputs(own_before, own_after - own_before)
    fitted, held = slice(0, None, 2), slice(1, None, 2)
    gram = x[fitted].T @ x[fitted] + RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[fitted].T @ actions[fitted])
    error = np.square(x[held] @ weights - actions[held]).mean(0)
    r2 = 1 - error / np.maximum(actions[held].var(0), 1e-12)
    known = r2 >= MIN_R2
    if not known.any():
        return 0

    # steps that need more than the bounds
    needed = np.abs(inputs(before[inside], (after - before)[inside]) @ weights[:, known]).max(1)
    if np.mean(needed > BEYOND) <= MAX_BEYOND:
        return 0
    return float(np.quantile(needed, 0.9))


# --------------------------------------------------------------------------------------------------- parts
def _difference(rows, own, dims):
    """Describe the ranges of own states (n, S) and of rows of the data (N, S) in some dimensions."""
    first = dims[0]
    spans = f'the environment has {_span(own[:, first])}, the data have {_span(rows[:, first])}'
    if len(dims) == 1:
        return f'dimension {first}: {spans}: '
    return f'dimensions {listed(dims, 8)}: {spans} (dimension {first}): '


def _cause(rows, own, dims):
    """Return what explains a difference in all of these dimensions, by the spread of both."""
    ratio = np.array([np.nanstd(own[:, dim]) / max(rows[:, dim].std(), 1e-300) for dim in dims])
    if _near(ratio, 1).all():
        shift = np.median(rows[:, dims[0]]) - np.nanmedian(own[:, dims[0]])
        return f'an offset of about {shift:.4g}'
    for unit, names in UNITS.items():
        if _near(ratio, unit).all() or _near(ratio, 1 / unit).all():
            return names
    return 'other units or another origin'


def _outside(rows, own):
    """Return how far own states lie outside the data: (S, S), own dimension i in the range of dimension j.

    Distances are medians over own states, in widths of the data. Dimensions of the data that never vary have
    no width; nothing is outside of them.
    """
    low, high = rows.min(0), rows.max(0)
    has_width = varies(rows.std(0), rows.mean(0))
    width = np.where(has_width, high - low, np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a dimension that is NaN in all goals
        distance = np.stack([np.nanmedian(np.maximum(low - values, values - high), 0)
                             for values in own.T[:, :, None]])
    return np.nan_to_num(np.maximum(distance, 0) / width)


def _is_smooth(data):
    """Return which dimensions (S,) of the data are much wider than their steps."""
    rows = _sample(data.transition_rows)
    before = data.observations[rows].astype(np.float64)
    return before.max(0) - before.min(0) > SMOOTH * _rms(data.observations[rows + 1] - before)


def _near(ratio, factor):
    """Return whether ratios are a factor, up to `SAME_WIDTH`."""
    return (ratio > factor / SAME_WIDTH) & (ratio < factor * SAME_WIDTH)


def _rms(steps):
    return np.sqrt(np.square(steps).mean(0))


def _sample(rows):
    return rows[::max(1, len(rows) // MAX_ROWS)]


def _span(values):
    return f'{np.nanmin(values):.4g} to {np.nanmax(values):.4g}'
