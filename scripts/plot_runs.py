"""Compare runs and seeds from their CSVs alone: a figure with mean and interval, and a table.

    python scripts/plot_runs.py "online_checkpoints/*/seed*"
    python scripts/plot_runs.py "k = 10=runs/k10/seed*" "k = 25=runs/k25/seed*" --output k.png

Each argument is a pattern of run folders or CSV files, with LABEL= before it, or else grouped by the folder above.
"""

import argparse
import glob
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from any folder

from support.figures import plot_bands  # noqa: E402
from support.flags import run_main  # noqa: E402
from support.metrics import read_csv  # noqa: E402
from support.stats import bootstrap_interval, iqm, last_three_mean, mean_std  # noqa: E402


def find_runs(patterns):
    """-> {label: [CSV paths]}. Raises FileNotFoundError for a pattern that fits nothing."""
    groups = {}
    for pattern in patterns:
        label, equals, rest = pattern.rpartition('=')
        paths = [_csv(Path(path)) for path in sorted(glob.glob(rest if equals else pattern))]
        if not (paths := [path for path in paths if path]):
            raise FileNotFoundError(f'{rest}: no run folder or CSV file fits')
        for path in paths:
            groups.setdefault(label if equals else path.parent.parent.name or str(path), []).append(path)
    return groups


def _csv(path):
    candidates = [path] if path.suffix == '.csv' else [path / 'online.csv', path / 'train.csv', path / 'offline.csv']
    return next((path for path in candidates if path.is_file()), None)


def read_metric(path, metric):
    """-> (steps, values) of the rows that have `metric`. Raises ValueError where none has, naming those there are."""
    rows = read_csv(path)
    points = [(row['step'], row[metric]) for row in rows if metric in row]
    if not points:
        names = sorted({name for row in rows for name in row} - {'step', 'time'})
        raise ValueError(f'{path} has no {metric}; it has {", ".join(names)}')
    return tuple(zip(*points, strict=True))


def summary(runs):
    """-> dict: mean and std over runs of the mean of each run's last three values, their IQM with its interval."""
    finals = [last_three_mean(values) for _, values in runs]
    low, high = bootstrap_interval(finals, iqm)
    return dict(zip(('mean', 'std'), mean_std(finals), strict=True)) | {'iqm': float(iqm(finals)), 'low': float(low),
                                                                       'high': float(high)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', nargs='+', help='[LABEL=]pattern of run folders or CSV files')
    parser.add_argument('--metric', default='evaluation/overall_success', help='column (default: %(default)s)')
    parser.add_argument('--output', default='runs.png', help='picture (default: %(default)s)')
    parser.add_argument('--title', default='', help='title of the picture')
    flags = parser.parse_args()
    groups = {label: [read_metric(path, flags.metric) for path in paths]
              for label, paths in find_runs(flags.runs).items()}
    percent = 'success' in flags.metric
    scale = 100 if percent else 1
    width = max(map(len, groups))
    print(f'{flags.metric}{", %" if percent else ""}: mean of the last three, over runs\n'
          f'{"":{width}s}  runs   last step    mean +- std     IQM (95 % interval)')
    for label, runs in groups.items():
        s = {name: scale * value for name, value in summary(runs).items()}
        print(f'{label:{width}s}  {len(runs):4d}  {max(steps[-1] for steps, _ in runs):10,.0f}  {s["mean"]:6.4g} +- '
              f'{s["std"]:<5.3g}  {s["iqm"]:6.4g} ({s["low"]:.4g} to {s["high"]:.4g})')
    plot_bands(groups, flags.output, flags.metric.split('/')[-1].replace('_', ' ') + (', %' if percent else ''),
               flags.title or 'mean and 95 % interval', percent=percent)
    print(f'written: {flags.output}')


if __name__ == '__main__':
    run_main(main)
