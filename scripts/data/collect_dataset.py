"""Collect trajectories from OGBench's environments by its protocols, in its npz layout.

    python scripts/data/collect_dataset.py --dataset pointmaze-medium-navigate-v0 --num_workers 2
    python scripts/data/collect_dataset.py --dataset antmaze-medium-navigate-v0 --num_episodes 500 \\
        --num_val_episodes 50
    python scripts/data/collect_dataset.py --dataset cube-single-play-v0 --num_workers 2

collect_maze.py and collect_manipulation.py define the episodes. By default the number of episodes, their rows
and the noise are those of the official dataset of that name.
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

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

import support.threads  # noqa: F401, E402  its first line

import numpy as np  # noqa: E402
from collect_manipulation import ManipulationCollector  # noqa: E402
from collect_maze import MazeCollector, expert_path, load_expert  # noqa: E402

from ogbench_utils import ENVIRONMENTS, official_shape, parse_name  # noqa: E402
from support.flags import set_streams, summary  # noqa: E402
from support.progress import progress_bar  # noqa: E402
from support.text import printable  # noqa: E402

FAMILIES = {
    'pointmaze': MazeCollector,
    'antmaze': MazeCollector,
    'humanoidmaze': MazeCollector,
    'cube': ManipulationCollector,
    'scene': ManipulationCollector,
    'puzzle': ManipulationCollector,
}
MINIMA = {'num_episodes': 1, 'num_val_episodes': 0, 'max_episode_steps': 2, 'noise': 0, 'seed': 0,
          'num_workers': 1}  # of flags


@dataclass(frozen=True)
class CollectConfig:
    """Parameters of all episodes; an episode depends on these, its split and its number."""

    dataset: str
    policy: str  # 'expert' or 'random'
    expert_path: str | None  # None if no expert is needed
    noise: float  # standard deviation, added to the expert's actions
    rows: int
    state_only: bool
    seed: int
    physics: bool = False  # keep qpos and qvel despite `state_only`

    @property
    def family(self):
        """Family of the environment: 'antmaze', 'cube', …"""
        return self.dataset.split('-')[0]

    @property
    def kind(self):
        """Kind of data: 'navigate', 'play', …"""
        return self.dataset.split('-')[-2]

    def select(self, arrays):
        """Return the arrays of an episode, {name: array}, that are saved."""
        if not self.state_only:
            return arrays
        names = ('observations', 'qpos', 'qvel') if self.physics else ('observations',)
        return {name: arrays[name] for name in names}


def official_noise(dataset):
    """Return the standard deviation of the action noise in OGBench's dataset of that name."""
    family = dataset.split('-')[0]
    if family in ('cube', 'scene', 'puzzle'):
        return 0.1
    if dataset.split('-')[-2] == 'explore':
        return 1.0
    return 0.5 if family == 'pointmaze' else 0.2


@functools.lru_cache(maxsize=1)
def make_collector(config):
    """Make the collector of a worker, once."""
    return FAMILIES[config.family](config)


def collect_episode(task):
    """Collect one episode in a worker; `task` is (config, split, number)."""
    config, split, number = task
    return make_collector(config).episode(split, number)


def collect(config, episodes, num_workers):
    """Collect both splits in processes; the number of processes changes no value.

    Args:
        config: CollectConfig.
        episodes: numbers of training and of validation episodes.
        num_workers: number of processes.

    Returns:
        Two dicts of arrays (N, ...), with bool `terminals` (N,); N = episodes x rows.
    """
    os.environ['OMP_NUM_THREADS'] = '1'  # of the workers: threads would compete for cores and reorder sums
    tasks = [(config, split, number) for split, count in enumerate(episodes) for number in range(count)]

    # arrays are allocated at the first episode and filled in place: joining lists would double the memory
    terminals = np.arange(config.rows) == config.rows - 1
    datasets = [{'terminals': np.tile(terminals, count)} for count in episodes]
    executor = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context('spawn'),
        initializer=signal.signal,  # the workers ignore Ctrl-C, which the parent handles
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        results = progress_bar(executor.map(collect_episode, tasks), total=len(tasks), unit='episode')
        for episode, (_, split, number) in zip(results, tasks, strict=False):
            arrays = datasets[split]
            first = number * config.rows
            for key, value in episode.items():
                if key not in arrays:
                    arrays[key] = np.empty((episodes[split] * config.rows, value.shape[1]), value.dtype)
                arrays[key][first:first + config.rows] = value
    finally:
        executor.shutdown(cancel_futures=True)
    return datasets


def save_npz(path, arrays):
    """Write a compressed npz; `path` does not exist before it is complete."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def parse_args(argv=None):
    """Parse the command line; flags have underscores or dashes."""
    parser = argparse.ArgumentParser(description=summary(__doc__), allow_abbrev=False)

    def add(name, **kwargs):
        parser.add_argument(*dict.fromkeys([f'--{name}', f'--{name.replace("_", "-")}']), **kwargs)

    add('dataset', required=True,
        help='such as antmaze-medium-navigate-v0; sets environment, protocol and output')
    add('num_episodes', type=int, help="training episodes (default: OGBench's)")
    add('num_val_episodes', type=int, help='validation episodes (default: a tenth of --num_episodes)')
    add('max_episode_steps', type=int, help="rows of an episode (default: OGBench's)")
    add('noise', type=float, help="std of the noise on the expert's actions (default: OGBench's)")
    add('policy', choices=('expert', 'random'), default='expert',
        help='policy in a maze (default: %(default)s)')
    add('expert_path', help='weights of the expert in a maze (default: those in datasets/)')
    add('output_dir', default='datasets', help='folder of the two files (default: %(default)s)')
    add('output_name', help='name of the files without .npz (default: the dataset)')
    add('state_only', action=argparse.BooleanOptionalAction, default=True,
        help='save observations and terminals only, without actions, qpos, qvel and button states')
    add('physics', action='store_true',
        help='save qpos and qvel too, which scripts/label_with_simulator.py needs')
    add('overwrite', action='store_true', help='replace existing files')
    add('seed', type=int, default=0, help='seed of all episodes (default: %(default)s)')
    add('num_workers', type=int, default=1, help='processes of one core each (default: %(default)s)')
    return parser.parse_args(argv)


def fill_defaults(args):
    """Set missing flags as in OGBench's dataset; raise ValueError if OGBench has none of that name."""
    if args.num_episodes is None or args.max_episode_steps is None:
        try:
            episodes, rows, _ = official_shape(args.dataset)
        except KeyError:
            raise ValueError(f'--dataset {args.dataset}: OGBench has no such dataset with a known size; '
                             'give --num_episodes and --max_episode_steps') from None
        args.num_episodes = episodes if args.num_episodes is None else args.num_episodes
        args.max_episode_steps = rows if args.max_episode_steps is None else args.max_episode_steps
    if args.num_val_episodes is None:
        args.num_val_episodes = args.num_episodes // 10
    if args.noise is None:
        args.noise = official_noise(args.dataset)


def check_args(args):
    """Set defaults and check all flags.

    Returns:
        CollectConfig, (training episodes, validation episodes), paths of the two files.

    Raises:
        ValueError: a value cannot work.
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
        load_expert(weights, ENVIRONMENTS[parse_name(args.dataset).removesuffix('-v0')][0])

    fill_defaults(args)
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
    """Collect and save both splits; return the exit code."""
    args = parse_args(argv)
    try:
        config, episodes, paths = check_args(args)
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        datasets = collect(config, episodes, args.num_workers)
        speed = sum(episodes) * config.rows / (time.perf_counter() - start)
        for path, count, arrays in zip(paths, episodes, datasets, strict=False):
            if count:
                save_npz(path, arrays)

        print(f'{speed:.0f} steps/s')
        for path, count in zip(paths, episodes, strict=False):
            if count:
                print(f'{path}: {count} episodes x {config.rows} rows, {path.stat().st_size:,} bytes')
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except (ValueError, OSError, BrokenProcessPool) as error:
        print(f'error: {printable(error)}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    set_streams()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends the workers as Ctrl-C does
    sys.exit(main())
