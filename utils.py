"""Small tools that both halves of OPSO share: losses, schedules, averages of numbers."""

import numpy as np
import torch


def load_weights(module, state):
    """`load_state_dict`, with a ValueError that names the first tensor that does not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f'its networks differ in size from what its settings say: {reason}') from error


def duration(seconds):
    """4210 -> '1 h 10 min'."""
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{max(minutes, 1)} min'


def expected_time(first, done, total, seconds):
    """One line on how long the rest takes, judged by the `seconds` that it took from `first` to `done`."""
    rate = (done - first) / seconds
    left = total - done
    return f'expected time: {duration(left / rate)} for the other {left:,} of {total:,}, at {rate:.3g} per second'


def expectile_loss(prediction, target, expectile):
    """Mean of |expectile - 1(d < 0)| d^2 with d = target - prediction (IQL, Kostrikov et al. 2021, eq. 5).

    Its minimiser is the `expectile`-expectile of the targets: optimistic above 0.5.
    """
    difference = target - prediction
    weight = torch.where(difference > 0, expectile, 1 - expectile)
    return (weight * difference.square()).mean()


@torch.no_grad()
def soft_update(target, source, target_rate):
    """target <- target + target_rate (source - target), in place, for every parameter of two alike modules."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), target_rate)


def linear_schedule(start, end, duration, step):
    """From `start` at step 0 to `end` at step `duration` and after."""
    return start + (end - start) * min(max(step / max(duration, 1), 0.0), 1.0)


def mean_of(infos, prefix=''):
    """List of dicts of numbers -> dict of the means of each key over the dicts that have it, keys prefixed."""
    names = dict.fromkeys(name for info in infos for name in info)
    means = {}
    for name in names:
        values = [float(info[name]) for info in infos if name in info]
        means[prefix + name] = float(np.mean(values))
    return means


def as_floats(info):
    """Dict of 0-d tensors -> the same with plain floats, which a checkpoint can hold; one transfer from the device. To
    be called at once: thousands of small tensors that are kept break the memory between them into pieces too small
    for the next batch."""
    return dict(zip(info, torch.stack(list(info.values())).tolist(), strict=True))


def unnormalize_actions(actions, low, high):
    """Actions (..., A) in [-1, 1] -> the same between the bounds (A,) of an action space, float32."""
    middle = (high + low) / 2
    half_width = (high - low) / 2
    return (middle + half_width * actions).astype(np.float32)


def normalize_actions(actions, low, high):
    """The reverse of `unnormalize_actions`: actions (..., A) between low and high (A,) -> the same in [-1, 1], float32."""
    middle = (high + low) / 2
    half_width = (high - low) / 2
    return ((actions - middle) / half_width).astype(np.float32)
