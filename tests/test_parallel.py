"""torchrun: two processes that share a batch learn what one does with all of it, and only the first one writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support import parallel
from support.files import load_checkpoint
from support.metrics import read_csv

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ['--dataset', 'antmaze-medium-navigate-mini-v0', '--data_dir', str(ROOT / 'datasets'),
         '--max_trajectories', '6', '--batch_size', '4', '--context_length', '20', '--d_model', '32',
         '--headdim', '16', '--hidden_dim', '32', '--positions_per_window', '8', '--device', 'cpu',
         '--no-maze_figures', '--log_interval', '1', '--val_interval', '3', '--val_batches', '1']
TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']


def train(folder, *flags, launcher=(), updates=6):
    command = [sys.executable, *launcher, str(ROOT / 'offline_trainer.py'), *FLAGS, '--num_updates', str(updates),
               '--save_dir', str(folder), *flags]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=240,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'USE_LIBUV': '0'})


@pytest.mark.parametrize('resumes', [False, True])
def test_two_processes_learn_what_one_does(tmp_path, resumes):
    """Six updates, in the second case the last three of them after a resume; every logged number, then every
    parameter. Windows differ in length and in how many goals lie ahead, so no term is a plain mean of shares."""
    one, two = tmp_path / 'one', tmp_path / 'two'
    done = [train(one)]
    if resumes:
        done.append(train(two, launcher=TORCHRUN, updates=3))
    done.append(train(two, *['--resume'] * resumes, launcher=TORCHRUN))
    assert [run.returncode for run in done] == [0] * len(done), done[-1].stderr
    assert done[-1].stdout.count('run folder') == 1
    rows = [read_csv(folder / 'train.csv') for folder in (one, two)]
    assert [row['step'] for row in rows[0]] == [row['step'] for row in rows[1]] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys() and 'training/v_max' in a
        for name in (name for name in a if not name.startswith('time')):
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=1e-5), name
    a, b = (load_checkpoint(folder / 'last.pth')['agent'] for folder in (one, two))
    for part in ('nets', 'targets'):
        for name, value in a[part].items():
            torch.testing.assert_close(b[part][name], value, rtol=1e-3, atol=2e-4, msg=name)
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {'one', 'two'}


def test_a_batch_that_cannot_be_shared_is_an_error(tmp_path):
    run = train(tmp_path / 'run', '--batch_size', '3', launcher=TORCHRUN)
    assert run.returncode and '--batch_size 3: must be a multiple of the 2 processes' in run.stderr


def test_without_torchrun_nothing_happens():
    value = {'a': torch.arange(4.0)}
    with parallel.processes(torch.device('cpu')) as device:
        assert device.type == 'cpu' and parallel.rank() == 0 and parallel.world_size() == 1
        assert parallel.my_rows(6) == slice(0, 6) and parallel.mean(value['a']) is value['a']
        assert parallel.gather(value['a']) is value['a'] and parallel.from_first(3) == 3
        assert parallel.mean_info(value) is value and not parallel.any_stops(None) and parallel.any_stops(15)
