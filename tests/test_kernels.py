"""The faster matrix kernels are taken only where they compute in float32."""

import pytest
import torch

from support import kernels


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


def test_small_products_put_back_what_was_chosen(precision):
    for chosen in ('bf16', 'ieee'):
        precision.fp32_precision = chosen
        with kernels.small_products():
            assert precision.fp32_precision == 'ieee'
        assert precision.fp32_precision == chosen


@pytest.mark.parametrize('rows', [3, 4000])
def test_gelu_is_the_tanh_gelu(rows):
    """Values and gradients, far out as well, where exponentials overflow."""
    x = torch.cat([torch.linspace(-12, 12, 5 * rows - 4), torch.tensor([-1e4, -100.0, 100.0, 1e4])]).view(rows, 5)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    y = kernels.GELU()(ours)
    expected = torch.nn.functional.gelu(theirs, approximate='tanh')
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    weight = torch.linspace(-1, 2, x.numel()).view_as(x)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=2e-5)
