"""Train several seeds in processes that share the cores, then aggregate their metrics.

    python scripts/launch.py offline_trainer.py --seeds 0 1 2 --save_dir runs/medium -- --num_updates 3000
    python scripts/launch.py online_trainer.py --seeds 0 1 2 --save_dir runs/medium-online -- \\
        --offline_checkpoint "runs/medium/seed{seed}/last.pth"

Seed k trains in <save_dir>/seed<k>, and its output goes to <save_dir>/seed<k>.log. The same command resumes
unfinished runs. It writes aggregate.csv, aggregate.md and aggregate.png to <save_dir>: mean, interquartile
mean and 95 % bootstrap interval over the seeds (Agarwal et al. 2021).
"""

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from support.threads import cores  # noqa: E402

from support.figures import INK, TASK_COLORS, default_style, optional_picture, save, subplots  # noqa: E402
from support.files import write_atomic  # noqa: E402
from support.flags import run_main, summary  # noqa: E402
from support.metrics import curve, read_csv  # noqa: E402
from support.runs import stop_signals  # noqa: E402
from support.stats import by_evaluation, over_runs  # noqa: E402

SCRIPTS = {'offline_trainer.py': 'train.csv', 'online_trainer.py': 'online.csv'}


@dataclasses.dataclass
class Point:
    """One metric at one step, over the seeds."""

    name: str  # its column in the CSVs
    step: float
    values: list[float]  # one for each seed
    statistics: dict[str, float]  # from `stats.over_runs`

    @property
    def n(self):
        return len(self.values)


def command(script, seed, folder, flags):
    """Return the command that trains or resumes one seed; `{seed}` in a flag becomes the seed."""
    words = [sys.executable, str(ROOT / script)]
    words += [flag.replace('{seed}', str(seed)) for flag in flags]
    words += ['--seed', str(seed), '--save_dir', str(folder)]
    if (folder / 'config.json').exists():
        words.append('--resume')
    return words


def start(script, seed, save_dir, flags, threads):
    """Start the process that trains one seed.

    It has its own process group, so that Ctrl-C does not reach it directly, but through `run_all`.
    """
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    log_path = save_dir / f'seed{seed}.log'
    with open(log_path, 'a', encoding='utf-8') as log:
        words = command(script, seed, save_dir / f'seed{seed}', flags)
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
    print(f'seed {seed}: process {process.pid}, output in {log_path}', flush=True)
    return process


def run_all(script, seeds, save_dir, flags, cores):
    """Train all seeds, as many at a time as there are cores, and return {seed: exit code}."""
    together = min(len(seeds), cores)
    threads = max(1, cores // together)
    save_dir.mkdir(parents=True, exist_ok=True)

    waiting = list(seeds)
    running = {}
    codes = {}
    try:
        while waiting or running:
            while waiting and len(running) < together:
                seed = waiting.pop(0)
                running[seed] = start(script, seed, save_dir, flags, threads)

            ended = [seed for seed, process in running.items() if process.poll() is not None]
            for seed in ended:
                codes[seed] = running.pop(seed).returncode
                outcome = f'FAILED with exit code {codes[seed]}' if codes[seed] else 'done'
                print(f'seed {seed}: {outcome}', flush=True)
            time.sleep(0.2)
    except BaseException:  # Ctrl-C or SIGTERM: the trainings save and end first
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        raise
    return codes


def aggregate(tables):
    """Aggregate every column over the seeds.

    The k-th values of a column are aligned, see `stats.by_evaluation`.

    Args:
        tables: rows (dicts) of each seed.

    Returns:
        list of `Point`.
    """
    names = dict.fromkeys(name for rows in tables for row in rows for name in row)
    points = []
    for name in names:
        if name in ('step', 'time'):
            continue
        curves = [curve(rows, name) for rows in tables]
        steps, values = by_evaluation([one for one in curves if one[0]])
        for step, column in zip(steps, values.T, strict=True):
            points.append(Point(name, float(step), column.tolist(), over_runs(column)))
    return points


def result_columns(points):
    """Return the columns with the results of a run: of evaluations, or of validations if there are none."""
    names = dict.fromkeys(point.name for point in points)
    evaluations = [name for name in names if name.startswith('evaluation/')]
    validations = [name for name in names if name.startswith('validation/')]
    return evaluations or validations


def csv_text(points):
    """Return the text of a CSV with one line per point."""
    lines = ['name,step,n,mean,iqm,low,high']
    for point in points:
        numbers = ','.join(str(point.statistics[key]) for key in ('mean', 'iqm', 'low', 'high'))
        lines.append(f'{point.name},{point.step},{point.n},{numbers}')
    return '\n'.join(lines) + '\n'


def markdown(points, seeds):
    """Return a table of the last value of each result column."""
    lines = ['| at the end | step | mean | IQM | 95 % interval | seeds |', '|---|---|---|---|---|---|']
    for name in result_columns(points):
        last = [point for point in points if point.name == name][-1]
        numbers = '{mean:.4g} | {iqm:.4g} | {low:.4g} to {high:.4g}'.format(**last.statistics)
        lines.append(f'| {name} | {last.step:,.0f} | {numbers} | {last.n} |')

    seeds = ', '.join(map(str, seeds))
    return '\n'.join([*lines, '', f'Seeds {seeds}; the interval is a percentile bootstrap over them.'])


@default_style()
def draw(points, path, title):
    """Draw one panel per result column: thin lines for seeds, a bold mean, a shaded interval."""
    names = result_columns(points)
    rows = -(-len(names) // 4)
    figure, axes = subplots(rows, 4, (12.4, 2.4 * rows))

    for axis, name in zip(axes.flat, names, strict=False):
        shown = [point for point in points if point.name == name]
        steps = [point.step for point in shown]
        low, high, mean = ([point.statistics[key] for point in shown] for key in ('low', 'high', 'mean'))

        for values in zip(*(point.values for point in shown), strict=True):
            axis.plot(steps, values, color=TASK_COLORS[0], lw=0.8, alpha=0.5)
        axis.fill_between(steps, low, high, color=TASK_COLORS[0], alpha=0.2, lw=0)
        axis.plot(steps, mean, 'o-', color=INK, lw=1.8, ms=3)

        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25, lw=0.5)
        axis.spines[['top', 'right']].set_visible(False)

    for axis in axes.flat[len(names):]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def report(script, seeds, save_dir):
    """Write aggregate.csv, .md and .png from the CSVs of all seeds that have one; return the table."""
    tables = {}
    for seed in seeds:
        path = save_dir / f'seed{seed}' / SCRIPTS[script]
        if path.exists():
            tables[seed] = read_csv(path)
    if not tables:
        raise FileNotFoundError(f'no seed in {save_dir} has a {SCRIPTS[script]}; see the .log files there')

    points = aggregate(list(tables.values()))
    table = markdown(points, tables)
    write_atomic(save_dir / 'aggregate.csv', lambda file: file.write(csv_text(points).encode()))
    write_atomic(save_dir / 'aggregate.md', lambda file: file.write((table + '\n').encode()))
    path = save_dir / 'aggregate.png'
    with optional_picture(path):
        draw(points, path, f'{save_dir.name}: {len(tables)} seeds, mean and 95 % interval')
    return table


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index('--') if '--' in argv else len(argv)
    parser = argparse.ArgumentParser(description=summary(__doc__),
                                     epilog='flags after -- go to the trainer, with {seed} replaced')
    parser.add_argument('script', choices=SCRIPTS)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2],
                        help='seeds to train (default: 0 1 2)')
    parser.add_argument('--save_dir', required=True, help='folder of the runs and of the aggregates')
    parser.add_argument('--cores', type=int, default=cores(),
                        help='number of cores to use (default: %(default)s)')
    parser.add_argument('--only_report', action='store_true',
                        help='aggregate the runs in --save_dir without training')
    options = parser.parse_args(argv[:split])
    flags = argv[split + 1:]

    if options.cores < 1 or len(set(options.seeds)) < len(options.seeds):
        raise ValueError('--cores must be at least 1, and no seed may be given twice')
    if reserved := {'--seed', '--save_dir', '--resume'} & set(flags):
        raise ValueError(f'{sorted(reserved)[0]} is set for each seed; leave it out after --')

    save_dir = Path(options.save_dir)
    for number in stop_signals()[1:]:  # all but Ctrl-C: run_all stops the trainings
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    codes = {}
    if not options.only_report:
        codes = run_all(options.script, options.seeds, save_dir, flags, options.cores)

    table = report(options.script, options.seeds, save_dir)
    print(f'\n{table}\n\nwritten: aggregate.csv, .md and .png in {save_dir}')
    failed = [seed for seed, code in codes.items() if code]
    if failed:
        log_path = save_dir / f'seed{failed[0]}.log'
        raise OSError(f'seed {", ".join(map(str, failed))} failed; see {log_path}, and repeat the command to '
                      'resume')


if __name__ == '__main__':
    run_main(main)
