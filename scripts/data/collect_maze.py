"""Episodes of OGBench's maze data, for collect_dataset.py.

The protocols are those of OGBench (Park et al. 2025, arXiv 2410.20092). Each starts in a random free cell:

    kind      goal                                          direction to walk
    navigate  a random vertex cell, a new one on arrival    next cell of the shortest path
    stitch    exactly 4 cells away, one per episode         next cell of the shortest path
    explore   none                                          random, a new one every 10 steps

The action of a point is the direction; experts move ants and humanoids (datasets/README.md). All actions have
Gaussian noise.
"""

import functools
from pathlib import Path

import numpy as np

from ogbench_utils import make_env
from support.files import prefix_errors
from support.npz import load_arrays

STITCH_CELLS = 4  # from start to goal
EXPLORE_INTERVAL = 10  # steps with one direction
EXPERT_KEYS = ('w1', 'b1', 'w2', 'b2', 'w_mean', 'b_mean')
DATASETS_DIR = Path(__file__).resolve().parents[2] / 'datasets'
EXPERTS = {'ant': 'ant_expert.npz', 'humanoid': 'humanoid_expert.npz'}


def find_vertex_cells(maze_map):
    """Return the free cells (i, j) of a maze (1 wall, 0 free) that are dead ends, corners or junctions."""
    cells = []
    for i, j in np.argwhere(maze_map == 0).tolist():
        up, down, left, right = maze_map[i - 1, j], maze_map[i + 1, j], maze_map[i, j - 1], maze_map[i, j + 1]
        is_corridor = up == down and left == right and up != left
        if not is_corridor:
            cells.append((i, j))
    return cells


def expert_inputs(observation, direction, ground_vectors=None):
    """Return the inputs of an expert's network, float32.

    They are the observation without x, y, and then the direction. With `ground_vectors` they are the
    observation alone, with these vectors rotated into the frame of the direction, so that a robot that cannot
    observe its yaw has the same inputs in every compass direction.

    Args:
        observation: (S,).
        direction: (2,), a unit vector.
        ground_vectors: first indices, in the observation without x, y, of horizontal vectors; or None.
    """
    if ground_vectors is None:
        return np.concatenate([observation[2:], direction]).astype(np.float32)

    x = np.array(observation[2:], np.float32)
    along, across = direction
    for i in ground_vectors:
        x[i], x[i + 1] = x[i] * along + x[i + 1] * across, x[i + 1] * along - x[i] * across
    return x


def load_expert(path, num_dimensions=None):
    """Load an expert from an npz: a function (observation (S,), unit direction (2,)) -> action (A,) in [-1,
    1].

    Args:
        path: npz file.
        num_dimensions: of the robot's observations; None: not compared.

    Raises:
        ValueError: the file does not contain an expert, or that of another robot.
    """
    arrays = load_arrays(path, EXPERT_KEYS, '--expert_path')
    with prefix_errors(path):
        w1, b1, w2, b2, w_mean, b_mean = (arrays[key].astype(np.float32) for key in EXPERT_KEYS)
        ground_vectors = arrays['ground_vectors'].tolist() if 'ground_vectors' in arrays else None

    inputs = None if num_dimensions is None else num_dimensions - (0 if ground_vectors is None else 2)
    if inputs not in (None, w1.shape[0]):
        raise ValueError(f'{path}: an expert with {w1.shape[0]} inputs, this robot has {inputs}; name the '
                         'weights of an expert for this robot with --expert_path')

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))  # 0.79... = sqrt(2 / pi)

    def policy(observation, direction):
        x = expert_inputs(observation, direction, ground_vectors)
        return np.tanh(gelu(gelu(x @ w1 + b1) @ w2 + b2) @ w_mean + b_mean)

    return policy


def expert_path(dataset, given=None):
    """Return the path of the weights: `given`, or those bundled for the robot; None for a point."""
    robot = dataset.split('-')[0].removesuffix('maze')
    if robot not in EXPERTS:
        return None
    path = DATASETS_DIR / EXPERTS[robot]
    if not given and not path.exists():
        raise ValueError(f'--dataset {dataset}: no {robot} expert is bundled; name one with --expert_path '
                         "(datasets/README.md describes its training), or download OGBench's own data, "
                         'or collect with --policy random')
    return given or str(path)


class MazeCollector:
    """One environment and one policy. An episode depends on its arguments and the config only."""

    def __init__(self, config):
        self.config = config
        # unwrapped, without the time limit, which would cut episodes
        self.env = make_env(config.dataset, terminate_at_goal=False, disable_env_checker=True).unwrapped
        self.free_cells = [tuple(cell) for cell in np.argwhere(self.env.maze_map == 0).tolist()]
        self.vertex_cells = find_vertex_cells(self.env.maze_map)
        self.search = functools.cache(self._search)
        self.policy = lambda observation, direction: direction  # of a point
        if config.policy == 'expert' and not config.dataset.startswith('pointmaze'):
            self.policy = load_expert(config.expert_path)

    def _search(self, start_ij, goal_ij):
        """Return (x, y) of the next cell on the way, and the distance of each cell from `goal_ij` in cells
        (-1: none).

        `search` caches the results, since OGBench searches the whole maze at each call.
        """
        return self.env.get_oracle_subgoal(self.env.ij_to_xy(start_ij), self.env.ij_to_xy(goal_ij))

    def sample_task(self, rng):
        """Return OGBench's task_info: a random start and a random goal of the protocol."""
        start = self.free_cells[rng.integers(len(self.free_cells))]
        goals = self.vertex_cells
        if self.config.kind == 'stitch':
            _, distances = self.search(start, start)
            goals = np.argwhere(distances == STITCH_CELLS).tolist() or [start]  # closed cells of teleport
        return {'init_ij': start, 'goal_ij': tuple(goals[rng.integers(len(goals))])}

    def move_goal(self, rng):
        """Move the goal to a random vertex cell."""
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
        """Return the unit vector (2,) from `xy` to the next cell of the shortest path to `goal_xy`."""
        direction = self.search(self.env.xy_to_ij(xy), self.env.xy_to_ij(goal_xy))[0] - xy
        return direction / (np.linalg.norm(direction) + 1e-6)

    def action(self, rng, observation, direction):
        """Return the action (A,) of the policy, with noise from the numpy Generator `rng`."""
        if self.config.policy == 'random':
            return rng.uniform(-1.0, 1.0, self.env.action_space.shape)
        action = self.policy(observation, direction)
        return np.clip(action + self.config.noise * rng.standard_normal(action.shape), -1.0, 1.0)

    def episode(self, split, number):
        """Collect one episode. Row t of each array has the state at t, or the action taken there.

        Args:
            split: 0 for training, 1 for validation.
            number: of the episode in its split.

        Returns:
            dict of float32 arrays: observations (rows, S) and, if the config saves them, actions (rows, A),
            qpos (rows, Q) and qvel (rows, U).
        """
        rng = np.random.default_rng(np.random.SeedSequence([self.config.seed, split, number]))

        # an OGBench maze draws from three generators: numpy's global one (positions, teleports), that of its
        # action space (settling steps) and its own (joints)
        global_seed, action_seed, env_seed = rng.integers(2**31, size=3).tolist()
        np.random.seed(global_seed)
        self.env.action_space.seed(action_seed)
        observation, _ = self.env.reset(seed=env_seed, options={'task_info': self.sample_task(rng)})

        direction = None
        rows = []
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
        return self.config.select(arrays)
