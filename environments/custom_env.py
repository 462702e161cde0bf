"""Your own robot: a gymnasium environment with goals, named `module:factory` (--env), and what it has to bring.

    factory()             -> the environment; where it takes `render_mode`, that is 'rgb_array' for videos
    observation_space     Box (S,), the states that the dataset has, too
    action_space          Box (A,) with finite bounds
    reset(seed, options)  -> observation (S,), info with 'goal' (S,), a state to reach
    step(action)          -> ..., info with 'success', a bool; the episode is terminated or truncated at some time
    num_tasks             of the unwrapped environment, 1 without it: reset gets options={'task_id': 1 to num_tasks}

An environment of gymnasium-robotics, whose observations are dictionaries with a desired goal, is adapted (`GoalDict`).
docs/own_robot.md has an example. Nothing here knows OGBench.
"""

import importlib
import inspect
import os
import sys

import gymnasium
import numpy as np

_checked = set()  # names that are known to be good


def is_custom(name):
    """Is it `module:factory`, not the name of a dataset?"""
    return ':' in name


def name_flag(name):
    """The flag that a name is given by."""
    return '--env' if is_custom(name) else '--dataset'


def open_env(name, **options):
    """The environment that `module:factory` makes, checked the first time. `options`, such as render_mode, are given to
    a factory that takes them. The module is looked for in the working directory, too. Raises ValueError in one line."""
    factory = find_factory(name)
    taken = inspect.signature(factory).parameters
    try:
        env = factory(**{key: value for key, value in options.items() if key in taken})
    except Exception as error:  # whatever a stranger's code raises
        raise ValueError(f'--env {name}: the factory fails with {type(error).__name__}: {error}') from error

    if not (hasattr(env, 'reset') and hasattr(env, 'step') and hasattr(env, 'observation_space')):
        raise ValueError(f'--env {name}: the factory returns {env!r:.60}; it must return a gymnasium environment')
    if isinstance(env.observation_space, gymnasium.spaces.Dict) and 'desired_goal' in env.observation_space.spaces:
        env = GoalDict(env)
    if name not in _checked:
        check_env(name, env)
        _checked.add(name)
    return env


def find_factory(name):
    """'module:factory' -> the callable. ValueError says what is missing."""
    module_name, _, factory_name = name.partition(':')
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # behind OPSO's own modules, so that none of them is replaced
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f'--env {name}: cannot import {module_name} from {os.getcwd()} or PYTHONPATH '
                         f'({type(error).__name__}: {error})') from error

    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ValueError(f'--env {name}: there is no function `{factory_name}` in {module.__file__}')
    return factory


def check_env(name, env):
    """Reset it and take a step. Raises ValueError in one line that says what is missing and how to mend it."""
    def refuse(problem, way_out):
        raise ValueError(f'--env {name}: {problem}; {way_out}')

    states = env.observation_space
    if not isinstance(states, gymnasium.spaces.Box) or len(states.shape) != 1:
        refuse(f'its observations are {_short(states)}, not vectors of numbers',
               'wrap it in gymnasium.wrappers.FlattenObservation, or give info[\'goal\'] and states (S,)')
    actions = env.action_space
    if not isinstance(actions, gymnasium.spaces.Box) or len(actions.shape) != 1:
        refuse(f'its actions are {_short(actions)}, not vectors of numbers', 'OPSO needs a Box (A,)')
    if not np.isfinite([actions.low, actions.high]).all() or not (actions.low < actions.high).all():
        refuse(f'the bounds of its actions are {actions.low} and {actions.high}',
               'finite ones, low below high, are needed: state what the motors can do in its action_space')

    try:
        observation, info = env.reset(seed=0, options={'task_id': 1})
    except Exception as error:
        refuse(f'reset(seed=0, options={{\'task_id\': 1}}) fails with {type(error).__name__}: {error}',
               'it must return (observation, info), as gymnasium\'s do')
    _check_state('the observation of reset', observation, states.shape, refuse)
    if 'goal' not in info:
        refuse('reset gives no info[\'goal\']', f'it must be a state to reach, an array {states.shape}')
    _check_state('info[\'goal\'] of reset', info['goal'], states.shape, refuse)

    try:
        observation, _, _, _, info = env.step(((actions.low + actions.high) / 2).astype(actions.dtype))
    except Exception as error:
        refuse(f'step fails with {type(error).__name__}: {error}',
               'it must return (observation, reward, terminated, truncated, info)')
    _check_state('the observation of step', observation, states.shape, refuse)
    if 'success' not in info:
        refuse('step gives no info[\'success\']', 'it must say in every step whether the goal is reached')
    if np.shape(info['success']) != () or not np.isfinite(float(info['success'])):
        refuse(f'info[\'success\'] is {info["success"]!r:.60}', 'it must be a bool')


def _check_state(what, state, shape, refuse):
    if np.shape(state) != shape:
        refuse(f'{what} has the shape {np.shape(state)}', f'it must be that of observation_space, {shape}')
    if np.asarray(state).dtype.kind not in 'bfiu':
        refuse(f'{what} is of type {np.asarray(state).dtype}', 'it must be numbers')
    if not np.isfinite(np.asarray(state, float)).all():
        refuse(f'{what} is not finite: {state}', 'every number in it must be')


def _short(space):
    return f'{type(space).__name__} {space.shape or ""}'.strip()


def check_states(name, env, path, dimensions):
    """ValueError where the states of the file `path` are not those of the environment."""
    shape = env.observation_space.shape
    if shape != (dimensions,):
        raise ValueError(f'--env {name}: its observations have the shape {shape}, the states of {path} have '
                         f'{dimensions} numbers; both must be the same')


class GoalDict(gymnasium.ObservationWrapper):
    """An environment of gymnasium-robotics: observations are dictionaries of `observation`, `achieved_goal` and
    `desired_goal`, and info has `is_success`.

    A state is the achieved goal, then the numbers of `observation` that do not repeat it. The goal is the state of the
    reset with the desired goal in the place of the achieved one: all the rest may stay as it is.
    """

    def __init__(self, env):
        super().__init__(env)
        first = env.reset(seed=0)[0]
        again = env.reset(seed=1)[0]
        repeats = [any(np.array_equal(column, goal) for goal in _columns('achieved_goal', first, again))
                   for column in _columns('observation', first, again)]
        self.rest = np.flatnonzero(~np.array(repeats, bool))
        size = len(first['achieved_goal']) + len(self.rest)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,))

    def observation(self, observation):
        rest = np.asarray(observation['observation'])[self.rest]
        return np.concatenate([observation['achieved_goal'], rest]).astype(np.float32)

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        goal = self.observation(observation | {'achieved_goal': observation['desired_goal']})
        return self.observation(observation), info | {'goal': goal}

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if 'is_success' in info:
            info = info | {'success': bool(info['is_success'])}
        return observation, reward, terminated, truncated, info


def _columns(key, *observations):
    """Each number of a part of some observations, with its values in all of them."""
    return np.stack([observation[key] for observation in observations], axis=1)
