"""The scan of a Mamba-2 layer: in plain torch, step by step for the tests, and as mamba-ssm's Triton kernel for CUDA
tensors (optional: requirements-cuda.txt). `choose_backend` says which of them a run takes."""

import importlib.util
import sys
import types
from importlib import metadata

import torch
import torch.nn.functional as F


def ssd_scan(x, dt, A, B, C, chunk_size=32):
    """State-space dual form (Mamba-2, section 6): the recurrence h_t = e^{dt_t A} h_{t-1} + dt_t B_t x_t,
    y_t = C_t h_t as masked matrix products inside chunks, with the state passed from chunk to chunk.

    Args: x (B, L, H, P); dt (B, L, H), positive; A (H,), negative; B, C (B, L, N).
    Returns y (B, L, H, P), equal to `ssd_reference` up to rounding for any L and any chunk size.
    """
    batch, length, heads, headdim = x.shape
    n = -(-length // chunk_size)
    size = -(-length // n)  # chunks of equal length, so that almost nothing is padded
    if pad := n * size - length:  # dt = 0 leaves the state as it is: padding at the end changes nothing before it
        x, dt, B, C = (F.pad(t, (0, 0) * (t.ndim - 2) + (0, pad)) for t in (x, dt, B, C))
    dt = dt.view(batch, n, size, heads).transpose(2, 3)  # (B, n, H, Q)
    xdt = x.view(batch, n, size, heads, headdim).transpose(2, 3) * dt.unsqueeze(-1)  # (B, n, H, Q, P)
    B, C = B.view(batch, n, 1, size, -1), C.view(batch, n, 1, size, -1)  # (B, n, 1, Q, N)
    log_decay = torch.cumsum(dt * A[:, None], dim=-1)  # (B, n, H, Q)
    # masked before the exponential: the upper triangle would overflow and its gradient would be NaN
    future = torch.full((size, size), -torch.inf, device=x.device).triu(1)
    decay = (log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)).add_(future).exp_()
    y = ((C @ B.transpose(-1, -2)) * decay) @ xdt  # (B, n, H, Q, P)
    if n > 1:
        to_end = (log_decay[..., -1:] - log_decay).exp().unsqueeze(-1)
        added = (B * to_end).transpose(-1, -2) @ xdt  # (B, n, H, N, P)
        keep = log_decay[..., -1].exp()[..., None, None]
        state, states = torch.zeros_like(added[:, 0]), []
        for kept, new in zip(keep.unbind(1), added.unbind(1), strict=True):
            states.append(state)
            state = torch.addcmul(new, kept, state)
        y = y + (C * log_decay.exp().unsqueeze(-1)) @ torch.stack(states, 1)
    return y.transpose(2, 3).reshape(batch, -1, heads, headdim)[:, :length]


def ssd_reference(x, dt, A, B, C):
    """The same recurrence, one position after the other: slow, obviously right; tests compare with it."""
    state, outputs = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[-1]), []
    for t in range(x.shape[1]):
        state = state * torch.exp(dt[:, t] * A)[..., None, None] + torch.einsum(
            'bh,bhp,bn->bhpn', dt[:, t], x[:, t], B[:, t])
        outputs.append(torch.einsum('bhpn,bn->bhp', state, C[:, t]))
    return torch.stack(outputs, 1)


def load_mamba_ssm_scan():
    """-> mamba_ssm's Triton kernel as a function like `ssd_scan`, with its `version`; ImportError if it is not
    there. The package itself is not imported, only its Triton files: PyPI's needs a CUDA extension at import, which
    rarely fits the torch at hand, and which this kernel does without.
    """
    spec = None if 'mamba_ssm' in sys.modules else importlib.util.find_spec('mamba_ssm')
    if spec:
        package = types.ModuleType('mamba_ssm')
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules['mamba_ssm'] = package
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    finally:
        if spec:
            del sys.modules['mamba_ssm']  # whoever wants the package itself gets it, not this stand-in

    def scan(x, dt, A, B, C, chunk_size=32):
        return mamba_chunk_scan_combined(x, dt, A, B.unsqueeze(2), C.unsqueeze(2), chunk_size=chunk_size)

    scan.version = metadata.version('mamba-ssm') if spec else ''
    return scan


def choose_backend(requested, device):
    """-> ('torch' | 'mamba_ssm', one line that says why). `requested`: auto, torch or mamba_ssm.

    The kernel must pass a probe (forward and backward agree with `ssd_scan`) before `auto` takes it;
    asking for mamba_ssm where it cannot work raises ValueError with the reason.
    """
    device = torch.device(device)
    name = f'torch SSD on {device}' + (f', {torch.get_num_threads()} threads' if device.type == 'cpu' else '')
    if requested == 'torch' or (requested == 'auto' and device.type != 'cuda'):
        return 'torch', name
    try:
        if device.type != 'cuda':
            raise RuntimeError(f'its kernels run on CUDA tensors only, and the device is {device}')
        scan, results = load_mamba_ssm_scan(), []
        shapes = [(2, 70, 8, 32), (2, 70, 8), (8,), (2, 70, 16), (2, 70, 16)]
        inputs = [torch.rand(shape, device=device) * 0.1 for shape in shapes]
        for function in (ssd_scan, scan):
            leaves = [t.clone().requires_grad_() for t in (*inputs[:2], -inputs[2], *inputs[3:])]
            out = function(*leaves)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        if not all(torch.allclose(a, b, rtol=2e-2, atol=1e-3) for a, b in zip(*results, strict=True)):
            raise RuntimeError('its result differs from the torch backend on this GPU')
    except (ImportError, OSError, RuntimeError, AssertionError, NameError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        if requested == 'mamba_ssm':
            raise ValueError(f'--mamba_backend mamba_ssm cannot be used: {reason}. '
                             'Use --mamba_backend torch, or see requirements-cuda.txt.') from error
        missing = isinstance(error, ModuleNotFoundError) and error.name == 'mamba_ssm'
        return 'torch', f'{name}; ' + ('mamba-ssm is not installed, requirements-cuda.txt says how' if missing else
                                       f'mamba_ssm not usable: {reason}')
    return 'mamba_ssm', f'mamba_ssm {scan.version} on {device}'
