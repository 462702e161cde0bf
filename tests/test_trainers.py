"""Both halves train on the same data, and nothing about the machine or the budget ends in a traceback."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import offline_trainer
import ogbench_utils
import online_trainer
import trajectories
from mamba import choose_backend
from offline_agent import OfflineConfig
from online_batches import OnlineBatches
from support.devices import choose_device
from support.files import load_checkpoint
from support.flags import parse_flags
from support.metrics import read_csv

ROOT = Path(__file__).resolve().parent.parent
DATASET = 'antmaze-medium-navigate-v0'
OFFLINE = shlex.split('--d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 --context_length 20 --transition_steps 5 '
                      '--batch_size 4 --num_updates 1 --val_batches 1 --no-maze_figures')
ONLINE = shlex.split('--idm_hidden_dim 32 --batch_size 4 --num_envs 2 --random_steps 40 '
                     '--labeler_updates 2 --initial_updates 1 '
                     '--max_steps 40 --final_eval_episodes 1')


@pytest.fixture
def quick(monkeypatch, tmp_path, make_short_env):
    """No pictures, short episodes, a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for script in (offline_trainer, online_trainer):
        monkeypatch.setattr(script, 'plot_curves', lambda *_: None)
    monkeypatch.setattr(online_trainer, 'draw_evaluation', lambda *_: None)
    monkeypatch.setattr(online_trainer, 'make_env', make_short_env)
    return tmp_path


def write_slice(path, first=0):
    """Four trajectories of 200 states of the bundled set."""
    bundled = ROOT / 'datasets' / f'{ogbench_utils.BUNDLED_NAME}.npz'
    observations = ogbench_utils.load_trajectories(bundled, 4)[0].reshape(4, -1, 29)[:, first:first + 200]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, observations=observations.reshape(-1, 29), terminals=np.arange(800) % 200 == 199)
    return path


@pytest.fixture
def mine(quick):
    """An offline run on a file of a folder of one's own, named relative to the working directory."""
    path = write_slice(quick / 'mine' / f'{DATASET}.npz')
    offline_trainer.main([*OFFLINE, '--data_dir', 'mine', '--max_trajectories', '3', '--save_dir', 'off line'])
    return path


def test_the_printed_command_trains_on_the_same_file(mine, quick, monkeypatch, capsys):
    """From another working directory, too; nothing is downloaded, no other file of that name is taken."""
    offline_trainer.main([*OFFLINE, '--data_dir', 'mine', '--max_trajectories', '3', '--save_dir', 'again'])
    next_line = [line for line in capsys.readouterr().out.splitlines() if line.startswith('next: ')][-1]
    words = shlex.split(next_line.removeprefix('next: '))
    assert words[1] == 'online_trainer.py'
    monkeypatch.setattr(ogbench_utils, 'download', lambda *_: pytest.fail('a download'))
    (quick / 'elsewhere').mkdir()
    monkeypatch.chdir(quick / 'elsewhere')
    write_slice(Path('datasets') / f'{DATASET}.npz', first=400)
    online_trainer.main([*words[2:], *ONLINE, '--save_dir', 'run'])
    assert f'dataset {mine}' in capsys.readouterr().out
    data = load_checkpoint('run/last.pth', 'online')['data']
    assert data['path'] == str(mine) and data['max_trajectories'] == 3
    assert data == load_checkpoint(quick / 'again' / 'last.pth')['data']


def test_data_that_are_gone_or_differ_are_refused_unless_one_insists(mine, quick, capsys):
    flags = ['--offline_checkpoint', 'off line/last.pth', *ONLINE]
    fingerprint = load_checkpoint('off line/last.pth')['data']['fingerprint']
    mine.rename(quick / 'moved.npz')
    with pytest.raises(FileNotFoundError) as gone:
        online_trainer.main(flags)
    write_slice(mine, first=400)
    with pytest.raises(ValueError, match='The file has changed') as differs:
        online_trainer.main(flags)
    for error in (gone, differs):
        text = str(error.value)
        assert '\n' not in text and str(mine) in text and '--dataset_path' in text
    assert fingerprint in str(differs.value)

    capsys.readouterr()
    online_trainer.main([*flags, '--dataset_path', 'moved.npz', '--save_dir', 'moved'])
    assert 'other data' not in capsys.readouterr().err
    online_trainer.main([*flags, '--data_dir', 'mine', '--save_dir', 'insists'])
    warning = capsys.readouterr().err
    assert 'warning: other data than offline, as asked' in warning and fingerprint in warning


def test_true_actions_are_taken_from_the_data_if_asked_for(mine, quick, monkeypatch):
    """Only then; a file without them, or with those of another robot, is one line that names it."""
    flags = ['--offline_checkpoint', 'off line/last.pth', *ONLINE]
    with pytest.raises(ValueError, match=f'{mine}: there are no `actions` in it.*--dataset_path'):
        online_trainer.main([*flags, '--true_actions'])

    arrays = dict(np.load(mine, allow_pickle=False))
    actions = np.random.default_rng(0).uniform(-2, 2, (800, 8)).astype(np.float32)
    for name, wrong in (('five', actions[:, :5]), ('short', actions[:700]), ('nan', actions * np.nan)):
        np.savez(f'{name}.npz', **arrays, actions=wrong)
        with pytest.raises(ValueError, match=f'{name}.npz.*`actions'):
            online_trainer.main([*flags, '--true_actions', '--dataset_path', f'{name}.npz'])

    np.savez('labelled.npz', **arrays, actions=actions)
    batches = []
    sample = OnlineBatches.sample
    monkeypatch.setattr(OnlineBatches, 'sample', lambda self, rng: batches.append(sample(self, rng)) or batches[-1])
    for extra in ([], ['--true_actions']):
        online_trainer.main([*flags, *extra, '--dataset_path', 'labelled.npz', '--save_dir', f'run{len(extra)}'])

    assert not batches[0].is_online.any() and not batches[-1].is_online.any()
    labelled = [np.array_equal(batch.actions, actions[batch.rows].clip(-1, 1)) for batch in batches]
    assert labelled[-1] and not labelled[0]


def test_resume_with_a_lower_budget_evaluates(mine, capsys):
    """The last row of a run that was interrupted has no evaluation: a budget that is spent already asks for it."""
    flags = ['--offline_checkpoint', 'off line/last.pth', *ONLINE, '--eval_interval', '0', '--save_dir', 'run']
    online = online_trainer.OnlineTraining
    finish_round = online.finish_round

    def stop_after_the_first_round(self, metrics):
        finish_round(self, metrics)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, 'finish_round', stop_after_the_first_round)
        with pytest.raises(SystemExit):
            online_trainer.main([*flags, '--max_steps', '200'])
    before = read_csv('run/online.csv')
    assert [row['step'] for row in before] == [40] and 'evaluation/overall_success' not in before[0]

    capsys.readouterr()
    for _ in range(2):  # the second time there is nothing left to do
        online_trainer.main([*flags, '--max_steps', '30', '--resume'])
        assert 'this run is finished' in capsys.readouterr().out
        rows = read_csv('run/online.csv')
        assert [row['step'] for row in rows] == [40, 40] and 'evaluation/overall_success' in rows[1]
    online_trainer.main([*flags, '--max_steps', '90', '--resume'])
    assert read_csv('run/online.csv')[-1]['step'] > 40


def test_scripts_work_without_a_user_name_or_home(tmp_path):
    """A container whose user id nobody knows: the password database has no entry, and HOME is not set."""
    write_slice(tmp_path / 'datasets' / f'{DATASET}.npz')
    code = """
import os, pwd, runpy, sys
def unknown(*_):
    raise KeyError('getpwuid(): uid not found')
pwd.getpwuid = unknown
script = sys.argv[1]
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name='__main__')
"""
    names = ('HOME', 'LOGNAME', 'USER', 'LNAME', 'USERNAME', 'MPLCONFIGDIR')
    environment = {name: value for name, value in os.environ.items() if name not in names}
    commands = (['offline_trainer.py', *OFFLINE, '--save_dir', 'offline'],
                ['online_trainer.py', *ONLINE, '--offline_checkpoint', 'offline/last.pth', '--save_dir', 'online',
                 '--max_episodes', '1'],
                ['evaluate.py', '--checkpoint', 'none.pth'], ['ogbench_utils.py', 'list'])
    for script, *flags in commands:
        done = subprocess.run([sys.executable, '-c', code, str(ROOT / script), *flags], cwd=tmp_path, text=True,
                              env=environment | {'OMP_NUM_THREADS': '1'}, capture_output=True)
        assert 'Traceback' not in done.stderr, done.stderr
        assert done.returncode == (2 if script == 'evaluate.py' else 0), done.stderr


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert choose_device('cuda:1') == torch.device('cuda:1') and choose_device('auto').type == 'cuda'
    for name in ('cuda:9', 'cuda:x', 'nothing'):
        with pytest.raises(ValueError, match=f'--device {name}.*use --device auto'):
            choose_device(name)


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads the peak of memory from Linux')
def test_saving_makes_no_copy_in_memory(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from support.files import save_checkpoint
def peak():
    return [int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')][0] / 1024
content = {{'agent': torch.ones(30_000_000)}}
save_checkpoint('small.pth', {{'agent': torch.ones(3)}})
before = peak()
save_checkpoint('large.pth', content)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert float(done.stdout) < 40, done.stderr  # MB; the tensor has 114


def test_a_full_disk_while_saving_says_so(tmp_path):
    full = Path('/dev/full')
    if not full.exists():
        pytest.skip('needs /dev/full')
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from support import files
real = open
files.open = lambda path, mode: real('/dev/full', mode)
files.save_checkpoint('last.pth', {{'agent': torch.ones(3_000_000)}})
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert 'last.pth cannot be written (No space left on device); free some space' in done.stderr, done.stderr
    assert done.returncode == 1


def test_parallel_first_downloads_do_not_disturb_each_other(tmp_path):
    """Three processes want the same file at once: it is served once, and all of them have it."""
    source = write_slice(tmp_path / 'server' / f'{DATASET}.npz')
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from support import download
fetch = download._fetch
def slow(url, part):
    print('fetched', flush=True)
    time.sleep(1)
    return fetch(url, part)
download._fetch = slow
download.download({source.name!r}, 'here', [{source.parent.as_uri()!r}])
"""
    children = [subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
                for _ in range(3)]
    output = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert ''.join(output).count('fetched') == 1
    assert (tmp_path / 'here' / source.name).read_bytes() == source.read_bytes()


class CompilationError(Exception):
    """As Triton's: not one of Python's own kinds."""


def test_auto_survives_whatever_the_probe_raises(monkeypatch):
    """Triton's compilers raise kinds of their own; a run that works with torch must not end."""
    for error in (AttributeError('no driver'), TypeError('bad'), KeyError('x'), CompilationError('ptxas')):
        def fail(error=error):
            raise error

        monkeypatch.setattr('mamba.load_mamba_ssm_scan', fail)
        backend, why = choose_backend('auto', 'cuda')
        assert backend == 'torch' and 'not usable' in why
        with pytest.raises(ValueError, match='--mamba_backend mamba_ssm cannot be used'):
            choose_backend('mamba_ssm', 'cuda')


def test_a_dimension_that_never_varies_is_a_warning(mine, quick, capsys):
    """Nobody can leave it out where the environment has it."""
    path = write_slice(quick / 'constant.npz')
    with np.load(path, allow_pickle=False) as arrays:
        observations, terminals = arrays['observations'], arrays['terminals']
    observations[:, 3] = 0.5
    np.savez(path, observations=observations, terminals=terminals)
    offline_trainer.main([*OFFLINE, '--dataset_path', str(path), '--save_dir', 'constant'])
    output = capsys.readouterr()
    assert 'constant.npz: 1 dimension(s)' in output.err and '(3)' in output.err
    assert 'slow dimensions' in output.out
    losses = read_csv('constant/train.csv')[-1]
    assert all(np.isfinite(value) for value in losses.values())


def test_the_banner_warns_where_one_dimension_is_all_that_is_slow(mine, quick, monkeypatch, capsys):
    monkeypatch.setattr(trajectories.TrajectoryDataset, 'slowness', lambda self: np.eye(29)[7])
    offline_trainer.main([*OFFLINE, '--data_dir', 'mine', '--save_dir', 'one'])
    assert 'warning: dimension 7 ' in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- budget
def test_the_default_budget_is_in_updates_and_epochs_that_are_asked_for_are_made():
    class Windows:
        num_windows = 1010

    def budget(*flags):
        config, _ = parse_flags('', offline_trainer.TrainConfig, OfflineConfig, argv=flags)
        return offline_trainer.update_budget(config, Windows)

    assert budget() == 1000, 'whatever the size of the data'
    assert budget('--num_epochs', '200', '--batch_size', '16') == 200 * 64
    assert budget('--num_updates', '7') == 7
