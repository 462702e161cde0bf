"""Seeds, the state of all random generators, and the device that a run computes on."""

import random

import numpy as np
import torch


def set_seed(seed):
    """Seed python, numpy and torch. Environments and samplers are seeded where they are made."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state():
    """-> states of python's, numpy's and torch's global generators, as tensors and builtins."""
    version, python, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {'python': [version, list(python), gauss], 'torch': torch.get_rng_state(), 'cuda': cuda,
            'numpy': [name, torch.from_numpy(key.astype(np.int64)), position, has_gauss, cached]}


def restore_random_state(state):
    """Continue the global generators where `random_state` found them."""
    version, python, gauss = state['python']
    random.setstate((version, tuple(python), gauss))
    name, key, *rest = state['numpy']
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])


def choose_device(requested):
    """'auto', 'cpu', 'cuda', 'cuda:1' or 'mps' -> torch.device. Raises ValueError where the asked one is not there."""
    cuda = torch.cuda.is_available()
    if requested == 'auto':
        return torch.device('cuda' if cuda else 'cpu')  # these networks are too small for mps to pay

    ways_out = 'use --device auto or --device cpu'
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise ValueError(f'--device {requested}: there is no such kind of device; {ways_out}') from None

    available = {'cpu': True, 'cuda': cuda, 'mps': torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise ValueError(f'--device {requested} is not available here; {ways_out}')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'--device {requested} is not available here, there are {torch.cuda.device_count()} GPUs, '
                         f'counted from 0; {ways_out}')
    return device


def device_line(requested, device, backend):
    """One line on where a run computes, why there, and how (`choose_backend`'s words)."""
    if requested != 'auto':
        reason = 'as asked'
    elif device.type == 'cuda':
        reason = torch.cuda.get_device_name(device)
    else:
        reason = 'no CUDA GPU here' + (', and mps does not pay for networks this small'
                                       if torch.backends.mps.is_available() else '')
    return f'device {device} ({reason}): {backend}'
