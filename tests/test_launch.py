"""Training of several seeds in processes, and its aggregation."""

import shutil
import signal
import subprocess
import sys
import time

import launch
import numpy as np
import pytest

from support.metrics import read_csv

FLAGS = ['--dataset', 'antmaze-medium-navigate-mini-v0', '--data_dir', str(launch.ROOT / 'datasets'),
         '--max_trajectories', '4', '--batch_size', '2', '--context_length', '10', '--d_model', '32',
         '--headdim', '16', '--hidden_dim', '32', '--device', 'cpu', '--no-maze_figures',
         '--val_interval', '2', '--log_interval', '2']


@pytest.fixture
def forked(monkeypatch, forked_script):
    """Train in forked processes, which saves their imports, without curves."""
    monkeypatch.setattr(launch.subprocess, 'Popen', forked_script)
    monkeypatch.setattr('support.figures.plot_curves', lambda *_: None)


def test_launch_trains_seeds_and_aggregates_them(forked, tmp_path, capsys):
    """The command is repeated with a second seed and more updates: the first seed is resumed."""
    for seeds, updates in ((['3'], '2'), (['3', '5'], '4')):
        launch.main(['offline_trainer.py', '--seeds', *seeds, '--save_dir', str(tmp_path), '--cores', '1',
                     '--', *FLAGS, '--num_updates', updates])
    losses = [[row['validation/total_loss'] for row in read_csv(tmp_path / f'seed{seed}' / 'train.csv')]
              for seed in (3, 5)]
    assert np.shape(losses) == (2, 2) and losses[0] != losses[1]
    lines = [line.split(',') for line in (tmp_path / 'aggregate.csv').read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]
            if line[0] == 'validation/total_loss']
    assert [float(row['step']) for row in rows] == [2, 4] and {row['n'] for row in rows} == {'2'}
    assert [float(row['mean']) for row in rows] == pytest.approx(np.mean(losses, 0))
    assert f'{np.mean(losses, 0)[1]:.4g}' in (tmp_path / 'aggregate.md').read_text()
    assert (tmp_path / 'aggregate.png').stat().st_size > 10_000
    out = capsys.readouterr().out
    assert out.count('done') == 3 and 'aggregate.csv' in out


def test_launch_names_a_failed_seed_and_aggregates_the_others(forked, tmp_path):
    """The file of seed 1 is missing; the error follows the report."""
    shutil.copy(launch.ROOT / 'datasets' / 'antmaze-medium-navigate-mini-v0.npz', tmp_path / 'data0.npz')
    with pytest.raises(OSError, match=r'seed 1 failed; see .*seed1\.log'):
        launch.main(['offline_trainer.py', '--seeds', '0', '1', '--save_dir', str(tmp_path / 'runs'), '--',
                     *FLAGS, '--num_updates', '2', '--dataset_path', str(tmp_path / 'data{seed}.npz')])
    assert 'data1.npz' in (tmp_path / 'runs' / 'seed1.log').read_text()
    assert '| 1 |' in (tmp_path / 'runs' / 'aggregate.md').read_text()


def test_aggregate_equals_a_computation_by_hand():
    """The k-th evaluations are aligned; the IQM of four is the mean without the best and the worst."""
    tables = [[{'step': 10, 'time': 1.0, 'x': 1.0}, {'step': 10 + i, 'time': 2.0, 'evaluation/s': s}]
              for i, s in enumerate((0.0, 0.4, 0.6, 9.0))]
    x, line = launch.aggregate(tables)
    assert (x.name, x.statistics['mean'], x.statistics['low'], x.statistics['high']) == ('x', 1, 1, 1)
    assert (line.step, line.n) == (11.5, 4)
    assert (line.statistics['mean'], line.statistics['iqm']) == (2.5, pytest.approx(0.5))
    assert 0 <= line.statistics['low'] < 0.5 and 4 < line.statistics['high'] <= 9
    assert launch.result_columns([x, line]) == ['evaluation/s']


def test_run_all_shares_the_cores(tmp_path, monkeypatch):
    """Three seeds on four cores run together with one thread each; a single seed has four threads."""
    started = []

    class Process:
        pid, returncode = 1, 0

        def __init__(self, command, env, **options):
            started.append((command, env['OMP_NUM_THREADS']))

        def poll(self):
            return 0

    monkeypatch.setattr(launch.subprocess, 'Popen', Process)
    launch.run_all('online_trainer.py', [0, 1, 2], tmp_path,
                   ['--offline_checkpoint', 'x/seed{seed}/last.pth'], 4)
    launch.run_all('offline_trainer.py', [7], tmp_path, [], 4)
    assert [threads for _, threads in started] == ['1', '1', '1', '4']
    assert 'x/seed2/last.pth' in started[2][0]
    assert started[3][0] == [sys.executable, str(launch.ROOT / 'offline_trainer.py'), '--seed', '7',
                             '--save_dir', str(tmp_path / 'seed7')]


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows kills a process that is terminated')
def test_stopped_launcher_stops_its_trainings(tmp_path):
    """They save and end; the log has the command that resumes them."""
    command = [sys.executable, str(launch.ROOT / 'scripts' / 'launch.py'), 'offline_trainer.py',
               '--seeds', '0', '--save_dir', str(tmp_path), '--', *FLAGS, '--num_updates', '100000']
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    deadline = time.time() + 60
    while not (tmp_path / 'seed0' / 'last.pth').exists() and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert 'stopped; continue with:' in (tmp_path / 'seed0.log').read_text()
    assert not (tmp_path / 'seed0' / 'run.lock').exists()


@pytest.mark.parametrize('flags, words', [(['--seeds', '1', '1'], 'twice'), (['--cores', '0'], '--cores'),
                                          (['--', '--seed', '1'], '--seed is set for each')])
def test_launch_refuses_bad_flags(tmp_path, flags, words):
    with pytest.raises(ValueError, match=words):
        launch.main(['offline_trainer.py', '--save_dir', str(tmp_path), *flags])
