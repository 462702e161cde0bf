"""Train several seeds as independent processes within a core budget, then sum their numbers up over the seeds.

    python scripts/launch.py offline_trainer.py --seeds 0 1 2 --save_dir runs/medium -- --num_updates 3000
    python scripts/launch.py online_trainer.py --seeds 0 1 2 --save_dir runs/medium-online -- \\
        --offline_checkpoint "runs/medium/seed{seed}/last.pth"

Seed k trains in <save_dir>/seed<k>, its screen output goes to <save_dir>/seed<k>.log. Given again, the command resumes
what is unfinished. <save_dir> gets aggregate.csv, aggregate.md and aggregate.png: mean, interquartile mean and 95 %
bootstrap interval over the seeds (Agarwal et al. 2021).
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from support.threads import cores  # noqa: E402

from support.figures import INK, TASK_COLORS, pyplot, save  # noqa: E402
from support.files import write_atomic  # noqa: E402
from support.flags import run_main  # noqa: E402
from support.metrics import read_csv  # noqa: E402
from support.stats import bootstrap_interval, iqm  # noqa: E402

SCRIPTS = {'offline_trainer.py': 'train.csv', 'online_trainer.py': 'online.csv'}


def command(script, seed, folder, flags):
    """The command line that trains one seed, or goes on with it; `{seed}` in a flag becomes the seed."""
    resume = ['--resume'] if (folder / 'config.json').exists() else []
    return [sys.executable, str(ROOT / script), *(flag.replace('{seed}', str(seed)) for flag in flags),
            '--seed', str(seed), '--save_dir', str(folder), *resume]


def run_all(script, seeds, save_dir, flags, cores):
    """Run every seed, as many at a time as there are cores, each with its share of them -> {seed: exit code}."""
    together = min(len(seeds), cores)
    threads = str(max(1, cores // together))
    environment = {**os.environ, 'OMP_NUM_THREADS': threads}
    waiting, running, codes = list(seeds), {}, {}
    save_dir.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while waiting and len(running) < together:
                seed = waiting.pop(0)
                with open(save_dir / f'seed{seed}.log', 'a', encoding='utf-8') as log:
                    running[seed] = subprocess.Popen(  # in a group of its own: Ctrl-C comes through us, and once
                        command(script, seed, save_dir / f'seed{seed}', flags), stdout=log, stderr=log,
                        env=environment, start_new_session=True)
                print(f'seed {seed}: process {running[seed].pid}, output in {save_dir / f"seed{seed}.log"}', flush=True)
            for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                codes[seed] = running.pop(seed).returncode
                print(f'seed {seed}: {f"FAILED with exit code {codes[seed]}" if codes[seed] else "done"}', flush=True)
            time.sleep(0.2)
    except BaseException:  # Ctrl-C, mostly: the trainings save and end, and then so do we
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        raise
    return codes


def aggregate(tables):
    """tables: a list of rows (dicts) of each seed -> list of dicts (name, step, n, mean, iqm, low, high, values).

    The k-th value of a column belongs to the k-th of the other seeds, at the mean of their steps: evaluations come
    after whole episodes, hence not at the same step in all of them.
    """
    names = dict.fromkeys(name for rows in tables for row in rows for name in row if name not in ('step', 'time'))
    summary = []
    for name in names:
        columns = [[(row['step'], row[name]) for row in rows if name in row] for rows in tables]
        for points in zip(*filter(None, columns), strict=False):
            steps, values = zip(*points, strict=True)
            low, high = bootstrap_interval(values)
            summary.append({'name': name, 'step': float(np.mean(steps)), 'n': len(values), 'values': values,
                            'mean': float(np.mean(values)), 'iqm': float(iqm(values)), 'low': float(low),
                            'high': float(high)})
    return summary


def judged(summary):
    """The columns that say how good a run is: of evaluations, or of validations where there are none."""
    names = dict.fromkeys(line['name'] for line in summary)
    return ([name for name in names if name.startswith('evaluation/')]
            or [name for name in names if name.startswith('validation/')])


def markdown(summary, seeds):
    """The last value of each judged column, as a table."""
    lines = ['| at the end | step | mean | IQM | 95 % interval | seeds |', '|---|---|---|---|---|---|']
    for name in judged(summary):
        last = [line for line in summary if line['name'] == name][-1]
        lines.append(f"| {name} | {last['step']:,.0f} | {last['mean']:.4g} | {last['iqm']:.4g} | "
                     f"{last['low']:.4g} to {last['high']:.4g} | {last['n']} |")
    seeds = ', '.join(map(str, seeds))
    return '\n'.join([*lines, '', f'Seeds {seeds}; the interval is a percentile bootstrap over them.'])


def draw(summary, path, title):
    """One panel per judged column: each seed thin, their mean bold, its interval shaded."""
    names = judged(summary)
    rows = -(-len(names) // 4)
    figure, axes = pyplot().subplots(rows, 4, figsize=(12.4, 2.4 * rows), squeeze=False, layout='constrained')
    for axis, name in zip(axes.flat, names, strict=False):
        lines = [line for line in summary if line['name'] == name]
        steps, values = [line['step'] for line in lines], [line['values'] for line in lines]
        most = min(map(len, values))
        for i in range(most):
            axis.plot(steps, [v[i] for v in values], color=TASK_COLORS[0], lw=0.8, alpha=0.5)
        axis.fill_between(steps, *([line[key] for line in lines] for key in ('low', 'high')), color=TASK_COLORS[0],
                          alpha=0.2, lw=0)
        axis.plot(steps, [line['mean'] for line in lines], 'o-', color=INK, lw=1.8, ms=3)
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
    tables = {seed: read_csv(save_dir / f'seed{seed}' / SCRIPTS[script]) for seed in seeds
              if (save_dir / f'seed{seed}' / SCRIPTS[script]).exists()}
    if not tables:
        raise FileNotFoundError(f'no seed in {save_dir} has left a {SCRIPTS[script]}; see the .log files there')
    summary = aggregate(list(tables.values()))
    columns = ('name', 'step', 'n', 'mean', 'iqm', 'low', 'high')
    lines = [','.join(columns), *(','.join(str(line[key]) for key in columns) for line in summary)]
    write_atomic(save_dir / 'aggregate.csv', lambda file: file.write(('\n'.join(lines) + '\n').encode()))
    table = markdown(summary, tables)
    write_atomic(save_dir / 'aggregate.md', lambda file: file.write((table + '\n').encode()))
    draw(summary, save_dir / 'aggregate.png', f'{save_dir.name}: {len(tables)} seeds, mean and 95 % interval')
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
    options, flags = parser.parse_args(argv[:split]), argv[split + 1:]
    if options.cores < 1 or len(set(options.seeds)) < len(options.seeds):
        raise ValueError('--cores must be at least 1, and no seed may be given twice')
    if reserved := {'--seed', '--save_dir', '--resume'} & set(flags):
        raise ValueError(f'{sorted(reserved)[0]} is set for each seed; leave it out after --')
    save_dir = Path(options.save_dir)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that run_all stops the trainings
    codes = {} if options.only_report else run_all(options.script, options.seeds, save_dir, flags, options.cores)
    print(f'\n{report(options.script, options.seeds, save_dir)}\n\nwritten: aggregate.csv, .md and .png in {save_dir}')
    if failed := [seed for seed, code in codes.items() if code]:
        raise OSError(f'seed {", ".join(map(str, failed))} failed; see {save_dir / f"seed{failed[0]}.log"}, and give '
                      'the command again to go on')


if __name__ == '__main__':
    run_main(main)
