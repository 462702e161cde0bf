"""Small tools of both halves of OPSO: weights, schedules, mean metrics, action bounds."""

import numpy as np
import torch


def check_weights(module, state):
    """Compare a state_dict with the module that it belongs to.

    Raises:
        ValueError: if a tensor does not fit or is not finite; the message names the first one.
    """
    expected = module.state_dict()
    if odd := sorted(expected.keys() ^ state.keys()):
        raise ValueError(f'its networks are not those of its settings: {odd[0]} is missing or not expected')

    for name, tensor in expected.items():
        found = state[name]
        if not isinstance(found, torch.Tensor) or not found.is_floating_point():
            raise ValueError(f'its networks are damaged: {name} is no tensor of floats')
        if found.shape != tensor.shape:
            raise ValueError('its networks do not have the sizes of its settings: size mismatch for '
                             f'{name}, {tuple(found.shape)} instead of {tuple(tensor.shape)}')
        if not found.isfinite().all():
            raise ValueError(f'its networks are damaged: {name} has values that are not finite')


def load_weights(module, state):
    """Load a state_dict into a module; the errors are those of `check_weights`."""
    check_weights(module, state)
    module.load_state_dict(state)


def load_optimizer(optimizer, state):
    """Load the moments of an Adam optimiser from its state_dict; its settings stay.

    Raises:
        ValueError: if a tensor does not fit its parameter.
    """
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    moments = state['state']
    for i, values in moments.items():
        found = [values[name].shape for name in ('step', 'exp_avg', 'exp_avg_sq')]
        if found != [(), parameters[i].shape, parameters[i].shape]:
            raise ValueError(f'its optimiser does not have the sizes of its networks: parameter {i}')
    optimizer.load_state_dict({'state': moments, 'param_groups': optimizer.state_dict()['param_groups']})


def linear_schedule(start, end, duration, step):
    """Interpolate linearly from `start` at step 0 to `end` at step `duration` and later."""
    return start + (end - start) * min(max(step / max(duration, 1), 0.0), 1.0)


def mean_of(infos, prefix=''):
    """Average each key of a list of dicts over the dicts that have it; add `prefix` to the keys."""
    names = dict.fromkeys(name for info in infos for name in info)
    means = {}
    for name in names:
        values = [float(info[name]) for info in infos if name in info]
        means[prefix + name] = float(np.mean(values))
    return means


def unnormalize_actions(actions, low, high):
    """Map actions (..., A) from [-1, 1] to the bounds low, high (A,) of an action space, float32.

    Results are clipped to the bounds.
    """
    middle = (high + low) / 2
    half_width = (high - low) / 2
    return np.clip(middle + half_width * actions, low, high).astype(np.float32)


def normalize_actions(actions, low, high):
    """Map actions (..., A) from the bounds low, high (A,) of an action space to [-1, 1], float32."""
    middle = (high + low) / 2
    half_width = (high - low) / 2
    return ((actions - middle) / half_width).astype(np.float32)
