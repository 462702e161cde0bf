"""Training of several seeds and datasets as jobs of submitit, and its aggregation."""

import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import launch
import numpy as np
import pytest
import submitit

from support.metrics import read_csv

FLAGS = ['--dataset', 'antmaze-medium-navigate-mini-v0', '--data_dir', str(launch.ROOT / 'datasets'),
         '--max_trajectories', '4', '--batch_size', '2', '--context_length', '10', '--d_model', '32',
         '--headdim', '16', '--hidden_dim', '32', '--device', 'cpu', '--no-maze_figures',
         '--val_interval', '2', '--log_interval', '2']


@pytest.fixture
def forked(monkeypatch, forked_script):
    """Run jobs in this process, and train in forked ones, which saves their imports, without curves."""
    executor = submitit.AutoExecutor
    monkeypatch.setattr(submitit, 'AutoExecutor', lambda folder, cluster, **_: executor(folder, 'debug'))
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


def plan(*words):
    """Return the options, and the trainings of a command line."""
    options, flags = launch.parse(['offline_trainer.py', '--save_dir', 'runs', *words])
    return options, launch.plan(options, flags)


def test_jobs_share_the_cores():
    """Three seeds on four cores run together with one thread each; three cores of five have a seed left over."""
    for words, together, threads in ((['--seeds', '0', '1', '2', '--cores', '4'], 3, 1),
                                     (['--seeds', '7', '--cores', '4'], 1, 4),
                                     (['--seeds', *'01234', '--cores', '3'], 3, 1),
                                     (['--seeds', *'01234', '--cores', '6', '--cluster', 'slurm'], 5, 6)):
        options, trainings = plan(*words)
        jobs = launch.divide(trainings, options)
        assert len(jobs) == together and {job.threads for job in jobs} == {threads}
        assert sorted(training.name for job in jobs for training in job.trainings) == [
            f'seed {seed}' for seed in options.seeds]


def test_every_dataset_and_seed_has_a_command_and_a_folder():
    _, trainings = plan('--datasets', 'a', 'm:b', '--seeds', '1', '--', '--offline_checkpoint', 'x/{dataset}{seed}.pth')
    first, second = trainings
    assert (second.folder, second.log) == (Path('runs/m.b/seed1'), Path('runs/m.b/seed1.log'))
    assert first.words == [
        sys.executable, str(launch.ROOT / 'offline_trainer.py'), '--offline_checkpoint', 'x/a1.pth', '--dataset', 'a',
        '--seed', '1', '--save_dir', str(Path('runs/a/seed1')), '--resume', 'auto']


def test_dry_run_prints_the_jobs_and_starts_none(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(launch, 'open_executor', lambda options: pytest.fail('a job'))
    launch.main(['offline_trainer.py', '--seeds', '4', '9', '--save_dir', str(tmp_path / 'runs'), '--cores', '1',
                 '--dry_run'])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('job 1, seed 4: ') and second.startswith('job 1, seed 9: ') and '--resume auto' in first
    assert not list(tmp_path.iterdir())


def test_slurm_jobs_get_the_options_and_are_not_waited_for(monkeypatch, tmp_path, capsys):
    given = {}

    class Executor:
        def __init__(self, folder, cluster, **options):
            assert cluster == 'slurm'

        def update_parameters(self, **parameters):
            given.update(parameters)

        def submit_array(self, jobs):
            return [types.SimpleNamespace(job_id=f'{17}_{number}') for number, _ in enumerate(jobs)]

    monkeypatch.setattr(submitit, 'AutoExecutor', Executor)
    launch.main(['offline_trainer.py', '--seeds', '0', '1', '--save_dir', str(tmp_path / 'runs'), '--cluster', 'slurm',
                 '--hours', '2', '--gpus', '1', '--slurm', 'partition=cpu', 'constraint=a=b'])
    assert given == {'name': 'runs', 'timeout_min': 120, 'cpus_per_task': launch.SLURM_CORES, 'gpus_per_node': 1,
                     'slurm_partition': 'cpu', 'slurm_constraint': 'a=b'}
    assert 'queued: 17_0, 17_1; --only_report' in capsys.readouterr().out


def test_preempted_job_saves_its_training_and_is_queued_again(tmp_path):
    """As submitit does at SIGUSR2, while `Popen.wait` of the job is interrupted."""
    training = launch.Training('seed 0', tmp_path / 'seed0', [])
    job = launch.Job([training], 2, {'A': None})
    code = 'import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7)); print(1); time.sleep(60)'
    job.process = subprocess.Popen([sys.executable, '-uc', code], stdout=subprocess.PIPE)
    job.process.stdout.readline()
    again = job.checkpoint().function
    assert job.process.wait() == 0, 'its exit code was taken by checkpoint'
    assert (again.trainings, again.threads, again.variables, again.process) == ([training], 2, {'A': None}, None)
    job.process.stdout.close()


def test_missing_libraries_are_one_line(monkeypatch, tmp_path):
    command = ['offline_trainer.py', '--save_dir', str(tmp_path), '--cluster', 'slurm']
    monkeypatch.setenv('PATH', '')
    with pytest.raises(ValueError, match='^--cluster slurm: Could not detect "srun", .*$'):
        launch.main(command)
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(ValueError, match='launch.py needs submitit: pip install -r requirements-launch.txt'):
        launch.main(command)


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows kills a process that is terminated')
def test_stopped_launcher_stops_its_trainings(tmp_path):
    """They save and end; the log has the command that resumes them. The executor is submitit's for this machine."""
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


@pytest.mark.parametrize('flags, words', [
    (['--seeds', '1', '1'], 'twice'), (['--cores', '-1'], '--cores'), (['--hours', '0'], '--hours'),
    (['--slurm', 'cpu'], 'must be NAME=VALUE'), (['--slurm', 'partition=cpu'], '--slurm: only with --cluster slurm'),
    (['--gpus', '1'], '--gpus: only with --cluster slurm'), (['--', '--seed', '1'], '--seed is set for each'),
    (['--', '--resume=auto'], '--resume is set for each'), (['--', '--save-dir', 'x'], '--save_dir is set for each'),
    (['--', '--resume'], '--resume is set for each'),
    (['--datasets', 'a', '--', '--dataset', 'b'], '--dataset is set for each')])
def test_launch_refuses_bad_flags(tmp_path, flags, words):
    with pytest.raises(ValueError, match=words):
        launch.main(['offline_trainer.py', '--save_dir', str(tmp_path), *flags])
