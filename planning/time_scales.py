"""Numbers of steps that follow from the time scales of the data: k, discount and context.

The change of a direction in n steps is 1 minus its autocorrelation at lag n: 0 at first, and 1 once it has
forgotten its value. `slow_steps` is the number of steps until the slowest direction of all has changed by
`SLOW_CHANGE`, so that the robot has got somewhere. Directions are those of the whitened states: neither units nor
the basis of the states matter.
"""

import math

import numpy as np

from planning.slow_directions import sample_pairs, sample_rows, standardization, whiten

SLOW_CHANGE = 0.2  # of the slowest direction; small enough to be measured in short trajectories
SLOW_SCALES = 2  # k in steps of this change: a fifth of the period of a swing
MOST_STEPS = 25  # k of OGBench's robots, whose slowest direction changes by 0.2 in 19 to 700 steps
MIN_TRANSITIONS = 5  # of k steps, in the median trajectory
HORIZON = 20  # of the discount, in k: 500 steps with k = 25
MOST_CONTEXT = 100  # states
LAG_RATIO = math.sqrt(2)  # of two successive lags


def choose_numbers(data, given):
    """Choose the sampling parameters that are 0.

    Args:
        data: TrajectoryDataset.
        given: dict of sampling parameters; those of `TrajectoryDataset.numbers` that are 0 are chosen.

    Returns:
        Dict of the chosen parameters, and a list of lines with the reasons.
    """
    chosen, reasons = {}, []
    k = given.get('transition_steps')
    if k == 0:
        k, reason = choose_steps(data)
        chosen['transition_steps'] = k
        reasons.append(f'--transition_steps {k}: {reason}')
    if given.get('discount') == 0:
        chosen['discount'] = round(1 - 1 / (HORIZON * k), 4)
        reasons.append(f"--discount {chosen['discount']}: horizon of {HORIZON * k} steps, {HORIZON} times "
                       '--transition_steps')
    if given.get('context_length') == 0:
        longest = max(1, int((data.ends - data.starts).max()))
        chosen['context_length'] = min(MOST_CONTEXT, longest)
        reason = 'the largest by default' if longest >= MOST_CONTEXT else 'steps of the longest trajectory'
        reasons.append(f"--context_length {chosen['context_length']}: {reason}")
    return chosen, reasons


def choose_steps(data):
    """Return k for a TrajectoryDataset, and the reason."""
    slow = slow_steps(data)
    length = float(np.median(data.ends - data.starts))
    described = f'{slow:.0f}' if math.isfinite(slow) else f'more than {length / 2:.0f}'

    k, reason = min(
        (MOST_STEPS, f'the largest by default; the autocorrelation of the slowest direction falls by {SLOW_CHANGE} '
                     f'in {described} steps'),
        (SLOW_SCALES * slow, f'twice the {described} steps in which the autocorrelation of the slowest direction '
                             f'falls by {SLOW_CHANGE}'),
        (length / MIN_TRANSITIONS, f'1/{MIN_TRANSITIONS} of the {length:.0f} steps of the median trajectory'))
    return max(1, round(k)), reason


def has_slow_direction(data):
    """Return whether some direction of a TrajectoryDataset is slow compared with OGBench's k.

    Otherwise, as in a swing-up, positions and velocities change in the same time, and one alone is no place.
    """
    return SLOW_SCALES * slow_steps(data) >= MOST_STEPS


def slow_steps(data):
    """Return the steps in which the slowest direction of a TrajectoryDataset changes by `SLOW_CHANGE`.

    It is infinite if this takes more than half of the longest trajectory.
    """
    # directions of unit variance
    rng = np.random.default_rng(0)
    mean, scale = standardization(data)
    sample = (data.observations[sample_rows(np.arange(len(data)), rng)] - mean) * scale
    whitening = whiten(sample.T @ sample / len(sample))
    if not whitening.shape[1]:
        return math.inf

    # the smallest change of any direction, at growing lags
    longest = int((data.ends - data.starts).max())
    last_lag, last_change = 0, 0.0
    for lag in lags_up_to(longest // 2):
        rows = sample_pairs(data, lag, rng)
        changes = ((data.observations[rows + lag] - data.observations[rows]) * scale) @ whitening
        change = np.linalg.eigvalsh(changes.T @ changes / len(changes))[0] / 2
        if change >= SLOW_CHANGE:  # between the last two lags, by linear interpolation
            return last_lag + (SLOW_CHANGE - last_change) / (change - last_change) * (lag - last_lag)
        last_lag, last_change = lag, change
    return math.inf


def lags_up_to(longest):
    """Return increasing lags, in steps, of nearly constant ratio; none above `longest`."""
    count = int(math.log(longest, LAG_RATIO)) + 1 if longest else 0
    return np.unique(np.round(LAG_RATIO ** np.arange(count)).astype(int)).tolist()
