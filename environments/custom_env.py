"""Custom environments: gymnasium environments with goals, named `module:factory` (--env).

    factory()             -> the environment; an argument `render_mode` is 'rgb_array' for videos
    observation_space     Box (S,), the states of the dataset
    action_space          Box (A,) with finite bounds
    reset(seed, options)  -> observation (S,), info with 'goal' (S,), a state to reach
    step(action)          -> ..., info with 'success', a bool; episodes are terminated or truncated
    close()               at the end, and before the factory is called again
    num_tasks             attribute of the environment or a wrapper, 1 without it; reset gets the options
                          {'task_id': 1 to num_tasks}
    goal_dims             attribute, optional: the dimensions that goals are about, such as (0, 1)
                          (NaN in a goal: this dimension does not matter at this goal)

Rewards are not needed. environments/checks.py has the requirements on each reset and step.

`GoalDict` adapts environments of gymnasium-robotics, whose observations are dictionaries with a desired goal.
docs/own_robot.md has an example. This module does not depend on OGBench.
"""

import contextlib
import inspect

import gymnasium
import numpy as np

from environments.checks import (
    ERRORS,
    EnvError,
    close_env,
    describe,
    find_attribute,
    num_tasks,
    one_line,
    read_bool,
    read_dimensions,
    read_reset,
    read_state,
    read_step,
    short,
    warn_once,
)
from environments.user_modules import find_in_user_module, names_of_user
from support.steps import unrepeated
from support.text import ranges

CHECKED_STEPS = 5  # steps of the check before training
COMPARED_STEPS = 10  # random steps after a reset, in which GoalDict compares dimensions

_checked = set()  # names whose environment has passed `check_env`
_other_dims = {}  # name -> `find_other_dims` of its environment


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
    try:
        accepted = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of a builtin
        accepted = {}
    try:
        with names_of_user():
            env = factory(**{key: value for key, value in options.items() if key in accepted})
    except ERRORS as error:
        raise ValueError(f'--env {name}: the factory fails with {describe(error)}; it must return a '
                         'gymnasium environment') from error

    try:
        return _prepare(name, env)
    except EnvError as error:
        close_env(env)
        raise ValueError(f'--env {name}: {error}') from error
    except ERRORS as error:
        close_env(env)
        raise ValueError(f'--env {name}: the environment fails with {describe(error)}') from error
    except BaseException:  # a signal while the environment moves
        close_env(env)
        raise


def _prepare(name, env):
    """Return a new environment of `name`, adapted by `GoalDict` if need be; the first one is checked."""
    if not (hasattr(env, 'reset') and hasattr(env, 'step') and hasattr(env, 'observation_space')):
        raise EnvError(f'the factory returns {short(env)}; it must return a gymnasium environment')
    if hasattr(env, 'single_observation_space'):
        raise EnvError('the factory returns a vector environment; it must return a single one, which OPSO '
                       'makes --num_envs times')

    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Dict) and 'desired_goal' in space.spaces:
        if name not in _checked:
            _other_dims[name] = find_other_dims(env)
            print(f'--env {name}: {_describe_layout(space, _other_dims[name])}')
        env = GoalDict(env, _other_dims[name])

    if name not in _checked:
        check_env(name, env)
        _checked.add(name)
    return env


def find_factory(name):
    """Return the function of 'module:factory'; the errors are those of `find_in_user_module`."""
    return find_in_user_module(name, '--env', 'function')


def check_env(name, env):
    """Check spaces, `num_tasks`, two resets with one seed and some steps of an environment.

    Raises:
        EnvError: a requirement is not met, in one line with the way out.
    """
    _check_spaces(env.observation_space, env.action_space)
    num_tasks(env)
    goal_dims_of(env)

    # two resets with the same seed; numpy's global generator stays as it is
    shape = env.observation_space.shape
    generator_state = np.random.get_state()
    observation, info = _first_reset(env, shape)
    _first_steps(env, shape)
    again, same = _first_reset(env, shape)
    np.random.set_state(generator_state)

    if not (np.array_equal(observation, again)
            and np.array_equal(info['goal'], same['goal'], equal_nan=True)):
        warn_once(f'--env {name}: two resets with seed=0 differ; episodes can be repeated (--compare, '
                  '--video, --resume) only if all that is random follows from the seed of reset')


def _check_spaces(states, actions):
    # states
    for which, space in (('observation', states), ('action', actions)):
        if not isinstance(space, gymnasium.spaces.Space):
            kind = f'{type(space).__module__}.{type(space).__name__}'
            raise EnvError(f'its {which}_space is {kind}, no space of gymnasium; import gymnasium.spaces, '
                           'not the old gym')
    if isinstance(states, gymnasium.spaces.Dict):
        raise EnvError('its observations are Dict, not vectors; wrap it in '
                       "gymnasium.wrappers.FlattenObservation, and give info['goal'] flattened alike, by "
                       'gymnasium.spaces.flatten')
    if not isinstance(states, gymnasium.spaces.Box) or len(states.shape) != 1 or not states.shape[0]:
        is_picture = isinstance(states, gymnasium.spaces.Box) and len(states.shape) == 3
        way_out = ('OPSO learns from states: encode each picture as a vector before' if is_picture else
                   'OPSO needs a Box (S,)')
        raise EnvError(f'its observations are {_short(states)}, not vectors; {way_out}')

    # actions, which are computed as float32
    if not isinstance(actions, gymnasium.spaces.Box) or len(actions.shape) != 1 or not actions.shape[0]:
        raise EnvError(f'its actions are {_short(actions)}, not vectors; OPSO needs a Box (A,)')
    if actions.dtype.kind != 'f':
        raise EnvError(f'its actions are of type {actions.dtype}; OPSO needs a Box of floats, such as '
                       'np.float32; round them in step')
    with np.errstate(over='ignore'):
        low, high = np.float32(actions.low), np.float32(actions.high)
        width = high - low
    if not (np.isfinite(width) & (width > 0)).all():
        raise EnvError(f'the bounds of its actions are {one_line(actions.low)} and {one_line(actions.high)}; '
                       'they must be finite, low below high: set the limits of the motors in its action_space')


@contextlib.contextmanager
def _naming(call, wanted):
    """Context of a call of the environment: an error becomes an EnvError that says what it must return."""
    try:
        yield
    except EnvError:
        raise
    except ERRORS as error:
        raise EnvError(f'{call} fails with {describe(error)}; it must return {wanted}') from error


def _first_reset(env, shape):
    """Reset with seed 0, as `reset_env` does; return the checked observation and info."""
    np.random.seed(0)
    env.action_space.seed(0)
    with _naming("reset(seed=0, options={'task_id': 1})", "(observation, info), as gymnasium's do"):
        result = env.reset(seed=0, options={'task_id': 1})
    return read_reset(result, shape)


def _first_steps(env, shape):
    """Take some steps with the action in the middle of its range, at most to the end of the episode."""
    action = np.float32((env.action_space.low + env.action_space.high) / 2)
    for _ in range(CHECKED_STEPS):
        with _naming('step', '(observation, reward, terminated, truncated, info)'):
            result = env.step(action.copy())
        _, _, terminated, truncated, _ = read_step(result, shape)
        if terminated or truncated:
            return


def _short(space):
    return f'{type(space).__name__} {space.shape or ""}'.strip()


def goal_dims_of(env):
    """Return the `goal_dims` of an environment or of a wrapper, a list of int; empty without the attribute.

    Raises:
        EnvError: they are no dimensions of a state.
    """
    dims = find_attribute(env, 'goal_dims')
    if dims is None:
        return []
    size = env.observation_space.shape[0]
    dimensions = read_dimensions(dims, size)
    if dimensions is None:
        raise EnvError(f'its `goal_dims` are {short(dims)}; they must be a list of distinct dimensions of a '
                       f'state, 0 to {size - 1}')
    return dimensions


class GoalDict(gymnasium.ObservationWrapper):
    """Adapt an environment of gymnasium-robotics.

    Its observations are dictionaries of `observation`, `achieved_goal` and `desired_goal`. Its info has
    `is_success`. A state is the achieved goal, followed by the dimensions `other_dims` of `observation`. The
    goal is the desired goal; the other dimensions of it are NaN, since they do not matter.
    """

    def __init__(self, env, other_dims):
        super().__init__(env)
        self.other_dims = other_dims
        goal_size = env.observation_space['achieved_goal'].shape[0]
        self.goal_dims = range(goal_size)
        size = goal_size + len(other_dims)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)

    def observation(self, observation):
        others = np.asarray(observation['observation'])[self.other_dims]
        return np.concatenate([observation['achieved_goal'], others])

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        _check_parts(observation, self.env.observation_space)
        goal = np.concatenate([observation['desired_goal'], np.full(len(self.other_dims), np.nan)])
        return self.observation(observation), info | {'goal': goal}

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        _check_parts(observation, self.env.observation_space)
        if 'is_success' in info:
            info = info | {'success': read_bool("info['is_success']", info['is_success'])}
        return self.observation(observation), reward, terminated, truncated, info


PARTS = ('observation', 'achieved_goal', 'desired_goal')  # of an observation of gymnasium-robotics


def _check_parts(observation, space):
    """Raise EnvError unless an observation has all parts of gymnasium-robotics, in the shapes of `space`."""
    for part in PARTS:
        if not isinstance(observation, dict) or part not in observation:
            raise EnvError(f'an observation lacks `{part}`; it must be a dict of {", ".join(PARTS)}')
        read_state(f'`{part}` of an observation', observation[part], space[part].shape)


def find_other_dims(env):
    """Find the dimensions of `observation` that do not repeat the achieved goal.

    A dimension repeats it if both are equal in all states of two episodes of random steps.

    Args:
        env: environment whose observations are dictionaries with a desired goal.

    Returns:
        Indices (n,), increasing.

    Raises:
        EnvError: the environment is not like those of gymnasium-robotics.
    """
    # spaces
    space = env.observation_space
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f'{short(env)} is not derived from gymnasium.Env; it must be')
    for part in PARTS:
        if part not in space.spaces:
            raise EnvError(f'its observations have a `desired_goal`, but no `{part}`; they must have '
                           f'{", ".join(PARTS)}')
        if not isinstance(space[part], gymnasium.spaces.Box) or len(space[part].shape) != 1:
            raise EnvError(f'its `{part}` is {_short(space[part])}, no vector; give states and goals as '
                           "vectors, by a wrapper that sets info['goal']")
    if space['achieved_goal'].shape != space['desired_goal'].shape:
        raise EnvError(f"its achieved goal is {_short(space['achieved_goal'])}, its desired goal "
                       f"{_short(space['desired_goal'])}; both must have the same dimensions")
    _check_spaces(space['observation'], env.action_space)

    # states of two episodes
    states = []
    for seed in (0, 1):
        env.action_space.seed(seed)
        with _naming(f'reset(seed={seed})', "(observation, info), as gymnasium's do"):
            result = env.reset(seed=seed)
        if not isinstance(result, tuple) or len(result) != 2:
            raise EnvError(f'reset returns {short(result)}; it must return (observation, info)')

        states.append(_copy_parts(result[0], space))
        for _ in range(COMPARED_STEPS):
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            states.append(_copy_parts(observation, space))
            if terminated or truncated:
                break

    # dimensions that are equal in all of them
    return unrepeated(*(np.stack(rows) for rows in zip(*states, strict=True)))


def _copy_parts(observation, space):
    """Return copies of `observation` and `achieved_goal`."""
    _check_parts(observation, space)
    return np.array(observation['observation']), np.array(observation['achieved_goal'])


def _describe_layout(space, other_dims):
    """Return a line on which dimensions make a state, for the user's dataset must have the same."""
    size = space['achieved_goal'].shape[0]
    left_out = sorted({*range(space['observation'].shape[0])} - {*other_dims.tolist()})
    return (f'a state is the achieved goal ({size} dimensions), then dimensions {ranges(other_dims)} of '
            f'`observation`; left out, since they repeat the achieved goal: {ranges(left_out)}')
