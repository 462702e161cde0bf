"""Collect trajectories of states of the robots in environments/robots.py by simple controllers.

    python scripts/data/collect_robots.py --robot fetch_reach
    python offline_trainer.py --env environments.robots:fetch_reach --dataset_path datasets/fetch_reach.npz

An episode has as many rows as the environment has steps. The robot moves from goal to goal of its own and rests
at each of them for a while. Rows are the states that --env shows: the achieved goal, then the rest.
"""

import argparse
import collections
import functools
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

from environments.custom_env import open_env  # noqa: E402
from support.files import write_atomic  # noqa: E402
from support.flags import run_main, summary  # noqa: E402

NOISE = 0.1  # std of the noise on actions, in half widths of their range


class Reach:
    """The gripper of Fetch goes to random positions. A state begins with its position (3,), in metres."""

    episodes = 200
    gain = 8.0  # action per metre
    center = np.array([1.34, 0.75, 0.53])
    reach = 0.15  # of goals around the center
    near = 0.03  # distance from a goal that counts as there
    rest = 8  # steps at a goal

    def __init__(self, env, rng):
        self.rng = rng

    def new_goal(self, state):
        """Return a random goal (3,)."""
        return self.center + self.rng.uniform(-self.reach, self.reach, 3)

    def distance(self, state, goal):
        """Return the distance from a goal."""
        return np.linalg.norm(goal - state[:3])

    def action(self, state, goal):
        """Return the action (4,) toward a goal; the gripper stays as it is."""
        return np.append(self.gain * (goal - state[:3]), 0)


class Push(Reach):
    """Fetch pushes a cube. A state begins with the positions (3,) of the cube and of the gripper."""

    episodes = 400
    gain = 10.0
    reach = 0.14
    near = 0.02
    rest = 6
    behind = 0.06  # distance from the center of the cube, from which it is pushed
    above = 0.09  # height over the table at which the gripper moves freely

    def new_goal(self, state):
        """Return a random goal (3,) on the table."""
        return np.append(super().new_goal(state)[:2], state[2])

    def action(self, state, goal):
        """Return the action (4,): behind the cube, down, and forward along the line to the goal."""
        cube, grip = state[:3], state[3:6]
        way = goal[:2] - cube[:2]
        distance = np.linalg.norm(way)
        way = way / (distance + 1e-6)
        along = (grip[:2] - cube[:2]) @ way
        across = np.linalg.norm(grip[:2] - cube[:2] - along * way)
        start = cube[:2] - self.behind * way

        if distance < self.near:  # up and away
            target = np.append(grip[:2], cube[2] + self.above)
        elif grip[2] < cube[2] + 0.03 and along < 0 and across < 0.025:  # forward
            target = np.append(cube[:2] + (min(0.05, distance) - 0.03) * way, cube[2])
        elif np.linalg.norm(grip[:2] - start) < 0.02:  # down
            target = np.append(start, cube[2])
        elif grip[2] < cube[2] + 0.06:  # up
            target = np.append(grip[:2], cube[2] + self.above)
        else:
            target = np.append(start, cube[2] + self.above)
        return np.append(self.gain * (target - grip), 0)


class PointMaze:
    """A point follows shortest paths. A state is its position (2,), in metres, and its velocity (2,)."""

    episodes = 100
    gain = 6.0  # action per metre
    damping = 1.5  # action per metre and second
    near = 0.2
    rest = 25

    def __init__(self, env, rng):
        self.rng = rng
        self.maze = env.unwrapped.maze
        self.cells = [tuple(cell) for cell in np.argwhere(np.array(self.maze.maze_map) != 1).tolist()]
        self.next_cells = functools.cache(self._next_cells)

    def new_goal(self, state):
        """Return a random goal (2,)."""
        cell = self.cells[self.rng.integers(len(self.cells))]
        return self.maze.cell_rowcol_to_xy(np.array(cell)) + self.rng.uniform(-0.25, 0.25, 2)

    def distance(self, state, goal):
        """Return the distance from a goal."""
        return np.linalg.norm(goal - state[:2])

    def action(self, state, goal):
        """Return the action (2,) toward the next cell on the way to a goal, or toward the goal in its cell."""
        here, there = (tuple(self.maze.cell_xy_to_rowcol(xy).tolist()) for xy in (state[:2], goal))
        target = goal
        if here != there:
            target = self.maze.cell_rowcol_to_xy(np.array(self.next_cells(there)[here]))
        return self.gain * (target - state[:2]) - self.damping * state[2:4]

    def _next_cells(self, goal):
        """Return the next cell on the shortest path from each cell to `goal`, by breadth-first search."""
        following, queue = {goal: goal}, collections.deque([goal])
        while queue:
            i, j = queue.popleft()
            for cell in (i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1):
                if cell in self.cells and cell not in following:
                    following[cell] = (i, j)
                    queue.append(cell)
        return following


CONTROLLERS = {'fetch_reach': Reach, 'fetch_push': Push, 'point_maze': PointMaze}


def collect(robot, episodes=0, seed=0):
    """Return the arrays `observations` (N, S) and `terminals` (N,) of a robot.

    Args:
        robot: a key of CONTROLLERS. episodes: their number; 0: that of the controller.
    """
    env = open_env(f'environments.robots:{robot}')
    rng = np.random.default_rng(seed)
    controller = CONTROLLERS[robot](env, rng)
    observations, terminals = [], []
    for episode in range(episodes or controller.episodes):
        state, _ = env.reset(seed=1000 * seed + episode)
        goal, rested, ended = controller.new_goal(state), 0, False
        while not ended:
            # a new goal after a rest at the last one
            rested += controller.distance(state, goal) < controller.near
            if rested > controller.rest:
                goal, rested = controller.new_goal(state), 0

            action = controller.action(state, goal)
            action = np.clip(action + NOISE * rng.standard_normal(len(action)), -1, 1).astype(np.float32)
            observations.append(state)
            state, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
            terminals.append(ended)
    env.close()
    return {'observations': np.array(observations, np.float32), 'terminals': np.array(terminals)}


def main(argv=None):
    """Collect the data of one robot and save them."""
    parser = argparse.ArgumentParser(description=summary(__doc__), allow_abbrev=False)
    parser.add_argument('--robot', required=True, choices=CONTROLLERS, help='function of environments/robots.py')
    parser.add_argument('--episodes', type=int, default=0, help='number of episodes (default: by robot)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all episodes (default: %(default)s)')
    parser.add_argument('--output', help='npz file (default: datasets/ROBOT.npz)')
    args = parser.parse_args(argv)

    arrays = collect(args.robot, args.episodes, args.seed)
    path = Path(args.output or ROOT / 'datasets' / f'{args.robot}.npz')
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))
    print(f'{path}: {arrays["terminals"].sum():,} episodes, {len(arrays["observations"]):,} rows')


if __name__ == '__main__':
    run_main(main)
