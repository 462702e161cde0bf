"""The faster matrix kernels are taken only where they compute in float32, and only when a program asks for them."""

import pytest
import torch

import evaluate
import offline_trainer
import online_trainer
from support import kernels


@pytest.fixture
def precision():
    if not hasattr(torch.backends.mkldnn, 'matmul'):
        pytest.skip('this torch has no switch for the precision of CPU matrix products')
    yield torch.backends.mkldnn.matmul
    torch.set_float32_matmul_precision('highest')  # as in all other tests


def test_products_stay_float32(precision):
    kernels.choose_matmul_kernels()
    a, b = torch.randn(2, 300, 300)
    exact = a.double() @ b.double()
    assert (a @ b - exact).norm() / exact.norm() < 1e-6


@pytest.mark.parametrize('error, taken', [(1e-7, True), (3e-3, False)])
def test_permission_is_taken_back_where_it_costs_precision(precision, monkeypatch, error, taken):
    """Processors that make use of the permission, in products as large as those of training only, and processors that
    do not, are played by `torch.Tensor.__matmul__` with an error, whatever this machine has."""
    matmul = torch.Tensor.__matmul__

    def rounded(a, b):
        exact = matmul(a.double(), b.double()).to(a.dtype)
        allowed = precision.fp32_precision == 'bf16' and len(a) >= 512
        return exact * (1 + error * (a.dtype == torch.float32 and allowed))

    monkeypatch.setattr(torch.Tensor, '__matmul__', rounded)
    assert kernels.choose_matmul_kernels() == taken
    assert precision.fp32_precision == ('bf16' if taken else 'ieee')
    assert torch.get_float32_matmul_precision() == ('medium' if taken else 'highest')


def test_torch_can_still_say_its_precision(precision):
    """torch.compile asks for both, and ends in an error where one of them raises."""
    kernels.choose_matmul_kernels()
    with kernels.small_products():
        pass
    assert torch.get_float32_matmul_precision() in ('medium', 'highest')
    assert torch.backends.cuda.matmul.allow_tf32 in (True, False)


def test_small_products_whatever_else_is_set(precision):
    """A user of torch's newer settings only; torch cannot say its precision then."""
    torch.backends.cuda.matmul.fp32_precision = 'tf32'
    try:
        with kernels.small_products():
            pass
    finally:
        torch.backends.cuda.matmul.fp32_precision = 'ieee'


def test_other_devices_keep_their_precision(precision):
    torch.set_float32_matmul_precision('highest')
    kernels.prepare_cpu(torch.device('cuda'))
    assert torch.get_float32_matmul_precision() == 'highest'


class Chosen(Exception):
    """Raised instead of choosing."""


@pytest.mark.parametrize('program', [offline_trainer, online_trainer, evaluate])
def test_programs_choose_their_kernels(monkeypatch, tmp_path, program):
    def choose(device):
        assert device.type == 'cpu'
        raise Chosen

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, 'prepare_cpu', choose)
    with pytest.raises(Chosen):
        if program is evaluate:
            evaluate.measure(evaluate.EvaluateConfig(device='cpu'), 'x.pth', {}, 'antmaze-medium-navigate-v0',
                             evaluate.Acting())
        else:
            program.main(['--device', 'cpu'])


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
