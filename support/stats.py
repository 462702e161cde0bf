"""Statistics of results: intervals of success rates, means over seeds, comparisons on the same episodes."""

import math

import numpy as np


def wilson_interval(successes, n, z=1.96):
    """95 % interval of a success rate (Wilson 1927) -> (low, high)."""
    p, centre = successes / n, (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(n * p * (1 - p) + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def iqm(values, axis=-1):
    """Interquartile mean (Agarwal et al. 2021): the mean without the lowest and the highest quarter, of which
    values at the border count in part, so that it is defined for any number of them."""
    values = np.sort(np.moveaxis(np.asarray(values, float), axis, -1), -1)
    n = values.shape[-1]
    weights = np.clip(np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) - n / 4, 0, 1)
    return values @ (weights / weights.sum())


def bootstrap_interval(values, statistic=np.mean, level=0.95, resamples=2000, seed=0):
    """Percentile bootstrap over the last axis of `values` (..., n) -> (low, high), each (...).

    `statistic(array, axis=-1)` is what the interval is for. A single value has no spread: low = high.
    """
    values = np.asarray(values, float)
    picks = np.random.default_rng(seed).integers(values.shape[-1], size=(resamples, values.shape[-1]))
    results = statistic(values[..., picks], axis=-1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(results, [tail, 100 - tail], axis=-1)
    return low, high


def paired_comparison(ours, theirs):
    """Two agents' successes (0 or 1) on the same n episodes -> dict.

    difference: mean of ours - theirs; low, high: its 95 % bootstrap interval over episodes; only_ours,
    only_theirs: episodes that one alone solved; p_value: McNemar's exact test on these (two-sided).
    """
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    if ours.shape != theirs.shape:
        raise ValueError(f'paired episodes need two lists of the same length, got {len(ours)} and {len(theirs)}')
    low, high = bootstrap_interval(ours - theirs)
    b, c = int(np.sum(ours > theirs)), int(np.sum(ours < theirs))
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
    return {'difference': float(np.mean(ours - theirs)), 'low': float(low), 'high': float(high),
            'only_ours': b, 'only_theirs': c, 'p_value': min(1.0, 2 * tail)}


def mean_std(values):
    """-> (mean, sample standard deviation; 0 for a single value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def last_three_mean(values):
    """OGBench's reported number of a run: the mean of its last three evaluations."""
    return float(np.mean(values[-3:]))


def on_common_steps(runs, points=101):
    """runs: list of (steps, values), steps increasing but different in each -> (steps (points,), values (runs,
    points)), linearly interpolated over the range that all runs cover; no points where there is no such range."""
    low, high = max(steps[0] for steps, _ in runs), min(steps[-1] for steps, _ in runs)
    grid = np.linspace(low, high, points if low <= high else 0)
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in runs])
