"""Which matrix kernels torch runs on a CPU.

PyTorch multiplies float32 matrices with MKL, and MKL takes its AVX2 kernels on processors that Intel did not make.
oneDNN, which PyTorch ships as well, takes AVX-512 wherever it is: 2.3 times as fast on an AMD EPYC (Zen 5). It is
reached by allowing it bfloat16 inside; where a processor would really make use of that permission, the probe
notices and takes it back, so that results are float32 everywhere.
"""

import torch


def choose_matmul_kernels():
    """Let torch take oneDNN for matrix products if it computes them in float32 -> whether it does so now."""
    if not hasattr(torch.backends.mkldnn, 'matmul') or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 128, 128, generator=generator)
    exact = a.double() @ b.double()
    torch.backends.mkldnn.matmul.fp32_precision = 'bf16'
    accurate = bool(((a @ b - exact).norm() / exact.norm()) < 1e-5)  # bfloat16: 3e-3
    if not accurate:
        torch.backends.mkldnn.matmul.fp32_precision = 'ieee'
    return accurate
