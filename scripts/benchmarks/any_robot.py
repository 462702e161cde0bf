"""Measure success on other coordinates of the state and on other robots, with the defaults of both trainers.

    python scripts/benchmarks/any_robot.py --cases rotated battery --seeds 30 31 32
    python scripts/benchmarks/any_robot.py --group robots          # of gymnasium-robotics (requirements-robots.txt)

Each case makes its data, trains offline and online and evaluates 50 episodes of each task. A finished run is a
row of results/any_robot.csv, from which scripts/make_tables.py draws the figure. The same command continues with the
missing runs. Only the number of offline updates is not the default, since success does not depend on it here.
"""

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

from ogbench_utils import BUNDLED_NAME  # noqa: E402
from scripts.benchmarks.pretraining_worth import run  # noqa: E402
from support.flags import run_main, summary  # noqa: E402
from support.metrics import read_csv  # noqa: E402
from support.results import AnyRobotRun, add_run, read_rows  # noqa: E402
from support.runs import git_commit  # noqa: E402

STEPS = 10_000  # environment steps
NUM_UPDATES = 60  # offline updates
EPISODES = 50  # of each task in the evaluation


@dataclasses.dataclass
class Case:
    """A row of the figure."""

    group: str  # robots need packages of their own
    section: str
    label: str
    source: tuple  # flags of both trainers that name the environment
    data: tuple = ()  # script that makes the data, and its flags; () for bundled data
    file: str = ''  # of the data, in --data_dir
    observe: str = 'full'  # {seed} stands for the seed of the run

    def make_data(self, folder):
        """Make the data in a folder unless they exist; return the flags of offline_trainer.py that name them."""
        if not self.data:
            return ()
        path = Path(folder) / self.file
        if not path.exists():
            make(*self.data, *self._output(path))
        return ('--data_dir', folder) if '--dataset' in self.source else ('--dataset_path', path)

    def _output(self, path):
        """Return the flags of the script that name the file or its folder."""
        return ('--output', path) if '--robot' in self.data else ('--output_dir', path.parent)


def make(script, *flags):
    """Run a script that makes data."""
    subprocess.run([sys.executable, ROOT / script, *flags], check=True)


def ant(label, observe):
    """Return a case of the bundled ant."""
    return Case('coordinates', 'coordinates of the state', label, ('--dataset', BUNDLED_NAME), observe=observe)


def drifting(name, label):
    """Return a case of the ant with a further dimension."""
    return Case('coordinates', 'coordinates of the state', label, ('--env', f'scripts.data.drifting_ant:{name}'),
                ('scripts/data/drifting_ant.py', '--drift', name), f'{name}.npz')


def small(module, name, label, section='robots'):
    """Return a case of a small robot."""
    return Case('small', section, label, ('--env', f'environments.{module}:{name}'),
                ('scripts/data/collect_gymnasium.py', '--robot', name), f'{name}.npz')


def robot(name, label, data=''):
    """Return a case of a robot of gymnasium-robotics, with data of its own or of another one."""
    data = data or name
    return Case('robots', 'robots', label, ('--env', f'environments.robots:{name}'),
                ('scripts/data/collect_robots.py', '--robot', data), f'{data}.npz')


STITCH = 'antmaze-large-stitch-v0'
CASES = {
    'full': ant('ant, as OGBench writes it down', 'full'),
    'units': ant('ant, each number in a random unit', 'units:{seed}'),
    'rotated': ant('ant, rotated (random basis)', 'rotated:{seed}'),
    'rotated_stitch': Case(
        'coordinates', 'coordinates of the state', 'ant, large-stitch, rotated', ('--dataset', STITCH),
        ('scripts/data/collect_dataset.py', '--dataset', STITCH, '--num_episodes', '2500', '--num_val_episodes', '100',
         '--seed', '1'), f'{STITCH}.npz', 'rotated:{seed}'),
    'lifted': ant('ant, features of a random network', 'lifted:{seed}'),
    'markers': ant('ant, positions of its parts', 'markers'),
    'battery': drifting('battery', 'ant with a battery'),
    'clock': drifting('clock', 'ant with a clock'),
    'temperature': drifting('temperature', 'ant with a random temperature'),
    'two_wheels': small('wheeled_robots', 'two_wheels', 'two wheels, angles that wrap', 'coordinates of the state'),
    'rover': small('wheeled_robots', 'rover', 'rover with differential drive'),
    'pendulum': small('gymnasium_tasks', 'pendulum', 'Pendulum'),
    'mountain_car': small('gymnasium_tasks', 'mountain_car', 'MountainCar'),
    'reacher': small('gymnasium_tasks', 'reacher', 'Reacher'),
    'fetch_reach': robot('fetch_reach', 'FetchReach'),
    'fetch_push': robot('fetch_push', 'FetchPush'),
    'point_maze': robot('point_maze', 'PointMaze, must stay'),
    'point_maze_end': robot('point_maze_end', 'PointMaze, ends at the goal', 'point_maze'),
}


def train(case, seed, folder, data_folder):
    """Train offline and online, or continue with it; return the AnyRobotRun.

    Raises:
        ValueError: a training failed; its output is in a log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = case.make_data(data_folder)
    run('offline_trainer.py', folder / 'offline', *case.source, *data, '--seed', seed, '--num_updates', NUM_UPDATES,
        '--observe', case.observe.format(seed=seed), '--no-maze_figures')
    run('online_trainer.py', folder / 'online', *case.source, '--seed', seed, '--max_steps', STEPS,
        '--offline_checkpoint', folder / 'offline' / 'last.pth', '--final_eval_episodes', EPISODES)
    last = read_csv(folder / 'online' / 'online.csv')[-1]
    tasks = sum(name.startswith('evaluation/task') for name in last)
    return AnyRobotRun(case.section, case.label, 'after', seed, float(last['evaluation/overall_success']),
                       tasks * EPISODES, round(float(last['step'])), (git_commit() or '')[:7])


def main(argv=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--cases', nargs='+', default=[], choices=CASES, help='cases; default: those of --group')
    parser.add_argument('--group', choices=sorted({case.group for case in CASES.values()}), default='coordinates',
                        help='cases without --cases (default: %(default)s)')
    parser.add_argument('--seeds', nargs='+', type=int, default=[30, 31, 32], help='seeds (default: 30 31 32)')
    parser.add_argument('--csv', default=str(ROOT / 'results' / 'any_robot.csv'), help='file of the results')
    parser.add_argument('--data_dir', default='datasets/collected', help='folder of the data')
    parser.add_argument('--folder', default='runs/any_robot', help='folder of the runs')
    options = parser.parse_args(argv)

    names = options.cases or [name for name, case in CASES.items() if case.group == options.group]
    for seed in options.seeds:
        for name in names:
            case = CASES[name]
            rows = read_rows(options.csv, AnyRobotRun) if Path(options.csv).is_file() else []
            if any((row.case, row.version, row.seed) == (case.label, 'after', seed) for row in rows):
                continue
            row = train(case, seed, Path(options.folder) / name / f'seed{seed}', Path(options.data_dir).resolve())
            add_run(options.csv, row)
            print(f'{name}, seed {seed}: success {row.success:.1%} over {row.episodes} episodes', flush=True)


if __name__ == '__main__':
    run_main(main)
