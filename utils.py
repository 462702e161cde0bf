"""Small tools that both halves of OPSO share: schedules, averages of metrics, bounds of actions."""

import numpy as np


def load_weights(module, state):
    """Load a state_dict. Raises ValueError that names the first tensor that does not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f'its networks differ in size from what its settings say: {reason}') from error


def duration(seconds):
    """Write seconds for people: 4210 is '1 h 10 min'."""
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{max(minutes, 1)} min'


def expected_time(first, done, total, seconds):
    """Return one line on how long the rest takes, given the `seconds` from `first` to `done`."""
    rate = (done - first) / seconds
    left = total - done
    return f'expected time: {duration(left / rate)} for the other {left:,} of {total:,}, at {rate:.3g} per second'


def linear_schedule(start, end, duration, step):
    """Interpolate from `start` at step 0 to `end` at step `duration` and after."""
    return start + (end - start) * min(max(step / max(duration, 1), 0.0), 1.0)


def mean_of(infos, prefix=''):
    """Average each key of a list of dicts over the dicts that have it; keys of the result are
    prefixed."""
    names = dict.fromkeys(name for info in infos for name in info)
    means = {}
    for name in names:
        values = [float(info[name]) for info in infos if name in info]
        means[prefix + name] = float(np.mean(values))
    return means


def unnormalize_actions(actions, low, high):
    """Map actions (..., A) from [-1, 1] to the bounds low, high (A,) of an action space, never
    beyond; float32."""
    middle = (high + low) / 2
    half_width = (high - low) / 2
    return np.clip(middle + half_width * actions, low, high).astype(np.float32)


def normalize_actions(actions, low, high):
    """Map actions (..., A) from the bounds low, high (A,) of an action space to [-1, 1]; float32."""
    middle = (high + low) / 2
    half_width = (high - low) / 2
    return ((actions - middle) / half_width).astype(np.float32)
