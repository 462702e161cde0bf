"""The benchmark: timing in turns, ratios, peers, and a section from end to end."""

import json
import re
import time

import benchmark
import pytest
import torch
from benchmark_peers import CausalTransformer, gru, transformers_mamba2
from benchmark_tools import Row, interleaved

from mamba import Mamba2


def test_interleaved_runs_functions_in_turns_and_returns_medians(monkeypatch):
    """Advance a clock by 1000 s in the warm-up of `slow` and 4, 5, 60 s in its rounds, by 2 s for `fast`."""
    now, order, slow = [0.0], [], iter((1000.0, 4.0, 5.0, 60.0))
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])

    def work(name, seconds):
        order.append(name)
        now[0] += seconds

    functions = {'slow': lambda: work('slow', next(slow)), 'missing': None, 'fast': lambda: work('fast', 2.0)}
    assert interleaved(functions, 3) == {'slow': 5.0, 'missing': None, 'fast': 2.0}
    assert order == ['slow', 'fast'] * 4


def test_ratios_are_times_of_peers_over_ours():
    row = Row('x', 0.002, {'a': 0.01, 'b': 0.001, 'c': None})
    assert benchmark.ratios_text(row) == '5x a; 0.5x b; (not installed: c)'
    assert [benchmark.seconds_text(t) for t in (1.5, 0.002, 3.2e-5, 0.0)] == ['1.5 s', '2 ms', '32 us', '']


def test_peers_are_causal_and_keep_the_shape():
    pytest.importorskip('transformers')
    u = torch.randn(2, 40, 128)
    later = torch.cat([u[:, :30], torch.randn(2, 10, 128)], 1)
    for net in (Mamba2(128), transformers_mamba2(128), gru(128), CausalTransformer(128)):
        with torch.no_grad():
            out, other = net.eval()(u), net(later)
        assert out.shape[:2] == u.shape[:2]
        torch.testing.assert_close(out[:, :30], other[:, :30], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(out[:, 30:], other[:, 30:], atol=1e-3)


def test_benchmark_runs_sections_and_prints_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('benchmark_training.interleaved', lambda functions, rounds: interleaved(functions, 1))
    path = tmp_path / 'numbers.json'
    benchmark.main(['--quick', '--only', 'parts,cuda', '--markdown', '--json', str(path)])
    out = capsys.readouterr().out
    assert out.startswith('| what | ours |') and out.count('\n| ') == 3 and 'GFLOP/s' in out
    rows = json.loads(path.read_text())['rows']
    whole, objectives, cuda = rows
    assert whole['ours'] > 0 and 'needs --device cuda' in cuda['note']
    fractions = re.findall(r'([\w/ ]+?) -?\d+% \(([\d.]+)% of the arithmetic\)', objectives['note'])
    assert len(fractions) == 5 and 10 < float(dict(fractions)[' Q']) < 20, 'Q takes a sixth of the arithmetic'
    with pytest.raises(ValueError, match='--only nothing'):
        benchmark.main(['--only', 'nothing'])
