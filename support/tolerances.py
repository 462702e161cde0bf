"""Precision of numbers: which dimensions vary, what float32 can hold, and where states have their origin.

Dimensions of states have any unit and any offset. All tolerances are therefore relative to the values
themselves, in float32 spacings. Other modules use these functions and have no constants in units of a state.
"""

import numpy as np

from support.text import listed

EPSILON = float(np.finfo(np.float32).eps)  # spacing of float32 numbers, relative to their size
IGNORED = 1e20  # divisor of a dimension that never varies, so that it is nearly 0 in any unit
ROUNDING = 16 * np.finfo(np.float64).eps  # relative deviation of a float64 constant that was computed
MAX_OFFSET = 10.0  # |mean| in standard deviations, beyond which states are stored relative to the mean
MIN_STEP = 2.0  # median step, in float32 spacings, below which steps are lost
FINE_RANGE = 1e5  # standard deviation in float32 spacings, beyond which small steps are jitter at rest
SAMPLED_STEPS = 100_000  # steps, at most, in the median step


def varies(std, mean):
    """Return whether values vary by more than the rounding of float32, for each dimension.

    Args:
        std, mean: (...) of the values, numpy arrays or tensors.
    """
    return std > EPSILON * abs(mean)


def divisor(std, mean):
    """Return the standard deviations with `IGNORED` in place of those of dimensions that never vary.

    Args:
        std, mean: (...) of the values, numpy arrays or tensors.
    """
    is_constant = ~varies(std, mean)
    return std + (IGNORED - std) * is_constant  # in the precision of `std`


def find_origin(states):
    """Return the origin (S,) float64 relative to which float32 holds the steps of raw states (N, S).

    It is the mean of a dimension that is far from 0 compared with its standard deviation, else 0. States in
    float32 have no more precision than they come with, so that their origin is 0.
    """
    origin = np.zeros(states.shape[1])
    if np.can_cast(states.dtype, np.float32):
        return origin

    for dimension, column in enumerate(states.T):
        # relative to the first value, so that sums of large numbers round nothing away
        change = column - column[0]
        mean = column[0] + change.mean()
        std = change.std()
        if std > ROUNDING * abs(mean) and abs(mean) > MAX_OFFSET * std:
            origin[dimension] = mean
    return origin


def precision_warning(path, states, ends):
    """Return a line on the dimensions whose steps were lost when they were rounded to float32, else ''.

    A dimension has lost its steps if all its values are float32 numbers, and half of the steps that change it
    are below `MIN_STEP` spacings of float32.

    Args:
        path: file of the states, for the message.
        states: (N, S) raw. ends: (n,) last row of each trajectory.
    """
    # steps within trajectories
    has_next = np.ones(len(states), bool)
    has_next[ends] = False
    rows = np.flatnonzero(has_next)
    rows = rows[::max(1, len(rows) // SAMPLED_STEPS)]

    lost = []
    for dimension, column in enumerate(states.T):
        before = column[rows].astype(np.float32)
        after = column[rows + 1].astype(np.float32)
        if (before != column[rows]).any():
            continue

        # steps that change the dimension, and the spacing of float32 at its values
        steps = np.abs(after.astype(np.float64) - before)
        is_step = steps > 0
        if not is_step.any():
            continue
        spacings = np.spacing(np.maximum(np.abs(before), np.abs(after))[is_step]).astype(np.float64)
        step = np.median(steps[is_step])
        spacing = np.median(spacings)
        std = before.astype(np.float64).std()
        if np.median(steps[is_step] / spacings) < MIN_STEP and std < FINE_RANGE * spacing:
            mean = before.mean(dtype=np.float64)
            lost.append(f'{dimension} (mean {mean:.8g}, standard deviation {std:.2g}, median step {step:.2g}, '
                        f'spacing {spacing:.2g})')

    if not lost:
        return ''
    return (f'warning: {path}: float32 numbers are too coarse for the steps of {len(lost)} dimension(s) of '
            f'`observations`: {listed(lost, 3)}; record them in float64, or subtract a constant before rounding, '
            'in the environment as well')
