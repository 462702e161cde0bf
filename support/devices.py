"""Seeds, states of random generators, and the device of a run."""

import random

import numpy as np
import torch


def set_seed(seed):
    """Seed the global generators of python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state():
    """Return the states of the global generators of python, numpy and torch, as tensors and builtins."""
    version, python, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {'python': [version, list(python), gauss], 'torch': torch.get_rng_state(), 'cuda': cuda,
            'numpy': [name, torch.from_numpy(key.astype(np.int64)), position, has_gauss, cached]}


def restore_random_state(state):
    """Restore the states of the global generators from `random_state`."""
    version, python, gauss = state['python']
    random.setstate((version, tuple(python), gauss))
    name, key, *rest = state['numpy']
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])


def choose_device(requested):
    """Return the torch.device that --device names; raise ValueError if it is not available."""
    cuda = torch.cuda.is_available()
    if requested == 'auto':
        return torch.device('cuda' if cuda else 'cpu')  # mps is slower for networks this small

    ways_out = 'use --device auto or --device cpu'
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise ValueError(f'--device {requested}: unknown kind of device; {ways_out}') from None

    available = {'cpu': True, 'cuda': cuda, 'mps': torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise ValueError(f'--device {requested} is not available here; {ways_out}')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'--device {requested} is not available here, there are {torch.cuda.device_count()} '
                         f'GPUs, counted from 0; {ways_out}')
    return device


def device_line(requested, device, backend):
    """Return one line about the device of a run, the reason for it, and its backend (from `choose_backend`).
    """
    if requested != 'auto':
        reason = 'as asked'
    elif device.type == 'cuda':
        reason = torch.cuda.get_device_name(device)
    else:
        reason = 'no CUDA GPU here' + (', and mps does not pay for networks this small'
                                       if torch.backends.mps.is_available() else '')
    return f'device {device} ({reason}): {backend}'
