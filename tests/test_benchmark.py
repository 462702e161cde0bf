"""The benchmark's arithmetic, and that its sections run."""

import json
import re
import time

import benchmark
import pytest
import torch
from benchmark_peers import CausalTransformer, gru, transformers_mamba2
from benchmark_tools import Row, interleaved

from mamba import Mamba2


def test_functions_take_turns_and_medians_count(monkeypatch):
    """A clock that `slow` moves by 4, 5, 60 s in its three rounds, after a warm-up of 1000 s, and `fast` by 2 s."""
    now, order, slow = [0.0], [], iter((1000.0, 4.0, 5.0, 60.0))
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])

    def take(name, seconds):
        order.append(name)
        now[0] += seconds

    functions = {'slow': lambda: take('slow', next(slow)), 'missing': None, 'fast': lambda: take('fast', 2.0)}
    assert interleaved(functions, 3) == {'slow': 5.0, 'missing': None, 'fast': 2.0}
    assert order == ['slow', 'fast'] * 4


def test_ratios_say_how_much_longer_the_peer_takes():
    row = Row('x', 0.002, {'a': 0.01, 'b': 0.001, 'c': None})
    assert benchmark.ratios_text(row) == '5x a; 0.5x b; (not installed: c)'
    assert [benchmark.seconds_text(t) for t in (1.5, 0.002, 3.2e-5, 0.0)] == ['1.5 s', '2 ms', '32 us', '']


def test_the_peers_look_back_only_and_keep_the_shape():
    pytest.importorskip('transformers')
    u = torch.randn(2, 40, 128)
    later = torch.cat([u[:, :30], torch.randn(2, 10, 128)], 1)
    for net in (Mamba2(128), transformers_mamba2(128), gru(128), CausalTransformer(128)):
        with torch.no_grad():
            out, other = net.eval()(u), net(later)
        assert out.shape[:2] == u.shape[:2]
        torch.testing.assert_close(out[:, :30], other[:, :30], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(out[:, 30:], other[:, 30:], atol=1e-3)


def test_a_section_runs_and_makes_a_table(tmp_path, capsys):
    benchmark.main(['--quick', '--only', 'parts,cuda', '--markdown', '--json', str(tmp_path / 'numbers.json')])
    out = capsys.readouterr().out
    assert out.startswith('| what | ours |') and out.count('\n| ') == 3 and 'GFLOP/s' in out
    rows = json.loads((tmp_path / 'numbers.json').read_text())['rows']
    whole, objectives, cuda = rows
    assert whole['ours'] > 0 and 'needs --device cuda' in cuda['note']
    shares = re.findall(r'([\w/ ]+?) -?\d+% \(of the arithmetic ([\d.]+)%', objectives['note'])
    assert len(shares) == 5 and 10 < float(dict(shares)[' Q']) < 20, 'without Q an update has a sixth less to do'
    with pytest.raises(ValueError, match='--only nothing'):
        benchmark.main(['--only', 'nothing'])
