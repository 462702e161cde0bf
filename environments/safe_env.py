"""Environments that are made anew after a fault, so that one broken episode does not end a long run."""

import sys

import numpy as np
from tqdm import tqdm

from observing.observation_models import FULL_STATE
from ogbench_utils import MUJOCO_WARNINGS, make_env

MAX_FAULTS = 5  # environment faults in a row that end a run


def open_envs(dataset, n, make=make_env, observation_model=FULL_STATE):
    """-> n environments of a dataset that share one count of faults; `make(dataset)` gives one, seen through
    `observation_model`."""
    faults = []
    return [SafeEnv(lambda: observation_model.wrap(make(dataset)), faults) for _ in range(n)]


def num_tasks(env):
    """How many evaluation tasks an environment has: one, unless it says so; they are numbered from 1."""
    return getattr(env.unwrapped, 'num_tasks', 1)


class SafeEnv:
    """An environment that is made anew when it raises, returns NaN or loses its physics; such an episode ends, with
    the reason in info['fault']. `faults` is a list that several of them share: those since the last episode that
    ended well. The fifth in a row raises OSError with the cause."""

    def __init__(self, make, faults):
        self.make = make
        self.faults = faults
        self.env = make()
        self.observation = None

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
        """As gymnasium's; tried again in a new environment where it fails."""
        while True:
            try:
                self.observation, info = self.env.reset(**options)
                self._check(self.observation)
                return self.observation, info
            except Exception as error:  # whatever it is, it is counted, shown, and raised in the end
                self._fault(error)

    def step(self, action):
        """As gymnasium's; after a fault the last good observation, truncated, with info['fault']."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._check(observation, reward)
        except Exception as error:  # as in reset
            self._fault(error)
            return self.observation, 0.0, False, True, {'success': 0.0, 'fault': str(error)}
        self.observation = observation
        if terminated or truncated:
            self.faults.clear()
        return observation, reward, terminated, truncated, info

    def _check(self, observation, reward=0.0):
        unstable = [text for text in MUJOCO_WARNINGS if 'unstable' in text]
        MUJOCO_WARNINGS.clear()
        if unstable:  # MuJoCo has put the robot back to the origin and says nothing else
            raise FloatingPointError(unstable[0])
        if not (np.isfinite(observation).all() and np.isfinite(reward)):
            raise FloatingPointError(f'observation or reward is not finite: {observation}, {reward}')

    def _fault(self, error):
        cause = f'{type(error).__name__}: {error}'
        self.faults.append(cause)
        if len(self.faults) == MAX_FAULTS:
            raise OSError(f'the environment failed {MAX_FAULTS} times in a row, at last with {cause}') from error
        tqdm.write(f'environment fault, episode ended, environment made anew: {cause}', file=sys.stderr)
        self.env = self.make()
