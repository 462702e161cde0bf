"""Record states of the robots of gymnasium_tasks.py and wheeled_robots.py in environments/, moved by controllers.

    python scripts/data/collect_gymnasium.py --robot reacher --output datasets/reacher.npz

The controllers read the simulator, and the file contains states alone.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

from environments import gymnasium_tasks, wheeled_robots  # noqa: E402
from support.files import write_atomic  # noqa: E402
from support.flags import run_main, summary  # noqa: E402


def swing_up(rng):
    """Return a controller of the pendulum: energy shaping, then a PD controller upright."""
    gain = rng.uniform(0.6, 2)

    def act(env, state):
        cosine, sine, velocity = state
        angle = np.arctan2(sine, cosine)
        energy = velocity ** 2 / 6 + 5 * (cosine - 1)  # 0 at rest upright
        if cosine > 0.9 and abs(velocity) < 3:
            torque = -10 * angle - 2 * velocity
        else:
            torque = -gain * np.sign(velocity * energy) if abs(energy) > 0.1 else 0
        return [torque + 0.2 * rng.standard_normal()]

    return act


def rock(rng):
    """Return a controller of the mountain car, which accelerates in the direction of its motion."""

    def act(env, state):
        return [np.sign(state[1]) * rng.uniform(0.5, 1) + 0.3 * rng.standard_normal()]

    return act


def move_joints(rng):
    """Return a controller of the reacher: PD control of its joints to a new pose every 25 steps."""
    steps = 0
    pose = None

    def act(env, state):
        nonlocal steps, pose
        if steps % 25 == 0:
            pose = np.array([rng.uniform(-np.pi, np.pi), rng.uniform(-2.8, 2.8)])
        steps += 1
        data = env.unwrapped.data
        return 0.4 * (pose - data.qpos[:2]) - 0.06 * data.qvel[:2] + 0.05 * rng.standard_normal(2)

    return act


def turn_wheels(rng):
    """Return a controller of the two wheels, which turns them from pose to pose of its own."""
    pose = rng.uniform(-np.pi, np.pi, 2)

    def act(env, state):
        nonlocal pose
        left = wheeled_robots.wrap(pose - state)
        if np.abs(left).max() < env.unwrapped.tolerance:
            pose = rng.uniform(-np.pi, np.pi, 2)
        return left * min(0.15, 0.07 / np.abs(left).max()) + 0.03 * rng.standard_normal(2)

    return act


def drive(rng):
    """Return a controller of the rover, which turns toward places of its own and drives there."""
    place = rng.uniform(-2.7, 2.7, 2)

    def act(env, state):
        nonlocal place
        x, y, heading, left, right = state
        toward = place - (x, y)
        if np.linalg.norm(toward) < 0.2:
            place = rng.uniform(-2.7, 2.7, 2)
        error = wheeled_robots.wrap(np.arctan2(toward[1], toward[0]) - heading)
        forward = 0.8 * max(0, np.cos(error))
        turn = 0.3 * np.clip(error, -1, 1)
        wheels = np.array([forward - turn, forward + turn])
        return 4 * (wheels - (left, right)) + 0.1 * rng.standard_normal(2)

    return act


ROBOTS = {  # name -> module, controller, episodes, steps of an episode
    'pendulum': (gymnasium_tasks, swing_up, 300, 200),
    'mountain_car': (gymnasium_tasks, rock, 200, 250),
    'reacher': (gymnasium_tasks, move_joints, 400, 50),
    'two_wheels': (wheeled_robots, turn_wheels, 200, 150),
    'rover': (wheeled_robots, drive, 200, 200),
}


def collect(name, episodes=0, seed=0):
    """Return `observations` (N, S) and `terminals` (N,) of a robot; 0 episodes: as many as `ROBOTS` has."""
    module, make_controller, count, steps = ROBOTS[name]
    env = getattr(module, name)()
    low, high = env.action_space.low, env.action_space.high

    observations, terminals = [], []
    for episode in range(episodes or count):
        act = make_controller(np.random.default_rng([seed, episode]))
        state, _ = env.reset(seed=seed * count + episode)
        observations.append(state)
        for _ in range(steps):
            action = np.clip(act(env, state), low, high).astype(np.float32)
            state, _, terminated, _, _ = env.step(action)
            observations.append(state)
            if terminated:
                break
        terminals += [False] * (len(observations) - len(terminals) - 1) + [True]
    env.close()
    return np.array(observations), np.array(terminals)


def main(argv=None):
    """Record the states of one robot and save them."""
    parser = argparse.ArgumentParser(description=summary(__doc__), allow_abbrev=False)
    parser.add_argument('--robot', required=True, choices=ROBOTS, help='name of the robot')
    parser.add_argument('--output', default='', help='npz file; default: datasets/ROBOT.npz')
    parser.add_argument('--episodes', type=int, default=0, help='number of episodes; 0: the default of the robot')
    parser.add_argument('--seed', type=int, default=0, help='seed of all that is random')
    flags = parser.parse_args(argv)

    observations, terminals = collect(flags.robot, flags.episodes, flags.seed)
    path = Path(flags.output or f'datasets/{flags.robot}.npz')
    write_atomic(path, lambda file: np.savez_compressed(file, observations=observations, terminals=terminals))
    print(f'{path}: {terminals.sum()} trajectories, {len(observations):,} states of {observations.shape[1]} dimensions')


if __name__ == '__main__':
    run_main(main)
