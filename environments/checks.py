"""What an environment must hand out: checks of each reset and step, and one line on each fault.

`check_env` (environments/custom_env.py) before training, and `SafeEnv` (environments/safe_env.py) at each step,
read the results of an environment by `read_reset` and `read_step`. These copy states, so that an environment
may reuse its buffers.
"""

import contextlib
import functools
import importlib
import math
import traceback
from pathlib import Path

import numpy as np

from support.progress import warn

HERE = Path(__file__).parent  # frames of this folder are not the place of a fault
LARGEST = float(np.finfo(np.float32).max)  # of a dimension: states become float32
MAX_TEXT = 300  # characters of an environment's own message

# an environment may raise anything, and may call sys.exit; KeyboardInterrupt and `Stopped` end the program
ERRORS = (Exception, SystemExit)


class EnvError(ValueError):
    """A requirement that an environment does not meet; its text names the way out."""


# ---------------------------------------------------------------------------------------- results of a call
def read_reset(result, shape):
    """Return the observation (S,) and the info of a reset, whose 'goal' is (S,); both states are copies.

    Raises:
        EnvError: a requirement is not met.
    """
    if not isinstance(result, tuple | list) or len(result) != 2 or not isinstance(result[1], dict):
        raise EnvError(f'reset returns {short(result)}; it must return (observation, info), info a dict')
    observation, info = result
    observation = read_state('the observation of reset', observation, shape)

    if 'goal' not in info:
        raise EnvError(f"reset gives no info['goal']; it must be a state to reach, an array {shape}")
    return observation, info | {'goal': read_goal("info['goal'] of reset", info['goal'], shape)}


def read_step(result, shape):
    """Return observation (S,), reward, terminated, truncated and info of a step; the observation is a copy.

    The reward is a float and info['success'] a bool.

    Raises:
        EnvError: a requirement is not met.
    """
    if not isinstance(result, tuple | list) or len(result) != 5 or not isinstance(result[4], dict):
        raise EnvError(f'step returns {short(result)}; it must return (observation, reward, terminated, '
                       'truncated, info), info a dict')
    observation, reward, terminated, truncated, info = result
    observation = read_state('the observation of step', observation, shape)

    if 'success' not in info:
        raise EnvError("step gives no info['success']; every step must set it to whether the goal is reached")
    success = read_bool("info['success']", info['success'])
    return (observation, read_reward(reward), read_bool('`terminated` of step', terminated),
            read_bool('`truncated` of step', truncated), info | {'success': success})


def read_state(what, state, shape):
    """Return a copy of a state, in its own precision: float64 stays float64.

    Raises:
        EnvError: that names `what`, unless the state is an array of finite numbers of this shape.
    """
    state = np.array(state)
    if state.shape != shape:
        raise EnvError(f'{what} has the shape {state.shape}; it must be that of observation_space, {shape}')
    if state.dtype.kind not in 'bfiu':
        raise EnvError(f'{what} is of type {state.dtype}; it must be an array of numbers')

    if not np.abs(state).max() <= LARGEST:  # false for NaN as well
        wrong = np.flatnonzero(~(np.abs(state) <= LARGEST))
        values = ', '.join(f'dimension {i} is {state[i]}' for i in wrong[:3])
        raise EnvError(f'{what} is not finite: {values}; every dimension must be, in float32')
    return state


def read_goal(what, goal, shape):
    """Return a copy of a goal, a state in which NaN stands for a dimension that does not matter.

    Raises:
        EnvError: that names `what`, unless the goal is an array of this shape with at least one number.
    """
    goal = np.array(goal)
    if goal.dtype.kind != 'f' or goal.shape != shape or not np.isnan(goal).any():
        return read_state(what, goal, shape)
    if np.isnan(goal).all():
        raise EnvError(f'{what} is NaN in all dimensions; NaN means that a dimension does not matter, and at '
                       'least one must')
    read_state(what, np.nan_to_num(goal, posinf=np.inf, neginf=-np.inf), shape)
    return goal


def read_bool(what, value):
    """Return a bool of an environment, which may be a number 0 or 1.

    Raises:
        EnvError: that names `what`.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    number = np.asarray(value)
    if number.shape != () or number.dtype.kind not in 'bfiu' or number not in (0, 1):
        raise EnvError(f'{what} is {short(value)}; it must be a bool')
    return bool(number)


def read_reward(reward):
    """Return a reward as float, 0 unless it is one finite number. It is logged; nothing learns from it."""
    if not isinstance(reward, int | float | np.number):
        values = np.asarray(reward)
        reward = values.item() if values.size == 1 and values.dtype.kind in 'bfiu' else 0
    return float(reward) if abs(reward) < math.inf else 0.0


# ----------------------------------------------------------------------------------------------- attributes
def find_attribute(env, name, default=None):
    """Return an attribute of an environment or of its outermost wrapper that has it."""
    try:
        return env.get_wrapper_attr(name)
    except AttributeError:  # there is none, or the environment is not derived from gymnasium's
        return getattr(getattr(env, 'unwrapped', env), name, default)


def num_tasks(env):
    """Return how many evaluation tasks an environment has: its `num_tasks`, or 1. Tasks count from 1.

    Raises:
        EnvError: it is no count.
    """
    count = find_attribute(env, 'num_tasks', 1)
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise EnvError(f'its `num_tasks` is {short(count)}; it must be an int, at least 1')
    return int(count)


# ---------------------------------------------------------------------------------------- faults and closing
def describe(error):
    """Return one line on an exception: its type, text and place, and those of its first cause."""
    if isinstance(error, EnvError):
        return one_line(error)
    line = _describe_one(error)
    cause = error
    while (earlier := cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)):
        cause = earlier
    return line if cause is error else f'{line}, caused by {_describe_one(cause)}'


def _describe_one(error):
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if Path(frame.filename).parent not in (HERE, Path(importlib.__file__).parent)
              and not frame.filename.startswith('<frozen')]
    place = f' ({frames[-1].filename}:{frames[-1].lineno})' if frames else ''
    return f'{type(error).__name__}: {one_line(error)}'.removesuffix(': ') + place


def one_line(value):
    """Return the text of a value in one line without control characters, shortened to `MAX_TEXT`."""
    text = ' '.join(''.join(c if c.isprintable() else ' ' for c in str(value)).split())
    return text if len(text) <= MAX_TEXT else f'{text[:MAX_TEXT]}…'


def read_dimensions(values, size):
    """Return the distinct dimensions of a state of `size` dimensions that an attribute lists, a list of int.

    It is None if the attribute is no such list.
    """
    try:
        dimensions = np.asarray(values)
    except ValueError:  # a ragged list
        return None
    is_list = dimensions.ndim == 1 and dimensions.size and dimensions.dtype.kind in 'iu'
    if not is_list or len({*dimensions.tolist()} & {*range(size)}) < len(dimensions):
        return None
    return dimensions.tolist()


def short(value):
    """Return the repr of a value, in one line of at most 60 characters."""
    return f'{one_line(repr(value)):.60}'


@functools.cache
def warn_once(text):
    """Print a warning on stderr at its first occurrence in this process."""
    warn(f'warning: {text}')


def close_env(env):
    """Close an environment, if it can be closed; an error while it closes is one line on stderr."""
    try:
        getattr(env, 'close', lambda: None)()
    except ERRORS as error:
        warn(f'warning: closing the environment fails with {describe(error)}')


@contextlib.contextmanager
def closing(env):
    """Context of an environment that is closed at its end."""
    try:
        yield env
    finally:
        close_env(env)
