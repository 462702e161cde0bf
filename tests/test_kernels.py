"""Matrix kernels: chosen only if they compute in float32, and only by programs."""

import pytest
import torch

import evaluate
import offline_trainer
import online_trainer
from support import kernels


@pytest.fixture
def precision():
    """Return torch's precision settings of CPU matrix products; restore the default afterwards."""
    if not hasattr(torch.backends.mkldnn, 'matmul'):
        pytest.skip('this torch has no switch for the precision of CPU matrix products')
    yield torch.backends.mkldnn.matmul
    torch.set_float32_matmul_precision('highest')  # as in all other tests


def test_choose_matmul_kernels_keeps_float32_products(precision):
    kernels.choose_matmul_kernels()
    a, b = torch.randn(2, 300, 300)
    exact = a.double() @ b.double()
    assert (a @ b - exact).norm() / exact.norm() < 1e-6


@pytest.mark.parametrize('error, taken', [(1e-7, True), (3e-3, False)])
def test_choose_matmul_kernels_rejects_inaccurate_products(precision, monkeypatch, error, taken):
    """`torch.Tensor.__matmul__` with an error plays a processor that computes large products in bfloat16."""
    matmul = torch.Tensor.__matmul__

    def rounded(a, b):
        exact = matmul(a.double(), b.double()).to(a.dtype)
        allowed = precision.fp32_precision == 'bf16' and len(a) >= 512
        return exact * (1 + error * (a.dtype == torch.float32 and allowed))

    monkeypatch.setattr(torch.Tensor, '__matmul__', rounded)
    assert kernels.choose_matmul_kernels() == taken
    assert precision.fp32_precision == ('bf16' if taken else 'ieee')
    assert torch.get_float32_matmul_precision() == ('medium' if taken else 'highest')


def test_choose_matmul_kernels_keeps_torchs_precision_readable(precision):
    """torch.compile reads both settings and fails if one of them raises."""
    kernels.choose_matmul_kernels()
    assert torch.get_float32_matmul_precision() in ('medium', 'highest')
    assert torch.backends.cuda.matmul.allow_tf32 in (True, False)


def test_prepare_cpu_ignores_other_devices(precision):
    torch.set_float32_matmul_precision('highest')
    kernels.prepare_cpu(torch.device('cuda'))
    assert torch.get_float32_matmul_precision() == 'highest'


class Chosen(Exception):
    """Raised in place of choosing kernels."""


@pytest.mark.parametrize('program', [offline_trainer, online_trainer, evaluate])
def test_programs_prepare_the_cpu(monkeypatch, tmp_path, program):
    def choose(device):
        assert device.type == 'cpu'
        raise Chosen

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, 'prepare_cpu', choose)
    with pytest.raises(Chosen):
        if program is evaluate:
            evaluate.measure(evaluate.EvaluateConfig(device='cpu'), 'x.pth', {}, 'antmaze-medium-navigate-v0',
                             evaluate.ActOverrides())
        else:
            program.main(['--device', 'cpu'])
