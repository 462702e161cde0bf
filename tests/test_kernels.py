"""The faster matrix kernels are taken only where they compute in float32."""

import pytest
import torch

import kernels


@pytest.fixture
def precision():
    if not hasattr(torch.backends.mkldnn, 'matmul'):
        pytest.skip('this torch has no switch for the precision of CPU matrix products')
    before = torch.backends.mkldnn.matmul.fp32_precision
    yield torch.backends.mkldnn.matmul
    torch.backends.mkldnn.matmul.fp32_precision = before


def test_products_stay_float32(precision):
    kernels.choose_matmul_kernels()
    a, b = torch.randn(2, 300, 300)
    exact = a.double() @ b.double()
    assert (a @ b - exact).norm() / exact.norm() < 1e-6


@pytest.mark.parametrize('error, taken', [(1e-7, True), (3e-3, False)])
def test_permission_is_taken_back_where_it_costs_precision(precision, monkeypatch, error, taken):
    """A processor that really multiplies in bfloat16 is played by `torch.Tensor.__matmul__` with an error."""
    matmul = torch.Tensor.__matmul__

    def rounded(a, b):
        return matmul(a, b) * (1 + error * (a.dtype == torch.float32 and precision.fp32_precision == 'bf16'))

    monkeypatch.setattr(torch.Tensor, '__matmul__', rounded)
    assert kernels.choose_matmul_kernels() == taken
    assert precision.fp32_precision == ('bf16' if taken else 'ieee')
