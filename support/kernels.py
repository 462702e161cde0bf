"""Matrix kernels of a CPU, chosen without changing a result by more than float32 rounding.

PyTorch multiplies float32 matrices with MKL, and MKL takes its AVX2 kernels on processors that Intel did not make.
oneDNN, which PyTorch ships as well, takes AVX-512 wherever it is: 2.3 times as fast on an AMD EPYC (Zen 5). It is
reached by allowing it bfloat16 inside ('medium'); where a processor would really make use of that permission, the probe
notices and takes it back, so that results are float32 everywhere.

These are settings of the whole process. Programs choose them (`prepare_cpu`); importing a module changes nothing.
"""

from support.threads import share_cores

import torch

# (rows, inner, columns) of products in training: a batch of transitions through the heads, the encoder's projections,
# gradients of weights, and one product whose sizes are no multiples of anything
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
