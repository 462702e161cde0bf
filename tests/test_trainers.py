"""Both trainers: data they share, budgets, and errors of disk, device and home directory in one line."""

import json
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
from labeling.online_batches import OnlineBatches
from mamba import choose_backend
from offline_agent import OfflineConfig
from support.devices import choose_device
from support.files import load_checkpoint
from support.flags import parse_flags
from support.metrics import read_csv

ROOT = Path(__file__).resolve().parent.parent
DATASET = 'antmaze-medium-navigate-v0'
OFFLINE = shlex.split('--d_model 32 --headdim 16 --d_state 8 --hidden_dim 32 --context_length 20 '
                      '--transition_steps 5 --batch_size 4 --num_updates 1 --no-maze_figures')
ONLINE = shlex.split('--idm_hidden_dim 32 --batch_size 4 --num_envs 2 --random_steps 40 --initial_updates 1 '
                     '--max_steps 40 --final_eval_episodes 1')


@pytest.fixture
def quick(monkeypatch, tmp_path, quick_training):
    """Train quickly in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_slice(path, first=0):
    """Write four trajectories of 200 states of the bundled set; return the path."""
    bundled = ROOT / 'datasets' / f'{ogbench_utils.BUNDLED_NAME}.npz'
    observations = ogbench_utils.load_trajectories(bundled, 4)[0].reshape(4, -1, 29)[:, first:first + 200]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, observations=observations.reshape(-1, 29), terminals=np.arange(800) % 200 == 199)
    return path


@pytest.fixture
def custom_path(quick):
    """Train offline on a file of the folder `custom`, given as a relative path; return the file's path."""
    path = write_slice(quick / 'custom' / f'{DATASET}.npz')
    flags = ['--data_dir', 'custom', '--max_trajectories', '3', '--save_dir', 'off line']
    offline_trainer.main([*OFFLINE, *flags])
    return path


def test_printed_command_trains_on_the_same_file(custom_path, quick, monkeypatch, capsys):
    """Run it in another working directory: it downloads nothing and ignores another file of that name."""
    offline_trainer.main([*OFFLINE, '--data_dir', 'custom', '--max_trajectories', '3', '--save_dir', 'again'])
    next_line = [line for line in capsys.readouterr().out.splitlines() if line.startswith('next: ')][-1]
    words = shlex.split(next_line.removeprefix('next: '))
    assert words[1] == 'online_trainer.py'

    monkeypatch.setattr(ogbench_utils, 'download', lambda *_: pytest.fail('a download'))
    (quick / 'elsewhere').mkdir()
    monkeypatch.chdir(quick / 'elsewhere')
    write_slice(Path('datasets') / f'{DATASET}.npz', first=400)
    online_trainer.main([*words[2:], *ONLINE, '--save_dir', 'run'])

    assert f'dataset {custom_path}' in capsys.readouterr().out
    data = load_checkpoint('run/last.pth', 'online')['data']
    assert data['path'] == str(custom_path) and data['max_trajectories'] == 3
    assert data == load_checkpoint(quick / 'again' / 'last.pth')['data']


def test_online_trainer_rejects_missing_or_changed_data_unless_named(custom_path, quick, capsys):
    flags = ['--offline_checkpoint', 'off line/last.pth', *ONLINE]
    fingerprint = load_checkpoint('off line/last.pth')['data']['fingerprint']
    custom_path.rename(quick / 'moved.npz')
    with pytest.raises(FileNotFoundError) as missing:
        online_trainer.main(flags)
    write_slice(custom_path, first=400)
    with pytest.raises(ValueError, match='has changed') as changed:
        online_trainer.main(flags)
    for error in (missing, changed):
        text = str(error.value)
        assert '\n' not in text and str(custom_path) in text and '--dataset_path' in text
    assert fingerprint in str(changed.value)

    capsys.readouterr()
    online_trainer.main([*flags, '--dataset_path', 'moved.npz', '--save_dir', 'moved'])
    assert 'other data' not in capsys.readouterr().err
    online_trainer.main([*flags, '--data_dir', 'custom', '--save_dir', 'named'])
    warning = capsys.readouterr().err
    assert 'warning: other data than offline' in warning and fingerprint in warning


def test_true_actions_imitates_the_actions_of_the_data(custom_path, quick, monkeypatch):
    """A file without actions, or with actions of another robot, is an error that names it."""
    flags = ['--offline_checkpoint', 'off line/last.pth', *ONLINE]
    with pytest.raises(ValueError, match=f'{custom_path}: there are no `actions` in it.*--dataset_path'):
        online_trainer.main([*flags, '--true_actions'])

    arrays = dict(np.load(custom_path, allow_pickle=False))
    actions = np.random.default_rng(0).uniform(-2, 2, (800, 8)).astype(np.float32)
    for name, wrong in (('five', actions[:, :5]), ('short', actions[:700]), ('nan', actions * np.nan)):
        np.savez(f'{name}.npz', **arrays, actions=wrong)
        with pytest.raises(ValueError, match=f'{name}.npz.*`actions'):
            online_trainer.main([*flags, '--true_actions', '--dataset_path', f'{name}.npz'])

    np.savez('labelled.npz', **arrays, actions=actions)
    batches = []
    sample = OnlineBatches.sample

    def record(self, rng):
        batches.append(sample(self, rng))
        return batches[-1]

    monkeypatch.setattr(OnlineBatches, 'sample', record)
    for extra in ([], ['--true_actions']):
        files = ['--dataset_path', 'labelled.npz', '--save_dir', f'run{len(extra)}']
        online_trainer.main([*flags, *extra, *files])

    is_data = [batch.rows >= 0 for batch in batches]
    labelled = [np.array_equal(batch.actions[rows], actions[batch.rows[rows]].clip(-1, 1))
                for batch, rows in zip(batches, is_data, strict=True)]
    assert labelled[-1] and not labelled[0]


def test_resume_with_a_spent_budget_evaluates_once(custom_path, capsys):
    """The last row of an interrupted run has no evaluation; resuming with a lower budget adds it."""
    flags = ['--offline_checkpoint', 'off line/last.pth', *ONLINE, '--eval_interval', '0']
    flags += ['--save_dir', 'run']
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
    for _ in range(2):  # the second resume changes nothing
        online_trainer.main([*flags, '--max_steps', '30', '--resume'])
        assert 'this run is finished' in capsys.readouterr().out
        rows = read_csv('run/online.csv')
        assert [row['step'] for row in rows] == [40, 40] and 'evaluation/overall_success' in rows[1]
    online_trainer.main([*flags, '--max_steps', '90', '--resume'])
    assert read_csv('run/online.csv')[-1]['step'] > 40


def test_scripts_work_without_a_user_name_or_home(tmp_path):
    """Play a container whose user id has no entry in the password database and that does not set HOME.

    test_side_effects.py trains in such a container.
    """
    code = """
import json, os, pwd, runpy, sys
def unknown(*_):
    raise KeyError('getpwuid(): uid not found')
pwd.getpwuid = unknown
codes = []
for script, *flags in json.loads(sys.argv[1]):
    sys.argv = [script, *flags]
    sys.path.insert(0, os.path.dirname(script))
    try:
        runpy.run_path(script, run_name='__main__')
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code or 0)
assert codes == [2, 0], codes
"""
    names = ('HOME', 'LOGNAME', 'USER', 'LNAME', 'USERNAME', 'MPLCONFIGDIR')
    environment = {name: value for name, value in os.environ.items() if name not in names}
    commands = [['evaluate.py', '--checkpoint', 'none.pth'], ['ogbench_utils.py', 'list']]
    words = json.dumps([[str(ROOT / script), *flags] for script, *flags in commands])
    done = subprocess.run([sys.executable, '-c', code, words], cwd=tmp_path, text=True, capture_output=True,
                          env=environment | {'OMP_NUM_THREADS': '1'})
    assert 'Traceback' not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_choose_device_rejects_missing_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert choose_device('cuda:1') == torch.device('cuda:1') and choose_device('auto').type == 'cuda'
    for name in ('cuda:9', 'cuda:x', 'nothing'):
        with pytest.raises(ValueError, match=f'--device {name}.*use --device auto'):
            choose_device(name)


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads the peak of memory from Linux')
def test_save_checkpoint_makes_no_copy_in_memory(tmp_path):
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


def test_save_checkpoint_names_the_file_on_a_full_disk(tmp_path, run_script):
    full = Path('/dev/full')
    if not full.exists():
        pytest.skip('needs /dev/full')
    (tmp_path / 'fill.py').write_text("""
import torch
from support import files
real = open
files.open = lambda path, mode: real('/dev/full', mode)
files.save_checkpoint('last.pth', {'agent': torch.ones(3_000_000)})
""")
    _, error = run_script(tmp_path / 'fill.py', cwd=tmp_path, code=1)
    assert 'last.pth cannot be written (No space left on device); free some space' in error


def test_download_fetches_a_file_once_for_parallel_processes(tmp_path):
    """Start three processes that download one file: it is fetched once, and all of them find it."""
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
    words = [sys.executable, '-c', code]
    children = [subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    output = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert ''.join(output).count('fetched') == 1
    assert (tmp_path / 'here' / source.name).read_bytes() == source.read_bytes()


class CompilationError(Exception):
    """A stand-in for Triton's error, which is a plain Exception."""


def test_choose_backend_falls_back_to_torch_on_any_probe_error(monkeypatch):
    """Triton's compilers raise errors of their own types; a run that works with torch must not end."""
    for error in (AttributeError('no driver'), TypeError('bad'), KeyError('x'), CompilationError('ptxas')):
        def fail(error=error):
            raise error

        monkeypatch.setattr('mamba.load_mamba_ssm_scan', fail)
        backend, why = choose_backend('auto', 'cuda')
        assert backend == 'torch' and 'not usable' in why
        with pytest.raises(ValueError, match='--mamba_backend mamba_ssm cannot be used'):
            choose_backend('mamba_ssm', 'cuda')


def test_constant_dimension_is_a_warning(custom_path, quick, capsys):
    """The dimension may belong to the environment's observations, so it is not an error."""
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


def test_offline_trainer_warns_if_goals_depend_on_one_dimension(custom_path, quick, monkeypatch, capsys):
    monkeypatch.setattr(trajectories.TrajectoryDataset, 'slowness', lambda self: np.eye(29)[7])
    offline_trainer.main([*OFFLINE, '--data_dir', 'custom', '--save_dir', 'one'])
    assert 'warning: dimension 7 ' in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- budget
def test_update_budget_is_num_updates_unless_epochs_are_given():
    class Windows:
        num_windows = 1010

    def budget(*flags):
        config, _ = parse_flags('', offline_trainer.OfflineTrainConfig, OfflineConfig, argv=flags)
        return offline_trainer.update_budget(config, Windows)

    assert budget() == 1000, 'whatever the size of the data'
    assert budget('--num_epochs', '200', '--batch_size', '16') == 200 * 64
    assert budget('--num_updates', '7') == 7
