"""Collect trajectories in OGBench's npz layout from OGBench's own environments, by its protocols.

    python scripts/collect_dataset.py --dataset pointmaze-medium-navigate-v0 --num_workers 2
    python scripts/collect_dataset.py --dataset antmaze-medium-navigate-v0 --num_episodes 500 --num_val_episodes 50
    python scripts/collect_dataset.py --dataset cube-single-play-v0 --num_workers 2

What happens in an episode is in collect_maze.py and collect_manipulation.py; here are the flags, the processes and the
files. Episodes, rows and noise are by default those of the official dataset of that name.
"""

import argparse
import functools
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run from any folder

from collect_manipulation import ManipulationCollector  # noqa: E402
from collect_maze import MazeCollector, expert_path, load_expert  # noqa: E402

from ogbench_utils import official_shape, parse_name  # noqa: E402

FAMILIES = {
    'pointmaze': MazeCollector,
    'antmaze': MazeCollector,
    'humanoidmaze': MazeCollector,
    'cube': ManipulationCollector,
    'scene': ManipulationCollector,
    'puzzle': ManipulationCollector,
}
MINIMA = {'num_episodes': 1, 'num_val_episodes': 0, 'max_episode_steps': 2, 'noise': 0, 'seed': 0,
          'num_workers': 1}


@dataclass(frozen=True)
class CollectConfig:
    """All that an episode depends on, besides its split and number."""

    dataset: str
    policy: str  # 'expert' or 'random'
    expert_path: str | None  # None for who needs no expert
    noise: float  # standard deviation, added to the expert's actions
    rows: int
    state_only: bool
    seed: int
    physics: bool = False  # with `state_only`: keep qpos and qvel

    @property
    def family(self):
        """'antmaze', 'cube', …"""
        return self.dataset.split('-')[0]

    @property
    def kind(self):
        """'navigate', 'play', …"""
        return self.dataset.split('-')[-2]

    def kept(self, arrays):
        """Of the arrays of an episode, {name: array}, those that the file shall have."""
        if not self.state_only:
            return arrays
        names = ('observations', 'qpos', 'qvel') if self.physics else ('observations',)
        return {name: arrays[name] for name in names}


def official_noise(dataset):
    """Standard deviation of the noise on the expert's actions in OGBench's dataset of that name."""
    family = dataset.split('-')[0]
    if family in ('cube', 'scene', 'puzzle'):
        return 0.1
    if dataset.split('-')[-2] == 'explore':
        return 1.0
    return 0.5 if family == 'pointmaze' else 0.2


@functools.lru_cache(maxsize=1)  # a worker builds its environment once
def collector_of(config):
    return FAMILIES[config.family](config)


def collect_episode(task):
    """Run by a worker. `task` is (config, split, number)."""
    config, split, number = task
    return collector_of(config).episode(split, number)


def collect(config, episodes, num_workers):
    """Collect `episodes` = (training, validation) in `num_workers` processes; their number changes no value.

    Returns two dicts of arrays (N, ...) and bool `terminals` (N,), N = episodes x rows.
    """
    os.environ['OMP_NUM_THREADS'] = '1'  # read by the workers: threads would fight for cores and reorder sums
    tasks = [(config, split, number) for split, count in enumerate(episodes) for number in range(count)]
    terminals = np.arange(config.rows) == config.rows - 1
    datasets = [{'terminals': np.tile(terminals, count)} for count in episodes]
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context('spawn'),
        initializer=signal.signal,  # Ctrl-C reaches the workers too: let the parent alone answer it
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        results = tqdm(executor.map(collect_episode, tasks), total=len(tasks), unit='episode')
        for episode, (_, split, number) in zip(results, tasks, strict=False):
            arrays, first = datasets[split], number * config.rows
            for key, value in episode.items():
                if key not in arrays:  # filled in place: joining a list would need the memory twice
                    arrays[key] = np.empty((episodes[split] * config.rows, value.shape[1]), value.dtype)
                arrays[key][first : first + config.rows] = value
    finally:
        executor.shutdown(cancel_futures=True)
    return datasets


def save_npz(path, arrays):
    """Write a compressed npz. Nothing appears at `path` before it is complete."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def parse_args(argv=None):
    """Parse the command line; flags take underscores or dashes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)

    def add(name, **kwargs):
        parser.add_argument(*dict.fromkeys([f'--{name}', f'--{name.replace("_", "-")}']), **kwargs)

    add('dataset', required=True, help='such as antmaze-medium-navigate-v0: names environment, protocol and output')
    add('num_episodes', type=int, help="training episodes (default: OGBench's)")
    add('num_val_episodes', type=int, help='validation episodes (default: one tenth of those)')
    add('max_episode_steps', type=int, help="rows of an episode (default: OGBench's)")
    add('noise', type=float, help="std of the noise on the expert's actions (default: OGBench's)")
    add('policy', choices=('expert', 'random'), default='expert', help='who acts in a maze (default: %(default)s)')
    add('expert_path', help='weights of the expert in a maze (default: those in datasets/)')
    add('output_dir', default='datasets', help='folder of the two files (default: %(default)s)')
    add('output_name', help='name of the files without .npz (default: the dataset)')
    add('state_only', action=argparse.BooleanOptionalAction, default=True,
        help='save observations and terminals only; --no-state_only adds actions, qpos, qvel and states of buttons')
    add('physics', action='store_true', help='with --state_only: add qpos and qvel, to which scripts/label_with_simulator.py sets the '
                                             'simulator')
    add('overwrite', action='store_true', help='replace existing files')
    add('seed', type=int, default=0, help='default: %(default)s')
    add('num_workers', type=int, default=1, help='processes, one core each (default: %(default)s)')
    return parser.parse_args(argv)


def fill_in(args):
    """What was not given is as in OGBench's dataset. ValueError where it has none of that name."""
    if args.num_episodes is None or args.max_episode_steps is None:
        try:
            episodes, rows, _ = official_shape(args.dataset)
        except KeyError:
            raise ValueError(f'--dataset {args.dataset}: OGBench has no such dataset whose size could be taken; give '
                             '--num_episodes and --max_episode_steps') from None
        args.num_episodes = episodes if args.num_episodes is None else args.num_episodes
        args.max_episode_steps = rows if args.max_episode_steps is None else args.max_episode_steps
    if args.num_val_episodes is None:
        args.num_val_episodes = args.num_episodes // 10
    if args.noise is None:
        args.noise = official_noise(args.dataset)


def check_args(args):
    """Fill in OGBench's defaults and return (config, (training, validation) episodes, the two paths).

    ValueError for a value that cannot work, before any time is spent.
    """
    parse_name(args.dataset)
    family = args.dataset.split('-')[0]
    if family not in FAMILIES:
        raise ValueError(f'--dataset {args.dataset}: there is no expert that plays soccer; '
                         "download OGBench's own data")
    if args.policy == 'random' and FAMILIES[family] is not MazeCollector:
        raise ValueError(f'--policy random: is for mazes; {args.dataset} has the oracles of OGBench')
    weights = expert_path(args.dataset, args.expert_path) if args.policy == 'expert' else None
    if weights:
        load_expert(weights)

    fill_in(args)
    for flag, minimum in MINIMA.items():
        if not minimum <= getattr(args, flag) < float('inf'):
            raise ValueError(f'--{flag} {getattr(args, flag)}: must be a number of at least {minimum}')
    paths = [Path(args.output_dir) / f'{args.output_name or args.dataset}{end}.npz' for end in ('', '-val')]
    for path in paths:
        if path.exists() and not args.overwrite:
            raise ValueError(f'{path} exists: pass --overwrite to replace it, or another --output_name')
    config = CollectConfig(dataset=args.dataset, policy=args.policy, expert_path=weights, noise=args.noise,
                           rows=args.max_episode_steps, state_only=args.state_only, seed=args.seed,
                           physics=args.physics)
    return config, (args.num_episodes, args.num_val_episodes), paths


def main(argv=None):
    """Collect and save both splits. Returns the exit code."""
    args = parse_args(argv)
    try:
        config, episodes, paths = check_args(args)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        datasets = collect(config, episodes, args.num_workers)
        print(f'{sum(episodes) * config.rows / (time.perf_counter() - start):.0f} steps/s; writing')
        for path, count, arrays in zip(paths, episodes, datasets, strict=False):
            if count:
                save_npz(path, arrays)
                print(f'{path}: {count} episodes x {config.rows} rows, {path.stat().st_size:,} bytes')
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except (ValueError, OSError, BrokenProcessPool) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain kill ends the workers as Ctrl-C does
    sys.exit(main())
