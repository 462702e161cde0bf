"""Irregular steps inside trajectories: angles that wrap, quaternions that flip, jumps, rows that repeat.

All functions take raw states (N, S) and the last rows `ends` (n,) of their trajectories. Tolerances are
relative to the ordinary steps of each dimension.
"""

import itertools

import numpy as np

from support.text import listed

PERIODS = (2 * np.pi, 360.0)  # of angles, in radians and degrees
RANGE_TOL = 0.01  # of the period, by which the values of an angle may exceed its ends
WRAP_STEP = 0.5  # of the period, above which a step is a wrap
LARGEST_STEP = 0.25  # of the period, of all other steps
MIN_WRAPS = 3  # fewer could be accidents

FEW_ROWS = 100  # that exclude most dimensions
MIN_FLIPS = 2  # of the sign of a quaternion
UNIT_TOL = 0.02  # deviation of the squared norm of a unit quaternion
MOSTLY_UNIT = 0.95  # fraction of unit quaternions; a reset may add noise to some
FLIP_TOL = 0.2  # largest norm of the sum of a quaternion and its flipped successor

ORDINARY_QUANTILE = 0.99  # of steps that are no jumps
JUMP_RATIO = 7.0  # step of a dimension, in ordinary ones, from which it is a jump
MIN_JUMPS = 2  # one may be an accident
MIN_CHANGED = 0.2  # fraction of dimensions whose step exceeds ordinary ones in a jump
SAMPLED_STEPS = 20_000  # steps, at most, for ordinary ones and repetitions
MAX_CHANGES = 0.2  # fraction of changes that another one follows, if states are recorded repeatedly
MIN_STUCK = 10  # equal readings in a row of a dimension that else changes in most steps
MOSTLY_CHANGES = 0.8  # fraction of the steps
SMOOTH = 20.0  # width of a dimension, in ordinary steps, from which a jump shows


def inner_rows(count, ends):
    """Return the rows (m,) of N = `count` rows that have a next row in their trajectory."""
    has_next = np.ones(count, bool)
    has_next[ends] = False
    return np.flatnonzero(has_next)


def unrepeated(observed, achieved):
    """Return the dimensions (n,) of `observed` (N, D) that do not repeat a dimension of `achieved` (N, G)."""
    repeats = [any(np.array_equal(values, goal) for goal in achieved.T) for values in observed.T]
    return np.flatnonzero(~np.array(repeats, bool))


def find_period(values, ends):
    """Return the period of the values (N,) of one dimension if it is an angle that wraps, else None.

    The values fill a range of 2 pi or 360, from 0 or around 0. All steps above half of it lead from near one
    end to near the other.
    """
    low, high = float(values.min()), float(values.max())
    for period, first in itertools.product(PERIODS, (0.0, -0.5)):
        tol = RANGE_TOL * period
        bottom, top = first * period, (first + 1) * period
        if low < bottom - tol or high > top + tol or high - low <= WRAP_STEP * period:
            continue

        rows = inner_rows(len(values), ends)
        steps = np.diff(values.astype(np.float64))[rows]
        wraps = np.abs(steps) > WRAP_STEP * period
        if wraps.sum() < MIN_WRAPS or wraps.all():
            continue

        # what is left of a wrap is an ordinary step, and wraps begin no farther from an end
        ordinary = np.abs(steps[~wraps]).max()
        reach = 2 * ordinary + tol
        left = np.abs(steps[wraps] - np.sign(steps[wraps]) * period).max()
        from_end = np.minimum(values[rows] - bottom, top - values[rows])[wraps].max()
        if 0 < ordinary <= LARGEST_STEP * period and max(left, from_end, low - bottom, top - high) <= reach:
            return period
    return None


def angle_note(dims):
    """Return a line on the dimensions that are angles which wrap, '' if there are none."""
    if not dims:
        return ''
    if len(dims) == 1:
        return f'dimension {dims[0]} is an angle that wraps: sine and cosine are used'
    return f'dimensions {", ".join(map(str, dims))} are angles that wrap: sine and cosine are used'


def find_flips(states, ends):
    """Return the rows (m,) whose quaternion has the other sign in the next row, for each unit quaternion.

    Returns:
        {first dimension: rows} of quaternions that flip at least `MIN_FLIPS` times.
    """
    rows = inner_rows(len(states), ends)
    found = {}
    for first in range(states.shape[1] - 3):
        # a few rows exclude most dimensions
        quaternion = states[:, first:first + 4]
        if not (_is_unit(quaternion[:FEW_ROWS]) and _is_unit(quaternion)):
            continue
        sums = np.linalg.norm(quaternion[rows] + quaternion[rows + 1], axis=1)
        if (sums < FLIP_TOL).sum() >= MIN_FLIPS:
            found[first] = rows[sums < FLIP_TOL]
    return found


def _is_unit(quaternions):
    """Return whether most of (n, 4) have the norm 1."""
    return np.mean(np.abs(np.square(quaternions).sum(1) - 1) <= UNIT_TOL) >= MOSTLY_UNIT


def find_jumps(states, ends):
    """Return the rows (j,) whose step to the next row is a jump of most dimensions that are else smooth.

    A collision changes a velocity at once, but no position. A tumbling object changes its Euler angles at once,
    but few other dimensions. Angles that wrap are no jumps.
    """
    rows = inner_rows(len(states), ends)
    jumps = np.zeros(len(rows), int)
    changed = np.zeros(len(rows), int)
    num_smooth = 0
    for values in map(np.ascontiguousarray, states.T):
        steps, ordinary = _ordinary_steps(values, rows)
        changed += steps > ordinary
        if _is_smooth(values, ordinary) and not find_period(values, ends):
            num_smooth += 1
            jumps += steps > JUMP_RATIO * ordinary
    return rows[(2 * jumps > num_smooth) & (changed >= MIN_CHANGED * states.shape[1])]


def _ordinary_steps(values, rows):
    """Return the absolute steps (m,) of a dimension (N,) at some rows, and the largest ordinary one."""
    steps = np.abs(values[rows + 1] - values[rows])
    return steps, np.quantile(steps[::max(1, len(rows) // SAMPLED_STEPS)], ORDINARY_QUANTILE)


def _is_smooth(values, ordinary):
    """Return whether the values (N,) of a dimension are much wider than its ordinary steps."""
    return 0 < SMOOTH * ordinary < np.ptp(values)


def dimension_notes(values, ends):
    """Describe the steps of one dimension (N,): a list of short notes; empty for ordinary ones."""
    rows = inner_rows(len(values), ends)
    steps, ordinary = _ordinary_steps(values, rows)
    if not steps.any():
        return ['never changes within a trajectory']

    notes = []
    period = find_period(values, ends)
    if period:
        notes.append(f'angle that wraps at {period:.4g}')
    elif _is_smooth(values, ordinary):
        jumps = rows[steps > JUMP_RATIO * ordinary]
        if len(jumps) >= MIN_JUMPS:
            notes.append(f'{len(jumps):,} jumps (rows {listed(jumps, 2)}): gaps, teleporters or a wrap?')

    direction = np.sign(values[rows + 1] - values[rows])
    if min(direction) >= 0 or max(direction) <= 0:
        notes.append('only grows' if max(direction) > 0 else 'only falls')

    length, row = find_longest_rest(steps > 0, rows)
    if length >= MIN_STUCK and np.mean(steps > 0) >= MOSTLY_CHANGES:
        notes.append(f'{length:,} equal readings from row {row:,} on')
    return notes


def find_longest_rest(changes, rows):
    """Return how many successive rows have no change, at most, and the first of them.

    Args:
        changes: (m,) bool, whether row `rows[i]` differs from the next one. rows: (m,) with a next row.
    """
    # runs between changes and between trajectories
    borders = np.flatnonzero(np.append(True, changes[:-1] | changes[1:] | (np.diff(rows) > 1)))
    lengths = np.diff(np.append(borders, len(rows))) * ~changes[borders]
    longest = int(np.argmax(lengths))
    return int(lengths[longest]) + 1, int(rows[borders[longest]])


def step_notes(states, ends, may_jump=False):
    """Describe irregular steps inside trajectories: a list of lines.

    Args:
        states: (N, S) raw. ends: (n,) last row of each trajectory.
        may_jump: whether jumps are expected, as with teleporters.
    """
    notes = []
    jumps = [] if may_jump else find_jumps(states, ends)
    if len(jumps) >= MIN_JUMPS:
        notes.append(f'{len(jumps):,} steps inside trajectories jump (rows {listed(jumps, 3)}): are the borders '
                     'in `terminals` right?')
    for first, rows in find_flips(states, ends).items():
        notes.append(f'dimensions {first} to {first + 3} are a quaternion whose sign flips in {len(rows):,} '
                     f'steps (rows {listed(rows, 3)}), which is no rotation; observe two columns of its rotation '
                     'matrix in its place, in the environment as well')

    if times := find_repetition(states, ends):
        notes.append(f'each state is recorded about {times:.2g} times in a row; leave the repetitions out')
    return notes


def find_repetition(states, ends):
    """Return how often each state is recorded if nearly every change is followed by a repeated row, else 0.

    A robot that rests now and then repeats rows as well, but its changes follow each other.
    """
    rows = inner_rows(len(states), ends)[:SAMPLED_STEPS]
    changes = (states[rows] != states[rows + 1]).any(1)
    follows = np.diff(rows) == 1
    after_change = changes[1:][follows & changes[:-1]]
    if not len(after_change) or after_change.mean() > MAX_CHANGES:
        return 0
    return len(rows) / changes.sum()
