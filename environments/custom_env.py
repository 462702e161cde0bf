"""Custom environments: gymnasium environments with goals, named `module:factory` (--env).

    factory()             -> the environment; an argument `render_mode` is 'rgb_array' for videos
    observation_space     Box (S,), the states of the dataset
    action_space          Box (A,) with finite bounds
    reset(seed, options)  -> observation (S,), info with 'goal' (S,), a state to reach
    step(action)          -> ..., info with 'success', a bool; episodes are terminated or truncated
    num_tasks             attribute of the unwrapped environment, 1 without it; reset gets the options
                          {'task_id': 1 to num_tasks}
    goal_dims             attribute, optional: the dimensions that goals are about, such as (0, 1)

`GoalDict` adapts environments of gymnasium-robotics, whose observations are dictionaries with a desired goal.
docs/own_robot.md has an example. This module does not depend on OGBench.
"""

import importlib
import inspect
import os
import sys

import gymnasium
import numpy as np

_checked = set()  # names whose environment has passed `check_env`


def is_custom(name):
    """Return whether a name is `module:factory`, not the name of a dataset."""
    return ':' in name


def name_flag(name):
    """Return the flag that accepts a name."""
    return '--env' if is_custom(name) else '--dataset'


def open_env(name, **options):
    """Return the environment of `module:factory`, checked at the first call.

    Args:
        name: 'module:factory'; the working directory is searched for the module, too.
        options: such as render_mode; those that the factory accepts are passed to it.

    Raises:
        ValueError: the environment does not meet the requirements, in one line.
    """
    factory = find_factory(name)
    accepted = inspect.signature(factory).parameters
    try:
        env = factory(**{key: value for key, value in options.items() if key in accepted})
    except Exception as error:  # a custom factory may raise anything
        raise ValueError(f'--env {name}: the factory fails with {type(error).__name__}: {error}; '
                         'it must return a gymnasium environment') from error

    if not (hasattr(env, 'reset') and hasattr(env, 'step') and hasattr(env, 'observation_space')):
        raise ValueError(f'--env {name}: the factory returns {env!r:.60}; '
                         'it must return a gymnasium environment')

    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Dict) and 'desired_goal' in space.spaces:
        env = GoalDict(env)
    if name not in _checked:
        check_env(name, env)
        _checked.add(name)
    return env


def find_factory(name):
    """Return the callable of 'module:factory'.

    Raises:
        ValueError: the module cannot be imported, or it has no such function.
    """
    module_name, _, factory_name = name.partition(':')
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it replaces none of OPSO's modules
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f'--env {name}: cannot import {module_name} from {os.getcwd()} or PYTHONPATH '
                         f'({type(error).__name__}: {error}); run in the folder of the module') from error

    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ValueError(f'--env {name}: there is no function `{factory_name}` in {module.__file__}; '
                         'define it or name another one')
    return factory


def check_env(name, env):
    """Check spaces, reset and one step of an environment.

    Raises:
        ValueError: a requirement is not met, in one line with the way out.
    """
    def refuse(problem, way_out):
        raise ValueError(f'--env {name}: {problem}; {way_out}')

    # spaces
    states = env.observation_space
    if not isinstance(states, gymnasium.spaces.Box) or len(states.shape) != 1:
        refuse(f'its observations are {_short(states)}, not vectors',
               'wrap it in gymnasium.wrappers.FlattenObservation, or give info[\'goal\'] and states (S,)')
    actions = env.action_space
    if not isinstance(actions, gymnasium.spaces.Box) or len(actions.shape) != 1:
        refuse(f'its actions are {_short(actions)}, not vectors', 'OPSO needs a Box (A,)')
    if not np.isfinite([actions.low, actions.high]).all() or not (actions.low < actions.high).all():
        refuse(f'the bounds of its actions are {actions.low} and {actions.high}',
               'they must be finite, low below high: set the limits of the motors in its action_space')

    # reset
    try:
        observation, info = env.reset(seed=0, options={'task_id': 1})
    except Exception as error:
        refuse(f'reset(seed=0, options={{\'task_id\': 1}}) fails with {type(error).__name__}: {error}',
               'it must return (observation, info), as gymnasium\'s do')
    _check_state('the observation of reset', observation, states.shape, refuse)
    if 'goal' not in info:
        refuse('reset gives no info[\'goal\']', f'it must be a state to reach, an array {states.shape}')
    _check_state('info[\'goal\'] of reset', info['goal'], states.shape, refuse)

    # step
    try:
        observation, _, _, _, info = env.step(((actions.low + actions.high) / 2).astype(actions.dtype))
    except Exception as error:
        refuse(f'step fails with {type(error).__name__}: {error}',
               'it must return (observation, reward, terminated, truncated, info)')
    _check_state('the observation of step', observation, states.shape, refuse)
    if 'success' not in info:
        refuse('step gives no info[\'success\']', 'every step must set it to whether the goal is reached')
    if np.shape(info['success']) != () or not np.isfinite(float(info['success'])):
        refuse(f'info[\'success\'] is {info["success"]!r:.60}', 'it must be a bool')


def _check_state(what, state, shape, refuse):
    if np.shape(state) != shape:
        refuse(f'{what} has the shape {np.shape(state)}', f'it must be that of observation_space, {shape}')
    if np.asarray(state).dtype.kind not in 'bfiu':
        refuse(f'{what} is of type {np.asarray(state).dtype}', 'it must be an array of numbers')
    if not np.isfinite(np.asarray(state, float)).all():
        refuse(f'{what} is not finite: {state}', 'every dimension must be')


def _short(space):
    return f'{type(space).__name__} {space.shape or ""}'.strip()


def check_states(name, env, path, num_dimensions):
    """Check that the states of the file `path` have the shape of the environment's observations.

    Raises:
        ValueError: they have another number of dimensions.
    """
    shape = env.observation_space.shape
    if shape != (num_dimensions,):
        raise ValueError(f'--env {name}: its observations have the shape {shape}, the states of {path} have '
                         f'{num_dimensions} dimensions; use the environment of these states')


def goal_dims_of(env):
    """Return the `goal_dims` of an environment or of what it wraps, a list of int; empty without the attribute."""
    while env is not None:
        dims = vars(env).get('goal_dims', getattr(type(env), 'goal_dims', None))
        if dims is not None:
            return [int(dimension) for dimension in np.ravel(dims)]
        env = vars(env).get('env')
    return []


class GoalDict(gymnasium.ObservationWrapper):
    """Adapt an environment of gymnasium-robotics.

    Its observations are dictionaries of `observation`, `achieved_goal` and `desired_goal`. Its info has
    `is_success`. A state is the achieved goal, followed by the dimensions of `observation` that do not repeat
    it. The goal is the state at the reset with the desired goal in place of the achieved one.
    """

    def __init__(self, env):
        super().__init__(env)
        first = env.reset(seed=0)[0]
        second = env.reset(seed=1)[0]

        # a dimension repeats the achieved goal if it has the same values in both resets
        goal_values = _columns('achieved_goal', first, second)
        repeats = [any(np.array_equal(values, goal) for goal in goal_values)
                   for values in _columns('observation', first, second)]
        self.other_dims = np.flatnonzero(~np.array(repeats, bool))
        self.goal_dims = range(len(first['achieved_goal']))
        size = len(first['achieved_goal']) + len(self.other_dims)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,))

    def observation(self, observation):
        others = np.asarray(observation['observation'])[self.other_dims]
        return np.concatenate([observation['achieved_goal'], others]).astype(np.float32)

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
    """Return the values (n, len(observations)) of the n dimensions of `key` in some observations."""
    return np.stack([observation[key] for observation in observations], axis=1)
