"""Train several seeds and datasets as jobs on this machine or on a SLURM cluster, then aggregate their metrics.

    python scripts/launch.py offline_trainer.py --seeds 0 1 2 --save_dir runs/medium -- --num_updates 3000
    python scripts/launch.py online_trainer.py --seeds 0 1 2 --save_dir runs/medium-online -- \\
        --offline_checkpoint "runs/medium/seed{seed}/last.pth"
    python scripts/launch.py offline_trainer.py --datasets antmaze-medium-navigate-v0 antmaze-large-navigate-v0 \\
        --save_dir runs/offline --cluster slurm --slurm partition=cpu

submitit runs the jobs (pip install -r requirements-launch.txt). Seed k trains in <save_dir>/seed<k>, or with --datasets
in <save_dir>/<dataset>/seed<k>; its output goes to seed<k>.log beside that folder. The same command resumes unfinished
runs, and a job that the cluster preempts or whose time is over saves its run and is queued again. At the end,
aggregate.csv, .md and .png are written to <save_dir>, or to the folder of each dataset: mean, interquartile mean and
95 % bootstrap interval over the seeds (Agarwal et al. 2021). SLURM jobs are not waited for: --only_report writes these
files later.
"""

import argparse
import contextlib
import dataclasses
import os
import shlex
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
from support.locks import lock_owner  # noqa: E402
from support.metrics import curve, read_csv  # noqa: E402
from support.results import split_flags  # noqa: E402
from support.stats import by_evaluation, over_runs  # noqa: E402

SCRIPTS = {'offline_trainer.py': 'train.csv', 'online_trainer.py': 'online.csv'}
SLURM_CORES = 2  # of a job
SAVE_SECONDS = 60  # that a stopped training may take to save
REQUEUES = 100  # after the time of a job is over


@dataclasses.dataclass
class Training:
    """One run: what trains or resumes it, and where."""

    name: str  # for messages
    folder: Path
    words: list[str]  # the command

    @property
    def log(self):
        return self.folder.with_name(f'{self.folder.name}.log')


class Job:
    """A function that submitit calls in a process of its own: it trains some runs, one after the other.

    Args:
        trainings: list of `Training`. threads: of each. variables: of the environment; None removes one.
    """

    def __init__(self, trainings, threads, variables):
        self.trainings = trainings
        self.threads = threads
        self.variables = variables
        self.process = None  # the training that runs

    def __call__(self):
        """Return the exit codes of the trainings."""
        variables = {**os.environ, 'OMP_NUM_THREADS': str(self.threads), **self.variables}
        variables = {name: value for name, value in variables.items() if value is not None}
        codes = []
        for training in self.trainings:
            with open(training.log, 'a', encoding='utf-8') as log:
                self.process = subprocess.Popen(training.words, stdout=log, stderr=log, env=variables)
                try:
                    codes.append(self.process.wait())
                except BaseException:  # the job is cancelled
                    self.stop()
                    raise
        return codes

    def stop(self):
        """Let the training save and end; a repeated SIGUSR1 does not cut that short, as a second SIGTERM would."""
        self.process.send_signal(getattr(signal, 'SIGUSR1', signal.SIGTERM))

    def checkpoint(self):
        """Save the training, and return what submitit queues again: a job that resumes all runs."""
        import submitit

        self.stop()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process.pid, 0)  # `Popen.wait`, which this interrupts, holds a lock
        return submitit.helpers.DelayedSubmission(Job(self.trainings, self.threads, self.variables))


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


# ------------------------------------------------------------------------------------------------------ jobs
def plan(options, flags):
    """Return the list of `Training` of the command line.

    Args:
        options: of `parse`. flags: of the trainer, with {seed} and {dataset} in place of these.
    """
    trainings = []
    for dataset in options.datasets or ['']:
        for seed in options.seeds:
            folder = group_folder(options, dataset) / f'seed{seed}'
            words = [sys.executable, str(ROOT / options.script)]
            words += [flag.replace('{seed}', str(seed)).replace('{dataset}', dataset) for flag in flags]
            words += ['--dataset', dataset] if dataset else []
            words += ['--seed', str(seed), '--save_dir', str(folder), '--resume', 'auto']
            trainings.append(Training(' '.join(filter(None, [dataset, f'seed {seed}'])), folder, words))
    return trainings


def group_folder(options, dataset):
    """Return the folder of the runs of a dataset; '': without --datasets."""
    return Path(options.save_dir, dataset.replace(':', '.'))  # Windows forbids : in names


def divide(trainings, options):
    """Return the list of `Job` of some trainings: one for each on a cluster, as many as there are cores here."""
    if options.cluster == 'slurm':
        return [Job([training], options.cores or SLURM_CORES, {}) for training in trainings]

    # submitit's local jobs all start at once, and see no GPU unless one is reserved
    available = options.cores or cores()
    together = min(len(trainings), available)
    variables = {'CUDA_VISIBLE_DEVICES': os.environ.get('CUDA_VISIBLE_DEVICES')}
    return [Job(trainings[first::together], available // together, variables) for first in range(together)]


def open_executor(options):
    """Return submitit's executor for the command line.

    Raises:
        ValueError: submitit or SLURM is missing, or SLURM has no such option.
    """
    try:
        import submitit
    except ImportError:
        raise ValueError('launch.py needs submitit: pip install -r requirements-launch.txt') from None
    try:
        executor = submitit.AutoExecutor(Path(options.save_dir, 'jobs'), options.cluster,
                                         slurm_max_num_timeout=REQUEUES, local_max_num_timeout=REQUEUES)
        executor.update_parameters(name=Path(options.save_dir).name, timeout_min=round(60 * options.hours))
        if options.cluster == 'slurm':
            own = dict(word.split('=', 1) for word in options.slurm)
            executor.update_parameters(cpus_per_task=options.cores or SLURM_CORES, gpus_per_node=options.gpus,
                                       **{f'slurm_{name}': value for name, value in own.items()})
    except (RuntimeError, NameError, ValueError, AssertionError) as error:  # their first line says it
        raise ValueError(f'--cluster {options.cluster}: {str(error).splitlines()[0]}') from error
    return executor


def run_all(trainings, options):
    """Submit all trainings; wait for them on this machine. Return the names of those that failed."""
    executor = open_executor(options)
    parts = divide(trainings, options)
    for training in trainings:
        training.folder.parent.mkdir(parents=True, exist_ok=True)
        print(f'{training.name}: output in {training.log}', flush=True)
    jobs = executor.submit_array(parts)
    if options.cluster == 'slurm':
        print(f'queued: {", ".join(job.job_id for job in jobs)}; --only_report aggregates the runs later')
        return []

    try:
        return wait_for(jobs, parts)
    except BaseException:  # Ctrl-C or SIGTERM: the trainings save and end first
        for job in jobs:
            job.cancel()
        deadline = time.monotonic() + SAVE_SECONDS
        while time.monotonic() < deadline and any(lock_owner(training.folder) for training in trainings):
            time.sleep(0.2)
        raise


def wait_for(jobs, parts):
    """Print the outcome of every training of the submitted `parts`; return the names of those that failed."""
    import submitit

    failed = []
    waiting = dict(zip(jobs, parts, strict=True))
    for job in submitit.helpers.as_completed(jobs, poll_frequency=0.2):
        error = job.exception()
        codes = job.result() if error is None else [1] * len(waiting[job].trainings)
        for training, code in zip(waiting[job].trainings, codes, strict=True):
            outcome = f'FAILED with exit code {code}' if code else 'done'
            print(f'{training.name}: {outcome}' if error is None else f'{training.name}: FAILED, see '
                  f'{job.paths.stderr}', flush=True)
            if code:
                failed.append(training.name)
    return failed


# ------------------------------------------------------------------------------------------------- aggregates
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


def parse(argv):
    """Return the options of a command line, and the flags of the trainer.

    Raises:
        ValueError: an option is invalid, or a flag of the trainer is one that is set for each run.
    """
    split = argv.index('--') if '--' in argv else len(argv)
    parser = argparse.ArgumentParser(description=summary(__doc__),
                                     epilog='flags after -- go to the trainer, with {seed} and {dataset} replaced')
    parser.add_argument('script', choices=SCRIPTS)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2],
                        help='seeds to train (default: 0 1 2)')
    parser.add_argument('--datasets', nargs='+', default=[], help='datasets to train on, each with all seeds')
    parser.add_argument('--save_dir', required=True, help='folder of the runs and of the aggregates')
    parser.add_argument('--cores', type=int, default=0,
                        help=f'cores for all runs, or for each SLURM job (default: all, or {SLURM_CORES})')
    parser.add_argument('--cluster', choices=('local', 'slurm'), default='local',
                        help='where the jobs run (default: %(default)s)')
    parser.add_argument('--hours', type=float, default=24.0,
                        help='time limit of a job, which then resumes in a new one (default: %(default)g)')
    parser.add_argument('--gpus', type=int, default=0, help='GPUs of each SLURM job (default: %(default)s)')
    parser.add_argument('--slurm', nargs='+', default=[], metavar='NAME=VALUE',
                        help='options of SLURM, such as partition=cpu account=lab')
    parser.add_argument('--dry_run', action='store_true', help='print the jobs only')
    parser.add_argument('--only_report', action='store_true',
                        help='aggregate the runs in --save_dir without training')
    options = parser.parse_args(argv[:split])
    flags = argv[split + 1:]

    if any(len(set(words)) < len(words) for words in (options.seeds, options.datasets)):
        raise ValueError('--seeds, --datasets: no seed or dataset may be given twice')
    for name, least in (('cores', 0), ('gpus', 0), ('hours', 1 / 60)):
        if getattr(options, name) < least:
            raise ValueError(f'--{name} {getattr(options, name)}: must be at least {least:.2g}')
    if bad := [word for word in options.slurm if '=' not in word]:
        raise ValueError(f'--slurm {bad[0]}: must be NAME=VALUE, such as partition=cpu')
    if (options.slurm or options.gpus) and options.cluster != 'slurm':
        raise ValueError(f'--{"slurm" if options.slurm else "gpus"}: only with --cluster slurm')
    reserved = {'seed', 'save_dir', 'resume'} | ({'dataset'} if options.datasets else set())
    if given := reserved & {name for name, _ in split_flags(flags)}:
        raise ValueError(f'--{sorted(given)[0]} is set for each run; leave it out after --')
    return options, flags


def main(argv=None):
    options, flags = parse(sys.argv[1:] if argv is None else argv)
    trainings = plan(options, flags)

    if options.dry_run:
        jobs = divide(trainings, options)
        if options.cluster == 'slurm':
            print(f'each job: {jobs[0].threads} cores, {options.gpus} GPUs, {options.hours:g} hours'
                  + ''.join(f', {word}' for word in options.slurm))
        for number, job in enumerate(jobs, 1):
            for training in job.trainings:
                print(f'job {number}, {training.name}: {shlex.join(training.words)}')
        return

    # train
    for name in ('SIGTERM', 'SIGHUP'):  # as Ctrl-C; `nohup` ignores SIGHUP
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    failed = [] if options.only_report else run_all(trainings, options)
    if options.cluster == 'slurm' and not options.only_report:
        return

    # aggregate
    for dataset in options.datasets or ['']:
        folder = group_folder(options, dataset)
        print(f'\n{report(options.script, options.seeds, folder)}\n\nwritten: aggregate.csv, .md and .png in {folder}')
    if failed:
        log_path = next(training.log for training in trainings if training.name == failed[0])
        raise OSError(f'{", ".join(failed)} failed; see {log_path}, and repeat the command to resume')


if __name__ == '__main__':
    run_main(main)
