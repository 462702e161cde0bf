"""Statistics of results: intervals of success rates, means over seeds, paired comparisons.

scipy.stats takes half a second to import, so that only the functions that need it import it.
"""

import numpy as np


def signed(value, digits):
    """Return a number with its sign and so many digits after the point; -0.04 is '+0.0', not '-0.0'."""
    return f'{round(value, digits) + 0.0:+.{digits}f}'


def wilson_interval(successes, n, level=0.95):
    """Return the confidence interval (low, high) of a success rate, in [0, 1] (Wilson 1927).

    Unlike mean ± standard error, the interval is wider than a point if all episodes succeed or all fail.

    Args:
        successes: number of successful episodes.
        n: number of episodes, at least 1.
        level: of confidence.
    """
    from scipy.stats import binomtest

    interval = binomtest(int(successes), n).proportion_ci(confidence_level=level, method='wilson')
    return float(interval.low), float(interval.high)


def iqm(values, axis=-1):
    """Return the interquartile mean along `axis`: the mean without the lowest and the highest quarter of the
    values (Agarwal et al. 2021).
    """
    # A value at the border of a quarter has a fractional weight. scipy.stats.trim_mean drops whole values
    # only, fewer than a quarter if n is not a multiple of 4.
    values = np.sort(np.moveaxis(np.asarray(values, float), axis, -1), -1)
    n = values.shape[-1]
    rank_from_below = np.arange(1, n + 1)
    rank_from_above = np.arange(n, 0, -1)

    weights = np.clip(np.minimum(rank_from_below, rank_from_above) - n / 4, 0, 1)
    return values @ (weights / weights.sum())


def bootstrap_interval(values, statistic=np.mean, level=0.95, resamples=2000, seed=0):
    """Return the percentile bootstrap interval (low, high) of a statistic.

    Args:
        values: (..., n); the bootstrap is over the last axis. A single value gives low = high.
        statistic: function (array, axis).
        level: of confidence.
        resamples: number of bootstrap samples.
        seed: of the samples.
    """
    # scipy.stats.bootstrap refuses a single value, and results of one seed are common.
    values = np.asarray(values, float)
    n = values.shape[-1]
    picks = np.random.default_rng(seed).integers(n, size=(resamples, n))
    results = statistic(values[..., picks], axis=-1)

    tail = 100 * (1 - level) / 2
    low, high = np.percentile(results, [tail, 100 - tail], axis=-1)
    return low, high


def paired_comparison(ours, theirs):
    """Compare two agents on the same n episodes.

    Args:
        ours, theirs: (n,) successes, 0 or 1.

    Returns:
        dict of
        difference: mean of ours - theirs, in [-1, 1];
        low, high: its 95 % bootstrap interval over episodes;
        only_ours, only_theirs: number of episodes that only this agent solved;
        p_value: of McNemar's exact two-sided test on these two numbers.

    Raises:
        ValueError: the lengths differ.
    """
    from scipy.stats import binomtest

    ours = np.asarray(ours, float)
    theirs = np.asarray(theirs, float)
    if ours.shape != theirs.shape:
        raise ValueError('paired episodes need two lists of the same length, '
                         f'got {len(ours)} and {len(theirs)}')

    low, high = bootstrap_interval(ours - theirs)
    only_ours = int(np.sum(ours > theirs))
    only_theirs = int(np.sum(ours < theirs))
    discordant = only_ours + only_theirs
    p_value = binomtest(only_ours, discordant).pvalue if discordant else 1.0  # scipy refuses zero trials

    return {
        'difference': float(np.mean(ours - theirs)),
        'low': float(low),
        'high': float(high),
        'only_ours': only_ours,
        'only_theirs': only_theirs,
        'p_value': float(p_value),
    }


def mean_std(values):
    """Return the mean and the sample standard deviation (0 for a single value)."""
    mean = float(np.mean(values))
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return mean, std


def mean_half_width(values, level=0.95):
    """Return half of the confidence interval of the mean of n values, by Student's t; n is at least 2.

    A bootstrap over a few seeds would be too narrow.
    """
    from scipy.stats import sem, t

    return float(t.ppf((1 + level) / 2, len(values) - 1) * sem(values))


def last_three_mean(values):
    """Return the mean of the last three evaluations, which OGBench reports for a run."""
    return float(np.mean(values[-3:]))


def over_runs(values):
    """Summarise one value from each of n runs.

    Returns:
        dict of floats: mean, std (0 for a single run), iqm, and low, high, the mean's 95 % bootstrap
        interval.
    """
    mean, std = mean_std(values)
    low, high = bootstrap_interval(values)
    return {'mean': mean, 'std': std, 'iqm': float(iqm(values)), 'low': float(low), 'high': float(high)}


def by_evaluation(runs):
    """Align the k-th evaluations of several runs, without interpolation.

    Their steps differ, because evaluations wait for an episode to end.

    Args:
        runs: list of (steps, values).

    Returns:
        steps (points,), the means over runs, values (runs, points); as many points as the shortest run has.
    """
    points = min(len(steps) for steps, _ in runs)
    steps = np.mean([steps[:points] for steps, _ in runs], axis=0)
    return steps, np.array([values[:points] for _, values in runs], float)


def on_common_steps(runs, points=101):
    """Interpolate runs linearly over the range of steps that all of them cover.

    Args:
        runs: list of (steps, values), steps increasing.
        points: number of steps in the result; it has none if no range is common to all runs.

    Returns:
        steps (points,), values (runs, points).
    """
    low = max(steps[0] for steps, _ in runs)
    high = min(steps[-1] for steps, _ in runs)
    grid = np.linspace(low, high, points if low <= high else 0)
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in runs])
