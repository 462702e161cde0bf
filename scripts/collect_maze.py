"""How OGBench's data of mazes are made, one episode at a time; run by collect_dataset.py.

The protocols are those of OGBench (Park et al. 2025, arXiv 2410.20092). Each starts in a random free cell:

    kind      goal                                      direction to walk
    navigate  a random vertex cell, anew when reached   next cell of shortest path
    stitch    exactly 4 cells away, once an episode     next cell of shortest path
    explore   none                                      random, anew every 10 steps

A point goes where it is told; ants and humanoids are moved by an expert (datasets/README.md). The actions carry
Gaussian noise.
"""

import functools
import zipfile
from pathlib import Path

import numpy as np

from ogbench_utils import make_env

STITCH_CELLS = 4
EXPLORE_INTERVAL = 10
EXPERT_KEYS = ('w1', 'b1', 'w2', 'b2', 'w_mean', 'b_mean')
DATASETS_DIR = Path(__file__).resolve().parents[1] / 'datasets'
EXPERTS = {'ant': 'ant_expert.npz', 'humanoid': 'humanoid_expert.npz'}


def find_vertex_cells(maze_map):
    """Free cells (i, j) of a walled maze (1 wall, 0 free) that are dead ends, corners or junctions."""
    cells = []
    for i, j in np.argwhere(maze_map == 0).tolist():
        up, down, left, right = maze_map[i - 1, j], maze_map[i + 1, j], maze_map[i, j - 1], maze_map[i, j + 1]
        if not (up == down and left == right and up != left):
            cells.append((i, j))
    return cells


def seen_by_expert(observation, direction, pairs=None):
    """What an expert is told, float32: the observation (S,) without x, y, then the unit direction (2,); or with
    `pairs`, the observation alone, its vectors on the ground whose first index is in `pairs` told along and across the
    direction: a robot that does not know which way it faces sees the same whatever the compass."""
    if pairs is None:
        return np.concatenate([observation[2:], direction]).astype(np.float32)

    x = np.array(observation[2:], np.float32)
    along, across = direction
    for i in pairs:
        x[i], x[i + 1] = x[i] * along + x[i + 1] * across, x[i + 1] * along - x[i] * across
    return x


def load_expert(path):
    """Return policy(observation (S,), unit direction (2,)) -> action (A,) in [-1, 1], read from an npz.

    The network sees what `seen_by_expert` makes of both; `pairs` are the `ground_vectors` of the file, if it has any.
    ValueError if the file holds no such network.
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
        x = seen_by_expert(observation, direction, pairs)
        return np.tanh(gelu(gelu(x @ w1 + b1) @ w2 + b2) @ w_mean + b_mean)

    return policy


def expert_path(dataset, given=None):
    """The weights `given` by --expert_path, or those bundled for the robot of a maze; None for whoever needs none."""
    robot = dataset.split('-')[0].removesuffix('maze')
    if robot not in EXPERTS:
        return None
    path = DATASETS_DIR / EXPERTS[robot]
    if not given and not path.exists():
        raise ValueError(f'--dataset {dataset}: no {robot} expert is bundled; name one with --expert_path '
                         "(datasets/README.md says how to make it), or download OGBench's own data, or collect with "
                         '--policy random')
    return given or str(path)


class MazeCollector:
    """One environment and one policy. What `episode` returns depends on its arguments and the config only."""

    def __init__(self, config):
        self.config = config
        # Unwrapped: the time limit would cut episodes, the environment checker only costs time.
        self.env = make_env(config.dataset, terminate_at_goal=False, disable_env_checker=True).unwrapped
        self.free_cells = [tuple(cell) for cell in np.argwhere(self.env.maze_map == 0).tolist()]
        self.vertex_cells = find_vertex_cells(self.env.maze_map)
        self.search = functools.cache(self._search)
        self.policy = lambda observation, direction: direction  # a point moves where its action points
        if config.policy == 'expert' and not config.dataset.startswith('pointmaze'):
            self.policy = load_expert(config.expert_path)

    def _search(self, start_ij, goal_ij):
        """(x, y) of the next cell on the way, and every cell's distance from `goal_ij` in cells (-1: no way).

        Cached: OGBench searches the whole maze, in Python, at every call.
        """
        return self.env.get_oracle_subgoal(self.env.ij_to_xy(start_ij), self.env.ij_to_xy(goal_ij))

    def sample_task(self, rng):
        """-> OGBench's task_info: a random start and a goal that the protocol allows for it."""
        start, goals = self.free_cells[rng.integers(len(self.free_cells))], self.vertex_cells
        if self.config.kind == 'stitch':
            _, distances = self.search(start, start)
            goals = np.argwhere(distances == STITCH_CELLS).tolist() or [start]  # teleport: closed-in cells
        return {'init_ij': start, 'goal_ij': tuple(goals[rng.integers(len(goals))])}

    def move_goal(self, rng):
        """Somewhere else, after the goal was reached."""
        cell = self.vertex_cells[rng.integers(len(self.vertex_cells))]
        self.env.set_goal(goal_xy=self.env.add_noise(self.env.ij_to_xy(cell)))

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

        Returns float32 observations (rows, S) and, as far as the config keeps them, actions (rows, A), qpos (rows, Q)
        and qvel (rows, U).
        """
        rng = np.random.default_rng(np.random.SeedSequence([self.config.seed, split, number]))
        # An OGBench maze draws from three sources: numpy's global one (positions, teleports), its action
        # space (settling steps) and its own generator (joints).
        global_seed, action_seed, env_seed = rng.integers(2**31, size=3).tolist()
        np.random.seed(global_seed)
        self.env.action_space.seed(action_seed)
        observation, _ = self.env.reset(seed=env_seed, options={'task_info': self.sample_task(rng)})
        direction, rows = None, []
        for step in range(self.config.rows):
            direction = self._direction(rng, step, direction)
            action = self.action(rng, observation, direction)
            next_observation, _, _, _, info = self.env.step(action)
            rows.append((observation, action, info['prev_qpos'], info['prev_qvel']))
            if info['success'] and self.config.kind == 'navigate':
                self.move_goal(rng)
            observation = next_observation
        names = ('observations', 'actions', 'qpos', 'qvel')
        columns = zip(*rows, strict=True)
        arrays = {name: np.asarray(column, np.float32) for name, column in zip(names, columns, strict=True)}
        return self.config.kept(arrays)
