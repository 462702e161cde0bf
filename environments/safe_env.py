"""Environments that are recreated after a fault, so that a broken episode does not end a long run."""

import sys

import numpy as np
from tqdm import tqdm

from observing.observation_models import FULL_STATE
from ogbench_utils import MUJOCO_WARNINGS, make_env

MAX_FAULTS = 5  # consecutive environment faults that end a run


def open_envs(dataset, n, make=make_env, observation_model=FULL_STATE):
    """Return n environments of a dataset, which share one count of faults.

    Args:
        dataset: name of the dataset or custom environment.
        n: number of environments.
        make: function that returns an environment of `dataset`.
        observation_model: ObservationModel of all environments.
    """
    faults = []
    return [SafeEnv(lambda: observation_model.wrap(make(dataset)), faults) for _ in range(n)]


def num_tasks(env):
    """Return how many evaluation tasks an environment has: its `num_tasks`, or 1. Tasks count from 1."""
    return getattr(env.unwrapped, 'num_tasks', 1)


class SafeEnv:
    """An environment that is recreated when it raises, returns NaN or becomes unstable.

    The episode ends with the reason in info['fault'].

    make: function that returns the environment.
    faults: list of causes since the last episode without a fault; several environments can share it.
    """

    def __init__(self, make, faults):
        self.make = make
        self.faults = faults
        self.env = make()
        self.observation = None  # the last one of the episode

    @property
    def observation_space(self):
        return self.env.observation_space

    @property
    def action_space(self):
        return self.env.action_space

    @property
    def unwrapped(self):
        return self.env.unwrapped

    def reset(self, **options):
        """Reset as gymnasium does; retry in a new environment after a fault.

        Raises:
            OSError: `MAX_FAULTS` consecutive faults.
        """
        while True:
            try:
                self.observation, info = self.env.reset(**options)
                self._check(self.observation)
                return self.observation, info
            except Exception as error:  # environments may raise anything; `_add_fault` ends endless retries
                self._add_fault(error)

    def step(self, action):
        """Step as gymnasium does; after a fault return the last observation, truncated, with info['fault'].

        Raises:
            OSError: `MAX_FAULTS` consecutive faults.
        """
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._check(observation, reward)
        except Exception as error:  # environments may raise anything
            self._add_fault(error)
            return self.observation, 0.0, False, True, {'success': 0.0, 'fault': str(error)}

        self.observation = observation
        if terminated or truncated:
            self.faults.clear()
        return observation, reward, terminated, truncated, info

    def _check(self, observation, reward=0.0):
        unstable = [text for text in MUJOCO_WARNINGS if 'unstable' in text]
        MUJOCO_WARNINGS.clear()
        if unstable:  # MuJoCo resets an unstable simulation and only warns
            raise FloatingPointError(unstable[0])
        if not (np.isfinite(observation).all() and np.isfinite(reward)):
            raise FloatingPointError(f'observation or reward is not finite: {observation}, {reward}')

    def _add_fault(self, error):
        cause = f'{type(error).__name__}: {error}'
        self.faults.append(cause)
        if len(self.faults) == MAX_FAULTS:
            raise OSError(f'the environment failed {MAX_FAULTS} times in a row, at last with {cause}; fix it '
                          'and run again') from error

        tqdm.write(f'environment fault, episode ended, environment recreated: {cause}', file=sys.stderr)
        self.env = self.make()
