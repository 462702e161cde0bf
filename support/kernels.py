"""Matrix kernels of a CPU, chosen without changing a result by more than float32 rounding.

PyTorch multiplies float32 matrices with MKL, which uses its AVX2 kernels on processors not made by
Intel. oneDNN, which PyTorch ships as well, uses AVX-512 if there is one: 2.3 times as fast on an
AMD EPYC (Zen 5), and equal with AVX2. The precision 'medium' selects it and would allow bfloat16
inside; if the processor makes use of that, the probe undoes the choice, so that results are float32
everywhere.

These are settings of the whole process. Programs choose them (`prepare_cpu`); importing a module
changes nothing.
"""

from support.threads import share_cores

import torch

# (rows, inner, columns) of products in training: transitions through the heads, the encoder's
# projections, gradients
# of weights, and one product of odd sizes
PROBE_SHAPES = ((2048, 128, 256), (1600, 128, 552), (128, 1600, 552), (256, 2048, 64), (801, 185, 29))


def prepare_cpu(device):
    """Choose the matrix kernels and share the cores with other jobs, if `device` (torch.device) is
    a CPU. A program calls this before it trains or evaluates."""
    if device.type != 'cpu':
        return

    choose_matmul_kernels()
    share_cores()


def choose_matmul_kernels():
    """Select oneDNN for matrix products if it computes them in float32, and return whether it is
    selected.

    After `torch.set_float32_matmul_precision`, torch's own readings agree; after
    `torch.backends.mkldnn.matmul.fp32_precision` alone, `torch.get_float32_matmul_precision` and
    torch.compile raise. It also allows TF32 to CUDA tensors of this process.
    """
    if not torch.backends.mkldnn.is_available():
        return False

    torch.set_float32_matmul_precision('medium')
    accurate = all(_relative_error(*shape) < 1e-5 for shape in PROBE_SHAPES)  # bfloat16: 3e-3

    if not accurate:
        torch.set_float32_matmul_precision('highest')
    return accurate


def _relative_error(rows, inner, columns):
    """Return the relative error of a random product."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, inner, generator=generator)
    b = torch.randn(inner, columns, generator=generator)

    exact = a.double() @ b.double()
    return float((a @ b - exact).norm() / exact.norm())
