"""The border to environments: they are checked at each step, recreated after a fault, and closed."""

import gymnasium
import numpy as np

from environments.checks import (
    ERRORS,
    close_env,
    describe,
    find_attribute,
    num_tasks,
    one_line,
    read_reset,
    read_step,
    warn_once,
)
from observing.observation_models import FULL_STATE
from ogbench_utils import MUJOCO_WARNINGS, make_env, seed_generators
from support.progress import warn

MAX_FAULTS = 5  # consecutive environment faults that end a run
LONGEST_EPISODE = 10_000  # environment steps, unless a TimeLimit allows more


def open_envs(dataset, n, make=make_env, observation_model=FULL_STATE):
    """Return `Envs`, n environments of a dataset, which share one count of faults.

    Args:
        dataset: name of the dataset or custom environment.
        n: number of environments.
        make: function that returns an environment of `dataset`.
        observation_model: ObservationModel of all environments.

    Raises:
        ValueError: they cannot be made, or not n of them.
    """
    faults = []
    envs = Envs()
    try:
        for _ in range(n):
            envs.append(SafeEnv(lambda: make(dataset), faults))
            envs[-1] = observation_model.wrap(envs[-1])
            if any(envs[-1].unwrapped is other.unwrapped for other in envs[:-1]):
                raise ValueError(f'--env {dataset}: the factory returns the same environment twice')
    except BaseException as error:
        made = max(1, len({id(env.unwrapped) for env in envs}))
        opened = bool(envs)
        envs.close()
        if opened and isinstance(error, ValueError):
            raise ValueError(f'{error}; only {made} of --num_envs {n} environments can be open at once: '
                             f'give --num_envs {made}') from error
        raise
    return envs


class Envs(list):
    """A list of environments, and the context that closes them."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Close all environments. A reset opens its environment again."""
        for env in self:
            close_env(env)


class SafeEnv(gymnasium.Env):
    """An environment whose faults end the episode, with the reason in info['fault'].

    A fault is anything that `environments.checks` refuses, an exception, or an unstable simulation. The
    environment is closed, and made again at the next reset. States are copies in the precision of the
    environment; float64 becomes float32 in `ogbench_utils.reset_env` and `rollouts.run_episodes`.

    make: function that returns the environment.
    faults: list of causes since the last episode without a fault; several environments can share it.
    """

    def __init__(self, make, faults):
        self.make = make
        self.faults = faults
        self.env = None  # None: closed
        self.observation = None  # the last one of the episode
        self.steps = 0  # of the episode
        self._open()
        self.num_tasks = num_tasks(self.env)

    def _open(self):
        """Make the environment."""
        self.env = self.make()
        self.observation_space = self.env.observation_space
        self.action_space = self.env.action_space
        self.has_time_limit = find_attribute(self.env, '_max_episode_steps') is not None

    @property
    def unwrapped(self):
        return getattr(self.env, 'unwrapped', self.env)

    def get_wrapper_attr(self, name):
        """Return an attribute of this environment, or of the wrapped one."""
        return getattr(self, name) if hasattr(self, name) else self.env.get_wrapper_attr(name)

    def close(self):
        """Close the environment; the next reset makes it again."""
        env = self.env
        self.env = None
        if env is not None:
            close_env(env)

    def reset(self, *, seed=None, options=None):
        """Reset as gymnasium does; retry in a new environment after a fault.

        Raises:
            OSError: `MAX_FAULTS` consecutive faults.
        """
        while True:
            try:
                if self.env is None:
                    self._open()
                    seed_generators(self.env, seed)
                result = self.env.reset(seed=seed, options=options)
                _check_physics()
                self.observation, info = read_reset(result, self.observation_space.shape)
                self.steps = 0
                return self.observation, info
            except ERRORS as error:  # `_add_fault` ends endless retries
                self._add_fault(error)

    def step(self, action):
        """Step as gymnasium does; after a fault return the last observation, truncated, with info['fault'].

        Raises:
            OSError: `MAX_FAULTS` consecutive faults.
        """
        try:
            result = self.env.step(np.array(action))  # a copy, which the environment may change
            _check_physics()
            observation, reward, terminated, truncated, info = read_step(
                result, self.observation_space.shape)
        except ERRORS as error:
            self._add_fault(error)
            reason = one_line(error) or describe(error)
            return self.observation, 0.0, False, True, {'success': False, 'fault': reason}

        self.observation = observation
        self.steps += 1
        if self.steps >= LONGEST_EPISODE and not (self.has_time_limit or terminated or truncated):
            truncated = True
            warn_once(f'an episode did not end within {LONGEST_EPISODE:,} steps and is cut there; the '
                      'environment needs a time limit: gymnasium.wrappers.TimeLimit(env, steps)')
        if terminated or truncated:
            self.faults.clear()
        return observation, reward, terminated, truncated, info

    def _add_fault(self, error):
        cause = describe(error)
        self.faults.append(cause)
        self.close()
        if len(self.faults) >= MAX_FAULTS:
            raise OSError(f'the environment failed {MAX_FAULTS} times in a row, at last with {cause}; fix it '
                          'and run again') from error
        warn(f'environment fault, episode ended, environment recreated: {cause}')


def _check_physics():
    """Raise FloatingPointError if MuJoCo has reset an unstable simulation, which it only warns of."""
    unstable = [text for text in MUJOCO_WARNINGS if 'unstable' in text]
    MUJOCO_WARNINGS.clear()
    if unstable:
        raise FloatingPointError(unstable[0])
