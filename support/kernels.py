"""What makes a CPU faster without changing a result by more than float32 rounding.

PyTorch multiplies float32 matrices with MKL, and MKL takes its AVX2 kernels on processors that Intel did not make.
oneDNN, which PyTorch ships as well, takes AVX-512 wherever it is: 2.3 times as fast on an AMD EPYC (Zen 5). It is
reached by allowing it bfloat16 inside ('medium'); where a processor would really make use of that permission, the probe
notices and takes it back, so that results are float32 everywhere.

These are settings of the whole process. Programs choose them (`prepare_cpu`); importing a module changes nothing.
"""

import contextlib

from support.threads import share_cores

import torch
import torch.nn.functional as F
from torch import nn

# (rows, inner, columns) of products in training: a batch of transitions through the heads, the encoder's projections,
# gradients of weights, and one product whose sizes are no multiples of anything
FEW_ROWS = 32
PROBE_SHAPES = ((2048, 128, 256), (1600, 128, 552), (128, 1600, 552), (256, 2048, 64), (801, 185, 29))


def prepare_cpu(device):
    """To be called by a program before it trains or evaluates: on a CPU, choose the matrix kernels, and share the cores
    with other jobs. `device`: a torch.device; nothing happens for others than a CPU."""
    if device.type != 'cpu':
        return

    choose_matmul_kernels()
    share_cores()


def choose_matmul_kernels():
    """Let torch take oneDNN for matrix products if it computes them in float32 -> whether it does so now.

    `torch.set_float32_matmul_precision` is the one switch after which torch's own readings agree; after
    `torch.backends.mkldnn.matmul.fp32_precision` alone, `torch.get_float32_matmul_precision` and torch.compile raise.
    It would allow TF32 to CUDA tensors of this process, too.
    """
    if not torch.backends.mkldnn.is_available():
        return False

    torch.set_float32_matmul_precision('medium')
    accurate = all(_relative_error(*shape) < 1e-5 for shape in PROBE_SHAPES)  # bfloat16: 3e-3

    if not accurate:
        torch.set_float32_matmul_precision('highest')
    return accurate


def _relative_error(rows, inner, columns):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, inner, generator=generator)
    b = torch.randn(inner, columns, generator=generator)

    exact = a.double() @ b.double()
    return float((a @ b - exact).norm() / exact.norm())


@contextlib.contextmanager
def small_products(rows):
    """Use MKL inside this context if a product has few `rows`: its calls cost less than oneDNN's."""
    products = getattr(torch.backends.mkldnn, 'matmul', None)  # its reading works whatever else the user has set
    before = products and rows <= FEW_ROWS and products.fp32_precision
    if before == 'bf16':
        products.fp32_precision = 'ieee'
    try:
        yield
    finally:
        if before == 'bf16':
            products.fp32_precision = before


class GELU(nn.Module):
    """GELU with the tanh approximation, as `torch.nn.GELU(approximate='tanh')`.

    On a CPU it is written x sigmoid(x (a + b x^2)), the same function: PyTorch's vectorised sigmoid takes a tenth
    of the time of its tanh, which was a tenth of a whole update.
    """

    def forward(self, x):
        if x.device.type == 'cpu' and x.numel() > 10_000:  # below, more calls cost more than they save
            return _GELU.apply(x)
        return F.gelu(x, approximate='tanh')


class _GELU(torch.autograd.Function):
    A = 2 * (2 / torch.pi) ** 0.5
    B = 0.044715 * A

    @staticmethod
    def forward(ctx, x):
        gate = torch.addcmul(x.new_tensor(_GELU.A), x, x, value=_GELU.B).mul_(x).sigmoid_()
        y = x * gate
        ctx.save_for_backward(x, gate, y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, gate, y = ctx.saved_tensors
        slope = torch.addcmul(x.new_tensor(_GELU.A), x, x, value=3 * _GELU.B).mul_(y)
        return slope.addcmul_(slope, gate, value=-1).add_(gate).mul_(gradient)
