"""The banner of a run: device, reason, backend and labels."""

import sys

import pytest
import torch

from labeling.labeler import Labeler
from mamba import choose_backend
from online_trainer import labels_line
from support.devices import device_line


def test_device_line_names_device_reason_and_backend(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    cpu, why = torch.device('cpu'), choose_backend('auto', 'cpu')[1]
    threads = torch.get_num_threads()
    assert device_line('auto', cpu, why) == (f'device cpu (no CUDA GPU here): torch SSD on cpu, {threads} '
                                             'threads')
    assert device_line('cpu', cpu, why).startswith('device cpu (as asked): ')
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert 'mps does not pay' in device_line('auto', cpu, why)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'NVIDIA H100')
    assert device_line('auto', torch.device('cuda:0'), 'x') == 'device cuda:0 (NVIDIA H100): x'


def test_choose_backend_names_the_requirements_of_a_missing_mamba_ssm(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mamba_ssm', None)

    def missing():
        raise ModuleNotFoundError("No module named 'mamba_ssm'", name='mamba_ssm')

    monkeypatch.setattr('mamba.load_mamba_ssm_scan', missing)
    backend, why = choose_backend('auto', 'cuda')
    assert backend == 'torch'
    assert why == 'torch SSD on cuda; mamba-ssm is not installed (requirements-cuda.txt)'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a mamba_ssm whose import fails without its CUDA extension and whose Triton files work."""
    folder = tmp_path / 'mamba_ssm' / 'ops' / 'triton'
    folder.mkdir(parents=True)
    (tmp_path / 'mamba_ssm' / '__init__.py').write_text('import selective_scan_cuda\n')
    (folder / 'ssd_combined.py').write_text(
        'def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size):\n'
        '    from mamba import ssd_scan\n'
        '    return ssd_scan(x, dt, A, B.squeeze(2), C.squeeze(2), chunk_size)\n')
    info = tmp_path / 'mamba_ssm-2.3.2.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: mamba-ssm\nVersion: 2.3.2\n')
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split('.')[0] == 'mamba_ssm']:
        monkeypatch.delitem(sys.modules, name)  # the real one, if installed
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith('mamba_ssm'):
            del sys.modules[name]


def test_choose_backend_uses_the_kernel_without_the_cuda_extension(package, monkeypatch):
    rand = torch.rand
    monkeypatch.setattr(torch, 'rand', lambda *size, device=None: rand(*size))
    assert choose_backend('auto', 'cuda') == ('mamba_ssm', 'mamba_ssm 2.3.2 on cuda')
    assert 'mamba_ssm' not in sys.modules
    with pytest.raises(ModuleNotFoundError, match='selective_scan_cuda'):
        import mamba_ssm  # noqa: F401  the stand-in has been removed


@pytest.mark.parametrize('r2, expected', [
    ([0.99, 1.0, 0.99, -0.01], 'by action 0.99 1.00 0.99 -0.01; without visible effect: action 3'),
    ([0.9, 0.5], 'by action 0.90 0.50; below 0.85, more --random_steps usually help'),
    ([0.0, -0.1], 'without visible effect: action 0, 1; below 0.85, more --random_steps usually help'),
    ([0.9, 0.95], 'by action 0.90 0.95'),
])
def test_labels_line_leaves_actions_without_effect_out_of_the_hint(r2, expected):
    labeler = Labeler(3, len(r2))
    labeler.r2.copy_(torch.tensor(r2))
    line = labels_line(labeler, sum(r2) / len(r2))
    assert line.startswith('labels: R² ') and line.endswith(expected)
    labeler.mask_dims([0])
    assert ', position masked' in labels_line(labeler, 0.9)
