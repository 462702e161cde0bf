"""The ant maze with one more dimension that is slow and no place.

It is a battery, a clock, an odometer or a temperature:

    python scripts/data/drifting_ant.py --drift battery
    python offline_trainer.py --env scripts.data.drifting_ant:battery --dataset_path datasets/collected/battery.npz

The script adds the dimension to the bundled data and writes NAME.npz and NAME-val.npz.
"""

import argparse
import sys
from pathlib import Path

import gymnasium
import numpy as np
import ogbench  # noqa: F401  registers the environments

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from any folder

from support.files import write_atomic  # noqa: E402
from support.flags import run_main, summary  # noqa: E402

BUNDLED = ROOT / 'datasets/antmaze-medium-navigate-mini-v0'
DRIFTS = ('battery', 'clock', 'odometer', 'temperature')
MAX_STEPS = 1001  # of an episode


def drift_of(name, positions, rng):
    """Return the additional dimension (T,) of an episode.

    Args:
        name: 'battery', 'clock', 'odometer' or 'temperature'.
        positions: (T, 2) of the ant, in metres.
        rng: numpy Generator of the episode.
    """
    steps = np.arange(len(positions))
    if name == 'battery':  # volts
        return 12.6 - 0.0015 * steps + 0.1 * rng.standard_normal()
    if name == 'clock':  # seconds
        return 0.05 * steps
    if name == 'odometer':  # metres
        return np.append(0, np.linalg.norm(np.diff(positions, axis=0), axis=1).cumsum())
    start = 20 + 3 * rng.standard_normal()  # degrees
    return start + 0.1 * rng.standard_normal(MAX_STEPS).cumsum()[:len(positions)]


class DriftingAnt(gymnasium.Wrapper):
    """antmaze-medium whose observations and goals end with the dimension `name`."""

    num_tasks = 5

    def __init__(self, env, name):
        super().__init__(env)
        self.name = name
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (env.observation_space.shape[0] + 1,))

    @property
    def unwrapped(self):
        return self

    def reset(self, *, seed=None, options=None):
        state, info = self.env.reset(seed=seed, options=options)
        self.seed = seed or 0
        self.positions = [state[:2]]
        return self._observe(state), info | {'goal': self._observe(info['goal'])}

    def step(self, action):
        state, reward, terminated, truncated, info = self.env.step(action)
        self.positions.append(state[:2])
        return self._observe(state), reward, terminated, truncated, info

    def _observe(self, state):
        drift = drift_of(self.name, np.array(self.positions), np.random.default_rng(self.seed))[-1]
        return np.append(state, drift).astype(np.float32)


def _make(name):
    return DriftingAnt(gymnasium.make('antmaze-medium-v0'), name)


def battery():
    """Return the environment with a battery."""
    return _make('battery')


def clock():
    """Return the environment with a clock."""
    return _make('clock')


def odometer():
    """Return the environment with an odometer."""
    return _make('odometer')


def temperature():
    """Return the environment with a temperature."""
    return _make('temperature')


def main(argv=None):
    """Write the data with the dimension."""
    # flags
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument('--drift', required=True, choices=DRIFTS, help='additional dimension')
    parser.add_argument('--output_dir', default='datasets/collected', help='folder of the two files')
    args = parser.parse_args(argv)

    # the bundled training and validation data, with the dimension
    for seed, suffix in enumerate(('', '-val')):
        with np.load(f'{BUNDLED}{suffix}.npz', allow_pickle=False) as arrays:
            states, terminals = arrays['observations'], arrays['terminals'].astype(bool)
        episodes = np.split(states, np.flatnonzero(terminals)[:-1] + 1)
        drift = np.concatenate([drift_of(args.drift, episode[:, :2], np.random.default_rng([seed, i]))
                                for i, episode in enumerate(episodes)])
        path = Path(args.output_dir, f'{args.drift}{suffix}.npz')
        observations = np.column_stack([states, drift]).astype(np.float32)
        write_atomic(path, lambda file, o=observations, t=terminals: np.savez(file, observations=o, terminals=t))
        print(path)


if __name__ == '__main__':
    run_main(main)
