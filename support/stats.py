"""Statistics of results: intervals of success rates, means over seeds, comparisons on the same episodes.

scipy.stats is imported inside the functions that need it: it takes half a second, and most programs that import this
module never call them.
"""

import numpy as np


def wilson_interval(successes, n, level=0.95):
    """Confidence interval of a success rate (Wilson 1927) -> (low, high), both in [0, 1].

    `successes` of `n` episodes, n at least 1. Unlike the mean ± standard error, the interval stays wider than a point
    when all episodes succeeded or all failed.
    """
    from scipy.stats import binomtest

    interval = binomtest(int(successes), n).proportion_ci(confidence_level=level, method='wilson')
    return float(interval.low), float(interval.high)


def iqm(values, axis=-1):
    """Interquartile mean (Agarwal et al. 2021): the mean without the lowest and the highest quarter of the values.

    `values`: an array of any shape with at least one value along `axis`, which the result no longer has.
    """
    # Not scipy.stats.trim_mean, which cuts whole values only and so drops less than a quarter where n is not a
    # multiple of 4. Here a value at the border of a quarter counts in part.
    values = np.sort(np.moveaxis(np.asarray(values, float), axis, -1), -1)
    n = values.shape[-1]
    rank_from_below = np.arange(1, n + 1)
    rank_from_above = np.arange(n, 0, -1)

    weights = np.clip(np.minimum(rank_from_below, rank_from_above) - n / 4, 0, 1)
    return values @ (weights / weights.sum())


def bootstrap_interval(values, statistic=np.mean, level=0.95, resamples=2000, seed=0):
    """Percentile bootstrap over the last axis of `values` (..., n) -> (low, high), each of shape (...).

    `statistic(array, axis=-1)` is what the interval is for. A single value has no spread: low = high.
    """
    # Not scipy.stats.bootstrap, which refuses a single value; runs with one seed are common here.
    values = np.asarray(values, float)
    n = values.shape[-1]
    picks = np.random.default_rng(seed).integers(n, size=(resamples, n))
    results = statistic(values[..., picks], axis=-1)

    tail = 100 * (1 - level) / 2
    low, high = np.percentile(results, [tail, 100 - tail], axis=-1)
    return low, high


def paired_comparison(ours, theirs):
    """Compare two agents by their successes (0 or 1) on the same n episodes, two sequences of length n -> dict.

    difference: mean of ours - theirs, in [-1, 1]
    low, high: its 95 % bootstrap interval over episodes
    only_ours, only_theirs: number of episodes that this agent alone solved
    p_value: McNemar's exact test on these two numbers, two-sided

    Raises ValueError if the lengths differ.
    """
    from scipy.stats import binomtest

    ours = np.asarray(ours, float)
    theirs = np.asarray(theirs, float)
    if ours.shape != theirs.shape:
        raise ValueError(f'paired episodes need two lists of the same length, got {len(ours)} and {len(theirs)}')

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
    """-> (mean, sample standard deviation; 0 for a single value)."""
    mean = float(np.mean(values))
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return mean, std


def mean_half_width(values, level=0.95):
    """Half of the confidence interval of the mean of n values, by Student's t; n at least 2. Of so few values as there
    are seeds a bootstrap would be too narrow."""
    from scipy.stats import sem, t

    return float(t.ppf((1 + level) / 2, len(values) - 1) * sem(values))


def last_three_mean(values):
    """The number that OGBench reports for a run: the mean of its last three evaluations."""
    return float(np.mean(values[-3:]))


def over_runs(values):
    """Sum up one number from each of n runs -> dict of floats: mean, std (0 for a single run), iqm, and low, high, the
    mean's 95 % bootstrap interval."""
    mean, std = mean_std(values)
    low, high = bootstrap_interval(values)
    return {'mean': mean, 'std': std, 'iqm': float(iqm(values)), 'low': float(low), 'high': float(high)}


def by_evaluation(runs):
    """Line up the k-th value of every run -> (steps (points,), values (runs, points)).

    `runs`: list of (steps, values). Each point lies at the mean of the runs' k-th steps, which differ because
    evaluations wait for an episode to end. Points beyond the end of the shortest run are left out. Nothing is
    interpolated, unlike in `on_common_steps`.
    """
    points = min(len(steps) for steps, _ in runs)
    steps = np.mean([steps[:points] for steps, _ in runs], axis=0)
    return steps, np.array([values[:points] for _, values in runs], float)


def on_common_steps(runs, points=101):
    """Interpolate runs linearly over the range of steps that all of them cover -> (steps (points,), values (runs,
    points)).

    `runs`: list of (steps, values); steps increase but may differ between runs. Where no range is common to all runs,
    the result has no points.
    """
    low = max(steps[0] for steps, _ in runs)
    high = min(steps[-1] for steps, _ in runs)
    grid = np.linspace(low, high, points if low <= high else 0)
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in runs])
