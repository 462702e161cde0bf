"""Compare groups of runs by their CSV files: a figure with means and intervals, and a table.

    python scripts/analysis/plot_runs.py "online_checkpoints/*/seed*"
    python scripts/analysis/plot_runs.py "k = 10=runs/k10/seed*" "k = 25=runs/k25/seed*" --output k.pdf

Each argument is a path or a pattern of run folders or CSV files. LABEL= before it names its group,
which by default has the name of the parent folder. A path may contain [ ] and =.
"""

import argparse
import glob
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from any folder

from support.figures import add_format, output_path, plot_bands  # noqa: E402
from support.flags import run_main, summary  # noqa: E402
from support.metrics import curve, read_csv  # noqa: E402
from support.stats import last_three_mean, over_runs  # noqa: E402


def find_runs(patterns):
    """Return {label: [CSV paths]} of patterns of run folders or CSV files.

    Raises:
        FileNotFoundError: if no file matches a pattern.
    """
    groups = {}
    for argument in patterns:
        # the whole argument, or what follows one of its =
        places = [-1, *(i for i, letter in enumerate(argument) if letter == '=')]
        matches = ((argument[:max(place, 0)], _matches(argument[place + 1:])) for place in places)
        label, paths = next((match for match in matches if match[1]), ('', []))
        if not paths:
            raise FileNotFoundError(f'{argument}: no run folder or CSV file matches')

        for path in paths:
            group = label or path.parent.parent.name or str(path)
            groups.setdefault(group, []).append(path)
    return groups


def _matches(pattern):
    """Return the CSV paths that a pattern matches; [ ] may be part of a path, or enclose characters."""
    for text in (glob.escape(pattern), pattern.replace('[', '[[]'), pattern):
        found = [_csv(Path(path)) for path in sorted(glob.glob(text))]
        if paths := [path for path in found if path]:
            return paths
    return []


def _csv(path):
    """Return the CSV file of a run's folder, or `path` itself if it is one; None if there is none."""
    names = ('online.csv', 'train.csv', 'offline.csv')
    candidates = [path] if path.suffix == '.csv' else [path / name for name in names]
    return next((path for path in candidates if path.is_file()), None)


def read_metric(path, metric):
    """Return the steps and values of the rows that have a metric.

    Raises:
        ValueError: if no row has it; the message lists the metrics of the file.
    """
    rows = read_csv(path)
    steps, values = curve(rows, metric)
    if not steps:
        names = sorted({name for row in rows for name in row} - {'step', 'time'})
        raise ValueError(f'{path} has no {metric}; it has {", ".join(names)}')
    return steps, values


def print_table(groups, metric):
    """Print statistics of the runs' means of their last three values, one line for each group."""
    percent = 'success' in metric
    scale = 100 if percent else 1
    width = max(map(len, groups))

    print(f'{metric}{", %" if percent else ""}: mean of the last three values, over runs')
    print(f'{"":{width}s}  runs   last step    mean +- std       IQM  95 % interval of the mean')
    for label, runs in groups.items():
        last_step = max(steps[-1] for steps, _ in runs)
        s = over_runs([scale * last_three_mean(values) for _, values in runs])
        print(f'{label:{width}s}  {len(runs):4d}  {last_step:10,.0f}  {s["mean"]:6.4g} +- {s["std"]:<5.3g}  '
              f'{s["iqm"]:6.4g}  {s["low"]:.4g} to {s["high"]:.4g}')


def main(argv=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('runs', nargs='+', help='[LABEL=]pattern of run folders or CSV files')
    parser.add_argument('--metric', default='evaluation/overall_success',
                        help='column of the CSV files (default: %(default)s)')
    parser.add_argument('--output', default='runs.png', help='.png, .pdf or .svg file (default: %(default)s)')
    add_format(parser)
    parser.add_argument('--title', default='', help='title of the figure')
    flags = parser.parse_args(argv)
    output = output_path(flags.output, flags.format)

    groups = {}
    for label, paths in find_runs(flags.runs).items():
        groups[label] = [read_metric(path, flags.metric) for path in paths]
    print_table(groups, flags.metric)

    percent = 'success' in flags.metric
    ylabel = flags.metric.split('/')[-1].replace('_', ' ') + (', %' if percent else '')
    has_interval = any(len(runs) > 1 for runs in groups.values())
    title = flags.title or ('mean and 95 % interval' if has_interval else '')
    plot_bands(groups, output, ylabel, title, percent=percent)
    print(f'written: {output}')


if __name__ == '__main__':
    run_main(main)
