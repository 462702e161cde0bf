"""The Mamba-2 layer (Dao & Gu 2024, "Transformers are SSMs") and its scan.

The scan exists in plain torch, step by step for the tests, and as mamba-ssm's Triton kernel for CUDA tensors
(optional: requirements-cuda.txt). `choose_backend` chooses the one that a run uses.

    code    paper   meaning
    B, L            batch, sequence length
    H, P            heads, channels of a head (`headdim`)
    N               state dimensions of a channel (`d_state`); one group for B and C
"""

import importlib.util
import math
import sys
import types
from importlib import metadata

import support.threads  # noqa: F401  before torch

import torch
import torch.nn.functional as F
from torch import nn


def ssd_scan(x, dt, A, B, C, chunk_size=32):
    """Compute h_t = e^{dt_t A} h_{t-1} + dt_t B_t x_t, y_t = C_t h_t in the state-space dual form.

    Inside a chunk the recurrence is a masked matrix product, and the state is passed from chunk to chunk
    (section 6).

    Args:
        x: (B, L, H, P).
        dt: (B, L, H), positive.
        A: (H,), negative.
        B, C: (B, L, N).

    Returns:
        y (B, L, H, P), equal to `ssd_reference` up to rounding for any L and any chunk size.
    """
    batch, length, heads, headdim = x.shape
    n = -(-length // chunk_size)
    size = -(-length // n)  # chunks of equal length need little padding
    padding = n * size - length
    if padding:  # dt = 0 keeps the state, and padding at the end changes no output before it
        x, dt, B, C = (F.pad(t, (0, 0) * (t.ndim - 2) + (0, padding)) for t in (x, dt, B, C))

    # split into n chunks of Q = size positions
    dt = dt.view(batch, n, size, heads).transpose(2, 3)  # (B, n, H, Q)
    xdt = x.view(batch, n, size, heads, headdim).transpose(2, 3) * dt.unsqueeze(-1)  # (B, n, H, Q, P)
    B = B.view(batch, n, 1, size, -1)  # (B, n, 1, Q, N)
    C = C.view(batch, n, 1, size, -1)
    log_decay = torch.cumsum(dt * A[:, None], dim=-1)  # (B, n, H, Q)

    # within a chunk; masked before the exponential, which overflows in the upper triangle (NaN gradients)
    future = torch.full((size, size), -torch.inf, device=x.device).triu(1)
    decay = (log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)).add_(future).exp_()
    y = ((C @ B.transpose(-1, -2)) * decay) @ xdt  # (B, n, H, Q, P)

    if n > 1:  # contribution of earlier chunks
        to_end = (log_decay[..., -1:] - log_decay).exp().unsqueeze(-1)
        added = (B * to_end).transpose(-1, -2) @ xdt  # (B, n, H, N, P)
        keep = log_decay[..., -1].exp()[..., None, None]

        state = torch.zeros_like(added[:, 0])
        states = []  # at the beginning of each chunk
        for kept, new in zip(keep.unbind(1), added.unbind(1), strict=True):
            states.append(state)
            state = torch.addcmul(new, kept, state)
        y = y + (C * log_decay.exp().unsqueeze(-1)) @ torch.stack(states, 1)

    return y.transpose(2, 3).reshape(batch, -1, heads, headdim)[:, :length]


def ssd_reference(x, dt, A, B, C):
    """Compute the recurrence of `ssd_scan` position by position: slow, the reference of the tests."""
    batch, length, heads, headdim = x.shape
    state = x.new_zeros(batch, heads, headdim, B.shape[-1])
    outputs = []
    for t in range(length):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        state = state * decay + torch.einsum('bh,bhp,bn->bhpn', dt[:, t], x[:, t], B[:, t])
        outputs.append(torch.einsum('bhpn,bn->bhp', state, C[:, t]))
    return torch.stack(outputs, 1)


def load_mamba_ssm_scan():
    """Return mamba_ssm's Triton kernel as a function like `ssd_scan`, with its `version`.

    Only the Triton files of the package are imported. The package itself needs a CUDA extension, which rarely
    fits the installed torch and which this kernel does not use.

    Raises:
        ImportError: if the kernel is not installed.
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
            del sys.modules['mamba_ssm']  # later imports find the package itself, not this stand-in

    def scan(x, dt, A, B, C, chunk_size=32):
        return mamba_chunk_scan_combined(x, dt, A, B.unsqueeze(2), C.unsqueeze(2), chunk_size=chunk_size)

    scan.version = metadata.version('mamba-ssm') if spec else ''
    return scan


def choose_backend(requested, device):
    """Choose the implementation of the scan on a device.

    `auto` uses the kernel on CUDA devices if it passes a probe: forward and backward agree with `ssd_scan`.

    Args:
        requested: auto, torch or mamba_ssm.

    Returns:
        'torch' or 'mamba_ssm', and a line with the reason.

    Raises:
        ValueError: if mamba_ssm is requested and cannot be used.
    """
    device = torch.device(device)
    name = f'torch SSD on {device}'
    if device.type == 'cpu':
        name += f', {torch.get_num_threads()} threads'
    if requested == 'torch' or (requested == 'auto' and device.type != 'cuda'):
        return 'torch', name

    try:
        if device.type != 'cuda':
            raise RuntimeError(f'its kernels run on CUDA tensors only, and the device is {device}')
        scan = load_mamba_ssm_scan()
        probe_scan(scan, device)
    except Exception as error:  # Triton's compilers raise errors of their own types
        reason = (str(error) or repr(error)).splitlines()[0]
        if requested == 'mamba_ssm':
            raise ValueError(f'--mamba_backend mamba_ssm cannot be used: {reason}. '
                             'Use --mamba_backend torch, or see requirements-cuda.txt.') from error
        if isinstance(error, ModuleNotFoundError) and error.name == 'mamba_ssm':
            return 'torch', f'{name}; mamba-ssm is not installed (requirements-cuda.txt)'
        return 'torch', f'{name}; mamba_ssm not usable: {reason}'

    return 'mamba_ssm', f'mamba_ssm {scan.version} on {device}'


def probe_scan(scan, device):
    """Raise RuntimeError unless outputs and gradients of `scan` and `ssd_scan` agree on a device."""
    x = torch.rand(2, 70, 8, 32, device=device) * 0.1
    dt = torch.rand(2, 70, 8, device=device) * 0.1
    A = torch.rand(8, device=device) * -0.1
    B, C = torch.rand(2, 2, 70, 16, device=device) * 0.1

    results = []
    for function in (ssd_scan, scan):
        leaves = [t.clone().requires_grad_() for t in (x, dt, A, B, C)]
        y = function(*leaves)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])

    if not all(torch.allclose(a, b, rtol=2e-2, atol=1e-3) for a, b in zip(*results, strict=True)):
        raise RuntimeError('its result differs from the torch backend on this GPU')


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * silu(gate)), the norm inside a Mamba-2 layer (norm_before_gate=False)."""

    def __init__(self, size, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, y, gate):
        return F.rms_norm(y * F.silu(gate), (y.shape[-1],), self.weight, self.eps)


class Mamba2(nn.Module):
    """One Mamba-2 layer.

    Parameter names, shapes and initial values are those of `mamba_ssm.Mamba2` (ngroups 1, rmsnorm, no bias),
    so that both load the same state dict.

    Raises:
        ValueError: if `headdim` does not divide `expand` * `d_model`.
    """

    def __init__(self, d_model=128, d_state=16, d_conv=4, expand=2, headdim=32, chunk_size=32):
        super().__init__()
        self.d_inner = expand * d_model
        if self.d_inner % headdim:
            raise ValueError(f'd_inner = expand * d_model = {self.d_inner} must be a multiple of headdim '
                             f'{headdim}')
        self.d_state = d_state
        self.d_conv = d_conv
        self.headdim = headdim
        self.chunk_size = chunk_size
        self.n_heads = self.d_inner // headdim
        self.d_xbc = self.d_inner + 2 * d_state  # x, B and C side by side
        self.scan = ssd_scan

        self.in_proj = nn.Linear(d_model, self.d_inner + self.d_xbc + self.n_heads, bias=False)
        self.conv1d = nn.Conv1d(self.d_xbc, self.d_xbc, d_conv, groups=self.d_xbc, padding=d_conv - 1)

        # dt begins log-uniform between 0.001 and 0.1
        dt = torch.exp(torch.rand(self.n_heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        self.A_log = nn.Parameter(torch.empty(self.n_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.n_heads))
        self.norm = GatedRMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def _split(self, u):
        return self.in_proj(u).split([self.d_inner, self.d_xbc, self.n_heads], dim=-1)

    def _heads(self, xbc, dt):
        """Split the convolved channels into x (..., H, P), dt (..., H), B and C (..., N)."""
        x, B, C = F.silu(xbc).split([self.d_inner, self.d_state, self.d_state], dim=-1)
        return x.unflatten(-1, (self.n_heads, self.headdim)), F.softplus(dt + self.dt_bias), B, C

    def _output(self, y, x, gate):
        return self.out_proj(self.norm((y + self.D[:, None] * x).flatten(-2), gate))

    def _convolve(self, xbc):
        """Convolve each channel of (B, L, d_xbc) with its own past; the shape stays."""
        if xbc.device.type == 'cpu':  # channels stay innermost: 1.6 times as fast as conv1d with oneDNN
            xbc = F.pad(xbc, (0, 0, self.conv1d.padding[0], 0)).transpose(1, 2).unsqueeze(2)
            weight = self.conv1d.weight.unsqueeze(2)
            return F.conv2d(xbc, weight, self.conv1d.bias, groups=self.d_xbc)[:, :, 0].mT
        return self.conv1d(xbc.transpose(1, 2))[..., :xbc.shape[1]].mT

    def forward(self, u):
        """Map u (B, L, d_model) to the same shape; position t depends on positions <= t only."""
        gate, xbc, dt = self._split(u)
        xbc = self._convolve(xbc)
        x, dt, B, C = self._heads(xbc, dt)
        y = self.scan(x, dt, -torch.exp(self.A_log), B, C, chunk_size=self.chunk_size)
        return self._output(y, x, gate)

    def forward_single(self, u):
        """Map u (..., d_model), each row a sequence of length one, to the same shape.

        It equals `forward` without the overhead of convolution and scan: y = (C . B) dt x from a zero state.
        """
        gate, xbc, dt = self._split(u)
        convolved = torch.addcmul(self.conv1d.bias, xbc, self.conv1d.weight[:, 0, -1])
        x, dt, B, C = self._heads(convolved, dt)
        y = ((B * C).sum(-1, keepdim=True) * dt).unsqueeze(-1) * x
        return self._output(y, x, gate)

    def initial_state(self, batch_size):
        """Return the state before the first position: zeros (B, d_xbc, d_conv - 1) and (B, H, P, N)."""
        weight = self.out_proj.weight
        conv = weight.new_zeros(batch_size, self.d_xbc, self.d_conv - 1)
        ssm = weight.new_zeros(batch_size, self.n_heads, self.headdim, self.d_state)
        return conv, ssm

    def step(self, u, state):
        """Compute `forward`'s next position in O(1) from u (B, d_model); return it and the new state."""
        conv, ssm = state
        gate, xbc, dt = self._split(u)
        window = torch.cat([conv, xbc.unsqueeze(-1)], -1)  # (B, d_xbc, d_conv)
        convolved = (window * self.conv1d.weight[:, 0]).sum(-1) + self.conv1d.bias
        x, dt, B, C = self._heads(convolved, dt)

        decay = torch.exp(dt * -torch.exp(self.A_log))[..., None, None]
        ssm = ssm * decay + (dt.unsqueeze(-1) * x).unsqueeze(-1) * B[:, None, None]
        y = (ssm @ C[:, None, :, None]).squeeze(-1)
        return self._output(y, x, gate), (window[..., 1:], ssm)
