"""Collect trajectories in OGBench's npz layout from OGBench's own maze environments.

    python scripts/collect_dataset.py --dataset antmaze-medium-navigate-v0 --num_episodes 500 --num_workers 2

The protocols are those of OGBench (Park et al. 2025, arXiv 2410.20092). Each starts in a random free cell:

    kind      goal                                      direction to walk            noise   episodes x rows
    navigate  a random vertex cell, anew when reached   next cell of shortest path   0.2      1,000 x 1,001
    stitch    exactly 4 cells away, once an episode     next cell of shortest path   0.2      5,000 x   201
    explore   none                                      random, anew every 10 steps  1.0     10,000 x   501
"""

import argparse
import functools
import multiprocessing
import os
import signal
import sys
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import ogbench  # noqa: F401  registers the environments
from tqdm import tqdm

DATASETS_DIR = Path(__file__).resolve().parent.parent / 'datasets'
AGENTS = ('pointmaze', 'antmaze', 'humanoidmaze')
KINDS = {
    'navigate': {'num_episodes': 1000, 'max_episode_steps': 1001, 'noise': 0.2},
    'stitch': {'num_episodes': 5000, 'max_episode_steps': 201, 'noise': 0.2},
    'explore': {'num_episodes': 10000, 'max_episode_steps': 501, 'noise': 1.0},
}
MINIMA = {'num_episodes': 1, 'num_val_episodes': 0, 'max_episode_steps': 2, 'noise': 0, 'seed': 0,
          'num_workers': 1}
STITCH_CELLS = 4
EXPLORE_INTERVAL = 10
EXPERT_KEYS = ('w1', 'b1', 'w2', 'b2', 'w_mean', 'b_mean')
EXPERTS = {'antmaze': 'ant_expert.npz', 'humanoidmaze': 'humanoid_expert.npz'}


@dataclass(frozen=True)
class CollectConfig:
    """All that an episode depends on, besides its split and number."""

    env_id: str
    kind: str
    policy: str  # 'expert' or 'random'
    expert_path: str
    noise: float  # standard deviation, added to the expert's actions
    rows: int
    state_only: bool
    seed: int


def split_name(dataset):
    """'antmaze-medium-navigate-v0' -> ('antmaze-medium-v0', 'navigate'). ValueError for any other pattern."""
    parts = dataset.split('-')
    if len(parts) != 4 or parts[0] not in AGENTS or parts[2] not in KINDS:
        raise ValueError(f'--dataset {dataset}: expected AGENT-MAZE-KIND-v0 with AGENT one of '
                         f'{", ".join(AGENTS)} and KIND one of {", ".join(KINDS)}')
    env_id = '-'.join(parts[:2] + parts[3:])
    if env_id not in gymnasium.registry:
        raise ValueError(f'--dataset {dataset}: OGBench has no environment {env_id}')
    return env_id, parts[2]


def find_vertex_cells(maze_map):
    """Free cells (i, j) of a walled maze (1 wall, 0 free) that are dead ends, corners or junctions."""
    cells = []
    for i, j in np.argwhere(maze_map == 0).tolist():
        up, down, left, right = maze_map[i - 1, j], maze_map[i + 1, j], maze_map[i, j - 1], maze_map[i, j + 1]
        if not (up == down and left == right and up != left):
            cells.append((i, j))
    return cells


def turned(observation, direction, pairs):
    """The observation (S,) without x, y, with the vectors on the ground whose first index is in `pairs` told along and
    across the unit direction (2,): a robot that does not know which way it faces sees the same whatever the compass."""
    x = np.array(observation[2:], np.float32)
    along, across = direction
    for i in pairs:
        x[i], x[i + 1] = x[i] * along + x[i + 1] * across, x[i + 1] * along - x[i] * across
    return x


def load_expert(path):
    """Return policy(observation (S,), unit direction (2,)) -> action (A,) in [-1, 1], read from an npz.

    The network sees the observation without x, y, then the direction; or, where the file holds `ground_vectors`, what
    `turned` makes of both. ValueError if the file holds no such network.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f'{path}: no such npz file; --expert_path names the weights of an expert')
    with np.load(path, allow_pickle=False) as file:
        if set(file.files) - {'ground_vectors'} != set(EXPERT_KEYS):
            raise ValueError(f'{path}: no expert; --expert_path needs {", ".join(EXPERT_KEYS)}')
        w1, b1, w2, b2, w_mean, b_mean = (file[key].astype(np.float32) for key in EXPERT_KEYS)
        pairs = file['ground_vectors'].tolist() if 'ground_vectors' in file.files else None

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))  # 0.79... = sqrt(2 / pi)

    def policy(observation, direction):
        if pairs is None:
            x = np.concatenate([observation[2:], direction]).astype(np.float32)
        else:
            x = turned(observation, direction, pairs)
        return np.tanh(gelu(gelu(x @ w1 + b1) @ w2 + b2) @ w_mean + b_mean)

    return policy


def expert_path(env_id, given=None):
    """The weights named by --expert_path, or those bundled for the robot of a maze; None for a point."""
    bundled = EXPERTS.get(env_id.split('-')[0])
    return given or bundled and str(DATASETS_DIR / bundled)


class Collector:
    """One environment and one policy. What `episode` returns depends on its arguments and the config only."""

    def __init__(self, config):
        self.config = config
        # Unwrapped: the time limit would cut episodes, the environment checker only costs time.
        self.env = gymnasium.make(config.env_id, terminate_at_goal=False, disable_env_checker=True).unwrapped
        self.free_cells = [tuple(cell) for cell in np.argwhere(self.env.maze_map == 0).tolist()]
        self.vertex_cells = find_vertex_cells(self.env.maze_map)
        self.search = functools.cache(self._search)
        self.policy = lambda observation, direction: direction  # a point moves where its action points
        if config.policy == 'expert' and not config.env_id.startswith('pointmaze'):
            self.policy = load_expert(config.expert_path)

    def _search(self, start_ij, goal_ij):
        """(x, y) of the next cell on the way, and every cell's distance from `goal_ij` in cells (-1: no way).

        Cached: OGBench searches the whole maze, in Python, at every call.
        """
        return self.env.get_oracle_subgoal(self.env.ij_to_xy(start_ij), self.env.ij_to_xy(goal_ij))

    def _sample_task(self, rng):
        start, goals = self.free_cells[rng.integers(len(self.free_cells))], self.vertex_cells
        if self.config.kind == 'stitch':
            _, distances = self.search(start, start)
            goals = np.argwhere(distances == STITCH_CELLS).tolist() or [start]  # teleport: closed-in cells
        return {'init_ij': start, 'goal_ij': tuple(goals[rng.integers(len(goals))])}

    def _direction(self, rng, step, last_direction):
        if self.config.kind == 'explore':
            if step % EXPLORE_INTERVAL:
                return last_direction
            direction = rng.standard_normal(2)
            return direction / (np.linalg.norm(direction) + 1e-6)
        return self.direction_to(self.env.get_xy(), self.env.cur_goal_xy)

    def direction_to(self, xy, goal_xy):
        """Unit vector (2,) from a place toward the next cell of the shortest path to another."""
        direction = self.search(self.env.xy_to_ij(xy), self.env.xy_to_ij(goal_xy))[0] - xy
        return direction / (np.linalg.norm(direction) + 1e-6)

    def action(self, rng, observation, direction):
        """What the policy does (A,), with the config's noise from the numpy Generator `rng`."""
        if self.config.policy == 'random':
            return rng.uniform(-1.0, 1.0, self.env.action_space.shape)
        action = self.policy(observation, direction)
        return np.clip(action + self.config.noise * rng.standard_normal(action.shape), -1.0, 1.0)

    def episode(self, split, number):
        """Walk one episode. Row t of each array holds the state at t or the action taken there.

        Returns float32 observations (rows, S) and, unless `state_only`, actions (rows, A), qpos (rows, Q) and
        qvel (rows, U).
        """
        rng = np.random.default_rng(np.random.SeedSequence([self.config.seed, split, number]))
        # An OGBench maze draws from three sources: numpy's global one (positions, teleports), its action
        # space (settling steps) and its own generator (joints).
        global_seed, action_seed, env_seed = rng.integers(2**31, size=3).tolist()
        np.random.seed(global_seed)
        self.env.action_space.seed(action_seed)
        observation, _ = self.env.reset(seed=env_seed, options={'task_info': self._sample_task(rng)})
        direction, rows = None, []
        for step in range(self.config.rows):
            direction = self._direction(rng, step, direction)
            action = self.action(rng, observation, direction)
            next_observation, _, _, _, info = self.env.step(action)
            rows.append((observation, action, info['prev_qpos'], info['prev_qvel']))
            if info['success'] and self.config.kind == 'navigate':
                cell = self.vertex_cells[rng.integers(len(self.vertex_cells))]
                self.env.set_goal(goal_xy=self.env.add_noise(self.env.ij_to_xy(cell)))
            observation = next_observation
        keys = ('observations',) if self.config.state_only else ('observations', 'actions', 'qpos', 'qvel')
        columns = zip(*rows, strict=True)
        return {key: np.asarray(column, np.float32) for key, column in zip(keys, columns, strict=False)}


collector_of = functools.lru_cache(maxsize=1)(Collector)  # a worker builds its environment once


def collect_episode(task):
    """Run by a worker. `task` is (config, split, number)."""
    config, split, number = task
    return collector_of(config).episode(split, number)


def collect(config, episodes, num_workers):
    """Collect `episodes` = (training, validation) in `num_workers` processes; their number changes no value.

    Returns two dicts of float32 arrays (N, ...) and bool `terminals` (N,), N = episodes x rows.
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
                    arrays[key] = np.empty((episodes[split] * config.rows, value.shape[1]), np.float32)
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

    add('dataset', required=True, help='such as antmaze-medium-navigate-v0: names maze, protocol and output')
    add('num_episodes', type=int, help="training episodes (default: the protocol's)")
    add('num_val_episodes', type=int, help='validation episodes (default: one tenth of those)')
    add('max_episode_steps', type=int, help="rows of an episode (default: the protocol's)")
    add('noise', type=float, help="std of the noise on the expert's actions (default: the protocol's)")
    add('policy', choices=('expert', 'random'), default='expert', help='who acts (default: %(default)s)')
    add('expert_path', help='weights of the expert (default: those in datasets/)')
    add('output_dir', default='datasets', help='folder of the two files (default: %(default)s)')
    add('output_name', help='name of the files without .npz (default: the dataset)')
    add('state_only', action='store_true', help='save observations and terminals only')
    add('overwrite', action='store_true', help='replace existing files')
    add('seed', type=int, default=0, help='default: %(default)s')
    add('num_workers', type=int, default=1, help='processes, one core each (default: %(default)s)')
    return parser.parse_args(argv)


def check_args(args):
    """Fill in the protocol's defaults and return (config, (training, validation) episodes, the two paths).

    ValueError for a value that cannot work, before any time is spent.
    """
    env_id, kind = split_name(args.dataset)
    for flag, default in KINDS[kind].items():
        if getattr(args, flag) is None:
            setattr(args, flag, default)
    if args.num_val_episodes is None:
        args.num_val_episodes = args.num_episodes // 10
    for flag, minimum in MINIMA.items():
        if not minimum <= getattr(args, flag) < float('inf'):
            raise ValueError(f'--{flag} {getattr(args, flag)}: must be a number of at least {minimum}')
    weights = expert_path(env_id, args.expert_path)
    if args.policy == 'expert' and weights:
        load_expert(weights)
    paths = [Path(args.output_dir) / f'{args.output_name or args.dataset}{end}.npz' for end in ('', '-val')]
    for path in paths:
        if path.exists() and not args.overwrite:
            raise ValueError(f'{path} exists: pass --overwrite to replace it, or another --output_name')
    config = CollectConfig(env_id=env_id, kind=kind, policy=args.policy, expert_path=weights,
                           noise=args.noise, rows=args.max_episode_steps, state_only=args.state_only,
                           seed=args.seed)
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
