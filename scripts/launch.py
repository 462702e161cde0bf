"""Train several seeds as independent processes within a core budget, then sum their numbers up over the seeds.

    python scripts/launch.py offline_trainer.py --seeds 0 1 2 --save_dir runs/medium -- --num_updates 3000
    python scripts/launch.py online_trainer.py --seeds 0 1 2 --save_dir runs/medium-online -- \\
        --offline_checkpoint "runs/medium/seed{seed}/last.pth"

Seed k trains in <save_dir>/seed<k>, its screen output goes to <save_dir>/seed<k>.log. Given again, the command resumes
what is unfinished. <save_dir> gets aggregate.csv, aggregate.md and aggregate.png: mean, interquartile mean and 95 %
bootstrap interval over the seeds (Agarwal et al. 2021).
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

from support.figures import INK, TASK_COLORS, pyplot, save  # noqa: E402
from support.files import write_atomic  # noqa: E402
from support.flags import run_main  # noqa: E402
from support.metrics import curve, read_csv  # noqa: E402
from support.stats import by_evaluation, over_runs  # noqa: E402

SCRIPTS = {'offline_trainer.py': 'train.csv', 'online_trainer.py': 'online.csv'}


@dataclasses.dataclass
class Point:
    """One number of a run, over the seeds."""

    name: str  # its column in the CSVs
    step: float
    values: list[float]  # one for each seed
    statistics: dict[str, float]  # of `stats.over_runs`

    @property
    def n(self):
        return len(self.values)


def command(script, seed, folder, flags):
    """The command line that trains one seed, or goes on with it; `{seed}` in a flag becomes the seed."""
    words = [sys.executable, str(ROOT / script)]
    words += [flag.replace('{seed}', str(seed)) for flag in flags]
    words += ['--seed', str(seed), '--save_dir', str(folder)]
    if (folder / 'config.json').exists():
        words.append('--resume')
    return words


def start(script, seed, save_dir, flags, threads):
    """-> the process that trains one seed. It gets a process group of its own, so that Ctrl-C reaches it through us,
    and once."""
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    log_path = save_dir / f'seed{seed}.log'
    with open(log_path, 'a', encoding='utf-8') as log:
        process = subprocess.Popen(command(script, seed, save_dir / f'seed{seed}', flags), stdout=log, stderr=log,
                                   env=environment, start_new_session=True)
    print(f'seed {seed}: process {process.pid}, output in {log_path}', flush=True)
    return process


def run_all(script, seeds, save_dir, flags, cores):
    """Run every seed, as many at a time as there are cores, each with its share of them -> {seed: exit code}."""
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
    except BaseException:  # Ctrl-C, mostly: the trainings save and end, and then so do we
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        raise
    return codes


def aggregate(tables):
    """Sum up every column over the seeds -> list of `Point`. tables: the rows (dicts) of each seed.

    The k-th value of a column belongs to the k-th of the other seeds, see `stats.by_evaluation`.
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


def judged(points):
    """The columns that say how good a run is: of evaluations, or of validations where there are none."""
    names = dict.fromkeys(point.name for point in points)
    evaluations = [name for name in names if name.startswith('evaluation/')]
    validations = [name for name in names if name.startswith('validation/')]
    return evaluations or validations


def csv_text(points):
    """Every point as a line of a CSV."""
    lines = ['name,step,n,mean,iqm,low,high']
    for point in points:
        numbers = ','.join(str(point.statistics[key]) for key in ('mean', 'iqm', 'low', 'high'))
        lines.append(f'{point.name},{point.step},{point.n},{numbers}')
    return '\n'.join(lines) + '\n'


def markdown(points, seeds):
    """The last value of each judged column, as a table."""
    lines = ['| at the end | step | mean | IQM | 95 % interval | seeds |', '|---|---|---|---|---|---|']
    for name in judged(points):
        last = [point for point in points if point.name == name][-1]
        numbers = '{mean:.4g} | {iqm:.4g} | {low:.4g} to {high:.4g}'.format(**last.statistics)
        lines.append(f'| {name} | {last.step:,.0f} | {numbers} | {last.n} |')

    seeds = ', '.join(map(str, seeds))
    return '\n'.join([*lines, '', f'Seeds {seeds}; the interval is a percentile bootstrap over them.'])


def draw(points, path, title):
    """One panel per judged column: each seed thin, their mean bold, its interval shaded."""
    names = judged(points)
    rows = -(-len(names) // 4)
    figure, axes = pyplot().subplots(rows, 4, figsize=(12.4, 2.4 * rows), squeeze=False, layout='constrained')

    for axis, name in zip(axes.flat, names, strict=False):
        mine = [point for point in points if point.name == name]
        steps = [point.step for point in mine]
        low, high, mean = ([point.statistics[key] for point in mine] for key in ('low', 'high', 'mean'))

        for values in zip(*(point.values for point in mine), strict=True):
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
    """Write aggregate.csv, .md and .png from the CSVs of those seeds that have one -> the table."""
    tables = {}
    for seed in seeds:
        path = save_dir / f'seed{seed}' / SCRIPTS[script]
        if path.exists():
            tables[seed] = read_csv(path)
    if not tables:
        raise FileNotFoundError(f'no seed in {save_dir} has left a {SCRIPTS[script]}; see the .log files there')

    points = aggregate(list(tables.values()))
    table = markdown(points, tables)
    write_atomic(save_dir / 'aggregate.csv', lambda file: file.write(csv_text(points).encode()))
    write_atomic(save_dir / 'aggregate.md', lambda file: file.write((table + '\n').encode()))
    draw(points, save_dir / 'aggregate.png', f'{save_dir.name}: {len(tables)} seeds, mean and 95 % interval')
    return table


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index('--') if '--' in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     epilog="what follows -- goes to the trainer; {seed} in it becomes each one's seed")
    parser.add_argument('script', choices=SCRIPTS)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='(default: 0 1 2)')
    parser.add_argument('--save_dir', required=True, help='folder of the runs and of what is made of them')
    parser.add_argument('--cores', type=int, default=cores(), help='cores to use in all (default: %(default)s)')
    parser.add_argument('--only_report', action='store_true', help='train nothing, sum up what is there')
    options = parser.parse_args(argv[:split])
    flags = argv[split + 1:]

    if options.cores < 1 or len(set(options.seeds)) < len(options.seeds):
        raise ValueError('--cores must be at least 1, and no seed may be given twice')
    if reserved := {'--seed', '--save_dir', '--resume'} & set(flags):
        raise ValueError(f'{sorted(reserved)[0]} is set for each seed; leave it out after --')

    save_dir = Path(options.save_dir)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that run_all stops the trainings
    codes = {}
    if not options.only_report:
        codes = run_all(options.script, options.seeds, save_dir, flags, options.cores)

    table = report(options.script, options.seeds, save_dir)
    print(f'\n{table}\n\nwritten: aggregate.csv, .md and .png in {save_dir}')
    failed = [seed for seed, code in codes.items() if code]
    if failed:
        raise OSError(f'seed {", ".join(map(str, failed))} failed; see {save_dir / f"seed{failed[0]}.log"}, and give '
                      'the command again to go on')


if __name__ == '__main__':
    run_main(main)
